"""Weights of whole sequences, from the probabilities that the current policy gives them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks
from reweight.losses.preference.sequence import sequence_log_probs
from reweight.weights import base

__all__ = ["wpo", "wpo_weights"]

TokenValues = Float[Array, "*batch time"]
Mask = Bool[Array, "*batch time"] | Num[Array, "*batch time"]


def wpo_weights(
    chosen_log_probs: TokenValues,
    rejected_log_probs: TokenValues,
    chosen_sum_squares: TokenValues,
    rejected_sum_squares: TokenValues,
    chosen_mask: Mask,
    rejected_mask: Mask,
    *,
    clip: bool = True,
) -> Float[Array, "*batch"]:
    r"""WPO weights of pairs: :math:`w(y_w)\, w(y_l)`, how much like the policy's own answers both of them are.

    :math:`\log w(y) = \frac1n \sum_t (\log p_t - \log \sum_v p_{tv}^2)`: the probability of a token against the one
    expected of a token that the policy draws, so that an answer as likely as its own has a weight about 1 whatever the
    entropy. Pairs far from what the policy says hardly count: off-policy data is made to look on-policy. The scale
    means something, so reduce with `normalizer="count"`:

        w = weights.wpo_weights(c.log_probs, r.log_probs, c.sum_squares, r.sum_squares, c_mask, r_mask)
        loss = reduce.weighted_mean(losses, w, normalizer="count")

    Args:
      chosen_log_probs: of the tokens of the chosen sequences under the policy `[..., T]`, as `tokens.token_statistics`
        gives them. What stands where a mask is off is never read.
      rejected_log_probs: of the rejected sequences `[..., T']`; the two sides may be padded to different lengths.
      chosen_sum_squares: :math:`\sum_v p_{tv}^2` at the same positions `[..., T]`, in (0, 1], likewise.
      rejected_sum_squares: those of the rejected sequences `[..., T']`.
      chosen_mask: boolean or 0/1 `[..., T]`: the response tokens.
      rejected_mask: boolean or 0/1 `[..., T']`.
      clip: hold the product at 1 from above, as the official code does. TRL does not.

    Returns:
      Weights `[...]`, float32 or wider, without gradient, on their own scale and not of mean one; in [0, 1] if clipped.
      An empty answer has the factor 1.

    Raises:
      ValueError: if shapes do not fit.

    References:
      Zhou et al., *WPO: Enhancing RLHF with Weighted Preference Optimization*, 2024, arXiv 2406.11827.
    """
    chosen = _mean_advantage("chosen", chosen_log_probs, chosen_sum_squares, chosen_mask)
    rejected = _mean_advantage("rejected", rejected_log_probs, rejected_sum_squares, rejected_mask)
    if chosen.shape != rejected.shape:
        allowed = f"the leading shape {chosen.shape} of chosen_log_probs"
        _checks.fail("weights.wpo_weights", "rejected_log_probs", f"of leading shape {rejected.shape}", allowed)
    total = chosen + rejected
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(total, 0) if clip else total))


def _mean_advantage(side: str, log_probs: TokenValues, sum_squares: TokenValues, mask: Mask) -> Float[Array, "*batch"]:
    """How much likelier the tokens of an answer are than tokens that the policy draws, on average, as a logarithm."""
    function = "weights.wpo_weights"
    _checks.array(function, f"{side}_log_probs", log_probs, kind="float")
    if jnp.ndim(log_probs) < 1:
        _checks.fail(function, f"{side}_log_probs", "a scalar", "an array whose last axis is time")
    _checks.array(function, f"{side}_sum_squares", sum_squares, shape=jnp.shape(log_probs), kind="float")
    _checks.mask(function, f"{side}_mask", mask, log_probs, like_name=f"{side}_log_probs")
    dtype = _checks.accumulation_dtype(log_probs, sum_squares)
    squares = jnp.maximum(jnp.asarray(sum_squares).astype(dtype), jnp.finfo(dtype).tiny)
    return sequence_log_probs(jnp.asarray(log_probs).astype(dtype) - jnp.log(squares), mask).means


def wpo(*, clip: bool = True) -> base.Weighting:
    """The `wpo_weights` of each pair, not normalised.

    Args:
      clip: hold the product at 1 from above, as the official code does. TRL does not.

    Returns:
      A `Weighting` of scope `"example"` that reads the signals `chosen_log_probs`, `rejected_log_probs`,
      `chosen_sum_squares`, `rejected_sum_squares`, `chosen_mask` and `rejected_mask`; losses are one a pair.
    """

    def of_pairs(
        losses: Float[Array, "..."],
        *,
        chosen_log_probs: TokenValues,
        rejected_log_probs: TokenValues,
        chosen_sum_squares: TokenValues,
        rejected_sum_squares: TokenValues,
        chosen_mask: Mask,
        rejected_mask: Mask,
        mask: base.Mask | None = None,
    ) -> Float[Array, "..."]:
        function = "weights.wpo"
        kept = base.keep(losses, mask, function)
        _checks.array(function, "chosen_log_probs", chosen_log_probs, shape=(*jnp.shape(losses), None))
        weights = wpo_weights(
            chosen_log_probs,
            rejected_log_probs,
            chosen_sum_squares,
            rejected_sum_squares,
            chosen_mask,
            rejected_mask,
            clip=clip,
        )
        return jnp.where(kept, weights, 0)

    return base.stateless(of_pairs, scope="example", name="weights.wpo")
