"""Metrics of learning one task after another, from the accuracy on every task after every evaluation.

Evaluated only when a task ends, a model that loses an old task and learns it again looks like one that never lost it.
The worst-case metrics here read a record of evaluations that may be as dense as one after every step:

    accuracies[t, e]   on the test set of task e at evaluation t
    current_task[t]    the task that is being trained then

Tasks are numbered in the order in which they come, so that tasks 0, ..., k are known while task k is trained;
accuracies of later ones are never read. Every function gives its metric as it stands after each evaluation, so that the
last entry is that of the whole record, and `continual_stream` gives the same numbers one evaluation at a time. No
gradient flows. Accuracies are those of the whole test set: add hits and examples over shards and hosts before the
division.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reweight import _checks

__all__ = [
    "ContinualRecord",
    "ContinualState",
    "ContinualStream",
    "average_accuracy",
    "average_forgetting",
    "continual_stream",
    "lca",
    "min_acc",
    "wc_acc",
    "windowed_forgetting",
    "windowed_plasticity",
]

Accuracies = Float[Array, "time tasks"]
CurrentTask = Int[Array, " time"]
Series = Float[Array, " time"] | Float[Array, "time tasks"]


class _Record(NamedTuple):
    """The accuracies, 0 where they are not read, and which tasks are known, past and in training `[T, E]`."""

    accuracies: Array
    known: Array
    past: Array
    trained: Array


def _record(function: str, accuracies: Array, current_task: Array, shape: tuple[int | None, ...]) -> _Record:
    _checks.array(function, "accuracies", accuracies, shape=shape, kind="float")
    came = jnp.shape(accuracies)
    _checks.array(function, "current_task", current_task, shape=came[:-1], kind="integer")
    tasks, current = jnp.arange(came[-1]), jnp.asarray(current_task)[..., None]
    known = tasks <= current
    values = jax.lax.stop_gradient(jnp.where(known, accuracies, 0))
    return _Record(values.astype(_checks.accumulation_dtype(accuracies)), known, tasks < current, tasks == current)


def _of_matrix(function: str, accuracies: Array, current_task: Array) -> _Record:
    return _record(f"metrics.continual.{function}", accuracies, current_task, (None, None))


def _over_tasks(values: Array, counted: Array, per_task: bool = False, undefined: float = 0.0) -> Array:
    """The values of the tasks that count, or their mean."""
    if per_task:
        return jnp.where(counted, values, undefined)
    count = jnp.sum(counted, axis=-1)
    return jnp.where(count > 0, jnp.sum(jnp.where(counted, values, 0), axis=-1) / jnp.maximum(count, 1), undefined)


def average_accuracy(accuracies: Accuracies, current_task: CurrentTask) -> Float[Array, " time"]:
    r"""Mean accuracy on the tasks known so far, :math:`\frac{1}{k+1} \sum_{e \le k} A_{t,e}`, at each evaluation.

    Args:
      accuracies: :math:`A`, `[T, E]`: on each task at each evaluation. Those of tasks still to come are never read.
      current_task: :math:`k`, the task in training at each evaluation `[T]`: integers in 0..E-1, non-decreasing.

    Returns:
      The metric `[T]`, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, or `current_task` is not of integers.
    """
    record = _of_matrix("average_accuracy", accuracies, current_task)
    return _over_tasks(record.accuracies, record.known)


def average_forgetting(accuracies: Accuracies, current_task: CurrentTask, *, per_task: bool = False) -> Series:
    r"""What past tasks have lost since their own end, :math:`A_{t_e,e} - A_{t,e}`, mean over them.

    Here :math:`t_e` is the last evaluation at which task e was in training; for a task that has come before the record
    begins, or was left out, the first since it is known. Negative where later tasks have helped.

    Args:
      accuracies: as for `average_accuracy`.
      current_task: as for `average_accuracy`.
      per_task: give each task's number instead of the mean.

    Returns:
      The metric `[T]`, 0 while no task is past; or `[T, E]`, 0 where a task is not past.

    Raises:
      ValueError: if the shapes do not fit, or `current_task` is not of integers.

    References:
      De Lange et al., *Continual evaluation for lifelong learning: Identifying the stability gap*, 2022,
      arXiv 2205.13452.
    """
    record = _of_matrix("average_forgetting", accuracies, current_task)
    time = jnp.arange(record.trained.shape[0])[:, None]
    last = jnp.max(jnp.where(record.trained, time, -1), axis=0, initial=-1)
    first = jnp.sum(jnp.cumsum(record.known, axis=0) == 0, axis=0)
    ends = jnp.sum(jnp.where(time == jnp.where(last < 0, first, last), record.accuracies, 0), axis=0)
    return _over_tasks(ends - record.accuracies, record.past, per_task)


def min_acc(
    accuracies: Accuracies, current_task: CurrentTask, *, per_task: bool = False, undefined: float = 0.0
) -> Series:
    r"""The lowest accuracy of a past task since its end, :math:`\min_{t_e < n \le t} A_{n,e}`, mean over past tasks.

    Args:
      accuracies: as for `average_accuracy`.
      current_task: as for `average_accuracy`.
      per_task: give each task's number instead of the mean.
      undefined: what stands where no task is past; with `per_task`, where that task is not.

    Returns:
      The metric `[T]`, or `[T, E]`.

    Raises:
      ValueError: if the shapes do not fit, or `current_task` is not of integers.

    References:
      De Lange et al., *Continual evaluation for lifelong learning: Identifying the stability gap*, 2022,
      arXiv 2205.13452.
    """
    record = _of_matrix("min_acc", accuracies, current_task)
    return _over_tasks(_minima(record), record.past, per_task, undefined)


def _minima(record: _Record) -> Array:
    lowest = jax.lax.cummin(jnp.where(record.past, record.accuracies, jnp.inf))
    return jnp.where(record.past, lowest, 0)


def wc_acc(accuracies: Accuracies, current_task: CurrentTask) -> Float[Array, " time"]:
    r"""Worst-case accuracy: mean of the current task's accuracy and the minima of the past ones.

    .. math:: \frac{1}{k+1} (A_{t,k} + \sum_{e<k} \min_{t_e < n \le t} A_{n,e})

    While the first task is trained it is that task's accuracy.

    Args:
      accuracies: as for `average_accuracy`.
      current_task: as for `average_accuracy`.

    Returns:
      The metric `[T]`.

    Raises:
      ValueError: if the shapes do not fit, or `current_task` is not of integers.

    References:
      De Lange et al., *Continual evaluation for lifelong learning: Identifying the stability gap*, 2022,
      arXiv 2205.13452.
    """
    record = _of_matrix("wc_acc", accuracies, current_task)
    return _over_tasks(jnp.where(record.past, _minima(record), record.accuracies), record.known)


def windowed_forgetting(
    accuracies: Accuracies, current_task: CurrentTask, *, window: int | None = 10, per_task: bool = False
) -> Series:
    r"""The largest drop of a task's accuracy among :math:`\Delta` evaluations in a row, mean over the known tasks.

    .. math:: \max_{n \le t} \max_{n - \Delta < m \le n} A_{m,e} - A_{n,e}

    The evaluations of a task begin with its training. What drops at once and comes back is found by a small window.

    Args:
      accuracies: as for `average_accuracy`.
      current_task: as for `average_accuracy`.
      window: :math:`\Delta`, in evaluations, at least 1; None for all since the task began.
      per_task: give each task's number instead of the mean.

    Returns:
      The metric `[T]`, at least 0 and non-decreasing for each task; or `[T, E]`, 0 for tasks still to come.

    Raises:
      ValueError: if the shapes do not fit, `current_task` is not of integers, or `window` is out of range.

    References:
      De Lange et al., *Continual evaluation for lifelong learning: Identifying the stability gap*, 2022,
      arXiv 2205.13452.
    """
    return _largest_drop("windowed_forgetting", accuracies, current_task, window, per_task, 1)


def windowed_plasticity(
    accuracies: Accuracies, current_task: CurrentTask, *, window: int | None = 10, per_task: bool = False
) -> Series:
    r"""The largest rise of a task's accuracy among :math:`\Delta` evaluations in a row, mean over the known tasks.

    `windowed_forgetting` of the negative accuracies. In the released code the search leaves out starting points below
    an earlier, higher one, which is right for drops and misses rises.

    Args:
      accuracies: as for `average_accuracy`.
      current_task: as for `average_accuracy`.
      window: as for `windowed_forgetting`.
      per_task: give each task's number instead of the mean.

    Returns:
      The metric `[T]`, at least 0 and non-decreasing for each task; or `[T, E]`, 0 for tasks still to come.

    Raises:
      ValueError: if the shapes do not fit, `current_task` is not of integers, or `window` is out of range.

    References:
      De Lange et al., *Continual evaluation for lifelong learning: Identifying the stability gap*, 2022,
      arXiv 2205.13452.
    """
    return _largest_drop("windowed_plasticity", accuracies, current_task, window, per_task, -1)


def _largest_drop(
    function: str, accuracies: Array, current_task: Array, window: int | None, per_task: bool, sign: int
) -> Array:
    """Of the accuracies times the sign."""
    _check_window(f"metrics.continual.{function}", window)
    record = _of_matrix(function, accuracies, current_task)
    size = max(1, record.known.shape[0]) if window is None else window
    values = sign * record.accuracies
    highest = jax.lax.reduce_window(
        jnp.where(record.known, values, -jnp.inf), -jnp.inf, jax.lax.max, (size, 1), (1, 1), ((size - 1, 0), (0, 0))
    )
    drops = jax.lax.cummax(jnp.where(record.known, highest - values, 0))
    return _over_tasks(drops, record.known, per_task)


def _check_window(function: str, window: int | None) -> None:
    if window is not None:
        _checks.number(function, "window", window, low=1, integer=True)


def lca(
    accuracies: Accuracies, current_task: CurrentTask, *, beta: int = 10, undefined: float = 0.0
) -> Float[Array, " time"]:
    r"""Learning curve area: mean of the first :math:`\beta` accuracies of a task in training, mean over tasks.

    Args:
      accuracies: as for `average_accuracy`.
      current_task: as for `average_accuracy`.
      beta: :math:`\beta`, in evaluations, at least 1. Tasks evaluated less often while they were trained do not count.
      undefined: what stands where no task counts.

    Returns:
      The metric `[T]`.

    Raises:
      ValueError: if the shapes do not fit, `current_task` is not of integers, or `beta` is out of range.

    References:
      Chaudhry et al., *Efficient Lifelong Learning with A-GEM*, 2019, arXiv 1812.00420.
    """
    _checks.number("metrics.continual.lca", "beta", beta, low=1, integer=True)
    record = _of_matrix("lca", accuracies, current_task)
    count = jnp.cumsum(record.trained, axis=0)
    first = jnp.cumsum(jnp.where(record.trained & (count <= beta), record.accuracies, 0), axis=0)
    return _over_tasks(first / beta, count >= beta, undefined=undefined)


class ContinualRecord(NamedTuple):
    """The metrics as they stand after an evaluation, each a scalar; 0 where a metric is not defined yet."""

    average_accuracy: Float[Array, ""]
    average_forgetting: Float[Array, ""]
    min_acc: Float[Array, ""]
    wc_acc: Float[Array, ""]
    windowed_forgetting: Float[Array, ""]
    windowed_plasticity: Float[Array, ""]
    lca: Float[Array, ""]


class ContinualState(NamedTuple):
    """What has to be remembered of each task.

    Attributes:
      evaluations: how often it has been evaluated, and how often while it was in training `[2, E]`.
      recent: its last accuracies, the newest first; without a window, its highest and its lowest one `[W, E]`.
      moved: its largest drop and its largest rise `[2, E]`.
      minimum: its lowest accuracy since its end `[E]`.
      end: its last accuracy while it was in training, or its first one, if it has not been `[E]`.
      area: the sum of its first accuracies while it was in training `[E]`.
    """

    evaluations: Int[Array, "2 tasks"]
    recent: Float[Array, "window tasks"]
    moved: Float[Array, "2 tasks"]
    minimum: Float[Array, " tasks"]
    end: Float[Array, " tasks"]
    area: Float[Array, " tasks"]


class InitFn(Protocol):
    """Makes the state before the first evaluation."""

    def __call__(self) -> ContinualState: ...


class UpdateFn(Protocol):
    """Takes in one evaluation."""

    def __call__(
        self, state: ContinualState, accuracies: Float[Array, " tasks"], current_task: Int[Array, ""]
    ) -> tuple[ContinualRecord, ContinualState]: ...


class ContinualStream(NamedTuple):
    """The metrics one evaluation at a time, in two pure functions.

    Attributes:
      init: `init() -> state`.
      update: `update(state, accuracies [E], current_task []) -> (ContinualRecord, state)`.
    """

    init: InitFn
    update: UpdateFn


def continual_stream(num_tasks: int, *, window: int | None = 10, beta: int = 10) -> ContinualStream:
    """The metrics of this module while training goes on: `init` and `update`, in memory that does not grow.

    For a loop that evaluates after every step, also under `jax.jit` and `jax.lax.scan`:

        stream = continual_stream(5, window=100)
        state = stream.init()
        record, state = stream.update(state, accuracies, current_task)

    Args:
      num_tasks: how many tasks there will be.
      window: of `windowed_forgetting` and `windowed_plasticity`; None for all evaluations since a task began.
      beta: of `lca`.

    Returns:
      A `ContinualStream`. Its records are those of the functions of the whole record of accuracies.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if the shapes do not fit or `current_task` is not an
        integer.
    """
    function = "metrics.continual.continual_stream"
    _checks.number(function, "num_tasks", num_tasks, low=1, integer=True)
    _checks.number(function, "beta", beta, low=1, integer=True)
    _check_window(function, window)
    rows = 2 if window is None else window - 1

    def init() -> ContinualState:
        zeros = jnp.zeros(num_tasks)
        return ContinualState(
            jnp.zeros((2, num_tasks), jnp.int32),
            jnp.zeros((rows, num_tasks)),
            jnp.zeros((2, num_tasks)),
            zeros,
            zeros,
            zeros,
        )

    def update(
        state: ContinualState, accuracies: Float[Array, " tasks"], current_task: Int[Array, ""]
    ) -> tuple[ContinualRecord, ContinualState]:
        now = _record(function, accuracies, current_task, (num_tasks,))
        values = now.accuracies.astype(state.recent.dtype)
        seen, trained = state.evaluations
        age = jnp.arange(rows)[:, None] if window is not None else 0
        before = age < seen
        high = jnp.max(jnp.where(before, state.recent, values), axis=0, initial=-jnp.inf)
        low = jnp.min(jnp.where(before, state.recent, values), axis=0, initial=jnp.inf)
        high, low = jnp.maximum(high, values), jnp.minimum(low, values)
        moved = jnp.where(now.known, jnp.maximum(state.moved, jnp.stack([high - values, values - low])), state.moved)
        recent = jnp.stack([high, low]) if window is None else jnp.concatenate([values[None], state.recent])[:rows]
        # A task that has been evaluated only while it was in training has no minimum yet.
        lowest = jnp.where(seen > trained, jnp.minimum(state.minimum, values), values)
        new = ContinualState(
            state.evaluations + jnp.stack([now.known, now.trained]),
            jnp.where(now.known, recent, state.recent),
            moved,
            jnp.where(now.past, lowest, state.minimum),
            jnp.where(now.trained | (now.known & (seen == 0)), values, state.end),
            state.area + jnp.where(now.trained & (trained < beta), values, 0),
        )
        record = ContinualRecord(
            average_accuracy=_over_tasks(values, now.known),
            average_forgetting=_over_tasks(new.end - values, now.past),
            min_acc=_over_tasks(new.minimum, now.past),
            wc_acc=_over_tasks(jnp.where(now.past, new.minimum, values), now.known),
            windowed_forgetting=_over_tasks(moved[0], now.known),
            windowed_plasticity=_over_tasks(moved[1], now.known),
            lca=_over_tasks(new.area / beta, new.evaluations[1] >= beta),
        )
        return record, new

    return ContinualStream(init, update)
