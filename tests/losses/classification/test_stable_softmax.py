import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled import arrays, assert_matches, drawn, golden, with_gradient

from reweight.losses import classification

CASES = golden("stablemax")
loss = jax.jit(classification.stablemax_cross_entropy)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_probabilities_and_losses_agree_with_the_official_code(case, x64):
    (logits, labels), expected = arrays(case), case["expected"]
    np.testing.assert_allclose(classification.stablemax(logits), expected["stablemax"], rtol=1e-9)
    np.testing.assert_allclose(classification.log_stablemax(logits), expected["log_stablemax"], rtol=1e-9, atol=1e-12)
    assert_matches(with_gradient(loss, logits, labels), expected["nll"], expected["grad_logits"])


def test_probabilities_are_in_the_order_of_the_logits_and_sum_to_one():
    logits, _ = drawn(scale=20.0)
    p = np.asarray(classification.stablemax(logits))
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
    assert np.array_equal(np.argsort(p, -1), np.argsort(logits, -1))


def test_a_constant_changes_the_probabilities():
    logits, _ = drawn()
    assert np.max(np.abs(classification.stablemax(logits + 3) - classification.stablemax(logits))) > 0.1


def test_two_classes_at_plus_and_minus_a_have_odds_one_plus_a_squared():
    a = np.float32([0, 0.5, 3, 1000])
    log_p = classification.log_stablemax(np.stack([a, -a]), axis=0)
    np.testing.assert_allclose(log_p[0] - log_p[1], 2 * np.log1p(a), rtol=1e-5)


def test_a_sure_and_right_example_keeps_a_gradient_that_the_softmax_loses():
    logits, labels = np.float32([[200, -200, 0]]), np.array([0])
    assert np.all(with_gradient(classification.cross_entropy, logits, labels)[1] == 0)
    _, grad = with_gradient(loss, logits, labels)
    assert np.all(np.asarray(grad)[0, 1:] > 0)
    assert grad[0, 0] < 0


def test_the_slope_at_zero_is_that_of_both_sides():
    _, grad = with_gradient(loss, np.zeros((1, 4), np.float32), np.array([1]))
    np.testing.assert_allclose(grad, [[0.25, -0.75, 0.25, 0.25]], rtol=1e-6)


def test_a_static_mistake_is_named():
    for call, named in (
        (lambda: classification.stablemax(jnp.zeros((2, 3)), axis=2), "axis"),
        (lambda: classification.log_stablemax(jnp.zeros((2, 3)), axis=(0, 1)), "axis"),
        (lambda: classification.stablemax(jnp.zeros((2, 3), int)), "logits"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
