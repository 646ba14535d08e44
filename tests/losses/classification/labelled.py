"""Logits with labels, golden numbers, and losses with their gradients."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def golden(name):
    """The cases of a file of golden numbers."""
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def drawn(seed=0, n=6, classes=5, scale=2.0):
    """Logits and labels."""
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(n, classes))).astype(np.float32), rng.integers(0, classes, n)


def arrays(case):
    """Logits and labels of a golden case."""
    return jnp.array(case["inputs"]["logits"], float), jnp.array(case["inputs"]["labels"])


def with_gradient(loss, logits, labels, **hyper):
    """Losses, and the gradient of their sum in the logits."""
    values, pullback = jax.vjp(lambda x: loss(x, labels, **hyper), jnp.asarray(logits))
    return values, pullback(jnp.ones_like(values))[0]


def softmax(logits):
    mass = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    return mass / mass.sum(-1, keepdims=True)


def assert_matches(found, values, gradient, rtol=1e-8):
    """Losses and gradient against golden numbers, which are stored with 12 digits."""
    np.testing.assert_allclose(found[0], values, rtol=rtol, atol=1e-11)
    np.testing.assert_allclose(found[1], gradient, rtol=rtol, atol=1e-10)
