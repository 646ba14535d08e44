"""Metrics of the confusion matrix, and losses that are such metrics."""

import functools

import numpy as np

from conformance.case import BatchLossCase, Case
from reweight.losses import metric as losses
from reweight.losses.base import of_sums
from reweight.metrics import confusion
from reweight.metrics.confusion import Confusion

FIELDS = Confusion._fields
SUMS = {"confusion": "four sums, checked one by one"}
UNDEFINED = {"undefined": "stands for what is not defined, and may be any number"}


def four_sums(rng, n):
    return {name: rng.uniform(0.5, 9.0, n) for name in FIELDS}


def f_beta(tp, fp, fn, tn, beta=1.0, undefined=0.0):
    return (1 + beta**2) / (beta**2 / (tp / (tp + fn)) + 1 / (tp / (tp + fp)))


def mcc(tp, fp, fn, tn, undefined=0.0):
    labels, predicted = np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 0, 0])
    sums = np.stack([tp, fp, fn, tn], axis=-1)
    return np.array([_correlation(labels, predicted, row / row.sum()) for row in sums])


def _correlation(x, y, shares):
    dx, dy = x - shares @ x, y - shares @ y
    return (shares * dx) @ dy / np.sqrt((shares * dx) @ dx * ((shares * dy) @ dy))


METRICS = {
    confusion.accuracy: lambda tp, fp, fn, tn, **_: 1 - (fp + fn) / (tp + fp + fn + tn),
    confusion.precision: lambda tp, fp, fn, tn, **_: 1 - fp / (tp + fp),
    confusion.recall: lambda tp, fp, fn, tn, **_: 1 - fn / (tp + fn),
    confusion.specificity: lambda tp, fp, fn, tn, **_: 1 - fp / (tn + fp),
    confusion.jaccard: lambda tp, fp, fn, tn, **_: 1 / (1 + (fp + fn) / tp),
    confusion.balanced_accuracy: lambda tp, fp, fn, tn, **_: 1 - (fn / (tp + fn) + fp / (tn + fp)) / 2,
    confusion.g_mean: lambda tp, fp, fn, tn, **_: np.exp((np.log(tp / (tp + fn)) + np.log(tn / (tn + fp))) / 2),
    confusion.mcc: mcc,
    confusion.f_beta: f_beta,
}
READS = {
    confusion.precision: ("tp", "fp"),
    confusion.recall: ("tp", "fn"),
    confusion.specificity: ("fp", "tn"),
    confusion.jaccard: ("tp", "fp", "fn"),
    confusion.f_beta: ("tp", "fp", "fn"),
}


def the_scale_does_not_matter(probe):
    arrays = probe.arrays()
    wanted = probe.value(arrays)
    np.testing.assert_allclose(probe.value({k: 1e3 * a for k, a in arrays.items()}), wanted, rtol=1e-5)


def nothing_gives_what_stands_for_undefined(probe):
    arrays = {name: np.zeros(16) for name in FIELDS}
    for undefined in (0.0, 1.0):
        np.testing.assert_array_equal(probe.value(arrays, undefined=undefined), undefined)


def of_fields(metric, tp, fp, fn, tn, **hyper):
    return metric(Confusion(tp, fp, fn, tn), **hyper)


def batch(rng, n):
    return {"probs": rng.uniform(0.2, 0.8, n), "labels": rng.permutation(np.arange(n) % 2)}


def weighted(rng, n):
    return {**batch(rng, n), "weights": rng.uniform(0.0, 2.0, n)}


def predictions(rng, n):
    arrays = weighted(rng, n)
    return {"predictions": arrays.pop("probs"), **arrays}


def matrix(predictions, labels, weights, mask):
    w = np.where(mask, weights, 0.0)
    y = (labels != 0) * 1.0
    return Confusion(*(np.sum(w * a * b) for b, a in (
        (predictions, y), (predictions, 1 - y), (1 - predictions, y), (1 - predictions, 1 - y)
    )))  # fmt: skip


def soft(probs, labels, weights, scale, threshold, mask):
    return matrix(1 / (1 + np.exp(-scale * (probs - threshold))), labels, weights, mask)


def one_minus_g_mean(probs, labels, weights, scale, threshold, mask, metric=None):
    return 1 - METRICS[confusion.g_mean](*soft(probs, labels, weights, scale, threshold, mask))


