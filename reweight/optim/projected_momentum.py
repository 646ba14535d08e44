r"""AdamP and SGDP: Adam and SGD with momentum whose steps are projected where weights are scale-invariant.

Both follow the authors' PyTorch package, argument by argument and number by number. For what the projection does and
why, see `reweight.optim.projection`; for which axes of a parameter are its channels, `reweight.optim.layout`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Int8

from reweight import _checks
from reweight.optim.layout import LayoutRule
from reweight.optim.projection import (
    DecayMask,
    Step,
    assemble,
    check_learning_rate,
    check_projection,
    finish,
    flatten,
    initial_views,
    is_zero,
    leaves_like,
    radial,
    remove,
)

__all__ = ["ScaleByAdamPState", "ScaleBySGDPState", "adamp", "scale_by_adamp", "scale_by_sgdp", "sgdp"]

Tree = Any


class ScaleByAdamPState(NamedTuple):
    """State of `scale_by_adamp`: step count, moments (float32 at least), the last step's views for `named_views`."""

    count: Int[Array, ""]  # type: ignore[assignment]
    mu: Tree
    nu: Tree
    views: Int8[Array, " entries"]


class ScaleBySGDPState(NamedTuple):
    """State of `scale_by_sgdp`: the buffer (float32 at least), and the last step's views for `named_views`."""

    trace: Tree
    views: Int8[Array, " entries"]


