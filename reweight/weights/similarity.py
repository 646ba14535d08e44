"""Which generated examples are like real ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reweight import _checks
from reweight._segments import segment_means
from reweight._vectors import unit

__all__ = ["SimilarityFilter", "similarity_filter"]


class SimilarityFilter(NamedTuple):
    """Of each generated example `[M]`.

    Attributes:
      keep: whether it is like the real examples of its class, or there are none.
      scores: its mean cosine to them, in [-1, 1]; 0 where there are none.
      known: whether there are any.
    """

    keep: Bool[Array, " generated"]
    scores: Float[Array, " generated"]
    known: Bool[Array, " generated"]


def similarity_filter(
    features: Float[Array, "generated d"],
    labels: Int[Array, " generated"],
    real_features: Float[Array, "real d"],
    real_labels: Int[Array, " real"],
    *,
    num_classes: int,
    threshold: float = 0.6,
) -> SimilarityFilter:
    r"""Keeps generated examples whose mean cosine to all real ones of their class reaches a threshold.

    .. math:: s_i = \frac{1}{n_{y_i}} \sum_{j : y_j = y_i} \cos(g_i, r_j) \ge t

    Args:
      features: :math:`g`, of the generated examples `[M, D]`, such as embeddings of images.
      labels: of the generated examples `[M]`.
      real_features: :math:`r`, of the real ones `[N, D]`.
      real_labels: of the real ones `[N]`; one outside of 0..C-1 is left out.
      num_classes: C, static.
      threshold: t, in [-1, 1]; with -1 all are kept.

    Returns:
      A `SimilarityFilter`. Its scores are float32 or wider, and constant: no gradient flows.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or a hyperparameter is out of range.

    References:
      Fan et al., *DiverGen: Improving Instance Segmentation by Learning Wider Data Distribution with More Diverse
      Generative Data*, 2024, arXiv 2405.10185.
    """
    function = "weights.similarity_filter"
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    _checks.array(function, "real_features", real_features, ndim=2, kind="float")
    if jnp.shape(real_features)[1] != jnp.shape(features)[1]:
        allowed = f"of shape (N, {jnp.shape(features)[1]}), as the generated ones"
        _checks.fail(function, "real_features", f"of shape {jnp.shape(real_features)}", allowed)
    _checks.array(function, "real_labels", real_labels, shape=jnp.shape(real_features)[:1], kind="integer")
    _checks.number(function, "num_classes", num_classes, low=1, open_high=True, integer=True)
    _checks.number(function, "threshold", threshold, low=-1, high=1)
    # The mean of the cosines is the product with the mean direction.
    means, counts = segment_means(unit(real_features), real_labels, num_classes)
    inside = (labels >= 0) & (labels < num_classes)
    own = jnp.where(inside, labels, 0)
    seen = inside & (counts[own] > 0)
    scores = jnp.where(seen, jnp.sum(unit(features) * means[own], axis=1), 0)
    scores = jnp.clip(jax.lax.stop_gradient(scores), -1, 1)  # rounding may lead out of the range of a cosine
    return SimilarityFilter(~seen | (scores >= threshold), scores, seen)
