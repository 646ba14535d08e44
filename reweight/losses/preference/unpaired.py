"""Losses of single answers that were judged good or bad, with no answer to the same prompt to compare them with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks, reduce
from reweight.losses.preference import _inputs, links
from reweight.losses.preference._inputs import PerAnswer

__all__ = ["apo_zero_unpaired", "bco", "kto", "kto_reference_point"]

Flags = Bool[Array, "*batch"] | Num[Array, "*batch"]
Mask = Bool[Array, "*batch"] | Num[Array, "*batch"]


def _judged(function: str, policy: PerAnswer, reference: PerAnswer, desirable: Flags) -> tuple[Array, Array]:
    """The log-ratios, and which answers are desirable."""
    policy, reference = _inputs.answers(function, policy=policy, reference=reference)
    _checks.array(function, "desirable", desirable, shape=jnp.shape(policy))
    return policy - jax.lax.stop_gradient(reference), jnp.asarray(desirable) != 0


def _statistic(function: str, name: str, value: Float[Array, ""] | float, like: Array) -> Array:
    """A number of the batch or the stream, as a constant."""
    _checks.array(function, name, value, shape=(), kind="number")
    return jax.lax.stop_gradient(jnp.asarray(value)).astype(like.dtype)


def kto(
    policy: PerAnswer,
    reference: PerAnswer,
    desirable: Flags,
    reference_point: Float[Array, ""] | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> PerAnswer:
    r"""KTO: :math:`\lambda_D \sigma(\beta(z - \Delta))` if good, :math:`\lambda_U \sigma(\beta(\Delta - z))` if bad.

    :math:`\Delta` is the log-ratio of policy and reference. An answer is a gain or a loss against the reference point
    :math:`z`, an estimate of the divergence of the policy from the reference, and saturates on both sides as in
    prospect theory. Where good and bad answers are unequally many, the authors advise weights with
    :math:`\lambda_D n_D / (\lambda_U n_U)` in [1, 4/3], for :math:`n_D` good and :math:`n_U` bad answers in the data.

    Args:
      policy: log-probs of the answers under the policy, summed over response tokens `[...]`.
      reference: under the reference `[...]`; constant, no gradient flows through it.
      desirable: which answers are good, boolean or 0/1 `[...]`.
      reference_point: :math:`z`, a scalar from `kto_reference_point` over the global batch; constant, no gradient flows
        through it. `batch_kto` computes it inside.
      beta: how fast gains and losses saturate, in (0, inf).
      desirable_weight: :math:`\lambda_D`, in [0, inf).
      undesirable_weight: :math:`\lambda_U`, in [0, inf).

    Returns:
      Losses `[...]`, float32 or wider, between 0 and the weight.

    Raises:
      ValueError: if shapes do not fit, or a hyperparameter is out of range.

    References:
      Ethayarajh et al., *KTO: Model Alignment as Prospect Theoretic Optimization*, 2024, arXiv 2402.01306.
    """
    function = "losses.preference.kto"
    ratios, good = _judged(function, policy, reference, desirable)
    return _kto(
        function,
        ratios - _statistic(function, "reference_point", reference_point, ratios),
        good,
        beta,
        desirable_weight,
        undesirable_weight,
    )


def _kto(
    function: str, gains: Array, good: Array, beta: float, desirable_weight: float, undesirable_weight: float
) -> PerAnswer:
    _inputs.positive(function, beta=beta)
    _inputs.non_negative(function, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    weights = jnp.where(good, desirable_weight, undesirable_weight).astype(gains.dtype)
    return weights * links.sigmoid(beta * jnp.where(good, gains, -gains))


def kto_reference_point(
    policy_mismatched: PerAnswer, reference_mismatched: PerAnswer, *, mask: Mask | None = None
) -> Float[Array, ""]:
    r"""The reference point of KTO, a scalar: the mean of :math:`\log\pi(y'|x) - \log\pi_{ref}(y'|x)`, at least 0.

    :math:`y'` is the answer to another prompt of the batch (rolled by one, say), so that the mean estimates how far the
    policy is from the reference everywhere rather than on the answers that are judged.

    Args:
      policy_mismatched: summed log-probs of another example's answer under this prompt, by the policy `[...]`.
      reference_mismatched: by the reference `[...]`.
      mask: boolean or 0/1, broadcast to the log-probs. What stands where it is off is never read.

    Returns:
      A scalar of the whole batch, float32 or wider, without gradient; 0 where the mask leaves nothing.

    Raises:
      ValueError: if shapes do not fit.

    References:
      Ethayarajh et al., *KTO: Model Alignment as Prospect Theoretic Optimization*, 2024, arXiv 2402.01306.
    """
    function = "losses.preference.kto_reference_point"
    policy, reference = _inputs.answers(
        function, policy_mismatched=policy_mismatched, reference_mismatched=reference_mismatched
    )
    _checks.mask(function, "mask", mask, policy, like_name="policy_mismatched")
    return jax.lax.stop_gradient(jnp.maximum(reduce.weighted_mean(policy - reference, where=mask), 0))


def apo_zero_unpaired(
    policy: PerAnswer,
    reference: PerAnswer,
    desirable: Flags,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> PerAnswer:
    r"""APO-zero of single answers: :math:`\sigma(-\beta\Delta)` of good, :math:`\sigma(\beta\Delta)` of bad ones.

    It raises good answers and lowers bad ones against the reference: `kto` with the reference point held at 0.

    Args:
      policy: log-probs of the answers under the policy, summed over response tokens `[...]`.
      reference: under the reference `[...]`; constant, no gradient flows through it.
      desirable: which answers are good, boolean or 0/1 `[...]`.
      beta: how fast the loss saturates, in (0, inf).
      desirable_weight: of good answers, in [0, inf).
      undesirable_weight: of bad answers, in [0, inf).

    Returns:
      Losses `[...]`, float32 or wider, between 0 and the weight.

    Raises:
      ValueError: if shapes do not fit, or a hyperparameter is out of range.

    References:
      D'Oosterlinck et al., *Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
      in Alignment*, 2024, arXiv 2408.06266.
    """
    function = "losses.preference.apo_zero_unpaired"
    ratios, good = _judged(function, policy, reference, desirable)
    return _kto(function, ratios, good, beta, desirable_weight, undesirable_weight)


def bco(
    policy: PerAnswer,
    reference: PerAnswer,
    desirable: Flags,
    shift: Float[Array, ""] | float,
    *,
    beta: float = 0.1,
) -> PerAnswer:
    r"""BCO: :math:`-\log\sigma(\beta\Delta - \delta)` of good, :math:`-\log\sigma(\delta - \beta\Delta)` of bad ones.

    A classifier of good and bad answers whose logit is the implicit reward less a shift. A pair is two answers: with a
    shift of 0 the losses of the two add up to `bco_pair`.

    Args:
      policy: log-probs of the answers under the policy, summed over response tokens `[...]`.
      reference: under the reference `[...]`; constant, no gradient flows through it.
      desirable: which answers are good, boolean or 0/1 `[...]`.
      shift: :math:`\delta`, a scalar: the mean implicit reward of all answers so far, which `stream_bco` keeps;
        constant, no gradient flows through it.
      beta: scale of the implicit reward, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes do not fit, or `beta` is out of range.

    References:
      Jung et al., *Binary Classifier Optimization for Large Language Model Alignment*, 2024, arXiv 2404.04656.
    """
    function = "losses.preference.bco"
    _inputs.positive(function, beta=beta)
    ratios, good = _judged(function, policy, reference, desirable)
    logits = beta * ratios - _statistic(function, "shift", shift, ratios)
    return links.logistic(jnp.where(good, logits, -logits))
