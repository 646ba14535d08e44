"""Checkpoints of everything a run needs to go on: state, data iterator, position in the metrics, configuration.

    checkpointer = Checkpointer("runs/long_tail/checkpoints", keep_last=3, best_metric="eval/accuracy", config=config)
    checkpointer.save(step, state, data=iterator.get_state())
    restored = checkpointer.restore(state)  # onto the shardings of `state`

Orbax writes in the background and commits in one operation at the end, so that a process killed while it writes leaves
the earlier checkpoints and nothing that looks like a new one. On the way back nothing is taken on trust: names, shapes
and types of the arrays and the configuration are compared with those of the run, and every array with a checksum of its
bits that was computed on the device before it was written.
"""

import base64
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from reweight import _checks
from reweight.train.state import TrainState

__all__ = ["CheckpointError", "Checkpointer", "Restored", "checksum"]

Json = Any  # what `json` writes and reads
Mode = Literal["max", "min"]
SHOWN = 5  # differences that an error lists


class CheckpointError(ValueError):
    """A checkpoint that can't be used: there is none, it is damaged, or it belongs to another run."""


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: its step.
      state: the state, on the shardings that were asked for.
      data: the state of this process's data iterator; None if none was saved.
      writers: the positions of the metric writers.
    """

    step: int
    state: TrainState
    data: Any
    writers: Json


def checksum(x: Array) -> UInt32[Array, ""]:
    """A checksum of the bits of an array and of where they stand, in integers: the same however the array is sharded.

    Args:
      x: an array of any shape and type.

    Returns:
      A 32-bit number. Arrays that differ in one entry, or in the order of entries, differ in it (but for one in 2^32).
    """
    if x.dtype.itemsize <= 4 and (jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool):
        bits = x.astype(jnp.uint32)
    elif x.dtype.itemsize < 4:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # The mixing steps of MurmurHash3 on bits and place, added up modulo 2^32, which needs no order.
    mixed = (bits ^ (place * np.uint32(0x9E3779B9))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


class Checkpointer:
    """The checkpoints of one run in one directory.

    Args:
      directory: where they lie, one folder a step; made if it isn't there.
      keep_last: how many of the latest are kept.
      best_metric: the metric by which the best one is kept too; default none is.
      best_mode: whether the best is the largest (`"max"`) or the smallest.
      config: what the run was configured with: a dataclass or a mapping of things that `json` can write (others are
        written as strings). A checkpoint with another one is refused.
      background: write in the background, while training goes on. The arrays are copied first.

    Raises:
      ValueError: if `keep_last` is below 1 or `best_mode` unknown.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        best_metric: str | None = None,
        best_mode: Mode = "max",
        config: Any = None,
        background: bool = True,
    ):
        _checks.number("train.Checkpointer", "keep_last", keep_last, low=1, integer=True)
        _checks.choice("train.Checkpointer", "best_mode", best_mode, get_args(Mode))
        place = os.fspath(directory)
        self.directory = place if "://" in place else os.path.abspath(place)
        self.best_metric = best_metric
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._keep_last = keep_last
        self._config = _as_json(config)
        self._scores: dict[int, float] = {}
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                lightweight_initialize=True,
                enable_async_checkpointing=background,
                preservation_policy=_Preserve(self._kept),
            ),
        )

    def steps(self) -> list[int]:
        """The steps of the checkpoints here, in order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the checkpoint with the best metric, the earliest of equals; None if none has one."""
        scored = [(self._score(step), -step) for step in self.steps()]
        top, step = max(scored, default=(-math.inf, 0))
        return None if top == -math.inf else -step

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: Any = None,
        writers: Json = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a checkpoint. On several processes all of them call it.

        Args:
          step: its number, above that of the latest one.
          state: the state after that many steps.
          data: the state of this process's data iterator: bytes, or what `json` can write.
          writers: the positions of the metric writers; the main process's are kept.
          metrics: named numbers, of which `best_metric` is one, or none; what is not a scalar is left out.

        Raises:
          ValueError: if there is a checkpoint at this step or a later one, or the metrics lack the best metric.
        """
        latest = self.latest()
        if latest is not None and step <= latest:
            _checks.fail("train.Checkpointer.save", "step", f"{step}", f"a step after the latest checkpoint, {latest}")
        metrics = {name: float(value) for name, value in (metrics or {}).items() if np.ndim(value) == 0}
        if metrics and self.best_metric is not None and self.best_metric not in metrics:
            allowed = f"numbers with the best metric, {self.best_metric!r}, among them"
            _checks.fail("train.Checkpointer.save", "metrics", f"of names {sorted(metrics)}", allowed)
        arrays, keys = _arrays(state)
        sums = jax.device_get(_checksums(arrays))
        run = {
            "step": step,
            "arrays": {name: {**_describe(x), "checksum": int(sums[name])} for name, x in arrays.items()},
            "keys": keys,
            "config": self._config,
            "metrics": metrics,
            "writers": writers,
            "data": _gather(json.dumps(_encode(data))),
        }
        self._remember(step, metrics)
        saved = ocp.args.Composite(state=ocp.args.StandardSave(arrays), run=ocp.args.JsonSave(run))
        self._manager.save(step, args=saved, force=True)

    def restore(self, state: TrainState, *, step: int | None = None) -> Restored:
        """Reads a checkpoint.

        Args:
          state: a state of the same structure, of arrays or of `jax.ShapeDtypeStruct`s, which says where each array
            goes: onto its sharding, however the array lay when it was saved.
          step: which one; default the latest.

        Returns:
          What was saved.

        Raises:
          CheckpointError: if there is none (at this step), it is damaged, or its arrays or configuration are not those
            of this run. The message says what is wrong, and which other steps there are.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self.steps():
            what = "no checkpoint" if step is None else f"no checkpoint at step {step}"
            self._refuse(step, f"there is {what} in {self.directory}")
        run = self._read(step)
        template, keys = _arrays(state)
        self._compare(step, run, template, keys)
        target = {name: _target(x) for name, x in template.items()}
        try:
            arrays = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))[
                "state"
            ]
        except Exception as error:
            self._refuse(step, f"it is damaged: its arrays can't be read ({_first_line(error)})", error)
        sums = jax.device_get(_checksums(arrays))
        wrong = [name for name, x in run["arrays"].items() if int(sums[name]) != x["checksum"]]
        if wrong:
            self._refuse(step, f"it is damaged: {_listed(wrong)} changed since it was written")
        return Restored(step, _with_arrays(state, arrays), self._own_data(step, run["data"]), run["writers"])

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, for a run that goes on from this one."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Returns when what is being written is on disk, or raises what went wrong."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _kept(self, steps: Sequence[int]) -> list[bool]:
        scores = [self._score(step) for step in steps]
        best = scores.index(max(scores)) if scores and max(scores) > -math.inf else None
        return [i >= len(steps) - self._keep_last or i == best for i in range(len(steps))]

    def _score(self, step: int) -> float:
        """The metric of a checkpoint, larger is better; -inf without one, or if the checkpoint can't be read."""
        if self.best_metric is None:
            return -math.inf
        if step not in self._scores:
            try:
                self._remember(step, self._read(step)["metrics"])
            except CheckpointError:
                self._scores[step] = -math.inf
        return self._scores[step]

    def _remember(self, step: int, metrics: Mapping[str, float]) -> None:
        value = self._sign * metrics.get(self.best_metric or "", -self._sign * math.inf)
        self._scores[step] = -math.inf if math.isnan(value) else value

    def _read(self, step: int) -> Any:
        try:
            run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            missing = {"arrays", "keys", "config", "metrics", "writers", "data"} - set(run)
        except Exception as error:
            self._refuse(step, f"it is damaged: its description can't be read ({_first_line(error)})", error)
        if missing:
            self._refuse(step, f"it is damaged or foreign: its description lacks {_listed(sorted(missing))}")
        return run

    def _compare(self, step: int, run: Any, template: Mapping[str, Any], keys: Mapping[str, str]) -> None:
        was, now = _flat(run["config"]), _flat(self._config)
        differences = [
            f"config `{name}` was {was.get(name, 'absent')}, is {now.get(name, 'absent')}"
            for name in sorted(was.keys() | now.keys())
            if was.get(name) != now.get(name)
        ]
        saved = {name: {k: x[k] for k in ("shape", "dtype")} for name, x in run["arrays"].items()}
        wanted = {name: _describe(x) for name, x in template.items()}
        differences += [f"array `{name}` is not in the checkpoint" for name in sorted(wanted.keys() - saved.keys())]
        differences += [f"array `{name}` is only in the checkpoint" for name in sorted(saved.keys() - wanted.keys())]
        for name in sorted(saved.keys() & wanted.keys()):
            if saved[name] != wanted[name]:
                came, want = (f"{x['dtype']}{x['shape']}" for x in (saved[name], wanted[name]))
                differences.append(f"array `{name}` was {came}, is {want}")
        differences += [
            f"key `{name}` has another implementation" for name in keys if run["keys"].get(name) != keys[name]
        ]
        if differences:
            self._refuse(step, f"it is of another run: {_listed(differences)}")

    def _own_data(self, step: int, states: Sequence[str]) -> Any:
        """This process's iterator state. Another number of processes can go on if all stood at the same place."""
        same = len(states) == jax.process_count()
        if not same and len(set(states)) > 1:
            self._refuse(step, f"it holds the data iterators of {len(states)} processes, not of {jax.process_count()}")
        return _decode(json.loads(states[jax.process_index() if same else 0]))

    def _refuse(self, step: int | None, reason: str, cause: Exception | None = None) -> NoReturn:
        others = [other for other in self.steps() if other != step]
        hint = f"Other steps here: {others}; `restore(step=...)` or `fit(resume=...)` takes one." if others else ""
        where = "" if step is None or step not in self.steps() else f"checkpoint {step} in {self.directory}: "
        raise CheckpointError(f"train.Checkpointer: {where}{reason}. {hint}".rstrip()) from cause


