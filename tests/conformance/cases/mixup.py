"""Mixtures of examples."""

import jax
import numpy as np

from conformance.case import Case
from reweight.regularizers import mixup

KEY = jax.random.key(3)
_KEY = {"key": "a random key; the distributions are tested in tests/regularizers"}


def inputs(rng, n):
    return {"x": rng.normal(size=(n, 2, 3)), "targets": rng.dirichlet(np.ones(4), n)}


def given(rng, n):
    partners = np.stack([np.arange(n), rng.permutation(n), rng.integers(0, n + 2, n)], axis=1)  # two are no rows
    return {"values": rng.normal(size=(n, 3)), "partners": partners, "weights": rng.dirichlet(np.ones(3), n)}


def mixed(values, partners, weights):
    rows = np.concatenate([values, np.zeros((2, values.shape[1]))])
    return np.einsum("nd,ndf->nf", weights, rows[partners])


def drawn(mask, **hyper):
    return mixup.draw_mixture(KEY, len(mask), mask=mask, **hyper)


def of_drawn(x, targets, mask, d=2, **hyper):
    mixture = jax.tree.map(np.asarray, mixup.draw_mixture(KEY, len(x), d=d, **hyper, mask=mask))
    weights = np.where(mask[:, None], mixture.weights, 0)
    partners = np.where(mask[:, None], mixture.partners, 0)
    return tuple(np.einsum("nd,nd...->n...", weights, values[partners]) for values in (x, targets))


def kept_rows_mix_with_kept_rows(probe):
    mask = probe.arrays()["mask"]
    mixture = probe.value(probe.arrays())
    assert np.isin(mixture.partners[mask], np.flatnonzero(mask)).all()
    assert (mixture.partners[~mask] == len(mask)).all()
    np.testing.assert_allclose(mixture.weights.sum(axis=1), 1, rtol=1e-6)


def totals_stay(probe):
    arrays = probe.arrays()
    x, targets = probe.value(arrays)
    for whole, before in ((x, arrays["x"]), (targets, arrays["targets"])):
        np.testing.assert_allclose(whole.sum(axis=0), before[arrays["mask"]].sum(axis=0), rtol=1e-4, atol=1e-5)


def one_row_alone_stays(probe):
    arrays = probe.arrays(mask=np.ones(16, bool))
    for came, name in zip(probe.value(arrays, d=1), ("x", "targets"), strict=True):
        np.testing.assert_array_equal(came, np.float32(arrays[name]))


ALPHA = {"alpha": (0.0, -1.0, np.inf)}
MIXES = {
    "inputs": inputs,
    "mask": "mask",
    "differentiable": ("x", "targets"),
    "couples": True,
    "ordered": True,  # what is drawn belongs to places in the batch
    "bf16": None,
    "reference": of_drawn,
    "free": _KEY,
}

CASES = [
    Case(
        function=mixup.mix,
        call=lambda values, partners, weights: mixup.mix(values, mixup.Mixture(partners, weights)),
        inputs=given,
        differentiable=("values", "weights"),
        extremes={"weights": (0.0, 1.0)},
        couples=True,
        ordered=True,  # partners are numbers of rows
        bf16=None,
        reference=mixed,
        bad={"values": (np.float64(0.5), np.zeros((16, 3), int))},
        free={
            "mixture": "partners and weights, checked one by one",
            "partners": "see mixture",
            "weights": "see mixture",
        },
    ),
    Case(
        function=mixup.draw_mixture,
        call=drawn,
        inputs=lambda rng, n: {"mask": rng.random(n) > 0.3},
        hyper={"d": 3, "alpha": 0.7},
        couples=True,
        ordered=True,
        invariants=(kept_rows_mix_with_kept_rows,),
        bad={**ALPHA, "d": (0, 1.5)},
        defaults={"d": 2, "alpha": 1.0},
        free={**_KEY, "size": "the length of the mask here"},
    ),
    Case(
        function=mixup.d_mixup,
        call=lambda **given: mixup.d_mixup(KEY, **given),
        hyper={"d": 3, "alpha": 0.7},
        invariants=(totals_stay, one_row_alone_stays),
        bad={**ALPHA, "d": (0, 1.5), "x": (np.float64(0.5), np.zeros((16, 2), int))},
        defaults={"d": 2, "alpha": 1.0},
        **MIXES,
    ),
    Case(
        function=mixup.d_mixup,
        variant="per example",
        call=lambda **given: mixup.d_mixup(KEY, **given),
        hyper={"d": 3, "alpha": 0.7, "per_example": True, "largest_first": True},
        **MIXES,
    ),
    Case(
        function=mixup.mixup,
        call=lambda **given: mixup.mixup(KEY, **given),
        hyper={"alpha": 0.7},
        invariants=(totals_stay,),
        bad=ALPHA,
        defaults={"alpha": 1.0},
        **MIXES,
    ),
]
