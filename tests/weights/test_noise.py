import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import weights

losses_with_ties = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=10, max_size=10)


@hypothesis.given(losses=losses_with_ties, keep=st.integers(0, 10), masked=st.integers(0, 9))
def test_exactly_the_floor_of_the_rate_is_kept_and_it_is_the_smallest(losses, keep, masked):
    losses = np.float32(losses)
    mask = np.arange(10) >= masked
    count = 10 - masked
    w = np.asarray(weights.small_loss_weights(losses, keep_rate=keep / 10, mask=mask))
    size = max(1, keep * count // 10)
    assert np.sum(w > 0) == size
    np.testing.assert_allclose(w[w > 0], count / size, rtol=1e-6)
    if size < count:
        assert losses[w > 0].max() <= losses[mask & (w == 0)].min()


def test_ties_on_the_edge_go_to_those_that_come_first():
    w = weights.small_loss_weights(np.float32([1, 0, 1, 1]), keep_rate=0.5)
    np.testing.assert_array_equal(w, [2, 2, 0, 0])


def test_a_rate_of_one_keeps_all_and_of_zero_the_smallest():
    losses = np.float32([3, 1, 2])
    np.testing.assert_array_equal(weights.small_loss_weights(losses, keep_rate=1.0), 1)
    np.testing.assert_array_equal(weights.small_loss_weights(losses, keep_rate=0.0), [0, 3, 0])


@pytest.mark.parametrize("hundredths", [10, 53, 59, 70, 100])
def test_no_example_is_lost_to_the_rounding_of_a_decimal_rate(hundredths):
    w = weights.small_loss_weights(jnp.arange(100, dtype=jnp.float32), keep_rate=hundredths / 100)
    assert np.sum(np.asarray(w) > 0) == hundredths


def test_infinite_losses_come_last_but_before_masked_ones():
    losses = np.float32([0, np.inf, 1, 0])
    w = weights.small_loss_weights(losses, keep_rate=1.0, mask=np.array([0, 1, 1, 1]))
    np.testing.assert_array_equal(w, [0, 1, 1, 1])


def test_a_schedule_moves_with_the_batches_and_not_with_empty_ones():
    scheme = weights.small_loss(optax.linear_schedule(1.0, 0.2, 4))
    losses, state, kept = np.arange(10, dtype=np.float32), scheme.init(), []
    for step in range(6):
        _, state = scheme.update(state, losses, mask=np.zeros(10))
        w, state = scheme.update(state, losses)
        kept.append(int(np.sum(np.asarray(w) > 0)))
        assert state.step == step + 1
    assert kept == [10, 8, 6, 4, 2, 2]


def test_a_schedule_that_leaves_the_unit_interval_is_clipped():
    scheme = weights.small_loss(lambda step: 2.0 - 3.0 * step)
    losses = np.arange(4, dtype=np.float32)
    first, state = scheme.update(scheme.init(), losses)
    second, _ = scheme.update(state, losses)
    np.testing.assert_array_equal(first, 1)
    np.testing.assert_array_equal(second, [4, 0, 0, 0])


@pytest.mark.parametrize("rate", [-0.1, 1.1, "0.5", float("nan")])
def test_a_rate_outside_the_unit_interval_is_named(rate):
    with pytest.raises(ValueError, match="argument `keep_rate`"):
        weights.small_loss(rate)
    with pytest.raises(ValueError, match="argument `keep_rate`"):
        weights.small_loss_weights(jnp.ones(3), keep_rate=rate)
