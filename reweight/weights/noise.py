"""Selection of the examples whose labels are likely to be right."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.schedules import Schedule
from reweight.weights import base

__all__ = [
    "SmallLossState",
    "co_teaching",
    "co_teaching_weights",
    "keep_schedule",
    "small_loss",
    "small_loss_weights",
]

Mask = Bool[Array, "..."] | Num[Array, "..."]


def small_loss_weights(
    losses: Float[Array, "..."], *, keep_rate: float | Float[Array, ""], mask: Mask | None = None
) -> Float[Array, "..."]:
    r"""Equal weights for the :math:`k` smallest losses of a batch, 0 for the others.

    :math:`k = \lfloor \text{keep\_rate} \cdot n \rfloor`, at least one of the :math:`n` unmasked examples. Exactly
    :math:`k` examples are kept: of equal losses on the edge, those that come first.

    Args:
      losses: any shape; all axes count as examples. What stands where the mask is off is never read.
      keep_rate: in [0, 1]; 1 keeps all.
      mask: boolean or 0/1, broadcast to the losses.

    Returns:
      Weights n/k or 0 of the losses' shape, float32 or wider, without gradient; mean one over the unmasked.

    Raises:
      ValueError: if the mask does not broadcast to the losses, or `keep_rate` is out of range.

    References:
      Han et al., *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, 2018, arXiv
      1804.06872.
    """
    function = "weights.small_loss_weights"
    kept = base.keep(losses, mask, function)
    _checks.number(function, "keep_rate", keep_rate, low=0, high=1)
    dtype = _checks.accumulation_dtype(losses)
    count = jnp.sum(kept, dtype=dtype)
    # A rate such as 0.7 may lie just below its decimal value; that must not cost the example that 0.7 * 10 stands for.
    # Schedules give float32, also where the losses are float64.
    size = jnp.floor(jnp.asarray(keep_rate, dtype) * count * (1 + 4 * jnp.finfo(jnp.float32).eps))
    size = jnp.clip(size, jnp.minimum(count, 1), count)
    values = jnp.where(kept, jax.lax.stop_gradient(losses), jnp.inf).reshape(-1)
    # Masked entries come last even behind infinite losses.
    order = jnp.lexsort((values, ~kept.reshape(-1)))
    ranks = jnp.zeros(values.size, order.dtype).at[order].set(jnp.arange(values.size, dtype=order.dtype))
    chosen = kept & (ranks.reshape(kept.shape) < size)
    return jnp.where(chosen, count / jnp.maximum(size, 1), 0)


def co_teaching_weights(
    losses: Float[Array, "*batch networks"], *, keep_rate: float | Float[Array, ""], mask: Mask | None = None
) -> Float[Array, "*batch networks"]:
    r"""Co-teaching: each network learns from the examples whose losses are the smallest of another network.

    A column of the losses is a network, and learns with the `small_loss_weights` of the next column, the last with
    those of the first: with two networks each has the other's choice. What one network has come to believe wrongly is
    then not confirmed by itself. Networks that agree, or a single one, choose for themselves.

    Args:
      losses: of each network on its last axis `[..., P]`; all axes before count as examples.
      keep_rate: in [0, 1], the share of examples that is kept; 1 keeps all.
      mask: boolean or 0/1, broadcast to the losses (`[..., 1]` for one of the examples). An example that is masked for
        one network is so for all.

    Returns:
      Weights n/k or 0 of the losses' shape, float32 or wider, without gradient; each column has mean one over the
      unmasked, so that the mean of a network's weighted losses is the mean over what its peer chose.

    Raises:
      ValueError: if the losses have no axis, the mask does not broadcast to them, or `keep_rate` is out of range.

    References:
      Han et al., *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, 2018, arXiv
      1804.06872.
    """
    function = "weights.co_teaching_weights"
    kept = base.keep(losses, mask, function)
    _checks.number(function, "keep_rate", keep_rate, low=0, high=1)
    if jnp.ndim(losses) < 1 or jnp.shape(losses)[-1] == 0:
        _checks.fail(function, "losses", f"of shape {jnp.shape(losses)}", "an array with networks on its last axis")
    of_peers = jnp.roll(losses, -1, axis=-1)
    kept = jnp.broadcast_to(jnp.all(kept, axis=-1, keepdims=True), kept.shape)
    choose = jax.vmap(lambda column, mask: small_loss_weights(column, keep_rate=keep_rate, mask=mask), -1, -1)
    return choose(of_peers, kept)


def keep_schedule(forget_rate: float = 0.2, *, steps_per_epoch: int, gradual_epochs: int = 5) -> Schedule:
    r"""A `keep_rate` for `small_loss` and `co_teaching` that falls from epoch to epoch: :math:`1 - R(e)`.

    .. math:: R(e) = R \min\big(e / (E - 1),\, 1\big)

    Networks learn what is common, clean labels, before they memorise what is not, so that all is kept at first.

    Args:
      forget_rate: :math:`R`, in [0, 1], at best the share of wrong labels.
      steps_per_epoch: batches an epoch.
      gradual_epochs: :math:`E`, the number of the epoch, counted from 1, that reaches :math:`R`. With 1 it is the
        second.

    Returns:
      A schedule from the number of batches seen so far to a rate.

    Raises:
      ValueError: if a hyperparameter is out of range.

    References:
      Han et al., *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, 2018, arXiv
      1804.06872.
    """
    function = "weights.keep_schedule"
    _checks.number(function, "forget_rate", forget_rate, low=0, high=1)
    _checks.number(function, "steps_per_epoch", steps_per_epoch, low=1, integer=True)
    _checks.number(function, "gradual_epochs", gradual_epochs, low=1, integer=True)

    def keep_rate(step: Int[Array, ""]) -> Float[Array, ""]:
        _checks.array(function, "step", step, kind="integer")
        epoch = (jnp.asarray(step) // steps_per_epoch).astype(_checks.accumulation_dtype(1.0))
        return 1 - forget_rate * jnp.minimum(epoch / max(gradual_epochs - 1, 1), 1)

    return keep_rate


class SmallLossState(NamedTuple):
    """How many batches have been seen: what the schedule of the rate is a function of."""

    step: Int[Array, ""]


def small_loss(keep_rate: float | Schedule) -> base.Weighting:
    """Selection of the small losses of the global batch, see `small_loss_weights`.

    Args:
      keep_rate: in [0, 1], or a schedule from the number of batches seen so far to a rate, such as
        `optax.linear_schedule(1.0, 0.6, 1000)`: networks learn clean labels first, so that the rate starts at 1 and
        falls to the share of clean labels. A rate that a schedule puts outside [0, 1] is clipped.

    Returns:
      A `Weighting` of scope `"batch"` with state `SmallLossState`. A batch that is masked altogether is not counted.

    Raises:
      ValueError: if a constant `keep_rate` is out of range.
    """
    return _scheduled("weights.small_loss", small_loss_weights, keep_rate)


def co_teaching(keep_rate: float | Schedule) -> base.Weighting:
    """Co-teaching of networks that are trained side by side, see `co_teaching_weights`.

    The losses have a column a network, as from parameters that are stacked and a `vmap` over them. With the two-network
    mean of `train.make_step` a network's gradient is half that of its own mean loss.

    Args:
      keep_rate: as for `small_loss`; `keep_schedule` is that of the paper.

    Returns:
      A `Weighting` of scope `"batch"` with state `SmallLossState`. A batch that is masked altogether is not counted.

    Raises:
      ValueError: if a constant `keep_rate` is out of range.

    References:
      Han et al., *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, 2018, arXiv
      1804.06872.
    """
    return _scheduled("weights.co_teaching", co_teaching_weights, keep_rate)


def _scheduled(function: str, choose: Callable[..., Array], keep_rate: float | Schedule) -> base.Weighting:
    if not callable(keep_rate):
        _checks.number(function, "keep_rate", keep_rate, low=0, high=1)

    def init(key: PRNGKeyArray | None = None) -> SmallLossState:
        del key
        return SmallLossState(jnp.zeros((), jnp.int32))

    def update(
        state: SmallLossState, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], SmallLossState]:
        mask = signals.get("mask")
        rate = jnp.clip(jnp.asarray(keep_rate(state.step)), 0, 1) if callable(keep_rate) else keep_rate
        weights = choose(losses, keep_rate=rate, mask=mask)
        some = jnp.any(base.keep(losses, mask, function))
        return weights, SmallLossState(state.step + some.astype(jnp.int32))

    return base.Weighting(init, update, "batch")
