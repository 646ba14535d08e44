"""Pseudo-labels, distribution alignment and shrunk class spaces."""

import numpy as np

from conformance.case import BatchLossCase, Case, StatefulCase
from conformance.cases.losses_classification import CLASSES, cross_entropy, log_softmax
from conformance.cases.losses_classification_families import of_label, probabilities
from reweight.losses import semi_supervised as losses

TARGET = np.array([4.0, 1.0, 2.0, 2.0, 3.0])
ALIGNMENT = {"num_classes": CLASSES, "window": 2, "target": TARGET}


def drawn(rng, n):
    """Logits, and pseudo-labels of which some are certain."""
    sharpness = rng.choice([0.5, 2.0, 8.0], (n, 1))
    return {
        "logits": 2 * rng.normal(size=(n, CLASSES)),
        "pseudo": probabilities(sharpness * rng.normal(size=(n, CLASSES))),
    }


def views(*names):
    def inputs(rng, n):
        arrays = {name: 4 * rng.normal(size=(n, CLASSES)) for name in ("logits", *names)}
        return {**arrays, "labels": rng.integers(0, CLASSES, n) * (np.arange(n) % 3 == 0) - (np.arange(n) % 3 > 0)}

    return inputs


# -- the formulas once more, in NumPy


def pseudo_label_loss(logits, pseudo, threshold, hard):
    target = np.eye(CLASSES)[pseudo.argmax(-1)] if hard else pseudo
    return (pseudo.max(-1) >= threshold) * cross_entropy(logits, target)


def shrink_classes(pseudo, threshold):
    masks, confidences = [], []
    for row in pseudo:
        top, *rivals = order = np.argsort(-row, kind="stable")
        left = list(order)
        while row[top] / row[left].sum() < threshold and len(left) > 2:
            left.remove(rivals.pop(0))
        masks.append(np.isin(np.arange(CLASSES), left))
        confidences.append(row[top] / row[left].sum())
    return np.array(masks), np.array(confidences)


def shrink_loss(logits, pseudo, threshold):
    class_mask, confidence = shrink_classes(pseudo, threshold)
    top = pseudo.max(-1)
    losses = -top * of_label(log_softmax(logits, class_mask), pseudo.argmax(-1))
    return np.where((top < threshold) & (confidence >= threshold), losses, 0)


def aligned(past, probs, kept, window, target):
    """The aligned rows; the mean of the batch is put to the past."""
    past.append(probs[kept].mean(0))
    moved = probs * target / np.mean(past[-window:], 0)
    return kept[:, None] * moved / moved.sum(-1, keepdims=True)


def alignment(steps, num_classes, window, target):
    past = []
    return [aligned(past, arrays["probs"], arrays["mask"], window, target) for arrays in steps]


def match(steps, threshold, hard, unlabelled_weight, decay=None, **_):
    past, certain, values = [], None, []
    for arrays in steps:
        kept, labels = arrays["mask"], arrays["labels"]
        labelled, unlabelled = kept & (labels >= 0), kept & (labels < 0)
        pseudo = aligned(past, probabilities(arrays["logits"]), unlabelled, ALIGNMENT["window"], TARGET)
        loss = pseudo_label_loss(arrays["strong_logits"], pseudo, threshold, hard)
        if decay is not None:
            ratio = np.mean(pseudo[unlabelled].max(-1) >= threshold)
            certain = ratio if certain is None else decay * certain + (1 - decay) * ratio
            pseudo = np.where(unlabelled[:, None], pseudo, 1 / CLASSES)
            loss = loss + certain * shrink_loss(arrays["aux_logits"], pseudo, threshold)
        loss = unlabelled * unlabelled_weight * loss / unlabelled.sum()
        loss += labelled * cross_entropy(arrays["logits"], np.maximum(labels, 0)) / labelled.sum()
        values.append(kept.sum() * loss)
    return values


def a_shift_of_the_logits_changes_nothing(probe):
    arrays = probe.arrays()
    shifted = {name: array + 7.0 if name.endswith("logits") else array for name, array in arrays.items()}
    np.testing.assert_allclose(probe.value(shifted), probe.value(arrays), rtol=1e-4, atol=1e-5)


PROBS = {"pseudo": (0.0, 1.0)}
OF_PSEUDO = {"inputs": drawn, "differentiable": ("logits",), "stopped": ("pseudo",), "extremes": PROBS}
REFUSED = {
    "threshold": (-0.1, 1.1),
    "pseudo": (np.ones((16, CLASSES + 1)), np.zeros((16, CLASSES), int)),
    "logits": (np.zeros((16, CLASSES), int),),
}
MATCHED = {"threshold": (-0.1, 1.1), "unlabelled_weight": (-1.0, np.inf), "alignment": ("window",)}
INVARIANT = (a_shift_of_the_logits_changes_nothing,)

CASES = [
    *(
        Case(
            function=losses.pseudo_label_loss,
            variant="hard" if hard else "soft",
            **OF_PSEUDO,
            hyper={"threshold": 0.6, "hard": hard},
            reference=pseudo_label_loss,
            invariants=INVARIANT,
            bad=REFUSED,
            defaults={"threshold": 0.95},
        )
        for hard in (True, False)
    ),
    Case(
        function=losses.shrink_classes,
        inputs=lambda rng, n: {"pseudo": drawn(rng, n)["pseudo"]},
        stopped=("pseudo",),
        extremes=PROBS,
        hyper={"threshold": 0.7},
        reference=shrink_classes,
        bad={"threshold": (-0.1, 1.1), "pseudo": (np.zeros((16, CLASSES), int), np.float64(1.0))},
        defaults={"threshold": 0.95},
        bf16=None,
    ),
    Case(
        function=losses.shrink_loss,
        **OF_PSEUDO,
        hyper={"threshold": 0.7},
        reference=shrink_loss,
        invariants=INVARIANT,
        bad=REFUSED,
        defaults={"threshold": 0.95},
    ),
    StatefulCase(
        function=losses.distribution_alignment,
        inputs=lambda rng, n: {"probs": drawn(rng, n)["pseudo"]},
        stopped=("probs",),
        extremes={"probs": (0.0, 1.0)},
        couples=True,
        hyper=ALIGNMENT,
        reference=alignment,
        bad={
            "num_classes": (0, 2.5),
            "window": (0, 2.5),
            "target": (np.ones(CLASSES + 1),),
            "probs": (np.ones((16, CLASSES + 1)), np.zeros((16, CLASSES), int)),
        },
        defaults={"window": 32},
    ),
    BatchLossCase(
        function=losses.fixmatch,
        inputs=views("strong_logits"),
        hyper={
            "alignment": losses.distribution_alignment(**ALIGNMENT),
            "threshold": 0.6,
            "hard": True,
            "unlabelled_weight": 0.7,
        },
        differentiable=("logits", "strong_logits"),
        reference=match,
        invariants=INVARIANT,
        bad=MATCHED,
        defaults={"threshold": 0.95, "unlabelled_weight": 1.0},
    ),
    BatchLossCase(
        function=losses.shrinkmatch,
        inputs=views("strong_logits", "aux_logits"),
        hyper={
            "alignment": losses.distribution_alignment(**ALIGNMENT),
            "threshold": 0.7,
            "hard": False,
            "unlabelled_weight": 0.7,
            "decay": 0.6,
        },
        differentiable=("logits", "strong_logits", "aux_logits"),
        reference=match,
        invariants=INVARIANT,
        bad={**MATCHED, "decay": (-0.1, 1.1)},
        defaults={"threshold": 0.95, "unlabelled_weight": 1.0, "decay": 0.999},
    ),
]
