"""Losses that are metrics: one minus any metric of the confusion matrix, on predictions that are nearly hard."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.losses.base import BatchLoss, of_sums
from reweight.metrics import confusion
from reweight.metrics.confusion import Confusion

__all__ = ["anyloss", "batch_anyloss", "soft_confusion"]

Metric = Callable[..., Float[Array, ""]]
Labels = Int[Array, "*batch"] | Bool[Array, "*batch"]


def soft_confusion(
    probs: Float[Array, "*batch"],
    labels: Labels,
    weights: Num[Array, "..."] | None = None,
    *,
    scale: float = 73.0,
    threshold: float = 0.5,
    mask: Bool[Array, "..."] | Num[Array, "..."] | None = None,
) -> Confusion:
    r"""The confusion matrix of amplified probabilities :math:`\sigma(L(p - \theta))`: four sums that add up.

    The amplified probability is nearly 0 or 1, and still has a gradient. A metric of these sums is nearly that of the
    thresholded predictions.

    Args:
      probs: of the positive class, in [0, 1] `[...]`.
      labels: `[...]`, integers or booleans; non-zero is the positive class.
      weights: of the examples, non-negative, broadcast to `probs`. Default: ones.
      scale: :math:`L`, how hard the predictions are, in (0, inf). The paper's 73 is the largest integer at which
        float64 tells the amplified 1 from 1; in float32 it is 33. Gradients fall as :math:`e^{-L|p - \theta|}`.
      threshold: :math:`\theta`, in [0, 1].
      mask: boolean or 0/1, broadcast to `probs`; what it hides is never read. Default: all.

    Returns:
      A `Confusion` of scalars, float32 or wider. Those of microbatches and shards add up to that of the batch; take the
      metric after adding.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers or booleans, or a hyperparameter is out of range.

    References:
      Han et al., *AnyLoss: Transforming Classification Metrics into Loss Functions*, 2024, arXiv 2405.14745.
    """
    function = "losses.metric.soft_confusion"
    predictions = _amplified(function, probs, mask, scale, threshold)
    return confusion.sums(function, "probs", predictions, labels, weights, mask)


def _amplifier(function: str, scale: float, threshold: float) -> None:
    _checks.number(function, "scale", scale, low=0, open_low=True, open_high=True)
    _checks.number(function, "threshold", threshold, low=0, high=1)


def _amplified(function: str, probs: Array, mask: Array | None, scale: float, threshold: float) -> Array:
    _amplifier(function, scale, threshold)
    _checks.array(function, "probs", probs, kind="float")
    _checks.mask(function, "mask", mask, probs, like_name="probs")
    probs = jnp.asarray(probs)
    if mask is not None:
        probs = jnp.where(jnp.asarray(mask) != 0, probs, 0)
    # Of the sigmoid itself the slope would be lost where it rounds to 1, and not where it is near 0.
    return jnp.exp(jax.nn.log_sigmoid(scale * (probs.astype(_checks.accumulation_dtype(probs)) - threshold)))


def anyloss(
    probs: Float[Array, "*batch"],
    labels: Labels,
    weights: Num[Array, "..."] | None = None,
    *,
    metric: Metric = confusion.f_beta,
    scale: float = 73.0,
    threshold: float = 0.5,
    mask: Bool[Array, "..."] | Num[Array, "..."] | None = None,
) -> Float[Array, ""]:
    r"""One minus a metric of the batch, :math:`1 - M(\mathrm{TP}, \mathrm{FP}, \mathrm{FN}, \mathrm{TN})`: a scalar.

    The metric is of the global batch. Under gradient accumulation use `batch_anyloss`, or add the sums of
    `soft_confusion`.

    Args:
      probs: of the positive class, in [0, 1] `[...]`.
      labels: `[...]`, integers or booleans; non-zero is the positive class.
      weights: of the examples, non-negative, broadcast to `probs`. Default: ones.
      metric: `metric(confusion, *, undefined)`, one of `reweight.metrics.confusion` (with other hyperparameters by
        `functools.partial`) or any function of a `Confusion` like them.
      scale: as for `soft_confusion`.
      threshold: as for `soft_confusion`.
      mask: boolean or 0/1, broadcast to `probs`; what it hides is never read. Default: all.

    Returns:
      The loss, float32 or wider. Where the metric is not defined, such as `g_mean` in a batch of one class, or where
      all is masked, 0 with zero gradient.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers or booleans, or a hyperparameter is out of range.

    References:
      Han et al., *AnyLoss: Transforming Classification Metrics into Loss Functions*, 2024, arXiv 2405.14745. The
      released gradient of the geometric mean, written by hand, is not that of the formula; here it is.
    """
    function = "losses.metric.anyloss"
    _callable(function, metric)
    predictions = _amplified(function, probs, mask, scale, threshold)
    return _loss(confusion.sums(function, "probs", predictions, labels, weights, mask), metric)


def _callable(function: str, metric: Metric) -> None:
    if not callable(metric):
        _checks.fail(function, "metric", f"of type {type(metric).__name__}", "a function of a Confusion")


def _loss(sums: Confusion, metric: Metric) -> Float[Array, ""]:
    return 1 - metric(sums, undefined=1.0)


def batch_anyloss(*, metric: Metric = confusion.f_beta, scale: float = 73.0, threshold: float = 0.5) -> BatchLoss:
    """`anyloss` as a `BatchLoss`: the metric of the global batch, exact in microbatches.

    Every example has the loss of the batch. The mean over the batch has value and gradient of `anyloss`; a weighting
    scales the gradient that an example contributes, and leaves the metric as it is.

    Args:
      metric: as for `anyloss`.
      scale: as for `soft_confusion`.
      threshold: as for `soft_confusion`.

    Returns:
      A `BatchLoss` without state, of the signals `probs` and `labels`, both `[B, ...]`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Han et al., *AnyLoss: Transforming Classification Metrics into Loss Functions*, 2024, arXiv 2405.14745.
    """
    function = "losses.metric.batch_anyloss"
    _callable(function, metric)
    _amplifier(function, scale, threshold)

    def terms(probs: Array, labels: Array, **_: Any) -> Confusion:
        predictions = _amplified(function, probs, None, scale, threshold)
        return confusion.terms(function, "probs", predictions, labels, None, None)

    return of_sums(terms, functools.partial(_loss, metric=metric), signals=("probs", "labels"), name=function)
