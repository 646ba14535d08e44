"""What all weighting schemes share."""

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import Case, WeightingCase
from reweight import weights


def some_weights(rng, n):
    return {"weights": rng.uniform(0.1, 2.0, n)}


def some_losses(rng, n):
    return {"losses": rng.exponential(size=n)}


def _shares(weights, mask):
    return weights[mask] / np.sum(weights[mask])


def _entropy(weights, mask):
    shares = _shares(weights, mask)
    return -np.sum(shares * np.log(shares))


def scale_does_not_matter(probe):
    arrays = probe.arrays()
    large = {**arrays, "weights": 1e20 * arrays["weights"]}
    np.testing.assert_allclose(probe.value(large), probe.value(arrays), rtol=1e-5)


def _sized(losses, *, sizes, mask=None):
    kept = jnp.ones(losses.shape, bool) if mask is None else jnp.asarray(mask) != 0
    return jnp.where(kept, jax.nn.sigmoid(losses.astype(jnp.promote_types(losses.dtype, jnp.float32)) + sizes), 0)


def _logistic(x):
    return 1 / (1 + np.exp(-x))


_WEIGHTS = {"weights": (0.0, 1e4)}
_DIAGNOSTIC = {
    "inputs": some_weights,
    "returns": "batch",
    "mask": "mask",
    "differentiable": ("weights",),
    "extremes": _WEIGHTS,
    "invariants": (scale_does_not_matter,),
}

CASES = [
    Case(
        function=weights.normalize,
        inputs=some_weights,
        mask="mask",
        differentiable=("weights",),
        couples=True,
        extremes={"weights": (1e-10, 1e30)},
        weights=True,
        reference=lambda weights, mask: np.where(mask, weights * np.sum(mask) / np.sum(weights * mask), 0),
        invariants=(scale_does_not_matter,),
    ),
    Case(
        function=weights.effective_sample_size,
        **_DIAGNOSTIC,
        reference=lambda weights, mask: np.sum(weights * mask) ** 2 / np.sum(weights**2 * mask),
    ),
    Case(
        function=weights.max_weight_share,
        **_DIAGNOSTIC,
        reference=lambda weights, mask: np.max(_shares(weights, mask)),
    ),
    Case(function=weights.weight_entropy, **_DIAGNOSTIC, reference=_entropy),
    WeightingCase(
        function=weights.uniform,
        inputs=some_losses,
        reference=lambda steps: [step["mask"].astype(float) for step in steps],
        bad={"losses": (np.ones(16, int),)},
    ),
    WeightingCase(
        function=weights.stateless,
        inputs=lambda rng, n: {**some_losses(rng, n), "sizes": rng.normal(size=n)},
        hyper={"scope": "example"},
        call=lambda scope: weights.stateless(_sized, scope=scope, name="weights.stateless"),
        mean=None,
        reference=lambda steps, scope: [s["mask"] * _logistic(s["losses"] + s["sizes"]) for s in steps],
        bad={"scope": ("global", None)},
        free={
            "losses": "the function that is lifted checks its own arguments",
            "sizes": "the function that is lifted checks its own arguments",
            "mask": "the function that is lifted checks its own arguments",
            "function": "any function",
            "name": "any name",
        },
    ),
    WeightingCase(
        function=weights.chain,
        inputs=lambda rng, n: {**some_losses(rng, n), "labels": rng.integers(0, 3, n)},
        hyper={"weightings": (weights.class_weighted(np.array([0.5, 1.0, 2.0])), weights.kl_dro(temperature=0.7))},
        call=lambda weightings: weights.chain(*weightings),
        mean=None,
        blames=("class_weighted",),
        reference=lambda steps, weightings: [
            np.array([0.5, 1.0, 2.0])[s["labels"]]
            * np.where(s["mask"], np.exp(s["losses"] / 0.7), 0)
            / np.mean(np.exp(s["losses"][s["mask"]] / 0.7))
            for s in steps
        ],
        bad={"weightings": ((),)},
    ),
    WeightingCase(
        function=weights.deferred,
        inputs=some_losses,
        hyper={"inner": weights.kl_dro(temperature=0.7), "start_step": 1},
        reference=lambda steps, inner, start_step: [
            s["mask"] * (np.exp(s["losses"] / 0.7) / np.mean(np.exp(s["losses"][s["mask"]] / 0.7)) if i else 1.0)
            for i, s in enumerate(steps)
        ],
        blames=("kl_dro_weights",),
        bad={"inner": ((), weights.kl_dro_weights), "start_step": (-1, 2.5)},
    ),
]
