"""Losses of two classes from one score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import BatchLossCase, Case
from reweight.losses import binary as losses

KEY = jax.random.key(7)
TAILS = {
    "zero": lambda m: 0 * m,
    "sqrt": lambda m: -2 * (m - 1) ** 0.5,
    "log": lambda m: -np.log(m),
    "exp": lambda m: -np.exp(1 - m),
    "inverse": lambda m: (1 - m) / m,
    "inverse_log": lambda m: np.e / np.log(m - 1 + np.e) - np.e,
}


def batch(rng, n):
    return {"scores": 2 * rng.normal(size=n), "labels": rng.integers(0, 2, n)}


def margins(scores, labels):
    return np.where(labels != 0, 1.0, -1.0) * scores


def logistic(scores, labels):
    return np.log(1 + np.exp(-margins(scores, labels)))


def exponential(scores, labels):
    return np.exp(-margins(scores, labels))


def focal(scores, labels, gamma):
    return (1 - 1 / (1 + np.exp(-margins(scores, labels)))) ** gamma * logistic(scores, labels)


def hinge(scores, labels, tail):
    m = margins(scores, labels)
    return np.where(m > 1, TAILS[tail](np.maximum(m, 1)), 1 - m)


def box_cox(values, lam):
    return np.maximum(1 + lam * values, 0) ** (1 / lam)


def matched(scores, labels, derivatives, mask):
    m = margins(scores, labels)[mask]
    given = np.empty(m.size)
    given[np.argsort(m)] = np.sort(np.maximum(derivatives[mask], -1))
    given = np.where(m > 1, given / np.where(m > 1, m, 1), given) - 1e-6
    found = np.zeros(scores.shape)
    found[mask] = given * m
    return found


def drawn(key, scores, labels, mask, lam):
    noise = np.asarray(jax.random.normal(key, scores.shape, jnp.float32), np.float64)
    used = np.zeros(scores.shape)
    used[mask] = -box_cox(noise[: mask.sum()], lam)
    return matched(scores, labels, used, mask)


def of_the_stream(steps, lam):
    base = jax.random.fold_in(jax.random.key(0), 1)
    return [
        drawn(jax.random.fold_in(base, number), step["scores"], step["labels"], step["mask"], lam)
        for number, step in enumerate(steps)
    ]


def the_gradient_is_the_derivative(probe):
    arrays = probe.arrays()
    outcome = probe.run(arrays)
    slope = np.where(arrays["scores"] == 0, 0, outcome.value / arrays["scores"])
    weights = probe.examples * (1 + 0.5 * np.cos(1.0))  # with which the suite contracts the values
    np.testing.assert_allclose(outcome.grads["scores"] / weights, slope, rtol=1e-4, atol=1e-6)


COMMON = {
    "inputs": batch,
    "differentiable": ("scores",),
    "bad": {"scores": (np.zeros(16, int),)},
}
RANKED = {
    "mask": "mask",
    "couples": True,
    "surrogate": True,
    "differentiable": ("scores",),
    "invariants": (the_gradient_is_the_derivative,),
}
LAM = {"lam": (np.inf, -np.inf)}

CASES = [
    Case(function=losses.logistic, reference=logistic, **COMMON),
    Case(function=losses.exponential, reference=exponential, **COMMON),
    Case(
        function=losses.binary_focal,
        hyper={"gamma": 1.5},
        defaults={"gamma": 2.0},
        reference=focal,
        **{**COMMON, "bad": {**COMMON["bad"], "gamma": (-1.0, np.inf)}},
    ),
    *(
        Case(
            function=losses.hinge,
            variant=tail,
            hyper={"tail": tail},
            reference=hinge,
            **{**COMMON, "bad": {**COMMON["bad"], "tail": ("flat",)}},
        )
        for tail in TAILS
    ),
    *(
        Case(
            function=losses.inverse_box_cox,
            variant=f"lam {lam}",
            inputs=lambda rng, n: {"values": rng.normal(size=n)},
            hyper={"lam": lam},
            differentiable=("values",),
            reference=box_cox if lam else lambda values, lam: np.exp(values),
            bad={"values": (np.zeros(16, int),), **LAM},
            defaults={"lam": 0.0},
        )
        for lam in (0.0, 0.25, -0.2)
    ),
    Case(
        function=losses.rank_matched_loss,
        inputs=lambda rng, n: {**batch(rng, n), "derivatives": -rng.exponential(size=n)},
        stopped=("derivatives",),
        extremes={"scores": (1e4, -1e4), "derivatives": (0.0, -1e4)},
        reference=matched,
        bad=COMMON["bad"],
        **RANKED,
    ),
    Case(
        function=losses.ensloss,
        call=functools.partial(losses.ensloss, KEY),
        inputs=batch,
        hyper={"lam": 0.25},
        reference=functools.partial(drawn, KEY),
        bad={**COMMON["bad"], **LAM},
        defaults={"lam": 0.0},
        free={"key": "a key, of which the case holds one"},
        **RANKED,
    ),
    BatchLossCase(
        function=losses.stream_ensloss,
        hyper={"lam": 0.25},
        reference=of_the_stream,
        defaults={"lam": 0.0},
        **{**COMMON, "bad": {**LAM, "redraw": (0, 1.5)}},
    ),
]
