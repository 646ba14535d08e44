import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import arrays, assert_agrees, assert_close, drawn, golden, with_gradients

from reweight.losses import preference

FOUR = ("pi_w", "pi_l", "ref_w", "ref_l")
GRADIENTS = ("grad_pi_w", "grad_pi_l")
OFFICIAL = [case for case in golden("preference_sppo") if case["params"]["kind"] == "sppo"]
SINGLE = [case for case in golden("preference_sppo") if case["params"]["kind"] == "sppo_single"]
HALVED = [case for case in golden("preference_rdpo_dpop") if case["params"]["name"] == "sppo_hard_halved"]
LOSSES = ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down")


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: str(case["params"]["beta"]))
def test_sppo_agrees_with_the_official_code(case, x64):
    function = functools.partial(preference.sppo, beta=case["params"]["beta"])
    assert_agrees(case, function, *FOUR, "p_win", "p_lose", gradients=GRADIENTS)


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: str(case["params"]["beta"]))
def test_sppo_of_a_single_comparison_has_win_rates_that_add_up_to_one(case, x64):
    (rate,) = arrays(case, "p_pair")

    def losses(*four):
        return preference.sppo(*four, rate, 1 - rate, beta=case["params"]["beta"])

    assert_agrees(case, losses, *FOUR, gradients=GRADIENTS)


@pytest.mark.parametrize("case", HALVED, ids=lambda case: str(case["params"]["beta"]))
def test_sppo_with_hard_labels_agrees_with_a_peer_that_halves_it(case, x64):
    beta = case["params"]["beta"]
    assert_agrees(case, lambda *four: 0.5 * preference.sppo_hard(*four, beta=beta), *FOUR, gradients=GRADIENTS)
    assert_agrees(case, lambda *four: preference.sppo(*four, 1.0, 0.0, beta=beta), *FOUR, gradients=GRADIENTS)


def test_values_at_the_reference():
    pairs = drawn(0)
    same = (*pairs[:2], *pairs[:2])
    for name, value in (
        ("nca_pair", 2 * np.log(2)),
        ("bco_pair", 2 * np.log(2)),
        ("sppo_hard", 1 / (2 * 0.3**2)),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
    ):
        np.testing.assert_allclose(getattr(preference, name)(*same, beta=0.3), value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_of_the_prompt_matters(name):
    pairs = drawn(1)
    function = functools.partial(getattr(preference, name), beta=0.2)
    moved = function(pairs[0] + 2, pairs[1] + 2, *pairs[2:4])
    assert np.max(np.abs(moved - function(*pairs[:4]))) > 0.01


def test_apo_zero_raises_chosen_answers_and_apo_down_lowers_them_where_a_pair_is_right():
    pairs = [np.float32([-3.0, -8.0]), np.float32([-9.0, -20.0]), np.float32([-5.0, -5.0]), np.float32([-5.0, -5.0])]
    for name, up in (("apo_zero", True), ("apo_down", False)):
        function = functools.partial(getattr(preference, name), beta=0.3)
        _, (chosen, rejected, *_) = with_gradients(function, *pairs)
        assert np.all((chosen < 0) == up)
        assert np.all(rejected > 0)


def test_no_gradient_flows_through_reference_or_win_rates():
    pairs = drawn(3)
    rates = (np.float32(np.linspace(0, 1, 8)), np.float32(np.linspace(1, 0, 8)))
    grads = jax.grad(
        lambda reference, rates: jnp.sum(preference.sppo(*pairs[:2], *reference, *rates, beta=0.1)), argnums=(0, 1)
    )(pairs[2:4], rates)
    assert not any(np.any(grad) for grad in jax.tree.leaves(grads))
    for name in LOSSES:
        grads = jax.grad(lambda reference, name=name: jnp.sum(getattr(preference, name)(*pairs[:2], *reference)))(
            pairs[2:4]
        )
        assert not any(np.any(grad) for grad in grads), name


@pytest.mark.parametrize("name", LOSSES)
def test_log_ratios_of_ten_thousand_give_finite_losses_and_gradients(name):
    pairs = [np.float32([1e4, -1e4, 1e4, -1e4]), np.float32([1e4, 1e4, -1e4, -1e4]), np.zeros(4), np.zeros(4)]
    losses, grads = with_gradients(lambda w, l: getattr(preference, name)(w, l, *pairs[2:]), *pairs[:2])
    assert np.isfinite(losses).all()
    assert all(np.isfinite(grad).all() for grad in grads)


def test_numbers_by_hand(x64):
    half, quarter = 1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.25))
    given = (jnp.float64(-3.0), jnp.float64(-6.5), jnp.float64(-5.0), jnp.float64(-5.5))
    assert_close(preference.apo_zero(*given, beta=0.25), 1 - half + quarter)
    assert_close(preference.apo_down(*given, beta=0.25), half + 1 - 1 / (1 + np.exp(-0.75)))
    assert_close(preference.bco_pair(*given, beta=0.25), -np.log(half) - np.log(1 - quarter))


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda p: preference.sppo(*p[:4], p[0][:3], p[1]), "chosen_win_rate"),
        (lambda p: preference.sppo(*p[:4], p[0], p[1] > 0), "rejected_win_rate"),
        (lambda p: preference.apo_zero(*p[:3], p[3][:, None]), "reference_rejected"),
        (lambda p: preference.sppo_hard(*p[:4], beta=0.0), "beta"),
    ],
)
def test_a_static_mistake_is_named(run, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        run(drawn())
