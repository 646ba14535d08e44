"""The loop on the host: batches from an iterator, metrics, evaluations, checkpoints, preemption.

    step = jit_step(make_step(loss_fn, optimizer, weighting=weighting), mesh=mesh)
    with Checkpointer("run/checkpoints", best_metric="eval/accuracy", config=config) as checkpointer:
        done = fit(step, state, batches, num_steps=10_000, mesh=mesh, writers=[JsonlWriter("run/metrics.jsonl")],
                   eval_fn=eval_fn, eval_every=500, checkpointer=checkpointer, checkpoint_every=500)

The same call starts a run and goes on with one that was interrupted.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reweight import _checks, parallel, reduce
from reweight.train.checkpoint import Checkpointer
from reweight.train.state import TrainState
from reweight.train.step import Batch, Step
from reweight.train.writers import Writer

__all__ = ["Fit", "evaluate", "fit"]

EvalFn = Callable[[TrainState], Mapping[str, Any]]


class Fit(NamedTuple):
    """How a run ended.

    Attributes:
      state: the state after the last step taken.
      preempted: whether a SIGTERM ended it before its last step.
    """

    state: TrainState
    preempted: bool


def fit(
    step: Step,
    state: TrainState,
    batches: Iterator[Batch],
    *,
    num_steps: int,
    mesh: Mesh | None = None,
    writers: Sequence[Writer] = (),
    log_every: int = 10,
    eval_fn: EvalFn | None = None,
    eval_every: int | None = None,
    checkpointer: Checkpointer | None = None,
    checkpoint_every: int | None = None,
    resume: bool | int = True,
    progress: bool | None = None,
) -> Fit:
    """Trains up to step `num_steps`, from the start or from a checkpoint.

    A run that is killed at any moment and started again with the same arguments ends with the same bits in its state
    and in its metrics as one that was not: state, data iterator and the length of the metrics come from one checkpoint.
    (As far as the device repeats itself: on GPUs that takes `XLA_FLAGS=--xla_gpu_deterministic_ops=true`.)
    On SIGTERM the step in progress is finished, a checkpoint is written and `fit` returns; on several processes all of
    them stop after the same step.

    Args:
      step: from `jit_step`.
      state: the state at step 0; it is used up. With a mesh, arrays that are not on it yet are replicated over it.
      batches: gives dicts of arrays, on several processes each its part of the global batch. With a checkpointer it
        must have `get_state()` and `set_state(state)`, like the iterators of grain.
      num_steps: the step to stop at, counted from step 0.
      mesh: the devices of the run, as in `jit_step`; default: those on which the arrays are.
      writers: get `train/...` every `log_every` steps and `eval/...` after evaluations.
      log_every: steps between two records of the step's metrics, which are those of the one step.
      eval_fn: `eval_fn(state)`, named numbers. The state must not be kept.
      eval_every: steps between two evaluations; one more comes after the last step. Needed where there is an `eval_fn`.
      checkpointer: where checkpoints go and come from; the caller closes it.
      checkpoint_every: steps between two checkpoints; one more comes after the last step, and one at step 0.
      resume: True: from the latest checkpoint, if there is one. A number: from the checkpoint of that step, and later
        ones are deleted. False: from the start, which refuses a directory with checkpoints.
      progress: whether to show a progress bar; default: on the main process of a run at a terminal.

    Returns:
      The last state, and whether the run was preempted.

    Raises:
      ValueError: if arguments contradict each other, the batches end too early, the checkpoint is past `num_steps`, or
        the metrics file is not that of the run.
      CheckpointError: if the checkpoint can't be used; it says why, and which others there are.
    """
    _check_arguments(num_steps, log_every, eval_fn, eval_every, checkpointer, checkpoint_every, resume, batches)
    main = parallel.is_main_process()
    writers = list(writers) if main else []
    shown = main and sys.stderr.isatty() if progress is None else progress
    state = state if mesh is None else _on_mesh(state, mesh)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_StopRequest())
        for writer in writers:
            stack.callback(writer.close)
        state, number = _begin(state, batches, writers, checkpointer, resume, num_steps)
        if checkpointer is not None:
            stack.callback(checkpointer.wait)
        show = stack.enter_context(_progress_bar(num_steps, number, shown))

        while number < num_steps and not stop.requested(number):
            try:
                batch = next(batches)
            except StopIteration:
                came, allowed = f"at its end after {number} steps", f"an iterator that lasts {num_steps} steps"
                _checks.fail("train.fit", "batches", came, allowed)
            state, metrics = step(state, batch if mesh is None else parallel.shard_batch(batch, mesh))
            number += 1
            last = number == num_steps

            record, scores = {}, {}
            if number % log_every == 0 or last:
                record = {f"train/{name}": value for name, value in jax.device_get(metrics).items()}
            if eval_fn is not None and eval_every is not None and (number % eval_every == 0 or last):
                scores = {f"eval/{name}": value for name, value in jax.device_get(dict(eval_fn(state))).items()}
            if record or scores:
                for writer in writers:
                    writer.write(number, record | scores)
            show(number, record | scores)
            if checkpointer is not None and checkpoint_every is not None and (number % checkpoint_every == 0 or last):
                _save(checkpointer, number, state, batches, writers, scores)

        preempted = number < num_steps
        if preempted and checkpointer is not None and checkpointer.latest() != number:
            _save(checkpointer, number, state, batches, writers, {})
        return Fit(state, preempted)


def evaluate(
    metric_fn: Callable[[TrainState, Batch], Mapping[str, reduce.Parts]], state: TrainState, batches: Iterable[Batch]
) -> dict[str, float]:
    """Metrics over many batches, exact however unequal the batches: parts are added first and divided last.

    Args:
      metric_fn: `metric_fn(state, batch) -> {name: reduce.Parts}`, usually jitted.
      state: the state to evaluate.
      batches: at least one batch.

    Returns:
      The metrics of all batches together.

    Raises:
      ValueError: if there is no batch.
    """
    total: Mapping[str, reduce.Parts] | None = None
    for batch in batches:
        parts = metric_fn(state, batch)
        total = parts if total is None else jax.tree.map(lambda a, b: a + b, total, parts)
    if total is None:
        _checks.fail("train.evaluate", "batches", "empty", "at least one batch")
    return {name: float(reduce.finish(parts)) for name, parts in total.items()}


def _begin(
    state: TrainState,
    batches: Iterator[Batch],
    writers: Sequence[Writer],
    checkpointer: Checkpointer | None,
    resume: bool | int,
    num_steps: int,
) -> tuple[TrainState, int]:
    """The state to go on from and its step; the iterator and the writers are put to the same place."""
    if checkpointer is None or (checkpointer.latest() is None and isinstance(resume, bool)):
        for writer in writers:
            writer.begin(0, None)
        # The first checkpoint is on disk before the first line of metrics is, so that a run killed before its second
        # one finds the file as it expects it.
        if checkpointer is not None:
            _save(checkpointer, 0, state, batches, writers, {})
            checkpointer.wait()
        return state, 0
    restored = checkpointer.restore(state, step=None if resume is True else resume)
    if restored.step > num_steps:
        _checks.fail("train.fit", "num_steps", f"{num_steps}", f"at least the step of the checkpoint, {restored.step}")
    batches.set_state(restored.data)  # type: ignore[attr-defined]
    if writers:
        if len(writers) != len(restored.writers):
            _checks.fail("train.fit", "writers", f"of length {len(writers)}", f"the {len(restored.writers)} of the run")
        for writer, position in zip(writers, restored.writers, strict=True):
            writer.begin(restored.step, position)
    checkpointer.discard_after(restored.step)
    return restored.state, restored.step


def _save(
    checkpointer: Checkpointer,
    number: int,
    state: TrainState,
    batches: Iterator[Batch],
    writers: Sequence[Writer],
    scores: Mapping[str, Any],
) -> None:
    data = batches.get_state()  # type: ignore[attr-defined]
    positions = [writer.position() for writer in writers]
    checkpointer.save(number, state, data=data, writers=positions, metrics=scores)


class _StopRequest(contextlib.AbstractContextManager["_StopRequest"]):
    """Notices SIGTERM. On several processes JAX's coordination service does, and agrees on a step."""

    def __init__(self) -> None:
        self._noticed = threading.Event()
        self._alone = jax.process_count() == 1
        self._installed = self._alone and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "_StopRequest":
        if self._installed:
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._noticed.set())
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self, number: int) -> bool:
        """Whether to stop at this step: the same answer on all processes, if all ask at every step."""
        return self._noticed.is_set() if self._alone else multihost_utils.reached_preemption_sync_point(number)


