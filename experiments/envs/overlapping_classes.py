"""Classes in pairs that share a part of their inputs, so that the true probabilities of the labels are known.

Every class has a Gaussian of its own, and every two neighbouring classes (0 and 1, 2 and 3, ...) have one in common,
where nothing tells them apart. An example comes from the common one with the probability of the overlap. There its
label is one of two with equal chances; elsewhere it is nearly certain.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

__all__ = ["Examples", "centres", "log_posterior", "sample"]


class Examples(NamedTuple):
    """Inputs `[n, features]` and labels `[n]`."""

    inputs: Float[Array, "n features"]
    labels: Int[Array, " n"]


def centres(key: PRNGKeyArray, *, classes: int, features: int, radius: float) -> Float[Array, "centres features"]:
    """Centres of the Gaussians in random directions: those of an even number of classes, then those of their pairs."""
    directions = jax.random.normal(key, (classes + classes // 2, features))
    return radius * directions / jnp.linalg.norm(directions, axis=1, keepdims=True)


def sample(
    key: PRNGKeyArray,
    centres: Float[Array, "centres features"],
    overlap: float | Float[Array, ""],
    n: int,
    *,
    present: int | Int[Array, ""],
) -> Examples:
    """Examples of the first `present` classes, an even number, all as frequent."""
    of_labels, of_overlap, of_noise = jax.random.split(key, 3)
    classes = len(centres) * 2 // 3
    labels = jax.random.randint(of_labels, (n,), 0, present)
    common = jax.random.uniform(of_overlap, (n,)) < overlap
    places = centres[jnp.where(common, classes + labels // 2, labels)]
    return Examples(places + jax.random.normal(of_noise, places.shape), labels)


def log_posterior(
    inputs: Float[Array, "n features"],
    centres: Float[Array, "centres features"],
    overlap: float | Float[Array, ""],
    *,
    present: int | Int[Array, ""],
) -> Float[Array, "n classes"]:
    """The logarithms of the true probabilities of the labels; -1e4 for classes that are not present."""
    classes = len(centres) * 2 // 3
    likelihoods = -jnp.sum((inputs[:, None] - centres) ** 2, axis=-1) / 2
    own = jnp.log1p(-overlap) + likelihoods[:, :classes]
    common = jnp.log(overlap) + jnp.repeat(likelihoods[:, classes:], 2, axis=1)
    here = jnp.arange(classes) < present
    logits = jnp.where(here, jnp.logaddexp(own, common), -jnp.inf)
    return jnp.where(here, jax.nn.log_softmax(logits), -1e4)
