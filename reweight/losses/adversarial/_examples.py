"""What attacks share: inputs with a row an example, and sums over all that is of one example."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks, _vectors

Inputs = Float[Array, "batch *features"]


def per_example(values: Array, like: Array) -> Array:
    """A value per example, shaped to broadcast against `[batch, ...]`."""
    return values.reshape(values.shape[0], *(1,) * (like.ndim - 1))


def dot(a: Array, b: Array) -> Float[Array, " batch"]:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)


def norms(delta: Array) -> Array:
    """Of each example, shaped to broadcast against `[batch, ...]`."""
    return _vectors.length(delta, axis=tuple(range(1, delta.ndim)), keepdims=True)


def inputs(function: str, x: Inputs) -> Array:
    _checks.array(function, "x", x, kind="float")
    if jnp.ndim(x) < 1:
        _checks.fail(function, "x", "a scalar", "an array whose first axis is the batch")
    return jnp.asarray(x)
