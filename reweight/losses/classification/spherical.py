r"""The spherical family: losses of the label's score and of mean and variance of all scores, and of nothing else.

With scores :math:`o = W h`, mean and variance over the C classes come from :math:`W^\top W` and the sum of the rows of
:math:`W`, so that loss and gradient in :math:`h` cost the square of its size, however many classes there are:

    sums = kernel_sums(kernel)  # once; `update_kernel_sums` where rows change
    statistics = spherical_statistics(hidden, kernel[labels], sums)
    losses = spherical_loss("z_loss", statistics, a=2.0, b=0.5)
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = [
    "SPHERICAL_LOSSES",
    "KernelSums",
    "SphericalStatistics",
    "kernel_sums",
    "spherical_loss",
    "spherical_softmax_cross_entropy",
    "spherical_statistics",
    "squared_error",
    "taylor_softmax_cross_entropy",
    "update_kernel_sums",
    "z_loss",
]


class KernelSums(NamedTuple):
    r"""Sums over the rows of an output kernel: :math:`W^\top W`, :math:`W^\top 1` and how many rows there are.

    Those of shards of the classes add up to those of all.
    """

    gram: Float[Array, "features features"]
    total: Float[Array, " features"]
    classes: Float[Array, ""]


class SphericalStatistics(NamedTuple):
    """By how much the label's score leads the mean of all scores, that mean, their variance, and how many there are."""

    lead: Float[Array, "*batch"]
    mean: Float[Array, "*batch"]
    variance: Float[Array, "*batch"]
    classes: Float[Array, ""]

    @property
    def score(self) -> Float[Array, "*batch"]:
        """The label's score."""
        return self.mean + self.lead

    @property
    def mean_square(self) -> Float[Array, "*batch"]:
        """The mean of the squared scores."""
        return self.variance + self.mean**2


def _gram(rows: Array) -> Array:
    return jnp.einsum("cd,ce->de", rows, rows, precision="highest")


def kernel_sums(kernel: Float[Array, "classes features"]) -> KernelSums:
    """The `KernelSums` of an output kernel.

    Args:
      kernel: `[C, D]`, a row a class. A bias is one more column, for a hidden feature that is 1.

    Returns:
      Sums in float32 or wider. The gradient flows, so that a kernel inside of the differentiated function learns; that
      costs C rows of D.

    Raises:
      ValueError: if the kernel is no matrix of floats.
    """
    _checks.array("losses.classification.kernel_sums", "kernel", kernel, ndim=2, kind="float")
    rows = jnp.asarray(kernel).astype(_checks.accumulation_dtype(kernel))
    return KernelSums(_gram(rows), jnp.sum(rows, axis=0), jnp.asarray(len(rows), rows.dtype))


def update_kernel_sums(
    sums: KernelSums, old_rows: Float[Array, "changed features"], new_rows: Float[Array, "changed features"]
) -> KernelSums:
    """The `KernelSums` after some rows of the kernel have changed.

    Rounding adds up over many updates: take `kernel_sums` anew from time to time.

    Args:
      sums: before the change.
      old_rows: `[R, D]`, as they were; each class once.
      new_rows: `[R, D]`, as they are.

    Returns:
      Sums of the same shapes and dtypes.

    Raises:
      ValueError: if the rows do not fit each other or the sums.
    """
    function = "losses.classification.update_kernel_sums"
    for name, rows in (("old_rows", old_rows), ("new_rows", new_rows)):
        _checks.array(function, name, rows, shape=(jnp.shape(old_rows)[0], sums.total.shape[0]), kind="float")
    old, new = (jnp.asarray(rows).astype(sums.gram.dtype) for rows in (old_rows, new_rows))
    # The difference of squares as a product, which is exact where the rows hardly change.
    step, twice = new - old, new + old
    change = jnp.einsum("cd,ce->de", step, twice, precision="highest")
    return sums._replace(gram=sums.gram + (change + change.T) / 2, total=sums.total + jnp.sum(step, axis=0))


