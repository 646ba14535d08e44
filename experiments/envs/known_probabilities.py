"""What scores lose where the true probabilities of all classes are known: expected losses and errors over the best.

There are as many equally frequent inputs as rows. Scores may be anything at each of them, so that the best ones have
the least loss at every input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reweight.losses import classification

__all__ = ["Excess", "comp_sum_excess", "probabilities"]


class Excess(NamedTuple):
    """An expected loss less the least one, and the same of the zero-one error."""

    loss: Float[Array, ""]
    error: Float[Array, ""]


def probabilities(key: PRNGKeyArray, *, inputs: int, classes: int) -> Float[Array, "inputs classes"]:
    """Those of the classes at every input: a softmax of Gaussian noise, so that some labels are sure and some not."""
    return jax.nn.softmax(2 * jax.random.normal(key, (inputs, classes)))


def comp_sum_excess(
    scores: Float[Array, "inputs classes"], truth: Float[Array, "inputs classes"], tau: float
) -> Excess:
    """Of the comp-sum loss with this tau."""

    def expected(scores: Array) -> Float[Array, ""]:
        labels = jnp.arange(scores.shape[-1])
        every = jax.vmap(lambda row: classification.comp_sum_loss(jnp.tile(row, (row.size, 1)), labels, tau=tau))
        return jnp.mean(jnp.sum(truth * every(scores), axis=-1))

    sure = jnp.max(truth, axis=-1)
    # The best probabilities go with the power 1 / (2 - tau) of the true ones; from 2 on one class takes all.
    least = expected(jnp.log(truth) / (2 - tau)) if tau < 2 else jnp.mean(1 - sure) / (tau - 1)
    chosen = jnp.take_along_axis(truth, jnp.argmax(scores, axis=-1)[:, None], axis=-1)[:, 0]
    return Excess(expected(scores) - least, jnp.mean(sure - chosen))
