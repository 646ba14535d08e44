r"""Projection of a step off the radial direction, around any optimizer.

The loss of weights in front of a normalisation does not change with their length, so that its gradient is orthogonal to
them: a step can only make them longer, and the longer they are, the less a step of given length turns them. Momentum
lets the norm grow far beyond what plain gradient descent makes of it. The projection takes the radial part out of the
step wherever the gradient shows, by being orthogonal, that the weights are such; there it also weakens the decay.

A parameter is seen in two views: by channel (a row a channel, as `ParamLayout` has it), and as one row, by layer. A
view *fires* if no row of it has a gradient that points along the row.

Under `jax.jit` all sums are over whole parameters, however they are sharded: a sharded parameter costs an all-reduce of
one number a row, and is never gathered. Inside `shard_map` an update would see shards, and test each as a parameter of
its own: there, compute gradients, and call the optimizer outside.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int8

from reweight import _checks
from reweight.optim.layout import LayoutRule, ParamLayout, default_layout, leaf_layout, path_name

__all__ = [
    "CHANNEL",
    "LAYER",
    "NONE",
    "SKIPPED",
    "ProjectionState",
    "project_radial",
    "with_projection",
]

NONE, CHANNEL, LAYER, SKIPPED = 0, 1, 2, 3

Tree = Any
DecayMask = Tree | Callable[[Tree], Tree]


class Leaf(NamedTuple):
    """What a transform knows of one parameter."""

    name: str
    layout: ParamLayout
    decays: bool
    param: Array
    grad: Array


def flatten(
    function: str,
    params: Tree,
    updates: Tree,
    layout: LayoutRule | None,
    mask: DecayMask | None,
    *,
    argument: str = "updates",
) -> tuple[list[Leaf | None], Any]:
    """Brings parameters, gradients, layouts and the decay mask together; None where a gradient is absent."""
    if params is None:
        _checks.fail(
            function,
            "params",
            "None",
            "a tree of arrays; `update` of an optimizer takes the parameters as its third argument",
        )
    rule = default_layout if layout is None else layout
    paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_none)
    grads = leaves_like(function, argument, updates, treedef)
    mask = mask(params) if callable(mask) else mask
    decays = (
        [True] * len(paths) if mask is None else jax.tree.leaves(jax.tree.broadcast(mask, params, is_leaf=_is_none))
    )
    leaves: list[Leaf | None] = []
    for (path, param), grad, decay in zip(paths, grads, decays, strict=True):
        if param is None or grad is None:
            leaves.append(None)
            continue
        name = path_name(path) or "params"
        if jnp.shape(grad) != jnp.shape(param):
            _checks.fail(
                function, f"{argument}: {name}", f"of shape {jnp.shape(grad)}", f"the shape {jnp.shape(param)}"
            )
        leaves.append(Leaf(name, leaf_layout(function, rule, path, param), bool(decay), param, grad))
    return leaves, treedef


def leaves_like(function: str, argument: str, tree: Tree, treedef: Any) -> list[Any]:
    """The leaves of a tree that must have the structure of the parameters."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError):
        came = f"a tree {jax.tree.structure(tree)}"
        _checks.fail(function, argument, came, f"the structure of params, {treedef}")


def _is_none(node: Any) -> bool:
    return node is None


class Radial(NamedTuple):
    """What the test found. All but the views keep the dimensions that were summed over.

    Attributes:
      inner: the inner product of the step and the parameter in the view that fired, over `norm`; 0 where none did.
      norm: the parameter's norm plus eps in that view, never 0.
      decay: the factor of the decay: `wd_ratio` where a view fired, 1 elsewhere.
      views: `CHANNEL`, `LAYER` or `NONE`, for each copy.
    """

    inner: Array
    norm: Array
    decay: Array
    views: Int8[Array, " entries"]


