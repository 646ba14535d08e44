import math

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import weights

logs = st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6)


@hypothesis.given(x=logs, low=st.sampled_from([0.0, 0.5]), high=st.sampled_from([0.75, 2.0, math.inf]))
def test_bounded_ratios_are_the_formula(x, low, high):
    x = np.float32(x)
    ratios = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(weights.importance_weights(x), ratios, rtol=1e-5)
    np.testing.assert_allclose(weights.importance_weights(x, low=low, high=high), np.clip(ratios, low, high), rtol=1e-5)
    inside = np.where((ratios >= low) & (ratios <= high), ratios, 0)
    np.testing.assert_allclose(weights.importance_weights(x, low=low, high=high, outside="zero"), inside, rtol=1e-5)


@hypothesis.given(x=logs, masked=st.integers(0, 6))
def test_self_normalised_weights_have_mean_one_in_the_proportions_of_the_ratios(x, masked):
    x, mask = np.float32(x), np.arange(6) >= masked
    ratios = np.where(mask, np.exp(x.astype(np.float64)), 0)
    expected = ratios / (ratios.sum() / mask.sum()) if mask.any() else ratios
    np.testing.assert_allclose(
        weights.importance_weights(x, self_normalize=True, mask=mask), expected, rtol=1e-5, atol=1e-30
    )


@pytest.mark.parametrize("options", [{}, {"high": 5.0}, {"low": 0.5, "high": 2.0}, {"high": 2.0, "outside": "zero"}])
@pytest.mark.parametrize("self_normalize", [False, True])
def test_log_ratios_of_ten_thousand_stay_finite(options, self_normalize):
    x = np.float32([1e4, -1e4, 0.0, 9999.0, -9999.0])
    w = np.asarray(weights.importance_weights(x, self_normalize=self_normalize, **options))
    assert np.all(np.isfinite(w))
    assert np.isfinite(np.sum(w * np.float32(1e4)))
    if self_normalize:
        np.testing.assert_allclose(w.mean(), 1, rtol=1e-6)


def test_self_normalisation_compares_ratios_beyond_the_range_of_floats():
    w = weights.importance_weights(np.float32([5000.0, 5000.0, 4999.0]), self_normalize=True)
    np.testing.assert_allclose(w, 3 * np.array([1, 1, np.exp(-1)]) / (2 + np.exp(-1)), rtol=1e-5)


def test_a_ratio_beyond_its_largest_counts_as_the_largest():
    assert weights.importance_weights(np.float32([1e4])) == pytest.approx(math.exp(64), rel=1e-5)


def test_equal_policies_weigh_all_alike():
    for options in ({}, {"high": 1.0}, {"low": 1.0, "high": 1.0}, {"self_normalize": True}):
        np.testing.assert_allclose(weights.importance_weights(jnp.zeros(4), **options), 1)


def test_all_ratios_dropped_leave_no_weight():
    for self_normalize in (False, True):
        w = weights.importance_weights(jnp.full(3, 5.0), high=2.0, outside="zero", self_normalize=self_normalize)
        np.testing.assert_array_equal(w, 0)


def test_dropped_examples_count_in_the_mean_of_self_normalised_weights():
    w = weights.importance_weights(jnp.array([0.0, 0.0, 5.0]), high=2.0, outside="zero", self_normalize=True)
    np.testing.assert_allclose(w, [1.5, 1.5, 0])


def test_weights_estimate_the_mean_under_the_target():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50_000).astype(np.float32)
    shifted = 0.5 * x - 0.125  # log N(x; 0.5, 1) / N(x; 0, 1)
    for self_normalize in (False, True):
        w = weights.importance_weights(shifted, self_normalize=self_normalize)
        np.testing.assert_allclose(np.mean(np.asarray(w) * x), 0.5, atol=0.02)


def test_a_log_ratio_a_sequence_serves_its_tokens():
    w, _ = weights.importance().update((), jnp.zeros((2, 3)), log_ratios=jnp.log(jnp.array([[2.0], [0.5]])))
    np.testing.assert_allclose(w, [[2, 2, 2], [0.5, 0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"low": -0.1}, "low"),
        ({"low": 2.0, "high": 1.0}, "low"),
        ({"high": 0.0}, "high"),
        ({"outside": "drop"}, "outside"),
    ],
)
def test_a_static_mistake_is_named(options, named):
    for call in (lambda: weights.importance(**options), lambda: weights.importance_weights(jnp.zeros(2), **options)):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()


def test_log_ratios_that_do_not_fit_the_losses_are_named():
    with pytest.raises(ValueError, match="argument `log_ratios`"):
        weights.importance().update((), jnp.zeros(2), log_ratios=jnp.zeros(3))


def test_equal_bounds_leave_one_weight_for_all():
    log_ratios = jnp.array([-3.0, 0.0, 2.0])
    np.testing.assert_allclose(weights.importance_weights(log_ratios, low=1.5, high=1.5), 1.5, rtol=1e-6)
    scheme = weights.importance(low=1.5, high=1.5)
    drawn, _ = scheme.update(scheme.init(), jnp.zeros(3), log_ratios=log_ratios)
    np.testing.assert_allclose(drawn, 1.5, rtol=1e-6)
