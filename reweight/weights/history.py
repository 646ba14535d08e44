"""Memory of single examples: a table with a row per example of the data set, and weighting by smoothed losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.weights import base

__all__ = ["SmoothedState", "smoothed", "table_gather", "table_init", "table_scatter"]

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
    written = _known(indices, table)
    if mask is not None:
        written &= jnp.broadcast_to(jnp.asarray(mask) != 0, jnp.shape(indices))
    target = jnp.where(written, indices, table.shape[0])
    return table.at[target].set(jnp.asarray(values).astype(table.dtype), mode="drop")


def _check_table(function: str, table: Array, indices: Int[Array, "..."]) -> None:
    _checks.array(function, "table", table)
    if jnp.ndim(table) < 1 or table.shape[0] == 0:
        _checks.fail(function, "table", f"of shape {jnp.shape(table)}", "an array with at least one row")
    _checks.array(function, "indices", indices, kind="integer")


class SmoothedState(NamedTuple):
    """The running mean of every example's loss, whether it has been seen, and the inner scheme's state."""

    losses: Float[Array, " examples"]
    seen: Bool[Array, " examples"]
    inner: Any


def smoothed(inner: base.Weighting, num_examples: int, *, decay: float = 0.9) -> base.Weighting:
    r"""Any weighting on smoothed losses: it is handed a running mean of each example's loss in place of the loss.

    .. math:: m_i \leftarrow \lambda\, m_i + (1 - \lambda)\, \ell_i

    The mean starts at the first loss seen of an example, and is updated before the inner scheme reads it. One noisy
    loss then decides less: `smoothed(small_loss(0.7), n)` drops the examples whose losses have been large for long.

    Args:
      inner: the scheme that turns smoothed losses into weights; it gets all signals.
      num_examples: how many examples the data set has.
      decay: :math:`\lambda`, in [0, 1): 0 smooths nothing.

    Returns:
      A `Weighting` with state `SmoothedState` and the scope of the inner one. It needs the signal `indices`: example
      ids of the losses' shape, unique among the unmasked of a batch. An index outside [0, num_examples) is never
      stored, and its loss is passed on as it is.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if `indices` is missing or does not fit the losses.
    """
    function = "weights.smoothed"
    _checks.number(function, "num_examples", num_examples, low=1, integer=True)
    _checks.number(function, "decay", decay, low=0, high=1, open_high=True)

    def init(key: PRNGKeyArray | None = None) -> SmoothedState:
        return SmoothedState(table_init(num_examples), table_init(num_examples, dtype=bool), inner.init(key))

    def update(
        state: SmoothedState, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], SmoothedState]:
        _checks.require(function, signals, ("indices",))
        indices = signals["indices"]
        kept = base.keep(losses, signals.get("mask"), function)
        _checks.array(function, "indices", indices, shape=jnp.shape(losses), kind="integer")
        loss = jnp.where(kept, jax.lax.stop_gradient(losses), 0).astype(_checks.accumulation_dtype(losses))
        before = table_gather(state.losses, indices)
        mean = jnp.where(table_gather(state.seen, indices), decay * before + (1 - decay) * loss, loss)
        table = table_scatter(state.losses, indices, mean, mask=kept)
        seen = table_scatter(state.seen, indices, jnp.ones_like(kept), mask=kept)
        weights, inner_state = inner.update(state.inner, mean, **signals)
        return weights, SmoothedState(table, seen, inner_state)

    return base.Weighting(init, update, inner.scope, tuple(dict.fromkeys(("indices", *inner.signals))))
