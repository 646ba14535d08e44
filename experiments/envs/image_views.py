"""Weak and strong views of small images, and a classifier with an auxiliary head, for consistency between views."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reweight import models

__all__ = ["TwoHeads", "strong_view", "two_heads", "warp", "weak_view"]

Images = Float[Array, "batch height width 1"]
Tree = Any  # a pytree of arrays


def warp(key: PRNGKeyArray, images: Images, *, shift: float, stretch: float) -> Images:
    """Each image moved and stretched along either axis, interpolated linearly and continued by its edge.

    Args:
      key: draws how far.
      images: `[B, height, width, 1]`.
      shift: the largest translation along an axis, in pixels.
      stretch: the largest change of the scale of an axis.

    Returns:
      Images of the same shape.
    """

    def along(key: PRNGKeyArray, side: int) -> Array:
        """For every image and output pixel of an axis, weights of the input pixels that fall with the distance."""
        of_shift, of_stretch = jax.random.split(key)
        moved = jax.random.uniform(of_shift, (len(images), 1), minval=-shift, maxval=shift)
        scale = 1 + jax.random.uniform(of_stretch, (len(images), 1), minval=-stretch, maxval=stretch)
        middle = (side - 1) / 2
        at = jnp.clip(scale * (jnp.arange(side) - middle) + moved + middle, 0, side - 1)
        return jax.nn.relu(1 - jnp.abs(at[:, :, None] - jnp.arange(side)))

    rows, columns = (along(*axis) for axis in zip(jax.random.split(key), images.shape[1:3], strict=True))
    return (rows @ images[..., 0] @ columns.swapaxes(1, 2))[..., None]


def weak_view(key: PRNGKeyArray, images: Images) -> Images:
    """Moved by up to half a pixel."""
    return warp(key, images, shift=0.5, stretch=0.0)


def strong_view(key: PRNGKeyArray, images: Images) -> Images:
    """Moved and stretched, with a square of three pixels cut out and with noise; pixels have about unit variance."""
    of_warp, of_hole, of_noise = jax.random.split(key, 3)
    images = warp(of_warp, images, shift=1.0, stretch=0.25)
    inside = []
    for key, side in zip(jax.random.split(of_hole), images.shape[1:3], strict=True):
        corner = jax.random.randint(key, (len(images), 1), 0, side - 2)
        inside.append((jnp.arange(side) >= corner) & (jnp.arange(side) < corner + 3))
    hole = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(hole, 0, images) + 0.3 * jax.random.normal(of_noise, images.shape)


class TwoHeads(NamedTuple):
    """Parameters and running statistics of trunk, head and auxiliary head; `apply` in training, `predict` after it."""

    params: dict[str, Tree]
    extra: dict[str, Tree]
    apply: Any
    predict: Any


def two_heads(key: PRNGKeyArray, input_shape: tuple[int, ...], num_classes: int, *, features: int = 64) -> TwoHeads:
    """A perceptron with two heads on its features: a linear classifier, and three layers with batch normalisation.

    `apply(params, extra, inputs, unlabelled) -> (logits, auxiliary logits, extra)` takes all inputs of a step in one;
    the auxiliary head sees the last `unlabelled` of them only. `predict(params, inputs) -> logits`.
    """
    of_trunk, of_head, of_auxiliary = jax.random.split(key, 3)
    parts = {
        "trunk": models.build("mlp", input_shape, features, key=of_trunk, widths=(2 * features,)),
        "head": models.build("mlp", (features,), num_classes, key=of_head, widths=()),
        "auxiliary": models.build(
            "mlp", (features,), num_classes, key=of_auxiliary, widths=2 * (features // 4,), norm="batch"
        ),
    }
    made = {name: models.functional(part) for name, part in parts.items()}

    def features_of(params: Mapping[str, Tree], inputs: Array) -> Array:
        return jax.nn.relu(made["trunk"].apply(params["trunk"], {}, inputs)[0])

    def predict(params: Mapping[str, Tree], inputs: Array) -> Array:
        return made["head"].apply(params["head"], {}, features_of(params, inputs))[0]

    def apply(params: Mapping[str, Tree], extra: Tree, inputs: Array, unlabelled: int) -> tuple[Array, Array, Tree]:
        found = features_of(params, inputs)
        logits, _ = made["head"].apply(params["head"], {}, found)
        auxiliary, extra = made["auxiliary"].apply(params["auxiliary"], extra, found[-unlabelled:], train=True)
        return logits, auxiliary, extra

    return TwoHeads({name: part.params for name, part in made.items()}, made["auxiliary"].extra, apply, predict)
