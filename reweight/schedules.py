"""Schedules: functions from the number of a step to a number, as optax's are."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reweight import _checks

__all__ = ["epoch_ramp", "sigmoid_rampup", "slow_start_fast_decay"]

Step = Int[Array, ""] | int
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def epoch_ramp(end: float, num_epochs: int, steps_per_epoch: int) -> Schedule:
    r"""Rises by the same amount with every epoch, from the first one on: :math:`a (e + 1)/E` in epoch :math:`e`.

    Args:
      end: :math:`a`, the value in the last epoch and after it.
      num_epochs: :math:`E`, at least 1.
      steps_per_epoch: at least 1.

    Returns:
      A schedule, float32 or wider.

    Raises:
      ValueError: if an argument is out of range.

    References:
      Kim et al., *Self-Knowledge Distillation with Progressive Refinement of Targets*, 2021, arXiv 2006.12000.
    """
    function = "schedules.epoch_ramp"
    _checks.number(function, "end", end, open_low=True, open_high=True)
    _checks.number(function, "num_epochs", num_epochs, low=1, integer=True)
    _checks.number(function, "steps_per_epoch", steps_per_epoch, low=1, integer=True)

    def schedule(step: Step) -> Float[Array, ""]:
        epoch = jnp.minimum(jnp.asarray(step) // steps_per_epoch + 1, num_epochs)
        return end * epoch.astype(_checks.accumulation_dtype(1.0)) / num_epochs

    return schedule


def sigmoid_rampup(length: int) -> Schedule:
    r"""Rises to 1 like a bell's left half: :math:`\exp(-5 (1 - \min(t, L)/L)^2)`, from 0.0067 on.

    Args:
      length: :math:`L`, the step from which it is 1; with 0 it always is.

    Returns:
      A schedule in (0, 1], float32 or wider.

    Raises:
      ValueError: if `length` is not a whole number from 0 on.

    References:
      Laine and Aila, *Temporal Ensembling for Semi-Supervised Learning*, 2017, arXiv 1610.02242.
    """
    _checks.number("schedules.sigmoid_rampup", "length", length, low=0, integer=True)

    def schedule(step: Step) -> Float[Array, ""]:
        at = jnp.asarray(step).astype(_checks.accumulation_dtype(1.0))
        left = 1 - jnp.clip(at, 0, length) / max(length, 1)
        return jnp.exp(-5 * left**2) if length else jnp.ones_like(at)

    return schedule


def slow_start_fast_decay(
    peak: float,
    total_steps: int,
    *,
    final: float,
    start_frac: float = 0.01,
    rise_frac: float = 0.5,
    power: float = 1.0,
) -> Schedule:
    r"""Rises slowly from near 0 to a peak, then decays exponentially: to fine-tune without destroying what is known.

    .. math:: \eta(t) = \eta^* \big(s + (1 - s) (t / t_r)^p\big) \text{ to } t_r, \qquad
        \eta^* (\eta_T / \eta^*)^{(t - t_r) / (T - t_r)} \text{ after it}

    Adversarial fine-tuning takes a naturally trained model and few epochs (about ten) of adversarial training: the slow
    start keeps the pre-trained features, the fast decay ends before robust overfitting.

    Args:
      peak: :math:`\eta^*`, in (0, inf).
      total_steps: :math:`T`, at least 1.
      final: :math:`\eta_T`, in (0, inf), the value at the last step and after it.
      start_frac: :math:`s`, the first value as a share of the peak, in [0, 1].
      rise_frac: :math:`t_r / T`, in [0, 1]: 0 starts at the peak and decays; 1 rises up to the last step, where the
        peak is reached, and is `final` after it.
      power: :math:`p`, in (0, inf): 1 rises along a line, more starts slower.

    Returns:
      A schedule, float32 or wider.

    Raises:
      ValueError: if an argument is out of range.

    References:
      Jeddi et al., *A Simple Fine-tuning Is All You Need: Towards Robust Deep Learning Via Adversarial Fine-tuning*,
      2020, arXiv 2012.13628. The paper draws the shape; these curves are our reading of it.
    """
    function = "schedules.slow_start_fast_decay"
    _checks.number(function, "peak", peak, low=0, open_low=True, open_high=True)
    _checks.number(function, "total_steps", total_steps, low=1, integer=True)
    _checks.number(function, "final", final, low=0, open_low=True, open_high=True)
    _checks.number(function, "start_frac", start_frac, low=0, high=1)
    _checks.number(function, "rise_frac", rise_frac, low=0, high=1)
    _checks.number(function, "power", power, low=0, open_low=True, open_high=True)
    top = rise_frac * total_steps

    def schedule(step: Step) -> Float[Array, ""]:
        at = jnp.asarray(step).astype(_checks.accumulation_dtype(1.0))
        risen = jnp.clip(at / jnp.where(top > 0, top, 1), 0, 1)
        rise = peak * (start_frac + (1 - start_frac) * risen**power)
        fallen = (at - top) / jnp.where(top < total_steps, total_steps - top, 1)
        decay = peak * jnp.exp(jnp.log(final / peak) * jnp.clip(fallen, 0, 1))
        value = jnp.where((at <= top) & (top > 0), rise, decay)
        return jnp.where(at > total_steps, final, value)

    return schedule
