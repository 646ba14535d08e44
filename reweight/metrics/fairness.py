"""Metrics that count what groups have apart."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks

__all__ = ["equity_scaled"]

Spread = Literal["abs_sum", "std"]


def equity_scaled(
    overall: Float[Array, ""],
    per_group: Float[Array, " groups"],
    *,
    alpha: float = 1.0,
    spread: Spread = "abs_sum",
    mask: Bool[Array, " groups"] | Num[Array, " groups"] | None = None,
) -> Float[Array, ""]:
    r"""A metric divided by one plus what groups have apart: :math:`I / (1 + \alpha \sum_g |I_g - I|)`, a scalar.

    Args:
      overall: :math:`I`, the metric of all examples, `[]`.
      per_group: :math:`I_g`, that of each group `[G]`.
      alpha: :math:`\alpha`, in [0, inf).
      spread: `"abs_sum"`, as in the formula, or `"std"`: the sample standard deviation of the groups' metrics in place
        of the sum, 0 for a single group.
      mask: boolean or 0/1 `[G]`: which groups there are; what it hides is never read. Default: all.

    Returns:
      The scaled metric, float32 or wider; `overall` itself where all groups have it.

    Raises:
      ValueError: if the shapes do not fit, `spread` is unknown, or `alpha` is out of range.

    References:
      Tian et al., *FairSeg: A Large-Scale Medical Image Segmentation Dataset for Fairness Learning Using Segment
      Anything Model with Fair Error-Bound Scaling*, 2024, arXiv 2311.02189.
    """
    function = "metrics.fairness.equity_scaled"
    _checks.array(function, "overall", overall, shape=(), kind="float")
    _checks.array(function, "per_group", per_group, ndim=1, kind="float")
    _checks.number(function, "alpha", alpha, low=0, open_high=True)
    _checks.choice(function, "spread", spread, get_args(Spread))
    _checks.mask(function, "mask", mask, per_group, like_name="per_group")
    dtype = _checks.accumulation_dtype(overall, per_group)
    kept = _checks.kept(mask, jnp.shape(per_group))
    whole, groups = jnp.asarray(overall).astype(dtype), jnp.where(kept, per_group, 0).astype(dtype)
    if spread == "abs_sum":
        apart = jnp.sum(jnp.where(kept, jnp.abs(groups - whole), 0))
    else:
        count = jnp.sum(kept)
        mean = jnp.sum(groups) / jnp.maximum(count, 1)
        variance = jnp.sum(jnp.where(kept, (groups - mean) ** 2, 0)) / jnp.maximum(count - 1, 1)
        apart = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return whole / (1 + alpha * apart)
