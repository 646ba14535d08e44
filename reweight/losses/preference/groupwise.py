"""Losses of K answers to one prompt, on the last axis, and of reward models; K may differ from prompt to prompt.

The losses of policies take rewards of all answers instead of a label of two. Where a prompt has fewer answers than the
array has room for, `candidate_mask` says which are answers; what stands elsewhere is never read. A prompt with none
costs 0 with zero gradient, and so does one with a single answer wherever there is nothing to compare it with.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.losses.preference import _inputs, links

__all__ = [
    "bradley_terry",
    "bradley_terry_ranked",
    "exo",
    "infonca",
    "nca",
    "plackett_luce",
    "rrhf_ranked",
    "sppo_win_rates",
]

Answers = Float[Array, "*prompts candidates"]
PerPrompt = Float[Array, "*prompts"]
CandidateMask = Bool[Array, "..."] | Num[Array, "..."]


def _kept(function: str, name: str, like: Array, candidate_mask: CandidateMask | None) -> Array:
    if like.ndim < 1:
        _checks.fail(function, name, "a scalar", "an array whose last axis is the candidates")
    _checks.mask(function, "candidate_mask", candidate_mask, like, like_name=name)
    return _checks.kept(candidate_mask, like.shape)


def _log_softmax(values: Array, kept: Array) -> Array:
    """The log-softmax over the candidates kept; 0 elsewhere."""
    values = jnp.where(kept, values, 0)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(kept, values, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf))
    centred = values - jnp.where(jnp.isfinite(top), top, 0)
    mass = jnp.sum(jnp.where(kept, jnp.exp(jnp.where(kept, centred, 0)), 0), axis=-1, keepdims=True)
    return jnp.where(kept, centred - jnp.log(jnp.where(mass > 0, mass, 1)), 0)


def _total(values: Array, kept: Array) -> PerPrompt:
    return jnp.sum(jnp.where(kept, values, 0), axis=-1)


def _rewarded(
    function: str,
    policy: Answers,
    reference: Answers,
    rewards: Answers,
    beta: float,
    reward_temperature: float,
    candidate_mask: CandidateMask | None,
) -> tuple[Array, Array, Array]:
    """The model's rewards, the log of the targets that the given rewards make, and the candidates kept."""
    _inputs.positive(function, beta=beta, reward_temperature=reward_temperature)
    policy, reference, rewards = _inputs.answers(function, policy=policy, reference=reference, rewards=rewards)
    kept = _kept(function, "policy", policy, candidate_mask)
    scores = beta * jnp.where(kept, policy - jax.lax.stop_gradient(reference), 0)
    targets = jax.lax.stop_gradient(jnp.where(kept, rewards, 0)) / reward_temperature
    return scores, _log_softmax(targets, kept), kept


def infonca(
    policy: Answers,
    reference: Answers,
    rewards: Answers,
    *,
    beta: float = 0.1,
    reward_temperature: float = 1.0,
    candidate_mask: CandidateMask | None = None,
) -> PerPrompt:
    r"""InfoNCA: :math:`-\sum_k t_k \log \mathrm{softmax}(m)_k`, per prompt, of K answers.

    The targets are :math:`t = \mathrm{softmax}(r / \tau)` of the rewards, the model's own rewards
    :math:`m = \beta (\log\pi - \log\pi_{ref})`. With two answers and a hard target it is `dpo`.

    Args:
      policy: log-probs of the answers under the policy, summed over response tokens `[..., K]`.
      reference: under the reference `[..., K]`; constant, no gradient flows through it.
      rewards: of the answers `[..., K]`, any scale; constant, no gradient flows through them.
      beta: scale of the model's rewards, in (0, inf).
      reward_temperature: :math:`\tau`, in (0, inf); towards 0 the best answer is the target.
      candidate_mask: boolean or 0/1, broadcast to the log-probs: which are answers. Default: all.

    Returns:
      Losses `[...]`, float32 or wider; 0 for a prompt with one answer or none.

    Raises:
      ValueError: if shapes do not fit, or a hyperparameter is out of range.

    References:
      Chen et al., *Noise Contrastive Alignment of Language Models with Explicit Rewards*, 2024, arXiv 2402.05369.
    """
    function = "losses.preference.infonca"
    scores, log_targets, kept = _rewarded(
        function, policy, reference, rewards, beta, reward_temperature, candidate_mask
    )
    return -_total(jnp.exp(log_targets) * _log_softmax(scores, kept), kept)


