"""What a training run is made of at one moment."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from reweight.losses import BatchLoss
from reweight.weights import LearnedWeighting, Weighting, uniform

__all__ = ["TrainState", "init_state"]

Tree = Any  # a pytree of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes, and all that a checkpoint must hold of the model.

    Attributes:
      step: how many steps were taken, int32.
      params: what the gradient is taken of.
      extra: what the model carries along without a gradient, such as batch statistics; None if nothing.
      opt_state: the state of the optimizer.
      weighting_state: the state of the weighting.
      key: the key of the run. It never changes: each step folds its own number into it.
      loss_state: the state of the loss, if it is a `BatchLoss` with one.
    """

    step: Int[Array, ""]
    params: Tree
    extra: Tree
    opt_state: Tree
    weighting_state: Tree
    key: PRNGKeyArray
    loss_state: Tree = ()

    def replace(self, **changes: Any) -> "TrainState":
        """A copy with some attributes replaced."""
        return dataclasses.replace(self, **changes)


def init_state(
    params: Tree,
    extra: Tree,
    optimizer: optax.GradientTransformation,
    weighting: Weighting | LearnedWeighting | None = None,
    key: PRNGKeyArray | None = None,
    *,
    loss: BatchLoss | None = None,
) -> TrainState:
    """The state before the first step.

    Every array is copied, so that a step that donates its state neither deletes the caller's arrays nor meets the same
    buffer twice, and none keeps JAX's weak type, which a checkpoint would lose and a resumed run then round differently
    for. Under `vmap` over keys it makes the states of many seeds at once.

    Args:
      params: a pytree of float arrays.
      extra: a pytree of arrays, or None.
      optimizer: an optax transformation.
      weighting: the weighting of the run, a learned one for `make_meta_step`; default `weights.uniform()`.
      key: a typed key (`jax.random.key`), from which the keys of the weighting, of the loss and of all steps come;
        default `key(0)`.
      loss: the `BatchLoss` of the run, if `make_step` gets one.

    Returns:
      A `TrainState` at step 0.
    """
    key = jax.random.key(0) if key is None else key
    run_key, weighting_key, loss_key = jax.random.split(key, 3)
    weighting = uniform() if weighting is None else weighting
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=extra,
        opt_state=optimizer.init(params),
        weighting_state=weighting.init(weighting_key),
        key=run_key,
        loss_state=() if loss is None else loss.init(loss_key),
    )
    return jax.tree.map(_strong_copy, state)


def _strong_copy(x: Any) -> Array:
    return jnp.array(x, dtype=jnp.result_type(x), copy=True)
