r"""Losses of pairs through one number, the margin between chosen and rejected answer under policy and reference.

A loss is a link (`losses.preference.links`) of a margin. With :math:`\Delta_w` and :math:`\Delta_l` the log-ratios of
policy to reference of chosen and rejected answer, :math:`\Delta = \Delta_w - \Delta_l`, and their lengths
:math:`n_w, n_l`:

| loss | margin | link |
|---|---|---|
| `dpo` (with smoothing: cDPO) | :math:`\beta\Delta` | logistic |
| `robust_dpo` | :math:`\beta\Delta` | robust logistic |
| `hinge` | :math:`\beta\Delta` | hinge |
| `exo_pair` | :math:`\beta\Delta` | reverse KL |
| `discopop` | :math:`\beta\Delta` | discovered |
| `dpo_norm` | :math:`\beta(\Delta_w/n_w - \Delta_l/n_l)` | logistic |
| `ipo` | :math:`\Delta_w/n_w - \Delta_l/n_l`, or :math:`\Delta` | squared |
| `r_dpo` | :math:`\beta\Delta + \alpha(n_w - n_l)` | logistic |
| `dpop` | :math:`\beta(\Delta - \lambda\max(0, -\Delta_w))` | logistic |
| `ld_dpo` | :math:`\beta\Delta` of sums with a lighter tail | logistic |

All take log-probs *summed* over response tokens; those that need means take lengths and divide themselves. Arrays have
any shape, one entry a pair, and no entry looks at another. References are constants: no gradient flows through them.
Arrays of zeros for a reference are no reference.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks
from reweight.losses.preference import _inputs, links
from reweight.losses.preference._inputs import Lengths, PerAnswer
from reweight.losses.preference.sequence import shared_prefix_log_probs

__all__ = ["discopop", "dpo", "dpo_norm", "dpop", "exo_pair", "hinge", "ipo", "ld_dpo", "r_dpo", "robust_dpo"]


def dpo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""DPO: :math:`-(1-\epsilon) \log\sigma(\beta\Delta) - \epsilon \log\sigma(-\beta\Delta)`, per pair.

    With `label_smoothing` it is cDPO, which holds the margin back instead of driving it to infinity.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon`, the share of labels taken to be flipped, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider; :math:`\log 2` at the reference.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Rafailov et al., *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*, 2023, arXiv
      2305.18290. Eric Mitchell, *A note on DPO with noisy preferences and relationship to IPO*, 2023. Default of
      `beta`: the paper's and TRL's.
    """
    function = "losses.preference.dpo"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.logistic(beta * (chosen - rejected), label_smoothing=label_smoothing)


