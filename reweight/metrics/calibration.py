r"""Whether confidence says how often predictions are right, and whether it ranks them.

Calibration errors are functions of sums over the examples of a bin of confidence, which add up over shards,
microbatches and hosts: add the sums first, then take the metric. The area under the risk-coverage curve needs all
examples at once.

    bins = confidence_bins(*top_label(probs, labels), num_bins=15)
    bins = jax.tree.map(operator.add, bins, confidence_bins(*top_label(more_probs, more_labels), num_bins=15))
    error = ece(bins)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks

__all__ = ["Bins", "TopLabel", "ace", "aurc", "confidence_bins", "eaurc", "ece", "mce", "top_label"]

Correct = Bool[Array, "*batch"] | Num[Array, "*batch"]
Mask = Bool[Array, "..."] | Num[Array, "..."]


class TopLabel(NamedTuple):
    """The probability of the most probable class, and whether that is the label."""

    confidences: Float[Array, "*batch"]
    correct: Bool[Array, "*batch"]


def top_label(probs: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> TopLabel:
    r"""Confidence :math:`\max_c p_c` and whether the class that has it is the label, per example.

    Args:
      probs: of the classes `[..., C]`; of equal ones the first is the prediction.
      labels: integer class ids `[...]`. What is no class is never right: mask it where it stands for padding.

    Returns:
      A `TopLabel` of arrays `[...]`, the confidences float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, there is no class, or the labels are not integers.
    """
    function = "metrics.calibration.top_label"
    _checks.array(function, "probs", probs, kind="float")
    if jnp.ndim(probs) < 1 or jnp.shape(probs)[-1] == 0:
        _checks.fail(
            function, "probs", f"of shape {jnp.shape(probs)}", "an array with at least one class on the last axis"
        )
    _checks.array(function, "labels", labels, shape=jnp.shape(probs)[:-1], kind="integer")
    probs = jnp.asarray(probs).astype(_checks.accumulation_dtype(probs))
    return TopLabel(jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1) == labels)


class Bins(NamedTuple):
    """Sums over the examples in each bin of confidence `[bins]`, which add up over the pieces of a set.

    Attributes:
      examples: how many there are, or their weights.
      confidence: the sum of their confidences.
      correct: how many of them are right.
    """

    examples: Float[Array, " bins"]
    confidence: Float[Array, " bins"]
    correct: Float[Array, " bins"]


def confidence_bins(
    confidences: Float[Array, "*batch"],
    correct: Correct,
    weights: Num[Array, "..."] | None = None,
    *,
    num_bins: int = 15,
    mask: Mask | None = None,
) -> Bins:
    r"""Sums over bins of confidence of equal width, :math:`(k/n, (k+1)/n]`, the first of which has the 0 too.

    Args:
      confidences: probabilities of what is predicted, in [0, 1] `[...]`; of two classes also the probability of one.
      correct: boolean or 0/1 `[...]`, whether what is predicted came true.
      weights: of the examples, non-negative, broadcast to the confidences. Default: ones.
      num_bins: n.
      mask: boolean or 0/1, broadcast to the confidences; what it hides is never read. Default: all.

    Returns:
      `Bins` of float32 or wider. The gradient flows to confidences and weights through the sums, not through the
      choice of the bin.

    Raises:
      ValueError: if the shapes do not fit, or `num_bins` is below 1.
    """
    function = "metrics.calibration.confidence_bins"
    _checks.number(function, "num_bins", num_bins, low=1, open_high=True, integer=True)
    confidence, right, kept = _examples(function, confidences, correct, mask)
    dtype = confidence.dtype
    if weights is None:
        weight = kept.astype(dtype)
    else:
        _checks.array(function, "weights", weights, kind="number")
        _checks.broadcasts(function, "weights", weights, confidences, like_name="confidences")
        dtype = _checks.accumulation_dtype(confidence, weights)
        weight = jnp.where(kept, weights, 0).astype(dtype)
    edges = np.linspace(0, 1, num_bins + 1)[1:-1].astype(dtype)
    bins = jnp.searchsorted(edges, jax.lax.stop_gradient(confidence)).ravel()
    sums = (weight, weight * confidence, weight * right.astype(dtype))
    return Bins(*(jax.ops.segment_sum(x.ravel(), bins, num_bins) for x in sums))


def _examples(
    function: str, confidences: Array, correct: Correct, mask: Mask | None
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"], Bool[Array, "*batch"]]:
    """Confidences in float32 at least, what is right, and what counts; 0 and False where masked."""
    _checks.array(function, "confidences", confidences, kind="float")
    _checks.array(function, "correct", correct, shape=jnp.shape(confidences))
    _checks.mask(function, "mask", mask, confidences, like_name="confidences")
    kept = _checks.kept(mask, jnp.shape(confidences))
    confidence = jnp.where(kept, confidences, 0).astype(_checks.accumulation_dtype(confidences))
    return confidence, kept & (jnp.asarray(correct) != 0), kept


def _gaps(function: str, bins: Bins) -> tuple[Float[Array, " bins"], Float[Array, " bins"]]:
    """By how much accuracy and confidence differ in each bin, 0 where it is empty, and the examples of the bins."""
    for name, value in zip(Bins._fields, bins, strict=True):
        full = f"metrics.calibration.{function}"
        _checks.array(full, name, value, shape=jnp.shape(bins.examples)[:1], kind="number")
    dtype = _checks.accumulation_dtype(*bins)
    examples, confidence, correct = (jnp.asarray(x).astype(dtype) for x in bins)
    some = examples > 0
    return jnp.where(some, jnp.abs(correct - confidence) / jnp.where(some, examples, 1), 0), examples


def ece(bins: Bins) -> Float[Array, ""]:
    r"""Expected calibration error :math:`\sum_k \frac{n_k}{n} |\mathrm{acc}_k - \mathrm{conf}_k|`; a scalar in [0, 1].

    Args:
      bins: from `confidence_bins`, 15 of them as a rule.

    Returns:
      The error, float32 or wider; 0 of nothing. It depends on the number of bins, and is biased upwards for few
      examples a bin.

    Raises:
      ValueError: if the sums differ in shape.

    References:
      Guo et al., *On Calibration of Modern Neural Networks*, 2017, arXiv 1706.04599.
    """
    gaps, examples = _gaps("ece", bins)
    total = jnp.sum(examples)
    return jnp.sum(gaps * examples) / jnp.where(total > 0, total, 1)


def mce(bins: Bins) -> Float[Array, ""]:
    r"""Maximum calibration error :math:`\max_k |\mathrm{acc}_k - \mathrm{conf}_k|` of the bins that are not empty.

    Args:
      bins: as for `ece`.

    Returns:
      The error, float32 or wider; 0 of nothing.

    Raises:
      ValueError: if the sums differ in shape.

    References:
      Guo et al., *On Calibration of Modern Neural Networks*, 2017, arXiv 1706.04599.
    """
    return jnp.max(_gaps("mce", bins)[0], initial=0)


def ace(bins: Bins) -> Float[Array, ""]:
    r"""Average calibration error: the plain mean of :math:`|\mathrm{acc}_k - \mathrm{conf}_k|` over non-empty bins.

    Not the adaptive calibration error of bins with equally many examples, which has the same initials.

    Args:
      bins: as for `ece`.

    Returns:
      The error, float32 or wider; 0 of nothing.

    Raises:
      ValueError: if the sums differ in shape.

    References:
      Neumann, Zisserman and Vedaldi, *Relaxed Softmax: Efficient Confidence Auto-Calibration for Safe Pedestrian
      Detection*, 2018.
    """
    gaps, examples = _gaps("ace", bins)
    return jnp.sum(gaps) / jnp.maximum(jnp.sum(examples > 0), 1)


def aurc(confidences: Float[Array, "*batch"], correct: Correct, *, mask: Mask | None = None) -> Float[Array, ""]:
    r"""Area under the risk-coverage curve: the mean over i of the error rate of the i most confident predictions.

    Of equal confidences the order is random, and this is the expectation; it does not depend on the order of the
    examples.

    Args:
      confidences: any numbers that rank the predictions, the highest first `[...]`. No gradient flows.
      correct: boolean or 0/1 `[...]`, whether the prediction is right.
      mask: boolean or 0/1, broadcast to the confidences; what it hides is never read. Default: all.

    Returns:
      The area, in [0, 1], float32 or wider; 0 of nothing. It is often given times 1000.

    Raises:
      ValueError: if the shapes do not fit.

    References:
      Geifman, Uziel and El-Yaniv, *Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers*, 2018, arXiv
      1805.08206.
    """
    return _risks("metrics.calibration.aurc", confidences, correct, mask)[0]


def eaurc(confidences: Float[Array, "*batch"], correct: Correct, *, mask: Mask | None = None) -> Float[Array, ""]:
    r"""Excess AURC: `aurc` less that of the best ranking, which has all errors last.

    .. math:: \mathrm{AURC} - \frac1n \sum_{j=1}^{e} \frac{j}{n - e + j}

    with :math:`e` errors among :math:`n` predictions.

    Args:
      confidences: as for `aurc`.
      correct: as for `aurc`.
      mask: as for `aurc`.

    Returns:
      The excess, in [0, 1], float32 or wider; 0 where every error has a lower confidence than all that is right.

    Raises:
      ValueError: if the shapes do not fit.

    References:
      See `aurc`.
    """
    area, best = _risks("metrics.calibration.eaurc", confidences, correct, mask)
    return jnp.maximum(area - best, 0)


def _risks(
    function: str, confidences: Array, correct: Correct, mask: Mask | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The area under the risk-coverage curve, and that of the best ranking."""
    confidence, right, kept = _examples(function, jax.lax.stop_gradient(confidences), correct, mask)
    confidence, right, kept = confidence.ravel(), right.ravel(), kept.ravel()
    order = jnp.lexsort((-confidence, ~kept))
    ranked, counted = confidence[order], kept[order]
    wrong = (counted & ~right[order]).astype(confidence.dtype)
    # Each of equal confidences gets the error rate of all of them. Masked ones come last, and are a group of their own.
    starts = jnp.append(True, (ranked[1:] != ranked[:-1]) | (counted[1:] != counted[:-1]))[: ranked.size]
    group = jnp.cumsum(starts) - 1
    errors, sizes = (jax.ops.segment_sum(x, group, ranked.size) for x in (wrong, jnp.ones_like(wrong)))
    expected = (errors / jnp.maximum(sizes, 1))[group]
    number, count = jnp.sum(counted, dtype=wrong.dtype), jnp.arange(1, ranked.size + 1, dtype=wrong.dtype)
    total = jnp.maximum(number, 1)
    area = jnp.sum(jnp.where(counted, jnp.cumsum(expected) / count, 0)) / total
    best = jnp.maximum(count - (number - jnp.sum(wrong)), 0) / count
    return area, jnp.sum(jnp.where(counted, best, 0)) / total
