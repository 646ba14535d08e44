"""Handwritten digits that come one task after another, and a small network without a bias in its head.

Of every digit as many examples are used as there are of the rarest one. A seed draws which of them, and the order in
which digits or rotations come.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import ndimage

from reweight import data

__all__ = ["CLASSES", "by_class", "features", "initial", "logits", "rotated", "test_set", "views"]

CLASSES = 10
SIDE = 8
Tree = Any  # a pytree of arrays


def test_set() -> dict[str, np.ndarray]:
    """Images `[N, 64]` and digits `[N]`, the same for all seeds."""
    return _split("test")


def _split(split: Literal["train", "test"]) -> dict[str, np.ndarray]:
    loaded = data.load(data.DataConfig("digits"), split)
    return {"inputs": loaded["inputs"].reshape(-1, SIDE**2), "labels": loaded["labels"].astype(np.int32)}


def by_class(seed: int, order: np.ndarray) -> Float[np.ndarray, "classes examples pixels"]:
    """Training images of each class, where class c is the digit `order[c]`, as many of each."""
    train = _split("train")
    size = np.bincount(train["labels"]).min()
    rng = np.random.default_rng([seed, 1])
    return np.stack([rng.permutation(train["inputs"][train["labels"] == digit])[:size] for digit in order])


def rotated(images: Float[np.ndarray, "*batch pixels"], degrees: float) -> Float[np.ndarray, "*batch pixels"]:
    """Images turned about their centre; what comes in from outside is background."""
    square = images.reshape(*images.shape[:-1], SIDE, SIDE)
    axes = (square.ndim - 2, square.ndim - 1)
    turned = ndimage.rotate(square, degrees, axes=axes, reshape=False, order=1, mode="constant", cval=images.min())
    return turned.reshape(images.shape).astype(images.dtype)


def views(
    key: PRNGKeyArray, images: Float[Array, "batch pixels"], count: int = 2
) -> Float[Array, "batch views pixels"]:
    """Each image several times, moved by up to one pixel in both directions, with noise."""
    places, noise = jax.random.split(key)
    square = jnp.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)), mode="edge")
    corners = jax.random.randint(places, (len(images), count, 2), 0, 3)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, corner, (SIDE, SIDE))

    moved = jax.vmap(jax.vmap(cut, (None, 0)))(square, corners).reshape(len(images), count, -1)
    return moved + 0.1 * jax.random.normal(noise, moved.shape)


def initial(key: PRNGKeyArray, width: int, outputs: int = CLASSES) -> Tree:
    """Parameters of two hidden layers and of a head whose weights are not negative."""
    keys = jax.random.split(key, 3)

    def drawn(key: PRNGKeyArray, shape: tuple[int, int], gain: float) -> Array:
        return jax.random.normal(key, shape) * np.sqrt(gain / shape[0])

    return {
        "first": {"kernel": drawn(keys[0], (SIDE**2, width), 2.0), "bias": jnp.zeros(width)},
        "second": {"kernel": drawn(keys[1], (width, width), 2.0), "bias": jnp.zeros(width)},
        "head": jnp.abs(drawn(keys[2], (width, outputs), 0.25)),
    }


def features(params: Tree, inputs: Float[Array, "*batch pixels"]) -> Float[Array, "*batch width"]:
    """What the head sees, non-negative."""
    for name in ("first", "second"):
        inputs = jax.nn.relu(inputs @ params[name]["kernel"] + params[name]["bias"])
    return inputs


def logits(params: Tree, inputs: Float[Array, "*batch pixels"]) -> Float[Array, "*batch classes"]:
    """Those of the head."""
    return features(params, inputs) @ params["head"]
