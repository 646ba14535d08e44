"""Classification losses with a memory of each example's predictions, and the schedules that go with them."""

import numpy as np

from conformance.case import BatchLossCase, Case
from conformance.cases.losses_classification import CLASSES, a_constant_changes_nothing, hard, soft
from conformance.cases.losses_classification_families import LOGITS, probabilities
from reweight import schedules
from reweight.losses import classification as losses

EXAMPLES = 40
TABLE = {"num_examples": EXAMPLES, "num_classes": CLASSES}
BAD_TABLE = {"num_examples": (0, 2.5), "num_classes": (0, 2.5), "logits": (np.zeros((4, CLASSES), int),)}
DTYPE = {"dtype": "any dtype"}
STEP = {"step": "what a schedule is asked for, as of optax's"}
FLOOR = (0.0, 0.5)


def indexed(rng, n):
    return {**hard(rng, n), "indices": rng.permutation(EXAMPLES)[:n]}


def mixtures(rng, n):
    return {
        **soft(rng, n),
        "indices": rng.permutation(EXAMPLES)[:n],
        "memory_logits": 2 * rng.normal(size=(n, CLASSES)),
        "mix_indices": rng.permutation(EXAMPLES)[:n],
        "mix_share": rng.uniform(0.1, 0.9, n),
    }


# -- the formulas once more, in NumPy


def cross_entropy(logits, targets):
    return -np.sum(targets * np.log(probabilities(logits)), -1)


def penalty(logits, targets, floor):
    return np.log(1 - np.sum(targets * np.clip(probabilities(logits), floor, 1 - floor), -1))


def targets_of(labels, predictions, share):
    return (1 - share * predictions.sum(-1, keepdims=True)) * np.eye(CLASSES)[labels] + share * predictions


def remembered(loss, steps, decay, floor, before=False):
    """Losses of each step from the targets that a table remembers."""
    table, values = np.zeros((EXAMPLES, CLASSES)), []
    for arrays in steps:
        indices, mask = arrays["indices"], arrays["mask"]
        p = np.clip(probabilities(arrays.get("memory_logits", arrays["logits"])), floor, 1 - floor)
        new = decay * table[indices] + (1 - decay) * p / p.sum(-1, keepdims=True)
        targets = table[indices] if before else new
        table[indices[mask]] = new[mask]
        if "mix_share" in arrays:
            share = arrays["mix_share"][:, None]
            targets = share * targets + (1 - share) * table[arrays["mix_indices"]]
        values.append(np.where(mask, loss(arrays["logits"], arrays["labels"], targets), 0))
    return values


def elr(steps, num_examples, num_classes, decay, weight, floor):
    def loss(logits, labels, targets):
        return cross_entropy(logits, np.eye(CLASSES)[labels]) + weight * penalty(logits, targets, floor)

    return remembered(loss, steps, decay, floor)


def elr_plus(steps, num_examples, num_classes, decay, weight, floor, filter_labels):
    def loss(logits, labels, targets):
        if filter_labels:
            total = np.sum(labels * targets, -1, keepdims=True)
            labels = labels * targets / np.where(total > 0, total, 1)
        return cross_entropy(logits, labels) + weight * penalty(logits, targets, floor)

    return remembered(loss, steps, decay, 0.0)


def ps_kd(steps, num_examples, num_classes, share):
    def loss(logits, labels, targets):
        return cross_entropy(logits, targets_of(labels, targets, share))

    return remembered(loss, steps, 0.0, 0.0, before=True)


def squared(logits, labels, targets, strength):
    """Some loss of logits, labels and targets."""
    return strength * ((logits - targets) ** 2).sum(-1) + logits[:, 0] * labels


