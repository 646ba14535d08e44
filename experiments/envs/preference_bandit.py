r"""A contextual bandit in which everything that preference learning speaks of is known exactly.

A prompt has a handful of answers, each with a reward, a length, features and a log-probability under the reference.
Expected reward and divergence of a policy are sums over the answers, and the optimum of
:math:`E_\pi[r] - \beta\, KL(\pi \| \pi_{ref})` is :math:`\pi^* \propto \pi_{ref}\, e^{r / \beta}`. Comparisons are
drawn from Plackett and Luce's model, for two answers that of Bradley and Terry, or listed with their probabilities.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from reweight import _checks

__all__ = [
    "Bandit",
    "Rankings",
    "all_rankings",
    "divergence",
    "draw_rankings",
    "expectation",
    "gain",
    "make_bandit",
    "optimum",
    "regret",
    "standardised",
]

Arrays = np.ndarray | Array  # worlds are drawn on the host and looked at on the device

REWARD_SCALE = 2.0
SHORTEST, LONGEST = 2, 8
# Of answers that no comparison shows: unlikely, bad, and with features so large that a policy goes far by accident.
UNSEEN = 2
UNSEEN_FEATURES, UNSEEN_REWARD, UNSEEN_LOGIT = 2.5, -2.0, -4.0


class Bandit(NamedTuple):
    """Prompts with their answers.

    Attributes:
      features: what a log-linear policy sees of an answer; the last one is its standardised length.
      rewards: the true ones.
      reference: log-probabilities under the reference policy; of every prompt they add up to 1.
      lengths: in tokens. An answer's log-probability counts as spread evenly over its tokens.
      seen: whether comparisons ever show the answer.
    """

    features: Float[Arrays, "prompts answers features"]
    rewards: Float[Arrays, "prompts answers"]
    reference: Float[Arrays, "prompts answers"]
    lengths: Float[Arrays, "prompts answers"]
    seen: Bool[Arrays, "prompts answers"]


class Rankings(NamedTuple):
    """Sets of answers of one prompt in the order in which an annotator put them; two answers are a pair.

    Attributes:
      answers: the indices of the answers, the best first.
      ratings: the rewards that the annotator saw, in the same order.
      weights: how much a ranking counts: 1 where it was drawn, its probability where all are listed.
    """

    answers: Int[Arrays, "prompts sets candidates"]
    ratings: Float[Arrays, "prompts sets candidates"]
    weights: Float[Arrays, "prompts sets"]


def make_bandit(
    rng: np.random.Generator,
    *,
    prompts: int = 200,
    answers: int = 8,
    features: int = 16,
    coverage: bool = True,
) -> Bandit:
    r"""Draws a bandit whose rewards are linear in the features, :math:`r = \phi^T \theta^*`, and blind to length.

    Args:
      rng: draws everything.
      prompts: how many.
      answers: of each prompt, at least 4.
      features: of each answer, at least 2; their squares add up to 1 on average.
      coverage: without it the last two answers of every prompt appear in no comparison; their features are 2.5 times as
        large, their reward is -2 whatever their features and their logit under the reference -4.

    Returns:
      A `Bandit`.

    Raises:
      ValueError: if there are fewer than 4 answers or 2 features.
    """
    for name, value, low in (("prompts", prompts, 1), ("answers", answers, 4), ("features", features, 2)):
        _checks.number("experiments.make_bandit", name, value, low=low, integer=True)
    shape = (prompts, answers)
    phi = rng.normal(size=(*shape, features)) / math.sqrt(features)
    lengths = rng.integers(SHORTEST, LONGEST + 1, shape).astype(float)
    phi[..., -1] = standardised(lengths) / math.sqrt(features)
    theta = REWARD_SCALE * rng.normal(size=features)
    theta[-1] = 0
    rewards = phi @ theta
    scores = rng.normal(size=shape)
    seen = np.broadcast_to((np.arange(answers) < answers - UNSEEN) | coverage, shape)
    phi = np.where(seen[..., None], phi, UNSEEN_FEATURES * phi)
    rewards = np.where(seen, rewards, UNSEEN_REWARD)
    scores = np.where(seen, scores, UNSEEN_LOGIT)
    return Bandit(phi, rewards, special.log_softmax(scores, axis=-1), lengths, seen)


def standardised(lengths: Float[Arrays, "..."]) -> Float[Arrays, "..."]:
    """Lengths with mean 0 and variance 1 over the uniform distribution that they are drawn from."""
    deviation = math.sqrt(((LONGEST - SHORTEST + 1) ** 2 - 1) / 12)
    return (lengths - (SHORTEST + LONGEST) / 2) / deviation


def draw_rankings(
    rng: np.random.Generator,
    bandit: Bandit,
    *,
    sets: int,
    candidates: int = 2,
    flip_rate: float = 0.0,
    length_bias: float = 0.0,
) -> Rankings:
    """Draws different answers from the reference and ranks them as an annotator with Gumbel noise does.

    Args:
      rng: draws answers, noise and flips.
      bandit: the answers with their rewards.
      sets: rankings of each prompt.
      candidates: answers in a ranking.
      flip_rate: how often the annotator hands in the reverse of the ranking, in [0, 1].
      length_bias: how much a standard deviation of length is worth to the annotator beside the reward.

    Returns:
      Rankings `[prompts, sets, candidates]`, each of weight 1.
    """
    shape = (bandit.rewards.shape[0], sets)

    def of(values: Arrays, indices: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values[:, None, :], indices, axis=-1)

    # The largest perturbed log-probabilities are a draw without replacement; the order of perturbed rewards a ranking.
    perturbed = bandit.reference[:, None] + rng.gumbel(size=(*shape, bandit.rewards.shape[1]))
    chosen = np.argsort(-np.where(bandit.seen[:, None], perturbed, -np.inf), axis=-1)[..., :candidates]
    utilities = of(bandit.rewards + length_bias * standardised(bandit.lengths), chosen)
    order = np.argsort(-(utilities + rng.gumbel(size=chosen.shape)), axis=-1)
    ranked = np.take_along_axis(chosen, order, axis=-1)
    flipped = rng.random((*shape, 1)) < flip_rate
    return Rankings(np.where(flipped, ranked[..., ::-1], ranked), of(bandit.rewards, ranked), np.ones(shape))


def all_rankings(
    bandit: Bandit,
    *,
    candidates: int = 2,
    flip_rate: float = 0.0,
    sharpness: float = 1.0,
) -> Rankings:
    """Every ranking of different answers with its probability, all sets of seen answers being equally frequent.

    Args:
      bandit: the answers with their rewards.
      candidates: answers in a ranking.
      flip_rate: how often the annotator hands in the reverse of the ranking, in [0, 1].
      sharpness: what the annotator multiplies rewards with; at infinity the ranking is that of the rewards.

    Returns:
      Rankings `[prompts, sets, candidates]`; the weights of a prompt add up to 1.
    """
    permutations = list(itertools.permutations(range(bandit.rewards.shape[1]), candidates))
    answers = np.array(permutations)
    backwards = np.array([permutations.index(ranking[::-1]) for ranking in permutations])
    ratings = bandit.rewards[:, answers]
    if math.isinf(sharpness):
        weights = np.all(ratings[..., :-1] > ratings[..., 1:], axis=-1).astype(float)
    else:
        scores = sharpness * ratings
        left = np.logaddexp.accumulate(scores[..., ::-1], axis=-1)[..., ::-1]
        weights = np.exp(np.sum(scores - left, axis=-1))
    weights = (1 - flip_rate) * weights + flip_rate * weights[:, backwards]
    weights = weights * np.all(bandit.seen[:, answers], axis=-1)
    return Rankings(np.broadcast_to(answers, ratings.shape), ratings, weights / weights.sum(axis=-1, keepdims=True))


def expectation(
    policy: Float[Arrays, "*lanes prompts answers"], values: Float[Arrays, "*#lanes prompts answers"]
) -> Array:
    """The mean of `values` under a policy, given by its log-probabilities, over answers and prompts: `[*lanes]`."""
    return jnp.mean(jnp.sum(jnp.exp(policy) * values, axis=-1), axis=-1)


def gain(
    policy: Float[Arrays, "*lanes prompts answers"],
    values: Float[Arrays, "prompts answers"],
    reference: Float[Arrays, "prompts answers"],
) -> Array:
    """By how much the mean of `values` is higher under a policy than under the reference: `[*lanes]`."""
    return expectation(policy, values) - expectation(reference, values)


def divergence(
    policy: Float[Arrays, "*lanes prompts answers"], reference: Float[Arrays, "*#lanes prompts answers"]
) -> Array:
    r"""The mean over prompts of :math:`KL(\pi \| \pi_{ref})`, from log-probabilities: `[*lanes]`."""
    return expectation(policy, policy - reference)


def optimum(bandit: Bandit, beta: float | Array) -> Float[Array, "prompts answers"]:
    r"""The log-probabilities of :math:`\pi^* \propto \pi_{ref}\, e^{r / \beta}`."""
    return jax.nn.log_softmax(bandit.reference + bandit.rewards / beta)


def regret(policy: Float[Arrays, "*lanes prompts answers"], bandit: Bandit, beta: float) -> Array:
    r"""What :math:`E_\pi[r] - \beta\, KL(\pi \| \pi_{ref})` lacks to its maximum: :math:`\beta\, KL(\pi \| \pi^*)`."""
    return beta * divergence(policy, optimum(bandit, beta))
