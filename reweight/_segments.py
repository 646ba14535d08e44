"""Means over the rows that share an id: of classes, of groups."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks

Mask = Bool[Array, " batch"] | Num[Array, " batch"]


def segment_means(
    rows: Float[Array, "batch *rest"], ids: Int[Array, " batch"], number: int, mask: Mask | None = None
) -> tuple[Float[Array, "ids *rest"], Float[Array, " ids"]]:
    """Means of the unmasked rows of each id, float32 or wider, and how many they are; 0 for an id without rows.

    A row whose id is not in [0, number) counts for nothing, as if masked.
    """
    known = _checks.kept(mask, jnp.shape(ids)) & (ids >= 0) & (ids < number)
    ids = jnp.where(known, ids, number)  # segment_sum drops ids out of range
    wide = jnp.where(_along(known, rows), rows, 0).astype(_checks.accumulation_dtype(rows))
    counts = jax.ops.segment_sum(known.astype(wide.dtype), ids, number)
    return jax.ops.segment_sum(wide, ids, number) / _along(jnp.maximum(counts, 1), rows), counts


def _along(values: Array, rows: Array) -> Array:
    """One value a row, with the rank of the rows."""
    return values.reshape(-1, *(1,) * (jnp.ndim(rows) - 1))
