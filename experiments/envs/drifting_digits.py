"""A stream of digits that are turned, blurred and covered by noise more and more, while new classes appear."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import ndimage
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.envs.growing_digits import BASE, CLASSES

__all__ = ["Stream", "drifted", "drifting_stream"]

SESSIONS = CLASSES - BASE + 1
TURN, BLUR, NOISE = 20.0, 0.5, 0.3  # at the end: degrees, share of the blurred image, standard deviation


class Stream(NamedTuple):
    """Batches in the order in which they come.

    Attributes:
      inputs: `[batches, size, 8, 8, 1]`.
      labels: `[batches, size]`.
      shots: labelled examples of the class that appears with a batch, drifted as far `[batches, shots, 8, 8, 1]`.
      arrived: the number of this class, or -1 if none appears `[batches]`.
      seen: how many classes there are so far `[batches]`.
    """

    inputs: Float[Array, "batches size 8 8 1"]
    labels: Int[Array, "batches size"]
    shots: Float[Array, "batches shots 8 8 1"]
    arrived: Int[Array, " batches"]
    seen: Int[Array, " batches"]


def _turned(image: Float[Array, "8 8"], degrees: Float[Array, ""]) -> Float[Array, "8 8"]:
    angle, middle = jnp.deg2rad(degrees), (image.shape[0] - 1) / 2
    rows, columns = jnp.meshgrid(*(jnp.arange(side) - middle for side in image.shape), indexing="ij")
    source = [
        jnp.cos(angle) * rows - jnp.sin(angle) * columns + middle,
        jnp.sin(angle) * rows + jnp.cos(angle) * columns + middle,
    ]
    return ndimage.map_coordinates(image, source, order=1, mode="nearest")


def drifted(
    key: PRNGKeyArray, images: Float[Array, "batch 8 8 1"], severity: Float[Array, ""]
) -> Float[Array, "batch 8 8 1"]:
    """Images turned by 20 degrees, blurred and covered by noise, all of it in proportion to the severity.

    Args:
      key: draws the noise.
      images: `[B, 8, 8, 1]`.
      severity: in [0, 1]; 0 leaves them as they are.

    Returns:
      Images of the same shape.
    """
    turned = jax.vmap(_turned, (0, None))(images[..., 0], severity * TURN)
    padded = jnp.pad(turned, ((0, 0), (1, 1), (1, 1)), mode="edge")
    row = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    blurred = (row[:, :, :-2] + 2 * row[:, :, 1:-1] + row[:, :, 2:]) / 4
    mixed = turned + severity * BLUR * (blurred - turned)
    return (mixed + severity * NOISE * jax.random.normal(key, mixed.shape))[..., None]


def drifting_stream(
    key: PRNGKeyArray,
    inputs: Float[Array, "examples 8 8 1"],
    labels: Int[Array, " examples"],
    shots: Float[Array, "new shots 8 8 1"],
    *,
    batches: int,
    size: int,
    dominant: float | Float[Array, ""] = 0.0,
) -> Stream:
    """Draws a stream: the six base classes for a fifth of it, then one more class after every fifth.

    Args:
      key: draws classes, examples and noise.
      inputs: what examples are drawn from.
      labels: in [0, 10), in the order in which the classes appear.
      shots: labelled examples of the new classes.
      batches: how many, a multiple of five.
      size: examples of a batch.
      dominant: the share of a batch, in expectation, that is set apart for one class drawn for it.

    Returns:
      The `Stream`.
    """

    def one(step: Int[Array, ""]) -> Stream:
        session = step * SESSIONS // batches
        starts = (session > 0) & ((step - 1) * SESSIONS // batches < session)
        severity, seen = step / (batches - 1), BASE + session
        of_top, of_class, of_example, of_noise, of_shots = jax.random.split(jax.random.fold_in(key, step), 5)
        share = jnp.where(jnp.arange(CLASSES) == jax.random.randint(of_top, (), 0, seen), dominant, 0.0)
        share += (1 - share.sum()) * (jnp.arange(CLASSES) < seen) / seen
        drawn = jax.random.categorical(of_class, jnp.log(share), shape=(size,))
        among = jnp.where(labels == drawn[:, None], 0.0, -jnp.inf)
        chosen = jax.random.categorical(of_example, among)
        few = shots[jnp.maximum(session - 1, 0)]
        return Stream(
            drifted(of_noise, inputs[chosen], severity),
            drawn,
            drifted(of_shots, few, severity),
            jnp.where(starts, seen - 1, -1),
            seen,
        )

    return jax.lax.map(one, jnp.arange(batches))
