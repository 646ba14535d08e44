"""Pieces of the experiments on rare events and on rated items."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments import quality_scores
from experiments.envs import creatives, funnels


def test_funnels_have_boundaries_in_order_and_labels_of_their_probabilities():
    drawn = funnels.draw_funnels(np.arange(3), examples=4000, features=3, intercepts=(0.0, 2.0, 3.0))
    again = funnels.draw_funnels(np.arange(1, 2), examples=4000, features=3, intercepts=(0.0, 2.0, 3.0))
    np.testing.assert_array_equal(again.labels[0], drawn.labels[1])
    assert np.all((drawn.rare > 0) & (drawn.rare < 1))
    np.testing.assert_allclose((drawn.labels == 3).mean(axis=1), drawn.rare.mean(axis=1), atol=0.015)


def test_fits_find_a_truth_that_is_theirs():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (20_000, 2)).astype(np.float32)
    below = 1 / (1 + np.exp(-(x @ np.array([1.0, -1.0]))[..., None] - np.array([0.0, 2.0])))
    labels = (rng.uniform(size=(20_000, 1)) > below).sum(axis=1).astype(np.int32)
    for name in ("logistic", "proportional_odds"):
        found = funnels.rare_probabilities(name, jax.random.key(0), x, labels, 3)
        np.testing.assert_allclose(found, 1 - below[..., -1], atol=0.02)


def test_creatives_end_early_or_wear_out():
    drawn = creatives.draw_creatives(jax.random.key(0), 4000)
    early = jax.nn.sigmoid(1.5 * drawn.inputs[:, 0] - 0.5)
    lived = np.asarray(drawn.times)
    assert np.median(lived[early > 0.9]) < 10 < 25 < np.median(lived[early < 0.1])
    assert 0.8 < np.mean(drawn.events) < 0.95
    assert 0.001 < np.min(drawn.rates) < np.max(drawn.rates) < 0.1


def test_no_test_example_was_trained_on():
    train, test = creatives._sets(jax.random.key(0), 300)
    assert not np.isin(test.times, train.times).any()
    train, test = quality_scores._sets(jax.random.key(0), 300)
    assert not np.isin(test.quality, train.quality).any()


def test_the_joined_risk_falls_with_the_survival_of_either_grid():
    logits = np.zeros((3, creatives.BOTH), np.float32)
    logits[1, 0] = 3.0  # likely to end in the first days
    logits[2, -1] = 3.0  # likely to end in the last weeks
    _, _, overall = creatives._joined(jnp.asarray(logits))
    assert overall[1] > overall[2] > overall[0]


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(1)
    x, y, keep = rng.normal(size=50), rng.normal(size=50), rng.uniform(size=50) > 0.3
    found = quality_scores._correlation(jnp.asarray(x), jnp.asarray(y), jnp.asarray(keep))
    np.testing.assert_allclose(found, scipy.stats.pearsonr(x[keep], y[keep])[0], rtol=1e-4)
    ranks = [quality_scores._rank(jnp.asarray(a)) for a in (x, y)]
    found = quality_scores._correlation(*ranks, jnp.ones(50, bool))
    np.testing.assert_allclose(found, scipy.stats.spearmanr(x, y)[0], rtol=1e-4)


def test_each_set_of_items_fills_the_levels_whatever_its_range():
    items = quality_scores._draw(jax.random.key(0), 600)
    for number in range(2):
        mine = np.asarray(items.source) == number
        assert np.min(items.means[mine]) == 1
        np.testing.assert_allclose(np.max(items.means[mine]), 5, rtol=1e-6)
    assert np.min(items.quality[np.asarray(items.source) == 1]) > 0.35
