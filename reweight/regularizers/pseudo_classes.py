"""Extra classes made of those at hand, which prepare features for classes to come.

A network that must also tell a rotated seven from an upright one, or a mixture of two digits from both, spreads its
features wider than the labels ask for. The head gets the extra outputs for training only.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from reweight import _checks
from reweight.regularizers.mixup import Mixture, mix

__all__ = ["PseudoClasses", "mixed_classes", "rotated_classes"]


class PseudoClasses(NamedTuple):
    """Examples and their labels among true classes and pseudo-classes; -1 where there is no label."""

    inputs: Num[Array, "batch ..."]
    labels: Int[Array, "batch ..."]


def rotated_classes(
    images: Num[Array, "batch side side channels"], labels: Int[Array, " batch"], *, num_classes: int
) -> PseudoClasses:
    """Every image in its four orientations, each turn by 90 degrees a class of its own: labels `y + C * turns`.

    Args:
      images: square ones `[B, S, S, ...]`.
      labels: integers in [0, C) `[B]`; any other stays without a label.
      num_classes: C, of the true classes; there are 4 C with the turned ones.

    Returns:
      Images `[B, 4, S, S, ...]`, the one that is not turned first, and labels `[B, 4]`. With the first two axes made
      one, a batch four times as large; as they are, four views for a contrastive loss.

    Raises:
      ValueError: if the images are not square, the labels do not fit them, or `num_classes` is not positive.

    References:
      Lee, Hwang and Shin, *Self-supervised Label Augmentation via Input Transformations*, 2020, arXiv 1910.05872. Roy
      et al., *A Bag of Tricks for Few-Shot Class-Incremental Learning*, 2024, arXiv 2403.14392.
    """
    function = "regularizers.pseudo_classes.rotated_classes"
    _checks.array(function, "images", images, kind="number")
    shape = jnp.shape(images)
    if len(shape) < 3 or shape[1] != shape[2]:
        _checks.fail(function, "images", f"of shape {shape}", "square images [B, S, S, ...]")
    known = _known(function, labels, shape[:1], num_classes)
    turns = jnp.arange(4, dtype=jnp.result_type(labels))
    turned = jnp.stack([jnp.rot90(images, turn, axes=(1, 2)) for turn in range(4)], axis=1)
    return PseudoClasses(turned, jnp.where(known[:, None], labels[:, None] + num_classes * turns, -1))


def _known(function: str, labels: Array, size: tuple[int, ...], num_classes: int) -> Array:
    _checks.array(function, "labels", labels, shape=size, kind="integer")
    _checks.number(function, "num_classes", num_classes, low=1, integer=True)
    return (jnp.asarray(labels) >= 0) & (labels < num_classes)


def mixed_classes(
    inputs: Float[Array, "batch *features"], labels: Int[Array, " batch"], mixture: Mixture, *, num_classes: int
) -> PseudoClasses:
    r"""Mixtures of two examples, each pair of classes :math:`a < b` a class of its own.

    The pairs are numbered from C on in the order (0, 1), (0, 2), …, (0, C - 1), (1, 2), …: which of the two has the
    larger weight does not matter, so weights near one half are best, such as those of `draw_mixture(..., alpha=20.0,
    per_example=True)`.

    Args:
      inputs: a row an example `[B, ...]`.
      labels: integers `[B]`.
      mixture: of two rows each, as `draw_mixture` gives it.
      num_classes: C, of the true classes; there are C (C + 1) / 2 with the mixed ones.

    Returns:
      Mixtures of the shape of `inputs`, and labels `[B]`: -1 where both rows are of one class, or one has no label.

    Raises:
      ValueError: if the shapes do not fit, a mixture is not of two rows, or `num_classes` is not positive.

    References:
      Zhu et al., *Class-Incremental Learning via Dual Augmentation*, 2021. Roy et al., *A Bag of Tricks for Few-Shot
      Class-Incremental Learning*, 2024, arXiv 2403.14392.
    """
    function = "regularizers.pseudo_classes.mixed_classes"
    _checks.array(function, "inputs", inputs, kind="float")
    known = _known(function, labels, jnp.shape(inputs)[:1], num_classes)
    _checks.array(function, "mixture.partners", mixture.partners, shape=(jnp.shape(inputs)[0], 2), kind="integer")
    labels = jnp.where(known, labels, -1)
    both = jnp.take(labels, mixture.partners, mode="fill", fill_value=-1)
    low, high = jnp.min(both, axis=1), jnp.max(both, axis=1)
    pair = low * (2 * num_classes - low - 1) // 2 + high - low - 1
    return PseudoClasses(mix(inputs, mixture), jnp.where((low >= 0) & (low < high), num_classes + pair, -1))
