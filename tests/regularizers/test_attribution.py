"""Importance of features, and its divergence from what is known."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from reweight.metrics import attribution as metrics
from reweight.regularizers import attribution

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "factor_consistency.json").read_text())
WITH_KNOWLEDGE = [case for case in GOLDEN["cases"] if "p_knowledge" in case["inputs"]]
LINEAR, AGREEMENT = GOLDEN["cases"][2:]


@pytest.mark.parametrize("case", WITH_KNOWLEDGE)
@pytest.mark.parametrize("direction", ["knowledge_to_model", "model_to_knowledge"])
def test_golden_numbers(case, direction, x64):
    given, wanted, rtol = case["inputs"], case["expected"], GOLDEN["rtol"]
    phi, knowledge, mask = (np.array(given[name]) for name in ("attributions", "p_knowledge", "mask"))
    np.testing.assert_allclose(attribution.importance(phi, mask=mask), wanted["importance"], rtol=rtol)

    def divergence(phi):
        found = attribution.importance(phi, mask=mask)
        return attribution.factor_consistency(knowledge, found, direction=direction)

    value, slope = jax.value_and_grad(divergence)(phi)
    np.testing.assert_allclose(value, wanted[f"kl_{direction}"], rtol=rtol)
    np.testing.assert_allclose(slope, wanted[f"grad_attributions_{direction}"], rtol=rtol, atol=1e-10)

    loss = attribution.batch_factor_consistency(knowledge, direction=direction)

    def mean(phi):
        losses, _ = loss.update(loss.init(), attributions=phi, mask=mask)
        return jnp.sum(losses) / jnp.sum(mask)

    value, slope = jax.value_and_grad(mean)(phi)
    np.testing.assert_allclose(value, wanted[f"kl_{direction}"], rtol=rtol)
    np.testing.assert_allclose(slope, wanted[f"grad_attributions_{direction}"], rtol=rtol, atol=1e-10)


def test_attributions_of_a_linear_model_are_exact(x64):
    given, wanted, rtol = LINEAR["inputs"], LINEAR["expected"], GOLDEN["rtol"]
    w, x, baseline = (np.array(given[name]) for name in ("w", "x", "baseline"))
    found = [
        metrics.integrated_gradients(lambda rows: rows @ w + given["bias"], x, baseline, steps=1),
        metrics.integrated_gradients(lambda rows: rows @ w + given["bias"], x, baseline),
        metrics.shapley_sampling(jax.random.key(0), lambda rows: rows @ w + given["bias"], x, baseline, permutations=1),
    ]
    for phi in found:
        np.testing.assert_allclose(phi, wanted["attributions"], rtol=rtol)
        np.testing.assert_allclose(phi.sum(axis=1), wanted["sum_check"], rtol=rtol)
        np.testing.assert_allclose(attribution.importance(phi), wanted["importance"], rtol=rtol)


def test_agreement_of_models(x64):
    shares = np.array(AGREEMENT["inputs"]["distributions"])
    wanted = AGREEMENT["expected"]["share_of_pairs_all_agree"]
    np.testing.assert_allclose(metrics.order_agreement(shares), wanted, rtol=GOLDEN["rtol"])


def model(rows):
    return jnp.tanh(rows[:, 0] * rows[:, 1]) + jnp.exp(0.3 * rows[:, 2]) + rows[:, 0]


def test_attributions_sum_to_the_difference_of_the_outputs(x64):
    x, baseline = np.random.default_rng(0).normal(size=(5, 4)), np.array([0.1, -0.2, 0.3, 0.0])
    difference = model(x) - model(baseline[None])
    by_path = metrics.integrated_gradients(model, x, baseline, steps=400)
    np.testing.assert_allclose(by_path.sum(axis=1), difference, rtol=1e-4)
    by_orders = metrics.shapley_sampling(jax.random.key(1), model, x, baseline, permutations=3)
    np.testing.assert_allclose(by_orders.sum(axis=1), difference, rtol=1e-10)
    for phi in (by_path, by_orders):
        np.testing.assert_allclose(phi[:, 3], 0, atol=1e-12)  # the model does not look at it
    # Features 0 and 1 meet in one term only: an order and its reverse are all there is to their Shapley values.
    pair = np.array([[1.3, 0.7, 0.3, 0.0]])
    f = {key: float(model(np.array([[a, b, 0.3, 0.0]]))[0]) for key, (a, b) in {
        "": (0.1, -0.2), "0": (1.3, -0.2), "1": (0.1, 0.7), "01": (1.3, 0.7)}.items()}  # fmt: skip
    found = metrics.shapley_sampling(jax.random.key(2), model, pair, baseline, permutations=1)[0]
    np.testing.assert_allclose(found[0], (f["0"] - f[""] + f["01"] - f["1"]) / 2, rtol=1e-10)


def test_what_is_known_already_costs_nothing():
    shares = np.array([0.5, 0.3, 0.2], np.float32)
    for direction in ("knowledge_to_model", "model_to_knowledge"):
        assert abs(attribution.factor_consistency(shares, shares, direction=direction)) < 1e-6
        assert attribution.factor_consistency(shares, shares[::-1].copy(), direction=direction) > 0.1


def test_a_model_that_says_the_same_of_all_has_equal_shares_and_a_gradient():
    found = attribution.importance(jnp.zeros((3, 4)))
    np.testing.assert_allclose(found, 0.25)
    slope = jax.grad(lambda phi: attribution.importance(phi)[0])(jnp.zeros((3, 4)))
    assert np.all(np.isfinite(slope))


def test_importance_is_a_mean_over_the_batch_not_of_means():
    phi = np.array([[100.0, 1.0], [1.0, 2.0]], np.float32)
    np.testing.assert_allclose(attribution.importance(phi), [101 / 104, 3 / 104], rtol=1e-6)


def test_agreement_of_two_models_is_kendalls_tau(x64):
    shares = np.random.default_rng(0).random((2, 9))
    tau = scipy.stats.kendalltau(*shares).statistic
    np.testing.assert_allclose(metrics.order_agreement(shares), (1 + tau) / 2, rtol=1e-12)


def test_agreement_knows_ties_and_single_features():
    assert metrics.order_agreement(np.array([[1.0, 1.0], [2.0, 1.0]])) == 0
    assert metrics.order_agreement(np.array([[1.0], [2.0]])) == 1
    assert metrics.order_agreement(np.array([[3.0, 2.0, 1.0]])) == 1


def test_a_model_without_an_output_an_example_is_refused():
    x, baseline = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"integrated_gradients: argument `model\(features\)`"):
        metrics.integrated_gradients(lambda rows: rows, x, baseline)
    with pytest.raises(ValueError, match=r"shapley_sampling: argument `model\(features\)`"):
        metrics.shapley_sampling(jax.random.key(0), lambda rows: rows, x, baseline)
