"""The folder of a run, `runs/<experiment>/<stamp>/`: made, found again, and written to without half-written files."""

import dataclasses
import datetime
import json
import math
import os
import pathlib
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from reweight import _checks

__all__ = ["create", "find", "read_config", "write_json"]

CONFIG = "config.json"
T = TypeVar("T")


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: arrays as lists, NaN and infinity as null."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case np.ndarray() | jax.Array():
            return _plain(np.asarray(value).tolist())
        case np.generic():
            return _plain(value.item())
        case float():
            return value if math.isfinite(value) else None
        case pathlib.Path():
            return value.as_posix()
        case _:
            return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON under a temporary name and moves it into place, so that a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(_plain(value), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _stamp() -> str:
    """The time to a microsecond, the same on every host."""
    seconds = datetime.datetime.now().timestamp()
    if jax.process_count() > 1:
        micro = np.array([int(seconds) % 10**9, int(seconds * 1e6) % 10**6, int(seconds) // 10**9], np.int32)
        low, micros, high = (int(part) for part in multihost_utils.broadcast_one_to_all(micro))
        seconds = high * 10**9 + low + micros / 1e6
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y%m%d-%H%M%S-%f")


def create(out: pathlib.Path, experiment: str, config: Any) -> pathlib.Path:
    """Makes `<out>/<experiment>/<stamp>/` with the config in it."""
    path = out / experiment / _stamp()
    path.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_json(path / CONFIG, dataclasses.asdict(config))
    return path


def find(out: pathlib.Path, experiment: str, resume: str) -> pathlib.Path:
    """The folder of an earlier run: the newest one of `<out>/<experiment>/` for `"last"`, else the path given.

    Raises:
      ValueError: if there is no such run.
    """
    if resume == "last":
        runs = sorted(path.parent for path in (out / experiment).glob(f"*/{CONFIG}"))
        if not runs:
            _checks.fail(
                f"experiments.{experiment}", "resume", "'last'", f"a run in {out / experiment} (there is none)"
            )
        return runs[-1]
    path = pathlib.Path(resume)
    if not (path / CONFIG).is_file():
        _checks.fail(
            f"experiments.{experiment}", "resume", repr(resume), f"'last' or the folder of a run, with {CONFIG}"
        )
    return path


def read_config(path: pathlib.Path, config: type[T]) -> T:
    """The config that a run was started with.

    Raises:
      ValueError: if the file is damaged or has other fields than `config`.
    """
    file = path / CONFIG
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a config, it does not parse as JSON ({error}).") from error
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    if not isinstance(fields, dict) or set(fields) != known:
        came = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(
            f"{file}: not a config of this experiment: its fields are {came}, those allowed {sorted(known)}."
        )
    return config(**{key: tuple(item) if isinstance(item, list) else item for key, item in fields.items()})
