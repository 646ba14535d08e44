"""Digits with wrong labels of several kinds, side by side, and small networks that may drop features."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reweight import data
from reweight.data import variants
from reweight.data.config import NoiseKind
from reweight.regularizers import nested

__all__ = [
    "CLASSES",
    "NOISES",
    "Noise",
    "Sets",
    "accuracy",
    "features",
    "forward",
    "load_digits",
    "networks",
    "noisy_set",
]

Tree = Any  # a pytree of arrays
CLASSES = 10
VALIDATION = 300


class Noise(NamedTuple):
    """Which labels are wrong, and how many; its name in tables and figures."""

    kind: NoiseKind
    rate: float

    @property
    def label(self) -> str:
        """Such as `pair 20 %`."""
        return f"{self.kind} {100 * self.rate:.0f} %"


NOISES: dict[str, Noise] = {
    "symmetric_30": Noise("symmetric", 0.3),
    "symmetric_60": Noise("symmetric", 0.6),
    "pair_20": Noise("pair", 0.2),
    "pair_40": Noise("pair", 0.4),
    "instance_20": Noise("instance", 0.2),
    "instance_40": Noise("instance", 0.4),
}


class Sets(NamedTuple):
    """Inputs in a row and true labels."""

    inputs: Float[Array, "n pixels"]
    labels: Int[Array, " n"]


def load_digits() -> tuple[Sets, Sets, Sets]:
    """Examples to train on, to choose the width of nested dropout by, and to test on."""
    train, test = (data.load("digits", split) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(len(train))
    parts = [
        (part["inputs"][rows].reshape(len(rows), -1), part["labels"][rows])
        for part, rows in (
            (train, order[VALIDATION:]),
            (train, order[:VALIDATION]),
            (test, np.arange(len(test))),
        )
    ]
    pool, validation, tested = (Sets(jnp.asarray(x), jnp.asarray(y)) for x, y in parts)
    return pool, validation, tested


def noisy_set(pool: Sets, examples: int, seed: int) -> dict[str, np.ndarray]:
    """A training set drawn from the pool: `inputs` `[n, pixels]`, `clean_labels` `[n]`, `labels` `[n, noises]`."""
    chosen = np.random.default_rng(seed).permutation(len(pool.labels))[:examples]
    inputs, clean = np.asarray(pool.inputs)[chosen], np.asarray(pool.labels)[chosen]
    projected = variants.projections(inputs, CLASSES, seed)
    given = [
        variants.flip_labels(clean, CLASSES, noise.rate, noise.kind, seed, projected=projected)
        for noise in NOISES.values()
    ]
    return {"inputs": inputs, "clean_labels": clean, "labels": np.stack(given, axis=1)}


@functools.partial(jax.jit, static_argnums=(1, 2))
@functools.partial(jax.vmap, in_axes=(0, None, None))
def networks(key: PRNGKeyArray, pixels: int, width: int) -> Tree:
    """Two networks a seed: a hidden layer, and a linear layer without bias, as nested dropout wants it."""
    keys = jax.random.split(key)
    hidden = jax.random.normal(keys[0], (2, pixels, width)) * (2 / pixels) ** 0.5
    head = jax.random.normal(keys[1], (2, width, CLASSES)) * (1 / width) ** 0.5
    return {"hidden": {"kernel": hidden, "bias": jnp.zeros((2, width))}, "head": {"kernel": head}}


def features(params: Tree, inputs: Array) -> Array:
    """What the last layer of a network sees."""
    return jax.nn.relu(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])


def forward(
    params: Tree, inputs: Array, key: PRNGKeyArray, *, dropout: float = 0.0, sigma: float = math.inf, passes: int = 1
) -> tuple[Array, Array]:
    """Logits without dropout `[B, C]`, and those of each pass with it `[passes, B, C]`; nested if `sigma` is finite."""
    found, head = features(params, inputs), params["head"]["kernel"]
    plain = found @ head
    if dropout:
        stay = jax.random.bernoulli(key, 1 - dropout, (passes, *found.shape))
        return plain, jnp.where(stay, found / (1 - dropout), 0) @ head
    if math.isfinite(sigma):
        return plain, nested.nested_dropout(key, found, sigma=sigma)[None] @ head
    return plain, plain[None]


def accuracy(params: Tree, validation: Sets, test: Sets, *, best_width: bool) -> Float[Array, ""]:
    """The mean accuracy of networks on the test set, of all features or of the width that does best in validation."""

    def of_one(params: Tree) -> Array:
        if not best_width:
            logits = features(params, test.inputs) @ params["head"]["kernel"]
            return jnp.mean(jnp.argmax(logits, axis=-1) == test.labels)
        chosen_by, tested = (
            jnp.mean(nested.prefix_hits(features(params, x), params["head"]["kernel"], y), axis=0)
            for x, y in (validation, test)
        )
        return tested[nested.best_width(chosen_by) - 1]

    return jnp.mean(jax.vmap(of_one)(params))
