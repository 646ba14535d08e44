r"""An output kernel in factors, of which a step of gradient descent moves all rows at a cost without their number.

The gradient of a loss of the spherical family in the kernel :math:`W` has a part in the rows of the labels, a part
:math:`1 b^\top` that all rows share, and a part :math:`W S` that mixes the columns. Where the kernel is kept as
:math:`V U + 1 \omega^\top`, the last two move :math:`U` and :math:`\omega` alone:

    factored = factored_kernel(kernel)
    slopes = jax.grad(loss, argnums=(0, 1, 2))(hidden, factored.rows(labels), factored.sums)
    factored = factored_step(factored, labels, *slopes[1:], learning_rate=0.1)

where `loss` takes hidden states, rows of labels and sums to `spherical_statistics`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reweight import _checks
from reweight.losses.classification.spherical import KernelSums, kernel_sums

__all__ = ["FactoredKernel", "factored_kernel", "factored_step"]


class FactoredKernel(NamedTuple):
    r"""The kernel :math:`W = V U + 1 \omega^\top`, and the sums over its rows.

    Attributes:
      factor: :math:`V` `[C, D]`.
      mixing: :math:`U` `[D, D]`.
      offset: :math:`\omega` `[D]`.
      sums: of the kernel, for `spherical_statistics`.
    """

    factor: Float[Array, "classes features"]
    mixing: Float[Array, "features features"]
    offset: Float[Array, " features"]
    sums: KernelSums

    def rows(self, labels: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """The rows of the kernel of some classes `[..., D]`."""
        return _product(self.factor[labels], self.mixing) + self.offset

    @property
    def kernel(self) -> Float[Array, "classes features"]:
        """The kernel itself `[C, D]`, which costs all its rows."""
        return _product(self.factor, self.mixing) + self.offset


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def factored_kernel(kernel: Float[Array, "classes features"]) -> FactoredKernel:
    """A kernel in factors: itself, the identity and no offset.

    Args:
      kernel: `[C, D]`, a row a class.

    Returns:
      A `FactoredKernel` in float32 or wider.

    Raises:
      ValueError: if the kernel is no matrix of floats.
    """
    function = "losses.classification.factored_kernel"
    _checks.array(function, "kernel", kernel, ndim=2, kind="float")
    rows = jnp.asarray(kernel).astype(_checks.accumulation_dtype(kernel))
    return FactoredKernel(rows, jnp.eye(rows.shape[1], dtype=rows.dtype), jnp.zeros_like(rows[0]), kernel_sums(rows))


def factored_step(
    factored: FactoredKernel,
    labels: Int[Array, " batch"],
    row_slopes: Float[Array, "batch features"],
    sum_slopes: KernelSums,
    *,
    learning_rate: float | Float[Array, ""],
) -> FactoredKernel:
    r"""One step of gradient descent on the whole kernel, :math:`W \leftarrow W - \eta\, \partial L / \partial W`.

    With the slopes :math:`R` in the rows of the labels, :math:`A` in :math:`W^\top W` and :math:`b` in
    :math:`W^\top 1`, the gradient is :math:`E^\top R + W (A + A^\top) + 1 b^\top`, where the rows of :math:`E` are the
    labels, one-hot. The step is exact, and costs :math:`O(D^3 + B D^2)`.

    Args:
      factored: the kernel before the step.
      labels: the classes of the rows `[B]`; one may come several times. An id that is no class counts for nothing.
      row_slopes: :math:`R`, slopes of the loss in the rows of the labels `[B, D]`.
      sum_slopes: :math:`A` and :math:`b`, slopes of the loss in `factored.sums`.
      learning_rate: :math:`\eta`, in [0, inf); small enough that :math:`1 - \eta (A + A^\top)` can be inverted.

    Returns:
      The kernel after the step, of the same shapes and dtypes. Rounding adds up, and :math:`U` moves away from the
      identity: take `factored_kernel(factored.kernel)` from time to time.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or `learning_rate` is out of range.

    References:
      Vincent, de Brébisson and Bouthillier, *Efficient Exact Gradient Update for training Deep Networks with Very Large
      Sparse Targets*, 2015, arXiv 1412.7091. The inverse of :math:`U` is not kept: a system of D equations is solved.
    """
    function = "losses.classification.factored_step"
    classes, features = jnp.shape(factored.factor)
    _checks.array(function, "labels", labels, ndim=1, kind="integer")
    _checks.array(function, "row_slopes", row_slopes, shape=(*jnp.shape(labels), features), kind="float")
    _checks.array(function, "sum_slopes.gram", sum_slopes.gram, shape=(features, features), kind="float")
    _checks.array(function, "sum_slopes.total", sum_slopes.total, shape=(features,), kind="float")
    _checks.number(function, "learning_rate", learning_rate, low=0, open_high=True)
    dtype = factored.factor.dtype
    known = (labels >= 0) & (labels < classes)
    own = jnp.where(known, labels, 0)
    moves = learning_rate * jnp.where(known[:, None], row_slopes, 0).astype(dtype)
    gram, total, _ = sum_slopes
    shrink = jnp.eye(features, dtype=dtype) - learning_rate * (gram + gram.T).astype(dtype)
    shift = learning_rate * total.astype(dtype)
    # What all rows do.
    sums = factored.sums
    shrunk = _product(shrink, sums.total)
    common = jnp.outer(shrunk, shift)
    gram = _product(_product(shrink, sums.gram), shrink) - common - common.T + sums.classes * jnp.outer(shift, shift)
    mixing, offset = _product(factored.mixing, shrink), _product(shrink, factored.offset) - shift
    # And what those of the labels do besides; a class that comes several times makes all its moves.
    cross = _product((_product(factored.factor[own], mixing) + offset).T, moves)
    gram = gram - cross - cross.T + _product(moves.T, _product((own[:, None] == own).astype(dtype), moves))
    sums = KernelSums(gram, shrunk - sums.classes * shift - jnp.sum(moves, axis=0), sums.classes)
    return FactoredKernel(factored.factor.at[own].add(-jnp.linalg.solve(mixing.T, moves.T).T), mixing, offset, sums)
