"""From token log-probs to one number an answer: sums, means, and the other scores that pair losses compare."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.losses._exponential import power_of_log
from reweight.losses.preference import _inputs

__all__ = [
    "SequenceLogProbs",
    "implicit_rewards",
    "log_odds",
    "power_rewards",
    "sequence_log_probs",
    "shared_prefix_log_probs",
]

Mask = Bool[Array, "*batch time"] | Num[Array, "*batch time"]


class SequenceLogProbs(NamedTuple):
    """Log-probs of whole answers, and how many tokens they are of.

    Attributes:
      sums: log-probs summed over the tokens of the answer `[...]`: what every loss of `losses.preference` takes.
      lengths: tokens of the answer `[...]`, integers; 0 for an empty one.
    """

    sums: Float[Array, "*batch"]
    lengths: Int[Array, "*batch"]

    @property
    def means(self) -> Float[Array, "*batch"]:
        """Log-probs averaged over the tokens of the answer; 0 for an empty one."""
        return self.sums / jnp.maximum(self.lengths, 1).astype(self.sums.dtype)


def sequence_log_probs(log_probs: Float[Array, "*batch time"], mask: Mask) -> SequenceLogProbs:
    r"""Log-probs of whole answers, :math:`\sum_t m_t \log p_t`, with their lengths :math:`\sum_t m_t`, per sequence.

    Args:
      log_probs: of each token `[..., T]`, such as `tokens.token_statistics(...).log_probs`. What stands where the mask
        is off is never read.
      mask: boolean or 0/1 `[..., T]`: the tokens of the answer, without prompt and padding, wherever they stand.

    Returns:
      `SequenceLogProbs(sums, lengths)`, sums in float32 or wider. An empty answer has sum, length and mean 0, and no
      gradient.

    Raises:
      ValueError: if the mask does not broadcast to the log-probs.
    """
    kept = _inputs.response("losses.preference.sequence_log_probs", "log_probs", log_probs, "mask", mask)
    values = jnp.where(kept, log_probs, 0).astype(_checks.accumulation_dtype(log_probs))
    return SequenceLogProbs(jnp.sum(values, axis=-1), jnp.sum(kept, axis=-1, dtype=jnp.int32))


def shared_prefix_log_probs(
    log_probs: Float[Array, "*batch time"], mask: Mask, other_lengths: Num[Array, "*batch"], *, alpha: float = 0.5
) -> SequenceLogProbs:
    r"""Log-probs of answers whose tail counts less, :math:`\sum_{t \le k} \log p_t + \alpha \sum_{t > k} \log p_t`.

    The prefix is as long as the shorter answer of the pair, :math:`k = \min(n, n')`, counted in response tokens. These
    are the sums that LD-DPO takes; any pair loss can.

    Args:
      log_probs: of each token `[..., T]`. What stands where the mask is off is never read.
      mask: boolean or 0/1 `[..., T]`: the tokens of the answer, padded left or right.
      other_lengths: :math:`n'`, tokens of the other answer of the pair `[...]`.
      alpha: :math:`\alpha`, what a token of the tail counts, in [0, 1]; 1 gives `sequence_log_probs`.

    Returns:
      `SequenceLogProbs(sums, lengths)`, the lengths being those of the whole answers.

    Raises:
      ValueError: if shapes do not fit, or `alpha` is out of range.

    References:
      Liu et al., *Length Desensitization in Direct Preference Optimization*, 2024, arXiv 2409.06411.
    """
    function = "losses.preference.shared_prefix_log_probs"
    kept = _inputs.response(function, "log_probs", log_probs, "mask", mask)
    _checks.array(function, "other_lengths", other_lengths, shape=jnp.shape(log_probs)[:-1], kind="number")
    _checks.number(function, "alpha", alpha, low=0, high=1)
    # Tokens before the first of the answer are masked, so a prefix needs no lower end.
    position = jnp.cumsum(kept, axis=-1, dtype=jnp.int32)
    prefix = kept & (position <= jnp.asarray(other_lengths)[..., None])
    whole, lengths = sequence_log_probs(log_probs, kept)
    shared = sequence_log_probs(log_probs, prefix).sums
    return SequenceLogProbs(alpha * whole + (1 - alpha) * shared, lengths)


def implicit_rewards(
    policy: Float[Array, "*batch"], reference: Float[Array, "*batch"], *, beta: float = 0.1
) -> Float[Array, "*batch"]:
    r"""Rewards that a policy implies, :math:`\beta (\log\pi(y|x) - \log\pi_{ref}(y|x))`, per answer, for logging.

    Up to a constant a prompt, the reward for which the policy is the optimum at this `beta`. The share of pairs in
    which the chosen answer has the higher one is the usual accuracy.

    Args:
      policy: summed log-probs of the answers under the policy `[...]`.
      reference: under the reference `[...]`.
      beta: strength of the pull to the reference, in (0, inf).

    Returns:
      Rewards `[...]`, float32 or wider, without gradient.

    Raises:
      ValueError: if the shapes differ, or `beta` is out of range.

    References:
      Rafailov et al., *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*, 2023, arXiv
      2305.18290.
    """
    function = "losses.preference.implicit_rewards"
    _inputs.positive(function, beta=beta)
    policy, reference = _inputs.answers(function, policy=policy, reference=reference)
    return jax.lax.stop_gradient(beta * (policy - reference))


def log_odds(log_probs: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    r"""Log-odds of probabilities given as logarithms, :math:`\ell - \log(1 - e^\ell)`, per entry: ORPO's score.

    At :math:`\ell = 0` odds are infinite. Log-probs above -1e-6 (float32; -1e-12 in float64) have the value there, and
    the slope there, about 1e6 (1e12): an answer that has become certain can still be made less likely.

    Args:
      log_probs: :math:`\ell`, logarithms of probabilities, at most 0; for answers, means over tokens.

    Returns:
      Log-odds of the same shape, float32 or wider.
    """
    _checks.array("losses.preference.log_odds", "log_probs", log_probs, kind="float")
    values = jnp.asarray(log_probs).astype(_checks.accumulation_dtype(log_probs))
    ceiling = -1e-12 if values.dtype == jnp.float64 else -1e-6
    # The slope of the clamp is 1 on both sides, its value is not.
    values = jax.lax.stop_gradient(jnp.minimum(values, ceiling)) + (values - jax.lax.stop_gradient(values))
    small = values > -jnp.log(jnp.asarray(2, values.dtype))
    near = jnp.log(-jnp.expm1(jnp.where(small, values, -1)))
    far = jnp.log1p(-jnp.exp(jnp.where(small, -1, values)))
    return values - jnp.where(small, near, far)


def power_rewards(log_probs: Float[Array, "*batch"], *, alpha: float) -> Float[Array, "*batch"]:
    r"""Rewards :math:`(1 - p^{-\alpha}) / \alpha` of probabilities :math:`p = e^\ell`, per entry: AlphaPO's score.

    Its slope in :math:`\ell` is :math:`p^{-\alpha}`: with `alpha` above 0 unlikely answers count more than likely ones,
    below 0 less, and at 0 the reward is :math:`\ell` itself.

    Args:
      log_probs: :math:`\ell`, for answers means over tokens.
      alpha: :math:`\alpha`, any finite number. Where :math:`e^{-\alpha\ell}` would leave the range of the dtype (beyond
        e^68 in float32), the reward goes on along its tangent.

    Returns:
      Rewards of the same shape, float32 or wider.

    Raises:
      ValueError: if `alpha` is no finite number.

    References:
      Gupta et al., *AlphaPO: Reward Shape Matters for LLM Alignment*, 2025, arXiv 2501.03884.
    """
    function = "losses.preference.power_rewards"
    _checks.array(function, "log_probs", log_probs, kind="float")
    _inputs.finite(function, alpha=alpha)
    values = jnp.asarray(log_probs).astype(_checks.accumulation_dtype(log_probs))
    return power_of_log(values, -jnp.asarray(alpha, values.dtype))
