"""Truncation of the distribution to sample from."""

import numpy as np

from conformance.case import Case
from reweight import decoding

VOCABULARY = 9


def distinct(rng, n):
    return {"logits": 2 * rng.normal(size=(n, VOCABULARY))}


def tied(rng, n):
    """Logits of a few exact values, so that most have equals, and some tokens that are ruled out."""
    logits = rng.integers(-2, 3, (n, VOCABULARY)).astype(float)
    return {"logits": np.where(rng.random((n, VOCABULARY)) > 0.8, -np.inf, logits)}


def first_in_order(logits, counts):
    """One row at a time: the first `counts` tokens, the most probable first and of equal ones the lower id."""
    kept = np.zeros(logits.shape, bool)
    for row, count in enumerate(counts):
        kept[row, sorted(range(VOCABULARY), key=lambda v: (-logits[row, v], v))[:count]] = True
    return kept


def top_k(logits, k):
    return first_in_order(logits, [k] * len(logits))


def top_p(logits, p):
    counts = []
    for row in logits:
        mass, count = 0.0, 0
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        for probability in sorted(probabilities, reverse=True):
            if mass < p:
                mass, count = mass + probability, count + 1
        counts.append(count)
    return first_in_order(logits, counts)


def a_constant_changes_nothing(probe):
    arrays = probe.arrays()
    np.testing.assert_array_equal(probe.value({"logits": arrays["logits"] + 8.0}), probe.value(arrays))


def the_most_probable_token_is_kept(probe):
    arrays = probe.arrays()
    kept = probe.value(arrays)
    assert kept[np.arange(len(kept)), arrays["logits"].argmax(-1)].all()


def mass_is_enough_and_no_less_would_do(probe):
    logits, p = probe.arrays()["logits"], probe.case.hyper["p"]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = np.where(probe.value({"logits": logits}), probabilities, 0)
    assert (kept.sum(-1) >= p - 1e-6).all()
    least = np.where(kept > 0, kept, np.inf).min(-1)
    assert (kept.sum(-1) - least < p + 1e-6).all()


INVARIANTS = (a_constant_changes_nothing, the_most_probable_token_is_kept)
_LOGITS = {"logits": (np.zeros((4, VOCABULARY), int), np.float64(1.0), np.zeros((4, 0)))}

CASES = [
    Case(
        function=decoding.top_k_mask,
        inputs=distinct,
        hyper={"k": 3},
        constant=("logits",),
        reference=top_k,
        invariants=INVARIANTS,
        bad={**_LOGITS, "k": (0, -1, 2.0)},
    ),
    Case(
        function=decoding.top_k_mask,
        variant="tied",
        inputs=tied,
        hyper={"k": 4},
        constant=("logits",),
        reference=top_k,
        invariants=INVARIANTS,
    ),
    Case(
        function=decoding.top_p_mask,
        inputs=distinct,
        hyper={"p": 0.8},
        constant=("logits",),
        reference=top_p,
        invariants=(*INVARIANTS, mass_is_enough_and_no_less_would_do),
        bad={**_LOGITS, "p": (0.0, 1.5, -0.1)},
    ),
    Case(
        function=decoding.top_p_mask,
        variant="tied",
        inputs=tied,
        hyper={"p": 0.7},
        constant=("logits",),
        reference=top_p,
        invariants=INVARIANTS,
    ),
]
