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

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reweight import _checks

__all__ = ["BatchLoss", "of_batch", "of_sums"]

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


class _Linear(NamedTuple):
    """A function of sums at the sums of the batch: its value, the number of examples, and its slopes as rows."""

    value: Float[Array, ""]
    examples: Float[Array, ""]
    slopes: Any


def of_sums(
    terms: Callable[..., Any],
    value: Callable[[Any], Float[Array, ""]],
    *,
    signals: tuple[str, ...],
    name: str = "losses.of_sums",
) -> BatchLoss:
    r"""A loss :math:`L(S)` of sums over the batch, :math:`S = \sum_i s_i`, that is exact in microbatches.

    For a loss that is no mean over examples: a ratio of sums, a metric of a confusion matrix. The sums of the batch and
    the slopes of :math:`L` there are the statistic. With :math:`n` unmasked examples, an example's loss is

    .. math:: L(S) + n \nabla L(S) \cdot (s_i - \mathrm{sg}(s_i))

    with the value :math:`L(S)`. The mean over the batch has value and gradient of :math:`L`.

    Args:
      terms: `terms(**signals)`, a pytree of arrays `[B, ...]`, what each example adds to the sums. It must be finite
        where all signals are 0.
      value: `value(sums)`, a scalar, from the tree with the leading axis summed.
      signals: the names of the signals that `terms` takes, the first of which gives the number of examples.
      name: of the function that errors name.

    Returns:
      A `BatchLoss` without state.

    Raises:
      ValueError: at the call, if a signal is missing, or does not have a row an example.
    """

    def rows(given: dict[str, Any]) -> tuple[Any, Array]:
        values, kept = _rows(name, signals, given)
        added = terms(**values)
        return jax.tree.map(lambda leaf: _zeroed(leaf, kept).astype(_checks.accumulation_dtype(leaf)), added), kept

    def statistics(state: tuple[()], **given: Any) -> tuple[_Linear, tuple[()]]:
        added, kept = rows(given)
        total, slopes = jax.value_and_grad(value)(jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), added))
        wide = jax.tree.map(lambda slope, leaf: jnp.broadcast_to(slope, leaf.shape), slopes, added)
        return _Linear(total, jnp.sum(kept.astype(total.dtype)), wide), state

    def losses(statistics: _Linear, **given: Any) -> Float[Array, " batch"]:
        added, kept = rows(given)
        moved = [
            jnp.sum((slope * (leaf - jax.lax.stop_gradient(leaf))).reshape(kept.size, -1), axis=1)
            for slope, leaf in zip(jax.tree.leaves(statistics.slopes), jax.tree.leaves(added), strict=True)
        ]
        return jnp.where(kept, statistics.value + statistics.examples * sum(moved), 0)

    return BatchLoss(lambda key=None: (), statistics, losses, signals)


class _Coupled(NamedTuple):
    """The losses of the batch, and the slopes of their sum in the float signals as rows."""

    values: Float[Array, " batch"]
    slopes: dict[str, Float[Array, "batch *rest"]]


def of_batch(
    function: Callable[..., Float[Array, " batch"]], *, signals: tuple[str, ...], name: str = "losses.of_batch"
) -> BatchLoss:
    r"""A loss that compares the examples of a batch with each other, exact in microbatches.

    For contrastive losses, and all others whose gradient flows into several examples at once. The losses of the batch
    and the slopes of their sum in the signals are the statistic. With :math:`f_j` the signals of example j, its loss is

    .. math:: l_j + \Big(\nabla_{f_j} \sum_i l_i\Big) \cdot (f_j - \mathrm{sg}(f_j))

    with the value :math:`l_j`. The sum over the batch, and so its mean, has value and gradient of the losses of the
    whole batch; what a microbatch holds is its own examples only. A weight on an example scales all gradient that flows
    through its signals, that of the other examples' losses included.

    Args:
      function: `function(**signals, mask=mask)`, the losses `[B]` of the whole batch, 0 where masked. It gets float
        signals in float32 at least, with zeros where masked, and the mask as booleans.
      signals: the names of the signals that `function` takes, the first of which gives the number of examples.
      name: of the function that errors name.

    Returns:
      A `BatchLoss` without state.

    Raises:
      ValueError: at the call, if a signal is missing, or does not have a row an example.

    References:
      Gao et al., *Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup*, 2021, arXiv 2101.06983,
      where slopes are stored in the same way.
    """

    def rows(given: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Array], Array]:
        values, kept = _rows(name, signals, given)
        floats = {
            signal: value.astype(_checks.accumulation_dtype(value))
            for signal, value in values.items()
            if jnp.issubdtype(value.dtype, jnp.floating)
        }
        return floats, {signal: value for signal, value in values.items() if signal not in floats}, kept

    def statistics(state: tuple[()], **given: Any) -> tuple[_Coupled, tuple[()]]:
        floats, others, kept = rows(given)

        def total(floats: dict[str, Array]) -> tuple[Array, Array]:
            values = function(**floats, **others, mask=kept)
            _checks.array(name, "function(**signals)", values, shape=kept.shape, kind="float")
            return jnp.sum(values), values

        slopes, values = jax.grad(total, has_aux=True)(floats)
        return _Coupled(values, slopes), state

    def losses(statistics: _Coupled, **given: Any) -> Float[Array, " batch"]:
        floats, _, kept = rows(given)
        moved = [
            jnp.sum((slope * (floats[signal] - jax.lax.stop_gradient(floats[signal]))).reshape(kept.size, -1), axis=1)
            for signal, slope in statistics.slopes.items()
        ]
        return jnp.where(kept, statistics.values + sum(moved), 0)

    return BatchLoss(lambda key=None: (), statistics, losses, signals)


def _rows(name: str, signals: tuple[str, ...], given: dict[str, Any]) -> tuple[dict[str, Array], Array]:
    """The signals of these names, with zeros where masked, and the mask as booleans."""
    _checks.require(name, given, signals)
    size = jnp.shape(given[signals[0]])[:1]
    for signal in signals:
        _checks.array(name, signal, given[signal], shape=size + (None,) * (jnp.ndim(given[signal]) - 1))
    mask = given.get("mask")
    _checks.mask(name, "mask", mask, jnp.zeros(size), like_name=f"the first axis of {signals[0]}")
    kept = _checks.kept(mask, size)
    return {signal: _zeroed(given[signal], kept) for signal in signals}, kept


def _zeroed(values: Array, kept: Array) -> Array:
    """The values, 0 in the rows that are masked."""
    values = jnp.asarray(values)
    return jnp.where(kept.reshape((-1,) + (1,) * (values.ndim - 1)), values, jnp.zeros_like(values))
