"""Measurements of scale-invariant weights in training: their norms, the angle of a step, and which views fired.

Under a normalisation only the direction of a row of weights counts. What a step does is the angle by which it turns the
row, and a row that grows is turned less by the same step.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int8

from reweight import _checks
from reweight.optim.layout import LayoutRule
from reweight.optim.projection import flatten

__all__ = ["channel_norms", "effective_step", "named_views", "norm_growth"]

Tree = Any


def named_views(
    views: Int8[Array, " entries"], params: Tree, *, layout: LayoutRule | None = None
) -> dict[str, Int8[Array, "..."]]:
    """The views of the last step by the names of the parameters.

    Args:
      views: the field `views` of the optimizer's state, `optax.tree.get(state, "views")`.
      params: the parameters that the transform was initialised with.
      layout: the layout rule that it was given.

    Returns:
      For each parameter's `path_name` its views, of the shape of its batch axes: `NONE` (0), `CHANNEL` (1),
      `LAYER` (2), `SKIPPED` (3).

    Raises:
      ValueError: if there are not as many views as these parameters have.
    """
    function = "optim.named_views"
    leaves, _ = flatten(function, params, params, layout, None)
    shapes = {
        leaf.name: tuple(leaf.param.shape[axis] for axis in leaf.layout.batch_axes)
        for leaf in leaves
        if leaf is not None
    }
    sizes = [math.prod(shape) for shape in shapes.values()]
    _checks.array(function, "views", views, shape=(sum(sizes),))
    named, start = {}, 0
    for (name, shape), size in zip(shapes.items(), sizes, strict=True):
        named[name] = views[start : start + size].reshape(shape)
        start += size
    return named


def _per_channel(
    function: str,
    argument: str,
    measure: Callable[[Array, Array, tuple[int, ...]], Array],
    params: Tree,
    other: Tree,
    layout: Any,
) -> Tree:
    leaves, treedef = flatten(function, params, other, layout, None, argument=argument)
    results: list[Array | None] = []
    for leaf in leaves:
        if leaf is None or not leaf.layout.project:
            results.append(None)
            continue
        dtype = _checks.accumulation_dtype(leaf.param, leaf.grad)
        results.append(measure(leaf.param.astype(dtype), leaf.grad.astype(dtype), leaf.layout.reduce_axes))
    return treedef.unflatten(results)


def _norm(array: Array, axes: tuple[int, ...], *, keepdims: bool = False) -> Array:
    return jnp.sqrt(jnp.sum(array * array, axis=axes, keepdims=keepdims))


def channel_norms(params: Tree, *, layout: LayoutRule | None = None) -> Tree:
    r"""The norm of every row, :math:`\|p_r\|`.

    Args:
      params: parameters.
      layout: layout rule; default `default_layout`.

    Returns:
      A tree like `params` of arrays without the row axes, float32 or wider; None for a parameter without rows.

    Raises:
      ValueError: if a layout does not fit its parameter.
    """
    return _per_channel(
        "optim.channel_norms", "params", lambda param, _, axes: _norm(param, axes), params, params, layout
    )


def norm_growth(params: Tree, initial: Tree, *, layout: LayoutRule | None = None) -> Tree:
    r"""How much longer every row has become, :math:`\|p_r\| / \|p_r^{(0)}\|`.

    Args:
      params: parameters.
      initial: the parameters to compare with, as a rule those at the start of training.
      layout: layout rule; default `default_layout`.

    Returns:
      A tree like `params` of arrays without the row axes, float32 or wider; 1 for a row that was zero at the start,
      None for a parameter without rows.

    Raises:
      ValueError: if the two trees differ in structure or shapes.
    """

    def growth(param: Array, before: Array, axes: tuple[int, ...]) -> Array:
        start = _norm(before, axes)
        return jnp.where(start == 0, 1, _norm(param, axes) / jnp.where(start == 0, 1, start))

    return _per_channel("optim.norm_growth", "initial", growth, params, initial, layout)


def effective_step(params: Tree, updates: Tree, *, layout: LayoutRule | None = None) -> Tree:
    r"""The angle by which a step turns every row, :math:`\angle(p_r, p_r + \Delta_r)`, in radians.

    For weights whose length does not matter this is the step: a fixed :math:`\|\Delta_r\|` turns them less and less
    as they grow.

    Args:
      params: parameters before the step.
      updates: what the optimizer adds to them.
      layout: layout rule; default `default_layout`.

    Returns:
      A tree like `params` of arrays without the row axes, between 0 and π, float32 or wider, exact for small angles
      too; 0 for a row that is zero before the step, None for a parameter without rows.

    Raises:
      ValueError: if the two trees differ in structure or shapes.
    """

    def angle(param: Array, change: Array, axes: tuple[int, ...]) -> Array:
        norm = _norm(param, axes, keepdims=True)
        unit = param / jnp.where(norm == 0, 1, norm)
        along = jnp.sum(unit * change, axis=axes, keepdims=True)
        # The tangential part itself is summed: from the two norms and the inner product it would cancel.
        turned = jnp.arctan2(_norm(change - along * unit, axes), jnp.squeeze(norm + along, axes))
        return jnp.where(jnp.squeeze(norm, axes) == 0, 0, turned)

    return _per_channel("optim.effective_step", "updates", angle, params, updates, layout)
