"""Importance weights, and the weights of adversarial training."""

import numpy as np

from conformance.case import Case, WeightingCase
from conformance.cases.weights_dro import each
from reweight import weights


def importance(log_ratios, mask, low=0.0, high=np.inf, outside="clip", self_normalize=False, losses=None):
    ratios = np.exp(log_ratios)
    inside = (ratios >= low) & (ratios <= high)
    found = np.where(mask, np.clip(ratios, low, high) if outside == "clip" else np.where(inside, ratios, 0), 0)
    return found * mask.sum() / found.sum() if self_normalize else found


def gairat(attack_steps, mask, num_steps=10, offset=-1.0, losses=None):
    half = num_steps // 2
    raw = np.where(mask, (np.tanh(offset + 5 * (half - attack_steps) / half) + 1) / 2, 0)
    return raw * mask.sum() / raw.sum()


def ratios_of_one_are_uniform(probe):
    arrays = probe.arrays()
    arrays["log_ratios"] = np.zeros_like(arrays["log_ratios"])
    np.testing.assert_allclose(probe.value(arrays), arrays["mask"], rtol=1e-6)


def fewer_steps_weigh_more(probe):
    arrays = probe.arrays()
    keep = arrays["mask"]
    order = np.argsort(arrays["attack_steps"][keep])
    assert (np.diff(probe.value(arrays)[keep][order]) <= 1e-6).all()


_BAD_RATIOS = {"low": (-0.1, np.inf), "high": (0.0, -1.0), "outside": ("drop",)}
_BAD_STEPS = {"num_steps": (1, 2.5)}
_OFFSET = {"offset": "any number, and refused if it is none", "attack_steps": "integers or floats"}
_VARIANTS = {
    "plain": {},
    "clipped": {"low": 0.8, "high": 1.2},
    "dropped": {"low": 0.3, "high": 3.0, "outside": "zero"},
    "self-normalised": {"self_normalize": True},
    "clipped, self-normalised": {"high": 1.5, "self_normalize": True},
}

CASES = [
    *(
        Case(
            function=weights.importance_weights,
            defaults={"low": 0.0, "high": np.inf},
            variant=variant,
            inputs=lambda rng, n: {"log_ratios": rng.normal(size=n)},
            hyper=hyper,
            mask="mask",
            stopped=("log_ratios",),
            couples=bool(hyper.get("self_normalize")),
            weights=True,
            mean=1.0 if hyper.get("self_normalize") else None,
            reference=importance,
            invariants=(ratios_of_one_are_uniform,),
            bad=_BAD_RATIOS if variant == "plain" else {},
        )
        for variant, hyper in _VARIANTS.items()
    ),
    *(
        WeightingCase(
            function=weights.importance,
            defaults={"low": 0.0, "high": np.inf},
            variant=variant,
            inputs=lambda rng, n: {"losses": rng.exponential(size=n), "log_ratios": rng.normal(size=n)},
            hyper=hyper,
            mean=1.0 if hyper.get("self_normalize") else None,
            reference=each(importance),
            invariants=(ratios_of_one_are_uniform,),
            bad=_BAD_RATIOS if variant == "plain" else {"low": (5.0,)},
        )
        for variant, hyper in _VARIANTS.items()
        if variant in ("plain", "dropped", "clipped, self-normalised")
    ),
    Case(
        function=weights.gairat_weights,
        defaults={"num_steps": 10, "offset": -1.0},
        inputs=lambda rng, n: {"attack_steps": rng.integers(0, 8, n)},
        hyper={"num_steps": 7, "offset": -0.5},
        mask="mask",
        couples=True,
        weights=True,
        reference=gairat,
        invariants=(fewer_steps_weigh_more,),
        bad={**_BAD_STEPS, "offset": ("one",)},
        free=_OFFSET,
    ),
    WeightingCase(
        function=weights.gairat,
        defaults={"num_steps": 10, "offset": -1.0},
        inputs=lambda rng, n: {"losses": rng.exponential(size=n), "attack_steps": rng.integers(0, 11, n)},
        reference=each(gairat),
        invariants=(fewer_steps_weigh_more,),
        bad={**_BAD_STEPS, "offset": ("one",)},
        free=_OFFSET,
    ),
]
