r"""Losses of pairs without a reference model.

Like those with one, they are links of a margin, here of log-probs themselves: of sums (`slic`, `cpo`), of means
(`simpo`, `rrhf`), or of a function of means (`alphapo`, `orpo`). All take log-probs summed over response tokens; those
that need means take lengths and divide themselves.

Some add the negative log-likelihood (NLL) of the chosen answer. A loss per pair can hold the NLL of its own pair, and
does by default; `nll` replaces it. Trainers such as TRL add one mean over all the tokens of the batch, which belongs to
no pair. To have that, leave the term out, and add two reductions, whose parts add up over microbatches and hosts:

    pairs = preference.cpo(chosen.sums, rejected.sums, beta=0.1, alpha=0.0)  # orpo: nll=0.0
    pair_part = reduce.weighted_mean(pairs, parts=True)
    nll_part = reduce.tokens(-chosen_log_probs, chosen_mask, parts=True)  # for ORPO a mask of prompts and answers
    loss = reduce.finish(pair_part) + alpha * reduce.finish(nll_part)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses.preference import _inputs, links
from reweight.losses.preference._inputs import Lengths, PerAnswer
from reweight.losses.preference.sequence import log_odds, power_rewards

__all__ = ["alphapo", "cpo", "orpo", "rrhf", "simpo", "slic"]


def _nll(function: str, nll: Float[Array, "..."] | float | None, chosen: PerAnswer) -> PerAnswer:
    if nll is None:
        return -chosen
    _checks.array(function, "nll", nll, kind="number")
    _checks.broadcasts(function, "nll", nll, chosen, like_name="policy_chosen")
    return jnp.asarray(nll).astype(chosen.dtype)


def slic(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    *,
    delta: float = 1.0,
    lam: float = 0.0,
    nll: Float[Array, "..."] | float | None = None,
) -> PerAnswer:
    r"""SLiC-HF: :math:`\max(0, \delta - \log\pi(y_w) + \log\pi(y_l)) + \lambda\, NLL`, per pair, on sums.

    The NLL is by default that of the chosen answer, summed over its tokens; give `nll` for another target, such as the
    paper's reference answer, or another way of counting.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      delta: :math:`\delta`, the margin from which on nothing is paid, finite.
      lam: :math:`\lambda`, weight of the NLL, in [0, inf).
      nll: NLL of the chosen answers, broadcast to the log-probs; see above.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Zhao et al., *SLiC-HF: Sequence Likelihood Calibration with Human Feedback*, 2023, arXiv 2305.10425. Default of
      `delta`: that of the HALOs code; the paper gives no value for `lam`, and at 0 there is no second term.
    """
    function = "losses.preference.slic"
    _inputs.non_negative(function, lam=lam)
    _inputs.finite(function, delta=delta)
    chosen, rejected = _inputs.answers(function, policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    return links.hinge(chosen - rejected, target=delta) + lam * _nll(function, nll, chosen)


def cpo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
    nll: Float[Array, "..."] | float | None = None,
) -> PerAnswer:
    r"""CPO: :math:`-\log\sigma(\beta(\log\pi(y_w) - \log\pi(y_l))) + \alpha\, NLL`, per pair, on sums.

    The NLL is by default that of the chosen answer, summed over its tokens, as in the paper. TRL adds the mean over the
    tokens of the batch instead: take `alpha=0` and add that, as shown at the top of this module.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      beta: :math:`\beta`, scale of the margin, in (0, inf).
      alpha: :math:`\alpha`, weight of the NLL, in [0, inf).
      label_smoothing: :math:`\epsilon`, the share of labels taken to be flipped, in [0, 0.5).
      nll: NLL of the chosen answers, broadcast to the log-probs; see above.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Xu et al., *Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
      Translation*, 2024, arXiv 2401.08417. Defaults: the paper's and TRL's.
    """
    function = "losses.preference.cpo"
    _inputs.positive(function, beta=beta)
    _inputs.non_negative(function, alpha=alpha)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.answers(function, policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    losses = links.logistic(beta * (chosen - rejected), label_smoothing=label_smoothing)
    return losses + alpha * _nll(function, nll, chosen)


def simpo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""SimPO: :math:`-\log\sigma(\beta(\frac{\log\pi(y_w)}{n_w} - \frac{\log\pi(y_l)}{n_l}) - \gamma)`, per pair.

    Log-probs come as sums and are divided by the lengths here; they are never to be divided before. There is no
    reference model and no NLL.

        chosen = preference.sequence_log_probs(chosen_token_log_probs, chosen_mask)  # and rejected likewise
        losses = preference.simpo(chosen.sums, rejected.sums, chosen.lengths, rejected.lengths)
        loss = reduce.weighted_mean(losses)

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      chosen_lengths: response tokens of the chosen answers `[...]`; 0 counts as 1.
      rejected_lengths: response tokens of the rejected answers `[...]`; 0 counts as 1.
      beta: :math:`\beta`, in (0, inf). The paper's runs have 2 to 10, far above DPO's, since means are small.
      gamma: :math:`\gamma`, the margin asked for, finite, in the unit of :math:`\beta` times a mean log-prob. It is
        TRL's `simpo_gamma`; the official code's `gamma_beta_ratio` is :math:`\gamma/\beta`.
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Meng et al., *SimPO: Simple Preference Optimization with a Reference-Free Reward*, 2024, arXiv 2405.14734.
      Defaults: those of the official code (`beta` 2.0, `gamma_beta_ratio` 0.25).
    """
    function = "losses.preference.simpo"
    _inputs.positive(function, beta=beta)
    _inputs.finite(function, gamma=gamma)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.answers(function, policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    chosen, rejected = _inputs.means(function, chosen, rejected, chosen_lengths, rejected_lengths)
    return links.logistic(beta * (chosen - rejected) - gamma, label_smoothing=label_smoothing)


def alphapo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    alpha: float = 0.25,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
) -> PerAnswer:
    r"""AlphaPO: :math:`-\log\sigma(\beta(r_w - r_l) - \gamma)` with :math:`r = (1 - p^{-\alpha})/\alpha`, per pair.

    :math:`\log p = \log\pi(y)/n` is the mean log-prob. SimPO with another shape of the reward, see `power_rewards`; as
    :math:`\alpha` tends to 0 it is SimPO.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      chosen_lengths: response tokens of the chosen answers `[...]`; 0 counts as 1.
      rejected_lengths: response tokens of the rejected answers `[...]`; 0 counts as 1.
      alpha: :math:`\alpha`, any finite number; 0 is SimPO.
      beta: :math:`\beta`, in (0, inf), as for `simpo`.
      gamma: :math:`\gamma`, the margin asked for, finite, as for `simpo`.
      label_smoothing: :math:`\epsilon` as for `dpo`, in [0, 0.5).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Gupta et al., *AlphaPO: Reward Shape Matters for LLM Alignment*, 2025, arXiv 2501.03884. The paper tunes `alpha`
      to the model, around the default; `beta` and `gamma` are those of `simpo`.
    """
    function = "losses.preference.alphapo"
    _inputs.finite(function, alpha=alpha, gamma=gamma)
    _inputs.positive(function, beta=beta)
    _inputs.smoothing(function, label_smoothing)
    chosen, rejected = _inputs.answers(function, policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    chosen, rejected = _inputs.means(function, chosen, rejected, chosen_lengths, rejected_lengths)
    margins = power_rewards(chosen, alpha=alpha) - power_rewards(rejected, alpha=alpha)
    return links.logistic(beta * margins - gamma, label_smoothing=label_smoothing)


def orpo(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    lam: float = 0.1,
    nll: Float[Array, "..."] | float | None = None,
) -> PerAnswer:
    r"""ORPO: :math:`NLL - \lambda \log\sigma(o_w - o_l)` with log-odds :math:`o = \ell - \log(1 - e^\ell)`, per pair.

    :math:`\ell = \log\pi(y)/n` is the mean log-prob. The NLL is by default that of the chosen answer, averaged over its
    tokens. TRL and the official code take the mean over the tokens of the batch, prompts included: take `nll=0.0` and
    add that, as shown at the top of this module. How log-odds behave for answers that are all but certain: `log_odds`.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      chosen_lengths: response tokens of the chosen answers `[...]`; 0 counts as 1.
      rejected_lengths: response tokens of the rejected answers `[...]`; 0 counts as 1.
      lam: :math:`\lambda`, weight of the odds-ratio term, in [0, inf).
      nll: NLL of the chosen answers, broadcast to the log-probs; see above.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Hong et al., *ORPO: Monolithic Preference Optimization without Reference Model*, 2024, arXiv 2403.07691. Default
      of `lam`: the paper's, and TRL's, where it is called `beta`.
    """
    function = "losses.preference.orpo"
    _inputs.non_negative(function, lam=lam)
    chosen, rejected = _inputs.answers(function, policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    chosen, rejected = _inputs.means(function, chosen, rejected, chosen_lengths, rejected_lengths)
    return _nll(function, nll, chosen) + lam * links.logistic(log_odds(chosen) - log_odds(rejected))


def rrhf(
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    lam: float = 1.0,
    nll: Float[Array, "..."] | float | None = None,
) -> PerAnswer:
    r"""RRHF of pairs: :math:`\max(0, \frac{\log\pi(y_l)}{n_l} - \frac{\log\pi(y_w)}{n_w}) + \lambda\, NLL`, per pair.

    The NLL is by default that of the chosen answer, averaged over its tokens; the released code divides it by the
    length of the padded row instead. `rrhf_ranked` takes K answers.

    Args:
      policy_chosen: log-probs of the chosen answers under the policy, summed over response tokens `[...]`.
      policy_rejected: those of the rejected answers.
      chosen_lengths: response tokens of the chosen answers `[...]`; 0 counts as 1.
      rejected_lengths: response tokens of the rejected answers `[...]`; 0 counts as 1.
      lam: :math:`\lambda`, weight of the NLL, in [0, inf).
      nll: NLL of the chosen answers, broadcast to the log-probs; see above.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes differ, or a hyperparameter is out of range.

    References:
      Yuan et al., *RRHF: Rank Responses to Align Language Models with Human Feedback without tears*, 2023, arXiv
      2304.05302. Default of `lam`: the paper's.
    """
    function = "losses.preference.rrhf"
    _inputs.non_negative(function, lam=lam)
    chosen, rejected = _inputs.answers(function, policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    chosen, rejected = _inputs.means(function, chosen, rejected, chosen_lengths, rejected_lengths)
    return links.hinge(chosen - rejected, target=0.0) + lam * _nll(function, nll, chosen)