CASES = [
    Case(
        function=losses.early_learning_penalty,
        inputs=lambda rng, n: {
            "logits": 2 * rng.normal(size=(n, CLASSES)),
            "targets": 0.9 * rng.dirichlet(np.ones(CLASSES), n),
        },
        differentiable=("logits",),
        stopped=("targets",),
        hyper={"floor": 1e-3},
        extremes={"targets": (0.0, 1.0)},
        reference=penalty,
        invariants=(a_constant_changes_nothing,),
        bad={"floor": FLOOR, **LOGITS},
        defaults={"floor": 1e-4},
    ),
    Case(
        function=losses.progressive_targets,
        inputs=lambda rng, n: {
            "labels": rng.integers(0, CLASSES, n),
            "predictions": 0.9 * rng.dirichlet(np.ones(CLASSES), n),
        },
        differentiable=("predictions",),
        hyper={"share": 0.3},
        extremes={"predictions": (0.0, 1.0)},
        reference=lambda labels, predictions, share: targets_of(labels, predictions, share),
        bad={"share": (-0.1, 1.1), "predictions": (np.zeros((4, CLASSES), int),)},
    ),
    BatchLossCase(
        function=losses.elr,
        inputs=indexed,
        hyper={**TABLE, "decay": 0.6, "weight": 1.7, "floor": 1e-3},
        differentiable=("logits",),
        reference=elr,
        bad={**BAD_TABLE, "decay": (-0.1, 1.1), "weight": (-1.0, np.inf), "floor": FLOOR},
        defaults={"decay": 0.7, "weight": 3.0, "floor": 1e-4},
        free=DTYPE,
    ),
    *(
        BatchLossCase(
            function=losses.elr_plus,
            variant="filtered" if filtered else "",
            inputs=mixtures,
            hyper={**TABLE, "decay": 0.6, "weight": 1.7, "floor": 1e-3, "filter_labels": filtered},
            differentiable=("logits",) if filtered else ("logits", "labels"),
            constant=("labels",) if filtered else (),
            stopped=("memory_logits", "mix_share"),
            extremes={"labels": (0.0, 1.0), "mix_share": (0.0, 1.0)},
            reference=elr_plus,
            bad={**BAD_TABLE, "decay": (-0.1, 1.1), "weight": (-1.0, np.inf), "floor": FLOOR},
            defaults={"decay": 0.7, "weight": 3.0, "floor": 1e-4},
            free=DTYPE,
        )
        for filtered in (False, True)
    ),
    BatchLossCase(
        function=losses.ps_kd,
        inputs=indexed,
        hyper={**TABLE, "share": 0.4},
        differentiable=("logits",),
        reference=ps_kd,
        bad={**BAD_TABLE, "share": (-0.1, 1.1)},
        free=DTYPE,
    ),
    BatchLossCase(
        function=losses.target_memory,
        call=lambda **hyper: losses.target_memory(squared, **hyper),
        inputs=indexed,
        hyper={**TABLE, "decay": 0.6, "strength": 0.5, "read": "before", "floor": 1e-3},
        differentiable=("logits",),
        reference=lambda steps, num_examples, num_classes, decay, strength, read, floor: remembered(
            lambda *arrays: squared(*arrays, strength), steps, decay, floor, before=True
        ),
        bad={**BAD_TABLE, "decay": (-0.1, 1.1), "strength": (-1.0, np.inf), "read": ("never",), "floor": (-0.1, 0.5)},
        defaults={"decay": 0.0, "strength": 1.0, "floor": 0.0},
        free={**DTYPE, "loss": "any function of logits, labels, targets and strength"},
    ),
    Case(
        function=schedules.epoch_ramp,
        call=lambda step, **hyper: schedules.epoch_ramp(**hyper)(step),
        inputs=lambda rng, n: {"step": rng.integers(0, 30, n)},
        hyper={"end": 0.8, "num_epochs": 5, "steps_per_epoch": 3},
        reference=lambda step, end, num_epochs, steps_per_epoch: (
            end * np.minimum(step // steps_per_epoch + 1, num_epochs) / num_epochs
        ),
        bad={"end": (np.inf,), "num_epochs": (0, 2.5), "steps_per_epoch": (0, 2.5)},
        free=STEP,
        bf16=None,
    ),
    Case(
        function=schedules.sigmoid_rampup,
        call=lambda step, **hyper: schedules.sigmoid_rampup(**hyper)(step),
        inputs=lambda rng, n: {"step": rng.integers(0, 30, n)},
        hyper={"length": 20},
        reference=lambda step, length: np.exp(-5 * (1 - np.minimum(step, length) / length) ** 2),
        bad={"length": (-1, 2.5)},
        free=STEP,
        bf16=None,
    ),
]
