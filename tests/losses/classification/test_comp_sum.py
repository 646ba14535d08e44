import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled import arrays, assert_matches, drawn, golden, softmax, with_gradient

from reweight.losses import adversarial, classification

*LOSSES, GUARANTEES, SMOOTH = golden("comp_sum_losses")
TAUS = (0.0, 0.5, 1.0, 1.5, 1.7, 2.0, 3.0)
loss = jax.jit(classification.comp_sum_loss)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"rho {case['params']['rho']}")
def test_losses_agree_with_the_golden_numbers(case, x64):
    for tau in TAUS:
        found = with_gradient(loss, *arrays(case), tau=tau, **case["params"])
        expected = case["expected"]
        assert_matches(found, expected[f"tau{tau}"], expected[f"grad_logits_tau{tau}_sum"])


def test_calibration_and_bound_agree_with_the_golden_numbers(x64):
    beta, excess = (jnp.array(GUARANTEES["inputs"][name]) for name in ("beta", "excess"))
    for tau in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        hyper = {"tau": tau, "num_classes": GUARANTEES["params"]["n_classes"]}
        for function, argument, name in (
            (classification.comp_sum_calibration, beta, "calibration"),
            (classification.comp_sum_bound, excess, "bound"),
        ):
            expected = GUARANTEES["expected"][f"{name}_tau{tau}"]
            np.testing.assert_allclose(function(argument, **hyper), expected, rtol=1e-8, atol=1e-11)


def test_at_one_it_is_cross_entropy_and_near_one_it_is_near_it():
    logits, labels = drawn()
    wanted = with_gradient(classification.cross_entropy, logits, labels)
    for tau in (1.0, 1 - 1e-6, 1 + 1e-6):
        for came, expected in zip(with_gradient(loss, logits, labels, tau=tau), wanted, strict=True):
            np.testing.assert_allclose(came, expected, rtol=3e-5, atol=1e-7)


def test_the_powers_are_those_of_the_table():
    logits, labels = drawn(1)
    p = softmax(logits)[np.arange(len(labels)), labels]
    for tau, wanted in ((0.0, 1 / p - 1), (1.7, (1 - p**0.7) / 0.7), (2.0, 1 - p)):
        np.testing.assert_allclose(loss(logits, labels, tau=tau), wanted, rtol=1e-4)


def test_the_temperature_divides_the_logits_and_nothing_else():
    logits, labels = drawn(2)
    for tau in (0.0, 1.0, 1.5):
        np.testing.assert_allclose(loss(logits, labels, tau=tau, rho=0.5), loss(2 * logits, labels, tau=tau), rtol=1e-5)


def test_every_power_orders_examples_as_cross_entropy_does():
    logits, labels = drawn(3, n=40)
    order = np.argsort(classification.cross_entropy(logits, labels))
    for tau in TAUS:
        assert np.all(np.diff(np.asarray(loss(logits, labels, tau=tau))[order]) >= 0)


def test_a_larger_tau_gives_less_to_hopeless_examples():
    slopes = [abs(float(with_gradient(loss, np.float32([[0, 6]]), np.array([0]), tau=t)[1][0, 0])) for t in TAUS]
    assert np.all(np.diff(slopes) < 0)


def test_sure_and_right_keeps_its_digits():
    # The probability of the other class is e^-25, which one minus a probability in float32 has no digits for.
    for tau in TAUS:
        np.testing.assert_allclose(loss(np.float32([[25, 0]]), np.array([0]), tau=tau)[0], np.exp(-25), rtol=1e-5)


@pytest.mark.parametrize("tau", TAUS[:-1])
def test_the_least_loss_for_an_error_is_the_one_that_the_calibration_says(tau, x64):
    # Two classes with probabilities (1 + b)/2 and (1 - b)/2: to predict the wrong one costs b in error. The loss of the
    # best scores among those that do, equal ones, less that of the best of all, is the least excess.
    positive = jnp.linspace(0.0, 12.0, 20001)
    scores = jnp.concatenate([-positive, positive])
    logits = jnp.stack([scores, -scores], -1)
    both = [loss(logits, jnp.full(scores.shape, label), tau=tau) for label in (0, 1)]
    for beta in (0.1, 0.5, 0.9):
        expected = (1 + beta) / 2 * both[0] + (1 - beta) / 2 * both[1]
        least = jnp.min(jnp.where(scores <= 0, expected, jnp.inf)) - jnp.min(expected)
        calibrated = classification.comp_sum_calibration(jnp.array(beta), tau=tau, num_classes=2)
        np.testing.assert_allclose(least, calibrated, rtol=2e-4)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.999999, 1.0, 1.000001, 1.5, 1.99, 2.0, 3.0])