def nca(
    policy: Answers,
    reference: Answers,
    rewards: Answers,
    *,
    beta: float = 0.1,
    reward_temperature: float = 1.0,
    candidate_mask: CandidateMask | None = None,
) -> PerPrompt:
    r"""NCA: :math:`-\sum_k t_k \log\sigma(m_k) - \frac1K \sum_k \log\sigma(-m_k)`, per prompt, of K answers.

    Targets :math:`t` and model rewards :math:`m` are those of `infonca`. Since it judges each answer against the
    reference and not against the others, it does not lower the likelihood of good answers. With two answers and a hard
    target it is `nca_pair`.

    Args:
      policy: log-probs of the answers under the policy, summed over response tokens `[..., K]`.
      reference: under the reference `[..., K]`; constant, no gradient flows through it.
      rewards: of the answers `[..., K]`, any scale; constant, no gradient flows through them.
      beta: scale of the model's rewards, in (0, inf).
      reward_temperature: :math:`\tau`, in (0, inf); towards 0 the best answer is the target.
      candidate_mask: boolean or 0/1, broadcast to the log-probs: which are answers. Default: all. K counts these.

    Returns:
      Losses `[...]`, float32 or wider; 0 for a prompt without an answer.

    Raises:
      ValueError: if shapes do not fit, or a hyperparameter is out of range.

    References:
      Chen et al., *Noise Contrastive Alignment of Language Models with Explicit Rewards*, 2024, arXiv 2402.05369.
    """
    function = "losses.preference.nca"
    scores, log_targets, kept = _rewarded(
        function, policy, reference, rewards, beta, reward_temperature, candidate_mask
    )
    count = jnp.maximum(jnp.sum(kept, axis=-1), 1).astype(scores.dtype)
    good = _total(jnp.exp(log_targets) * links.logistic(scores), kept)
    return good + _total(links.logistic(-scores), kept) / count


def exo(
    policy: Answers,
    reference: Answers,
    rewards: Answers,
    *,
    beta: float = 0.1,
    reward_temperature: float = 1.0,
    candidate_mask: CandidateMask | None = None,
) -> PerPrompt:
    r"""EXO: :math:`KL(\mathrm{softmax}(m) \,\|\, \mathrm{softmax}(r / \tau))`, per prompt, of K answers.

    Model rewards :math:`m` are those of `infonca`, whose divergence is the other way round. With two answers and the
    targets :math:`(1 - \epsilon, \epsilon)` it is `exo_pair`.

    Args:
      policy: log-probs of the answers under the policy, summed over response tokens `[..., K]`.
      reference: under the reference `[..., K]`; constant, no gradient flows through it.
      rewards: of the answers `[..., K]`, any scale; constant, no gradient flows through them.
      beta: scale of the model's rewards, in (0, inf).
      reward_temperature: :math:`\tau`, in (0, inf).
      candidate_mask: boolean or 0/1, broadcast to the log-probs: which are answers. Default: all.

    Returns:
      Losses `[...]`, float32 or wider; 0 for a prompt with one answer or none.

    Raises:
      ValueError: if shapes do not fit, or a hyperparameter is out of range.

    References:
      Ji et al., *Towards Efficient Exact Optimization of Language Model Alignment*, 2024, arXiv 2402.00856.
    """
    function = "losses.preference.exo"
    scores, log_targets, kept = _rewarded(
        function, policy, reference, rewards, beta, reward_temperature, candidate_mask
    )
    log_model = _log_softmax(scores, kept)
    return _total(jnp.exp(log_model) * (log_model - log_targets), kept)


def _above(values: Array, kept: Array) -> Array:
    """`[..., i, j]`: whether candidate i stands above candidate j; never for ties, nor for what is masked."""
    values = jax.lax.stop_gradient(values)
    return (values[..., :, None] > values[..., None, :]) & kept[..., :, None] & kept[..., None, :]


