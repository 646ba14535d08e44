"""The tables of `metric_losses`: how rare positives are, and what is learnable in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import metric_losses

KEY = jax.random.key(0)


def test_one_in_fifty_is_positive_and_stands_apart():
    table = metric_losses.gaussians(KEY, 5000)
    assert np.sum(table.labels) == 100
    apart = np.mean(table.inputs[table.labels], axis=0) - np.mean(table.inputs[~table.labels], axis=0)
    np.testing.assert_allclose(apart, [2, 0, 0, 0, 0], atol=0.35)


def test_one_tumour_in_twenty_is_malignant_in_training_and_by_weight_in_test():
    train, test = jax.jit(metric_losses.tumours)(KEY)
    np.testing.assert_allclose(np.mean(train.labels), 1 / 20, atol=0.005)
    np.testing.assert_allclose(np.sum(test.weights[test.labels]) / np.sum(test.weights), 1 / 20, rtol=1e-5)
    rows = np.concatenate([train.inputs, test.inputs])
    inputs, rare = metric_losses._tumours()
    assert len(rows) == len(inputs)
    assert np.sum(train.labels) + np.sum(test.labels) == np.sum(rare)
    np.testing.assert_array_equal(np.sort(rows[:, 0]), np.sort(inputs[:, 0]))  # no case is in both
    other, _ = jax.jit(metric_losses.tumours)(jax.random.key(1))
    assert not np.array_equal(other.inputs, train.inputs)


def test_moons_are_told_apart_by_two_features_and_one_label_in_ten_is_wrong():
    clean, noisy = (metric_losses.moons(KEY, 4000, noise=0.0, flipped=flipped) for flipped in (0, 0.1))
    np.testing.assert_allclose(np.mean(clean.labels ^ noisy.labels), 0.1, atol=0.02)
    x, y = np.asarray(clean.inputs[:, :2]).T
    circle = np.where(clean.labels, x**2 + y**2, (x - 1) ** 2 + (y - 0.5) ** 2)
    np.testing.assert_allclose(circle, 1, atol=1e-5)
    assert np.all(np.where(clean.labels, y >= 0, y <= 0.5))
    assert clean.inputs.shape == (4000, 20)


def test_without_hidden_layers_the_network_is_linear():
    params = metric_losses._initial(KEY, (3, 1))
    assert len(params) == 1
    np.testing.assert_array_equal(metric_losses._score(params, jnp.ones((4, 3))), 0)
    assert [kernel.shape for kernel, _ in metric_losses._initial(KEY, (3, 8, 8, 1))] == [(3, 8), (8, 8), (8, 1)]


@pytest.mark.parametrize("name", metric_losses.SCORED)
def test_no_other_threshold_is_better_in_training(name):
    table, score = metric_losses.gaussians(KEY, 400, ratio=10), metric_losses.SCORED[name]
    table = table._replace(weights=jax.random.uniform(KEY, (400,)))
    scores = table.inputs[:, 0]

    def at(threshold):
        return score(metric_losses.confusion.counts(scores > threshold, table.labels, table.weights))

    tried = jax.vmap(at)(scores)
    found = at(metric_losses.best_threshold(score, scores, table))
    np.testing.assert_allclose(found, np.max(tried), rtol=1e-5)
