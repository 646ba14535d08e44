"""Memory of single examples: a table with a row per example of the data set, and weighting by smoothed losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reweight import _checks
from reweight._tables import table_gather, table_init, table_scatter
from reweight.weights import base

__all__ = ["SmoothedState", "smoothed", "table_gather", "table_init", "table_scatter"]


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
