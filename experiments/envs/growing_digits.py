"""Digits whose classes come one after the other: many examples of the base classes, few of each that follows."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reweight import data

__all__ = ["BASE", "CLASSES", "SEED_AXES", "GrowingDigits", "growing_digits"]

CLASSES, BASE = 10, 6


class GrowingDigits(NamedTuple):
    """The examples of every seed. Labels are numbers in the order in which the classes come, which the seed draws.

    Attributes:
      inputs: of the base classes, in equal numbers `[seeds, n, 8, 8, 1]`.
      labels: of these, in [0, 6) `[seeds, n]`.
      shots: examples of the classes 6 to 9, one class after the other `[seeds, 4, shots, 8, 8, 1]`.
      test_inputs: the test set, the same for all seeds `[m, 8, 8, 1]`.
      test_labels: of all ten classes `[seeds, m]`.
    """

    inputs: Float[Array, "seeds n 8 8 1"]
    labels: Int[Array, "seeds n"]
    shots: Float[Array, "seeds new shots 8 8 1"]
    test_inputs: Float[Array, "m 8 8 1"]
    test_labels: Int[Array, "seeds m"]


SEED_AXES: Any = GrowingDigits(0, 0, 0, None, 0)  # type: ignore[arg-type]  # for `jax.vmap` over the seeds


def growing_digits(seeds: Int[np.ndarray, " seeds"], *, shots: int = 5, per_class: int = 120) -> GrowingDigits:
    """Draws the order of the classes, and which training examples are seen.

    Args:
      seeds: each draws its own.
      shots: examples of a new class.
      per_class: examples of a base class.

    Returns:
      `GrowingDigits`.
    """
    train, test = (data.load(data.DataConfig("digits"), split) for split in ("train", "test"))
    drawn = []
    for seed in np.asarray(seeds).tolist():
        rng = np.random.default_rng(seed)
        order = rng.permutation(CLASSES)
        chosen = [rng.permutation(np.flatnonzero(train["labels"] == digit)) for digit in order]
        base = np.concatenate([rows[:per_class] for rows in chosen[:BASE]])
        new = np.stack([rows[:shots] for rows in chosen[BASE:]])
        labels = np.repeat(np.arange(BASE), per_class)
        drawn.append((train["inputs"][base], labels, train["inputs"][new], np.argsort(order)[test["labels"]]))
    inputs, ids, few, test_ids = (jnp.asarray(np.stack(part)) for part in zip(*drawn, strict=True))
    return GrowingDigits(inputs, ids.astype(jnp.int32), few, jnp.asarray(test["inputs"]), test_ids.astype(jnp.int32))
