import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses.preference import links

MARGINS = np.linspace(-30, 30, 61, dtype=np.float32)
EACH = {
    "logistic": links.logistic,
    "smoothed": functools.partial(links.logistic, label_smoothing=0.2),
    "robust": functools.partial(links.robust_logistic, label_smoothing=0.2),
    "hinge": links.hinge,
    "squared": functools.partial(links.squared, target=2.0),
    "reverse_kl": functools.partial(links.reverse_kl, label_smoothing=0.1),
    "sigmoid": links.sigmoid,
    "discovered": links.discovered,
}


@pytest.mark.parametrize("name", EACH)
def test_values_and_slopes_are_finite_far_out_and_at_zero(name):
    margins = np.float32([-1e4, -100, 0, 100, 1e4])
    losses, pullback = jax.vjp(EACH[name], margins)
    assert losses.shape == margins.shape
    assert np.isfinite(losses).all()
    assert np.isfinite(pullback(jnp.ones(5))[0]).all()


@pytest.mark.parametrize("name", ["logistic", "smoothed", "robust", "hinge", "squared"])
def test_convex_links_lie_below_their_chords(name):
    losses = np.asarray(EACH[name](MARGINS), np.float64)
    assert np.all(losses[1:-1] <= (losses[:-2] + losses[2:]) / 2 + 1e-4)


@pytest.mark.parametrize("name", ["logistic", "hinge", "sigmoid"])
def test_links_fall_with_the_margin(name):
    assert np.all(np.diff(EACH[name](MARGINS)) <= 0)


@hypothesis.given(st.floats(-40, 40), st.sampled_from([0.0, 0.1, 0.4]))
def test_the_robust_link_averaged_over_flips_is_the_logistic_one(margin, rate):
    robust = functools.partial(links.robust_logistic, label_smoothing=rate)
    mean = (1 - rate) * robust(margin) + rate * robust(-margin)
    np.testing.assert_allclose(mean, links.logistic(margin), rtol=1e-4, atol=1e-4)


@hypothesis.given(st.floats(0.01, 0.49))
def test_the_reverse_kl_is_zero_at_the_labels_and_has_the_limits_of_a_certain_answer(smoothing):
    link = functools.partial(links.reverse_kl, label_smoothing=smoothing)
    at = np.log((1 - smoothing) / smoothing)
    loss, slope = jax.value_and_grad(link)(jnp.float32(at))
    np.testing.assert_allclose((loss, slope), 0, atol=1e-6)
    np.testing.assert_allclose(link(1e4), -np.log1p(-smoothing), rtol=1e-5)
    np.testing.assert_allclose(link(-1e4), -np.log(smoothing), rtol=1e-5)


def test_the_discovered_link_is_logistic_below_and_exponential_above():
    np.testing.assert_allclose(
        links.discovered(np.float32([-40, -3])), links.logistic(np.float32([-40, -3])), rtol=1e-5
    )
    np.testing.assert_allclose(links.discovered(np.float32([2, 9])), np.exp(-np.float32([2, 9])), rtol=1e-5)
    assert np.any(np.diff(links.discovered(np.linspace(-0.2, 0.2, 41, dtype=np.float32))) > 0)


def test_a_target_may_be_an_array_with_a_gradient():
    targets = np.float32([0.0, 1.0, -2.0])
    slopes = jax.grad(lambda target: jnp.sum(links.squared(np.zeros(3, np.float32), target=target)))(targets)
    np.testing.assert_allclose(slopes, 2 * targets)
    with pytest.raises(ValueError, match="argument `target`"):
        links.squared(np.zeros(2, np.float32), target=targets)


def test_bfloat16_margins_give_float32_losses():
    for link in EACH.values():
        assert link(jnp.zeros(2, jnp.bfloat16)).dtype == jnp.float32
