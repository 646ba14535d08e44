import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import assert_close, golden

from reweight.losses import preference

FUNCTIONS = golden("preference_sequence_functions")
TOKENS = next(case for case in FUNCTIONS if "mask" in case["inputs"])
POWERS = [case for case in FUNCTIONS if case["params"].get("what") == "alphapo_transform"]
LOG1MEXP = next(case for case in FUNCTIONS if case["params"].get("what") == "log1mexp")
B, T = 4, 6


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    return -np.abs(rng.normal(size=(B, T))).astype(np.float32), rng.random((B, T)) > 0.4


def test_sums_lengths_and_means_are_the_golden_ones(x64):
    log_probs, mask = jnp.array(TOKENS["inputs"]["log_probs"]), jnp.array(TOKENS["inputs"]["mask"])
    found = preference.sequence_log_probs(log_probs, mask)
    assert_close(found.sums, TOKENS["expected"]["sum"])
    assert_close(found.means, TOKENS["expected"]["mean"])
    np.testing.assert_array_equal(found.lengths, TOKENS["expected"]["length"])
    assert jnp.issubdtype(found.lengths.dtype, jnp.integer)
    grad = jax.grad(lambda x: jnp.sum(preference.sequence_log_probs(x, mask).means))(log_probs)
    assert_close(grad, TOKENS["expected"]["grad_log_probs_of_sum_of_means"])


def test_an_empty_answer_has_sum_mean_and_length_zero_and_no_gradient():
    log_probs, _ = drawn()
    mask = np.arange(B)[:, None] != np.full(T, 2)
    poisoned = np.where(mask, log_probs, np.nan)
    found, pullback = jax.vjp(lambda x: preference.sequence_log_probs(x, mask).means, poisoned)
    assert found[2] == 0
    (grad,) = pullback(jnp.ones(B))
    assert np.isfinite(grad).all()
    assert not grad[2].any()
    assert preference.sequence_log_probs(poisoned, mask).lengths[2] == 0