@dataclasses.dataclass
class _Preserve:
    """Orbax's preservation policy, by the steps alone."""

    keep: Callable[[Sequence[int]], list[bool]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        return self.keep([checkpoint.step for checkpoint in checkpoints])


def _named(state: TrainState) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        _checks.fail(
            "train.Checkpointer", "state", f"a tree with two arrays named {_listed(twice)}", "one name an array"
        )
    return list(zip(names, (leaf for _, leaf in leaves), strict=True))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _arrays(state: TrainState) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a state by name, keys as their raw data, and the implementations of the keys."""
    arrays, keys = {}, {}
    for name, x in _named(state):
        if _is_key(x):
            keys[name] = _key_implementation(x)
            abstract = isinstance(x, jax.ShapeDtypeStruct)
            raw = jax.eval_shape(jax.random.key_data, x) if abstract else jax.random.key_data(x)
            x = jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=x.sharding) if abstract else raw
        arrays[name] = x
    return arrays, keys


def _key_implementation(key: Any) -> str:
    found = []
    jax.eval_shape(lambda k: found.append(str(jax.random.key_impl(k))), key)
    return found[0]


def _with_arrays(state: TrainState, arrays: Mapping[str, Array]) -> TrainState:
    leaves = [
        jax.random.wrap_key_data(arrays[name], impl=_key_implementation(x)) if _is_key(x) else arrays[name]
        for name, x in _named(state)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _describe(x: Any) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def _target(x: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@jax.jit
def _checksums(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: checksum(x) for name, x in arrays.items()}


def _gather(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(raw.size))
    padded = multihost_utils.process_allgather(np.pad(raw, (0, int(sizes.max()) - raw.size)))
    return [bytes(row[:size]).decode() for row, size in zip(padded, sizes, strict=True)]


def _encode(data: Any) -> Json:
    return {"base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"json": data}


def _decode(data: Json) -> Any:
    return base64.b64decode(data["base64"]) if "base64" in data else data["json"]


def _as_json(config: Any) -> Json:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    return json.loads(json.dumps(config, default=str, sort_keys=True))


def _flat(config: Json, prefix: str = "") -> dict[str, str]:
    if not isinstance(config, dict):
        return {prefix or "config": json.dumps(config)}
    return {k: v for key, x in config.items() for k, v in _flat(x, f"{prefix}.{key}" if prefix else key).items()}


def _listed(items: Sequence[str]) -> str:
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
