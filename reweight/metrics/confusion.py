"""Metrics of two classes, each a function of the four sums of the confusion matrix.

The sums add up over shards, microbatches and hosts, and the metrics are ratios of them: add the sums first, then take
the metric. Predictions may be hard (0 or 1) or soft (shares between 0 and 1); of soft ones the metrics have gradients.

    sums = jax.tree.map(operator.add, counts(predictions, labels), counts(more_predictions, more_labels))
    f1 = f_beta(sums)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks

__all__ = [
    "Confusion",
    "accuracy",
    "balanced_accuracy",
    "counts",
    "f_beta",
    "g_mean",
    "jaccard",
    "mcc",
    "precision",
    "recall",
    "specificity",
]

# A share of the examples below which a denominator counts as 0: the inverse of its square is still a float32.
FLOOR = 1e-18


class Confusion(NamedTuple):
    """True positives, false positives, false negatives and true negatives: sums over examples, which add up."""

    tp: Num[Array, "..."]
    fp: Num[Array, "..."]
    fn: Num[Array, "..."]
    tn: Num[Array, "..."]


def counts(
    predictions: Num[Array, "*batch"] | Bool[Array, "*batch"],
    labels: Int[Array, "*batch"] | Bool[Array, "*batch"],
    weights: Num[Array, "..."] | None = None,
    *,
    mask: Bool[Array, "..."] | Num[Array, "..."] | None = None,
) -> Confusion:
    r"""The confusion matrix of a batch: :math:`\mathrm{TP} = \sum_i w_i y_i \hat y_i`, and so on, four sums.

    Args:
      predictions: of the positive class, 0 or 1 or a share in between `[...]`.
      labels: `[...]`, integers or booleans; non-zero is the positive class.
      weights: of the examples, non-negative, broadcast to the predictions. Default: ones.
      mask: boolean or 0/1, broadcast to the predictions; what it hides is never read. Default: all.

    Returns:
      A `Confusion` of scalars, float32 or wider. Those of the pieces of a batch add up to that of the batch.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers or booleans.
    """
    return sums("metrics.confusion.counts", "predictions", predictions, labels, weights, mask)


def sums(
    function: str,
    name: str,
    predictions: Array,
    labels: Array,
    weights: Array | None,
    mask: Array | None,
) -> Confusion:
    """`counts`, with the function and the argument that its errors name."""
    return jax.tree.map(jnp.sum, terms(function, name, predictions, labels, weights, mask))


def terms(
    function: str,
    name: str,
    predictions: Array,
    labels: Array,
    weights: Array | None,
    mask: Array | None,
) -> Confusion:
    """What each example adds to the four sums."""
    _checks.array(function, name, predictions)
    shape = jnp.shape(predictions)
    _checks.array(function, "labels", labels, shape=shape)
    if not jnp.issubdtype(jnp.result_type(labels), jnp.bool_):
        _checks.array(function, "labels", labels, kind="integer")
    _checks.mask(function, "mask", mask, predictions, like_name=name)
    weight: Array = jnp.ones(shape)
    if weights is not None:
        _checks.array(function, "weights", weights, kind="number")
        _checks.broadcasts(function, "weights", weights, predictions, like_name=name)
        weight = jnp.broadcast_to(jnp.asarray(weights), shape)
    predicted = jnp.asarray(predictions)
    dtype = _checks.accumulation_dtype(*(x for x in (predicted, weights) if x is not None))
    if mask is not None:
        predicted, weight = (jnp.where(jnp.asarray(mask) != 0, x, jnp.zeros_like(x)) for x in (predicted, weight))
    predicted, weight, positive = predicted.astype(dtype), weight.astype(dtype), (jnp.asarray(labels) != 0)
    yes, no = weight * positive, weight * ~positive
    return Confusion(yes * predicted, no * predicted, yes * (1 - predicted), no * (1 - predicted))


def accuracy(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Share of right predictions: :math:`(\mathrm{TP} + \mathrm{TN}) / n`.

    Args:
      confusion: sums `[...]`, non-negative, on any common scale.
      undefined: what comes back, without gradient, where the metric is not defined: here, of no example.

    Returns:
      The metric `[...]`, in [0, 1], float32 or wider.

    Raises:
      ValueError: if the four sums differ in shape.
    """
    tp, fp, fn, tn = _shares("accuracy", confusion)
    return _ratio(tp + tn, tp + fp + fn + tn, undefined)


