"""A multilayer perceptron and a small convolutional network."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num
from numpy.typing import DTypeLike

from reweight.models.layers import Norm, apply_dropout, apply_norm, check_inputs, he_normal, make_norm, output_layer

__all__ = ["MLP", "ConvNet"]


class MLP(nnx.Module):
    """A multilayer perceptron: (linear, normalisation, ReLU, dropout) for each width, then a linear output layer.

    Args:
      input_shape: the shape of one example; it is flattened.
      num_classes: the number of outputs.
      widths: the sizes of the hidden layers; none makes a linear model.
      norm: `"batch"`, `"layer"` or None.
      dropout: the share of hidden activations set to 0 in training, in [0, 1).
      dtype: the dtype of the hidden computation; parameters, statistics and logits are float32.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (128, 128),
        norm: Norm | None = None,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = tuple(input_shape)
        self.dtype = jnp.dtype(dtype)
        sizes = (math.prod(self.input_shape), *widths)
        self.layers = nnx.List(
            nnx.Linear(a, b, use_bias=norm is None, kernel_init=he_normal, dtype=self.dtype, rngs=rngs)
            for a, b in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(make_norm(norm, width, rngs=rngs) for width in widths if norm)
        self.dropout = nnx.Dropout(dropout)
        self.head = output_layer(sizes[-1], num_classes, rngs=rngs)

    def __call__(
        self,
        inputs: Num[Array, "batch ..."],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits `[B, C]`, float32; see `functional` for the arguments."""
        check_inputs("models.MLP", inputs, self.input_shape)
        x = jnp.reshape(inputs, (inputs.shape[0], -1)).astype(self.dtype)
        for i, layer in enumerate(self.layers):
            x = apply_norm(self.norms[i] if self.norms else None, layer(x), train, mask)
            x = apply_dropout(self.dropout, jax.nn.relu(x), train, rngs)
        return self.head(x)


class ConvNet(nnx.Module):
    """A small convolutional network: (3×3 convolution, normalisation, ReLU, 2×2 max pooling) for each width.

    Then the mean over positions, dropout, and a linear output layer. Pooling stops at a side of one pixel.

    Args:
      input_shape: `(height, width, channels)` of one example.
      num_classes: the number of outputs.
      widths: the channels of the convolutions.
      norm: `"batch"`, `"layer"` or None.
      dropout: the share of pooled features set to 0 in training, in [0, 1).
      dtype: the dtype of the hidden computation; parameters, statistics and logits are float32.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        widths: Sequence[int] = (32, 64),
        norm: Norm | None = "batch",
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_shape = tuple(input_shape)
        self.dtype = jnp.dtype(dtype)
        channels = (self.input_shape[-1], *widths)
        self.layers = nnx.List(
            nnx.Conv(a, b, (3, 3), use_bias=norm is None, kernel_init=he_normal, dtype=self.dtype, rngs=rngs)
            for a, b in itertools.pairwise(channels)
        )
        self.norms = nnx.List(make_norm(norm, width, rngs=rngs) for width in widths if norm)
        self.dropout = nnx.Dropout(dropout)
        self.head = output_layer(channels[-1], num_classes, rngs=rngs)

    def __call__(
        self,
        inputs: Num[Array, "batch height width channels"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits `[B, C]`, float32; see `functional` for the arguments."""
        check_inputs("models.ConvNet", inputs, self.input_shape)
        x = inputs.astype(self.dtype)
        for i, layer in enumerate(self.layers):
            x = jax.nn.relu(apply_norm(self.norms[i] if self.norms else None, layer(x), train, mask))
            window = (min(2, x.shape[1]), min(2, x.shape[2]))
            x = nnx.max_pool(x, window, strides=window)
        x = apply_dropout(self.dropout, jnp.mean(x, axis=(1, 2)), train, rngs)
        return self.head(x)
