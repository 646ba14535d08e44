"""Importance weights from the logarithms of probability ratios."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks
from reweight.weights import base

__all__ = ["importance", "importance_weights"]

Mask = Bool[Array, "..."] | Num[Array, "..."]
Outside = Literal["clip", "zero"]

# Ratios saturate here: far beyond any that carries information, and far enough from the largest float32 that sums and
# products with losses stay finite.
_MAX_LOG_RATIO = 64.0


def _bounds(function: str, low: float, high: float, outside: Outside) -> None:
    _checks.number(function, "low", low, low=0, open_high=True)
    _checks.number(function, "high", high, low=0, open_low=True)
    _checks.choice(function, "outside", outside, get_args(Outside))
    if not isinstance(low, jax.Array) and not isinstance(high, jax.Array) and low > high:
        _checks.fail(function, "low", repr(low), f"at most `high`, {high!r}")


def importance_weights(
    log_ratios: Float[Array, "..."],
    *,
    low: float = 0.0,
    high: float = math.inf,
    outside: Outside = "clip",
    self_normalize: bool = False,
    mask: Mask | None = None,
) -> Float[Array, "..."]:
    r"""Importance weights :math:`\rho_i = p(x_i) / q(x_i)`, bounded on request, from :math:`\log \rho_i`.

    | weights | arguments |
    |---|---|
    | plain | the defaults |
    | truncated | `high=c`: :math:`\min(\rho, c)` |
    | clipped | `low=1 - eps, high=1 + eps`: :math:`\rho` moved into the interval |
    | masked | `low, high` with `outside="zero"`: :math:`\rho` inside the interval, 0 outside |
    | self-normalised | `self_normalize=True`, with any of these: divided by their mean over the batch |

    Args:
      log_ratios: any shape, any finite size; all axes count as examples. For inverse propensities pass
        :math:`-\log` of the propensity. What stands where the mask is off is never read.
      low: smallest ratio, in [0, inf).
      high: largest ratio, in (0, inf], not below `low`.
      outside: `"clip"` moves a ratio outside [low, high] to the nearer end, `"zero"` drops it.
      self_normalize: scale the weights to mean one over the unmasked. It trades the unbiasedness of plain importance
        sampling for a bounded variance.
      mask: boolean or 0/1, broadcast to the log-ratios.

    Returns:
      Weights of the same shape, float32 or wider, without gradient. They are ratios, of mean one in expectation only,
      unless self-normalised. Without self-normalisation a ratio above e^64 counts as e^64. If all ratios are dropped
      all weights are 0.

    Raises:
      ValueError: if the mask does not broadcast to the log-ratios, or a hyperparameter is out of range.

    References:
      Ionides, *Truncated Importance Sampling*, 2008. Swaminathan and Joachims, *The Self-Normalized Estimator for
      Counterfactual Learning*, 2015.
    """
    function = "weights.importance_weights"
    kept = base.keep(log_ratios, mask, function, "log_ratios")
    _bounds(function, low, high, outside)
    logs = jnp.where(kept, jax.lax.stop_gradient(log_ratios), 0).astype(_checks.accumulation_dtype(log_ratios))
    log_low, log_high = jnp.log(jnp.asarray(low, logs.dtype)), jnp.log(jnp.asarray(high, logs.dtype))
    if outside == "zero":
        kept &= (logs >= log_low) & (logs <= log_high)
    else:
        logs = jnp.clip(logs, log_low, log_high)
    if not self_normalize:
        return jnp.where(kept, jnp.exp(jnp.minimum(logs, _MAX_LOG_RATIO)), 0)
    top = jnp.max(jnp.where(kept, logs, -jnp.inf), initial=-jnp.inf)
    ratios = jnp.where(kept, jnp.exp(logs - jnp.where(jnp.any(kept), top, 0)), 0)
    return base.normalize(ratios, mask=mask)


def importance(
    *,
    low: float = 0.0,
    high: float = math.inf,
    outside: Outside = "clip",
    self_normalize: bool = False,
) -> base.Weighting:
    """Importance weights from the signal `log_ratios`, see `importance_weights`.

    Args:
      low: smallest ratio, in [0, inf).
      high: largest ratio, in (0, inf], not below `low`.
      outside: `"clip"` or `"zero"`.
      self_normalize: scale the weights to mean one over the global batch.

    Returns:
      A `Weighting`, of scope `"batch"` if self-normalised, else `"example"`.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if the signal is missing or does not fit the losses.
    """
    function = "weights.importance"
    _bounds(function, low, high, outside)

    def weights(losses: Float[Array, "..."], *, log_ratios: Any, mask: Mask | None = None) -> Float[Array, "..."]:
        _checks.array(function, "log_ratios", log_ratios, kind="float")
        _checks.broadcasts(function, "log_ratios", log_ratios, losses, like_name="losses")
        spread = jnp.broadcast_to(log_ratios, jnp.shape(losses))
        return importance_weights(spread, low=low, high=high, outside=outside, self_normalize=self_normalize, mask=mask)

    return base.stateless(weights, scope="batch" if self_normalize else "example", name=function)
