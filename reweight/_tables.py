"""Memory of single examples: a table with a row per example of the data set. Public as `reweight.weights.table_*`.

The table stands here because losses and weighting schemes both have memory, and weights import losses.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from reweight import _checks

Mask = Bool[Array, "..."] | Num[Array, "..."]


def table_init(
    num_examples: int, shape: tuple[int, ...] = (), *, fill: float = 0.0, dtype: Any = jnp.float32
) -> Num[Array, "examples *row"]:
    """A table with a row for every example of a data set.

    Args:
      num_examples: rows. The table can be sharded along them.
      shape: of a row; a scalar by default, `(classes,)` for predictions.
      fill: what every entry starts as.
      dtype: of the entries.

    Returns:
      An array `[num_examples, *shape]`.

    Raises:
      ValueError: if `num_examples` is not a positive integer.
    """
    _checks.number("weights.table_init", "num_examples", num_examples, low=1, integer=True)
    return jnp.full((num_examples, *shape), fill, dtype)


def _known(indices: Int[Array, "..."], table: Array) -> Bool[Array, "..."]:
    return (indices >= 0) & (indices < table.shape[0])


def table_gather(table: Num[Array, "examples *row"], indices: Int[Array, "..."]) -> Num[Array, "..."]:
    """The rows of a batch.

    Args:
      table: `[N, ...]`.
      indices: example ids, any shape.

    Returns:
      A row per index, of the table's dtype; zeros at an index outside [0, N).

    Raises:
      ValueError: if the indices are not integers, or the table has no rows.
    """
    function = "weights.table_gather"
    _check_table(function, table, indices)
    known = _known(indices, table)
    rows = table[jnp.where(known, indices, 0)]
    return jnp.where(jnp.expand_dims(known, tuple(range(known.ndim, rows.ndim))), rows, 0)


def table_scatter(
    table: Num[Array, "examples *row"],
    indices: Int[Array, "..."],
    values: Num[Array, "..."],
    *,
    mask: Mask | None = None,
) -> Num[Array, "examples *row"]:
    """The table with the rows of a batch replaced.

    Args:
      table: `[N, ...]`.
      indices: example ids, any shape. The unmasked indices of a batch are unique: which of two values an index given
        twice would keep is not defined. Padding is masked, or has an index outside [0, N), and writes nothing.
      values: a row per index. What stands where the mask is off is never written.
      mask: boolean or 0/1, broadcast to the indices.

    Returns:
      A table of the same shape and dtype.

    Raises:
      ValueError: if the indices are not integers, or values or mask do not fit them.
    """
    function = "weights.table_scatter"
    _check_table(function, table, indices)
    _checks.array(function, "values", values, shape=(*jnp.shape(indices), *table.shape[1:]))
    _checks.mask(function, "mask", mask, indices, like_name="indices")
    written = _known(indices, table) & _checks.kept(mask, jnp.shape(indices))
    target = jnp.where(written, indices, table.shape[0])
    return table.at[target].set(jnp.asarray(values).astype(table.dtype), mode="drop")


def _check_table(function: str, table: Array, indices: Int[Array, "..."]) -> None:
    _checks.array(function, "table", table)
    if jnp.ndim(table) < 1 or table.shape[0] == 0:
        _checks.fail(function, "table", f"of shape {jnp.shape(table)}", "an array with at least one row")
    _checks.array(function, "indices", indices, kind="integer")
