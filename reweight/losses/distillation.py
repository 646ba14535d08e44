"""Losses of a student against the class probabilities of a teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reweight import _checks
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import ClassMask, Logits

__all__ = ["kl_divergence", "soft_cross_entropy"]

Temperature = float | Float[Array, ""]


def _log_probs(
    logits: Logits, allowed: Bool[Array, "*batch classes"], temperature: Temperature
) -> Float[Array, "*batch classes"]:
    """Log-probabilities of the tempered softmax among the classes that count; 0 for the others."""
    scores = _rows.centred(logits, allowed) / temperature
    far = jnp.finfo(scores.dtype).min / 2
    return jnp.where(allowed, jax.nn.log_softmax(jnp.where(allowed, scores, far)), 0)


def _pair(
    function: str,
    student_logits: Logits,
    teacher_logits: Logits,
    temperature: Temperature,
    teacher_temperature: Temperature | None,
    class_mask: ClassMask | None,
) -> tuple[Array, Array, Bool[Array, "*batch classes"]]:
    """Log-probabilities of student and teacher, the teacher's without gradient, and the classes that count."""
    _checks.array(function, "student_logits", student_logits, kind="float")
    if jnp.ndim(student_logits) < 1:
        _checks.fail(function, "student_logits", "a scalar", "an array whose last axis is the classes")
    _checks.array(function, "teacher_logits", teacher_logits, shape=jnp.shape(student_logits), kind="float")
    _checks.number(function, "temperature", temperature, low=0, open_low=True, open_high=True)
    if teacher_temperature is None:
        teacher_temperature = temperature
    _checks.number(function, "teacher_temperature", teacher_temperature, low=0, open_low=True, open_high=True)
    allowed = _rows.allowed(function, student_logits, class_mask)
    student = _log_probs(student_logits, allowed, temperature)
    teacher = jax.lax.stop_gradient(_log_probs(teacher_logits, allowed, teacher_temperature))
    dtype = jnp.promote_types(student.dtype, teacher.dtype)
    return student.astype(dtype), teacher.astype(dtype), allowed


def soft_cross_entropy(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 1.0,
    teacher_temperature: Temperature | None = None,
    class_mask: ClassMask | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the teacher's probabilities: :math:`-\sum_c q_c \log p_c`, per example.

    :math:`p = \mathrm{softmax}(z / T)` is the student's and :math:`q = \mathrm{softmax}(z' / T')` the teacher's, which
    is constant: no gradient flows to it. The gradient in the logits is :math:`(p - q) / T`, about :math:`1 / T^2` of
    that at temperature one; it is usual to multiply the loss by :math:`T^2` before it is added to one of labels.

    Args:
      student_logits: `[..., C]`, any scale.
      teacher_logits: `[..., C]`, any scale.
      temperature: :math:`T`, in (0, inf).
      teacher_temperature: :math:`T'`, in (0, inf). Default: that of the student.
      class_mask: boolean or 0/1, broadcast to the logits: the classes among which both softmaxes run. Logits of the
        others are never read. Default: all.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient for a row with no class at all.

    Raises:
      ValueError: if the shapes differ, or a temperature is out of range.

    References:
      Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv 1503.02531.
    """
    function = "losses.distillation.soft_cross_entropy"
    student, teacher, allowed = _pair(
        function, student_logits, teacher_logits, temperature, teacher_temperature, class_mask
    )
    return -jnp.sum(jnp.where(allowed, jnp.exp(teacher) * student, 0), axis=-1)


def kl_divergence(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 1.0,
    teacher_temperature: Temperature | None = None,
    class_mask: ClassMask | None = None,
) -> Float[Array, "*batch"]:
    r"""Kullback-Leibler divergence :math:`\mathrm{KL}(q \,\|\, p) = \sum_c q_c \log (q_c / p_c)`, per example.

    With the :math:`p` and :math:`q` of `soft_cross_entropy`, which it is less the entropy of the teacher: the gradient
    is the same, and the value is 0 where the two agree. It is computed as a sum of terms none of which is negative, and
    keeps its digits where they nearly agree.

    Args:
      student_logits: `[..., C]`, any scale.
      teacher_logits: `[..., C]`, any scale.
      temperature: as for `soft_cross_entropy`.
      teacher_temperature: as for `soft_cross_entropy`.
      class_mask: as for `soft_cross_entropy`.

    Returns:
      Losses `[...]`, non-negative, float32 or wider; 0 with zero gradient for a row with no class at all.

    Raises:
      ValueError: if the shapes differ, or a temperature is out of range.

    References:
      Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv 1503.02531.
    """
    function = "losses.distillation.kl_divergence"
    student, teacher, allowed = _pair(
        function, student_logits, teacher_logits, temperature, teacher_temperature, class_mask
    )
    p, q, ahead = jnp.exp(student), jnp.exp(teacher), student - teacher
    # Probabilities sum to one, so that the terms may be q log(q/p) + p - q = q (e^a - 1 - a) with a = log(p/q).
    near = jnp.abs(ahead) < 1
    small = jnp.where(near, ahead, 0)
    terms = jnp.where(near, q * (jnp.expm1(small) - small), p - q - q * ahead)
    return jnp.sum(jnp.where(allowed, terms, 0), axis=-1)
