"""Where metrics go: a file of JSON lines, TensorBoard.

A writer can say where it stands and go back there, so that a run resumed from a checkpoint leaves the file that an
undisturbed one leaves: no line twice, none missing, none cut in half.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from tensorboardX import SummaryWriter

from reweight import _checks

__all__ = ["JsonlWriter", "TensorBoardWriter", "Writer"]

Values = Mapping[str, Any]  # named scalars or small arrays


class Writer(Protocol):
    """Takes the metrics of a run. `fit` calls it on the main process only."""

    def begin(self, step: int, position: Any) -> None:
        """Opens, and undoes what was written past `position`, where the run was at `step` (None: at its start)."""

    def write(self, step: int, values: Values) -> None:
        """Takes the values of a step."""

    def position(self) -> Any:
        """Puts what was written on disk, and says where that ends, in a form that `json` can write."""

    def close(self) -> None:
        """Lets go of the file."""


class JsonlWriter:
    """A line of JSON for every step that is logged: `{"step": 100, "train/loss": 0.31, ...}`.

    Numbers are written in full, and nothing in a line depends on the clock. NaN and infinities are written as Python's
    `json` writes and reads them.

    Args:
      path: the file; its folder is made if it isn't there.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._file: Any = None

    def begin(self, step: int, position: int | None) -> None:
        """Opens the file, and cuts it off at `position`.

        Args:
          step: the step at which the run goes on; of no importance here.
          position: the length of the file in bytes; None at the start of a run.

        Raises:
          ValueError: if the run starts and the file has content, or the file is shorter than `position`.
        """
        del step
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        size = os.path.getsize(self.path) if os.path.exists(self.path) else 0
        if position is None and size:
            _checks.fail(
                "train.JsonlWriter", "path", f"{self.path}, with content", "an empty or a new file for a new run"
            )
        if size < (position or 0):
            came = f"{self.path}, {size} bytes"
            _checks.fail(
                "train.JsonlWriter", "path", came, f"the file of the resumed run, of at least {position} bytes"
            )
        self._file = open(self.path, "ab")  # noqa: SIM115
        self._file.truncate(position or 0)

    def write(self, step: int, values: Values) -> None:
        """Appends a line."""
        line = json.dumps({"step": step, **{name: np.asarray(value).tolist() for name, value in values.items()}})
        self._file.write(f"{line}\n".encode())
        self._file.flush()

    def position(self) -> int:
        """Puts the lines on disk and returns the length of the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class TensorBoardWriter:
    """Scalars for TensorBoard; of an array, one an entry.

    Args:
      directory: the folder of the event files. A resumed run starts a new one, that tells TensorBoard to forget the
        later steps of the ones before.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = os.fspath(directory)
        self._writer: SummaryWriter | None = None

    def begin(self, step: int, position: None) -> None:
        """Opens a new event file.

        Args:
          step: the step after which earlier files no longer count.
          position: None.
        """
        del position
        self._writer = SummaryWriter(self.directory, purge_step=step + 1 if step else None)

    def write(self, step: int, values: Values) -> None:
        """Adds the scalars of a step."""
        assert self._writer is not None
        for name, value in values.items():
            array = np.asarray(value)
            for place in np.ndindex(array.shape):
                self._writer.add_scalar("/".join([name, *map(str, place)]), float(array[place]), step)

    def position(self) -> None:
        """Puts what was written on disk."""
        assert self._writer is not None
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