def test_sums_of_bfloat16_run_in_float32():
    log_probs = jnp.full((2, 1000), -0.01, jnp.bfloat16)
    found = preference.sequence_log_probs(log_probs, jnp.ones((2, 1000)))
    assert found.sums.dtype == jnp.float32
    np.testing.assert_allclose(found.sums, 1000 * np.float32(log_probs[0, 0]), rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_shared_prefix_is_counted_in_response_tokens_on_either_side_of_the_padding(side):
    values = np.float32([-1.0, -2.0, -4.0, -8.0])
    padding = np.full(3, np.nan, np.float32)
    log_probs = np.concatenate([padding, values] if side == "left" else [values, padding])[None]
    mask = ~np.isnan(log_probs)
    found = preference.shared_prefix_log_probs(log_probs, mask, np.array([2]), alpha=0.5)
    np.testing.assert_allclose(found.sums, [-1 - 2 + 0.5 * (-4 - 8)])
    np.testing.assert_array_equal(found.lengths, [4])


def test_a_prefix_goes_on_over_gaps_of_the_mask():
    log_probs, mask = np.float32([[-1.0, -2.0, -4.0, -8.0]]), np.array([[1, 0, 1, 1]])
    found = preference.shared_prefix_log_probs(log_probs, mask, np.array([2]), alpha=0.0)
    np.testing.assert_allclose(found.sums, [-1 - 4])


def test_a_tail_that_counts_fully_or_a_longer_other_answer_gives_the_plain_sums():
    log_probs, mask = drawn(1)
    plain = preference.sequence_log_probs(log_probs, mask).sums
    for others, alpha in ((np.zeros(B, int), 1.0), (np.full(B, T), 0.0)):
        found = preference.shared_prefix_log_probs(log_probs, mask, others, alpha=alpha).sums
        np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_implicit_rewards_are_scaled_log_ratios_without_gradient():
    policy, reference = np.float32([-3.0, -1.0]), np.float32([-5.0, 0.0])
    rewards, pullback = jax.vjp(lambda x: preference.implicit_rewards(x, reference, beta=0.2), policy)
    np.testing.assert_allclose(rewards, [0.4, -0.2], rtol=1e-6)
    assert not np.any(pullback(jnp.ones(2))[0])


@pytest.mark.parametrize("case", POWERS, ids=lambda case: str(case["params"]["alpha"]))
def test_power_rewards_and_their_slopes_are_the_golden_ones(case, x64):
    log_probs, alpha = jnp.array(case["inputs"]["mean_logp"]), case["params"]["alpha"]
    rewards, pullback = jax.vjp(lambda x: preference.power_rewards(x, alpha=alpha), log_probs)
    assert_close(rewards, case["expected"]["reward"])
    assert_close(pullback(jnp.ones_like(rewards))[0], case["expected"]["grad"])


@hypothesis.given(st.floats(-20, -1e-3), st.sampled_from([1e-4, -1e-4, 1e-7, 0.0]))
def test_power_rewards_tend_to_log_probs(log_prob, alpha):
    reward, slope = jax.value_and_grad(lambda x: preference.power_rewards(x, alpha=alpha))(jnp.float32(log_prob))
    np.testing.assert_allclose(reward, np.float32(log_prob), rtol=2e-3)
    np.testing.assert_allclose(slope, 1, rtol=3e-3)


def test_power_rewards_stay_finite_with_a_slope_where_the_power_overflows():
    for alpha, log_prob in ((0.25, -1e4), (2.0, -1e4), (-3.0, 1e4)):
        reward, slope = jax.value_and_grad(lambda x, a=alpha: preference.power_rewards(x, alpha=a))(log_prob)
        assert np.isfinite(reward)
        assert np.isfinite(slope)
        assert slope > 1e20


def log1mexp(log_probs):
    return log_probs - preference.log_odds(log_probs)


def test_the_complement_in_log_odds_is_the_golden_one_in_both_branches(x64):
    points = jnp.array(LOG1MEXP["inputs"]["x"])
    values, pullback = jax.vjp(log1mexp, points)
    # Log-odds are the log-prob less the golden number: where that is far below the log-prob its digits are lost.
    assert_close(values, LOG1MEXP["expected"]["value"], atol=1e-12)
    assert_close(pullback(jnp.ones_like(points))[0], LOG1MEXP["expected"]["grad"], rtol=1e-6, atol=1e-9)


@hypothesis.given(st.floats(1e-4, 1 - 1e-4))
def test_log_odds_are_the_logit_of_the_probability(probability):
    log_prob = jnp.log(jnp.float32(probability))
    np.testing.assert_allclose(
        preference.log_odds(log_prob), np.log(probability / (1 - probability)), rtol=1e-3, atol=1e-3
    )


def test_log_odds_of_a_certain_answer_are_finite_and_keep_their_slope():
    for log_prob in (0.0, -1e-9, -1e-6):
        value, slope = jax.value_and_grad(preference.log_odds)(jnp.float32(log_prob))
        np.testing.assert_allclose(value, -np.log(1e-6), rtol=1e-2)
        np.testing.assert_allclose(slope, 1e6, rtol=0.1)


def test_log_odds_of_a_certain_answer_in_float64(x64):
    value, slope = jax.value_and_grad(preference.log_odds)(jnp.float64(0.0))
    np.testing.assert_allclose(value, -np.log(1e-12), rtol=1e-4)
    np.testing.assert_allclose(slope, 1e12, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, m: preference.sequence_log_probs(x, m[:, :3]), "mask"),
        (lambda x, m: preference.sequence_log_probs(x.astype(int), m), "log_probs"),
        (lambda x, m: preference.sequence_log_probs(x[0, 0], m), "log_probs"),
        (lambda x, m: preference.shared_prefix_log_probs(x, m, m), "other_lengths"),
        (lambda x, m: preference.shared_prefix_log_probs(x, m, m[:, 0] * 1, alpha=2.0), "alpha"),
        (lambda x, m: preference.implicit_rewards(x, x[:2]), "reference"),
        (lambda x, m: preference.power_rewards(x, alpha=np.inf), "alpha"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(*drawn())
