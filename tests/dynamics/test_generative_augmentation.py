"""The mixture in which a generator adds to the training set."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import dynamics

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "generative_data_augmentation.json").read_text())
CASES = GOLDEN["cases"]


def arrays(case):
    given = case["inputs"]
    real, more, fresh = (
        (np.array(given[f"X{end}"]).reshape(-1, len(given["X"][0])), np.array(given[f"labels01{end}"], int))
        for end in ("", "_generated", "_test")
    )
    return real, more, fresh


@pytest.mark.parametrize("case", CASES)
def test_golden_numbers(case, x64):
    real, more, fresh = arrays(case)
    wanted, rtol = case["expected"], GOLDEN["rtol"]
    generator = dynamics.gaussian_generator(*real, num_classes=2)
    np.testing.assert_allclose(generator.means, wanted["generator_means"], rtol=rtol)
    np.testing.assert_allclose(generator.variances, wanted["generator_shared_variance"], rtol=rtol)
    seen = [np.concatenate(pair) for pair in zip(real, more, strict=True)]
    theta, scale = dynamics.mean_rule(*seen), case["params"]["sigma"]
    np.testing.assert_allclose(theta, wanted["theta"], rtol=rtol)
    for name, which in (("train", seen), ("test", fresh)):
        losses = dynamics.rule_losses(theta, *which, scale=scale)
        np.testing.assert_allclose(losses.nll.mean(), wanted[f"{name}_nll"], rtol=rtol)
        np.testing.assert_allclose(losses.errors.mean(), wanted[f"{name}_01"], rtol=rtol)
    gap = dynamics.generalization_gap(theta, *seen, *fresh, scale=scale)
    np.testing.assert_allclose(gap.nll, wanted["gap_nll"], rtol=rtol)
    np.testing.assert_allclose(gap.errors, wanted["gap_01"], rtol=rtol)


def test_what_is_generated_has_the_moments_of_the_generator():
    generator = dynamics.GaussianGenerator(jnp.array([[0.0, 1.0], [4.0, -2.0]]), jnp.array([0.25, 4.0]))
    labels = jnp.arange(20_000) % 2
    drawn = np.asarray(dynamics.generate(jax.random.key(0), generator, labels))
    for label in range(2):
        mine = drawn[np.asarray(labels) == label]
        np.testing.assert_allclose(mine.mean(axis=0), generator.means[label], atol=0.06)
        np.testing.assert_allclose(mine.var(axis=0), generator.variances, rtol=0.05)
    known = dynamics.GaussianGenerator(generator.means, jnp.zeros(2))
    np.testing.assert_array_equal(
        dynamics.generate(jax.random.key(0), known, jnp.array([1, 0, 7, -3])),
        generator.means[jnp.array([1, 0, 1, 0])],
    )


def test_the_classes_are_symmetric():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.integers(0, 2, 9)
    np.testing.assert_allclose(dynamics.mean_rule(x, 1 - y), -dynamics.mean_rule(x, y), rtol=1e-6)
    np.testing.assert_allclose(dynamics.mean_rule(-x, 1 - y), dynamics.mean_rule(x, y), rtol=1e-6)


def test_with_the_true_generator_the_gap_goes_to_zero():
    mean = jnp.ones(5) / 5**0.5
    truth = dynamics.GaussianGenerator(jnp.stack([-mean, mean]), jnp.full(5, 0.36))
    labels = jnp.arange(200_000) % 2
    seen, fresh = (dynamics.generate(jax.random.key(i), truth, labels) for i in range(2))
    gap = dynamics.generalization_gap(dynamics.mean_rule(seen, labels), seen, labels, fresh, labels, scale=0.6)
    assert gap.nll < 0.02
    assert gap.errors < 0.005


def test_a_class_of_one_example_adds_no_variance_and_one_of_none_has_mean_zero():
    x = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]], np.float32)
    found = dynamics.gaussian_generator(x, np.array([0, 0, 1]), num_classes=3, var_eps=0.0)
    np.testing.assert_allclose(found.variances, [2 / 3 * 2.0, 0.0])
    np.testing.assert_allclose(found.means, [[2, 2], [5, 5], [0, 0]])


def test_the_mean_loss_of_no_examples_is_zero():
    x, y, theta = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1]), np.ones(2, np.float32)
    nothing = dynamics.generalization_gap(theta, x, y, x[:0], y[:0], scale=1.0)
    masked = dynamics.generalization_gap(theta, x, y, x, y, scale=1.0, mask=np.zeros(4))
    np.testing.assert_allclose(nothing, masked, rtol=1e-6)
    assert nothing.errors == 0.5


def test_a_rule_of_another_size_is_refused():
    x, y = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"dynamics.rule_losses: argument `theta` is of shape \(3,\)"):
        dynamics.rule_losses(np.ones(3, np.float32), x, y, scale=1.0)
    with pytest.raises(ValueError, match=r"dynamics.generalization_gap: argument `test_features`"):
        dynamics.generalization_gap(np.ones(2, np.float32), x, y, np.ones(2), y, scale=1.0)
