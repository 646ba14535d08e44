"""Digits whose classes come one after the other: many examples of the base classes, few of each that follows."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reweight import data

__all__ = ["BASE", "CLASSES", "GrowingDigits", "growing_digits"]

CLASSES, BASE = 10, 6
HELD_OUT = 19  # of the rarest digit no more are left over


class GrowingDigits(NamedTuple):
    """The examples of every seed. Labels are numbers in the order in which the classes come, which the seed draws.

    Attributes:
      inputs: of the base classes, in equal numbers `[seeds, n, 8, 8, 1]`.
      labels: of these, in [0, 6) `[seeds, n]`.
      shots: examples of the classes 6 to 9, one class after the other `[seeds, 4, shots, 8, 8, 1]`.
      test_inputs: the test set, the same for all seeds, or training examples that are held out `[seeds, m, 8, 8, 1]`.
      test_labels: of all ten classes `[seeds, m]`.
    """

    inputs: Float[Array, "seeds n 8 8 1"]
    labels: Int[Array, "seeds n"]
    shots: Float[Array, "seeds new shots 8 8 1"]
    test_inputs: Float[Array, "seeds m 8 8 1"]
    test_labels: Int[Array, "seeds m"]


def growing_digits(
    seeds: Int[np.ndarray, " seeds"], *, shots: int = 5, per_class: int = 120, held_out: bool = False
) -> GrowingDigits:
    """Draws the order of the classes, and which training examples are seen.

    Args:
      seeds: each draws its own.
      shots: examples of a new class.
      per_class: examples of a base class.
      held_out: whether training examples, 19 of each class and none of those above, take the place of the test set.

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
        judged, known = test["inputs"], test["labels"]
        if held_out:
            rows = np.concatenate([rows[per_class:][:HELD_OUT] for rows in chosen])
            judged, known = train["inputs"][rows], train["labels"][rows]
        drawn.append((train["inputs"][base], labels, train["inputs"][new], judged, np.argsort(order)[known]))
    inputs, ids, few, images, digits = (jnp.asarray(np.stack(part)) for part in zip(*drawn, strict=True))
    return GrowingDigits(inputs, ids.astype(jnp.int32), few, images, digits.astype(jnp.int32))
