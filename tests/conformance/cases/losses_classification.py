"""Classification losses."""

import numpy as np

from conformance.case import Case
from reweight.losses import classification as losses

CLASSES = 5
COUNTS = np.array([100.0, 20.0, 7.0, 5.0, 1.0])


def hard(rng, n):
    return {"logits": 2 * rng.normal(size=(n, CLASSES)), "labels": rng.integers(0, CLASSES, n)}


def masked(rng, n):
    arrays = hard(rng, n)
    allowed = rng.random((n, CLASSES)) > 0.3
    allowed[np.arange(n), arrays["labels"]] = np.arange(n) % 5 > 0
    return {**arrays, "class_mask": allowed}


def soft(rng, n):
    return {"logits": 2 * rng.normal(size=(n, CLASSES)), "labels": rng.dirichlet(np.ones(CLASSES), n)}


def soft_masked(rng, n):
    return {**soft(rng, n), "class_mask": rng.random((n, CLASSES)) > 0.3}


def log_softmax(logits, allowed):
    safe = np.where(allowed, logits, -np.inf)
    top = np.max(safe, -1, keepdims=True, initial=-1e30)
    return (
        logits
        - top
        - np.log(np.sum(np.where(allowed, np.exp(np.where(allowed, logits, 0) - top), 0), -1, keepdims=True))
    )


def cross_entropy(logits, labels, class_mask=None):
    allowed = np.ones(logits.shape, bool) if class_mask is None else class_mask
    targets = np.eye(logits.shape[-1])[labels] if labels.ndim < logits.ndim else labels
    some = allowed.any(-1)
    found = -np.sum(
        np.where(allowed, targets * log_softmax(np.where(some[:, None], logits, 0), allowed | ~some[:, None]), 0), -1
    )
    return np.where(some, found, 0)


def adjusted(logits, labels, class_counts, tau=1.0):
    return cross_entropy(logits + tau * np.log(class_counts / class_counts.sum() + 1e-9), labels)


def focal(logits, labels, gamma=2.0, class_mask=None):
    loss = cross_entropy(logits, labels, class_mask)
    return (1 - np.exp(-loss)) ** gamma * loss


def a_constant_changes_nothing(probe):
    arrays = probe.arrays()
    np.testing.assert_allclose(
        probe.value({**arrays, "logits": arrays["logits"] + 7.0}), probe.value(arrays), rtol=1e-4, atol=1e-5
    )


def an_unknown_label_costs_nothing(probe):
    arrays = probe.arrays()
    for unknown in (-1, CLASSES):
        arrays["labels"] = np.where(np.arange(16) == 3, unknown, arrays["labels"])
        assert probe.value(arrays)[3] == 0


SHARED = (a_constant_changes_nothing, an_unknown_label_costs_nothing)
_LOGITS = {"logits": (np.zeros((4, CLASSES), int), np.float64(1.0))}
_SOFT = {"labels": (0.0, 1.0)}

CASES = [
    Case(
        function=losses.cross_entropy,
        inputs=hard,
        differentiable=("logits",),
        reference=cross_entropy,
        invariants=SHARED,
        bad=_LOGITS,
    ),
    Case(
        function=losses.cross_entropy,
        variant="class mask",
        inputs=masked,
        mask="class_mask",
        hidden=("logits",),
        differentiable=("logits",),
        reference=cross_entropy,
        invariants=(a_constant_changes_nothing,),
    ),
    Case(
        function=losses.cross_entropy,
        variant="probabilities",
        inputs=soft,
        differentiable=("logits", "labels"),
        extremes=_SOFT,
        reference=cross_entropy,
        invariants=(a_constant_changes_nothing,),
    ),
    Case(
        function=losses.cross_entropy,
        variant="probabilities, class mask",
        inputs=soft_masked,
        mask="class_mask",
        differentiable=("logits", "labels"),
        extremes=_SOFT,
        reference=cross_entropy,
    ),
    Case(
        function=losses.logit_adjusted_cross_entropy,
        defaults={"tau": 1.0},
        inputs=lambda rng, n: {**hard(rng, n), "class_counts": COUNTS},
        hyper={"tau": 0.7},
        fixed=("class_counts",),
        differentiable=("logits",),
        constant=("class_counts",),
        reference=adjusted,
        invariants=SHARED,
        bad={"tau": (-0.1, np.inf), "class_counts": (np.ones(CLASSES + 1),), **_LOGITS},
    ),
    Case(
        function=losses.focal_loss,
        defaults={"gamma": 2.0},
        inputs=hard,
        hyper={"gamma": 1.5},
        differentiable=("logits",),
        reference=focal,
        invariants=SHARED,
        bad={"gamma": (-1.0, np.inf)},
    ),
    Case(
        function=losses.focal_loss,
        variant="class mask",
        inputs=masked,
        mask="class_mask",
        hidden=("logits",),
        differentiable=("logits",),
        reference=focal,
    ),
]