def precision(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Share of the predicted positives that are positive: :math:`\mathrm{TP} / (\mathrm{TP} + \mathrm{FP})`.

    Args:
      confusion: as for `accuracy`.
      undefined: as for `accuracy`; not defined where nothing is predicted positive.

    Returns:
      The metric `[...]`, in [0, 1].

    Raises:
      ValueError: if the four sums differ in shape.
    """
    tp, fp, _, _ = _shares("precision", confusion)
    return _ratio(tp, tp + fp, undefined)


def recall(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Share of the positives that are predicted positive: :math:`\mathrm{TP} / (\mathrm{TP} + \mathrm{FN})`.

    Args:
      confusion: as for `accuracy`.
      undefined: as for `accuracy`; not defined where nothing is positive.

    Returns:
      The metric `[...]`, in [0, 1].

    Raises:
      ValueError: if the four sums differ in shape.
    """
    tp, _, fn, _ = _shares("recall", confusion)
    return _ratio(tp, tp + fn, undefined)


def specificity(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Share of the negatives that are predicted negative: :math:`\mathrm{TN} / (\mathrm{TN} + \mathrm{FP})`.

    Args:
      confusion: as for `accuracy`.
      undefined: as for `accuracy`; not defined where nothing is negative.

    Returns:
      The metric `[...]`, in [0, 1].

    Raises:
      ValueError: if the four sums differ in shape.
    """
    _, fp, _, tn = _shares("specificity", confusion)
    return _ratio(tn, tn + fp, undefined)


def f_beta(confusion: Confusion, *, beta: float = 1.0, undefined: float = 0.0) -> Float[Array, "..."]:
    r""":math:`F_\beta = (1+\beta^2) \mathrm{TP} / ((1+\beta^2) \mathrm{TP} + \beta^2 \mathrm{FN} + \mathrm{FP})`.

    The harmonic mean of precision and recall, in which recall counts :math:`\beta` times as much.

    Args:
      confusion: as for `accuracy`.
      beta: in [0, inf); 0 is precision.
      undefined: as for `accuracy`; not defined where nothing is positive nor predicted so.

    Returns:
      The metric `[...]`, in [0, 1].

    Raises:
      ValueError: if the four sums differ in shape, or `beta` is out of range.
    """
    _checks.number("metrics.confusion.f_beta", "beta", beta, low=0, open_high=True)
    tp, fp, fn, _ = _shares("f_beta", confusion)
    square = beta**2
    return _ratio((1 + square) * tp, (1 + square) * tp + square * fn + fp, undefined)


def jaccard(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Intersection over union: :math:`\mathrm{TP} / (\mathrm{TP} + \mathrm{FP} + \mathrm{FN})`.

    Args:
      confusion: as for `accuracy`.
      undefined: as for `accuracy`; not defined where nothing is positive nor predicted so.

    Returns:
      The metric `[...]`, in [0, 1].

    Raises:
      ValueError: if the four sums differ in shape.
    """
    tp, fp, fn, _ = _shares("jaccard", confusion)
    return _ratio(tp, tp + fp + fn, undefined)


def balanced_accuracy(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Mean of `recall` and `specificity`.

    Args:
      confusion: as for `accuracy`.
      undefined: as for `accuracy`; not defined where one of the classes is missing.

    Returns:
      The metric `[...]`, in [0, 1].

    Raises:
      ValueError: if the four sums differ in shape.
    """
    tp, fp, fn, tn = _shares("balanced_accuracy", confusion)
    both = (tp + fn > FLOOR) & (tn + fp > FLOOR)
    return jnp.where(both, (_ratio(tp, tp + fn, 0.0) + _ratio(tn, tn + fp, 0.0)) / 2, undefined)


def g_mean(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Geometric mean of `recall` and `specificity`; 0 with zero gradient where one of them is 0.

    Args:
      confusion: as for `accuracy`.
      undefined: as for `accuracy`; not defined where one of the classes is missing.

    Returns:
      The metric `[...]`, in [0, 1].

    Raises:
      ValueError: if the four sums differ in shape.
    """
    tp, fp, fn, tn = _shares("g_mean", confusion)
    both = (tp + fn > FLOOR) & (tn + fp > FLOOR)
    root = _root(_ratio(tp, tp + fn, 0.0)) * _root(_ratio(tn, tn + fp, 0.0))
    return jnp.where(both, root, undefined)


def mcc(confusion: Confusion, *, undefined: float = 0.0) -> Float[Array, "..."]:
    r"""Matthews correlation of predictions and labels.

    .. math:: (\mathrm{TP} \cdot \mathrm{TN} - \mathrm{FP} \cdot \mathrm{FN}) / \sqrt{P \hat P N \hat N}

    with the sums of positives and negatives, :math:`P, N`, and of those predicted, :math:`\hat P, \hat N`.

    Args:
      confusion: as for `accuracy`.
      undefined: as for `accuracy`; not defined where a class is missing among the labels or among the predictions.

    Returns:
      The metric `[...]`, in [-1, 1].

    Raises:
      ValueError: if the four sums differ in shape.
    """
    tp, fp, fn, tn = _shares("mcc", confusion)
    margins = (tp + fp, tp + fn, tn + fp, tn + fn)
    defined = jnp.all(jnp.stack([margin > FLOOR for margin in margins]), axis=0)
    one, two, three, four = (_root(jnp.where(defined, margin, 1)) for margin in margins)
    return jnp.where(
        defined, tp / (one * two) * tn / (three * four) - fp / (one * three) * fn / (two * four), undefined
    )


def _shares(function: str, confusion: Confusion) -> Confusion:
    """The four sums as shares of their total, in float32 at least."""
    for name, value in zip(Confusion._fields, confusion, strict=True):
        _checks.array(f"metrics.confusion.{function}", name, value, shape=jnp.shape(confusion[0]), kind="number")
    dtype = _checks.accumulation_dtype(*confusion)
    fields = [jnp.asarray(value).astype(dtype) for value in confusion]
    total = sum(fields[1:], start=fields[0])
    return Confusion(*(field / jnp.where(total > 0, total, 1) for field in fields))


def _ratio(numerator: Array, denominator: Array, undefined: float) -> Array:
    defined = denominator > FLOOR
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), undefined)


def _root(value: Array) -> Array:
    positive = value > FLOOR
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0)
