"""Two classes with opposite means and noise from symmetric stable laws: Gaussian, Holtsmark, Cauchy.

The tails of a stable law of index alpha < 2 fall as a power, and it has no variance; a sum of independent draws is a
draw of the same law. Under a linear rule two classes in many dimensions are therefore two classes in one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["LAWS", "Law", "accuracies", "symmetric_stable"]

DRAWS = 200_000  # in one dimension, for distributions without a formula


class Law(NamedTuple):
    """Noise of every entry: the index and the scale of a stable law, and its name."""

    alpha: float
    scale: float
    label: str


# Of the Gaussian the standard deviation is one. The heavier the tails, the smaller the scale that leaves much to learn.
LAWS = {
    "gaussian": Law(2.0, 0.5**0.5, "Gaussian"),
    "holtsmark": Law(1.5, 0.5, "Holtsmark, alpha = 1.5"),
    "cauchy": Law(1.0, 0.1, "Cauchy, alpha = 1"),
}


def symmetric_stable(key: PRNGKeyArray, alpha: float, shape: tuple[int, ...]) -> Float[Array, "..."]:
    r"""Draws with the characteristic function :math:`\exp(-|t|^\alpha)`, by the method of Chambers, Mallows and Stuck.

    Args:
      key: a random key.
      alpha: the index, in (0, 2]; 2 is a Gaussian of variance 2, 1 the Cauchy distribution.
      shape: of the result.

    Returns:
      Draws of that shape.
    """
    of_angle, of_size = jax.random.split(key)
    angle = jax.random.uniform(of_angle, shape, minval=-np.pi / 2, maxval=np.pi / 2)
    size = jnp.maximum(jax.random.exponential(of_size, shape), 1e-12)
    # In float32 the ends of the interval lie beyond the right angle, where the cosine is negative.
    cosine, other = (jnp.maximum(jnp.cos(times * angle), 1e-7) for times in (1, 1 - alpha))
    tilted = other / size
    return jnp.sin(alpha * angle) / cosine ** (1 / alpha) * tilted ** ((1 - alpha) / alpha)


def accuracies(
    weights: Float[np.ndarray, "... d"], bias: Float[np.ndarray, "..."], theta: Float[np.ndarray, " d"], law: Law
) -> Float[np.ndarray, "... 2"]:
    """The shares of the positive and of the negative class that linear rules classify rightly, from many draws."""
    draws = np.sort(np.asarray(symmetric_stable(jax.random.key(0), law.alpha, (DRAWS,)), np.float64))
    spread = law.scale * np.sum(np.abs(weights) ** law.alpha, axis=-1) ** (1 / law.alpha)
    margin = weights @ theta
    reach = np.stack([margin + bias, margin - bias], axis=-1) / np.maximum(spread, 1e-12)[..., None]
    return np.searchsorted(draws, reach) / DRAWS
