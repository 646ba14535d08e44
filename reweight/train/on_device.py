"""A whole run on the device: data, steps and evaluations in one compiled loop, vmapped over seeds.

    keys = jax.random.split(jax.random.key(0), 5)
    states = jax.vmap(lambda key: init_state(init_params(key), None, optimizer, weighting, key))(keys)
    run = run_on_device(step, states, {"inputs": x, "labels": y}, keys, batch_size=64, num_steps=1000)
    run.metrics["loss"]  # [5, 1000]

The data set lies in the device's memory. Order and batches come from a key and the number of the step alone, so that a
run may stop between any two steps and go on later, in one piece or in many, and end with the same bits.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from reweight import _checks
from reweight.train.state import TrainState
from reweight.train.step import Step

__all__ = ["Run", "epoch_order", "run_on_device"]

Tree = Any  # a pytree of arrays
EvalFn = Callable[[TrainState], Tree]


class Run(NamedTuple):
    """What a run leaves.

    Attributes:
      state: the state after the last step.
      metrics: those of every step taken, stacked `[steps]`, or `[seeds, steps]` for stacked states.
      evals: what `eval_fn` returned, stacked likewise over the evaluations; None without one.
    """

    state: TrainState
    metrics: dict[str, Array]
    evals: Tree


def epoch_order(key: PRNGKeyArray, epoch: Int[Array, ""] | int, size: int) -> Int[Array, "size"]:
    """The order in which an epoch goes through the examples: a permutation drawn from the key and the epoch's number.

    Args:
      key: the key of the data order.
      epoch: its number, from 0.
      size: how many examples there are.

    Returns:
      The ids of the examples, in order.
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), size)


def run_on_device(
    step: Step,
    state: TrainState,
    arrays: Mapping[str, Array],
    key: PRNGKeyArray,
    *,
    batch_size: int,
    num_steps: int,
    eval_fn: EvalFn | None = None,
    eval_every: int | None = None,
    stacked_arrays: bool = False,
    chunk_size: int | None = None,
    on_chunk: Callable[[Run], None] | None = None,
) -> Run:
    """Trains from `state.step` up to step `num_steps` in one compiled loop over steps.

    Every epoch goes through the examples in `epoch_order`, in batches; the examples after the last full batch are left
    out, others in every epoch. The batch has, besides slices of `arrays`, the ids of its examples as `indices`.

    With a `chunk_size` the host gets to see the run every so many steps: for a progress bar, a file of metrics, a
    checkpoint. Neither the size of the chunks nor an interruption between them changes a bit of the result.

    Args:
      step: from `make_step`, not jitted. The same function object is compiled once.
      state: donated. If it is stacked over seeds (its `step` has an axis), all seeds run side by side under `vmap`.
      arrays: the data set: named arrays `[N, ...]` with one common first axis, for all seeds; or with
        `stacked_arrays` a data set a seed, `[seeds, N, ...]`.
      key: from which the data order comes; a key a seed, or one key for all seeds.
      batch_size: examples a step, at most N.
      num_steps: the step to stop at, counted from step 0.
      eval_fn: `eval_fn(state)`, a pytree of arrays.
      eval_every: it is called after every step whose number this divides; needed where there is an `eval_fn`.
      stacked_arrays: whether every seed of a stacked state has a data set of its own.
      chunk_size: steps between two calls of `on_chunk`; default all.
      on_chunk: gets the `Run` of each chunk; its state must be used or copied before it returns.

    Returns:
      The `Run` of all steps taken here.

    Raises:
      ValueError: if the arrays differ in their first axis (or two), the batch is larger than the data set, the state is
        already past `num_steps` or there is nothing left to do, or one of `eval_fn` and `eval_every` is missing.
    """
    function = "train.run_on_device"
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    stacked = jnp.ndim(state.step) == 1
    if stacked_arrays and not stacked:
        _checks.fail(function, "stacked_arrays", "True", "False for a state that is not stacked over seeds")
    rank = 2 if stacked_arrays else 1
    sizes = {name: x.shape[:rank] for name, x in arrays.items()}
    if len(set(sizes.values())) != 1 or len(next(iter(sizes.values()))) != rank:
        allowed = (
            "arrays with common axes of seeds and examples" if stacked_arrays else "arrays with one common first axis"
        )
        _checks.fail(function, "arrays", f"of sizes {sizes}", allowed)
    *copies, size = next(iter(sizes.values()))
    if stacked_arrays and copies != [state.step.shape[0]]:
        _checks.fail(
            function, "arrays", f"of {copies[0]} seeds", f"arrays of {state.step.shape[0]} seeds, as the state"
        )
    _checks.number(function, "batch_size", batch_size, low=1, high=size, integer=True)
    start = int(state.step[0] if stacked else state.step)
    _checks.number(function, "num_steps", num_steps, low=start + 1, integer=True)
    length = num_steps - start if chunk_size is None else chunk_size
    _checks.number(function, "chunk_size", length, low=1, integer=True)
    if (eval_fn is None) != (eval_every is None):
        missing, given = ("eval_fn", "eval_every") if eval_fn is None else ("eval_every", "eval_fn")
        _checks.fail(function, missing, "None", f"to be given together with `{given}`")
    evaluation = None
    if eval_fn is not None and eval_every is not None:
        _checks.number(function, "eval_every", eval_every, low=1, integer=True)
        evaluation = (eval_fn, eval_every)
    keys_stacked = jnp.ndim(key) == 1
    if keys_stacked and not stacked:
        _checks.fail(
            function, "key", f"of shape {jnp.shape(key)}", "one key for a state that is not stacked over seeds"
        )

    seeds = (0 if stacked else None, 0 if keys_stacked else None, 0 if stacked_arrays else None)
    time = 1 if stacked else 0
    chunks = []
    for begin in range(start, num_steps, length):
        count = min(length, num_steps - begin)
        state, metrics, evals = _chunk(step, evaluation, seeds, batch_size, length, state, key, arrays, begin, count)
        done = 0 if eval_every is None else (begin + count) // eval_every - begin // eval_every
        cut = functools.partial(jax.lax.slice_in_dim, start_index=0, axis=time)
        metrics = {name: cut(x, limit_index=count) for name, x in metrics.items()}
        evals = jax.tree.map(functools.partial(cut, limit_index=done), evals)
        chunks.append((metrics, evals))
        if on_chunk is not None:
            on_chunk(Run(state, metrics, evals))
    metrics, evals = jax.tree.map(lambda *pieces: jnp.concatenate(pieces, axis=time), *chunks)
    return Run(state, metrics, evals)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=5)
