"""ResNet-18."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num
from numpy.typing import DTypeLike

from reweight.models.layers import apply_norm, check_inputs, make_norm, output_layer

__all__ = ["ResNet18", "Stem"]

Stem = Literal["cifar", "imagenet"]

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block; two blocks each

# Keeps the variance of gradients through the convolutions, as the ImageNet recipes do.
_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(channels: int, features: int, size: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    pad = size // 2
    return nnx.Conv(
        channels,
        features,
        (size, size),
        strides=stride,
        # Symmetric, also at stride 2, where "SAME" pads the far side only.
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=_init,
        dtype=jnp.dtype(dtype),
        rngs=rngs,
    )


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions around which the input is added, projected where its shape changes."""

    def __init__(self, channels: int, features: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv(channels, features, 3, stride, dtype, rngs)
        self.norm1 = make_norm("batch", features, rngs=rngs)
        self.conv2 = _conv(features, features, 3, 1, dtype, rngs)
        self.norm2 = make_norm("batch", features, rngs=rngs)
        self.projects = stride != 1 or channels != features
        if self.projects:
            self.projection = _conv(channels, features, 1, stride, dtype, rngs)
            self.projection_norm = make_norm("batch", features, rngs=rngs)

    def __call__(
        self, inputs: Float[Array, "batch height width channels"], train: bool, mask: Bool[Array, " batch"] | None
    ) -> Float[Array, "batch height_out width_out features"]:
        """The block's output, after the last ReLU."""
        x = jax.nn.relu(apply_norm(self.norm1, self.conv1(inputs), train, mask))
        x = apply_norm(self.norm2, self.conv2(x), train, mask)
        if self.projects:
            inputs = apply_norm(self.projection_norm, self.projection(inputs), train, mask)
        return jax.nn.relu(x + inputs)


class ResNet18(nnx.Module):
    """ResNet-18 with batch normalisation, with the stem for small images or for ImageNet's.

    11,173,962 parameters for `stem="cifar"` on 3 channels and 10 classes; 11,689,512 for `stem="imagenet"` and 1000.

    Args:
      input_shape: `(height, width, channels)` of one example.
      num_classes: the number of outputs.
      stem: `"cifar"`, a 3×3 convolution at full resolution; `"imagenet"`, a 7×7 convolution of stride 2 and a 3×3 max
        pooling of stride 2.
      dtype: the dtype of the hidden computation; parameters, statistics and logits are float32.
      rngs: draws the initial parameters.

    References:
      He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, 2016, arXiv 1512.03385.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        stem: Stem = "cifar",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = tuple(input_shape)
        self.dtype = jnp.dtype(dtype)
        self.imagenet = stem == "imagenet"
        channels = STAGES[0][0]
        size, stride = (7, 2) if self.imagenet else (3, 1)
        self.stem = _conv(self.input_shape[-1], channels, size, stride, dtype, rngs)
        self.stem_norm = make_norm("batch", channels, rngs=rngs)
        blocks = []
        for features, first in STAGES:
            for block_stride in (first, 1):
                blocks.append(BasicBlock(channels, features, block_stride, dtype=dtype, rngs=rngs))
                channels = features
        self.blocks = nnx.List(blocks)
        self.head = output_layer(channels, num_classes, rngs=rngs)

    def __call__(
        self,
        inputs: Num[Array, "batch height width channels"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits `[B, C]`, float32; see `functional` for the arguments. Nothing here is random: `rngs` is not read."""
        del rngs
        check_inputs("models.ResNet18", inputs, self.input_shape)
        x = jax.nn.relu(apply_norm(self.stem_norm, self.stem(inputs.astype(self.dtype)), train, mask))
        if self.imagenet:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x, train, mask)
        return self.head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
