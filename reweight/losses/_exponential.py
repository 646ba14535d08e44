"""Exponentials that stay in range, and powers that pass through the logarithm."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def exp_continued(exponent: Array, *, less_one: bool = False) -> Array:
    """`exp` (or `expm1`), continued by its tangent where it would leave the range of the dtype.

    What comes back and its slope are finite, and the slope does not vanish.
    """
    # The tangent may rise by another factor e^20 before it leaves the range itself.
    limit = jnp.log(jnp.asarray(jnp.finfo(exponent.dtype).max, exponent.dtype)) - 20
    inside = jnp.minimum(exponent, limit)
    tangent = jnp.exp(inside) * jnp.maximum(exponent - limit, 0)
    return (jnp.expm1(inside) if less_one else jnp.exp(inside)) + tangent


def power_of_log(values: Array, power: float | Float[Array, ""]) -> Array:
    r""":math:`(e^{kv} - 1)/k` of logarithms :math:`v`, which is :math:`v` itself at power :math:`k = 0`."""
    power = jnp.asarray(power, values.dtype)
    safe = jnp.where(power == 0, 1, power)
    return jnp.where(power == 0, values, exp_continued(safe * values, less_one=True) / safe)