def _chunk(
    step: Step,
    evaluation: tuple[EvalFn, int] | None,
    seeds: tuple[int | None, int | None, int | None],
    batch_size: int,
    length: int,
    state: TrainState,
    key: PRNGKeyArray,
    arrays: dict[str, Array],
    begin: Int[Array, ""],
    count: Int[Array, ""],
) -> tuple[TrainState, dict[str, Array], Tree]:
    """`count` steps from number `begin`; room for the metrics of `length`.

    The count is not static: a loop of known length may be unrolled, and then chunks of different sizes would round
    differently.
    """
    size = jax.tree.leaves(arrays)[0].shape[0 if seeds[2] is None else 1]
    per_epoch = size // batch_size

    def one_run(
        state: TrainState, key: PRNGKeyArray, arrays: dict[str, Array]
    ) -> tuple[TrainState, dict[str, Array], Tree]:
        def batch_at(order: Array, position: Array) -> dict[str, Array]:
            indices = jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
            return {**{name: x[indices] for name, x in arrays.items()}, "indices": indices}

        def room(shapes: Tree, rows: int) -> Tree:
            return jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), shapes)

        def put(rows: Tree, slot: Array, row: Tree) -> Tree:
            return jax.tree.map(lambda all_rows, x: all_rows.at[slot].set(x), rows, row)

        def body(i: Array, carry: Any) -> Any:
            state, order, metrics, evals = carry
            epoch, position = jnp.divmod(begin + i, per_epoch)
            # The number of the step has no seed axis, so this stays a branch under vmap and no seed sorts in vain.
            order = jax.lax.cond(position == 0, lambda: epoch_order(key, epoch, size), lambda: order)
            state, measured = step(state, batch_at(order, position))
            metrics = put(metrics, i, measured)
            if evaluation is not None:
                eval_fn, eval_every = evaluation
                done = begin + i + 1
                slot = done // eval_every - begin // eval_every - 1
                evals = jax.lax.cond(done % eval_every == 0, lambda: put(evals, slot, eval_fn(state)), lambda: evals)
            return state, order, metrics, evals

        order = epoch_order(key, begin // per_epoch, size)
        _, shapes = jax.eval_shape(step, state, batch_at(order, jnp.zeros_like(begin)))
        metrics = room(shapes, length)
        evals = None
        if evaluation is not None:
            evals = room(jax.eval_shape(evaluation[0], state), length // evaluation[1] + 1)
        state, _, metrics, evals = jax.lax.fori_loop(0, count, body, (state, order, metrics, evals))
        return state, metrics, evals

    return (one_run if seeds[0] is None else jax.vmap(one_run, in_axes=seeds))(state, key, arrays)
