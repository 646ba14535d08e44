"""What the networks share: normalisation by name, initialisation, the output layer."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from reweight import _checks

__all__ = ["Norm", "NormLayer", "apply_dropout", "apply_norm", "check_inputs", "he_normal", "make_norm", "output_layer"]

Norm = Literal["batch", "layer"]
NormLayer = nnx.BatchNorm | nnx.LayerNorm

# For layers followed by a ReLU: He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852.
he_normal = nnx.initializers.he_normal()

# Running statistics average over about the last ten batches, so that those of a short run have left their start.
MOMENTUM = 0.9


def make_norm(norm: Norm, features: int, *, rngs: nnx.Rngs) -> NormLayer:
    """A normalisation layer by name; it computes in float32 whatever comes in."""
    if norm == "batch":
        return nnx.BatchNorm(features, momentum=MOMENTUM, dtype=jnp.float32, rngs=rngs)
    return nnx.LayerNorm(features, dtype=jnp.float32, rngs=rngs)


def apply_norm(
    layer: NormLayer | None, inputs: Float[Array, "batch ..."], train: bool, mask: Bool[Array, " batch"] | None
) -> Float[Array, "batch ..."]:
    """Normalises `inputs`, in their dtype; with no layer they come back unchanged.

    Batch statistics are over the examples that the mask keeps. Outside training the running ones take their place.
    """
    if layer is None:
        return inputs
    if isinstance(layer, nnx.LayerNorm):
        return layer(inputs).astype(inputs.dtype)
    if mask is not None:
        mask = jnp.reshape(mask, mask.shape + (1,) * (inputs.ndim - 1))
    return layer(inputs, use_running_average=not train, mask=mask).astype(inputs.dtype)


def apply_dropout(
    layer: nnx.Dropout, inputs: Float[Array, "batch ..."], train: bool, rngs: nnx.Rngs | None
) -> Float[Array, "batch ..."]:
    """Sets a random share of `inputs` to 0 in training; needs `rngs` there unless the share is 0."""
    if train and layer.rate > 0 and rngs is None:
        _checks.fail("models.functional", "key", "missing", "a key in training, for dropout")
    return layer(inputs, deterministic=not train, rngs=rngs)


def output_layer(features: int, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """The last layer: float32 whatever the dtype before it, so that the logits are."""
    return nnx.Linear(features, num_classes, dtype=jnp.float32, rngs=rngs)


def check_inputs(function: str, inputs: Any, input_shape: tuple[int, ...]) -> None:
    """Checks that `inputs` are a batch of examples of `input_shape`."""
    _checks.array(function, "inputs", inputs, shape=(None, *input_shape), kind="number")
