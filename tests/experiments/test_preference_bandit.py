"""The bandit's expectations, divergences and optimum are exact, and its annotator is the one that it says."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

from experiments.envs import preference_bandit as env

BETA = 0.7
BANDIT = env.make_bandit(np.random.default_rng(3), prompts=6, answers=5, features=4)


def test_rewards_are_linear_in_the_features_and_blind_to_length():
    phi, rewards = np.asarray(BANDIT.features, np.float64), np.asarray(BANDIT.rewards, np.float64)
    theta, residual, *_ = np.linalg.lstsq(phi.reshape(-1, 4), rewards.ravel())
    assert residual < 1e-9
    assert abs(theta[-1]) < 1e-5
    np.testing.assert_allclose(2 * phi[..., -1], env.standardised(BANDIT.lengths), rtol=1e-6)
    np.testing.assert_allclose(np.exp(BANDIT.reference).sum(axis=1), 1, rtol=1e-6)


def test_lengths_are_standardised():
    lengths = np.arange(env.SHORTEST, env.LONGEST + 1)
    assert np.mean(env.standardised(lengths)) == pytest.approx(0)
    assert np.mean(env.standardised(lengths) ** 2) == pytest.approx(1)


def test_expected_reward_and_divergence_are_those_of_samples():
    policy = env.optimum(BANDIT, 1.5)
    answers = jax.random.categorical(jax.random.key(0), policy, shape=(200_000, 6))
    prompts = np.arange(6)
    sampled = BANDIT.rewards[prompts, answers].mean()
    assert env.expectation(policy, BANDIT.rewards) == pytest.approx(float(sampled), abs=0.02)
    ratios = (policy - BANDIT.reference)[prompts, answers].mean()
    assert env.divergence(policy, BANDIT.reference) == pytest.approx(float(ratios), abs=0.02)
    assert env.divergence(BANDIT.reference, BANDIT.reference) == 0


def test_the_optimum_is_where_a_numerical_maximiser_arrives():
    rewards, reference = np.asarray(BANDIT.rewards[0], np.float64), np.asarray(BANDIT.reference[0], np.float64)

    def minus_objective(logits):
        policy = special.log_softmax(logits)
        return -np.sum(np.exp(policy) * (rewards - BETA * (policy - reference)))

    found = optimize.minimize(minus_objective, reference, tol=1e-12)
    np.testing.assert_allclose(special.softmax(found.x), np.exp(env.optimum(BANDIT, BETA)[0]), atol=1e-5)
    # Its value in closed form: the log-partition function.
    assert -found.fun == pytest.approx(BETA * special.logsumexp(reference + rewards / BETA))


def test_regret_is_the_objective_that_is_missing():
    def objective(policy):
        return env.expectation(policy, BANDIT.rewards) - BETA * env.divergence(policy, BANDIT.reference)

    best = env.optimum(BANDIT, BETA)
    for policy in (BANDIT.reference, env.optimum(BANDIT, 3.0), jax.nn.log_softmax(BANDIT.features[..., 0])):
        missing = objective(best) - objective(policy)
        assert env.regret(policy, BANDIT, BETA) == pytest.approx(float(missing), rel=1e-4)
    assert env.regret(best, BANDIT, BETA) == 0


def test_policies_may_have_lanes():
    policies = jnp.stack([BANDIT.reference, env.optimum(BANDIT, 1.0)])
    assert env.expectation(policies, BANDIT.rewards).shape == (2,)
    assert env.regret(policies[:, None], BANDIT, BETA).shape == (2, 1)


@pytest.mark.parametrize("candidates", [2, 3])
def test_listed_rankings_have_the_probabilities_of_plackett_and_luce(candidates):
    listed = env.all_rankings(BANDIT, candidates=candidates)
    answers = np.asarray(listed.answers)
    assert len({tuple(row) for row in answers[0]}) == answers.shape[1] == math.perm(5, candidates)
    np.testing.assert_allclose(listed.weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(listed.ratings[2], BANDIT.rewards[2][answers[2]])
    rewards = np.exp(np.asarray(BANDIT.rewards[2], np.float64))
    for ranking, weight in zip(answers[2], np.asarray(listed.weights[2]), strict=True):
        left = rewards[ranking][::-1].cumsum()[::-1]
        expected = np.prod(rewards[ranking] / left) / math.comb(5, candidates)
        assert weight == pytest.approx(expected, rel=1e-4)


def test_flips_reverse_and_infinite_sharpness_decides():
    plain, flipped = env.all_rankings(BANDIT), env.all_rankings(BANDIT, flip_rate=0.3)
    pairs = [tuple(pair) for pair in np.asarray(plain.answers[0])]
    other = [pairs.index(pair[::-1]) for pair in pairs]
    np.testing.assert_allclose(flipped.weights, 0.7 * plain.weights + 0.3 * plain.weights[:, other], rtol=1e-5)
    decided = env.all_rankings(BANDIT, sharpness=math.inf)
    right = decided.ratings[..., 0] > decided.ratings[..., 1]
    np.testing.assert_allclose(decided.weights, right / 10, rtol=1e-6)


def test_drawn_pairs_are_those_of_the_list():
    bandit = env.Bandit(*(x[:1] for x in BANDIT))
    drawn = env.draw_rankings(np.random.default_rng(1), bandit, sets=40_000, flip_rate=0.2)
    reference = np.exp(np.asarray(bandit.reference[0], np.float64))
    rewards = np.asarray(bandit.rewards[0], np.float64)
    expected, observed = [], []
    for i, j in itertools.permutations(range(5), 2):
        both = reference[i] * reference[j] * (1 / (1 - reference[i]) + 1 / (1 - reference[j]))
        first = special.expit(rewards[i] - rewards[j])
        expected.append(both * (0.8 * first + 0.2 * (1 - first)))
        observed.append(int(np.sum(np.all(np.asarray(drawn.answers[0]) == (i, j), axis=-1))))
    assert stats.chisquare(observed, 40_000 * np.array(expected) / np.sum(expected)).pvalue > 1e-3


def test_drawn_sets_hold_different_answers_with_their_ratings_and_reversed_ones_the_ratings_of_the_reverse():
    drawn = env.draw_rankings(np.random.default_rng(2), BANDIT, sets=50, candidates=4)
    answers = np.asarray(drawn.answers)
    assert all(len(set(ranking)) == 4 for ranking in answers.reshape(-1, 4))
    np.testing.assert_array_equal(drawn.ratings, np.take_along_axis(np.asarray(BANDIT.rewards)[:, None], answers, -1))
    reversed_ = env.draw_rankings(np.random.default_rng(2), BANDIT, sets=50, candidates=4, flip_rate=1.0)
    np.testing.assert_array_equal(reversed_.answers, answers[..., ::-1])
    np.testing.assert_array_equal(reversed_.ratings, drawn.ratings)


def test_a_biased_annotator_prefers_the_longer_answer():
    drawn = env.draw_rankings(np.random.default_rng(4), BANDIT, sets=200, length_bias=100.0)
    lengths = np.take_along_axis(np.asarray(BANDIT.lengths)[:, None], np.asarray(drawn.answers), -1)
    assert np.all(lengths[..., 0] >= lengths[..., 1])


def test_without_coverage_the_last_answers_are_never_shown():
    bandit = env.make_bandit(np.random.default_rng(3), prompts=6, answers=5, features=4, coverage=False)
    assert env.draw_rankings(np.random.default_rng(0), bandit, sets=100).answers.max() == 2
    listed = env.all_rankings(bandit)
    assert np.asarray(listed.weights)[np.any(np.asarray(listed.answers) > 2, axis=-1)].max() == 0
    np.testing.assert_array_equal(bandit.rewards[:, 3:], -2)
    np.testing.assert_allclose(bandit.features[:, 3:], 2.5 * BANDIT.features[:, 3:], rtol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("prompts", 0), ("answers", 3), ("features", 1.5)])
def test_a_bandit_that_is_too_small_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}"):
        env.make_bandit(np.random.default_rng(0), **{name: value})
