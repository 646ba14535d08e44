"""What a loss with a statistic of the batch or of the stream is.

Most losses are pure functions: an example costs what its own numbers say. Some compare an example with all others: with
a mean over the batch, with the example of the same rank, with a running mean of everything seen so far. Such a loss is
taken apart into the statistic, which is of the whole batch and constant, and the losses given the statistic, which are
of one example each:

    loss = losses.preference.stream_bco(beta=0.1)
    state = loss.init()
    values, state = loss.update(state, policy=policy, reference=reference, desirable=desirable, mask=mask)

`train.make_step(..., loss=loss)` does this inside of a step, and keeps it exact under gradient accumulation: the
statistic is computed once, from the signals of all microbatches, before the first gradient is taken.
"""

from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["BatchLoss"]

State = Any  # a pytree of arrays
Statistics = Any  # a pytree of arrays


class InitFn(Protocol):
    """Makes the state of a loss; `key` only where something is drawn at random."""

    def __call__(self, key: PRNGKeyArray | None = None) -> State: ...


class StatisticsFn(Protocol):
    """What the losses of a batch need to know of the whole batch, and the next state."""

    def __call__(self, state: State, **signals: Any) -> tuple[Statistics, State]: ...


class LossesFn(Protocol):
    """Losses of examples, each from its own signals, given the statistics."""

    def __call__(self, statistics: Statistics, **signals: Any) -> Float[Array, " batch"]: ...


class BatchLoss(NamedTuple):
    """A loss with a statistic of the batch or of the stream, in pure functions.

    Signals are named arrays `[B, ...]` with one row an example, called as the arguments of the pure losses are. The
    functions read those they need and ignore the others. The signal `mask` (boolean or 0/1, `[B]`) is known to every
    loss: a masked example counts for nothing, is never read, and costs 0 with zero gradient. A batch that is masked
    altogether leaves the state as it was.

    "The batch" is the global one. Under `jax.jit` with sharded arrays nothing is needed for that; on the shards of
    `shard_map` and `pmap`, `parallel.over_axis(loss.update, axis, batched_in={"state": False},
    batched_out=(True, False))` is the loss of the global batch.

    Attributes:
      init: `init(key=None) -> state`, a pytree of arrays.
      statistics: `statistics(state, **signals) -> (statistics, state)`, from the signals of the whole batch and without
        gradient. In the statistics, a pytree, every array with an axis has a row an example; scalars are of the batch.
      losses: `losses(statistics, **signals) -> [B]`. The loss of an example depends on its own signals, its own rows of
        the statistics and the scalars among them, so that it may be called on a part of the batch.
      signals: the names that the loss cannot do without.
    """

    init: InitFn
    statistics: StatisticsFn
    losses: LossesFn
    signals: tuple[str, ...] = ()

    def update(self, state: State, **signals: Any) -> tuple[Float[Array, " batch"], State]:
        """Statistics, then losses: those of the whole batch `[B]`, and the next state.

        Args:
          state: from `init` or the last call.
          **signals: the named arrays of the batch. The statistics are constant: no gradient flows through them.

        Returns:
          The losses and the next state.
        """
        statistics, state = jax.lax.stop_gradient(self.statistics(state, **jax.lax.stop_gradient(signals)))
        return self.losses(statistics, **signals), state