def rrhf_ranked(
    policy: Answers,
    lengths: Num[Array, "*prompts candidates"],
    rewards: Answers,
    *,
    lam: float = 1.0,
    length_penalty: float = 1.0,
    candidate_mask: CandidateMask | None = None,
) -> PerPrompt:
    r"""RRHF of K answers, per prompt: :math:`\sum_{r_i < r_j} \max(0, p_i - p_j) + \lambda\, NLL_{best}`.

    The score of an answer is :math:`p = \log\pi(y|x) / n^\alpha`, the mean log-prob of its tokens for
    :math:`\alpha = 1`. Pairs are summed, not averaged, and equal rewards give nothing. The second term is the negative
    mean log-prob of the answer with the highest reward, the first of equals, over its own tokens (the released code
    divides by the length of the padded row). `rrhf` is the form for pairs.

    Args:
      policy: log-probs of the answers under the policy, summed over response tokens `[..., K]`.
      lengths: response tokens of the answers `[..., K]`; below 1 counts as 1.
      rewards: of the answers `[..., K]`, of which only the order counts; constant.
      lam: :math:`\lambda`, in [0, inf).
      length_penalty: :math:`\alpha`, in [0, inf).
      candidate_mask: boolean or 0/1, broadcast to the log-probs: which are answers. Default: all.

    Returns:
      Losses `[...]`, float32 or wider; 0 for a prompt without an answer. Where two scores are equal the slope is 0.

    Raises:
      ValueError: if shapes do not fit, or a hyperparameter is out of range.

    References:
      Yuan et al., *RRHF: Rank Responses to Align Language Models with Human Feedback without tears*, 2023, arXiv
      2304.05302.
    """
    function = "losses.preference.rrhf_ranked"
    _inputs.non_negative(function, lam=lam, length_penalty=length_penalty)
    policy, rewards = _inputs.answers(function, policy=policy, rewards=rewards)
    _checks.array(function, "lengths", lengths, shape=policy.shape, kind="number")
    kept = _kept(function, "policy", policy, candidate_mask)
    log_probs = jnp.where(kept, policy, 0)
    tokens = jnp.maximum(jnp.where(kept, jax.lax.stop_gradient(lengths), 1), 1).astype(policy.dtype)
    scores = log_probs / tokens**length_penalty
    wrong = jax.nn.relu(scores[..., None, :] - scores[..., :, None])
    ranking = jnp.sum(jnp.where(_above(rewards, kept), wrong, 0), axis=(-2, -1))
    best = jnp.argmax(jnp.where(kept, rewards, -jnp.inf), axis=-1, keepdims=True)
    nll = -jnp.take_along_axis(log_probs / tokens, best, axis=-1)[..., 0]
    return ranking + lam * nll


def sppo_win_rates(scores: Answers, *, candidate_mask: CandidateMask | None = None) -> Answers:
    r"""Win rates of K answers among each other, per answer: :math:`\frac1K \sum_j \sigma(s_i - s_j)`.

    An answer meets itself too, which counts one half. `sppo` takes the rates of the best and of the worst answer.

    Args:
      scores: of a preference or reward model `[..., K]`; the difference of two is the log-odds that one wins.
      candidate_mask: boolean or 0/1, broadcast to the scores: which are answers. Default: all. K counts these.

    Returns:
      Rates `[..., K]` in (0, 1) with mean one half, float32 or wider, without gradient; 0 where masked.

    Raises:
      ValueError: if the mask does not broadcast to the scores.

    References:
      Wu et al., *Self-Play Preference Optimization for Language Model Alignment*, 2024, arXiv 2405.00675.
    """
    function = "losses.preference.sppo_win_rates"
    (scores,) = _inputs.answers(function, scores=scores)
    kept = _kept(function, "scores", scores, candidate_mask)
    values = jax.lax.stop_gradient(jnp.where(kept, scores, 0))
    wins = jax.nn.sigmoid(values[..., :, None] - values[..., None, :])
    count = jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True), 1).astype(values.dtype)
    return jnp.where(kept, _total(wins, kept[..., None, :]) / count, 0)


