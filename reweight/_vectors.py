"""Euclidean lengths and directions of vectors of any size: squares neither vanish nor overflow, and no slope is NaN.

They stand here because losses, weights, metrics and dynamics all need them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reweight import _checks

_SHORTEST = 1e-12

Axis = int | tuple[int, ...] | None


def length(vectors: Float[Array, "..."], *, axis: Axis = -1, keepdims: bool = False) -> Float[Array, "..."]:
    """Euclidean norms along the axis (None: of all entries); 0, without gradient, for a vector of zeros."""
    scaled, top, some = _in_units_of_the_largest(vectors, axis, float(jnp.finfo(vectors.dtype).tiny))
    squares = jnp.sum(scaled**2, axis=axis, keepdims=True)
    found = jnp.where(some, top * jnp.sqrt(jnp.where(some, squares, 1)), 0)
    return found if keepdims else jnp.squeeze(found, axis)


def unit(vectors: Float[Array, "... features"]) -> Float[Array, "... features"]:
    """Vectors divided by their norms, float32 or wider; what is too short for a direction is 0, without gradient."""
    vectors = jnp.asarray(vectors).astype(_checks.accumulation_dtype(vectors))
    scaled, _, long = _in_units_of_the_largest(vectors, -1, _SHORTEST)
    squares = jnp.sum(scaled**2, axis=-1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(long, squares, 1))


def _in_units_of_the_largest(vectors: Array, axis: Axis, least: float) -> tuple[Array, Array, Bool[Array, "..."]]:
    """Vectors divided by their largest entries, those entries, held constant, and which are larger than the least.

    The vectors of the others are 0.
    """
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=axis, keepdims=True, initial=0))
    some = top > least
    return jnp.where(some, vectors / jnp.where(some, top, 1), 0), top, some