@contextlib.contextmanager
def _progress_bar(total: int, start: int, shown: bool) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    said = TextColumn("{task.fields[said]}")
    columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), said)
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=total, completed=start, said="")

        def show(number: int, values: Mapping[str, Any]) -> None:
            told = {k: v for k, v in values.items() if (k == "train/loss" or k.startswith("eval/")) and np.ndim(v) == 0}
            bar.update(task, completed=number)
            if told:
                bar.update(task, said="  ".join(f"{name} {value:.4g}" for name, value in told.items()))

        yield show


def _on_mesh(state: TrainState, mesh: Mesh) -> TrainState:
    devices = set(mesh.devices.flat)

    def place(x: jax.Array) -> jax.Array:
        if isinstance(x.sharding, NamedSharding) and x.sharding.device_set == devices:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # which JAX does not put onto the devices of other hosts
            return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jax.device_put(x, parallel.replicated(mesh))

    return jax.tree.map(place, state)


def _check_arguments(
    num_steps: int,
    log_every: int,
    eval_fn: EvalFn | None,
    eval_every: int | None,
    checkpointer: Checkpointer | None,
    checkpoint_every: int | None,
    resume: bool | int,
    batches: Iterator[Batch],
) -> None:
    numbers = {"num_steps": num_steps, "log_every": log_every}
    numbers |= {} if eval_every is None else {"eval_every": eval_every}
    numbers |= {} if checkpoint_every is None else {"checkpoint_every": checkpoint_every}
    for name, value in numbers.items():
        _checks.number("train.fit", name, value, low=1, integer=True)
    values = {"eval_fn": eval_fn, "checkpointer": checkpointer} | numbers
    for pair in (("eval_fn", "eval_every"), ("checkpointer", "checkpoint_every")):
        given = [name for name in pair if values.get(name) is not None]
        if len(given) == 1:
            (missing,) = set(pair) - set(given)
            _checks.fail("train.fit", missing, "None", f"to be given together with `{given[0]}`")
    if checkpointer is None or checkpoint_every is None:
        return
    if not (hasattr(batches, "get_state") and hasattr(batches, "set_state")):
        allowed = "an iterator with `get_state` and `set_state`, where there is a checkpointer"
        _checks.fail("train.fit", "batches", f"of type {type(batches).__name__}", allowed)
    if resume is False and checkpointer.latest() is not None:
        came = f"False, and {checkpointer.directory} holds the steps {checkpointer.steps()}"
        _checks.fail("train.fit", "resume", came, "True, a step, or an empty directory")
    if checkpointer.best_metric is not None and (eval_every is None or checkpoint_every % eval_every):
        allowed = f"a multiple of `eval_every`, {eval_every}, for the best checkpoint to be known"
        _checks.fail("train.fit", "checkpoint_every", f"{checkpoint_every}", allowed)
