"""How far two clouds of points lie apart."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks, _vectors

__all__ = ["energy_distance"]


def _mean_distance(a: Array, b: Array) -> Array:
    return jnp.mean(_vectors.length(a[:, None] - b[None]))


def energy_distance(first: Float[Array, "n d"], second: Float[Array, "m d"]) -> Float[Array, ""]:
    r"""Energy distance between two clouds: :math:`2 E\|x - y\| - E\|x - x'\| - E\|y - y'\|`.

    Means are over all pairs of points, those of a point with itself included, so that the distance of a cloud to itself
    is 0, and no distance is negative up to rounding.

    Args:
      first: points `[n, d]`, n at least 1.
      second: points `[m, d]`, m at least 1.

    Returns:
      The distance, float32 or wider. It takes memory for `(n + m)^2` differences.

    Raises:
      ValueError: if the clouds are empty or have points of different sizes.

    References:
      Szekely and Rizzo, *Energy statistics: A class of statistics based on distances*, 2013.
    """
    function = "metrics.distribution.energy_distance"
    _checks.array(function, "first", first, ndim=2, kind="float")
    _checks.array(function, "second", second, ndim=2, kind="float")
    for name, cloud in (("first", first), ("second", second)):
        if jnp.shape(cloud)[0] < 1 or jnp.shape(cloud)[1] != jnp.shape(first)[1]:
            _checks.fail(function, name, f"of shape {jnp.shape(cloud)}", "at least one point, both of one size")
    dtype = _checks.accumulation_dtype(first, second)
    x, y = (jnp.asarray(cloud).astype(dtype) for cloud in (first, second))
    return 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
