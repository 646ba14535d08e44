"""Selection of the examples whose labels are likely to be right."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.weights import base

__all__ = ["SmallLossState", "small_loss", "small_loss_weights"]

Mask = Bool[Array, "..."] | Num[Array, "..."]
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


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
    size = jnp.floor(jnp.asarray(keep_rate, dtype) * count * (1 + 4 * jnp.finfo(dtype).eps))
    size = jnp.clip(size, jnp.minimum(count, 1), count)
    values = jnp.where(kept, jax.lax.stop_gradient(losses), jnp.inf).reshape(-1)
    # Masked entries come last even behind infinite losses.
    order = jnp.lexsort((values, ~kept.reshape(-1)))
    ranks = jnp.zeros(values.size, order.dtype).at[order].set(jnp.arange(values.size, dtype=order.dtype))
    chosen = kept & (ranks.reshape(kept.shape) < size)
    return jnp.where(chosen, count / jnp.maximum(size, 1), 0)


class SmallLossState(NamedTuple):
    """How many batches `small_loss` has seen: what its schedule is a function of."""

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
    if not callable(keep_rate):
        _checks.number("weights.small_loss", "keep_rate", keep_rate, low=0, high=1)

    def init(key: PRNGKeyArray | None = None) -> SmallLossState:
        del key
        return SmallLossState(jnp.zeros((), jnp.int32))

    def update(
        state: SmallLossState, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], SmallLossState]:
        mask = signals.get("mask")
        rate = jnp.clip(jnp.asarray(keep_rate(state.step)), 0, 1) if callable(keep_rate) else keep_rate
        weights = small_loss_weights(losses, keep_rate=rate, mask=mask)
        some = jnp.any(base.keep(losses, mask, "weights.small_loss"))
        return weights, SmallLossState(state.step + some.astype(jnp.int32))

    return base.Weighting(init, update, "batch")
