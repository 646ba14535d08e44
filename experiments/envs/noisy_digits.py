"""Digits with wrong labels of several kinds, side by side."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reweight import data
from reweight.data import variants
from reweight.data.config import NoiseKind

__all__ = ["CLASSES", "NOISES", "Noise", "Sets", "load_digits", "noisy_set"]

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
