"""Losses against the probabilities of a teacher."""

import numpy as np

from conformance.case import BatchLossCase, Case
from conformance.cases import weights_objectives
from reweight.losses import distillation as losses

CLASSES = 4


def pair(rng, n):
    return {"student_logits": 2 * rng.normal(size=(n, CLASSES)), "teacher_logits": 2 * rng.normal(size=(n, CLASSES))}


def masked(rng, n):
    return {**pair(rng, n), "class_mask": rng.random((n, CLASSES)) > 0.3}


def log_softmax(logits, allowed):
    logits = np.where(allowed, logits, -np.inf)
    some = allowed.any(-1, keepdims=True)
    logits = np.where(some, logits, 0)
    shifted = logits - logits.max(-1, keepdims=True)
    return np.where(allowed, shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), 0)


def _both(student_logits, teacher_logits, temperature, teacher_temperature, class_mask):
    allowed = np.ones(student_logits.shape, bool) if class_mask is None else class_mask
    own = temperature if teacher_temperature is None else teacher_temperature
    student, teacher = log_softmax(student_logits / temperature, allowed), log_softmax(teacher_logits / own, allowed)
    return student, teacher, np.where(allowed, np.exp(teacher), 0)


def cross_entropy(student_logits, teacher_logits, temperature=1.0, teacher_temperature=None, class_mask=None):
    student, _, probs = _both(student_logits, teacher_logits, temperature, teacher_temperature, class_mask)
    return -np.sum(probs * student, -1)


def divergence(student_logits, teacher_logits, temperature=1.0, teacher_temperature=None, class_mask=None):
    student, teacher, probs = _both(student_logits, teacher_logits, temperature, teacher_temperature, class_mask)
    return np.sum(probs * (teacher - student), -1)


def floored(student_logits, teacher_logits, teacher_temperature=1.0, eps=1e-5):
    student, _, probs = _both(student_logits, teacher_logits, 1.0, teacher_temperature, None)
    return np.mean(probs * (np.log(probs + eps) - student), -1)


SIGNALS = ("attacked_student_logits", "attacked_teacher_logits", "student_logits", "teacher_logits")


def two_pairs(rng, n):
    return {name: 2 * rng.normal(size=(n, CLASSES)) for name in SIGNALS}


def mtard(steps, weight_rate, temperature_rate, min_temperature, max_temperature, eps):
    temperatures, objectives, values = np.full(2, min_temperature), [], []
    for step in steps:
        mask = step["mask"]
        found = [
            floored(step[f"{kind}student_logits"], step[f"{kind}teacher_logits"], temperature, eps)
            for kind, temperature in zip(("attacked_", ""), temperatures, strict=True)
        ]
        objectives.append(
            {"losses": np.stack(found), "objectives": np.array([[0], [1]]) + 0 * mask, "mask": np.stack([mask, mask])}
        )
        weights = weights_objectives.shares(objectives, 2, weight_rate)[-1]
        values.append(np.where(mask, weights @ np.stack(found), 0))
        a, b = (
            weights_objectives.negative_entropy(step[name][mask], temperature, eps)
            for name, temperature in zip(SIGNALS[1::2], temperatures, strict=True)
        )
        temperatures = np.clip(
            temperatures - temperature_rate * np.sign([a / b - 1, b / a - 1]), min_temperature, max_temperature
        )
    return values


def a_constant_changes_nothing(probe):
    arrays = probe.arrays()
    moved = {**arrays, "student_logits": arrays["student_logits"] + 7, "teacher_logits": arrays["teacher_logits"] - 3}
    np.testing.assert_allclose(probe.value(moved), probe.value(arrays), rtol=1e-4, atol=1e-5)


_WHERE = {"temperature": (0.0, -1.0, np.inf), "teacher_temperature": (0.0, -1.0, np.inf)}
_LOGITS = {
    "student_logits": (np.zeros((16, CLASSES), int), np.float64(1.0)),
    "teacher_logits": (np.zeros((16, CLASSES), int), np.zeros((16, CLASSES + 1))),
}

CASES = [
    Case(
        function=losses.mtard_kl,
        inputs=pair,
        hyper={"teacher_temperature": 2.0, "eps": 1e-3},
        differentiable=("student_logits",),
        stopped=("teacher_logits",),
        reference=floored,
        invariants=(a_constant_changes_nothing,),
        bad={"teacher_temperature": (0.0, -1.0, np.inf), "eps": (-1e-3, np.inf), **_LOGITS},
        defaults={"teacher_temperature": 1.0, "eps": 1e-5},
    ),
    BatchLossCase(
        function=losses.batch_mtard,
        inputs=two_pairs,
        hyper={
            "weight_rate": 0.6,
            "temperature_rate": 0.3,
            "min_temperature": 1.0,
            "max_temperature": 1.5,
            "eps": 1e-3,
        },
        differentiable=("attacked_student_logits", "student_logits"),
        stopped=("attacked_teacher_logits", "teacher_logits"),
        reference=mtard,
        bad={
            "weight_rate": (-0.1, np.inf),
            "temperature_rate": (-0.1, np.inf),
            "min_temperature": (0.0, -1.0, np.inf),
            "max_temperature": (0.5, np.inf),
            "eps": (-1e-3, np.inf),
        },
        defaults={
            "weight_rate": 0.025,
            "temperature_rate": 1e-3,
            "min_temperature": 1.0,
            "max_temperature": 10.0,
            "eps": 1e-5,
        },
    ),
    *(
        case
        for function, reference in ((losses.soft_cross_entropy, cross_entropy), (losses.kl_divergence, divergence))
        for case in (
            Case(
                function=function,
                inputs=pair,
                hyper={"temperature": 2.0, "teacher_temperature": 3.0},
                differentiable=("student_logits",),
                stopped=("teacher_logits",),
                reference=reference,
                invariants=(a_constant_changes_nothing,),
                bad={**_WHERE, **_LOGITS},
                defaults={"temperature": 1.0},
            ),
            Case(
                function=function,
                variant="class mask",
                inputs=masked,
                hyper={"temperature": 2.0},
                mask="class_mask",
                differentiable=("student_logits",),
                stopped=("teacher_logits",),
                reference=reference,
            ),
        )
    ),
]
