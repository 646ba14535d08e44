"""Weights for adversarial training."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.weights import base

__all__ = ["gairat", "gairat_weights"]

Mask = Bool[Array, "..."] | Num[Array, "..."]


def gairat_weights(
    attack_steps: Int[Array, "..."], *, num_steps: int = 10, offset: float = -1.0, mask: Mask | None = None
) -> Float[Array, "..."]:
    r"""Geometry-aware weights: large for examples that few attack steps carry over the boundary.

    .. math:: w_i \propto \tfrac12 \Big(1 + \tanh\big(\Lambda + 5 (h - \kappa_i) / h\big)\Big), \quad h = \lfloor K/2
    \rfloor

    Args:
      attack_steps: :math:`\kappa_i`, the fewest steps after which example i is misclassified, in [0, K]; K where none
        is enough. Any shape; all axes count as examples.
      num_steps: :math:`K`, steps of the attack, at least 2.
      offset: :math:`\Lambda`: the larger, the more even the weights.
      mask: boolean or 0/1, broadcast to `attack_steps`.

    Returns:
      Weights of the same shape, float32 or wider; mean one over the unmasked, 0 where masked.

    Raises:
      ValueError: if `attack_steps` are not numbers, the mask does not broadcast, or a hyperparameter is out of range.

    References:
      Zhang et al., *Geometry-aware Instance-reweighted Adversarial Training*, 2020, arXiv 2010.01736.
    """
    function = "weights.gairat_weights"
    _checks.array(function, "attack_steps", attack_steps, kind="number")
    _checks.number(function, "num_steps", num_steps, low=2, integer=True)
    _checks.number(function, "offset", offset)
    steps = jax.lax.stop_gradient(jnp.asarray(attack_steps).astype(_checks.accumulation_dtype(attack_steps)))
    base.keep(steps, mask, function, "attack_steps")
    half = num_steps // 2
    # (1 + tanh x) / 2 = sigmoid(2x), which keeps its digits where tanh is close to -1.
    return base.normalize(jax.nn.sigmoid(2 * (offset + 5 * (half - steps) / half)), mask=mask)


def gairat(*, num_steps: int = 10, offset: float = -1.0) -> base.Weighting:
    """Geometry-aware weights from the signal `attack_steps`, see `gairat_weights`.

    Args:
      num_steps: steps of the attack, at least 2.
      offset: the larger, the more even the weights.

    Returns:
      A `Weighting` of scope `"batch"`.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if the signal is missing or does not fit the losses.
    """
    function = "weights.gairat"
    _checks.number(function, "num_steps", num_steps, low=2, integer=True)
    _checks.number(function, "offset", offset)

    def weights(losses: Float[Array, "..."], *, attack_steps: Any, mask: Mask | None = None) -> Float[Array, "..."]:
        _checks.array(function, "attack_steps", attack_steps, shape=jnp.shape(losses), kind="number")
        return gairat_weights(attack_steps, num_steps=num_steps, offset=offset, mask=mask)

    return base.stateless(weights, name=function)