def bradley_terry(
    chosen_rewards: PerPrompt,
    rejected_rewards: PerPrompt,
    margin: Float[Array, "*prompts"] | None = None,
    *,
    center: float = 0.0,
) -> PerPrompt:
    r"""Bradley-Terry loss of a reward model, per pair: :math:`-\log\sigma(r_w - r_l - m) + c\,(r_w + r_l)^2`.

    Args:
      chosen_rewards: :math:`r_w`, the model's rewards of the chosen answers `[...]`.
      rejected_rewards: :math:`r_l`, of the rejected ones `[...]`.
      margin: :math:`m`, broadcast to the rewards: larger where the raters were surer; constant, no gradient flows
        through it. Default: 0.
      center: :math:`c`, in [0, inf): pulls rewards, of which only differences would count, towards mean 0 (0.01 in the
        paper).

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if shapes do not fit, or `center` is out of range.

    References:
      Touvron et al., *Llama 2: Open Foundation and Fine-Tuned Chat Models*, 2023, arXiv 2307.09288 (the margin).
      Eisenstein et al., *Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking*,
      2023, arXiv 2312.09244 (the centring).
    """
    function = "losses.preference.bradley_terry"
    _inputs.non_negative(function, center=center)
    chosen, rejected = _inputs.answers(function, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    ahead = chosen - rejected
    if margin is not None:
        _checks.array(function, "margin", margin, kind="number")
        _checks.broadcasts(function, "margin", margin, chosen, like_name="chosen_rewards")
        ahead = ahead - jax.lax.stop_gradient(jnp.asarray(margin)).astype(chosen.dtype)
    return links.logistic(ahead) + center * (chosen + rejected) ** 2


def bradley_terry_ranked(
    rewards: Answers, scores: Num[Array, "*prompts candidates"], *, candidate_mask: CandidateMask | None = None
) -> PerPrompt:
    r"""Bradley-Terry loss of a reward model over pairs of K answers: mean :math:`-\log\sigma(r_i - r_j)`, per prompt.

    The mean is over the pairs in which raters put answer i above answer j. All pairs of a prompt are one example, of
    weight one: taken apart into K(K-1)/2 examples they overfit.

    Args:
      rewards: the model's rewards of the answers `[..., K]`.
      scores: what the raters gave `[..., K]`, higher is better; only the order counts (minus the rank will do).
      candidate_mask: boolean or 0/1, broadcast to the rewards: which are answers. Default: all.

    Returns:
      Losses `[...]`, float32 or wider. Ties of the raters are not pairs: they add nothing to the sum and do not count
      in the mean. A prompt without a pair costs 0.

    Raises:
      ValueError: if shapes do not fit.

    References:
      Ouyang et al., *Training language models to follow instructions with human feedback*, 2022, arXiv 2203.02155.
    """
    function = "losses.preference.bradley_terry_ranked"
    (rewards,) = _inputs.answers(function, rewards=rewards)
    _checks.array(function, "scores", scores, shape=rewards.shape, kind="number")
    kept = _kept(function, "rewards", rewards, candidate_mask)
    values = jnp.where(kept, rewards, 0)
    above = _above(jnp.asarray(scores), kept)
    total = jnp.sum(jnp.where(above, links.logistic(values[..., :, None] - values[..., None, :]), 0), axis=(-2, -1))
    return total / jnp.maximum(jnp.sum(above, axis=(-2, -1)), 1).astype(values.dtype)


def plackett_luce(
    rewards: Answers, order: Int[Array, "*prompts candidates"], *, candidate_mask: CandidateMask | None = None
) -> PerPrompt:
    r"""Plackett-Luce loss of a reward model, per prompt: :math:`-\sum_k (r_{(k)} - \log \sum_{j \ge k} e^{r_{(j)}})`.

    The negative log-likelihood of a whole ranking: the raters are taken to pick the best answer, then the best of the
    rest, and so on, each with the softmax of the rewards of those that remain. For two answers it is `bradley_terry`.

    Args:
      rewards: the model's rewards of the answers `[..., K]`.
      order: the answers from best to worst `[..., K]`: `order[0]` is the place of the best among the K. A number
        outside [0, K), such as -1, is padding and skipped. No answer may be named twice.
      candidate_mask: boolean or 0/1, broadcast to the rewards: which are answers; others are skipped in `order`.
        Default: all.

    Returns:
      Losses `[...]`, float32 or wider; 0 where fewer than two answers are ranked. Answers that are not ranked have no
      gradient.

    Raises:
      ValueError: if shapes do not fit, or `order` is not of integers.

    References:
      Plackett, *The Analysis of Permutations*, 1975. Rafailov et al., *Direct Preference Optimization: Your Language
      Model is Secretly a Reward Model*, 2023, arXiv 2305.18290 (its appendix, for policies).
    """
    function = "losses.preference.plackett_luce"
    (rewards,) = _inputs.answers(function, rewards=rewards)
    _checks.array(function, "order", order, shape=rewards.shape, kind="integer")
    kept = _kept(function, "rewards", rewards, candidate_mask)
    size = rewards.shape[-1]
    named = (order >= 0) & (order < size)
    place = jnp.where(named, order, 0)
    ranked = named & jnp.take_along_axis(kept, place, axis=-1)
    ordered = jnp.take_along_axis(jnp.where(kept, rewards, 0), place, axis=-1)
    # Row k holds those who remain when the k-th is picked, of whom it is the first.
    remain = ranked[..., None, :] & jnp.triu(jnp.ones((size, size), bool))
    log_probs = _log_softmax(jnp.broadcast_to(ordered[..., None, :], remain.shape), remain)
    return -_total(jnp.diagonal(log_probs, axis1=-2, axis2=-1), ranked)
