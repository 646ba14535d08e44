"""Metrics of confidence."""

import numpy as np

from conformance.case import Case
from reweight.metrics import calibration

BINS = calibration.Bins._fields
CONFIDENCES = {"confidences": (0.0, 1.0)}


def probabilities(rng, n):
    return {"probs": rng.dirichlet(np.ones(4), n), "labels": rng.integers(0, 4, n)}


def predictions(rng, n):
    confidences = rng.uniform(0.02, 0.98, n)
    return {"confidences": confidences, "correct": rng.random(n) < confidences}


def weighted(rng, n):
    return {**predictions(rng, n), "weights": rng.uniform(0.0, 2.0, n)}


def tied(rng, n):
    return {**predictions(rng, n), "confidences": rng.integers(1, 4, n) / 4}


def three_sums(rng, n):
    examples = rng.uniform(1.0, 5.0, n) * (rng.random(n) > 0.2)
    return dict(zip(BINS, (examples, *(examples * rng.random((2, n)))), strict=True))


def top_label(probs, labels):
    return probs.max(-1), probs.argmax(-1) == labels


def confidence_bins(confidences, correct, weights, num_bins, mask):
    found = np.zeros((3, num_bins))
    for confidence, right, weight, kept in zip(confidences, correct, weights, mask, strict=True):
        if kept:
            found[:, max(int(np.ceil(confidence * num_bins)) - 1, 0)] += weight, weight * confidence, weight * right
    return calibration.Bins(*found)


def gaps(examples, confidence, correct):
    full = examples > 0
    return np.abs(correct[full] / examples[full] - confidence[full] / examples[full]), examples[full]


ERRORS = {
    calibration.ece: lambda **sums: np.average(gaps(**sums)[0], weights=gaps(**sums)[1]),
    calibration.mce: lambda **sums: gaps(**sums)[0].max(),
    calibration.ace: lambda **sums: gaps(**sums)[0].mean(),
}


def areas(confidences, correct, mask):
    """The area, in which errors among equals come at their rate, and that of the best order."""
    confidences, correct = confidences[mask], correct[mask]
    count = np.arange(1, len(correct) + 1)
    risks = np.zeros(len(correct))
    for value in np.unique(confidences):
        before, group = confidences > value, confidences == value
        inside = np.clip(count - before.sum(), 0, group.sum())
        risks += (~correct[group]).mean() * inside
    best = np.cumsum(np.sort(~correct))
    return (risks / count).mean(), (best / count).mean()


def aurc(confidences, correct, mask):
    return areas(confidences, correct, mask)[0]


def eaurc(confidences, correct, mask):
    area, best = areas(confidences, correct, mask)
    return area - best


def of_bins(metric):
    return lambda **sums: metric(calibration.Bins(**sums))


CASES = [
    Case(
        function=calibration.top_label,
        inputs=probabilities,
        differentiable=("probs",),
        extremes={"probs": (0.0, 1.0)},
        reference=top_label,
        bad={"probs": (np.float64(0.5), np.zeros((16, 0)), np.zeros((16, 4), int))},
    ),
    Case(
        function=calibration.confidence_bins,
        inputs=weighted,
        returns="sums",
        hyper={"num_bins": 6},
        mask="mask",
        differentiable=("confidences", "weights"),
        extremes={**CONFIDENCES, "weights": (0.0, 1e4)},
        reference=confidence_bins,
        bad={"num_bins": (0, -1, 2.5)},
        defaults={"num_bins": 15},
    ),
    *(
        Case(
            function=metric,
            call=of_bins(metric),
            inputs=three_sums,
            returns="batch",
            differentiable=("confidence", "correct"),
            constant=("examples",),
            extremes={name: (0.0, 1e4) for name in BINS},
            reference=reference,
            free={"bins": "three sums, checked one by one"},
        )
        for metric, reference in ERRORS.items()
    ),
    *(
        Case(
            function=metric,
            variant=variant,
            inputs=draw,
            returns="batch",
            mask="mask",
            stopped=("confidences",),
            extremes=CONFIDENCES,
            bf16=None if variant == "" else 1e-3,  # rounding makes equals of confidences
            reference=reference,
        )
        for metric, reference in ((calibration.aurc, aurc), (calibration.eaurc, eaurc))
        for variant, draw in (("", predictions), ("tied", tied))
    ),
]
