"""Losses of a student against the class probabilities of a teacher, and of a student with two teachers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reweight import _checks
from reweight.losses.base import BatchLoss
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import ClassMask, Logits
from reweight.weights import objectives

__all__ = ["MtardState", "MtardStatistics", "batch_mtard", "kl_divergence", "mtard_kl", "soft_cross_entropy"]

Temperature = float | Float[Array, ""]


def _log_probs(
    logits: Logits, allowed: Bool[Array, "*batch classes"], temperature: Temperature
) -> Float[Array, "*batch classes"]:
    """Log-probabilities of the tempered softmax among the classes that count; 0 for the others."""
    scores = _rows.centred(logits, allowed) / temperature
    far = jnp.finfo(scores.dtype).min / 2
    return jnp.where(allowed, jax.nn.log_softmax(jnp.where(allowed, scores, far)), 0)


def _check_pair(function: str, student_logits: Logits, teacher_logits: Logits) -> None:
    _checks.array(function, "student_logits", student_logits, kind="float")
    if jnp.ndim(student_logits) < 1:
        _checks.fail(function, "student_logits", "a scalar", "an array whose last axis is the classes")
    _checks.array(function, "teacher_logits", teacher_logits, shape=jnp.shape(student_logits), kind="float")


def _check_temperature(function: str, argument: str, temperature: Temperature) -> None:
    _checks.number(function, argument, temperature, low=0, open_low=True, open_high=True)


def _pair(
    function: str,
    student_logits: Logits,
    teacher_logits: Logits,
    temperature: Temperature,
    teacher_temperature: Temperature | None,
    class_mask: ClassMask | None,
) -> tuple[Array, Array, Bool[Array, "*batch classes"]]:
    """Log-probabilities of student and teacher, the teacher's without gradient, and the classes that count."""
    _check_pair(function, student_logits, teacher_logits)
    if teacher_temperature is None:
        teacher_temperature = temperature
    _check_temperature(function, "temperature", temperature)
    _check_temperature(function, "teacher_temperature", teacher_temperature)
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


def mtard_kl(
    student_logits: Logits, teacher_logits: Logits, *, teacher_temperature: Temperature = 1.0, eps: float = 1e-5
) -> Float[Array, "*batch"]:
    r"""The divergence of MTARD: :math:`\frac1C \sum_c q_c (\log(q_c + \epsilon) - \log p_c)`, per example.

    The mean over the classes, not the sum, of the terms of `kl_divergence` with a floor under the teacher's logarithm.
    Only the teacher's logits are divided by the temperature; no gradient flows to them.

    Args:
      student_logits: `[..., C]`, any scale.
      teacher_logits: `[..., C]`, any scale.
      teacher_temperature: in (0, inf).
      eps: :math:`\epsilon`, in [0, inf). With 0 this is `kl_divergence` over C.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if the shapes differ, or a hyperparameter is out of range.

    References:
      Zhao et al., *Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation*, 2024,
      arXiv 2306.16170.
    """
    function = "losses.distillation.mtard_kl"
    _check_pair(function, student_logits, teacher_logits)
    _check_temperature(function, "teacher_temperature", teacher_temperature)
    _checks.number(function, "eps", eps, low=0, open_high=True)
    every = _rows.allowed(function, student_logits)
    student = _log_probs(student_logits, every, 1.0)
    teacher = jax.lax.stop_gradient(_log_probs(teacher_logits, every, teacher_temperature))
    dtype = jnp.promote_types(student.dtype, teacher.dtype)
    student, teacher = student.astype(dtype), teacher.astype(dtype)
    floored = jnp.logaddexp(teacher, jnp.log(jnp.asarray(eps, dtype)))
    return jnp.mean(jnp.exp(teacher) * (floored - student), axis=-1)


class MtardState(NamedTuple):
    """States of the two balances, in which what belongs to the attacked inputs comes first.

    Attributes:
      losses: that of `weights.normalized_loss_balance`, with the `weights` of the batch before.
      teachers: that of `weights.entropy_balance`, with the `temperatures` of the next batch.
    """

    losses: objectives.LossBalanceState
    teachers: objectives.EntropyBalanceState


class MtardStatistics(NamedTuple):
    """Weights of the two objectives, and the temperatures of their teachers, in this batch."""

    attacked_weight: Float[Array, ""]
    weight: Float[Array, ""]
    attacked_temperature: Float[Array, ""]
    temperature: Float[Array, ""]


