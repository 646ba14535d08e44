"""Schedules: functions from the number of a step to a number, as optax's are."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reweight import _checks

__all__ = ["epoch_ramp", "sigmoid_rampup"]

Step = Int[Array, ""] | int
Schedule = Callable[[Step], Float[Array, ""]]


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