def _zeros(params: Tree) -> Tree:
    """Zeros for a moment, float32 at least: in bfloat16 a moving average stops moving at 1/256 of a change."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, _checks.accumulation_dtype(p)), params)


def scale_by_adamp(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    layout: LayoutRule | None = None,
    mask: DecayMask | None = None,
) -> optax.GradientTransformation:
    r"""The direction of AdamP, decay included, before the learning rate: `adamp` without its last factor.

    The decay is in here because its strength depends on the test. Arguments and formula as in `adamp`.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment, and lower bound of norms in the test.
      weight_decay: decoupled decay.
      delta: how orthogonal a gradient must be, see `project_radial`.
      wd_ratio: factor of the decay where a view fires.
      nesterov: whether the numerator looks one step ahead.
      layout: layout rule; default `default_layout`.
      mask: which leaves decay.

    Returns:
      A transform whose `update` needs `params`.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if `params` is missing.
    """
    return _scale_by_adamp("optim.scale_by_adamp", b1, b2, eps, weight_decay, delta, wd_ratio, nesterov, layout, mask)


def _scale_by_adamp(
    function: str,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    delta: float,
    wd_ratio: float,
    nesterov: bool,
    layout: LayoutRule | None,
    mask: DecayMask | None,
) -> optax.GradientTransformation:
    _checks.number(function, "b1", b1, low=0, high=1, open_high=True)
    _checks.number(function, "b2", b2, low=0, high=1, open_high=True)
    check_projection(function, weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio, eps=eps)
    _checks.choice(function, "nesterov", nesterov, (False, True))

    def init(params: Tree) -> ScaleByAdamPState:
        # Two separate trees of zeros: one and the same buffer could not be donated for both.
        mu, nu = _zeros(params), _zeros(params)
        return ScaleByAdamPState(jnp.zeros([], jnp.int32), mu, nu, initial_views(function, params, layout))

    def update(updates: Tree, state: ScaleByAdamPState, params: Tree | None = None) -> tuple[Tree, ScaleByAdamPState]:
        leaves, treedef = flatten(function, params, updates, layout, mask)
        count = optax.safe_increment(state.count)
        first, second = (leaves_like(function, "state", moment, treedef) for moment in (state.mu, state.nu))
        steps: list[Step | None] = []
        for index, (leaf, m, v) in enumerate(zip(leaves, first, second, strict=True)):
            if leaf is None:
                steps.append(None)
                continue
            dtype = _checks.accumulation_dtype(leaf.param, leaf.grad)
            grad = leaf.grad.astype(dtype)
            first_left, second_left = (jnp.asarray(1 - decay**count, dtype) for decay in (b1, b2))
            mu = b1 * m.astype(dtype) + (1 - b1) * grad
            # Not (1 - b2) * (grad * grad): XLA would store the square for the test, which sums it, too.
            nu = b2 * v.astype(dtype) + ((1 - b2) * grad) * grad
            first[index], second[index] = mu.astype(m.dtype), nu.astype(v.dtype)
            numerator = b1 * mu + (1 - b1) * grad if nesterov else mu
            direction = numerator / (jnp.sqrt(nu * (1 / second_left)) + eps)
            found = radial(leaf, direction, delta=delta, wd_ratio=wd_ratio, eps=eps)
            # The bias correction of the numerator goes into the denominator. So written, the step has no part in common
            # with the direction that was measured, and XLA has no array to store between the two.
            scaled = numerator / (jnp.sqrt(nu * (first_left * first_left / second_left)) + eps * first_left)
            steps.append(finish(leaf, remove(scaled, leaf.param, found, scale=1 / first_left), found, weight_decay))
        directions, views = assemble(steps, treedef)
        return directions, ScaleByAdamPState(count, treedef.unflatten(first), treedef.unflatten(second), views)

    return optax.GradientTransformation(init, update)


def adamp(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    layout: LayoutRule | None = None,
    mask: DecayMask | None = None,
) -> optax.GradientTransformation:
    r"""AdamP: AdamW whose step loses its radial part wherever the weights show to be scale-invariant.

    With the moments m and v of Adam and t the 1-based step,

    .. math::

        u &= m / (\sqrt{v / (1 - \beta_2^t)} + \epsilon) \\
        (u', r) &= (\text{projected } u, \rho) \text{ where a view fires, else } (u, 1) \\
        p &\leftarrow p - \eta \lambda r p - \frac{\eta}{1 - \beta_1^t} u'.

    The test reads the raw gradient and the parameter before the step (`project_radial`); the moments are never
    projected. Vectors (biases, norm scales) are neither tested nor projected, and decay fully.

    With `nesterov` the numerator is :math:`\beta_1 m + (1 - \beta_1) g` under the same bias correction, as in the
    authors' package; `optax.nadamw` corrects its two terms differently.

    Args:
      learning_rate: a number or a schedule at the 0-based count; the same value scales the step and the decay.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment, and lower bound of norms in the test.
      weight_decay: decoupled decay.
      delta: how orthogonal a gradient must be: 0 is `optax.adamw`, infinity projects every kernel by channel.
      wd_ratio: factor of the decay where a view fires; 1 decays all alike.
      nesterov: whether the numerator looks one step ahead.
      layout: layout rule, see `reweight.optim.layout`; default `default_layout`. Under `optax.inject_hyperparams`,
        which takes any function for a schedule, name it in `static_args`.
      mask: which leaves decay, as in `optax.adamw`: a tree of booleans, a prefix of one, or a function of the
        parameters. It has no say in the projection.

    Returns:
      An optimizer whose `update` needs `params`. Parameters without gradient (None) get no update.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if `params` is missing.

    References:
      Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, 2021,
      arXiv 2006.08217.
    """
    function = "optim.adamp"
    check_learning_rate(function, learning_rate)
    return optax.chain(
        _scale_by_adamp(function, b1, b2, eps, weight_decay, delta, wd_ratio, nesterov, layout, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_sgdp(
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    eps: float = 1e-8,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    project_buffer: bool = True,
    layout: LayoutRule | None = None,
    mask: DecayMask | None = None,
) -> optax.GradientTransformation:
    r"""The direction of SGDP, decay included, before the learning rate: `sgdp` without its last factor.

    The decay is in here because its strength depends on the test. Arguments and formula as in `sgdp`.

    Args:
      momentum: decay of the buffer, in [0, 1).
      dampening: what of each gradient, the first too, does not enter the buffer, in [0, 1].
      weight_decay: decoupled decay, before the division by 1 - momentum.
      nesterov: whether the direction looks one step ahead.
      eps: lower bound of norms in the test.
      delta: how orthogonal a gradient must be, see `project_radial`.
      wd_ratio: factor of the decay where a view fires.
      project_buffer: whether the buffer is stored projected.
      layout: layout rule; default `default_layout`.
      mask: which leaves decay.

    Returns:
      A transform whose `update` needs `params`.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if `params` is missing.
    """
    return _scale_by_sgdp(
        "optim.scale_by_sgdp",
        momentum, dampening, weight_decay, nesterov, eps, delta, wd_ratio, project_buffer, layout, mask,
    )  # fmt: skip


def _scale_by_sgdp(
    function: str,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    eps: float,
    delta: float,
    wd_ratio: float,
    project_buffer: bool,
    layout: LayoutRule | None,
    mask: DecayMask | None,
) -> optax.GradientTransformation:
    _checks.number(function, "momentum", momentum, low=0, high=1, open_high=True)
    _checks.number(function, "dampening", dampening, low=0, high=1)
    check_projection(function, weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio, eps=eps)
    _checks.choice(function, "nesterov", nesterov, (False, True))
    _checks.choice(function, "project_buffer", project_buffer, (False, True))

    def init(params: Tree) -> ScaleBySGDPState:
        return ScaleBySGDPState(_zeros(params), initial_views(function, params, layout))

    def update(updates: Tree, state: ScaleBySGDPState, params: Tree | None = None) -> tuple[Tree, ScaleBySGDPState]:
        leaves, treedef = flatten(function, params, updates, layout, mask)
        buffers = leaves_like(function, "state", state.trace, treedef)
        decay = 0 if is_zero(weight_decay) else weight_decay / (1 - momentum)
        steps: list[Step | None] = []
        for index, (leaf, old) in enumerate(zip(leaves, buffers, strict=True)):
            if leaf is None:
                steps.append(None)
                continue
            dtype = _checks.accumulation_dtype(leaf.param, leaf.grad)
            grad = leaf.grad.astype(dtype)
            buffer = momentum * old.astype(dtype) + (1 - dampening) * grad
            # The inner product with the parameter is taken of what is stored before the projection: the new buffer, or,
            # if that is itself projected, the old one and the gradient.
            if nesterov:
                direction, measured, on_measured, on_grad = grad + momentum * buffer, buffer, momentum, 1.0
            elif project_buffer:
                direction, measured, on_measured, on_grad = buffer, old, momentum, 1 - dampening
            else:
                direction, measured, on_measured, on_grad = buffer, buffer, 1.0, 0.0
            found = radial(
                leaf, measured, delta=delta, wd_ratio=wd_ratio, eps=eps, on_step=on_measured, on_grad=on_grad
            )
            stores_direction = project_buffer and not nesterov
            projected = remove(direction, leaf.param, found, stored=stores_direction)
            # With nesterov the direction is not the buffer, which the authors' code, projecting in place, leaves alone.
            buffers[index] = (projected if stores_direction else buffer).astype(old.dtype)
            steps.append(finish(leaf, projected, found, decay))
        directions, views = assemble(steps, treedef)
        return directions, ScaleBySGDPState(treedef.unflatten(buffers), views)

    return optax.GradientTransformation(init, update)


def sgdp(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    eps: float = 1e-8,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    project_buffer: bool = True,
    layout: LayoutRule | None = None,
    mask: DecayMask | None = None,
) -> optax.GradientTransformation:
    r"""SGDP: SGD with momentum whose step loses its radial part wherever the weights show to be scale-invariant.

    With momentum :math:`\mu` and dampening :math:`\tau`,

    .. math::

        b &\leftarrow \mu b + (1 - \tau) g, \qquad q = g + \mu b \text{ with nesterov, else } b \\
        (q', r) &= (\text{projected } q, \rho) \text{ where a view fires, else } (q, 1) \\
        p &\leftarrow p - \frac{\eta \lambda r}{1 - \mu} p - \eta q'.

    The test reads the raw gradient and the parameter before the step (`project_radial`). Vectors (biases, norm scales)
    are neither tested nor projected, and decay fully. The buffer starts at zero, so that dampening acts on the first
    gradient too; `torch.optim.SGD` starts it with the undamped gradient.

    The authors' package projects q in place. Without nesterov q is the buffer itself, which is then stored projected
    (`project_buffer=True`); in the paper's algorithm, and in timm, the buffer is never touched
    (`project_buffer=False`). With nesterov the two are the same.

    Args:
      learning_rate: a number or a schedule at the 0-based count; the same value scales the step and the decay.
      momentum: decay of the buffer, in [0, 1).
      dampening: what of each gradient does not enter the buffer, in [0, 1].
      weight_decay: decoupled decay. It acts divided by 1 - momentum, the share of the steps that momentum adds.
      nesterov: whether the direction looks one step ahead.
      eps: lower bound of norms in the test.
      delta: how orthogonal a gradient must be: 0 is `optax.sgd` (with the decay above), infinity projects every kernel
        by channel.
      wd_ratio: factor of the decay where a view fires; 1 decays all alike.
      project_buffer: whether the buffer is stored projected, where it is the direction.
      layout: layout rule, see `reweight.optim.layout`; default `default_layout`. Under `optax.inject_hyperparams`,
        which takes any function for a schedule, name it in `static_args`.
      mask: which leaves decay, as in `optax.adamw`: a tree of booleans, a prefix of one, or a function of the
        parameters. It has no say in the projection.

    Returns:
      An optimizer whose `update` needs `params`. Parameters without gradient (None) get no update.

    Raises:
      ValueError: if a hyperparameter is out of range (momentum 1 divides the decay by zero); at update, if `params` is
        missing.

    References:
      Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights*, 2021,
      arXiv 2006.08217.
    """
    function = "optim.sgdp"
    check_learning_rate(function, learning_rate)
    return optax.chain(
        _scale_by_sgdp(
            function,
            momentum, dampening, weight_decay, nesterov, eps, delta, wd_ratio, project_buffer, layout, mask,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )  # fmt: skip