def radial(
    leaf: Leaf,
    step: Array,
    *,
    delta: Any,
    wd_ratio: Any,
    eps: Any,
    on_step: Any = 1,
    on_grad: Any = 0,
) -> Radial | None:
    """Tests both views of one parameter, and measures the radial part of a step in the one that fires.

    The sums of the layer view are sums of those of the channel view, so that one pass over the arrays serves both. They
    run in float32 at least.

    Args:
      leaf: the parameter and its gradient.
      step: what is to be projected is `on_step * step + on_grad * grad`, whose inner product with the parameter is
        taken term by term: it need not be stored before it is projected.
      delta: see `project_radial`.
      wd_ratio: factor of the decay where a view fires.
      eps: see `project_radial`.
      on_step: see `step`.
      on_grad: see `step`.

    Returns:
      What was found; None for a parameter that is never projected.
    """
    if not leaf.layout.project:
        return None
    dtype = _checks.accumulation_dtype(leaf.param, leaf.grad, step)
    param, grad, step = (array.astype(dtype) for array in (leaf.param, leaf.grad, step))
    channels = leaf.layout.channel_axes(param.ndim)
    products = (grad * param, grad * grad, param * param, step * param)
    rows = tuple(jnp.sum(product, axis=leaf.layout.reduce_axes, keepdims=True) for product in products)
    whole = tuple(jnp.sum(part, axis=channels, keepdims=True) for part in rows)
    size = leaf.layout.row_size(param.shape)
    count = math.prod(param.shape[axis] for axis in channels)
    worst = jnp.max(_cosine(rows, eps), axis=channels, keepdims=True, initial=0)
    by_channel = worst < delta / math.sqrt(max(size, 1))
    by_layer = _cosine(whole, eps) < delta / math.sqrt(max(size * count, 1))
    fired = by_channel | by_layer
    with_grad, _, squared, with_step = (jnp.where(by_channel, row, part) for row, part in zip(rows, whole, strict=True))
    norm = jnp.maximum(jnp.sqrt(squared) + eps, jnp.finfo(dtype).tiny)
    inner = on_step * with_step
    if not is_zero(on_grad):
        inner = inner + on_grad * with_grad
    views = jnp.where(by_channel, CHANNEL, jnp.where(by_layer, LAYER, NONE)).astype(jnp.int8)
    return Radial(jnp.where(fired, inner, 0) / norm, norm, jnp.where(fired, wd_ratio, 1), views.reshape(-1))


def _cosine(sums: tuple[Array, ...], eps: Any) -> Array:
    inner, grad, param, _ = sums
    # Each norm is clamped on its own: a gradient far below eps counts as orthogonal.
    scale = jnp.maximum(jnp.sqrt(grad), eps) * jnp.maximum(jnp.sqrt(param), eps)
    return jnp.abs(inner) / jnp.where(scale == 0, 1, scale)


class Step(NamedTuple):
    """What a transform does with one parameter: the update in the dtype of the gradient, and the views."""

    update: Array
    views: Int8[Array, " entries"]


def remove(step: Array, param: Array, found: Radial | None, *, scale: Any = 1, stored: bool = False) -> Array:
    """A step without its radial part: `step` is `scale` times what was measured.

    `stored` says that the result is more than a part of the update.
    """
    if found is None:
        return step
    param = param.astype(step.dtype)
    if stored:
        # Dividing the whole array makes it dear enough that XLA does not compute it once for each of its uses. A second
        # use of the parameter would keep the new parameter from taking its place, at the cost of a copy of all weights.
        return step - (scale * found.inner) * param / found.norm
    return step - scale * found.inner / found.norm * param


def finish(leaf: Leaf, step: Array, found: Radial | None, weight_decay: Any) -> Step:
    """Adds the decay to a projected step."""
    if leaf.decays and not is_zero(weight_decay):
        decay = weight_decay if found is None else weight_decay * found.decay
        step = step + decay * leaf.param.astype(step.dtype)
    views = skipped_views(leaf.layout, leaf.param.shape) if found is None else found.views
    return Step(step.astype(jnp.result_type(leaf.grad)), views)


