import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import drawn, with_gradients

from reweight.losses import preference

BOTH = pytest.mark.parametrize("name", ["aot", "aot_unpaired"])


def by_hand(name, pairs, beta=0.1):
    """Losses in the order of the pairs, from ranks written out."""
    chosen, rejected, held_chosen, held_rejected = (np.asarray(field, np.float64) for field in pairs[:4])
    if name == "aot":
        left, right = chosen - rejected, held_chosen - held_rejected
    else:
        left, right = chosen - held_chosen, rejected - held_rejected
    ranks = np.argsort(np.argsort(left, kind="stable"))
    return np.logaddexp(0, -beta * (left - np.sort(right)[ranks]))


@BOTH
def test_a_pair_has_the_loss_of_its_rank(name):
    pairs = drawn(0)
    np.testing.assert_allclose(getattr(preference, name)(*pairs[:4]), by_hand(name, pairs), rtol=1e-5)


@BOTH
def test_a_single_pair_has_the_loss_of_dpo(name):
    pairs = [field[:1] for field in drawn(1)[:4]]
    np.testing.assert_allclose(
        getattr(preference, name)(*pairs, beta=0.3, label_smoothing=0.1),
        preference.dpo(*pairs, beta=0.3, label_smoothing=0.1),
        rtol=1e-6,
    )


def test_it_does_not_matter_which_rejected_answer_goes_with_which_chosen_one_when_unpaired():
    pairs, order = drawn(2), np.random.default_rng(0).permutation(8)
    swapped = (pairs[0], pairs[1][order], pairs[2], pairs[3][order])
    np.testing.assert_allclose(preference.aot_unpaired(*swapped), preference.aot_unpaired(*pairs[:4]), rtol=1e-6)
    assert not np.allclose(preference.aot(*swapped), preference.aot(*pairs[:4]))


@BOTH
def test_permuted_pairs_have_permuted_losses(name):
    pairs, order = drawn(3), np.random.default_rng(1).permutation(8)
    function = getattr(preference, name)
    np.testing.assert_allclose(function(*(field[order] for field in pairs[:4])), function(*pairs[:4])[order], rtol=1e-6)


@BOTH
def test_masked_pairs_are_not_there(name):
    pairs, mask = drawn(4), np.array([1, 0, 1, 1, 0, 1, 1, 0])
    function = getattr(preference, name)
    poisoned = [np.where(mask, field, np.nan) for field in pairs[:4]]
    losses, grads = with_gradients(lambda *four: function(*four, mask=mask), *poisoned)
    kept = mask != 0
    np.testing.assert_allclose(losses[kept], function(*(field[kept] for field in pairs[:4])), rtol=1e-6)
    assert not np.any(losses[~kept])
    for grad in grads:
        assert np.isfinite(grad).all()
        assert not np.any(grad[~kept])
    assert not np.any(function(*poisoned, mask=np.zeros(8)))


@BOTH
def test_ties_keep_their_order_and_lose_no_gradient(name):
    chosen, rejected = np.float32([-4, -4, -6, -4]), np.float32([-5, -5, -7, -5])
    held = (np.float32([-4, -8, -6, -2]), np.float32([-5, -5, -9, -5]))
    _, grads = with_gradients(lambda w, l: getattr(preference, name)(w, l, *held), chosen, rejected)
    assert np.all(np.asarray(grads[0]) < 0)
    assert np.all(np.asarray(grads[1]) > 0)
    np.testing.assert_allclose(np.sum(grads[0]), -np.sum(grads[1]), rtol=1e-5)


@BOTH
def test_the_gradient_is_that_of_the_matching_held_fixed(name):
    pairs = drawn(5)
    function = getattr(preference, name)
    _, grads = with_gradients(lambda w, l: function(w, l, *pairs[2:4]), *pairs[:2])
    step = np.float32(1e-2)
    for row in range(8):
        for side in (0, 1):
            moved = [list(pairs[:2]), list(pairs[:2])]
            for sign, two in zip((1, -1), moved, strict=True):
                two[side] = two[side] + sign * step * (np.arange(8) == row)
            plus, minus = (np.sum(np.float64(function(*two, *pairs[2:4]))) for two in moved)
            np.testing.assert_allclose((plus - minus) / (2 * step), grads[side][row], rtol=0.02, atol=2e-4)


@BOTH
def test_no_gradient_flows_through_the_reference(name):
    pairs = drawn(6)
    grads = jax.grad(lambda held: jnp.sum(getattr(preference, name)(*pairs[:2], *held)))(tuple(pairs[2:4]))
    assert not any(np.any(grad) for grad in grads)


@BOTH
def test_a_policy_that_dominates_its_reference_by_a_constant_has_equal_losses(name):
    pairs = drawn(7)
    held = (pairs[0] - 2, pairs[1]) if name == "aot" else (pairs[0] - pairs[1] - 2, np.zeros(8, np.float32))
    losses = getattr(preference, name)(*pairs[:2], *held, beta=1.0)
    np.testing.assert_allclose(losses, np.logaddexp(0, -2.0), rtol=1e-4)


@BOTH
def test_all_axes_are_the_batch(name):
    pairs = drawn(8)
    grid = [np.reshape(field, (2, 4)) for field in pairs[:4]]
    function = getattr(preference, name)
    np.testing.assert_allclose(function(*grid).reshape(-1), function(*pairs[:4]), rtol=1e-6)


def test_a_static_mistake_is_named():
    with pytest.raises(ValueError, match="argument `mask`"):
        preference.aot(*drawn()[:4], mask=np.ones(3))
    with pytest.raises(ValueError, match="argument `label_smoothing`"):
        preference.aot_unpaired(*drawn()[:4], label_smoothing=0.7)
