"""Vectors of length one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks

_SHORTEST = 1e-12


def unit(vectors: Float[Array, "... features"]) -> Float[Array, "... features"]:
    """Vectors divided by their norms, float32 or wider; what is too short for a direction is 0, without gradient."""
    vectors = jnp.asarray(vectors).astype(_checks.accumulation_dtype(vectors))
    # Scaled by the largest entry, so that squares neither vanish nor overflow.
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True, initial=0))
    long = top > _SHORTEST
    scaled = jnp.where(long, vectors / jnp.where(long, top, 1), 0)
    squares = jnp.sum(scaled**2, axis=-1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(long, squares, 1))
