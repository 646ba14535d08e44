import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled import arrays, assert_matches, drawn, golden, softmax, with_gradient

from reweight.losses import classification

*LDR, FIRST, SECOND, _ = golden("ldr_losses")
loss = jax.jit(classification.ldr_kl, static_argnames="normalize")
KEYS = [key for key in LDR[2]["expected"] if key.startswith("per_example")]


def scaled(found, rows):
    """The gradient of the mean, as it is stored."""
    return found[0], found[1] / rows


@pytest.mark.parametrize("case", LDR[:2], ids=lambda case: f"lam {case['params']['lam']}")
def test_normalised_losses_agree_with_the_official_code(case, x64):
    hyper = {name: case["params"][name] for name in ("lam", "margin", "normalize")}
    found = with_gradient(loss, *arrays(case), **hyper)
    assert_matches(scaled(found, len(found[0])), case["expected"]["per_example"], case["expected"]["grad_logits"])


@pytest.mark.parametrize("key", KEYS)
def test_losses_of_the_logits_agree_with_the_golden_numbers(key, x64):
    lam, margin = map(float, re.findall(r"[\d.]+", key))
    found = with_gradient(loss, *arrays(LDR[2]), lam=lam, margin=margin)
    expected = LDR[2]["expected"]
    assert_matches(scaled(found, 4), expected[key], expected[key.replace("per_example", "grad_logits")])


