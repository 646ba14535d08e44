r"""Losses of pairs that judge each answer by itself: a link for the chosen one and a link for the rejected one.

Unlike those of a margin (`losses.preference.pairwise`) they see whether chosen answers become more or less likely than
under the reference: the same constant added to both log-ratios of a pair changes them. Log-probs are summed over
response tokens, references are constants, and no pair looks at another.

With :math:`r = \beta\Delta` the implicit rewards of chosen and rejected answer:

| loss | chosen answer | rejected answer |
|---|---|---|
| `nca_pair` | logistic of :math:`r_w`, half a logistic of :math:`-r_w` | half a logistic of :math:`-r_l` |
| `bco_pair` | logistic of :math:`r_w` | logistic of :math:`-r_l` |
| `sppo_hard` | squared, to :math:`1/(2\beta)` | squared, to :math:`-1/(2\beta)` |
| `sppo` | half a squared, to :math:`(P_w - 1/2)/\beta` | half a squared, to :math:`(P_l - 1/2)/\beta` |
| `apo_zero` | sigmoid of :math:`r_w` | sigmoid of :math:`-r_l` |
| `apo_down` | sigmoid of :math:`-r_w` | sigmoid of :math:`r_w - r_l` |
"""

from reweight.losses.preference import _inputs, links
from reweight.losses.preference._inputs import PerAnswer

__all__ = ["apo_down", "apo_zero", "bco_pair", "nca_pair", "sppo", "sppo_hard"]


def nca_pair(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
) -> PerAnswer:
    r"""NCA for pairs: :math:`-\log\sigma(r_w) - \frac12\log\sigma(-r_w) - \frac12\log\sigma(-r_l)`, per pair.

    :math:`r = \beta\Delta` is the implicit reward. Noise-contrastive: the chosen answer is not to become less likely
    than under the reference.

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
      Chen et al., *Noise Contrastive Alignment of Language Models with Explicit Rewards*, 2024, arXiv 2402.05369.
      Default of `beta`: TRL's (the paper takes 0.01).
    """
    function = "losses.preference.nca_pair"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    chosen, rejected = beta * chosen, beta * rejected
    return links.logistic(chosen) + 0.5 * (links.logistic(-chosen) + links.logistic(-rejected))


def bco_pair(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
) -> PerAnswer:
    r"""BCO for pairs, without a shift: :math:`-\log\sigma(\beta\Delta_w) - \log\sigma(-\beta\Delta_l)`, per pair.

    A classifier of answers whose logit is the implicit reward. With the running shift of the paper: `stream_bco`.

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
      Jung et al., *Binary Classifier Optimization for Large Language Model Alignment*, 2024, arXiv 2404.04656. Default
      of `beta`: TRL's.
    """
    function = "losses.preference.bco_pair"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.logistic(beta * chosen) + links.logistic(-beta * rejected)


def sppo_hard(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 1e-3,
) -> PerAnswer:
    r"""SPPO with hard labels: :math:`(\Delta_w - \frac{1}{2\beta})^2 + (\Delta_l + \frac{1}{2\beta})^2`, per pair.

    `sppo` with win rates 1 and 0, twice: TRL's, which does not halve the squares.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      beta: :math:`\beta = 1/\eta`, in (0, inf): log-ratios are to be :math:`\pm 1/(2\beta)`.

    Returns:
      Losses `[...]`, float32 or wider; :math:`1/(2\beta^2)` at the reference.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Wu et al., *Self-Play Preference Optimization for Language Model Alignment*, 2024, arXiv 2405.00675. Default of
      `beta`: that of the official code; TRL's is 0.1 for all its losses.
    """
    function = "losses.preference.sppo_hard"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.squared(chosen, target=0.5 / beta) + links.squared(rejected, target=-0.5 / beta)


def sppo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    chosen_win_rate: PerAnswer,
    rejected_win_rate: PerAnswer,
    *,
    beta: float = 1e-3,
) -> PerAnswer:
    r"""SPPO: :math:`\frac12 [(\Delta_w - (P_w - \frac12)/\beta)^2 + (\Delta_l - (P_l - \frac12)/\beta)^2]`, per pair.

    Each log-ratio is to be the answer's advantage over the policy's own answers. `sppo_win_rates` gives the win rates
    of K answers from their scores.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      reference_chosen: those of the chosen answers under the reference; a constant, without gradient.
      reference_rejected: those of the rejected answers under the reference; a constant too.
      chosen_win_rate: :math:`P_w`, the probability that the chosen answer beats an answer of the policy, in [0, 1],
        broadcast to the log-probs; a constant.
      rejected_win_rate: :math:`P_l`, that of the rejected answer.
      beta: :math:`\beta = 1/\eta`, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Wu et al., *Self-Play Preference Optimization for Language Model Alignment*, 2024, arXiv 2405.00675. Default of
      `beta`: that of the official code.
    """
    function = "losses.preference.sppo"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    chosen_rate, rejected_rate = _inputs.per_answer(
        function, chosen, chosen_win_rate=chosen_win_rate, rejected_win_rate=rejected_win_rate
    )
    chosen_losses = links.squared(chosen, target=(chosen_rate - 0.5) / beta)
    return 0.5 * (chosen_losses + links.squared(rejected, target=(rejected_rate - 0.5) / beta))


def apo_zero(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
) -> PerAnswer:
    r"""APO-zero: :math:`\sigma(-\beta\Delta_w) + \sigma(\beta\Delta_l)`, per pair: chosen up, rejected down.

    For chosen answers better than what the model says by itself.

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
      D'Oosterlinck et al., *Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
      in Alignment*, 2024, arXiv 2408.06266. Default of `beta`: the paper's and TRL's.
    """
    function = "losses.preference.apo_zero"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.sigmoid(beta * chosen) + links.sigmoid(-beta * rejected)


def apo_down(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
    *,
    beta: float = 0.1,
) -> PerAnswer:
    r"""APO-down: :math:`\sigma(\beta\Delta_w) + \sigma(-\beta\Delta)`, per pair: both down, rejected more.

    For chosen answers worse than what the model says by itself.

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
      D'Oosterlinck et al., *Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
      in Alignment*, 2024, arXiv 2408.06266. Default of `beta`: the paper's and TRL's.
    """
    function = "losses.preference.apo_down"
    _inputs.positive(function, beta=beta)
    chosen, rejected = _inputs.log_ratios(
        function, policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return links.sigmoid(-beta * chosen) + links.sigmoid(beta * (chosen - rejected))
