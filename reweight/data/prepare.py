"""Preparing data sets on disk: once, atomically, without TensorFlow.

A set is written into a temporary folder that is renamed when it is complete, under a lock, so that any number of
processes may ask for the same set at once and one that is killed leaves nothing that looks finished. The embedded sets
carry the digest of every file: a damaged one is noticed and prepared again. A damaged set from elsewhere is never
deleted behind its owner's back: reading it raises an error that names its folder.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator

import tensorflow_datasets as tfds

from reweight import _checks
from reweight.data.builders import ScikitLearn
from reweight.data.config import EMBEDDED, TFDS_PREFIX, DataConfig
from reweight.data.tensorflow_free import download_and_prepare

__all__ = ["cache_dir", "prepare"]

logger = logging.getLogger(__name__)

DIGESTS = "sha256.json"
FILE_FORMAT = "array_record"


def cache_dir(config: DataConfig) -> pathlib.Path:
    """The folder of prepared sets: `config.cache`, or `$REWEIGHT_CACHE`, or `~/.cache/reweight`."""
    return pathlib.Path(config.cache or os.environ.get("REWEIGHT_CACHE") or "~/.cache/reweight").expanduser().resolve()


def prepare(config: DataConfig) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a set, prepared: at once if it already is, otherwise written (or downloaded) first.

    Args:
      config: `name` and `cache` matter; variants are views on the prepared set.

    Returns:
      A builder for `as_data_source`.

    Raises:
      ValueError: if TFDS does not know the name.
      ImportError: if TFDS can't prepare the set without a package that is not installed.
      OSError: if the cache folder can't be written, or a download fails.
    """
    root = cache_dir(config)
    if config.name in EMBEDDED:
        return _prepare_embedded(config.name, root)
    return _prepare_tfds(config.name.removeprefix(TFDS_PREFIX), root)


def _prepare_embedded(name: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
    folder = root / ScikitLearn.name / name / str(ScikitLearn.VERSION)
    # Looked at without the lock first, so that a finished cache may be read-only: the digests are written last.
    if not _intact(folder):
        with _lock(root, name):
            if not _intact(folder):
                if folder.exists():
                    logger.warning("%s is damaged or incomplete; preparing %s again.", folder, name)
                    shutil.rmtree(folder)
                for rest in folder.parent.glob("incomplete.*"):
                    shutil.rmtree(rest)
                # A fifth of a second's work has no need of TFDS's progress bars.
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    _embedded_builder(name, root).download_and_prepare()
                _write_digests(folder)
    return _embedded_builder(name, root)


def _embedded_builder(name: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
    return ScikitLearn(config=name, data_dir=os.fspath(root), file_format=FILE_FORMAT)


def _prepare_tfds(name: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
    builder = _tfds_builder(name, root)
    if not builder.is_prepared():
        with _lock(root, name):
            builder = _tfds_builder(name, root)
            if not builder.is_prepared():
                download_and_prepare(builder)
                builder = _tfds_builder(name, root)
    return builder


def _tfds_builder(name: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=os.fspath(root), file_format=FILE_FORMAT)
    except tfds.core.DatasetNotFoundError as error:
        message = str(error).strip().splitlines()[0]
        _checks.fail("data.DataConfig", "name", repr(TFDS_PREFIX + name), f"a set that TFDS knows ({message})")


@contextlib.contextmanager
def _lock(root: pathlib.Path, name: str) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when that process ends, however it ends."""
    folder = root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / (name.replace("/", "_") + ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != DIGESTS)


def _write_digests(folder: pathlib.Path) -> None:
    temporary = folder / f"{DIGESTS}.{os.getpid()}"
    temporary.write_text(json.dumps({path.name: _digest(path) for path in _files(folder)}, indent=1))
    temporary.replace(folder / DIGESTS)


def _intact(folder: pathlib.Path) -> bool:
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        return bool(digests) and all(_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False
