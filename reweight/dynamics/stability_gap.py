"""What happens to old tasks in the steps after a switch of tasks: who pulls the parameters, and how features move."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks, _vectors

__all__ = ["GradientSplit", "feature_drift", "gradient_split"]

Tree = Any  # a pytree of arrays


class GradientSplit(NamedTuple):
    """The norms of two gradients and the cosine of the angle between them."""

    stability_norm: Float[Array, ""]
    plasticity_norm: Float[Array, ""]
    cosine: Float[Array, ""]


def gradient_split(stability: Tree, plasticity: Tree) -> GradientSplit:
    r"""Norms :math:`\|g_s\|`, :math:`\|g_p\|` of two gradients and their cosine, three scalars.

    The loss of a continual learner is a sum: what keeps old tasks (replay, distillation, a penalty) and what learns the
    new one. When the task changes, the parameters minimise the first, so that its gradient is about 0 and the first
    steps follow the second alone. Old tasks are lost before the first one pulls back: the stability gap.

    Args:
      stability: gradient of the part of the loss that keeps old tasks, a pytree of arrays.
      plasticity: gradient of the part that learns the new one, a pytree of the same structure.

    Returns:
      A `GradientSplit` of scalars, over all leaves together, float32 or wider; the cosine is 0 where a gradient is 0.
      No gradient flows through them.

    Raises:
      ValueError: if the trees differ in structure or in the shape of a leaf, or have no leaf.

    References:
      De Lange et al., *Continual evaluation for lifelong learning: Identifying the stability gap*, 2022,
      arXiv 2205.13452.
    """
    function = "dynamics.gradient_split"
    if not jax.tree.leaves(stability):
        _checks.fail(function, "stability", "a tree without leaves", "a pytree of arrays")
    _checks.same_structure(function, "plasticity", plasticity, stability, like_name="stability")
    dtype = _checks.accumulation_dtype(*jax.tree.leaves((stability, plasticity)))
    (first, first_norm), (second, second_norm) = (
        _directed(jax.tree.map(lambda leaf: jax.lax.stop_gradient(jnp.asarray(leaf)).astype(dtype), tree))
        for tree in (stability, plasticity)
    )
    return GradientSplit(first_norm, second_norm, jnp.clip(optax.tree.vdot(first, second), -1, 1))


def _directed(tree: Tree) -> tuple[Tree, Array]:
    """A tree divided by its norm, and the norm; 0 stays 0."""
    norm = _vectors.length(jnp.stack([_vectors.length(leaf, axis=None) for leaf in jax.tree.leaves(tree)]))
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1), tree), norm


def feature_drift(
    before: Float[Array, "batch ..."],
    after: Float[Array, "batch ..."],
    *,
    mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""How far features have moved, :math:`\|f_i - f'_i\|^2`, per example: the paper's drift is the mean.

    Args:
      before: features of the examples `[B, ...]` under the earlier parameters.
      after: those of the same examples under the later ones.
      mask: boolean or 0/1 `[B]`; what it hides is never read and gives 0. Default: all.

    Returns:
      The squared distances `[B]`, float32 or wider.

    Raises:
      ValueError: if the shapes differ.

    References:
      De Lange et al., *Continual evaluation for lifelong learning: Identifying the stability gap*, 2022,
      arXiv 2205.13452.
    """
    function = "dynamics.feature_drift"
    _checks.array(function, "before", before, kind="float")
    shape = jnp.shape(before)
    if not shape:
        _checks.fail(function, "before", "a scalar", "an array whose first axis is the batch")
    _checks.array(function, "after", after, shape=shape, kind="float")
    like = jnp.zeros(shape[:1])
    _checks.mask(function, "mask", mask, like, like_name="the first axis of before")
    kept = _checks.kept(mask, like.shape)
    rows = kept.reshape((-1,) + (1,) * (len(shape) - 1))
    dtype = _checks.accumulation_dtype(before, after)
    moved = jnp.where(rows, jnp.asarray(after).astype(dtype) - jnp.asarray(before).astype(dtype), 0)
    return jnp.sum(moved**2, axis=tuple(range(1, len(shape))))
