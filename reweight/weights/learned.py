"""Weights that are learned: their parameters follow the loss of a second batch after a step on the first.

A `LearnedWeighting` is trained by `train.make_meta_step`, which does both: a step of the model on weighted losses, and
a step of the weights' parameters along `meta_gradient`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from reweight import _checks
from reweight.weights import base

__all__ = ["LearnedState", "LearnedWeighting", "MetaGradient", "meta_gradient"]

Tree = Any  # a pytree of arrays
Objective = Callable[[Tree, Tree], tuple[Float[Array, ""], Any]]


class ApplyFn(Protocol):
    """Weights for a batch, with a gradient in `params` alone, and the next memory."""

    def __call__(
        self, params: Tree, memory: Tree, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], Tree]: ...


class LearnedState(NamedTuple):
    """The state of a `LearnedWeighting`: what is learned, its optimizer's state, and a memory for each of two streams.

    Attributes:
      params: the parameters of the weights.
      opt_state: the state of their optimizer.
      memory: of the batches that the model takes steps on.
      outer_memory: of the batches that judge these steps.
    """

    params: Tree
    opt_state: Tree
    memory: Tree
    outer_memory: Tree


class LearnedWeighting(NamedTuple):
    """A weighting with parameters that are learned, in pure functions.

    Attributes:
      init_params: `init_params(key) -> params`.
      init_memory: `init_memory() -> memory`, what the weights remember of earlier batches; an empty tree if nothing.
      apply: `apply(params, memory, losses, **signals) -> (weights, memory)`. Losses and signals are constants to it.
      optimizer: an optax transformation for the parameters.
      signals: the names that `apply` cannot do without.
    """

    init_params: Callable[[PRNGKeyArray], Tree]
    init_memory: Callable[[], Tree]
    apply: ApplyFn
    optimizer: optax.GradientTransformation
    signals: tuple[str, ...] = ()

    def init(self, key: PRNGKeyArray | None = None) -> LearnedState:
        """The state before the first step; the parameters are drawn from the key, `key(0)` by default."""
        params = self.init_params(jax.random.key(0) if key is None else key)
        return LearnedState(params, self.optimizer.init(params), self.init_memory(), self.init_memory())

    def fixed(self, params: Tree) -> base.Weighting:
        """The `Weighting` with these parameters, which learns nothing more; its state is the memory."""

        def update(
            state: base.State, losses: Float[Array, "..."], **signals: Any
        ) -> tuple[Float[Array, "..."], base.State]:
            return jax.lax.stop_gradient(self.apply(params, state, losses, **signals))

        return base.Weighting(lambda key=None: self.init_memory(), update, "batch", self.signals)


class MetaGradient(NamedTuple):
    """What one step of a model, and the derivative through it, give.

    Attributes:
      grads: the gradient in the meta-parameters, a tree like them.
      params: the parameters after the step.
      opt_state: the optimizer's state after the step.
      inner: value and auxiliary output of the inner objective, before the step.
      outer: value and auxiliary output of the outer objective, after the step.
      slope: the gradient of the step, a tree like the parameters.
    """

    grads: Tree
    params: Tree
    opt_state: Tree
    inner: tuple[Float[Array, ""], Any]
    outer: tuple[Float[Array, ""], Any]
    slope: Tree


def meta_gradient(
    params: Tree,
    meta_params: Tree,
    opt_state: Tree,
    *,
    inner: Objective,
    outer: Objective,
    optimizer: optax.GradientTransformation,
) -> MetaGradient:
    r"""Gradient of an outer objective in meta-parameters that act through a step on an inner one.

    .. math::
        \nabla_\omega J(\theta'(\omega), \omega),
        \qquad \theta'(\omega) = U(\theta, \nabla_\theta I(\theta, \omega))

    with the optimizer's step :math:`U` from the state that it has: the direct part :math:`\partial J / \partial \omega`
    plus the part through the step. The latter needs two more gradients of :math:`I` and no matrix of second
    derivatives: it is the gradient in :math:`\omega` of the slope of :math:`I` along one direction.

    The optimizer's moments from earlier steps are constants. Where the slope of its update is not finite, as that of
    Adam is for a parameter whose gradient has always been 0, the part through the step takes it as 0.

    Args:
      params: :math:`\theta`, a tree of float arrays.
      meta_params: :math:`\omega`, a tree of float arrays.
      opt_state: of the optimizer, for `params`.
      inner: `inner(params, meta_params) -> (value, auxiliary output)`.
      outer: the same, called with the parameters after the step.
      optimizer: an optax transformation; one that takes extra arguments gets the inner value as `value`.

    Returns:
      A `MetaGradient`, with the step that was taken.

    Raises:
      ValueError: if an objective is no scalar, or `opt_state` is not of the optimizer and `params`.

    References:
      Ren et al., *Learning to Reweight Examples for Robust Deep Learning*, 2018, arXiv 1803.09050.
    """
    function = "weights.meta_gradient"
    optimizer = optax.with_extra_args_support(optimizer)
    _checks.same_structure(
        function, "opt_state", opt_state, jax.eval_shape(optimizer.init, params), like_name="the optimizer's state"
    )

    def scalar(name: str, objective: Objective) -> Objective:
        def checked(params: Tree, meta_params: Tree) -> tuple[Float[Array, ""], Any]:
            value, aux = objective(params, meta_params)
            _checks.array(function, name, value, ndim=0, kind="float")
            return value, aux

        return checked

    inner, outer = scalar("inner", inner), scalar("outer", outer)
    found, slope = jax.value_and_grad(inner, has_aux=True)(params, meta_params)

    def update(grads: Tree) -> tuple[Tree, Tree]:
        return optimizer.update(grads, opt_state, params, value=jax.lax.stop_gradient(found[0]))

    updates, backward, new_opt_state = jax.vjp(update, slope, has_aux=True)
    new_params = optax.apply_updates(params, updates)
    judged, (ahead, direct) = jax.value_and_grad(outer, argnums=(0, 1), has_aux=True)(new_params, meta_params)
    (along,) = backward(jax.tree.map(lambda x, like: x.astype(like.dtype), ahead, updates))
    along = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), along)

    def slope_along(meta_params: Tree) -> Float[Array, ""]:
        return jax.jvp(lambda params: inner(params, meta_params)[0], (params,), (along,))[1]

    grads = jax.tree.map(jnp.add, direct, jax.grad(slope_along)(meta_params))
    return MetaGradient(grads, new_params, new_opt_state, found, judged, slope)