def batch_mtard(
    *,
    weight_rate: float | objectives.Schedule = 0.025,
    temperature_rate: float | objectives.Schedule = 1e-3,
    min_temperature: float = 1.0,
    max_temperature: float = 10.0,
    eps: float = 1e-5,
) -> BatchLoss:
    r"""MTARD: one teacher for attacked and one for clean inputs, whose weights and temperatures are kept in balance.

    .. math::
        \ell_i = w_{adv}\, \mathrm{KL}(q'_i \,\|\, p'_i) + w_{nat}\, \mathrm{KL}(q_i \,\|\, p_i)

    with `mtard_kl` of the student from the robust teacher at the attacked input, and from the clean teacher at the
    clean one. Weights are those of `weights.normalized_loss_balance`, which sum to one, as they are after this batch;
    temperatures those of `weights.entropy_balance`, as they were before it. With both rates 0 the two divergences are
    averaged. The attack maximises the student's cross-entropy: `adversarial.pgd_attack` with `init="normal"`.

    Args:
      weight_rate: of the weights, in [0, inf), or a schedule. The paper lowers both rates with the learning rate.
      temperature_rate: of the temperatures, in [0, inf), or a schedule.
      min_temperature: the least, at which both start, in (0, inf).
      max_temperature: the highest, in [min_temperature, inf).
      eps: of `mtard_kl` and `entropy_balance`, in [0, inf).

    Returns:
      A `BatchLoss` with state `MtardState`, of the signals `attacked_student_logits`, `attacked_teacher_logits`,
      `student_logits` and `teacher_logits`, all `[B, C]`. A batch that is masked altogether leaves the state as it was.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Zhao et al., *Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation*, 2024,
      arXiv 2306.16170.
    """
    function = "losses.distillation.batch_mtard"
    for argument, rate in (("weight_rate", weight_rate), ("temperature_rate", temperature_rate)):
        if not callable(rate):
            _checks.number(function, argument, rate, low=0, open_high=True)
    _checks.number(function, "min_temperature", min_temperature, low=0, open_low=True, open_high=True)
    least = min_temperature if isinstance(min_temperature, int | float) else 0
    _checks.number(function, "max_temperature", max_temperature, low=least, open_high=True)
    _checks.number(function, "eps", eps, low=0, open_high=True)
    by_loss = objectives.normalized_loss_balance(2, rate=weight_rate)
    by_entropy = objectives.entropy_balance(
        2, rate=temperature_rate, min_temperature=min_temperature, max_temperature=max_temperature, eps=eps
    )
    names = ("attacked_student_logits", "attacked_teacher_logits", "student_logits", "teacher_logits")

    def rows(given: dict[str, Any]) -> tuple[list[Array], Bool[Array, " batch"]]:
        """The logits, in the order of their names, with zeros where masked."""
        _checks.require(function, given, names)
        size = jnp.shape(given["student_logits"])[:1]
        for name in names:
            _checks.array(function, name, given[name], shape=(*size, None), kind="float")
        mask = given.get("mask")
        _checks.mask(function, "mask", mask, jnp.zeros(size), like_name="the first axis of student_logits")
        kept = _checks.kept(mask, size)
        return [jnp.where(kept[:, None], given[name], 0) for name in names], kept

    def divergences(logits: list[Array], attacked_temperature: Array, temperature: Array) -> tuple[Array, Array]:
        attacked_student, attacked_teacher, student, teacher = logits
        return (
            mtard_kl(attacked_student, attacked_teacher, teacher_temperature=attacked_temperature, eps=eps),
            mtard_kl(student, teacher, teacher_temperature=temperature, eps=eps),
        )

    def statistics(state: MtardState, **given: Any) -> tuple[MtardStatistics, MtardState]:
        logits, kept = rows(given)
        temperatures, teachers = by_entropy.update(state.teachers, (logits[1], logits[3]), mask=kept)
        found = jnp.stack(divergences(logits, *temperatures))
        _, losses = by_loss.update(state.losses, found, objectives=jnp.array([[0], [1]]), mask=kept)
        return MtardStatistics(*losses.weights, *temperatures), MtardState(losses, teachers)

    def losses(statistics: MtardStatistics, **given: Any) -> Float[Array, " batch"]:
        logits, kept = rows(given)
        attacked, clean = divergences(logits, statistics.attacked_temperature, statistics.temperature)
        return jnp.where(kept, statistics.attacked_weight * attacked + statistics.weight * clean, 0)

    return BatchLoss(lambda key=None: MtardState(by_loss.init(), by_entropy.init()), statistics, losses, names)
