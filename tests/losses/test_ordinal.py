import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight.losses import ordinal
from reweight.regularizers import fused

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "presto.json").read_text())
CASES, CROSSED = GOLDEN["cases"][:2], GOLDEN["cases"][2]
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-12}

graded = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(ordinal.cumulative_logit_nll(x, y))))
probs = jax.jit(ordinal.cumulative_probs)


def arrays(case):
    return {name: np.array(value) for name, value in case["inputs"].items()}


@pytest.mark.parametrize("case", CASES, ids=range(2))
def test_likelihood_and_penalty_agree_with_the_golden_numbers(case, x64):
    given, expected = arrays(case), case["expected"]

    def nll(intercepts, beta):
        return ordinal.cumulative_logit_nll(given["X"] @ beta + intercepts, given["labels"])

    model = (given["intercepts"], given["beta"])
    np.testing.assert_allclose(nll(*model), expected["nll_per_example"], **CLOSE)
    found, crossed = ordinal.cumulative_probs(given["X"] @ given["beta"] + given["intercepts"])
    np.testing.assert_allclose(found, expected["probs"], **CLOSE)
    assert not np.any(crossed)
    slopes = jax.grad(lambda *model: jnp.mean(nll(*model)), argnums=(0, 1))(*model)
    np.testing.assert_allclose(slopes[0], expected["grad_intercepts_mean_nll"], **CLOSE)
    np.testing.assert_allclose(slopes[1], expected["grad_beta_mean_nll"], **CLOSE)
    for alpha, name in ((1.0, "penalty_alpha1"), (0.0, "penalty_alpha0"), (0.4, "penalty_alpha04")):
        np.testing.assert_allclose(fused.presto_penalty(given["beta"], alpha=alpha), expected[name], **CLOSE)
    ridge = jax.grad(lambda beta: fused.presto_penalty(beta, alpha=0.0))(given["beta"])
    np.testing.assert_allclose(ridge, expected["grad_beta_penalty_alpha0"], **CLOSE)
    objective = jnp.mean(nll(*model)) + case["params"]["lam"] * fused.presto_penalty(given["beta"])
    np.testing.assert_allclose(objective, expected["objective_alpha1"], **CLOSE)


def test_crossed_boundaries_are_told_and_their_probabilities_agree_with_the_golden_numbers(x64):
    given, expected = arrays(CROSSED), CROSSED["expected"]
    logits = given["X"] @ given["beta"] + given["intercepts"]
    found, crossed = ordinal.cumulative_probs(logits)
    np.testing.assert_allclose(found, expected["predicted_probs"], **CLOSE)
    np.testing.assert_array_equal(crossed, expected["crossed"])
    losses = ordinal.cumulative_logit_nll(logits, given["labels"])
    np.testing.assert_allclose(losses[1:], expected["nll_per_example"][1:], **CLOSE)
    # Where the golden number is infinite, the loss is finite and as large as the distance asks.
    assert expected["nll_per_example"][0] == "inf"
    assert 1e8 < losses[0] < 1e9


@hypothesis.given(seed=st.integers(0, 1000), spread=st.sampled_from([0.01, 1.0, 30.0]))
def test_probabilities_sum_to_one_and_are_those_of_the_likelihood(seed, spread):
    logits = np.sort(spread * np.random.default_rng(seed).normal(size=(5, 3)), axis=-1).astype(np.float32)
    found, crossed = probs(logits)
    assert not np.any(crossed)
    np.testing.assert_allclose(np.sum(found, -1), 1, rtol=1e-6)
    for label in range(4):
        losses = ordinal.cumulative_logit_nll(logits, np.full(5, label))
        np.testing.assert_allclose(np.exp(-losses), found[:, label], rtol=1e-4, atol=1e-30)


def test_two_classes_are_logistic_regression():
    logits, labels = np.linspace(-30, 30, 7, dtype=np.float32), np.array([0, 1, 0, 1, 0, 1, 1])
    wanted = optax.losses.sigmoid_binary_cross_entropy(logits, 1.0 - labels)
    np.testing.assert_allclose(ordinal.cumulative_logit_nll(logits[:, None], labels), wanted, rtol=1e-5, atol=1e-12)


def test_translated_features_with_moved_intercepts_are_the_same_model():
    rng = np.random.default_rng(0)
    features, beta = rng.normal(size=(6, 2)), rng.normal(size=(2, 3)) * 0.1
    intercepts, shift, labels = np.array([-1.0, 0.5, 2.0]), np.array([3.0, -2.0]), rng.integers(0, 4, 6)
    moved = (features + shift) @ beta + (intercepts - shift @ beta)
    np.testing.assert_allclose(
        ordinal.cumulative_logit_nll(moved.astype(np.float32), labels),
        ordinal.cumulative_logit_nll((features @ beta + intercepts).astype(np.float32), labels),
        rtol=1e-5,
    )


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_values_and_gradients_are_finite_at_extreme_and_at_crossed_boundaries(size):
    for logits in (size * np.array([[1, 1, 1], [-1, 0, 1], [0, 0, 0.0]]), np.array([[1, 1 + 1e-7, 2.0]] * 3)):
        for label in range(4):
            value, grad = graded(logits.astype(np.float32), np.full(3, label))
            assert np.isfinite(value)
            assert np.all(np.isfinite(grad))


def test_logits_of_an_unknown_label_are_never_read():
    logits, labels = np.float32([[np.nan, np.inf], [0.3, 0.7], [np.nan, 0]]), np.array([-1, 1, 3])
    value, grad = graded(logits, labels)
    np.testing.assert_allclose(value, graded(logits[1:2], labels[1:2])[0], rtol=1e-6)
    np.testing.assert_array_equal(grad[0], 0)
    np.testing.assert_array_equal(grad[2], 0)
    assert np.all(np.isfinite(grad))


def test_crossed_boundaries_are_moved_apart():
    value, grad = jax.value_and_grad(lambda x: ordinal.cumulative_logit_nll(x, 1, min_gap=0.01))(np.float32([1.0, 0.5]))
    assert np.isfinite(value)
    assert grad[0] > 0 > grad[1]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: ordinal.cumulative_logit_nll(x, np.array([0, 1])), "labels"),
        (lambda x: ordinal.cumulative_logit_nll(x, np.ones(3, np.float32)), "labels"),
        (lambda x: ordinal.cumulative_logit_nll(x, np.ones(3, int), min_gap=0.0), "min_gap"),
        (lambda x: ordinal.cumulative_probs(x.astype(int)), "boundary_logits"),
        (lambda x: fused.presto_penalty(x, alpha=2.0), "alpha"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(np.ones((3, 2), np.float32))