def dpo_norm(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""DPO on means: :math:`-\log\sigma(\beta(\Delta_w / n_w - \Delta_l / n_l))`, per pair.

    Each log-ratio is divided by the tokens of its answer, so that `beta` lives on another scale than DPO's: values of 2
    to 10 are usual. TRL calls it `sigmoid_norm`.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      chosen_lengths: response tokens of the chosen answers `[...]`; 0 counts as 1.
      rejected_lengths: response tokens of the rejected answers `[...]`; 0 counts as 1.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Lambert et al., *Tulu 3: Pushing Frontiers in Open Language Model Post-Training*, 2024, arXiv 2411.15124. Default
      of `beta`: TRL's, for all its losses; Tulu 3 takes 5.
    """
    function = "losses.preference.dpo_norm"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    chosen, rejected = _inputs.means(function, chosen, rejected, chosen_lengths, rejected_lengths)
    return links.logistic(beta * (chosen - rejected), label_smoothing=label_smoothing)


def robust_dpo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""Robust DPO: :math:`(-(1-\epsilon) \log\sigma(z) + \epsilon \log\sigma(-z)) / (1 - 2\epsilon)`, per pair.

    :math:`z = \beta\Delta`. If each label is flipped with probability :math:`\epsilon`, its expectation is DPO on the
    true labels. It has no lower bound: a pair gone far in the right direction has a negative loss.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon`, the rate of flipped labels, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Chowdhury et al., *Provably Robust DPO: Aligning Language Models with Noisy Feedback*, 2024, arXiv 2403.00409.
      Default of `label_smoothing`: TRL's; at 0 it is DPO.
    """
    function = "losses.preference.robust_dpo"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.robust_logistic(beta * (chosen - rejected), label_smoothing=label_smoothing)


def hinge(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
) -> PerAnswer:
    r"""Hinge loss of the DPO margin: :math:`\max(0, 1 - \beta\Delta)`, per pair.

    The hinge-norm loss of RSO; SLiC's, with a reference. `slic` is the one without. The slope at the kink is 0.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Liu et al., *Statistical Rejection Sampling Improves Preference Optimization*, 2023, arXiv 2309.06657. Default of
      `beta`: TRL's.
    """
    function = "losses.preference.hinge"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.hinge(beta * (chosen - rejected))


def ipo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    chosen_lengths: Lengths | None = None,
    rejected_lengths: Lengths | None = None,
    *,
    beta: float = 0.1,
    length_normalize: bool = True,
) -> PerAnswer:
    r"""IPO: :math:`(\delta - \frac{1}{2\beta})^2`, per pair: a margin of a given size, not as large as may be.

    By default :math:`\delta = \Delta_w / n_w - \Delta_l / n_l`, of means, as in TRL, which has it from the authors;
    then lengths are needed. With `length_normalize=False` it is :math:`\delta = \Delta_w - \Delta_l`, of sums, as in
    the code of DPO. The two want very different `beta`.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      chosen_lengths: response tokens of the chosen answers `[...]`; 0 counts as 1.
      rejected_lengths: response tokens of the rejected answers `[...]`; 0 counts as 1.
      beta: :math:`\beta`, in (0, inf): the margin is to be :math:`1/(2\beta)`.
      length_normalize: divide each log-ratio by its length first.

    Returns:
      Losses `[...]`, float32 or wider; :math:`1/(4\beta^2)` at the reference.

    Raises:
      ValueError: if lengths are missing where they are needed, shapes differ, or a hyperparameter is out of range.

    References:
      Azar et al., *A General Theoretical Paradigm to Understand Learning from Human Preferences*, 2023, arXiv
      2310.12036. Default of `beta` (the paper's :math:`\tau`): TRL's.
    """
    function = "losses.preference.ipo"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    if length_normalize:
        if chosen_lengths is None or rejected_lengths is None:
            missing = "chosen_lengths" if chosen_lengths is None else "rejected_lengths"
            _checks.fail(function, missing, "missing", "response lengths, or none with length_normalize=False")
        chosen, rejected = _inputs.means(function, chosen, rejected, chosen_lengths, rejected_lengths)
    return links.squared(chosen - rejected, target=0.5 / beta)


def exo_pair(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
) -> PerAnswer:
    r"""EXO for pairs: :math:`KL(q \,\|\, (1-\epsilon, \epsilon))` of :math:`q = (\sigma(z), \sigma(-z))`, per pair.

    :math:`z = \beta\Delta`. DPO with the divergence turned round, so that the policy seeks the modes of what the labels
    say.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon`, in (0, 0.5): what the labels leave to the rejected answer. At 0 the
        loss would be infinite.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Ji et al., *Towards Efficient Exact Optimization of Language Model Alignment*, 2024, arXiv 2402.00856. Default
      of `label_smoothing`: what the paper recommends; of `beta`: TRL's.
    """
    function = "losses.preference.exo_pair"
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing, open_low=True)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.reverse_kl(beta * (chosen - rejected), label_smoothing=label_smoothing)


def discopop(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    tau: float = 0.05,
) -> PerAnswer:
    r"""DiscoPOP: :math:`-(1-g) \log\sigma(z) + g\, e^{-z}` with :math:`g = \sigma(z/\tau)`, per pair.

    :math:`z = \beta\Delta`. A blend of DPO and an exponential loss that a language model found; `links.discovered` says
    more. Where the plain formula overflows (margins below -88 in float32) this one does not.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      tau: :math:`\tau`, width of the passage from one loss to the other, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Lu et al., *Discovering Preference Optimization Algorithms with and for Large Language Models*, 2024, arXiv
      2406.08414. Default of `tau`: the paper's; of `beta`: TRL's (the paper takes 0.05).
    """
    function = "losses.preference.discopop"
    _inputs.positive(function, beta=beta, tau=tau)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.discovered(beta * (chosen - rejected), tau=tau)