def spherical_statistics(
    hidden: Float[Array, "*batch features"], target_rows: Float[Array, "*batch features"], sums: KernelSums
) -> SphericalStatistics:
    r"""The `SphericalStatistics` of scores :math:`W h` that are never computed.

    Args:
      hidden: :math:`h` `[..., D]`.
      target_rows: the kernel's row of each label `[..., D]`.
      sums: of the kernel, see `kernel_sums`.

    Returns:
      Statistics `[...]`, float32 or wider; the gradient flows to all arguments. A variance that rounding would put
      below 0 is 0.

    Raises:
      ValueError: if the shapes do not fit.
    """
    function = "losses.classification.spherical_statistics"
    features = sums.total.shape[0]
    _checks.array(function, "hidden", hidden, shape=(*jnp.shape(hidden)[:-1], features), kind="float")
    _checks.array(function, "target_rows", target_rows, shape=jnp.shape(hidden), kind="float")
    dtype = _checks.accumulation_dtype(hidden, target_rows, sums.gram)
    states, rows = (jnp.asarray(array).astype(dtype) for array in (hidden, target_rows))
    centre = sums.total / sums.classes
    covariance = sums.gram / sums.classes - jnp.outer(centre, centre)
    variance = jnp.sum(jnp.einsum("...d,de->...e", states, covariance, precision="highest") * states, axis=-1)
    return SphericalStatistics(
        jnp.sum(states * (rows - centre), axis=-1),
        jnp.sum(states * centre, axis=-1),
        jnp.maximum(variance, 0),
        sums.classes,
    )


def _z_loss(
    function: str, statistics: SphericalStatistics, *, a: float = 1.0, b: float = 0.0, eps: float = 1e-12
) -> Float[Array, "*batch"]:
    _checks.number(function, "a", a, low=0, open_low=True, open_high=True)
    _checks.number(function, "b", b, open_low=True, open_high=True)
    _checks.number(function, "eps", eps, low=0, open_high=True)
    spread = statistics.variance > 0
    deviation = jnp.sqrt(jnp.where(spread, statistics.variance, 1))
    z = jnp.where(spread, statistics.lead / (deviation + eps), 0)
    return jax.nn.softplus(a * (b - z)) / a


def _taylor(function: str, statistics: SphericalStatistics) -> Float[Array, "*batch"]:
    del function
    total = statistics.classes * (1 + statistics.mean + statistics.mean_square / 2)
    return jnp.log(total) - jnp.log(1 + statistics.score + statistics.score**2 / 2)


def _spherical_softmax(function: str, statistics: SphericalStatistics, *, eps: float = 0.01) -> Float[Array, "*batch"]:
    _checks.number(function, "eps", eps, low=0, open_low=True, open_high=True)
    return jnp.log(statistics.classes * (statistics.mean_square + eps)) - jnp.log(statistics.score**2 + eps)


def _squared_error(function: str, statistics: SphericalStatistics) -> Float[Array, "*batch"]:
    del function
    return statistics.classes * statistics.mean_square - 2 * statistics.score + 1


SPHERICAL_LOSSES: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "z_loss": _z_loss,
        "taylor_softmax_cross_entropy": _taylor,
        "spherical_softmax_cross_entropy": _spherical_softmax,
        "squared_error": _squared_error,
    }
)


def spherical_loss(name: str, statistics: SphericalStatistics, **hyper: Any) -> Float[Array, "*batch"]:
    """A loss of the spherical family by name, from statistics in place of scores.

    Args:
      name: one of `SPHERICAL_LOSSES`: `"z_loss"`, `"taylor_softmax_cross_entropy"`,
        `"spherical_softmax_cross_entropy"`, `"squared_error"`.
      statistics: from `spherical_statistics`.
      **hyper: the keyword arguments of the function of that name.

    Returns:
      Losses `[...]`.

    Raises:
      ValueError: if there is no loss of this name, or a hyperparameter is out of range.

    References:
      Vincent, de Brébisson and Bouthillier, *Efficient Exact Gradient Update for training Deep Networks with Very Large
      Sparse Targets*, 2015, arXiv 1412.7091.
    """
    function = "losses.classification.spherical_loss"
    _checks.choice(function, "name", name, tuple(SPHERICAL_LOSSES))
    dtype = _checks.accumulation_dtype(*statistics)
    statistics = SphericalStatistics(*(jnp.asarray(number).astype(dtype) for number in statistics))
    return SPHERICAL_LOSSES[name](function, statistics, **hyper)


