"""What the tests of preference losses share: golden numbers, gradients, log-probs from logits, and drawn pairs."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from reweight.losses import preference

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
RTOL, ATOL = 1e-9, 1e-11


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def arrays(case, *names):
    """Inputs of a golden case as float64."""
    return tuple(jnp.array(case["inputs"][name], jnp.float64) for name in names)


def with_gradients(function, *inputs):
    """The losses, and the gradient of their sum with respect to each input."""
    losses, pullback = jax.vjp(function, *inputs)
    return losses, pullback(jnp.ones_like(losses))


def assert_close(came, wanted, **options):
    np.testing.assert_allclose(came, wanted, **{"rtol": RTOL, "atol": ATOL, **options})


def assert_agrees(case, function, *names, gradients):
    """Losses and gradients of `function` of the named inputs are the golden ones."""
    losses, grads = with_gradients(function, *arrays(case, *names))
    assert_close(losses, case["expected"]["loss"])
    for grad, name in zip(grads, gradients, strict=False):
        assert_close(grad, case["expected"][name])


def shifted(logits, labels, *, counted=None):
    """Log-probs of the labels at the next position, and which of them count (by default those that are not -100)."""
    labels = jnp.asarray(labels)[:, 1:]
    mask = labels != -100 if counted is None else jnp.asarray(counted)[:, 1:] != 0
    return aligned(logits[:, :-1], labels), mask


def aligned(logits, labels):
    log_probs = jax.nn.log_softmax(jnp.asarray(logits))
    return jnp.take_along_axis(log_probs, jnp.maximum(jnp.asarray(labels), 0)[..., None], axis=-1)[..., 0]


def drawn(seed=0, n=8, dtype=np.float32):
    """Pairs of random log-probs, with lengths."""
    rng = np.random.default_rng(seed)
    sums = [(-8 + 3 * rng.normal(size=n)).astype(dtype) for _ in range(4)]
    return preference.Pairs(*sums, *(rng.integers(1, 12, n) for _ in range(2)))