def r_dpo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    alpha: float,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""R-DPO: :math:`-\log\sigma(\beta\Delta + \alpha(n_w - n_l))`, per pair.

    The margin of a pair whose chosen answer is longer starts with a lead, so that length explains what it can and the
    policy learns the rest.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      chosen_lengths: response tokens of the chosen answers `[...]`.
      rejected_lengths: response tokens of the rejected answers `[...]`.
      alpha: :math:`\alpha`, a finite number, in the unit of margins per token: 0.01 to 0.2 are usual. There is no
        default: it depends on the lengths.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Park et al., *Disentangling Length from Quality in Direct Preference Optimization*, 2024, arXiv 2403.19159.
      Default of `beta`: TRL's.
    """
    function = "losses.preference.r_dpo"
    _inputs.finite(function, alpha=alpha)
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    chosen_counts, rejected_counts = _inputs.counts(function, chosen, chosen_lengths, rejected_lengths)
    margins = beta * (chosen - rejected) + alpha * (chosen_counts - rejected_counts)
    return links.logistic(margins, label_smoothing=label_smoothing)


def dpop(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    lam: float = 50.0,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""DPO-Positive: :math:`-\log\sigma(\beta(\Delta - \lambda \max(0, -\Delta_w)))`, per pair.

    The penalty keeps the chosen answer at least as likely as under the reference, which DPO does not. The gradient
    flows through the penalty too; its slope at 0, where training starts from the reference, is 0.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      lam: :math:`\lambda`, in [0, inf); 0 is DPO.
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Pal et al., *Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive*, 2024, arXiv 2402.13228.
      Default of `lam`: the paper's; of `beta`: TRL's for DPO (the paper takes 0.3).
    """
    function = "losses.preference.dpop"
    _inputs.positive(function, beta=beta)
    _inputs.non_negative(function, lam=lam)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    margins = beta * (chosen - rejected - lam * jax.nn.relu(-chosen))
    return links.logistic(margins, label_smoothing=label_smoothing)


def ld_dpo(
    policy_chosen: Float[Array, "*batch time"],
    policy_rejected: Float[Array, "*batch time"],
    reference_chosen: Float[Array, "*batch time"],
    reference_rejected: Float[Array, "*batch time"],
    chosen_mask: Bool[Array, "*batch time"] | Num[Array, "*batch time"],
    rejected_mask: Bool[Array, "*batch time"] | Num[Array, "*batch time"],
    *,
    alpha: float = 0.5,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""LD-DPO, from token log-probs: DPO on sums in which the tail of the longer answer counts less, per pair.

    Every log-prob, of policy and reference, becomes :math:`\sum_{t \le k} \log p_t + \alpha \sum_{t > k} \log p_t` with
    :math:`k = \min(n_w, n_l)` response tokens. `shared_prefix_log_probs` gives these sums for other losses.

    Args:
      policy_chosen: log-probs of the tokens of the chosen sequences under the policy `[..., T]`.
      policy_rejected: those of the rejected sequences `[..., T']`; the two sides may be padded to different lengths.
      reference_chosen: those of the chosen sequences under the reference `[..., T]`; a constant, without gradient.
      reference_rejected: those of the rejected sequences under the reference `[..., T']`; a constant too.
      chosen_mask: boolean or 0/1 `[..., T]`: the response tokens. What stands elsewhere is never read.
      rejected_mask: boolean or 0/1 `[..., T']`.
      alpha: :math:`\alpha`, what a token beyond the shared length counts, in [0, 1]; 1 is DPO.
      beta: :math:`\beta`, strength of the pull to the reference, in (0, inf).
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Liu et al., *Length Desensitization in Direct Preference Optimization*, 2024, arXiv 2409.06411. Default of
      `alpha`: what the paper suggests to start from; of `beta`: TRL's.
    """
    function = "losses.preference.ld_dpo"
    _checks.number(function, "alpha", alpha, low=0, high=1)
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    chosen_kept = _inputs.response(function, "policy_chosen", policy_chosen, "chosen_mask", chosen_mask)
    rejected_kept = _inputs.response(function, "policy_rejected", policy_rejected, "rejected_mask", rejected_mask)
    _checks.array(function, "policy_rejected", policy_rejected, shape=(*chosen_kept.shape[:-1], None))
    _checks.array(function, "reference_chosen", reference_chosen, shape=chosen_kept.shape, kind="float")
    _checks.array(function, "reference_rejected", reference_rejected, shape=rejected_kept.shape, kind="float")
    chosen_lengths, rejected_lengths = jnp.sum(chosen_kept, axis=-1), jnp.sum(rejected_kept, axis=-1)
    return dpo(
        shared_prefix_log_probs(policy_chosen, chosen_kept, rejected_lengths, alpha=alpha).sums,
        shared_prefix_log_probs(policy_rejected, rejected_kept, chosen_lengths, alpha=alpha).sums,
        shared_prefix_log_probs(reference_chosen, chosen_kept, rejected_lengths, alpha=alpha).sums,
        shared_prefix_log_probs(reference_rejected, rejected_kept, chosen_lengths, alpha=alpha).sums,
        beta=beta,
        label_smoothing=label_smoothing,
    )
