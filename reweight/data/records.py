"""The examples of a prepared TFDS set as arrays: features found, labels collected, images scaled, inputs normalised."""

import functools
import hashlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int
from PIL import Image

from reweight import _checks
from reweight.data.config import DataConfig
from reweight.data.prepare import cache_dir, prepare

__all__ = ["Arrays", "Records"]

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
CONFIG = "data.DataConfig"
CHUNK = 1024  # records held at once where only a column of them is kept


class Records:
    """One split of a prepared set, before any variant.

    Attributes:
      num_classes: 0 for regression.
      input_shape: the shape of an input, after scaling.
      labels: of all records `[n]`: int32, or float32 and standardised for regression.
      label_mean: what was subtracted from regression targets; 0 for classes.
      label_std: what they were divided by then; 1 for classes.
    """

    def __init__(self, config: DataConfig, *, train: bool) -> None:
        self._config = config
        self._builder = prepare(config)
        self._split_field = "train_split" if train else "test_split"
        self._split: str = getattr(config, self._split_field)
        self._check_split()
        self._input, self._label = self._supervised()
        self._skip = _image_decoders(self._builder.info.features)
        self.input_shape = self._check_inputs()
        self.num_classes = _categories(_find(self._builder.info.features, self._label))
        values = self._column(self._label)
        self.label_mean, self.label_std = 0.0, 1.0
        if self.num_classes:
            self.labels: np.ndarray = values.astype(np.int32)
        else:
            targets = values if train else Records(config, train=True)._column(self._label)
            self.label_mean, self.label_std = float(targets.mean()), float(targets.std()) or 1.0
            self.labels = ((values - self.label_mean) / self.label_std).astype(np.float32)

    def inputs(self, rows: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch ..."]:
        """The normalised inputs of some records."""
        values = self._raw_inputs(rows)
        if values.dtype == np.uint8:
            return values.astype(np.float32) / 127.5 - 1
        mean, std = self._input_statistics
        return ((values - mean) / std).astype(np.float32)

    def category(self, name: str) -> tuple[Int[np.ndarray, " n"], int]:
        """The values of an integer feature for all records, and how many values it can take."""
        feature = _find(self._builder.info.features, name)
        size = 0 if feature is None else _categories(feature)
        if not size:
            known = [path for path, part in _leaves(self._builder.info.features) if _categories(part)]
            allowed = f"label, clean_label, attribute, or a feature with classes ({', '.join(known) or 'none'})"
            _checks.fail(CONFIG, "groups", f"{name!r}, for {self._config.name!r}", allowed)
        return self._column(name).astype(np.int32), size

    def _supervised(self) -> tuple[str, str]:
        """The names of the features to predict from and to predict."""
        info, config = self._builder.info, self._config
        keys = info.supervised_keys
        declared = keys if keys is not None and all(isinstance(key, str) for key in keys[:2]) else (None, None)
        names = []
        for field, default in zip(("input_feature", "label_feature"), declared, strict=False):
            name = getattr(config, field) or default
            if name is None or _find(info.features, name) is None:
                known = ", ".join(path for path, _ in _leaves(info.features))
                _checks.fail(CONFIG, field, repr(name), f"a feature of {config.name!r} ({known})")
            names.append(name)
        label = _find(info.features, names[1])
        if not _categories(label) and (label.shape or not np.issubdtype(label.np_dtype, np.floating)):
            _checks.fail(
                CONFIG, "label_feature", f"{names[1]!r}, {label!r}", "a feature with classes or a float scalar"
            )
        return names[0], names[1]

    def _check_inputs(self) -> tuple[int, ...]:
        """The shape of the inputs, after the checks of what can be read at all."""
        feature, size = _find(self._builder.info.features, self._input), self._config.image_size
        shape = feature.shape
        readable = feature.np_dtype == np.uint8 or np.issubdtype(feature.np_dtype, np.floating)
        if not readable or not shape:
            _checks.fail(CONFIG, "input_feature", f"{self._input!r}, {feature!r}", "an array of bytes or floats")
        if size is not None:
            if feature.np_dtype != np.uint8 or len(shape) != 3:
                _checks.fail(CONFIG, "image_size", repr(size), f"None for {self._config.name!r}, which has no images")
            shape = (size, size, shape[-1])
        if any(extent is None for extent in shape):
            allowed = f"a number of pixels for {self._config.name!r}, whose inputs have the shape {shape}"
            _checks.fail(CONFIG, "image_size", "None", allowed)
        return tuple(shape)

    @functools.cached_property
    def _source(self) -> Any:
        return self._open(None)

    def _open(self, decoders: Any) -> Any:
        return self._builder.as_data_source(split=self._split, decoders=decoders)

    def _check_split(self) -> None:
        splits = self._builder.info.splits
        try:
            size = splits[self._split].num_examples
        except (KeyError, ValueError, AssertionError):
            size = 0
        if not size:
            allowed = f"a split of {self._config.name!r} ({', '.join(splits)}), or a part of one, such as train[:80%]"
            _checks.fail(CONFIG, self._split_field, repr(self._split), allowed)

    def _examples(self, source: Any, rows: Sequence[int]) -> list[Any]:
        try:
            return list(source.__getitems__(rows))
        except Exception as error:
            folder = self._builder.data_path
            message = f"{self._config.name}: the files in {folder} are damaged; delete the folder to prepare it again"
            raise OSError(f"{message} ({type(error).__name__}: {error})") from error

    def _raw_inputs(self, rows: Int[np.ndarray, " batch"]) -> np.ndarray:
        size = self._config.image_size
        values = [_value(example, self._input) for example in self._examples(self._source, rows.tolist())]
        return np.stack(values if size is None else [_scaled(value, size) for value in values])

    @functools.cached_property
    def _input_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training split, of every entry of the last axis."""
        train = self if self._split_field == "train_split" else Records(self._config, train=True)
        values = train._raw_inputs(np.arange(len(train.labels))).astype(np.float64)
        axes = tuple(range(values.ndim - 1))
        std = values.std(axes)
        return values.mean(axes), np.where(std > 0, std, 1)

    def _column(self, name: str) -> np.ndarray:
        """A scalar feature of all records, from the cache folder once it has been read from the records."""
        info = self._builder.info
        key = hashlib.sha256("\n".join((info.full_name, self._split, name)).encode()).hexdigest()[:16]
        path = cache_dir(self._config) / ".columns" / f"{info.name}-{key}.npz"
        size = len(self._source)
        kept = _read_column(path, size)
        if kept is not None:
            return kept
        source = self._open(self._skip)
        values = np.asarray(
            [
                _value(example, name)
                for start in range(0, size, CHUNK)
                for example in self._examples(source, range(start, min(start + CHUNK, size)))
            ]
        )
        _write_column(path, values)
        return values


def _read_column(path: pathlib.Path, size: int) -> np.ndarray | None:
    """A kept column; None if there is none of that size or the checksum of the archive is wrong."""
    try:
        with np.load(path) as archive:
            values = archive["values"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s); reading the records again.", path, error)
        return None
    return values if len(values) == size else None


def _write_column(path: pathlib.Path, values: np.ndarray) -> None:
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, values=values)
        temporary.replace(path)
    except OSError as error:
        # A cache folder shared by others may be read-only: then the records are read at every start.
        logger.warning("%s can't be kept (%s).", path, error)


def _leaves(features: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """All features with their paths, such as `attributes/Male`."""
    found = []
    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            found += _leaves(feature, f"{prefix}{name}/")
        else:
            found.append((prefix + name, feature))
    return found


def _find(features: Any, name: str) -> Any:
    return dict(_leaves(features)).get(name)


def _value(example: Any, name: str) -> Any:
    for part in name.split("/"):
        example = example[part]
    return example


def _categories(feature: Any) -> int:
    """How many values an integer feature can take; 0 if that isn't known."""
    if isinstance(feature, tfds.features.ClassLabel):
        return int(feature.num_classes or 0)
    return 2 if feature.shape == () and feature.np_dtype == np.bool_ else 0


def _image_decoders(features: Any) -> Any:
    """Decoders that leave images encoded, for reading the rest of a record fast."""
    decoders: dict[str, Any] = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            decoders[name] = _image_decoders(feature)
        elif isinstance(feature, tfds.features.Image):
            decoders[name] = tfds.decode.SkipDecoding()
    return decoders


def _scaled(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image whose shorter side is scaled to `size`."""
    grey = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    width, height = picture.size
    ratio = size / min(width, height)
    picture = picture.resize(
        (max(size, round(width * ratio)), max(size, round(height * ratio))), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    cropped = np.asarray(picture.crop((left, top, left + size, top + size)))
    return cropped[..., None] if grey else cropped
