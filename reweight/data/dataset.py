"""Opening a data set: in memory (`load`) or read as it is needed (`stream`)."""

import dataclasses
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Int

from reweight import _checks
from reweight.data import variants
from reweight.data.config import DataConfig
from reweight.data.records import CHUNK, Arrays, Records

__all__ = ["Dataset", "Info", "Source", "Split", "Stream", "load", "stream"]

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Info:
    """What is known of a data set in the variant at hand; plain numbers, so that it can go into a run's record."""

    name: str
    split: str
    size: int
    """The number of examples n."""
    input_shape: tuple[int, ...]
    """The shape of one example."""
    num_classes: int
    """0 for regression."""
    num_outputs: int
    """What a model needs: the number of classes, or 1 for regression."""
    num_groups: int
    """0 where no group is defined."""
    num_indices: int
    """Ids are in [0, num_indices): the size of the split before the variant."""
    class_counts: tuple[int, ...]
    """Examples a given label, `[num_classes]`."""
    group_counts: tuple[int, ...]
    """Examples a group, `[num_groups]`."""
    label_mean: float
    """A regression target is `label_mean + label_std · label`; 0 for classes."""
    label_std: float
    """See `label_mean`; 1 for classes."""


class Source(Protocol):
    """Examples that can be read at random."""

    @property
    def info(self) -> Info:
        """What is known of the examples."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: Int[np.ndarray, " batch"]) -> Arrays:
        """The examples at positions `rows` in [0, n), as arrays that share the leading axis."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
      arrays: `inputs` float32 `[n, ...]`, `labels` and `clean_labels` `[n]` int32 (float32 for regression), `indices`
        `[n]` int32, and `groups` `[n]` int32 where the config defines them.
      info: sizes and counts.
    """

    arrays: Arrays
    info: Info

    def __len__(self) -> int:
        return self.info.size

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def read(self, rows: Int[np.ndarray, " batch"]) -> Arrays:
        """The examples at positions `rows`."""
        return {name: values[rows] for name, values in self.arrays.items()}


class Stream:
    """A `Source` over a prepared TFDS set, what `stream` returns. Pickles as its config, for worker processes."""

    info: Info

    def __init__(self, config: DataConfig, split: Split) -> None:
        self._made_from = (config, split)
        train = split == "train"
        self._records = Records(config, train=train)
        classes = self._records.num_classes
        if not classes:
            _refuse_class_variants(config)
        values = self._records.labels
        self._rows = np.arange(len(values))
        if train and config.long_tail > 1:
            if not np.bincount(values, minlength=classes).all():
                allowed = f"1 for {config.name!r}, which has a class without examples"
                _checks.fail("data.DataConfig", "long_tail", repr(config.long_tail), allowed)
            self._rows = variants.long_tail_rows(values, classes, config.long_tail, config.seed)
        clean = given = values[self._rows]
        self._attribute: np.ndarray | None = None
        if config.spurious is not None:
            agreement = config.spurious if train else 0.5
            self._attribute = variants.plant_attribute(clean, classes, agreement, config.seed)
        if train and config.label_noise > 0:
            projected = self._projections(config.seed) if config.noise_kind == "instance" else None
            given = variants.flip_labels(
                clean, classes, config.label_noise, config.noise_kind, config.seed, projected=projected
            )
        columns: Arrays = {"labels": given, "clean_labels": clean, "indices": self._rows.astype(np.int32)}
        num_groups = 0
        if config.groups:
            columns["groups"], num_groups = self._groups(config, given, clean)
        self._columns = columns
        shape = self._records.input_shape
        self.info = Info(
            name=config.name,
            split=split,
            size=len(self._rows),
            input_shape=shape if self._attribute is None or len(shape) > 1 else (shape[0] + 1,),
            num_classes=classes,
            num_outputs=classes or 1,
            num_groups=num_groups,
            num_indices=len(values),
            class_counts=tuple(np.bincount(given, minlength=classes).tolist()) if classes else (),
            group_counts=tuple(np.bincount(columns["groups"], minlength=num_groups).tolist()) if num_groups else (),
            label_mean=self._records.label_mean,
            label_std=self._records.label_std,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_from

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Int[np.ndarray, " batch"]) -> Arrays:
        """The examples at positions `rows`, read from disk."""
        inputs = self._records.inputs(self._rows[rows])
        if self._attribute is not None:
            inputs = _with_marker(inputs, self._attribute[rows])
        return {"inputs": inputs} | {name: values[rows] for name, values in self._columns.items()}

    def _projections(self, seed: int) -> np.ndarray:
        """The inputs as they are, without a planted attribute, along random directions."""
        pieces = np.array_split(self._rows, -(-len(self._rows) // CHUNK))
        classes = self._records.num_classes
        return np.concatenate([variants.projections(self._records.inputs(piece), classes, seed) for piece in pieces])

    def _groups(self, config: DataConfig, given: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, int]:
        """Group ids, a number whose digits are the features, and how many there are."""
        classes = self._records.num_classes
        ids, count = np.zeros(len(self._rows), np.int32), 1
        for name in config.groups:
            if name == "attribute":
                assert self._attribute is not None
                values, size = self._attribute, 2
            elif name in ("label", "clean_label"):
                values, size = given if name == "label" else clean, classes
            else:
                values, size = self._records.category(name)
                values = values[self._rows]
            ids, count = (ids * size + values).astype(np.int32), count * size
        return ids, count


def _refuse_class_variants(config: DataConfig) -> None:
    """Raises for a variant that needs classes, of a set that has none."""
    plain = DataConfig()
    for field in ("long_tail", "label_noise", "spurious"):
        if getattr(config, field) != getattr(plain, field):
            allowed = f"{getattr(plain, field)!r} for {config.name!r}, a regression set"
            _checks.fail("data.DataConfig", field, repr(getattr(config, field)), allowed)
    if {"label", "clean_label"} & set(config.groups):
        allowed = f"features other than the label for {config.name!r}, a regression set"
        _checks.fail("data.DataConfig", "groups", repr(config.groups), allowed)


def _with_marker(inputs: np.ndarray, attribute: np.ndarray) -> np.ndarray:
    """Shows a binary attribute in the inputs, as +1 or -1.

    In images it fills the upper left square, a quarter as high as the image; to vectors it is one more feature.
    """
    sign = (2 * attribute - 1).astype(inputs.dtype)
    if inputs.ndim == 2:
        return np.concatenate([inputs, sign[:, None]], axis=1)
    side = max(inputs.shape[1] // 4, 1)
    inputs[:, :side, :side] = sign.reshape(-1, *[1] * (inputs.ndim - 1))
    return inputs


def load(config: DataConfig | str, split: Split) -> Dataset:
    """A data set in memory, prepared on first use.

    Inputs are float32. Bytes (images) are mapped to [-1, 1]; other inputs are standardised by the mean and standard
    deviation of the training split, feature by feature (channel by channel for images). Regression targets are
    standardised likewise. These maps do not depend on the variant.

    Args:
      config: the set and its variant, or the name of a set as it is.
      split: `"train"` or `"test"`.

    Returns:
      The examples as arrays, see `Dataset`. An example keeps its id in every variant: its position in the split.

    Raises:
      ValueError: if a field of the config does not fit the set; the message names it.
      OSError: if the set can't be prepared, or its files are damaged.
    """
    source = stream(config, split)
    return Dataset(source.read(np.arange(len(source))), source.info)


def stream(config: DataConfig | str, split: Split) -> Stream:
    """A data set that stays on disk: examples are read and decoded when they are asked for.

    For sets that do not fit in memory. The labels of all examples are read when the set is first opened, and kept in
    the cache folder. All else is as in `load`.
    """
    _checks.choice("data.load", "split", split, get_args(Split))
    return Stream(DataConfig(config) if isinstance(config, str) else config, split)