@pytest.mark.parametrize("case", [FIRST, SECOND], ids=["l1", "softplus"])
def test_temperatures_and_losses_agree_with_the_official_code_over_three_steps(case, x64):
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    adaptive = classification.aldr_kl(
        params["n_examples"],
        lam=params["lam0"],
        alpha=params["alpha"],
        margin=params["margin"],
        normalize="softplus_mean" if params["softplus"] else "l1_mean",
    )
    state = adaptive.init()
    for step in range(3):
        logits, labels = (jnp.array(inputs[f"{name}_by_step"][step]) for name in ("logits", "labels"))
        signals = {"labels": labels, "indices": jnp.array(inputs["indices"])}
        losses, pullback, new = jax.vjp(
            lambda x, state=state, signals=signals: adaptive.update(state, logits=x, **signals), logits, has_aux=True
        )
        np.testing.assert_allclose(np.mean(losses), expected["mean_by_step"][step], rtol=1e-9, atol=1e-11)
        (grad,) = pullback(jnp.full(3, 1 / 3))
        np.testing.assert_allclose(grad, expected["grad_logits_by_step"][step], rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(new, expected["lambda_table_by_step"][step], rtol=1e-10)
        state = new


def test_at_one_it_is_cross_entropy_less_log_c():
    logits, labels = drawn()
    came, wanted = (with_gradient(f, logits, labels) for f in (loss, classification.cross_entropy))
    np.testing.assert_allclose(came[0], wanted[0] - np.log(5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(came[1], wanted[1], rtol=1e-5, atol=1e-7)


def test_from_the_largest_difference_to_the_mean_one():
    logits, labels = drawn(1)
    ahead = logits - logits[np.arange(6), labels][:, None] + 0.3 * (np.arange(5) != labels[:, None])
    np.testing.assert_allclose(loss(logits, labels, lam=1e-4, margin=0.3), ahead.max(-1), atol=1e-3)
    # In float32 too: the logarithm of a mean of exponentials near one would have lost all digits.
    np.testing.assert_allclose(loss(logits, labels, lam=1e7, margin=0.3), ahead.mean(-1), rtol=1e-4)
    every = [loss(logits, labels, lam=lam, margin=0.3) for lam in (0.1, 1.0, 10.0, 100.0)]
    assert np.all(np.diff(every, axis=0) < 0)


def test_it_is_the_worst_distribution_of_the_label_at_a_price():
    logits, labels = drawn(2)
    ahead = logits - logits[np.arange(6), labels][:, None]
    worst = softmax(ahead / 0.7)
    value = np.sum(worst * (ahead - 0.7 * np.log(5 * worst)), -1)
    np.testing.assert_allclose(loss(logits, labels, lam=0.7), value, rtol=1e-5)
    other = np.random.default_rng(0).dirichlet(np.ones(5), 6)
    assert np.all(np.sum(other * (ahead - 0.7 * np.log(5 * other)), -1) < value)


def test_what_a_shift_and_a_scale_of_the_logits_change():
    logits, labels = drawn(3)
    np.testing.assert_allclose(loss(logits + 7, labels), loss(logits, labels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        loss(9 * logits, labels, normalize="l1_mean"), loss(logits, labels, normalize="l1_mean"), rtol=1e-5
    )
    for normalize in ("l1_mean", "softplus_mean"):
        plain = loss(logits, labels, normalize=normalize)
        assert np.max(np.abs(loss(logits + 7, labels, normalize=normalize) - plain)) > 0.1


@pytest.mark.parametrize("normalize", ["none", "l1_mean", "softplus_mean"])
@pytest.mark.parametrize("value", [0.0, -1e4, 1e4])
def test_equal_logits_are_finite_under_every_normalisation(normalize, value):
    values, grad = with_gradient(loss, np.full((1, 5), value, np.float32), np.array([2]), normalize=normalize)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(grad))


def signals(seed=0, n=6, **more):
    logits, labels = drawn(seed, n)
    return {"logits": logits, "labels": labels, "indices": np.arange(n)} | more


def test_an_example_keeps_a_temperature_of_its_own():
    adaptive = classification.aldr_kl(6, lam=2.0, normalize="none")
    given = signals()
    given["logits"] = given["logits"] * np.float32([0, 0.1, 0.5, 1, 2, 50])[:, None]
    _, state = adaptive.update(adaptive.init(), **given)
    np.testing.assert_allclose(state[0], 2.0, rtol=1e-6)  # nothing is known of it
    np.testing.assert_allclose(state[5], 1.0, rtol=1e-2)  # all is: lam (1 - 1/alpha)
    assert np.all(np.diff(state) < 0)
    part = {name: array[2:4] for name, array in given.items()}
    _, after = adaptive.update(state, **part)
    assert np.all((np.asarray(after) == np.asarray(state)) == (np.arange(6) // 2 != 1))


def test_the_temperature_comes_first_and_carries_no_gradient():
    adaptive, given = classification.aldr_kl(6, lam=2.0), signals(1)
    temperatures, _ = adaptive.statistics(adaptive.init(), **given)
    rest = {name: given[name] for name in ("labels", "indices")}
    _, pullback, _ = jax.vjp(
        lambda x: adaptive.update(adaptive.init(), logits=x, **rest), jnp.asarray(given["logits"]), has_aux=True
    )
    for row in range(6):
        _, grad = with_gradient(
            classification.ldr_kl,
            given["logits"][[row]],
            given["labels"][[row]],
            lam=temperatures[row],
            margin=0.1,
            normalize="l1_mean",
        )
        np.testing.assert_allclose(pullback(jnp.ones(6))[0][row], grad[0], rtol=1e-5, atol=1e-6)


def test_temperatures_that_hardly_fall_give_ldr_kl():
    given = signals(2)
    adaptive = classification.aldr_kl(6, lam=2.0, alpha=1e6, normalize="none")
    came, state = adaptive.update(adaptive.init(), **given)
    np.testing.assert_allclose(state, 2.0, rtol=1e-5)
    wanted = classification.ldr_kl(given["logits"], given["labels"], lam=2.0, margin=0.1)
    np.testing.assert_allclose(came, wanted, rtol=1e-4, atol=1e-4)


def test_an_index_outside_of_the_table_counts_as_new_and_is_not_stored():
    adaptive, given = classification.aldr_kl(6), signals(3)
    _, state = adaptive.update(adaptive.init(), **given)
    outside = given | {"indices": np.array([-1, 6, 100, 3, 4, 5])}
    came, after = adaptive.update(state, **outside)
    fresh, _ = adaptive.update(adaptive.init(), **given)
    np.testing.assert_allclose(came[:3], fresh[:3], rtol=1e-6)
    assert np.array_equal(after[:3], state[:3])


def test_a_static_mistake_is_named():
    for call, named in (
        (lambda: classification.aldr_kl(0), "num_examples"),
        (lambda: classification.aldr_kl(6, alpha=1.0), "alpha"),
        (lambda: classification.aldr_kl(6, lam=0.0), "lam"),
        (lambda: classification.aldr_kl(6, normalize="l2"), "normalize"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
