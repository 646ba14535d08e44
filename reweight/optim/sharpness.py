r"""Sharpness-aware steps: down the gradient of the worst loss nearby, and down the gap between that loss and this one.

Two gradients make a step, that at the parameters and that at the parameters moved up it:

    optimizer = optim.sharpness_aware(optax.sgd(1e-3, momentum=0.9), rho=0.05, gap_weight=0.4)
    state = optimizer.init(params)
    grad_fn = jax.grad(loss)  # of the same batch in both places
    updates, state = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)

Norms and inner products are over all parameters together. Under `jax.jit` that is right however they are sharded; a
part of the parameters is adapted by handing the optimizer that part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from reweight import _checks

__all__ = ["ascent_step", "sharpness_aware", "surrogate_gap_gradient"]

Tree = Any  # a pytree of float arrays


def _wide(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(_checks.accumulation_dtype(leaf)), tree)


def _dot(left: Tree, right: Tree) -> Float[Array, ""]:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), left, right)
    return jax.tree.reduce(jnp.add, products, jnp.zeros(()))


def _norm(tree: Tree) -> Float[Array, ""]:
    squares = _dot(tree, tree)
    some = squares > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0)


def _like(tree: Tree, like: Tree) -> Tree:
    return jax.tree.map(lambda leaf, other: leaf.astype(jnp.result_type(other)), tree, like)


def ascent_step(grads: Tree, *, rho: float = 0.05, eps: float = 1e-12) -> Tree:
    r"""The step of length :math:`\rho` up the gradient, :math:`\rho\, g / (\|g\| + \epsilon)`.

    Args:
      grads: a pytree of float arrays. The norm is over all of them together.
      rho: the length, in [0, inf).
      eps: added to the norm, in (0, inf).

    Returns:
      A tree like `grads`, in their dtypes; 0 where the gradient is.

    Raises:
      ValueError: if a hyperparameter is out of range.

    References:
      Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, 2021, arXiv 2010.01412.
    """
    _check("optim.ascent_step", rho=rho, eps=eps)
    wide = _wide(grads)
    scale = rho / (_norm(wide) + eps)
    return _like(jax.tree.map(lambda g: scale * g, wide), grads)


def surrogate_gap_gradient(grads: Tree, perturbed_grads: Tree, *, gap_weight: float = 0.4, eps: float = 1e-12) -> Tree:
    r"""The gradient at the perturbed parameters, less a part of the other one that is orthogonal to it.

    With :math:`g` at the parameters and :math:`g_p` where `ascent_step` leads,

    .. math:: g_p - \alpha \Big(g - \cos(g, g_p)\, \|g\| \frac{g_p}{\|g_p\|}\Big).

    Going down it lowers the perturbed loss as going down :math:`g_p` does, and besides raises the loss at the
    parameters: it closes the gap between the two, which is the sharpness.

    Args:
      grads: :math:`g`, a pytree of float arrays. Norms and inner products are over all of them together.
      perturbed_grads: :math:`g_p`, of the same structure.
      gap_weight: :math:`\alpha`, in [0, inf); 0 gives the perturbed gradient.
      eps: added to products of norms and to norms before they divide, in (0, inf).

    Returns:
      A tree like `perturbed_grads`, in their dtypes.

    Raises:
      ValueError: if the trees differ in structure or shapes, or a hyperparameter is out of range.

    References:
      Zhuang et al., *Surrogate Gap Minimization Improves Sharpness-Aware Training*, 2022, arXiv 2203.08065.
    """
    function = "optim.surrogate_gap_gradient"
    _check(function, gap_weight=gap_weight, eps=eps)
    _checks.same_structure(function, "perturbed_grads", perturbed_grads, grads, like_name="grads")
    here, there = _wide(grads), _wide(perturbed_grads)
    here_norm, there_norm = _norm(here), _norm(there)
    cosine = _dot(here, there) / (here_norm * there_norm + eps)
    along = cosine * here_norm / (there_norm + eps)
    return _like(jax.tree.map(lambda g, p: p - gap_weight * (g - along * p), here, there), perturbed_grads)


def _check(function: str, eps: float, **others: float) -> None:
    for name, value in others.items():
        _checks.number(function, name, value, low=0, open_high=True)
    _checks.number(function, "eps", eps, low=0, open_low=True, open_high=True)


def sharpness_aware(
    inner: optax.GradientTransformation, *, rho: float = 0.05, gap_weight: float = 0.4, eps: float = 1e-12
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer on the `surrogate_gap_gradient` in place of the gradient.

    | method | arguments |
    |---|---|
    | the plain optimizer | `rho=0` |
    | SAM; SAR with a gradient of the sure predictions | `gap_weight=0` |
    | GSAM; RSGS with a gradient of the sure predictions | the defaults |

    A gradient of the sure predictions is that of `adapt.entropy_step`. Where the perturbed gradient is 0 throughout, as
    it is where no prediction is sure, there is no step: the updates are 0, and the state of the inner optimizer stays.

    Args:
      inner: the optimizer that takes the step.
      rho: how far away the worst loss is looked for, in [0, inf).
      gap_weight: how much the gap between that loss and this one counts, in [0, inf).
      eps: guards the divisions by norms, in (0, inf).

    Returns:
      A transformation with the state of the inner one. `update(grads, state, params, grad_fn=...)` needs the parameters
      and `grad_fn(params) -> grads`, the gradient on the same batch elsewhere, which it calls once. Other extra
      arguments go to the inner optimizer.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if `params` or `grad_fn` is missing, or gradients do
        not have the structure of the parameters.

    References:
      Yu, Lu and Zhang, *Generalized Incremental Learning under Concept Drift across Evolving Data Streams*, 2025,
      arXiv 2506.05736. Zhuang et al., *Surrogate Gap Minimization Improves Sharpness-Aware Training*, 2022, arXiv
      2203.08065. Niu et al., *Towards Stable Test-Time Adaptation in Dynamic Wild World*, 2023, arXiv 2302.12400.
    """
    function = "optim.sharpness_aware"
    _check(function, rho=rho, gap_weight=gap_weight, eps=eps)
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        grad_fn: Callable[[Tree], Tree] | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, Any]:
        if params is None:
            _checks.fail(function, "params", "None", "a tree of arrays, the third argument of `update`")
        if grad_fn is None:
            _checks.fail(function, "grad_fn", "missing", "a function from parameters to gradients on the same batch")
        _checks.same_structure(function, "updates", updates, params, like_name="params")
        perturbed = grad_fn(optax.apply_updates(params, ascent_step(updates, rho=rho, eps=eps)))
        _checks.same_structure(function, "grad_fn", perturbed, params, like_name="params")
        direction = surrogate_gap_gradient(updates, perturbed, gap_weight=gap_weight, eps=eps)
        steps, moved = inner.update(direction, state, params, **extra_args)
        nonzero = jax.tree.map(lambda leaf: jnp.any(leaf != 0), perturbed)
        some = jax.tree.reduce(jnp.logical_or, nonzero, jnp.zeros((), bool))
        steps = jax.tree.map(lambda leaf: jnp.where(some, leaf, 0), steps)
        return steps, jax.tree.map(lambda new, old: jnp.where(some, new, old), moved, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
