"""What data a run is on: a set, and the variant of it."""

import dataclasses
from typing import Literal, get_args

from reweight import _checks

__all__ = ["EMBEDDED", "DataConfig", "NoiseKind"]

NoiseKind = Literal["symmetric", "pair", "instance"]

# Sets that come with scikit-learn and need no network.
EMBEDDED = ("digits", "breast_cancer", "wine", "diabetes")
TFDS_PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A data set and its variant; everything about it is a deterministic function of these fields.

    A variant is a view: it selects and relabels examples of the training split and leaves the prepared files alone, so
    that it costs no disk and works for every set. The order is long tail, planted attribute, label noise, groups. The
    test split has no long tail and no noise, and in it the planted attribute is independent of the class.

    Raises:
      ValueError: if a field is out of range; the message names it. What depends on the set (its name, its features,
        whether it has classes) is checked when it is opened.
    """

    name: str = "digits"
    """One of digits, breast_cancer, wine, diabetes, or a TFDS name such as tfds:cifar100 or tfds:imagenette/320px."""
    long_tail: float = 1.0
    """Imbalance ratio: the largest class has so many times the examples of the smallest. 1 leaves them as they are."""
    label_noise: float = 0.0
    """The share of wrong labels in each class, in [0, 1)."""
    noise_kind: NoiseKind = "symmetric"
    """Wrong labels are uniform over the other classes (symmetric), the next class (pair), or depend on the input, and
    so does which labels are wrong (instance, which reads all inputs once). See `data.variants.flip_labels`."""
    spurious: float | None = None
    """Plants a binary attribute in the inputs that agrees with the class's parity for this share of each class."""
    groups: tuple[str, ...] = ()
    """Features whose product is the group: label, clean_label, attribute (the planted one), or an integer feature."""
    seed: int = 0
    """Draws the variant; the split into training and test does not depend on it."""
    train_split: str = "train"
    """The split of a TFDS set to train on, such as train[:80%]."""
    test_split: str = "test"
    """The split of a TFDS set to test on, such as validation."""
    image_size: int | None = None
    """Scales the shorter side of images to this many pixels and crops the centre; needed if sizes differ."""
    input_feature: str | None = None
    """The feature of a TFDS set to predict from, such as image. Default: what the set declares."""
    label_feature: str | None = None
    """The feature of a TFDS set to predict. Default: what the set declares."""
    cache: str | None = None
    """Folder of prepared sets. Default: the environment variable REWEIGHT_CACHE, or else ~/.cache/reweight."""

    def __post_init__(self) -> None:
        function = "data.DataConfig"
        if self.name not in EMBEDDED and not (self.name.startswith(TFDS_PREFIX) and len(self.name) > len(TFDS_PREFIX)):
            _checks.fail(function, "name", repr(self.name), f"one of {', '.join(EMBEDDED)}, or tfds:<name>")
        _checks.number(function, "long_tail", self.long_tail, low=1, open_high=True)
        _checks.number(function, "label_noise", self.label_noise, low=0, high=1, open_high=True)
        _checks.choice(function, "noise_kind", self.noise_kind, get_args(NoiseKind))
        if self.spurious is not None:
            _checks.number(function, "spurious", self.spurious, low=0, high=1)
        if not isinstance(self.groups, tuple):
            _checks.fail(function, "groups", repr(self.groups), "a tuple of feature names")
        if "attribute" in self.groups and self.spurious is None:
            _checks.fail(function, "groups", repr(self.groups), "attribute only where `spurious` plants one")
        if len(set(self.groups)) != len(self.groups):
            _checks.fail(function, "groups", repr(self.groups), "distinct feature names")
        _checks.number(function, "seed", self.seed, low=0, high=2**32 - 1, integer=True)
        if self.image_size is not None:
            _checks.number(function, "image_size", self.image_size, low=1, integer=True)
        if self.name in EMBEDDED:
            for field in dataclasses.fields(self):
                if field.name in ("train_split", "test_split", "image_size", "input_feature", "label_feature"):
                    value = getattr(self, field.name)
                    if value != field.default:
                        _checks.fail(function, field.name, repr(value), f"{field.default!r} for {self.name!r}")
