import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import robust_disparity
from experiments.envs import stable_classes
from reweight import dynamics

THETA = np.array([0.4, -0.1, 0.2])
WEIGHTS = np.random.default_rng(0).normal(size=(5, 3))
BIAS = np.random.default_rng(1).normal(size=5) / 4


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_the_characteristic_function_of_the_draws(alpha):
    draws = np.asarray(stable_classes.symmetric_stable(jax.random.key(0), alpha, (40_000,)), np.float64)
    assert np.all(np.isfinite(draws))
    for t in (0.3, 1.0, 2.0):
        np.testing.assert_allclose(np.mean(np.cos(t * draws)), np.exp(-(t**alpha)), atol=0.015)
        np.testing.assert_allclose(np.mean(np.sin(t * draws)), 0, atol=0.015)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("end", ["minval", "maxval"])
def test_draws_are_finite_at_the_ends_of_the_interval_of_angles(alpha, end, monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, **ends: jnp.full(shape, ends[end]))
    draws = stable_classes.symmetric_stable(jax.random.key(0), alpha, (4,))
    assert np.all(np.isfinite(draws))


def test_the_accuracies_under_gaussian_noise_are_those_of_the_closed_form():
    found = stable_classes.accuracies(WEIGHTS, BIAS, THETA, stable_classes.LAWS["gaussian"])
    for row, weights, bias in zip(found, WEIGHTS, BIAS, strict=True):
        wanted = dynamics.class_accuracies(*(jnp.asarray(x, jnp.float32) for x in (weights, bias, THETA)), 1.0)
        np.testing.assert_allclose(row, wanted, atol=0.005)


def test_the_accuracies_under_cauchy_noise_are_those_of_its_arc_tangent():
    law = stable_classes.LAWS["cauchy"]
    found = stable_classes.accuracies(WEIGHTS, BIAS, THETA, law)
    reach = (WEIGHTS @ THETA)[:, None] + np.stack([BIAS, -BIAS], axis=-1)
    spread = law.scale * np.abs(WEIGHTS).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, 0.5 + np.arctan(reach / spread) / np.pi, atol=0.005)


def test_the_closed_form_of_the_experiment_loses_both_classes_alike_where_they_are_balanced():
    best = robust_disparity._closed_form(("standard", "robust_large"))
    np.testing.assert_allclose(best[:, 0, 0], best[:, 0, 1], atol=1e-6)
    assert best[1, 0, 0] < best[0, 0, 0]
    disparity = best[..., 0] - best[..., 1]
    assert np.all(np.diff(disparity[1] - disparity[0]) > 0)
