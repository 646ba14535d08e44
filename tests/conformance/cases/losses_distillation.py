"""Losses against the probabilities of a teacher."""

import numpy as np

from conformance.case import Case
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
]
