import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled import arrays, assert_matches, drawn, golden, with_gradient

from reweight.losses import classification
from reweight.losses.classification import (
    kernel_sums,
    spherical_loss,
    spherical_softmax_cross_entropy,
    spherical_statistics,
    squared_error,
    taylor_softmax_cross_entropy,
    update_kernel_sums,
    z_loss,
)

*SCORES, HIDDEN, EQUAL = golden("z_loss")
HYPER = {"z_loss": {"a": 1.5, "b": 0.3}, "spherical_softmax_cross_entropy": {"eps": 0.2}}


def kernel(seed=0, classes=7, features=3):
    rng = np.random.default_rng(seed)
    hidden, labels = rng.normal(size=(5, features)), rng.integers(0, classes, 5)
    return rng.normal(size=(classes, features)) + 0.5, hidden, labels


@pytest.mark.parametrize("case", SCORES, ids=["small", "large"])
def test_losses_of_scores_agree_with_the_golden_numbers(case, x64):
    (logits, labels), params, expected = arrays(case), case["params"], case["expected"]
    found = with_gradient(z_loss, logits, labels, a=params["a"], b=params["b"], eps=params["eps"])
    assert_matches(found, expected["z_loss"], expected["grad_logits_z_loss_sum"])
    found = with_gradient(taylor_softmax_cross_entropy, logits, labels)
    assert_matches(found, expected["taylor_softmax_ce"], expected["grad_logits_taylor_sum"])
    found = with_gradient(spherical_softmax_cross_entropy, logits, labels, eps=params["spherical_eps"])
    assert_matches(found, expected["spherical_softmax_ce"], expected["grad_logits_spherical_sum"])
    np.testing.assert_allclose(squared_error(logits, labels), expected["mse"], rtol=1e-9)


def test_losses_of_hidden_states_agree_with_the_golden_numbers(x64):
    inputs, expected = HIDDEN["inputs"], HIDDEN["expected"]
    rows, hidden = jnp.array(inputs["W"]), jnp.array(inputs["h"])
    sums = kernel_sums(rows)
    np.testing.assert_allclose(sums.gram, expected["gram"], rtol=1e-12)
    np.testing.assert_allclose(sums.total, expected["wsum"], rtol=1e-12)

    def losses(hidden):
        return spherical_loss("z_loss", spherical_statistics(hidden, rows[jnp.array(inputs["labels"])], sums),
                              **HIDDEN["params"])  # fmt: skip

    values, pullback = jax.vjp(losses, hidden)
    assert_matches((values, pullback(jnp.ones(2))[0]), expected["z_loss"], expected["grad_h_sum"])


def test_equal_scores_have_the_loss_of_the_mean_and_no_gradient():
    values, grad = with_gradient(z_loss, *arrays(EQUAL), **EQUAL["params"])
    np.testing.assert_allclose(values, EQUAL["expected"]["z_loss"], rtol=1e-6)
    assert np.all(np.asarray(grad) == 0)
    # The mean of many equal large numbers is not quite that number in float32.
    many = np.full((1, 1001), 9999.9, np.float32)
    np.testing.assert_allclose(z_loss(many, np.array([3])), np.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", classification.SPHERICAL_LOSSES)
def test_statistics_of_hidden_states_give_the_losses_and_gradients_of_the_scores(name, x64):
    rows, hidden, labels = map(jnp.asarray, kernel())
    hyper = HYPER.get(name, {})

    def direct(rows, hidden):
        return jnp.sum(getattr(classification, name)(hidden @ rows.T, labels, **hyper))

    def short(rows, hidden):
        statistics = spherical_statistics(hidden, rows[labels], kernel_sums(rows))
        return jnp.sum(spherical_loss(name, statistics, **hyper))

    wanted, came = (jax.value_and_grad(f, (0, 1))(rows, hidden) for f in (direct, short))
    for left, right in zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-11)


def test_sums_follow_changes_of_rows_and_add_up_over_shards_of_the_classes(x64):
    rows, _, _ = kernel(1)
    changed = rows.copy()
    changed[[1, 4]] += 0.3
    came = update_kernel_sums(kernel_sums(rows), rows[[1, 4]], changed[[1, 4]])
    pieces = jax.tree.map(jnp.add, kernel_sums(changed[:3]), kernel_sums(changed[3:]))
    for left in (came, pieces):
        for a, b in zip(left, kernel_sums(changed), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_rounded_variance_is_not_negative():
    rows = np.float32(np.full((4, 2), 100.0))
    rows[0] += 1e-3
    statistics = spherical_statistics(np.float32([[1, 1], [3, -3]]), rows[:2], kernel_sums(rows))
    assert np.all(np.asarray(statistics.variance) >= 0)
    assert np.all(np.isfinite(spherical_loss("z_loss", statistics)))


def test_the_z_loss_does_not_see_shift_and_scale():
    logits, labels = drawn()
    plain = z_loss(logits, labels, a=2.0, b=0.7)
    np.testing.assert_allclose(z_loss(30 * logits - 7, labels, a=2.0, b=0.7), plain, rtol=1e-4)
    for loss in (taylor_softmax_cross_entropy, spherical_softmax_cross_entropy, squared_error):
        assert np.max(np.abs(loss(logits + 1, labels) - loss(logits, labels))) > 0.1


def test_a_sharp_z_loss_is_a_hinge():
    logits, labels = drawn(1)
    z = (logits[np.arange(6), labels] - logits.mean(-1)) / logits.std(-1)
    np.testing.assert_allclose(z_loss(logits, labels, a=1e4, b=0.8), np.maximum(0.8 - z, 0), atol=1e-4)


def test_the_z_loss_is_bounded_below():
    logits, labels = np.float32([[5, 0, 0, 0, 0]]), np.array([0])
    least = np.log1p(np.exp(1.3 * (0.4 - 2.0))) / 1.3  # the square root of C - 1 is 2
    np.testing.assert_allclose(z_loss(logits, labels, a=1.3, b=0.4), least, rtol=1e-5)
    np.testing.assert_allclose(with_gradient(z_loss, logits, labels, a=1.3, b=0.4)[1], 0, atol=1e-6)
    many, chosen = drawn(2, n=200)
    assert np.all(np.asarray(z_loss(many, chosen, a=1.3, b=0.4)) >= least)


def test_losses_are_their_formulas():
    logits, labels = drawn(3)
    taylor, square = 1 + logits + logits**2 / 2, logits**2 + 0.2
    for came, mass in (
        (taylor_softmax_cross_entropy(logits, labels), taylor),
        (spherical_softmax_cross_entropy(logits, labels, eps=0.2), square),
    ):
        np.testing.assert_allclose(came, -np.log(mass[np.arange(6), labels] / mass.sum(-1)), rtol=1e-4)
    wanted = np.sum((logits - np.eye(5)[labels]) ** 2, -1)
    np.testing.assert_allclose(squared_error(logits, labels), wanted, rtol=1e-5)


def test_a_static_mistake_is_named():
    sums = kernel_sums(np.ones((4, 3), np.float32))
    for call, named in (
        (lambda: z_loss(np.ones((2, 2), np.float32), np.array([0, 1])), "logits"),
        (lambda: spherical_statistics(np.ones((2, 4)), np.ones((2, 4)), sums), "hidden"),
        (lambda: spherical_statistics(np.ones((2, 3)), np.ones((1, 3)), sums), "target_rows"),
        (lambda: update_kernel_sums(sums, np.ones((2, 3)), np.ones((1, 3))), "new_rows"),
        (lambda: spherical_loss("z", spherical_statistics(np.ones((2, 3)), np.ones((2, 3)), sums)), "name"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
