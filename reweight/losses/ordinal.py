"""Losses for ordered classes: each boundary between neighbours has a logit of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reweight import _checks

__all__ = ["cumulative_logit_nll", "cumulative_probs"]

Boundaries = Float[Array, "*batch boundaries"]


def _boundaries(function: str, logits: Boundaries) -> Boundaries:
    _checks.array(function, "boundary_logits", logits, kind="float")
    shape = jnp.shape(logits)
    if not shape or shape[-1] < 1:
        _checks.fail(function, "boundary_logits", f"of shape {shape}", "an array whose last axis is the boundaries")
    return jnp.asarray(logits).astype(_checks.accumulation_dtype(logits))


def cumulative_logit_nll(
    boundary_logits: Boundaries, labels: Int[Array, "*batch"], *, min_gap: float = 1e-8
) -> Float[Array, "*batch"]:
    r"""Negative log-likelihood of ordered classes with :math:`P(y \le k) = \sigma(\eta_k)`, per example.

    .. math:: -\log(\sigma(\eta_y) - \sigma(\eta_{y-1}))

    with :math:`\sigma(\eta_{-1}) = 0` and :math:`\sigma(\eta_{K-1}) = 1`. The difference is taken in logarithms, so
    that no probability is too small.

    The boundaries of a row may cross, :math:`\eta_y < \eta_{y-1}`, and the likelihood does not exist there. From a gap
    of `min_gap` downwards the logarithm of the gap goes on by its tangent: the loss is finite, and its gradient, of
    size 1 / `min_gap`, moves the boundaries apart. A network whose boundaries cross when training starts needs a
    `min_gap` of about 0.01.

    Args:
      boundary_logits: :math:`\eta`, of the K-1 boundaries from low to high `[..., K-1]`, any scale.
      labels: classes in 0..K-1 `[...]`.
      min_gap: between the logits of neighbouring boundaries, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or `min_gap` is out of range.

    References:
      McCullagh, *Regression Models for Ordinal Data*, 1980. Faletto and Bien, *Predicting Rare Events by Shrinking
      Towards Proportional Odds*, 2023, which reports minus infinity where boundaries cross.
    """
    function = "losses.ordinal.cumulative_logit_nll"
    logits = _boundaries(function, boundary_logits)
    _checks.array(function, "labels", labels, shape=logits.shape[:-1], kind="integer")
    _checks.number(function, "min_gap", min_gap, low=0, open_low=True, open_high=True)
    last = logits.shape[-1]
    known = (labels >= 0) & (labels <= last)
    label = jnp.where(known, labels, 0)
    has_upper, has_lower = label < last, label > 0
    upper = jnp.take_along_axis(logits, jnp.minimum(label, last - 1)[..., None], axis=-1)[..., 0]
    lower = jnp.take_along_axis(logits, jnp.maximum(label - 1, 0)[..., None], axis=-1)[..., 0]
    inside = has_upper & has_lower
    gap = jnp.where(inside, upper - lower, 1)
    wide = gap > min_gap
    log_gap = jnp.where(
        wide,
        jnp.log(-jnp.expm1(-jnp.where(wide, gap, 1))),
        jnp.log(-jnp.expm1(-jnp.asarray(min_gap, gap.dtype))) + (gap - min_gap) / jnp.expm1(min_gap),
    )
    log_likelihood = (
        jnp.where(has_upper, jax.nn.log_sigmoid(upper), 0)
        + jnp.where(has_lower, jax.nn.log_sigmoid(-lower), 0)
        + jnp.where(inside, log_gap, 0)
    )
    return jnp.where(known, -log_likelihood, 0)


def cumulative_probs(boundary_logits: Boundaries) -> tuple[Float[Array, "*batch classes"], Bool[Array, "*batch"]]:
    r"""Probabilities of ordered classes, :math:`\sigma(\eta_k) - \sigma(\eta_{k-1})`, and whether boundaries cross.

    Args:
      boundary_logits: :math:`\eta`, of the K-1 boundaries from low to high `[..., K-1]`, any scale.

    Returns:
      Probabilities `[..., K]`, float32 or wider, small ones exact in every digit; and booleans `[...]`. Where
      boundaries cross, a negative difference counts as 0 and the others are scaled to sum to 1.

    Raises:
      ValueError: if the logits are no float array with a last axis.

    References:
      Faletto and Bien, *Predicting Rare Events by Shrinking Towards Proportional Odds*, 2023.
    """
    logits = _boundaries("losses.ordinal.cumulative_probs", boundary_logits)
    gaps = jnp.diff(logits, axis=-1)
    # The difference of two sigmoids without a subtraction.
    inner = jax.nn.sigmoid(logits[..., 1:]) * jax.nn.sigmoid(-logits[..., :-1]) * -jnp.expm1(-jnp.maximum(gaps, 0))
    probs = jnp.concatenate([jax.nn.sigmoid(logits[..., :1]), inner, jax.nn.sigmoid(-logits[..., -1:])], axis=-1)
    return probs / jnp.sum(probs, axis=-1, keepdims=True), jnp.any(gaps < 0, axis=-1)