def _of_logits(name: str, logits: Logits, labels: Labels, *, least: int = 1, **hyper: Any) -> Float[Array, "*batch"]:
    function = f"losses.classification.{name}"
    given = _rows.rows(function, logits, labels)
    if given.classes < least:
        _checks.fail(function, "logits", f"of shape {jnp.shape(logits)}", f"at least {least} classes")
    centre = jnp.mean(given.scores, axis=-1)
    read = jnp.where(given.known, jnp.max(logits, axis=-1), 0)
    top = jax.lax.stop_gradient(read).astype(centre.dtype)
    statistics = SphericalStatistics(
        given.of_label(given.scores) - centre,
        centre + top,
        jnp.mean((given.scores - centre[..., None]) ** 2, axis=-1),
        jnp.asarray(given.classes, centre.dtype),
    )
    return given.losses(SPHERICAL_LOSSES[name](function, statistics, **hyper))


def z_loss(
    logits: Logits, labels: Labels, *, a: float = 1.0, b: float = 0.0, eps: float = 1e-12
) -> Float[Array, "*batch"]:
    r"""Z-loss :math:`\frac{1}{a} \log(1 + e^{a(b - z)})` of the label's score in standard deviations, per example.

    :math:`z = (o_y - \mu)/\sigma` with mean and standard deviation over the C scores, so that neither a shift nor a
    positive scale of the scores changes the loss. Not the squared log-sum-exp of language models that is called z-loss
    too.

    Args:
      logits: scores `[..., C]` of at least three classes: of two, each is always one standard deviation from the mean.
      labels: integer class ids `[...]`.
      a: sharpness, in (0, inf); for large ones the loss is :math:`\max(0, b - z)`.
      b: the margin that the label is to lead by, in standard deviations, any finite number; :math:`z` is at most
        :math:`\sqrt{C-1}`.
      eps: added to the standard deviation, in [0, inf).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class. Equal scores have z = 0 with
      zero gradient.

    Raises:
      ValueError: if the shapes do not fit, there are less than three classes, the labels are not integers, or a
        hyperparameter is out of range.

    References:
      de Brébisson and Vincent, *The Z-loss: a shift and scale invariant classification loss belonging to the Spherical
      Family*, 2016, arXiv 1604.08859.
    """
    return _of_logits("z_loss", logits, labels, least=3, a=a, b=b, eps=eps)


def taylor_softmax_cross_entropy(logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the Taylor softmax, :math:`-\log` of :math:`1 + o_y + o_y^2/2` over its sum, per example.

    The second-order expansion of the exponential is positive everywhere, and smallest at -1.

    Args:
      logits: scores `[..., C]`.
      labels: integer class ids `[...]`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      de Brébisson and Vincent, *An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family*, 2016,
      arXiv 1511.05042.
    """
    return _of_logits("taylor_softmax_cross_entropy", logits, labels)


def spherical_softmax_cross_entropy(logits: Logits, labels: Labels, *, eps: float = 0.01) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the spherical softmax, :math:`-\log` of :math:`o_y^2 + \epsilon` over its sum, per example.

    Args:
      logits: scores `[..., C]`; their signs do not count.
      labels: integer class ids `[...]`.
      eps: :math:`\epsilon`, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or `eps` is out of range.

    References:
      de Brébisson and Vincent, *An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family*, 2016,
      arXiv 1511.05042.
    """
    return _of_logits("spherical_softmax_cross_entropy", logits, labels, eps=eps)


def squared_error(logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""Squared error :math:`\sum_c (o_c - t_c)^2` of the scores themselves against the one-hot label, per example.

    Args:
      logits: scores `[..., C]`; `brier_loss` takes their softmax first.
      labels: integer class ids `[...]`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Vincent, de Brébisson and Bouthillier, *Efficient Exact Gradient Update for training Deep Networks with Very Large
      Sparse Targets*, 2015, arXiv 1412.7091.
    """
    return _of_logits("squared_error", logits, labels)
