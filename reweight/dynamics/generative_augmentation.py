r"""What a generator that was fitted to the training set adds to it, in a mixture where all can be computed.

Two classes, :math:`x \mid y \sim N(s_y \mu, \sigma^2 I)` with the sign :math:`s_y = \pm 1` of the class. The learner is
the mean rule, the generator a Gaussian for each class with common variances:

    generator = gaussian_generator(features, labels, num_classes=2)
    more = jnp.arange(num) % 2
    features = jnp.concatenate([features, generate(key, generator, more)])
    labels = jnp.concatenate([labels, more])
    gap = generalization_gap(mean_rule(features, labels), features, labels, fresh_features, fresh_labels, scale=0.6)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks, reduce
from reweight.estimators.naive_bayes import ClassMoments, class_moments

__all__ = [
    "GaussianGenerator",
    "GeneralizationGap",
    "RuleLosses",
    "gaussian_generator",
    "generalization_gap",
    "generate",
    "mean_rule",
    "rule_losses",
]

Features = Float[Array, "batch features"]
Labels = Int[Array, " batch"]
Mask = Bool[Array, " batch"] | Num[Array, " batch"]


class GaussianGenerator(NamedTuple):
    """A Gaussian a class: means `[C, D]` and the variances of the features that all classes share `[D]`."""

    means: Float[Array, "classes features"]
    variances: Float[Array, " features"]


class RuleLosses(NamedTuple):
    """Of each example `[n]`: the negative log-likelihood without its constant, and 1 for an error, else 0."""

    nll: Float[Array, " batch"]
    errors: Float[Array, " batch"]


class GeneralizationGap(NamedTuple):
    """Distances of the mean losses on the training set from those on fresh examples, scalars."""

    nll: Float[Array, ""]
    errors: Float[Array, ""]


def gaussian_generator(
    features: Features, labels: Labels, *, num_classes: int, mask: Mask | None = None, var_eps: float = 1e-9
) -> GaussianGenerator:
    r"""Fits the means of the classes and their common variances, :math:`\sum_c \pi_c (v_c + \epsilon)`.

    :math:`v_c` are the unbiased variances of the class and :math:`\pi_c` its share of the examples.

    Args:
      features: `[n, D]`.
      labels: in 0..C-1 `[n]`; an example with another label is left out.
      num_classes: C, static, at least 1.
      mask: boolean or 0/1 `[n]`; what it hides is never read. Default: all.
      var_eps: :math:`\epsilon`, in [0, inf).

    Returns:
      A `GaussianGenerator`, float32 or wider. A class of one example adds no variance; one without examples has the
      mean 0.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or a hyperparameter is out of range.

    References:
      Zheng et al., *Toward Understanding Generative Data Augmentation*, 2023, arXiv 2305.17476.
    """
    function = "dynamics.gaussian_generator"
    _checks.number(function, "var_eps", var_eps, low=0, open_high=True)
    moments = _moments(function, features, labels, num_classes, mask)
    counts = moments.counts
    own = moments.deviations / jnp.maximum(counts - 1, 1)[:, None] + var_eps
    shares = counts / jnp.maximum(jnp.sum(counts), 1)
    return GaussianGenerator(moments.means, jnp.matmul(shares, own, precision="highest"))


def _moments(function: str, features: Features, labels: Labels, num_classes: int, mask: Mask | None) -> ClassMoments:
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    _checks.number(function, "num_classes", num_classes, low=1, open_high=True, integer=True)
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    return class_moments(features, labels, num_classes=num_classes, mask=mask)


def generate(key: PRNGKeyArray, generator: GaussianGenerator, labels: Labels) -> Features:
    """Draws features for labels.

    Args:
      key: for the noise.
      generator: from `gaussian_generator`.
      labels: in 0..C-1 `[m]`; those outside count as the nearest of them.

    Returns:
      Features `[m, D]`, of the dtype of the generator.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers.

    References:
      Zheng et al., *Toward Understanding Generative Data Augmentation*, 2023, arXiv 2305.17476.
    """
    function = "dynamics.generate"
    _checks.array(function, "generator.means", generator.means, ndim=2, kind="float")
    _checks.array(function, "generator.variances", generator.variances, shape=generator.means.shape[1:], kind="float")
    _checks.array(function, "labels", labels, ndim=1, kind="integer")
    means, variances = (jnp.asarray(x) for x in generator)
    noise = jax.random.normal(key, (labels.shape[0], means.shape[1]), means.dtype)
    return jnp.take(means, labels, axis=0, mode="clip") + jnp.sqrt(jnp.maximum(variances, 0)) * noise


def _binary(function: str, features: Features, labels: Labels, prefix: str = "") -> tuple[Array, Array]:
    """Features in an accumulation dtype, and the signs of the classes."""
    _checks.array(function, f"{prefix}features", features, ndim=2, kind="float")
    _checks.array(function, f"{prefix}labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    rows = jnp.asarray(features).astype(_checks.accumulation_dtype(features))
    return rows, jnp.where(jnp.asarray(labels) > 0, 1, -1).astype(rows.dtype)


def mean_rule(features: Features, labels: Labels, *, mask: Mask | None = None) -> Float[Array, " features"]:
    r"""The maximum-likelihood estimate of the mean: :math:`\hat\theta = \frac{1}{n} \sum_i s_i x_i`.

    Args:
      features: `[n, D]`.
      labels: 0 for the class of sign -1, 1 for that of sign +1 `[n]`.
      mask: boolean or 0/1 `[n]`; what it hides is never read. Default: all.

    Returns:
      The rule `[D]`, float32 or wider; zeros if all is masked. It predicts class 1 where
      :math:`\hat\theta \cdot x \ge 0`.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers.

    References:
      Zheng et al., *Toward Understanding Generative Data Augmentation*, 2023, arXiv 2305.17476.
    """
    function = "dynamics.mean_rule"
    rows, signs = _binary(function, features, labels)
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    kept = _checks.kept(mask, signs.shape)
    total = jnp.sum(jnp.where(kept[:, None], signs[:, None] * rows, 0), axis=0)
    return total / jnp.maximum(jnp.sum(kept), 1)


def rule_losses(theta: Float[Array, " features"], features: Features, labels: Labels, *, scale: float) -> RuleLosses:
    r"""Losses of a rule: :math:`\|x - s\,\theta\|^2 / (2\sigma^2)`, and whether it errs.

    Args:
      theta: `[D]`.
      features: `[n, D]`.
      labels: as for `mean_rule`.
      scale: :math:`\sigma`, the known standard deviation, in (0, inf).

    Returns:
      `RuleLosses(nll, errors)`, each `[n]`, float32 or wider. The errors have no gradient.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or `scale` is out of range.

    References:
      Zheng et al., *Toward Understanding Generative Data Augmentation*, 2023, arXiv 2305.17476.
    """
    return _losses("dynamics.rule_losses", theta, features, labels, scale)


def _losses(function: str, theta: Array, features: Array, labels: Array, scale: float, prefix: str = "") -> RuleLosses:
    _checks.array(function, "theta", theta, ndim=1, kind="float")
    _checks.number(function, "scale", scale, low=0, open_low=True, open_high=True)
    rows, signs = _binary(function, features, labels, prefix)
    if rows.shape[1] != jnp.shape(theta)[0]:
        _checks.fail(function, "theta", f"of shape {jnp.shape(theta)}", f"of shape ({rows.shape[1]},), as the features")
    centre = jnp.asarray(theta).astype(rows.dtype)
    nll = jnp.sum(((rows - signs[:, None] * centre) / scale) ** 2, axis=1) / 2
    predicted = jnp.where(jnp.matmul(rows, centre, precision="highest") >= 0, 1, -1)
    return RuleLosses(nll, (predicted != signs).astype(rows.dtype))


def generalization_gap(
    theta: Float[Array, " features"],
    train_features: Features,
    train_labels: Labels,
    test_features: Float[Array, "fresh features"],
    test_labels: Int[Array, " fresh"],
    *,
    scale: float,
    mask: Mask | None = None,
) -> GeneralizationGap:
    """How far the mean losses of a rule on what it was trained on are from those on fresh examples.

    Args:
      theta: the rule `[D]`.
      train_features: what it was trained on, with what was generated `[n, D]`.
      train_labels: as for `mean_rule` `[n]`.
      test_features: `[m, D]`.
      test_labels: `[m]`.
      scale: as for `rule_losses`.
      mask: of the training examples, boolean or 0/1 `[n]`. Default: all.

    Returns:
      A `GeneralizationGap`, float32 or wider; the mean loss of no examples counts as 0.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or `scale` is out of range.

    References:
      Zheng et al., *Toward Understanding Generative Data Augmentation*, 2023, arXiv 2305.17476.
    """
    function = "dynamics.generalization_gap"
    _checks.mask(function, "mask", mask, train_labels, like_name="train_labels")
    if mask is not None:
        _checks.array(function, "train_features", train_features, ndim=2, kind="float")
        _checks.array(function, "train_labels", train_labels, shape=train_features.shape[:1], kind="integer")
        train_features = jnp.where(_checks.kept(mask, train_features.shape[0])[:, None], train_features, 0)
    train = _losses(function, theta, train_features, train_labels, scale, "train_")
    test = _losses(function, theta, test_features, test_labels, scale, "test_")

    def gap(seen: Array, fresh: Array) -> Array:
        return jnp.abs(reduce.weighted_mean(seen, where=mask) - reduce.weighted_mean(fresh))

    return GeneralizationGap(*map(gap, train, test))
