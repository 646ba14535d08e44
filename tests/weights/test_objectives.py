import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import reduce, weights

IDS = np.array([0, 1, 2, 0, 1, 2, 2, 0])


def shares(state):
    return np.asarray(state.weights)


def steps(balance, losses, **signals):
    """The weights after each batch, whose losses are one an objective."""
    state, found = balance.init(), []
    for row in np.float32(losses):
        w, state = balance.update(state, row, objectives=np.arange(len(row)), **signals)
        np.testing.assert_allclose(w, len(row) * shares(state), rtol=1e-5)
        found.append(shares(state))
    return np.array(found)


def test_the_first_batch_leaves_the_weights_equal():
    np.testing.assert_allclose(steps(weights.normalized_loss_balance(3, rate=0.7), [[5, 1, 0.1]]), 1 / 3, rtol=1e-6)


def test_the_objective_that_lags_gains_whatever_the_scale_of_the_losses():
    losses = np.array([[4.0, 1.0], [1.0, 1.0], [0.5, 1.0]])
    found = steps(weights.normalized_loss_balance(2, rate=0.1), losses)
    assert np.all(np.diff(found[:, 1]) > 0)
    np.testing.assert_allclose(found, steps(weights.normalized_loss_balance(2, rate=0.1), losses * [1e-3, 1e3]), 1e-5)


def test_the_fixed_point_is_the_share_of_the_relative_losses():
    found = steps(weights.normalized_loss_balance(2, rate=0.2), [[4, 1]] + 100 * [[1, 1]])
    np.testing.assert_allclose(found[-1], [0.2, 0.8], rtol=1e-5)
    at_once = steps(weights.normalized_loss_balance(2, rate=1.0), [[4, 1], [1, 1]])
    np.testing.assert_allclose(at_once[-1], [0.2, 0.8], rtol=1e-5)
    squared = steps(weights.normalized_loss_balance(2, rate=1.0, power=2.0), [[4, 1], [1, 1]])
    np.testing.assert_allclose(squared[-1], [1 / 17, 16 / 17], rtol=1e-5)


@pytest.mark.parametrize("still", [{"rate": 0.0}, {"power": 0.0}])
def test_without_rate_or_power_the_weights_stay_equal(still):
    np.testing.assert_allclose(steps(weights.normalized_loss_balance(2, **still), [[4, 1], [1, 3], [0, 1]]), 0.5, 1e-6)


def test_weights_stay_a_distribution_beyond_rate_one_and_where_losses_vanish():
    found = steps(weights.normalized_loss_balance(3, rate=5.0), [[0, 1, 2], [3, 0, 2], [0, 0, 0], [1e4, 1, 0]])
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found[2], found[1])


def test_the_weighted_mean_is_that_of_the_means_of_the_objectives():
    losses = np.random.default_rng(0).exponential(size=8).astype(np.float32)
    balance = weights.normalized_loss_balance(3, rate=0.5)
    _, state = balance.update(balance.init(), losses[::-1].copy(), objectives=IDS)
    w, state = balance.update(state, losses, objectives=IDS)
    means = [losses[k == IDS].mean() for k in range(3)]
    np.testing.assert_allclose(reduce.weighted_mean(losses, w, normalizer="count"), shares(state) @ means, rtol=1e-5)


def test_an_absent_objective_keeps_its_weight_and_starts_when_it_comes():
    balance = weights.normalized_loss_balance(3, rate=1.0)
    state = balance.init()
    for row in ([4.0, 1.0], [1.0, 1.0]):
        _, state = balance.update(state, np.float32(row), objectives=np.array([0, 1]))
    np.testing.assert_allclose(shares(state), [2 / 3 * 0.2, 2 / 3 * 0.8, 1 / 3], rtol=1e-5)
    _, state = balance.update(state, np.float32([1.0, 1.0, 7.0]), objectives=np.arange(3))
    np.testing.assert_allclose(shares(state), [1 / 9, 4 / 9, 4 / 9], rtol=1e-5)  # 1/4 : 1 : 1


