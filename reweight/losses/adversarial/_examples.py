"""What attacks share: inputs with a row an example, and sums over all that is of one example."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks

Inputs = Float[Array, "batch *features"]


def per_example(values: Array, like: Array) -> Array:
    """A value per example, shaped to broadcast against `[batch, ...]`."""
    return values.reshape(values.shape[0], *(1,) * (like.ndim - 1))


def dot(a: Array, b: Array) -> Float[Array, " batch"]:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)


def norms(delta: Array) -> Array:
    # Scaled by the largest entry, so that squares neither vanish nor overflow.
    top = jnp.max(jnp.abs(delta).reshape(delta.shape[0], -1), axis=-1, initial=0)
    scaled = delta / per_example(jnp.where(top > 0, top, 1), delta)
    return per_example(top * jnp.sqrt(dot(scaled, scaled)), delta)


def inputs(function: str, x: Inputs) -> Array:
    _checks.array(function, "x", x, kind="float")
    if jnp.ndim(x) < 1:
        _checks.fail(function, "x", "a scalar", "an array whose first axis is the batch")
    return jnp.asarray(x)
