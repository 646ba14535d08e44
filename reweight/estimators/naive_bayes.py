r"""Gaussian naive Bayes: a classifier in closed form, from counts, means and squared deviations of the classes.

The moments of pieces of a set are merged to those of the set, in any order, so that one pass over batches, shards or
hosts fits the classifier. With one variance of each feature for all classes it is a linear probe, which needs examples
in the order of the logarithm of the number of features, where logistic regression needs as many as there are features.

    moments = merge_moments(moments, class_moments(features, labels, num_classes=C))  # batch by batch
    kernel, bias = linear_probe(moments)
    logits = features @ kernel.T + bias
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks

__all__ = [
    "ClassMoments",
    "LinearProbe",
    "class_moments",
    "class_variances",
    "linear_probe",
    "log_joint",
    "merge_moments",
]

Mask = Bool[Array, " batch"] | Num[Array, " batch"]


class ClassMoments(NamedTuple):
    """Moments of the features of each class.

    Attributes:
      counts: of examples, or their weights `[C]`.
      means: of the features `[C, D]`; 0 of a class without examples.
      deviations: sums of squared distances to the mean `[C, D]`.
    """

    counts: Float[Array, " classes"]
    means: Float[Array, "classes features"]
    deviations: Float[Array, "classes features"]


class LinearProbe(NamedTuple):
    """A linear classifier: logits are `features @ kernel.T + bias`."""

    kernel: Float[Array, "classes features"]
    bias: Float[Array, " classes"]


def class_moments(
    features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    weights: Num[Array, " batch"] | None = None,
    *,
    num_classes: int,
    mask: Mask | None = None,
) -> ClassMoments:
    r"""Counts :math:`n_c`, means :math:`\mu_c` and sums :math:`\sum_{y_i = c} (x_i - \mu_c)^2` of each class.

    Args:
      features: `[B, D]`.
      labels: integer class ids `[B]`; examples whose label is no class do not count.
      weights: of the examples, non-negative `[B]`. Default: ones.
      num_classes: C, static.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Moments of the batch, float32 or wider. The gradient flows to features and weights.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or `num_classes` is below 1.
    """
    function = "estimators.naive_bayes.class_moments"
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    _checks.number(function, "num_classes", num_classes, low=1, open_high=True, integer=True)
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    dtype = _checks.accumulation_dtype(features)
    if weights is not None:
        _checks.array(function, "weights", weights, shape=jnp.shape(labels), kind="number")
        dtype = _checks.accumulation_dtype(features, weights)
    labels = jnp.asarray(labels)
    kept = (labels >= 0) & (labels < num_classes) & _checks.kept(mask, labels.shape)
    weight = jnp.where(kept, 1 if weights is None else weights, 0).astype(dtype)
    rows = jnp.where(kept[:, None], features, 0).astype(dtype)
    known = jnp.where(kept, labels, 0)
    # What an example adds to its class: a product with one row a class, which sharded batches sum in one collective.
    member = jnp.where(known[:, None] == jnp.arange(num_classes), weight[:, None], 0)
    counts = jnp.sum(member, axis=0)
    sums = jnp.einsum("bc,bd->cd", member, rows, precision="highest")
    means = sums / jnp.where(counts > 0, counts, 1)[:, None]
    squares = (rows - means[known]) ** 2
    return ClassMoments(counts, means, jnp.einsum("bc,bd->cd", member, squares, precision="highest"))


def merge_moments(first: ClassMoments, second: ClassMoments) -> ClassMoments:
    r"""The moments of two sets together: :math:`\mu = (n_a \mu_a + n_b \mu_b)/n`, and deviations alike.

    To the deviations of the two comes that of their means, :math:`\frac{n_a n_b}{n} (\mu_a - \mu_b)^2`. The order of
    sets does not matter, and an empty one (such as of a batch that is masked altogether) changes nothing.

    Args:
      first: moments of one set.
      second: moments of another, of the same classes and features.

    Returns:
      Moments, float32 or wider. The gradient flows to all of them.

    Raises:
      ValueError: if the shapes do not fit.
    """
    function = "estimators.naive_bayes.merge_moments"
    a = _moments(function, first, argument="first")
    b = _moments(function, second, argument="second", like=first)
    counts = a.counts + b.counts
    share = (b.counts / jnp.where(counts > 0, counts, 1))[:, None]
    apart = b.means - a.means
    return ClassMoments(
        counts, a.means + share * apart, a.deviations + b.deviations + a.counts[:, None] * share * apart**2
    )


def class_variances(
    moments: ClassMoments, *, shared_variance: bool = True, var_eps: float = 1e-9
) -> Float[Array, "classes features"] | Float[Array, " features"]:
    r"""Variances of the features: of each class, :math:`v_c`, or one for all, :math:`\sum_c \pi_c v_c`.

    Args:
      moments: of the classes.
      shared_variance: average the classes' variances by their shares :math:`\pi_c` of the examples.
      var_eps: added to the variance of each class that has examples, in (0, inf).

    Returns:
      `[D]` if shared, else `[C, D]`: population variances (of a single example 0, and `var_eps`), float32 or wider.

    Raises:
      ValueError: if the moments do not fit each other, or `var_eps` is out of range.
    """
    return _variances("estimators.naive_bayes.class_variances", moments, shared_variance, var_eps)


def _variances(function: str, moments: ClassMoments, shared: bool, var_eps: float) -> Array:
    _checks.number(function, "var_eps", var_eps, low=0, open_low=True, open_high=True)
    counts, _, deviations = _moments(function, moments)
    variances = deviations / jnp.where(counts > 0, counts, 1)[:, None] + var_eps
    if not shared:
        return variances
    shares = counts / jnp.where(jnp.sum(counts) > 0, jnp.sum(counts), 1)
    return jnp.where(jnp.sum(counts) > 0, jnp.einsum("c,cd->d", shares, variances, precision="highest"), var_eps)


def _log_priors(counts: Float[Array, " classes"]) -> Float[Array, " classes"]:
    """Logarithms of the shares of the classes; equal ones of nothing."""
    total, seen = jnp.sum(counts), counts > 0
    shares = jnp.log(jnp.where(seen, counts, 1)) - jnp.log(jnp.where(total > 0, total, counts.size))
    return jnp.where(seen | (total == 0), shares, -jnp.inf)


def log_joint(
    moments: ClassMoments,
    features: Float[Array, "*batch features"],
    *,
    shared_variance: bool = True,
    var_eps: float = 1e-9,
) -> Float[Array, "*batch classes"]:
    r"""Log-density of features and class together, :math:`\log \pi_c - \frac12 \sum_d (x_d - \mu_{cd})^2/v_d + \dots`.

    The dots stand for :math:`-\frac12 \sum_d \log(2 \pi v_d)`. Softmax makes probabilities of it, for it is also a
    logit. With a shared variance it is linear in the features, but for what all classes have in common; `linear_probe`
    gives that form.

    Args:
      moments: of the classes.
      features: `[..., D]`.
      shared_variance: one variance of each feature for all classes; else each class has its own, and the boundaries
        are quadratic.
      var_eps: as for `class_variances`.

    Returns:
      `[..., C]`, float32 or wider; minus infinity for a class without examples, unless there are none at all. The
      gradient flows to features and moments.

    Raises:
      ValueError: if the shapes do not fit, or `var_eps` is out of range.

    References:
      Zheng et al., *Revisiting Discriminative vs. Generative Classifiers: Theory and Implications*, 2023, arXiv
      2302.02334.
    """
    function = "estimators.naive_bayes.log_joint"
    known = _moments(function, moments)
    size = known.means.shape[1]
    _checks.array(function, "features", features, shape=(*jnp.shape(features)[:-1], size), kind="float")
    dtype = _checks.accumulation_dtype(features, known.means)
    variances = _variances(function, moments, shared_variance, var_eps)
    # Differences before squares: exact where features are far from 0, or hardly vary.
    apart = jnp.asarray(features).astype(dtype)[..., None, :] - known.means
    densities = -jnp.sum(apart**2 / variances + jnp.log(2 * jnp.pi * variances), axis=-1) / 2
    return _log_priors(known.counts) + densities


def linear_probe(moments: ClassMoments, *, var_eps: float = 1e-9, centred: bool = False) -> LinearProbe:
    r"""Naive Bayes with shared variances as a linear classifier: :math:`W_c = \mu_c / v`.

    The bias is :math:`\log \pi_c - \frac12 \sum_d \mu_{cd}^2 / v_d`. Its logits differ from `log_joint` by what all
    classes have in common.

    Args:
      moments: of the classes.
      var_eps: as for `class_variances`.
      centred: take the mean of all examples from the means, and back into the bias. The probabilities stay, and keep
        their digits where a feature hardly varies about a mean far from 0.

    Returns:
      A kernel `[C, D]` and a bias `[C]`, float32 or wider; the bias of a class without examples is minus infinity. A
      start for training, too.

    Raises:
      ValueError: if the moments do not fit each other, or `var_eps` is out of range.

    References:
      Zheng et al., *Revisiting Discriminative vs. Generative Classifiers: Theory and Implications*, 2023, arXiv
      2302.02334.
    """
    function = "estimators.naive_bayes.linear_probe"
    known = _moments(function, moments)
    centre = jnp.zeros_like(known.means[0])
    if centred:
        total = jnp.sum(known.counts)
        centre = jnp.einsum("c,cd->d", known.counts, known.means, precision="highest") / jnp.where(total > 0, total, 1)
    apart = jnp.where(known.counts[:, None] > 0, known.means - centre, 0)
    kernel = apart / _variances(function, moments, True, var_eps)
    return LinearProbe(kernel, _log_priors(known.counts) - jnp.sum(kernel * (centre + apart / 2), axis=1))


def _moments(
    function: str, moments: ClassMoments, *, argument: str = "moments", like: ClassMoments | None = None
) -> ClassMoments:
    """Checked moments in float32 at least."""
    like = moments if like is None else like
    shape: Any = jnp.shape(like.means)
    _checks.array(function, f"{argument}.means", moments.means, ndim=2, shape=shape, kind="float")
    _checks.array(function, f"{argument}.counts", moments.counts, shape=shape[:1], kind="number")
    _checks.array(function, f"{argument}.deviations", moments.deviations, shape=shape, kind="float")
    dtype = _checks.accumulation_dtype(*moments)
    return ClassMoments(*(jnp.asarray(x).astype(dtype) for x in moments))
