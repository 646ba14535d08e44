"""Losses between the distributions of a batch: what is compared with what is decided by ranks, not by pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from reweight import _checks
from reweight.losses.preference import _inputs, links
from reweight.losses.preference._inputs import PerAnswer

__all__ = ["aot", "aot_unpaired"]

Mask = Bool[Array, "..."] | Num[Array, "..."]


def unmasked(function: str, mask: Mask | None, *log_probs: PerAnswer) -> tuple[Array, ...]:
    """The mask as booleans, and the four arrays of log-probs, 0 where masked."""
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    arrays = _inputs.answers(function, **dict(zip(names, log_probs, strict=True)))
    _checks.mask(function, "mask", mask, arrays[0], like_name="policy_chosen")
    shape = arrays[0].shape
    kept = _checks.kept(mask, shape)
    return kept, *(jnp.where(kept, array, 0) for array in arrays)


def partners(values: PerAnswer, others: PerAnswer, kept: Bool[Array, "*batch"]) -> Int[Array, " n"]:
    """For each entry of `values`, flat, which entry of `others` has the same rank; masked entries are left over."""
    off = ~kept.reshape(-1)
    order = jnp.lexsort((values.reshape(-1), off))
    return jnp.zeros_like(order).at[order].set(jnp.lexsort((others.reshape(-1), off)))


def partner_values(values: PerAnswer, others: PerAnswer, kept: Bool[Array, "*batch"]) -> PerAnswer:
    """`others` in the order in which they go with `values`; gradients flow to the entries that are taken."""
    rows = partners(*jax.lax.stop_gradient((values, others)), kept)
    return others.reshape(-1)[rows].reshape(values.shape)


def aot(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    mask: Mask | None = None,
) -> PerAnswer:
    r"""AOT of pairs: DPO with margins of policy and reference that are matched by rank in the batch.

    The pair whose policy margin :math:`\log\pi(y_w) - \log\pi(y_l)` has rank :math:`r` in the global batch is held
    against the reference margin of rank :math:`r`, not against its own: the distribution of margins is to dominate the
    reference's. Entry :math:`i` is the loss of pair :math:`i`; TRL returns the same losses in the order of the ranks.
    All axes count as the batch, and equal margins keep the order in which they come.

    A loss depends on the other pairs. Under gradient accumulation use `batch_aot`.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).
      mask: boolean or 0/1, broadcast to the log-probs: a masked pair never enters the sort, and costs 0. Its log-probs
        are never read. Default: all.

    Returns:
      Losses `[...]` in the order of the pairs, float32 or wider; 0 where masked. For a single pair `dpo`.

    Raises:
      ValueError: if shapes differ, the mask does not broadcast to the log-probs, or a hyperparameter is out of range.

    References:
      Melnyk et al., *Distributional Preference Alignment of LLMs via Optimal Transport*, 2024, arXiv 2406.05882.
      Default of `beta`: TRL's (the paper takes 0.01).
    """
    function = "losses.preference.aot"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    kept, chosen, rejected, held_chosen, held_rejected = unmasked(
        function, mask, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    held = jax.lax.stop_gradient(held_chosen - held_rejected)
    margins = chosen - rejected
    differences = margins - partner_values(margins, held, kept)
    losses = links.logistic(beta * differences, label_smoothing=label_smoothing)
    return jnp.where(kept, losses, 0)


def aot_unpaired(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    mask: Mask | None = None,
) -> PerAnswer:
    r"""AOT of unpaired answers: DPO with log-ratios of chosen and rejected answers matched by rank in the batch.

    The chosen answer whose log-ratio :math:`\Delta_w` has rank :math:`r` among the chosen of the global batch is held
    against the rejected answer of rank :math:`r` among the rejected, so that it does not matter which was paired with
    which. Entry :math:`i` belongs to chosen answer :math:`i`; TRL returns the same losses in the order of the ranks.
    All axes count as the batch, and equal log-ratios keep the order in which they come.

    A loss depends on the other answers. Under gradient accumulation use `batch_aot_unpaired`.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).
      mask: boolean or 0/1, broadcast to the log-probs: a masked pair never enters the sort, and costs 0. Its log-probs
        are never read. Default: all.

    Returns:
      Losses `[...]` in the order of the chosen answers, float32 or wider; 0 where masked.

    Raises:
      ValueError: if shapes differ, the mask does not broadcast to the log-probs, or a hyperparameter is out of range.

    References:
      Melnyk et al., *Distributional Preference Alignment of LLMs via Optimal Transport*, 2024, arXiv 2406.05882.
      Default of `beta`: TRL's (the paper takes 0.01).
    """
    function = "losses.preference.aot_unpaired"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    kept, chosen, rejected, held_chosen, held_rejected = unmasked(
        function, mask, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    chosen, rejected = chosen - jax.lax.stop_gradient(held_chosen), rejected - jax.lax.stop_gradient(held_rejected)
    differences = chosen - partner_values(chosen, rejected, kept)
    losses = links.logistic(beta * differences, label_smoothing=label_smoothing)
    return jnp.where(kept, losses, 0)
