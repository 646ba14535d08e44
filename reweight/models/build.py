"""Models by name."""

from collections.abc import Sequence
from typing import Any, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from reweight import _checks
from reweight.models.layers import Norm
from reweight.models.nets import MLP, ConvNet
from reweight.models.resnet import ResNet18, Stem

__all__ = ["MODELS", "build"]

MODELS: dict[str, type[MLP] | type[ConvNet] | type[ResNet18]] = {"mlp": MLP, "convnet": ConvNet, "resnet18": ResNet18}
_OPTIONS = {
    "mlp": ("widths", "norm", "dropout", "dtype"),
    "convnet": ("widths", "norm", "dropout", "dtype"),
    "resnet18": ("stem", "dtype"),
}


def build(
    name: str, input_shape: Sequence[int], num_classes: int, *, key: PRNGKeyArray, **options: Any
) -> MLP | ConvNet | ResNet18:
    """A model by name, with its initial parameters.

    Args:
      name: `"mlp"`, `"convnet"` or `"resnet18"`.
      input_shape: the shape of one example: any for `mlp`, `(height, width, channels)` for the others.
      num_classes: the number of outputs, at least 1.
      key: draws the initial parameters; traced keys are welcome, so that initialisation can be jitted and vmapped.
      **options: those of the model: `widths`, `norm`, `dropout`, `dtype` (`mlp`, `convnet`), `stem`, `dtype`
        (`resnet18`).

    Returns:
      The flax module; `functional` gives its functional form.

    Raises:
      ValueError: if the name or an option is unknown, or a value is out of range.
    """
    function = "models.build"
    _checks.choice(function, "name", name, tuple(MODELS))
    _checks.number(function, "num_classes", num_classes, low=1, integer=True)
    shape = tuple(input_shape)
    for size in shape:
        _checks.number(function, "input_shape", size, low=1, integer=True)
    if name != "mlp" and len(shape) != 3:
        _checks.fail(function, "input_shape", repr(shape), f"(height, width, channels) for {name!r}")
    for option, value in options.items():
        if option not in _OPTIONS[name]:
            _checks.fail(function, option, "unknown", f"the options of {name!r}: " + ", ".join(_OPTIONS[name]))
        match option:
            case "widths":
                for width in value:
                    _checks.number(function, option, width, low=1, integer=True)
            case "norm":
                _checks.choice(function, option, value, (None, *get_args(Norm)))
            case "stem":
                _checks.choice(function, option, value, get_args(Stem))
            case "dropout":
                _checks.number(function, option, value, low=0, high=1, open_high=True)
            case "dtype":
                if not jnp.issubdtype(jnp.dtype(value), jnp.floating):
                    _checks.fail(function, option, repr(value), "a floating dtype")
    return MODELS[name](shape, num_classes, rngs=nnx.Rngs(key), **options)
