"""Weights by class frequency, and focal weights."""

import numpy as np

from conformance.case import Case, WeightingCase
from reweight import weights

COUNTS = np.array([100.0, 20.0, 0.0, 5.0, 1.0])


def labelled_losses(rng, n):
    return {"losses": rng.exponential(size=n), "labels": rng.integers(0, COUNTS.size, n)}


def _scaled(raw, counts, scale):
    shares = (counts > 0).astype(float) if scale == "classes" else counts
    return raw * shares.sum() / np.sum(raw * shares)


def inverse(counts, power=1.0, scale="classes"):
    return _scaled(np.where(counts > 0, np.maximum(counts, 1) ** -power, 0), counts, scale)


def effective(counts, beta=0.9999, scale="classes"):
    number = np.array([np.sum(beta ** np.arange(count)) if count else np.inf for count in counts])
    return _scaled(1 / number, counts, scale)


def by_class(table):
    return lambda steps, signal="labels", **hyper: [s["mask"] * table(**hyper)[s[signal]] for s in steps]


def an_unknown_class_has_no_weight(probe):
    arrays = probe.arrays(mask=np.ones(16, bool))
    for unknown in (-1, COUNTS.size):
        arrays["labels"] = np.where(np.arange(16) == 3, unknown, arrays["labels"])
        assert probe.value(arrays)[3] == 0


def power_zero_weighs_classes_alike(probe):
    np.testing.assert_allclose(probe.value(probe.arrays(), power=0.0), COUNTS > 0)


def beta_zero_weighs_classes_alike(probe):
    np.testing.assert_allclose(probe.value(probe.arrays(), beta=0.0), COUNTS > 0)


def beta_one_is_inverse_frequency(probe):
    np.testing.assert_allclose(probe.value(probe.arrays(), beta=1.0), inverse(COUNTS), rtol=1e-5)


def rare_classes_weigh_more(probe):
    value = probe.value(probe.arrays())[COUNTS > 0]
    assert (np.diff(value) > 0).all(), value


def without_examples_no_class_has_weight(probe):
    np.testing.assert_array_equal(probe.value({"counts": np.zeros_like(COUNTS)}), np.zeros_like(COUNTS))


def before_the_start_all_classes_weigh_one(probe):
    np.testing.assert_array_equal(probe.value(probe.arrays(step=np.int64(4))), np.ones_like(COUNTS))


def focal(log_probs, mask, gamma=2.0):
    return np.where(mask, (1 - np.exp(log_probs)) ** gamma, 0)


def _log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), -1, keepdims=True))


def focal_from_logits(steps, gamma=2.0):
    chosen = [np.take_along_axis(_log_softmax(s["logits"]), s["labels"][:, None], 1)[:, 0] for s in steps]
    return [focal(log_probs, s["mask"], gamma) for log_probs, s in zip(chosen, steps, strict=True)]


def gamma_zero_is_uniform(probe):
    arrays = probe.arrays()
    np.testing.assert_array_equal(probe.value(arrays, gamma=0.0), arrays["mask"])


_TABLE = {
    "inputs": lambda rng, n: {"counts": COUNTS},
    "fixed": ("counts",),
    "returns": "batch",
    "stopped": ("counts",),
}
_BAD_COUNTS = {"scale": ("batch",), "counts": (np.ones((2, 2)),)}
_SCHEME = {"inputs": labelled_losses, "mean": None, "invariants": (an_unknown_class_has_no_weight,)}
_SIGNAL = {"signal": "any name"}