def of_every_step(steps, scale, threshold, metric):
    return [
        np.where(step["mask"], one_minus_g_mean(weights=1.0, scale=scale, threshold=threshold, **step), 0.0)
        for step in steps
    ]


def duplicating_the_batch_changes_nothing(probe):
    arrays = probe.arrays()
    twice = {name: np.tile(array[:8], 2) for name, array in arrays.items()}
    once = {**arrays, "mask": np.arange(16) < 8}
    twice["mask"] = np.ones(16, bool)
    np.testing.assert_allclose(probe.value(twice), probe.value(once), rtol=1e-5)


def a_batch_of_one_class_costs_nothing(probe):
    for label in (0, 1):
        outcome = probe.run(probe.arrays(labels=np.full(16, label)))
        np.testing.assert_array_equal(outcome.value, 0)
        assert not any(np.any(grad) for grad in outcome.grads.values())


SCALED = {"scale": 10.0, "threshold": 0.45}
BAD = {"scale": (0.0, -1.0, np.inf), "threshold": (-0.1, 1.1)}
PROBS = {"probs": (0.0, 1.0)}
WEIGHTS = {"weights": (0.0, 1e4)}
LOSS = {
    "hyper": {**SCALED, "metric": confusion.g_mean},
    "differentiable": ("probs",),
    "bad": {**BAD, "metric": ("g_mean",)},
    "defaults": {"scale": 73.0, "threshold": 0.5},
    "extremes": {**PROBS, **WEIGHTS},
}


def products(x, y):
    return {"xy": x * y, "squares": x**2}


def ratio(sums):
    return sums["xy"] / (1 + sums["squares"])


CASES = [
    *(
        Case(
            function=metric,
            call=functools.partial(of_fields, metric),
            inputs=four_sums,
            hyper={"undefined": 0.0} | ({"beta": 1.7} if metric is confusion.f_beta else {}),
            differentiable=READS.get(metric, FIELDS),
            constant=tuple(set(FIELDS) - set(READS.get(metric, FIELDS))),
            extremes={name: (0.0, 1e4) for name in FIELDS},
            reference=reference,
            invariants=(the_scale_does_not_matter, nothing_gives_what_stands_for_undefined),
            bad={"beta": (-1.0, np.inf)} if metric is confusion.f_beta else {},
            defaults={"undefined": 0.0} | ({"beta": 1.0} if metric is confusion.f_beta else {}),
            free={**SUMS, **UNDEFINED},
        )
        for metric, reference in METRICS.items()
    ),
    Case(
        function=confusion.counts,
        inputs=predictions,
        returns="sums",
        mask="mask",
        differentiable=("predictions", "weights"),
        extremes={"predictions": (0.0, 1.0), **WEIGHTS},
        reference=matrix,
    ),
    Case(
        function=losses.soft_confusion,
        inputs=weighted,
        returns="sums",
        hyper=SCALED,
        mask="mask",
        differentiable=("probs", "weights"),
        extremes={**PROBS, **WEIGHTS},
        reference=soft,
        bad=BAD,
        defaults=LOSS["defaults"],
    ),
    Case(
        function=losses.anyloss,
        inputs=weighted,
        returns="batch",
        mask="mask",
        constant=("weights",),
        reference=one_minus_g_mean,
        invariants=(duplicating_the_batch_changes_nothing, a_batch_of_one_class_costs_nothing),
        **LOSS,
    ),
    BatchLossCase(
        function=losses.batch_anyloss,
        inputs=batch,
        surrogate=True,
        reference=of_every_step,
        **LOSS,
    ),
    BatchLossCase(
        function=of_sums,
        call=lambda: of_sums(products, ratio, signals=("x", "y")),
        inputs=lambda rng, n: {"x": rng.normal(size=n), "y": rng.normal(size=n)},
        surrogate=True,
        bf16=1e-2,  # the caller's products are rounded
        differentiable=("x", "y"),
        reference=lambda steps: [
            np.where(s["mask"], np.sum((s["x"] * s["y"])[s["mask"]]) / (1 + np.sum(s["x"][s["mask"]] ** 2)), 0.0)
            for s in steps
        ],
        free={
            "terms": "a function of the caller",
            "value": "a function of the caller",
            "signals": "the names of what the caller's function takes",
            "name": "what errors shall call the loss",
        },
    ),
]
