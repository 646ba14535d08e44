"""A small classification problem that the tests of this folder share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reweight import reduce
from reweight.train import LossOutput

FEATURES, HIDDEN, CLASSES, GROUPS, EXAMPLES = 5, 8, 3, 4, 48


def params(seed=0, dtype=jnp.float32):
    a, b = jax.random.split(jax.random.key(seed))
    return {
        "hidden": jax.random.normal(a, (FEATURES, HIDDEN), dtype) / 2,
        "out": {"kernel": jax.random.normal(b, (HIDDEN, CLASSES), dtype) / 2, "bias": jnp.zeros(CLASSES, dtype)},
    }


def batch(size=16, seed=0, masked=True):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.normal(size=(size, FEATURES)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, size).astype(np.int32),
        "groups": rng.integers(0, GROUPS, size).astype(np.int32),
        "indices": rng.permutation(EXAMPLES)[:size].astype(np.int32),
    } | ({"mask": rng.random(size) < 0.7} if masked else {})


def loss_fn(params, extra, batch, key):
    del key
    hidden = jnp.tanh(batch["inputs"] @ params["hidden"])
    logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return LossOutput(losses, {"logits": logits, "features": hidden}, extra)


def accuracy(signals):
    hits = (jnp.argmax(signals["logits"], -1) == signals["labels"]).astype(jnp.float32)
    return {"accuracy": reduce.weighted_mean(hits, where=signals.get("mask"), parts=True)}


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, e = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, e))
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol, equal_nan=False, err_msg=jax.tree_util.keystr(path))


def assert_equal(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0)
