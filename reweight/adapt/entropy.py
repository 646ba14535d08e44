"""Adaptation to a shifted distribution by making predictions surer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks, reduce
from reweight.losses.classification import prediction_entropy
from reweight.weights import entropy_filter_weights

__all__ = ["Adapted", "entropy_step"]

Tree = Any  # a pytree of arrays
Logits = Float[Array, "batch classes"]


class Adapted(NamedTuple):
    """What a step of adaptation gives.

    Attributes:
      params: the parameters after the step.
      opt_state: the state of the optimizer after the step.
      logits: the predictions of the batch before the step `[B, C]`.
      kept: 1 for the examples that were sure enough to be learned from, 0 for the others `[B]`.
      loss: their mean entropy before the step; 0 if there is none.
    """

    params: Tree
    opt_state: Any
    logits: Logits
    kept: Float[Array, " batch"]
    loss: Float[Array, ""]


def entropy_step(
    logits_fn: Callable[[Tree], Logits],
    params: Tree,
    opt_state: Any,
    optimizer: optax.GradientTransformation,
    *,
    fraction: float | Float[Array, ""] = 0.4,
    mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
) -> Adapted:
    r"""One step down the mean entropy of the sure predictions of a batch, :math:`\sum_i m_i H_i / \sum_i m_i`.

    A prediction is sure if :math:`H_i < f \log C`, and where the optimizer asks for the gradient elsewhere
    (`optim.sharpness_aware`) if that holds there too. The choice has no gradient.

    | method | optimizer | fraction |
    |---|---|---|
    | Tent | any | above 1: all are kept |
    | SAR, with `recovery` | `optim.sharpness_aware(inner, gap_weight=0.0)` | 0.4 |
    | RSGS, the step of CSFA | `optim.sharpness_aware(inner)` | 0.4 |

    Args:
      logits_fn: from parameters to the logits `[B, C]` of the batch.
      params: what is adapted: in all three papers scales and shifts of normalisations, the rest held by `logits_fn`.
      opt_state: `optimizer.init(params)`, or that of the last step.
      optimizer: an optax transformation; those that take extra arguments get `value` and `grad_fn`.
      fraction: :math:`f`, see `weights.entropy_filter_weights`.
      mask: boolean or 0/1 `[B]`; masked examples count for nothing. Default: all.

    Returns:
      `Adapted`. Where no prediction is sure, parameters and state of the optimizer stay as they were.

    Raises:
      ValueError: if the logits are not of rank 2, the mask does not fit them, or `fraction` is out of range.

    References:
      Yu, Lu and Zhang, *Generalized Incremental Learning under Concept Drift across Evolving Data Streams*, 2025,
      arXiv 2506.05736. Niu et al., *Towards Stable Test-Time Adaptation in Dynamic Wild World*, 2023, arXiv 2302.12400.
      Wang et al., *Tent: Fully Test-time Adaptation by Entropy Minimization*, 2021, arXiv 2006.10726.
    """
    function = "adapt.entropy_step"
    _checks.number(function, "fraction", fraction, low=0, open_high=True)

    def mean_entropy(params: Tree, among: Array | None) -> tuple[Float[Array, ""], tuple[Logits, Array]]:
        logits = logits_fn(params)
        _checks.array(function, "logits_fn", logits, ndim=2, kind="float")
        if among is not None:
            _checks.array(function, "mask", among, shape=logits.shape[:1])
        kept = entropy_filter_weights(logits, fraction=fraction, mask=among)
        # What is not kept goes in as zeros, so that not even an infinite logit of it has a gradient.
        entropies = prediction_entropy(jnp.where(kept[:, None] != 0, logits, 0))
        return reduce.weighted_mean(entropies, kept), (logits, kept)

    differentiate = jax.value_and_grad(mean_entropy, has_aux=True)
    (value, (logits, kept)), grads = differentiate(params, mask)
    updates, moved = optax.with_extra_args_support(optimizer).update(
        grads, opt_state, params, value=value, grad_fn=lambda elsewhere: differentiate(elsewhere, kept)[1]
    )
    some = jnp.any(kept != 0)
    new = (optax.apply_updates(params, updates), moved)
    params, opt_state = jax.tree.map(lambda x, old: jnp.where(some, x, old), new, (params, opt_state))
    return Adapted(params, opt_state, logits, kept, value)
