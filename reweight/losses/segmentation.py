"""Losses of segmentation: Dice, whose ratio is of sums over the batch, plain and balanced between groups of images."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.losses.base import BatchLoss, of_sums
from reweight.losses.classification import cross_entropy

__all__ = [
    "DiceSums",
    "batch_fair_error_bound",
    "dice_errors",
    "dice_loss",
    "dice_sums",
    "error_bound_weights",
    "fair_error_bound_dice",
    "group_dice_sums",
]

Pixels = Float[Array, "batch *pixels classes"]
Labels = Int[Array, "batch *pixels"]
Groups = Int[Array, " batch"]
Mask = Bool[Array, " batch"] | Num[Array, " batch"]


class DiceSums(NamedTuple):
    """Sums of :math:`py`, :math:`p^2` and :math:`y^2` over pixels, per class; those of disjoint images add up."""

    products: Float[Array, "... classes"]
    predicted: Float[Array, "... classes"]
    labelled: Float[Array, "... classes"]


def _image_sums(function: str, name: str, values: Pixels, labels: Labels, mask: Mask | None) -> DiceSums:
    """The sums of each image `[B, C]`, from probs or logits, without pixels whose label is no class; 0 where masked."""
    _checks.array(function, name, values, kind="float")
    shape = jnp.shape(values)
    if len(shape) < 2:
        _checks.fail(function, name, f"of shape {shape}", "an array [batch, ..., classes]")
    _checks.array(function, "labels", labels, shape=shape[:-1], kind="integer")
    _checks.mask(function, "mask", mask, jnp.zeros(shape[:1]), like_name=f"the first axis of {name}")
    kept = _checks.kept(mask, shape[:1]).reshape((-1,) + (1,) * (len(shape) - 2))
    known = (labels >= 0) & (labels < shape[-1]) & kept
    dtype = _checks.accumulation_dtype(values)
    p = jnp.where(known[..., None], values, 0).astype(dtype)
    if name == "logits":
        p = jnp.where(known[..., None], jax.nn.softmax(p), 0)
    y = jax.nn.one_hot(jnp.where(known, labels, -1), shape[-1], dtype=dtype)
    pixels = tuple(range(1, len(shape) - 1))
    return DiceSums(*(jnp.sum(x, axis=pixels) for x in (p * y, p**2, y)))


def dice_sums(probs: Pixels, labels: Labels, *, mask: Mask | None = None) -> DiceSums:
    """The sums over a batch of which the Dice errors are ratios.

    Args:
      probs: of the classes `[B, ..., C]`.
      labels: class ids of the pixels `[B, ...]`; a pixel whose label is no class is left out.
      mask: boolean or 0/1 `[B]`: which images count; what it hides is never read. Default: all.

    Returns:
      `DiceSums` of arrays `[C]`, float32 or wider, which add up over shards and microbatches.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers.
    """
    return _total(_image_sums("losses.segmentation.dice_sums", "probs", probs, labels, mask))


def _total(images: DiceSums) -> DiceSums:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), images)


def group_dice_sums(
    probs: Pixels, labels: Labels, groups: Groups, *, num_groups: int, mask: Mask | None = None
) -> tuple[DiceSums, Float[Array, " groups"]]:
    """`dice_sums` of each group of images, and the numbers of their images.

    Args:
      probs: as for `dice_sums`.
      labels: as for `dice_sums`.
      groups: of the images `[B]`, in 0..G-1; an image with another id is in no group.
      num_groups: G, static.
      mask: as for `dice_sums`.

    Returns:
      `DiceSums` of arrays `[G, C]`, and the numbers `[G]`; both add up over shards and microbatches.

    Raises:
      ValueError: if the shapes do not fit, or labels or groups are not integers.
    """
    function = "losses.segmentation.group_dice_sums"
    images = _image_sums(function, "probs", probs, labels, mask)
    return _by_group(function, images, groups, num_groups, mask)


def _by_group(
    function: str, images: DiceSums, groups: Groups, num_groups: int, mask: Mask | None
) -> tuple[DiceSums, Float[Array, " groups"]]:
    like = images.products
    _checks.array(function, "groups", groups, shape=like.shape[:1], kind="integer")
    _checks.number(function, "num_groups", num_groups, low=1, open_high=True, integer=True)
    known = (groups >= 0) & (groups < num_groups) & _checks.kept(mask, like.shape[:1])
    ids = jnp.where(known, groups, num_groups)

    def total(rows: Array) -> Array:
        return jax.ops.segment_sum(rows, ids, num_groups)

    return jax.tree.map(total, images), total(known.astype(like.dtype))


def dice_errors(sums: DiceSums, *, smooth: float = 1e-5) -> Float[Array, "..."]:
    r"""One minus the soft Dice coefficient, :math:`1 - (2 \sum py + s) / (\sum p^2 + \sum y^2 + s)`, per class.

    Args:
      sums: of arrays `[..., C]`; take the ratio after adding.
      smooth: :math:`s`, in (0, inf).

    Returns:
      Errors `[..., C]`, in [0, 1]; 0 for a class that is neither there nor predicted.

    Raises:
      ValueError: if the sums differ in shape, or `smooth` is out of range.

    References:
      Milletari et al., *V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation*, 2016,
      arXiv 1606.04797.
    """
    function = "losses.segmentation.dice_errors"
    _checks.number(function, "smooth", smooth, low=0, open_low=True, open_high=True)
    for name, value in zip(DiceSums._fields, sums, strict=True):
        _checks.array(function, name, value, shape=jnp.shape(sums.products), kind="float")
    dtype = _checks.accumulation_dtype(*sums)
    products, predicted, labelled = (jnp.asarray(value).astype(dtype) for value in sums)
    return 1 - (2 * products + smooth) / (predicted + labelled + smooth)


def dice_loss(probs: Pixels, labels: Labels, *, smooth: float = 1e-5, mask: Mask | None = None) -> Float[Array, ""]:
    """Mean of `dice_errors` of the batch over the classes: a scalar.

    The ratio is of sums over the global batch. Under gradient accumulation add the `dice_sums`, or use
    `batch_fair_error_bound`.

    Args:
      probs: as for `dice_sums`.
      labels: as for `dice_sums`.
      smooth: as for `dice_errors`.
      mask: as for `dice_sums`.

    Returns:
      The loss, in [0, 1], float32 or wider; 0 with zero gradient if all is masked.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or `smooth` is out of range.

    References:
      Milletari et al., *V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation*, 2016,
      arXiv 1606.04797.
    """
    images = _image_sums("losses.segmentation.dice_loss", "probs", probs, labels, mask)
    return jnp.mean(dice_errors(_total(images), smooth=smooth))


def error_bound_weights(
    errors: Float[Array, " groups"], present: Bool[Array, " groups"] | Num[Array, " groups"], *, gamma: float = 1.0
) -> Float[Array, " groups"]:
    r"""Weights of groups from their errors, :math:`\tanh((\min_h E_h / E_g)^\gamma)`: worse groups get less.

    The minimum is over the groups that are present. The best group has :math:`\tanh(1) = 0.76`, not 1, and so have all
    at :math:`\gamma = 0`.

    Args:
      errors: of the groups `[G]`, non-negative.
      present: boolean, 0/1 or numbers of images `[G]`. The error of an absent group is never read.
      gamma: :math:`\gamma`, in [0, inf).

    Returns:
      Weights `[G]` in [0, tanh(1)], float32 or wider, without gradient; tanh(1) for an absent group and for one
      without error.

    Raises:
      ValueError: if the shapes differ, or `gamma` is out of range.

    References:
      Tian et al., *FairSeg: A Large-Scale Medical Image Segmentation Dataset for Fairness Learning Using Segment
      Anything Model with Fair Error-Bound Scaling*, 2024, arXiv 2311.02189. In the released code an absent group has
      error 0 and counts as present, which takes the weights of the others to 0.
    """
    function = "losses.segmentation.error_bound_weights"
    _checks.array(function, "errors", errors, ndim=1, kind="float")
    _checks.array(function, "present", present, shape=jnp.shape(errors))
    _checks.number(function, "gamma", gamma, low=0, open_high=True)
    there = jnp.asarray(present) != 0
    wide = jax.lax.stop_gradient(jnp.asarray(errors)).astype(_checks.accumulation_dtype(errors))
    wide = jnp.where(there, jnp.maximum(wide, 0), jnp.inf)
    some = there & (wide > 0)
    return jnp.tanh(jnp.where(some, jnp.min(wide) / jnp.where(some, wide, 1), 1) ** gamma)


def _image_weights(
    function: str, images: DiceSums, groups: Groups, mask: Mask | None, *, num_groups: int, gamma: float, smooth: float
) -> Float[Array, " batch"]:
    sums, sizes = _by_group(function, images, groups, num_groups, mask)
    errors = jnp.sum(dice_errors(sums, smooth=smooth), axis=-1)
    weights = error_bound_weights(errors, sizes, gamma=gamma)
    known = (groups >= 0) & (groups < num_groups)
    return jnp.where(known, weights[jnp.where(known, groups, 0)], jnp.tanh(1.0))


def _weighted(images: DiceSums, weights: Float[Array, " batch"]) -> DiceSums:
    """The sums of predictions that are multiplied by a weight an image."""
    w = weights[:, None]
    return DiceSums(w * images.products, w**2 * images.predicted, images.labelled)


def fair_error_bound_dice(
    logits: Pixels,
    labels: Labels,
    groups: Groups,
    *,
    num_groups: int,
    gamma: float = 1.0,
    smooth: float = 1e-5,
    mask: Mask | None = None,
) -> Float[Array, ""]:
    r"""Fair error-bound scaling: the Dice loss of predictions scaled by `error_bound_weights` of their group, a scalar.

    The error of a group is the sum of its `dice_errors` over the classes. It is the predictions of an image that are
    multiplied, not its loss; the weights are constant in the gradient. Group errors and Dice are ratios of sums over
    the global batch; under gradient accumulation use `batch_fair_error_bound`.

    Args:
      logits: of the classes `[B, ..., C]`, any scale.
      labels: as for `dice_sums`.
      groups: as for `group_dice_sums`. An image in no group has the weight of the best.
      num_groups: G, static.
      gamma: as for `error_bound_weights`.
      smooth: as for `dice_errors`.
      mask: as for `dice_sums`.

    Returns:
      The loss, float32 or wider; 0 with zero gradient if all is masked.

    Raises:
      ValueError: if the shapes do not fit, labels or groups are not integers, or a hyperparameter is out of range.

    References:
      Tian et al., *FairSeg: A Large-Scale Medical Image Segmentation Dataset for Fairness Learning Using Segment
      Anything Model with Fair Error-Bound Scaling*, 2024, arXiv 2311.02189.
    """
    function = "losses.segmentation.fair_error_bound_dice"
    images = _image_sums(function, "logits", logits, labels, mask)
    weights = _image_weights(function, images, groups, mask, num_groups=num_groups, gamma=gamma, smooth=smooth)
    return jnp.mean(dice_errors(_total(_weighted(images, weights)), smooth=smooth))


class _Scaled(NamedTuple):
    """The weight of each image, the statistics of the Dice loss under these weights, and images per labelled pixel."""

    weights: Float[Array, " batch"]
    dice: Any
    images_per_pixel: Float[Array, ""]


def batch_fair_error_bound(
    num_groups: int, *, gamma: float = 1.0, smooth: float = 1e-5, dice_weight: float = 0.8
) -> BatchLoss:
    """Cross-entropy and `fair_error_bound_dice` together, `1 - dice_weight` of the one, as a `BatchLoss`.

    Weights and Dice are of the global batch, exact in microbatches. The mean over the batch has value and gradient of
    the whole; cross-entropy is the mean over the labelled pixels of the batch.

    Args:
      num_groups: G, static.
      gamma: as for `error_bound_weights`.
      smooth: as for `dice_errors`.
      dice_weight: in [0, 1]; the paper takes 0.8 for an adapter of SAM and 0.5 for TransUNet.

    Returns:
      A `BatchLoss` without state, of the signals `logits` `[B, ..., C]`, `labels` `[B, ...]` and `groups` `[B]`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Tian et al., *FairSeg: A Large-Scale Medical Image Segmentation Dataset for Fairness Learning Using Segment
      Anything Model with Fair Error-Bound Scaling*, 2024, arXiv 2311.02189.
    """
    function = "losses.segmentation.batch_fair_error_bound"
    _checks.number(function, "num_groups", num_groups, low=1, open_high=True, integer=True)
    _checks.number(function, "gamma", gamma, low=0, open_high=True)
    _checks.number(function, "smooth", smooth, low=0, open_low=True, open_high=True)
    _checks.number(function, "dice_weight", dice_weight, low=0, high=1)
    names = ("logits", "labels", "groups")

    def terms(logits: Pixels, labels: Labels, weights: Float[Array, " batch"]) -> DiceSums:
        return _weighted(_image_sums(function, "logits", logits, labels, None), weights)

    def value(sums: DiceSums) -> Float[Array, ""]:
        return jnp.mean(dice_errors(sums, smooth=smooth))

    dice = of_sums(terms, value, signals=("logits", "labels", "weights"), name=function)

    def statistics(state: tuple[()], **given: Any) -> tuple[_Scaled, tuple[()]]:
        _checks.require(function, given, names)
        mask = given.get("mask")
        images = _image_sums(function, "logits", given["logits"], given["labels"], mask)
        weights = _image_weights(
            function, images, given["groups"], mask, num_groups=num_groups, gamma=gamma, smooth=smooth
        )
        found, _ = dice.statistics((), **{**given, "weights": weights})
        count = jnp.sum(_checks.kept(mask, weights.shape)) / jnp.maximum(jnp.sum(images.labelled), 1)
        return _Scaled(weights, found, count), state

    def losses(statistics: _Scaled, **given: Any) -> Float[Array, " batch"]:
        _checks.require(function, given, names)
        overlap = dice.losses(statistics.dice, **{**given, "weights": statistics.weights})
        logits, labels, kept = given["logits"], given["labels"], _checks.kept(given.get("mask"), overlap.shape)
        known = (labels >= 0) & (labels < logits.shape[-1]) & kept.reshape((-1,) + (1,) * (labels.ndim - 1))
        entropies = jnp.where(known, cross_entropy(jnp.where(known[..., None], logits, 0), labels), 0)
        total = jnp.sum(entropies.reshape(kept.size, -1), axis=1)
        return dice_weight * overlap + (1 - dice_weight) * statistics.images_per_pixel * total

    return BatchLoss(lambda key=None: (), statistics, losses, names)
