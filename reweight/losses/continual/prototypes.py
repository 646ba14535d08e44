"""Classification by cosine to prototypes: class means, calibrated towards base classes, or fixed in a simplex."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight._segments import segment_means
from reweight._vectors import unit

__all__ = [
    "assign_prototypes",
    "calibrate_prototypes",
    "class_prototypes",
    "cosine_scores",
    "dr_loss",
    "etf_prototypes",
    "simplex_etf",
]

Features = Float[Array, "batch features"]
Prototypes = Float[Array, "classes features"]


def class_prototypes(
    features: Features,
    labels: Int[Array, " batch"],
    *,
    num_classes: int,
    mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
) -> Prototypes:
    r"""The direction of the mean feature of each class, :math:`\bar h_c / \|\bar h_c\|`: one vector a class.

    The mean is normalised, not what it is taken of. Over the batch; the classes of a long stream are those of its
    features in one array.

    Args:
      features: `[B, D]`, any scale. What stands where the mask is off is never read.
      labels: integers `[B]`. A label outside [0, num_classes) counts for nothing.
      num_classes: how many classes there are.
      mask: boolean or 0/1 `[B]`. Default: all.

    Returns:
      `[num_classes, D]`, rows of length one, float32 or wider; zeros for a class without examples.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or `num_classes` is not a positive integer.

    References:
      Zhang et al., *Few-Shot Incremental Learning with Continually Evolved Classifiers*, 2021, arXiv 2104.03047.
    """
    function = "losses.continual.class_prototypes"
    _checks.array(function, "features", features, ndim=2, kind="float")
    size = jnp.shape(features)[:1]
    _checks.array(function, "labels", labels, shape=size, kind="integer")
    _checks.number(function, "num_classes", num_classes, low=1, integer=True)
    _checks.mask(function, "mask", mask, jnp.zeros(size), like_name="labels")
    return unit(segment_means(features, labels, num_classes, mask)[0])


def cosine_scores(
    features: Float[Array, "*batch features"], prototypes: Prototypes, *, scale: float = 1.0
) -> Float[Array, "*batch classes"]:
    r"""Cosine of each feature with each prototype, :math:`s \cos(h_i, p_c)`: the largest is the class.

    Args:
      features: `[..., D]`, any scale.
      prototypes: `[C, D]`, any scale. One of zeros, such as that of a class without examples, has score 0.
      scale: :math:`s`, in (0, inf): the inverse temperature of a softmax over the scores.

    Returns:
      Scores `[..., C]` between -s and s, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, or `scale` is out of range.
    """
    function = "losses.continual.cosine_scores"
    _checks.array(function, "features", features, kind="float")
    if jnp.ndim(features) < 1:
        _checks.fail(function, "features", "a scalar", "an array whose last axis is the features")
    _vectors(function, "prototypes", prototypes, *jnp.shape(features)[-1:])
    _checks.number(function, "scale", scale, low=0, open_low=True, open_high=True)
    return scale * jnp.matmul(unit(features), unit(prototypes).T, precision="highest")


def _vectors(function: str, name: str, vectors: Array, features: int | None = None) -> None:
    _checks.array(function, name, vectors, shape=(None, features), kind="float")
    if jnp.shape(vectors)[0] == 0:
        _checks.fail(function, name, f"of shape {jnp.shape(vectors)}", "at least one vector")


def calibrate_prototypes(
    new: Float[Array, "new features"], base: Float[Array, "base features"], *, alpha: float = 0.5, tau: float = 16.0
) -> Float[Array, "new features"]:
    r"""Prototypes from few examples, moved towards the base classes that they resemble; nothing is trained.

    With unit vectors :math:`n` of the new and :math:`b_k` of the base classes,

    .. math:: (1 - \alpha)\, n + \alpha\, \frac{\delta}{\|\delta\|}, \qquad
        \delta = \sum_k \mathrm{softmax}_k(\tau\, n \cdot b_k)\, b_k.

    Args:
      new: prototypes of the new classes `[N, D]`, any scale.
      base: prototypes of the base classes `[K, D]`, any scale.
      alpha: how far they are moved, in [0, 1]; 0 gives the unit vectors of `new`.
      tau: how sharply resemblance decides, in [0, inf); 0 mixes in the mean of the base classes.

    Returns:
      `[N, D]`, float32 or wider, of length at most one: `cosine_scores` normalises them.

    Raises:
      ValueError: if the shapes do not fit, or a hyperparameter is out of range.

    References:
      Yu, Lu and Zhang, *Generalized Incremental Learning under Concept Drift across Evolving Data Streams*, 2025,
      arXiv 2506.05736. Wang et al., *Few-Shot Class-Incremental Learning via Training-Free Prototype Calibration*,
      2023, arXiv 2312.05229.
    """
    function = "losses.continual.calibrate_prototypes"
    _checks.array(function, "new", new, ndim=2, kind="float")
    _vectors(function, "base", base, jnp.shape(new)[1])
    _checks.number(function, "alpha", alpha, low=0, high=1)
    _checks.number(function, "tau", tau, low=0, open_high=True)
    few, many = unit(new), unit(base)
    shares = jax.nn.softmax(tau * jnp.matmul(few, many.T, precision="highest"), axis=-1)
    mixed = jnp.matmul(shares, many, precision="highest")
    return (1 - alpha) * few + alpha * unit(mixed)


def simplex_etf(basis: Float[Array, "features classes"]) -> Prototypes:
    r"""The K vectors of a simplex equiangular tight frame, :math:`M = \sqrt{K / (K - 1)}\, U (I - 1 1^\top / K)`.

    Unit vectors as far from each other as K can be: the cosine of any two is :math:`-1 / (K - 1)`.

    Args:
      basis: :math:`U` with orthonormal columns `[D, K]`, K at least 2 and at most D.

    Returns:
      The columns of :math:`M` as rows `[K, D]`, float32 or wider.

    Raises:
      ValueError: if `basis` has more columns than rows, or less than two.

    References:
      Papyan, Han and Donoho, *Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training*, 2020,
      arXiv 2008.08186. Yang et al., *Neural Collapse Inspired Feature-Classifier Alignment for Few-Shot
      Class-Incremental Learning*, 2023, arXiv 2302.03004.
    """
    function = "losses.continual.simplex_etf"
    _checks.array(function, "basis", basis, ndim=2, kind="float")
    dim, count = jnp.shape(basis)
    if not 2 <= count <= dim:
        _checks.fail(function, "basis", f"of shape {(dim, count)}", "(D, K) with 2 <= K <= D")
    basis = jnp.asarray(basis).astype(_checks.accumulation_dtype(basis))
    return (count / (count - 1)) ** 0.5 * (basis - jnp.mean(basis, axis=1, keepdims=True)).T


def etf_prototypes(key: PRNGKeyArray, dim: int, num_classes: int) -> Prototypes:
    """A `simplex_etf` in a random position: prototypes for base classes, and in reserve for those to come.

    Args:
      key: draws the position, uniformly over all.
      dim: features, at least `num_classes`.
      num_classes: all classes that there will ever be, at least 2.

    Returns:
      `[num_classes, dim]`, rows of length one.

    Raises:
      ValueError: if there are fewer than two classes, or more than features.

    References:
      Yang et al., *Neural Collapse Inspired Feature-Classifier Alignment for Few-Shot Class-Incremental Learning*,
      2023, arXiv 2302.03004.
    """
    function = "losses.continual.etf_prototypes"
    _checks.number(function, "num_classes", num_classes, low=2, integer=True)
    _checks.number(function, "dim", dim, low=num_classes, integer=True)
    return simplex_etf(jax.random.orthogonal(key, dim, m=num_classes))


def assign_prototypes(
    class_means: Prototypes, prototypes: Float[Array, "prototypes features"]
) -> Int[Array, " classes"]:
    """Which prototype each class gets, each at most once, so that the cosines with the class means sum to the most.

    Args:
      class_means: `[C, D]`, any scale; one of zeros goes to what the others leave.
      prototypes: `[K, D]`, any scale, at least as many as classes.

    Returns:
      Distinct indices into the prototypes `[C]`, without gradient. Those that are not among them stay for new classes.

    Raises:
      ValueError: if the shapes do not fit, or there are more classes than prototypes.

    References:
      Roy et al., *A Bag of Tricks for Few-Shot Class-Incremental Learning*, 2024, arXiv 2403.14392.
    """
    function = "losses.continual.assign_prototypes"
    _vectors(function, "class_means", class_means)
    _vectors(function, "prototypes", prototypes, jnp.shape(class_means)[1])
    if jnp.shape(prototypes)[0] < jnp.shape(class_means)[0]:
        allowed = f"at least {jnp.shape(class_means)[0]} vectors, one a class"
        _checks.fail(function, "prototypes", f"of shape {jnp.shape(prototypes)}", allowed)
    scores = jax.lax.stop_gradient(cosine_scores(class_means, prototypes))
    # The algorithm would not end on NaN, and gives the pairs in no particular order.
    classes, chosen = optax.assignment.hungarian_algorithm(-jnp.nan_to_num(scores))
    return jnp.zeros_like(chosen).at[classes].set(chosen)


def dr_loss(features: Features, prototypes: Prototypes, labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    r"""Dot-regression loss: the cosine with the label's prototype should be one, :math:`\frac12 (\cos(m_y, h) - 1)^2`.

    It only pulls towards the own prototype, which is enough where prototypes are fixed and far apart, and never pushes
    features of other classes. The prototypes have no gradient.

    Args:
      features: :math:`h` `[B, D]`, any scale.
      prototypes: `[C, D]`, any scale.
      labels: integers `[B]`. A label that is no class costs 0 with zero gradient.

    Returns:
      Losses `[B]` between 0 and 2, float32 or wider. A feature of zeros costs 1/2 with zero gradient.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Yang et al., *Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a Learnable Classifier at the End
      of Deep Neural Network?*, 2022, arXiv 2203.09081.
    """
    function = "losses.continual.dr_loss"
    _checks.array(function, "features", features, ndim=2, kind="float")
    _vectors(function, "prototypes", prototypes, jnp.shape(features)[1])
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    known = (labels >= 0) & (labels < jnp.shape(prototypes)[0])
    own = jax.lax.stop_gradient(unit(prototypes))[jnp.where(known, labels, 0)]
    return jnp.where(known, 0.5 * (jnp.sum(unit(features) * own, axis=-1) - 1) ** 2, 0)