def skipped_views(layout: ParamLayout, shape: tuple[int, ...]) -> Int8[Array, " entries"]:
    """The views of a parameter that is never projected."""
    return jnp.full(math.prod(shape[axis] for axis in layout.batch_axes), SKIPPED, jnp.int8)


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is known to be zero before the program runs."""
    return isinstance(value, int | float) and value == 0


def initial_views(function: str, params: Tree, layout: LayoutRule | None) -> Int8[Array, " entries"]:
    """`NONE` for each parameter with rows and each of its copies, `SKIPPED` for the others.

    One flat array instead of a tree like the parameters: what assigns shardings to an optimizer's state by the paths or
    the structure of the parameters must not take these scalars for arrays of a parameter's shape.
    """
    leaves, _ = flatten(function, params, params, layout, None)
    parts = []
    for leaf in leaves:
        if leaf is not None:
            views = skipped_views(leaf.layout, leaf.param.shape)
            parts.append(jnp.full_like(views, NONE) if leaf.layout.project else views)
    return _join_views(parts)


def assemble(steps: list[Step | None], treedef: Any) -> tuple[Tree, Int8[Array, " entries"]]:
    """The updates as a tree like the parameters, None where there was no gradient, and all views as one array."""
    updates = treedef.unflatten([None if step is None else step.update for step in steps])
    return updates, _join_views([step.views for step in steps if step is not None])


def _join_views(parts: list[Array]) -> Int8[Array, " entries"]:
    return jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.int8)


def check_projection(function: str, *, weight_decay: Any, delta: Any, wd_ratio: Any, eps: Any) -> None:
    """Checks the hyperparameters that every projected optimizer has."""
    for argument, value in (("weight_decay", weight_decay), ("delta", delta), ("wd_ratio", wd_ratio), ("eps", eps)):
        _checks.number(function, argument, value, low=0)


def check_learning_rate(function: str, learning_rate: Any) -> None:
    """Checks a learning rate, which may be a schedule."""
    if not callable(learning_rate):
        _checks.number(function, "learning_rate", learning_rate, low=0)


def project_radial(
    param: Float[Array, "..."],
    grad: Float[Array, "..."],
    perturb: Float[Array, "..."],
    layout: ParamLayout,
    *,
    delta: float = 0.1,
    eps: float = 1e-8,
) -> tuple[Float[Array, "..."], Int8[Array, "..."]]:
    r"""Takes the radial part out of a step where the gradient is orthogonal to the parameter.

    For every row r of n entries, :math:`c_r = |\langle g_r, p_r\rangle| / (\max(\|g_r\|, \epsilon)
    \max(\|p_r\|, \epsilon))`. The channel view fires if :math:`\max_r c_r < \delta/\sqrt n`; if it does not, the layer
    view is tested, whose one row is the whole parameter. In the view that fires, with
    :math:`\hat p_r = p_r / (\|p_r\| + \epsilon)`,

    .. math:: u_r \leftarrow u_r - \hat p_r \langle \hat p_r, u_r \rangle.

    Cosines of random vectors of n entries are of size :math:`1/\sqrt n`: hence the bound. A zero gradient fires; so
    does a zero parameter, to no effect. A gradient that is not finite does not.

    Args:
      param: the parameter, before this step.
      grad: the raw gradient of this step, of the parameter's shape; any positive factor leaves the test as it is, as
        long as the norms stay above `eps`.
      perturb: the step to project, of the parameter's shape, on any scale and of either sign.
      layout: which axes make up a row, and which are copies that decide each for itself.
      delta: how orthogonal a gradient must be: 0 never projects, infinity always by channel.
      eps: lower bound of norms.

    Returns:
      The projected step in the dtype of `perturb`, and the views as int8, of the shape of the batch axes: `NONE` (0),
      `CHANNEL` (1), `LAYER` (2), or `SKIPPED` (3) where the layout says that nothing is to be projected.

    Raises:
      ValueError: if the shapes differ, the layout does not fit them, or `delta` or `eps` is negative.

    References:
      Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, 2021,
      arXiv 2006.08217.
    """
    function = "optim.project_radial"
    _checks.array(function, "param", param, kind="float")
    for argument, value in (("grad", grad), ("perturb", perturb)):
        _checks.array(function, argument, value, shape=jnp.shape(param), kind="float")
    _checks.number(function, "delta", delta, low=0)
    _checks.number(function, "eps", eps, low=0)
    layout = layout.resolve(function, "param", jnp.ndim(param))
    leaf = Leaf("param", layout, False, jnp.asarray(param), jnp.asarray(grad))
    found = radial(leaf, jnp.asarray(perturb), delta=delta, wd_ratio=1, eps=eps)
    projected = remove(jnp.asarray(perturb, _checks.accumulation_dtype(perturb)), leaf.param, found)
    views = skipped_views(layout, leaf.param.shape) if found is None else found.views
    shape = tuple(leaf.param.shape[axis] for axis in layout.batch_axes)
    return projected.astype(jnp.result_type(perturb)), views.reshape(shape)


class ProjectionState(NamedTuple):
    """State of `with_projection`: that of the inner transform, and the views of the last step for `named_views`."""

    inner_state: Any
    views: Int8[Array, " entries"]


def with_projection(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule | None = None,
    weight_decay: float = 0.0,
    *,
    wd_scale: float = 1.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    eps: float = 1e-8,
    layout: LayoutRule | None = None,
    mask: DecayMask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The treatment of AdamP around any inner transform.

    The inner transform makes a direction u of the raw gradient g. The test looks at g, the projection acts on u, and
    the update is :math:`-\eta (u' + \lambda s r p)`, with decay :math:`\lambda`, its scale s, and r = `wd_ratio` for a
    parameter whose view fired and 1 for others. It wraps the inner transform because a transform further down a chain
    sees no raw gradient.

        with_projection(optax.scale_by_lion(), learning_rate=1e-4, weight_decay=0.1)
        with_projection(optax.contrib.muon(0.02, weight_decay=0.0))

    Args:
      inner: gives the direction of descent before the learning rate, as `optax.scale_by_adam` does; or, if
        `learning_rate` is None, a complete optimizer without decay, whose updates are projected as they are.
      learning_rate: a number or a schedule, at the 0-based count; the same value scales the step and the decay.
      weight_decay: decoupled decay. It belongs here and not into the inner transform: decay is radial, so that the
        projection would remove it.
      wd_scale: factor of the decay; SGDP has 1 / (1 - momentum).
      delta: see `project_radial`.
      wd_ratio: factor of the decay where a view fires.
      eps: see `project_radial`.
      layout: layout rule; default `default_layout`.
      mask: which leaves decay, as in `optax.adamw`: a tree of booleans, a prefix of one, or a function of the
        parameters. It has no say in the projection.

    Returns:
      A transform whose `update` needs `params`. Parameters without gradient (None) get no update.

    Raises:
      ValueError: if a hyperparameter is out of range, or there is a weight decay without learning rate; at update, if
        `params` is missing.

    References:
      Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, 2021,
      arXiv 2006.08217.
    """
    function = "optim.with_projection"
    check_projection(function, weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio, eps=eps)
    _checks.number(function, "wd_scale", wd_scale, low=0)
    if learning_rate is None:
        if not is_zero(weight_decay):
            _checks.fail(function, "weight_decay", repr(weight_decay), "0 unless `learning_rate` is given")
    else:
        check_learning_rate(function, learning_rate)
    wrapped = optax.with_extra_args_support(inner)

    def init(params: Tree) -> ProjectionState:
        return ProjectionState(wrapped.init(params), initial_views(function, params, layout))

    def update(
        updates: Tree, state: ProjectionState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, ProjectionState]:
        leaves, treedef = flatten(function, params, updates, layout, mask)
        directions, inner_state = wrapped.update(updates, state.inner_state, params, **extra_args)
        decay = 0 if is_zero(weight_decay) else weight_decay * wd_scale
        steps: list[Step | None] = []
        for leaf, direction in zip(leaves, leaves_like(function, "inner", directions, treedef), strict=True):
            if leaf is None:
                steps.append(None)
                continue
            found = radial(leaf, direction, delta=delta, wd_ratio=wd_ratio, eps=eps)
            direction = direction.astype(_checks.accumulation_dtype(direction))
            steps.append(finish(leaf, remove(direction, leaf.param, found), found, decay))
        projected, views = assemble(steps, treedef)
        return projected, ProjectionState(inner_state, views)

    transform = optax.GradientTransformationExtraArgs(init, update)
    if learning_rate is None:
        return transform
    return optax.with_extra_args_support(optax.chain(transform, optax.scale_by_learning_rate(learning_rate)))