CASES = [
    Case(
        function=weights.deferred_class_weights,
        defaults={"beta": 0.9999},
        inputs=lambda rng, n: {"counts": COUNTS, "step": np.int64(7)},
        fixed=("counts", "step"),
        returns="batch",
        stopped=("counts",),
        hyper={"start_step": 5, "beta": 0.97, "scale": "examples"},
        reference=lambda counts, step, start_step, beta, scale: (
            np.ones(5) if step < start_step else effective(counts, beta, scale)
        ),
        invariants=(before_the_start_all_classes_weigh_one,),
        bad={"beta": (-0.1, 1.5), "start_step": (-1, 2.5), **_BAD_COUNTS},
    ),
    *(
        Case(
            function=function,
            variant=scale,
            defaults={hyper: default},
            **_TABLE,
            hyper={hyper: value, "scale": scale},
            reference=reference,
            invariants=(
                rare_classes_weigh_more,
                without_examples_no_class_has_weight,
                *(invariants if scale == "classes" else ()),
            ),
            bad={hyper: bad, **_BAD_COUNTS},
        )
        for function, hyper, default, value, bad, reference, invariants in (
            (
                weights.inverse_frequency_weights,
                "power",
                1.0,
                0.5,
                (-0.5, np.inf),
                inverse,
                (power_zero_weighs_classes_alike,),
            ),
            (
                weights.effective_number_weights,
                "beta",
                0.9999,
                0.97,
                (-0.1, 1.5),
                effective,
                (beta_zero_weighs_classes_alike, beta_one_is_inverse_frequency),
            ),
        )
        for scale in ("classes", "examples")
    ),
    WeightingCase(
        function=weights.class_weighted,
        **_SCHEME,
        hyper={"class_weights": np.array([0.5, 1.0, 2.0, 3.0, 0.0])},
        reference=by_class(lambda class_weights: class_weights),
        bad={"class_weights": (np.ones((2, 2)),)},
        free=_SIGNAL,
    ),
    WeightingCase(
        function=weights.class_weighted,
        variant="by group",
        inputs=lambda rng, n: {"losses": rng.exponential(size=n), "groups": rng.integers(0, 5, n)},
        mean=None,
        hyper={"class_weights": np.array([0.5, 1.0, 2.0, 3.0, 0.0]), "signal": "groups"},
        reference=by_class(lambda class_weights: class_weights),
    ),
    WeightingCase(
        function=weights.class_balanced,
        defaults={"beta": 0.9999},
        **_SCHEME,
        hyper={"counts": COUNTS, "beta": 0.97, "scale": "examples"},
        reference=by_class(effective),
        bad={"beta": (-0.1, 1.5), "scale": ("batch",), "counts": (np.ones((2, 2)),)},
        blames=("effective_number_weights",),
        free=_SIGNAL,
    ),
    WeightingCase(
        function=weights.class_balanced,
        variant="defaults",
        **_SCHEME,
        hyper={"counts": COUNTS},
        reference=by_class(effective),
    ),
    WeightingCase(
        function=weights.inverse_frequency,
        defaults={"power": 1.0},
        **_SCHEME,
        hyper={"counts": COUNTS, "power": 0.5, "scale": "examples"},
        reference=by_class(inverse),
        bad={"power": (-0.5, np.inf), "scale": ("batch",), "counts": (np.ones((2, 2)),)},
        blames=("inverse_frequency_weights",),
        free=_SIGNAL,
    ),
    WeightingCase(
        function=weights.inverse_frequency,
        variant="defaults",
        **_SCHEME,
        hyper={"counts": COUNTS},
        reference=by_class(inverse),
    ),
    Case(
        function=weights.focal_weights,
        defaults={"gamma": 2.0},
        inputs=lambda rng, n: {"log_probs": -rng.exponential(size=n)},
        hyper={"gamma": 1.5},
        mask="mask",
        stopped=("log_probs",),
        extremes={"log_probs": (0.0, -1e4)},
        weights=True,
        mean=None,
        reference=focal,
        invariants=(gamma_zero_is_uniform,),
        bad={"gamma": (-1.0, np.inf)},
    ),
    WeightingCase(
        function=weights.focal,
        defaults={"gamma": 2.0},
        inputs=lambda rng, n: {**labelled_losses(rng, n), "logits": 2 * rng.normal(size=(n, 5))},
        hyper={"gamma": 1.5},
        mean=None,
        reference=focal_from_logits,
        invariants=(gamma_zero_is_uniform, an_unknown_class_has_no_weight),
        bad={"gamma": (-1.0, np.inf), "source": ("probs",)},
    ),
    WeightingCase(
        function=weights.focal,
        variant="log_probs",
        inputs=lambda rng, n: {"losses": rng.exponential(size=n), "log_probs": -rng.exponential(size=n)},
        hyper={"source": "log_probs"},
        mean=None,
        extremes={"log_probs": (0.0, -1e4)},
        reference=lambda steps, source: [focal(s["log_probs"], s["mask"]) for s in steps],
        invariants=(gamma_zero_is_uniform,),
    ),
]
