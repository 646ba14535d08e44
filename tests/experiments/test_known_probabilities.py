import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import adversarial
from experiments.envs import known_probabilities

TRUTH = known_probabilities.probabilities(jax.random.key(0), inputs=16, classes=5)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_the_best_scores_have_no_excess_and_all_others_some(tau):
    best = jnp.log(TRUTH) / (2 - tau)
    loss, error = known_probabilities.comp_sum_excess(best, TRUTH, tau)
    np.testing.assert_allclose([loss, error], 0, atol=1e-5)
    for seed in range(3):
        moved = best + 0.3 * jax.random.normal(jax.random.key(seed), best.shape)
        assert known_probabilities.comp_sum_excess(moved, TRUTH, tau).loss > 1e-4


def test_mean_absolute_error_is_least_where_the_likeliest_class_takes_all():
    likeliest = 40 * jax.nn.one_hot(TRUTH.argmax(-1), 5)
    np.testing.assert_allclose(known_probabilities.comp_sum_excess(likeliest, TRUTH, 2.0), 0, atol=1e-6)


def test_the_excess_of_cross_entropy_is_the_divergence_from_the_truth():
    scores = jax.random.normal(jax.random.key(1), TRUTH.shape)
    wanted = jnp.mean(jnp.sum(TRUTH * (jnp.log(TRUTH) - jax.nn.log_softmax(scores)), axis=-1))
    np.testing.assert_allclose(known_probabilities.comp_sum_excess(scores, TRUTH, 1.0).loss, wanted, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.0])
def test_no_error_is_above_its_bound(tau):
    error, bound = adversarial.bounds(np.arange(2), tau)
    assert error.shape == bound.shape == (2, len(adversarial.SPREADS))
    assert np.all(error <= bound + 1e-6)
    assert np.all(error[:, -1] > 0.1)