def test_rates_by_schedule():
    balance = weights.normalized_loss_balance(2, rate=optax.piecewise_constant_schedule(0.0, {}))
    np.testing.assert_allclose(steps(balance, [[4, 1], [1, 1]]), 0.5)


SURE, UNSURE = np.float32([[8, 0, 0], [0, 9, 0]]), np.float32([[1, 0, 0.5], [0, 1, 0]])


def temperatures(balance, logits, count=1, **signals):
    state, found = balance.init(), []
    for _ in range(count):
        before, state = balance.update(state, logits, **signals)
        found.append(np.asarray(before))
    return np.array(found)


def test_the_surer_teacher_gets_hotter_until_both_are_equally_sure():
    found = temperatures(weights.entropy_balance(rate=0.05), (SURE, UNSURE), 400)
    np.testing.assert_array_equal(found[0], 1)
    assert np.all(np.diff(found[:100, 0]) > 0)
    np.testing.assert_array_equal(found[:100, 1], 1)
    at = found[-50:].mean(0)
    assert np.all(np.ptp(found[-50:], axis=0) < 0.11)

    def entropy(logits, t):
        p = jax.nn.softmax(logits / t)
        return -float(jnp.mean(jnp.sum(p * jnp.log(p), -1)))

    assert abs(entropy(SURE, at[0]) - entropy(UNSURE, at[1])) < 0.02


def test_temperatures_stay_between_their_ends():
    balance = weights.entropy_balance(rate=3.0, min_temperature=0.5, max_temperature=4.0, eps=0.0)
    found = temperatures(balance, (100 * SURE, UNSURE), 5)
    np.testing.assert_array_equal(found[:, 0], [0.5, 3.5, 4, 4, 4])
    np.testing.assert_array_equal(found[:, 1], 0.5)


def test_in_the_released_form_two_teachers_are_heated_when_one_is_certain_to_the_last_digit():
    found = temperatures(weights.entropy_balance(rate=0.1), (1e4 * SURE, UNSURE), 2)
    np.testing.assert_allclose(found[-1], [1.1, 1.1])


def test_equal_teachers_keep_their_temperatures():
    np.testing.assert_array_equal(temperatures(weights.entropy_balance(), (SURE, SURE), 3), 1)
    np.testing.assert_array_equal(temperatures(weights.entropy_balance(3), (UNSURE, UNSURE, UNSURE), 3), 1)


def test_the_order_of_the_teachers_is_that_of_the_temperatures():
    balance = weights.entropy_balance(3, rate=0.1, min_temperature=1.0)
    found = temperatures(balance, (UNSURE, SURE, 3 * UNSURE), 6)
    order = temperatures(balance, (SURE, 3 * UNSURE, UNSURE), 6)
    np.testing.assert_array_equal(order, found[:, [1, 2, 0]])


def test_without_eps_a_certain_teacher_is_the_surer_one():
    found = temperatures(weights.entropy_balance(rate=0.1, eps=0.0), (1e4 * SURE, UNSURE), 2)
    np.testing.assert_allclose(found[-1], [1.1, 1])
    found = temperatures(weights.entropy_balance(rate=0.1, eps=0.0, min_temperature=2.0), (1e4 * SURE, 1e4 * SURE), 2)
    np.testing.assert_allclose(found[-1], 2)


def test_masked_rows_are_not_read():
    keep = np.array([True, False])
    hidden = [np.where(keep[:, None], x, np.nan) for x in (SURE, UNSURE)]
    balance = weights.entropy_balance(rate=0.1)
    found = temperatures(balance, hidden, 5, mask=keep)
    np.testing.assert_array_equal(found, temperatures(balance, (SURE[:1], UNSURE[:1]), 5))
    state = balance.init()
    _, after = balance.update(state, hidden, mask=np.zeros(2))
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize(
    ("logits", "named"),
    [((SURE,), "of 1 teachers"), ((SURE, UNSURE[:1]), "of shape"), ((SURE[0], UNSURE[0]), "of shape")],
)
def test_logits_that_do_not_fit_are_refused(logits, named):
    balance = weights.entropy_balance()
    with pytest.raises(ValueError, match=f"weights.entropy_balance: argument `teacher_logits` is {named}"):
        balance.update(balance.init(), logits)
