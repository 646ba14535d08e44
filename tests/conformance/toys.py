"""Toys that are right, and their cases: softmax weights, a masked mean, squares about a running mean, and SGD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from conformance.case import BatchLossCase, Case, TransformCase, WeightingCase
from reweight import _checks, reduce, weights
from reweight.losses import BatchLoss


def unmasked(function, losses, mask):
    _checks.array(function, "losses", losses, kind="float")
    _checks.mask(function, "mask", mask, losses)
    return jnp.ones(losses.shape, bool) if mask is None else jnp.asarray(mask) != 0


def clean(function, losses, mask):
    kept = unmasked(function, losses, mask)
    return jnp.where(kept, losses, 0).astype(_checks.accumulation_dtype(losses)), kept


def softmax_weights(losses, *, temperature=1.0, mask=None):
    """Healthy: weights, global over the batch, without gradient."""
    value, kept = clean("toy.softmax_weights", losses, mask)
    _checks.number("toy.softmax_weights", "temperature", temperature, low=0, open_low=True)
    logits = jnp.where(kept, value / temperature, -jnp.inf)
    top = jnp.max(logits, initial=-jnp.inf)
    mass = jnp.where(kept, jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0)), 0)
    total = jnp.sum(mass)
    return jax.lax.stop_gradient(mass * jnp.sum(kept) / jnp.where(total > 0, total, 1))


def mean_square(losses, *, mask=None):
    """Healthy: a scalar with a gradient."""
    value, kept = clean("toy.mean_square", losses, mask)
    return jnp.sum(value**2) / jnp.maximum(jnp.sum(kept), 1)


def softplus(losses, *, mask=None):
    """Healthy: a value per example with a gradient, that no other example changes."""
    value, kept = clean("toy.softplus", losses, mask)
    return jnp.where(kept, jax.nn.softplus(value), 0)


class Count(NamedTuple):
    """How many examples a toy weighting has seen."""

    seen: jax.Array


def running(temperature=1.0):
    """Healthy: softmax weights and a count of examples."""

    def update(state, losses, mask=None, **signals):
        del signals
        kept = unmasked("toy.running", losses, mask)
        weights = softmax_weights(losses, temperature=temperature, mask=mask)
        return weights, Count(state.seen + jnp.sum(kept).astype(state.seen.dtype))

    _checks.number("toy.running", "temperature", temperature, low=0, open_low=True)
    return weights.Weighting(lambda key=None: Count(jnp.zeros(())), update, "batch", ())


class Seen(NamedTuple):
    """How many examples a toy loss has seen, and the sum of their values."""

    seen: jax.Array
    total: jax.Array


def about(values, centre, scale, mask):
    value, kept = clean("toy.centred", values, mask)
    return jnp.where(kept, scale * (value - centre) ** 2, 0)


def centred(scale=1.0):
    """Healthy: squares about the mean of all values seen so far, which is constant."""
    _checks.number("toy.centred", "scale", scale, low=0)

    def statistics(state, *, values=None, mask=None, **signals):
        del signals
        _checks.require("toy.centred", {"values": values}, ("values",))
        value, kept = clean("toy.centred", values, mask)
        state = Seen(state.seen + jnp.sum(kept).astype(state.seen.dtype), state.total + jnp.sum(value))
        return state.total / jnp.maximum(state.seen, 1), state

    def losses(statistics, *, values, mask=None, **signals):
        del signals
        return about(values, statistics, scale, mask)

    return BatchLoss(lambda key=None: Seen(jnp.zeros(()), jnp.zeros(())), statistics, losses, ("values",))


def descent(learning_rate=0.1):
    """Healthy: gradient descent with momentum."""
    _checks.number("toy.descent", "learning_rate", learning_rate, low=0)
    return optax.chain(optax.trace(0.9), optax.scale(-learning_rate))


def softmax_reference(losses, mask, temperature=1.0):
    mass = np.where(mask, np.exp(losses / temperature), 0)
    return mass * mask.sum() / mass.sum()


def centred_reference(steps, scale):
    found, seen = [], []
    for step in steps:
        seen += [*step["values"][step["mask"]]]
        found.append(np.where(step["mask"], scale * (step["values"] - np.mean(seen)) ** 2, 0))
    return found


def losses_of(rng, n):
    return {"losses": rng.exponential(size=n)}


WEIGHTS = Case(
    function=softmax_weights,
    inputs=losses_of,
    hyper={"temperature": 0.7},
    mask="mask",
    stopped=("losses",),
    couples=True,
    weights=True,
    reference=softmax_reference,
    bad={"temperature": (0.0, -1.0)},
)
SCALAR = Case(function=mean_square, inputs=losses_of, returns="batch", mask="mask", differentiable=("losses",))
EXAMPLE = Case(function=softplus, inputs=losses_of, mask="mask", differentiable=("losses",))
PARTS = Case(
    function=reduce.weighted_mean,
    inputs=lambda rng, n: {"values": rng.normal(size=n)},
    hyper={"parts": True},
    returns="parts",
    mask="where",
    differentiable=("values",),
)
SCHEME = WeightingCase(
    function=running,
    inputs=losses_of,
    hyper={"temperature": 0.7},
    reference=lambda steps, temperature: [softmax_reference(**step, temperature=temperature) for step in steps],
    blames=("softmax_weights",),
    bad={"temperature": (0.0, -1.0)},
)
STREAM = BatchLossCase(
    function=centred,
    inputs=lambda rng, n: {"values": rng.normal(1.0, 1.0, n)},
    hyper={"scale": 0.7},
    differentiable=("values",),
    reference=centred_reference,
    bad={"scale": (-1.0,)},
)
TRANSFORM = TransformCase(
    function=descent,
    hyper={"learning_rate": 0.3},
    needs_params=False,
    injectable=("learning_rate",),
    bad={"learning_rate": (-1.0,)},
)
