"""Ordered outcomes of which the last is rare, and the fits of its probability."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reweight.losses import ordinal
from reweight.regularizers import fused

__all__ = ["FITS", "Funnels", "draw_funnels", "rare_probabilities"]


class Funnels(NamedTuple):
    """Examples of cumulative logit models, stacked over the seeds, with the truth about the last class."""

    features: Float[np.ndarray, "seeds n p"]
    labels: Int[np.ndarray, "seeds n"]
    rare: Float[np.ndarray, "seeds n"]


def _draw(seed: int, examples: int, features: int, intercepts: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    while True:
        x = rng.uniform(-1, 1, (examples, features))
        first = 0.5 * rng.integers(0, 2, (features, 1))
        change = 0.5 * rng.choice([-1, 0, 0, 1], (features, len(intercepts) - 1))
        boundaries = x @ np.cumsum(np.concatenate([first, change], axis=1), axis=1) + np.array(intercepts)
        if np.all(np.diff(boundaries, axis=1) > 0):
            break
    below = 1 / (1 + np.exp(-boundaries))
    labels = (rng.uniform(size=(examples, 1)) > below).sum(axis=1)
    return x.astype(np.float32), labels.astype(np.int32), (1 - below[:, -1]).astype(np.float32)


def draw_funnels(seeds: np.ndarray, *, examples: int, features: int, intercepts: tuple[float, ...]) -> Funnels:
    """A funnel a seed: uniform features, and coefficients that change by 0.5 at each boundary for half of the features.

    Models whose boundaries cross somewhere are drawn again.
    """
    drawn = [_draw(seed, examples, features, intercepts) for seed in seeds.tolist()]
    return Funnels(*(np.stack(arrays) for arrays in zip(*drawn, strict=True)))


def _newton(loss: Callable[[Array], Array], start: Array, steps: int = 12) -> Array:
    """The minimum of a smooth convex function of a few numbers."""

    def step(at: Array, _: None) -> tuple[Array, None]:
        slope, curvature = jax.grad(loss)(at), jax.hessian(loss)(at)
        return at - jnp.linalg.solve(curvature + 1e-6 * jnp.eye(at.size), slope), None

    return jax.lax.scan(step, start, None, length=steps)[0]


def _logits_of_shares(y: Array, num_classes: int) -> Array:
    """Of the classes up to each but the last."""
    share = jnp.mean(y[:, None] <= jnp.arange(num_classes - 1), axis=0)
    return jnp.log(share) - jnp.log1p(-share)


def _logistic(key: Array, x: Array, y: Array, num_classes: int) -> Array:
    """Of the last class against all others, whichever they are."""
    del key
    rare = (y == num_classes - 1).astype(x.dtype)

    def logits(params: Array) -> Array:
        return x @ params[1:] + params[0]

    start = jnp.concatenate([-_logits_of_shares(y, num_classes)[-1:], jnp.zeros(x.shape[1])])
    found = _newton(lambda params: jnp.mean(optax.sigmoid_binary_cross_entropy(logits(params), rare)), start)
    return jax.nn.sigmoid(logits(found))


def _proportional_odds(key: Array, x: Array, y: Array, num_classes: int) -> Array:
    """One slope for all boundaries."""
    del key

    def boundaries(params: Array) -> Array:
        intercepts, slope = jnp.split(params, [num_classes - 1])
        return (x @ slope)[:, None] + intercepts

    start = jnp.concatenate([_logits_of_shares(y, num_classes), jnp.zeros(x.shape[1])])
    found = _newton(lambda params: jnp.mean(ordinal.cumulative_logit_nll(boundaries(params), y)), start)
    return ordinal.cumulative_probs(boundaries(found))[0][:, -1]


def _presto(key: Array, x: Array, y: Array, num_classes: int) -> Array:
    found = fused.presto_cross_validation(key, x, y, num_classes=num_classes, tolerance=1e-4, max_iterations=500)
    return ordinal.cumulative_probs(x @ found.coefficients + found.intercepts)[0][:, -1]


FITS = {"logistic": _logistic, "proportional_odds": _proportional_odds, "presto": _presto}


@functools.partial(jax.jit, static_argnums=(0, 4))
def rare_probabilities(
    fit: str, key: PRNGKeyArray, features: Float[Array, "n p"], labels: Int[Array, " n"], num_classes: int
) -> Float[Array, " n"]:
    """The probability of the last class at every example.

    For one seed: side by side, all would go on until the last has converged.
    """
    return FITS[fit](key, features, labels, num_classes)
