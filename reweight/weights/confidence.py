"""Selection of the examples of whose predictions a model is sure, for training without labels."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks
from reweight.losses.classification import prediction_entropy
from reweight.weights import base

__all__ = ["entropy_filter", "entropy_filter_weights"]

Mask = Bool[Array, "..."] | Num[Array, "..."]


def entropy_filter_weights(
    logits: Float[Array, "*batch classes"],
    *,
    fraction: float | Float[Array, ""] = 0.4,
    mask: Mask | None = None,
) -> Float[Array, "*batch"]:
    r"""Weight 1 where the entropy of the prediction is small, :math:`H_i < f \log C`, and 0 elsewhere.

    Args:
      logits: `[..., C]`, any scale. What stands where the mask is off is never read.
      fraction: :math:`f`, in [0, inf): the share of the largest possible entropy. 0 keeps nobody, 1 all but uniform
        predictions, anything above 1 all.
      mask: boolean or 0/1, broadcast to the examples `[...]`.

    Returns:
      Weights 0 or 1 `[...]`, float32 or wider, without gradient. They are not normalised: the mean over those kept is
      `reduce.weighted_mean(values, weights)`, which is 0 if nobody is.

    Raises:
      ValueError: if the mask does not broadcast to the examples, or `fraction` is out of range.

    References:
      Niu et al., *Towards Stable Test-Time Adaptation in Dynamic Wild World*, 2023, arXiv 2302.12400.
    """
    function = "weights.entropy_filter_weights"
    _checks.array(function, "logits", logits, kind="float")
    if jnp.ndim(logits) < 1 or jnp.shape(logits)[-1] == 0:
        _checks.fail(function, "logits", f"of shape {jnp.shape(logits)}", "an array whose last axis is the classes")
    _checks.number(function, "fraction", fraction, low=0, open_high=True)
    logits = jax.lax.stop_gradient(logits)
    kept = base.keep(logits[..., 0], mask, function, "logits[..., 0]")
    entropies = prediction_entropy(jnp.where(kept[..., None], logits, 0))
    sure = entropies < fraction * math.log(logits.shape[-1])
    return (kept & sure).astype(entropies.dtype)


def entropy_filter(*, fraction: float = 0.4) -> base.Weighting:
    """Only the examples of whose predictions the model is sure, from the signal `logits`: see `entropy_filter_weights`.

    Args:
      fraction: as for `entropy_filter_weights`.

    Returns:
      A `Weighting` of scope `"example"` with weights 0 and 1.

    Raises:
      ValueError: if `fraction` is out of range; at update, if the signal is missing or does not fit the losses.
    """
    function = "weights.entropy_filter"
    _checks.number(function, "fraction", fraction, low=0, open_high=True)

    def weights(
        losses: Float[Array, "..."], *, logits: Float[Array, "... classes"], mask: Mask | None = None
    ) -> Float[Array, "..."]:
        _checks.array(function, "logits", logits, shape=(*jnp.shape(losses), None), kind="float")
        kept = base.keep(losses, mask, function)
        return entropy_filter_weights(logits, fraction=fraction, mask=kept)

    return base.stateless(weights, scope="example", name=function)