def test_the_bound_is_no_less_than_the_inverse_of_the_calibration(tau):
    beta = np.linspace(0, 1, 21, dtype=np.float32)
    for classes in (2, 10):
        excess = classification.comp_sum_calibration(beta, tau=tau, num_classes=classes)
        assert excess[0] == 0
        assert np.all(np.diff(excess) > 0)
        assert np.all(classification.comp_sum_bound(excess, tau=tau, num_classes=classes) >= beta * (1 - 1e-4) - 1e-3)


def test_the_calibration_of_the_sum_exponential_loss_is_known(x64):
    beta = jnp.linspace(0, 1, 11)
    came = classification.comp_sum_calibration(beta, tau=0.0, num_classes=7)
    np.testing.assert_allclose(came, 1 - np.sqrt(1 - beta**2), atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.96, 0.999, 1.0, 1.02, 1.5, 1.9])
def test_the_calibration_of_a_small_error_is_a_parabola_and_keeps_its_digits(tau):
    beta = np.float32([1e-4, 1e-5, 1e-7])
    scale = (2 if tau < 1 else 4) ** (1 - tau) / (2 - tau)
    came = classification.comp_sum_calibration(beta, tau=tau, num_classes=4)
    np.testing.assert_allclose(came, scale * np.float64(beta) ** 2 / 2, rtol=1e-5)


def test_the_calibration_is_continuous_at_one(x64):
    beta = jnp.linspace(0, 1, 11)
    middle = classification.comp_sum_calibration(beta, tau=1.0, num_classes=4)
    for step in (1e-9, 1e-6, 1e-5, 1e-4):
        for tau in (1 - step, 1 + step):
            came = classification.comp_sum_calibration(beta, tau=tau, num_classes=4)
            np.testing.assert_allclose(came, middle, atol=2 * step)


# -- against attacks


def test_the_smooth_adversarial_loss_agrees_with_the_golden_numbers(x64):
    inputs, expected = SMOOTH["inputs"], SMOOTH["expected"]
    logits, attacked = jnp.array(inputs["logits"]), jnp.array(inputs["logits_adv"])
    hyper = {name: SMOOTH["params"][name] for name in ("tau", "rho", "nu")}
    losses, pullback = jax.vjp(
        lambda x, y: adversarial.smooth_comp_sum_loss(x, y, jnp.array(inputs["labels"]), **hyper), logits, attacked
    )
    np.testing.assert_allclose(losses, expected["smooth_adv_comp_sum"], rtol=1e-9)
    for came, name in zip(pullback(jnp.ones(3)), ("logits", "logits_adv"), strict=True):
        np.testing.assert_allclose(came, expected[f"grad_{name}_sum"], rtol=1e-8, atol=1e-10)


def test_the_shift_is_that_of_the_margins_and_without_weight_the_loss_is_clean():
    (logits, labels), (attacked, _) = drawn(4), drawn(5)
    margins = [x[np.arange(6), labels][:, None] - x for x in (logits, attacked)]
    shift = np.linalg.norm(margins[1] - margins[0], axis=-1)
    np.testing.assert_allclose(adversarial.margin_shift(logits, attacked, labels), shift, rtol=1e-5)
    # What moves all scores alike moves no margin.
    np.testing.assert_allclose(adversarial.margin_shift(logits, logits + 3, labels), 1e-6, atol=1e-5)
    hyper = {"tau": 1.5, "rho": 2.0}
    clean = classification.comp_sum_loss(logits, labels, **hyper)
    for nu in (0.0, 0.7):
        came = adversarial.smooth_comp_sum_loss(logits, attacked, labels, nu=nu, **hyper)
        np.testing.assert_allclose(came, clean + nu * shift, rtol=1e-5)


def test_an_attack_finds_margins_that_move_far_and_the_loss_bounds_those_of_all_attacks():
    weights, (x, labels) = np.random.default_rng(6).normal(size=(4, 5)).astype(np.float32), drawn(7, classes=4)
    labels, still = labels % 5, x @ weights
    attacks = [
        adversarial.pgd_attack(
            jax.random.key(seed),
            lambda x: adversarial.margin_shift(still, x @ weights, labels),
            x,
            eps=0.3,
            step_size=0.1,
            steps=steps,
            clip=None,
        )
        for seed, steps in ((0, 20), *((seed, 0) for seed in range(8)))
    ]
    shifts = [adversarial.margin_shift(still, attacked @ weights, labels) for attacked in attacks]
    assert np.all(shifts[0] >= np.max(shifts[1:], axis=0))
    bound = adversarial.smooth_comp_sum_loss(still, attacks[0] @ weights, labels)
    for attacked in attacks:
        assert np.all(bound >= classification.comp_sum_loss(attacked @ weights, labels))
