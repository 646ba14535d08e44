import functools
import itertools
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import weights

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "doubly_robust_at.json").read_text())["cases"]
N = 7

VALUES = {"kl": weights.kl_dro_value, "cvar": weights.cvar_value, "chi2": weights.chi2_dro_value}
WEIGHTS = {"kl": weights.kl_dro_weights, "cvar": weights.cvar_weights, "chi2": weights.chi2_dro_weights}
HYPERPARAMETER = {"kl": "temperature", "cvar": "alpha", "chi2": "radius"}
# The hyperparameter at which a scheme is the plain mean, and one at which it is the maximum.
ENDS = {"kl": (np.inf, 0.0), "cvar": (1.0, 1e-6), "chi2": (0.0, np.inf)}
every = pytest.mark.parametrize("name", VALUES)
losses_with_ties = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 0.5, 1.0, 3.0, 3.0]), min_size=N, max_size=N)
losses_at_large = st.lists(st.floats(-50, 50, width=32), min_size=N, max_size=N)


@functools.cache
def compiled(name):
    """Weights, value and gradient of the value, with the hyperparameter traced."""

    def run(losses, hyperparameter, mask):
        chosen = {HYPERPARAMETER[name]: hyperparameter, "mask": mask}
        value, grad = jax.value_and_grad(lambda x: VALUES[name](x, **chosen))(losses)
        return WEIGHTS[name](losses, **chosen), value, grad

    return jax.jit(run)


def run(name, losses, hyperparameter, mask=None):
    mask = np.ones(np.shape(losses), bool) if mask is None else mask
    result = compiled(name)(jnp.asarray(losses), jnp.asarray(hyperparameter, jnp.result_type(float)), mask)
    return jax.tree.map(np.asarray, result)


def kl_reference(losses, temperature):
    scaled = np.exp((losses - losses.max()) / temperature)
    return scaled / scaled.mean(), losses.max() + temperature * np.log(scaled.mean())


def cvar_reference(losses, alpha):
    """Fills the cap of 1 / (alpha n) from the top, tie by tie."""
    left, w = float(len(losses)), np.zeros(len(losses))
    for level in sorted(set(losses), reverse=True):
        tied = losses == level
        w[tied] = min(left / tied.sum(), 1 / alpha)
        left -= w[tied].sum()
    return w, np.mean(w * losses)


def chi2_reference(losses, radius):
    """The threshold by bisection on the variance of the weights."""
    gaps = losses - losses.max()
    spread = -gaps.min()
    if radius == 0 or spread == 0:
        w = np.ones(len(losses))
    elif len(losses) / np.sum(gaps == 0) - 1 <= radius:
        w = (gaps == 0) / np.mean(gaps == 0)
    else:
        low, high = -1e6 * spread, 0.0
        for _ in range(200):
            middle = (low + high) / 2
            w = np.maximum(gaps - middle, 0)
            low, high = (low, middle) if np.mean((w / w.mean() - 1) ** 2) > radius else (middle, high)
        w = np.maximum(gaps - low, 0)
        w = w / w.mean()
    return w, np.mean(w * losses)


REFERENCES = {"kl": kl_reference, "cvar": cvar_reference, "chi2": chi2_reference}
STRENGTHS = {"kl": (0.05, 1.0, 30.0), "cvar": (0.05, 1 / N, 0.3, 3 / N, 0.95), "chi2": (0.01, 0.5, 1.5, 3.0, 5.9, 9.0)}


@pytest.mark.parametrize("case", GOLDEN[:5], ids=range(5))
def test_kl_dro_agrees_with_the_golden_numbers(case, x64):
    losses = jnp.array(case["inputs"]["losses"])
    mask = np.array(case["inputs"].get("mask", np.ones(len(losses))))
    w, value, grad = run("kl", losses, case["params"]["r"], mask)
    np.testing.assert_allclose(w / mask.sum(), case["expected"]["weights"], rtol=1e-9)
    np.testing.assert_allclose(value, case["expected"]["value"], rtol=1e-9)
    np.testing.assert_allclose(grad, case["expected"]["weights"], rtol=1e-9)


@every
@hypothesis.given(losses=st.one_of(losses_with_ties, losses_at_large), choice=st.integers(0, 5))
def test_weights_and_value_are_those_of_an_independent_solution(name, losses, choice):
    strength = STRENGTHS[name][choice % len(STRENGTHS[name])]
    with jax.enable_x64(True):
        losses = np.array(losses)
        w, value, grad = run(name, losses, strength)
        expected, expected_value = REFERENCES[name](losses, strength)
        np.testing.assert_allclose(w, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(value, expected_value, rtol=1e-8, atol=1e-7)
        np.testing.assert_allclose(grad, expected / N, rtol=1e-6, atol=1e-7)


@every
@hypothesis.given(losses=losses_at_large, masked=st.sets(st.integers(0, N - 1), max_size=N), choice=st.integers(0, 5))
def test_the_gradient_of_the_value_is_the_weights(name, losses, masked, choice):
    mask = np.array([i not in masked for i in range(N)])
    w, value, grad = run(name, np.float32(losses), STRENGTHS[name][choice % len(STRENGTHS[name])], mask)
    np.testing.assert_allclose(grad, w / max(mask.sum(), 1), rtol=1e-6)
    assert np.isfinite(value)


@every
@hypothesis.given(losses=losses_with_ties)
def test_one_end_is_the_plain_mean(name, losses):
    losses = np.float32(losses)
    w, value, _ = run(name, losses, ENDS[name][0])
    np.testing.assert_allclose(w, 1, rtol=1e-6)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-6, atol=1e-6)


@every
@hypothesis.given(losses=losses_with_ties)
def test_the_other_end_is_the_maximum_shared_by_ties(name, losses):
    losses = np.float32(losses)
    w, value, _ = run(name, losses, ENDS[name][1])
    top = losses == losses.max()
    np.testing.assert_allclose(w, top / top.mean(), rtol=1e-6)
    assert value == losses.max()


@every
@hypothesis.given(losses=losses_at_large)
def test_the_value_lies_between_mean_and_maximum_and_is_monotone(name, losses):
    losses = np.float32(losses)
    values = [run(name, losses, strength)[1] for strength in STRENGTHS[name]]
    slack = 1e-5 * (1 + np.abs(losses).max())
    assert losses.mean() - slack <= min(values)
    assert max(values) <= losses.max() + slack
    falling = values if name != "chi2" else values[::-1]
    assert all(a >= b - slack for a, b in itertools.pairwise(falling))


@every
def test_a_constant_added_to_all_losses_moves_the_value_and_no_weight(name):
    losses = np.array([0.5, 2.0, -1.0, 0.25, 4.0, 1.0, 1.5], np.float32)
    strength = STRENGTHS[name][1]
    w, value, _ = run(name, losses, strength)
    moved, moved_value, _ = run(name, losses + 64, strength)
    np.testing.assert_allclose(moved, w, rtol=1e-5)
    np.testing.assert_allclose(moved_value, value + 64, rtol=1e-6)


@every
def test_one_example_counts_fully(name):
    w, value, _ = run(name, np.float32([3.0]), STRENGTHS[name][0])
    assert w == 1
    assert value == 3


@every
def test_equal_losses_weigh_equally(name):
    for strength in (*STRENGTHS[name], *ENDS[name]):
        w, value, _ = run(name, np.full(N, 2.5, np.float32), strength)
        np.testing.assert_allclose(w, 1, rtol=1e-6)
        np.testing.assert_allclose(value, 2.5, rtol=1e-6)


@every
def test_losses_of_ten_thousand_are_no_trouble(name):
    losses = np.float32([1e4, -1e4, 9999.0, 0, 1, 2, 1e4])
    for strength in (*STRENGTHS[name], *ENDS[name]):
        w, value, grad = run(name, losses, strength)
        assert np.all(np.isfinite(w))
        assert np.isfinite(value)
        np.testing.assert_allclose(w.mean(), 1, rtol=1e-5)
        np.testing.assert_allclose(grad, w / N, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1e-6, 1e-2, 1.0, 1e3, 1e6, 1e12, 1e38, np.inf])
def test_kl_value_keeps_its_digits_at_every_temperature(temperature):
    losses = np.float32([0.1, 0.7, 0.4, 0.2, 0.6, 0.3, 0.5])
    _, value, _ = run("kl", losses, temperature)
    exact = losses.astype(np.float64)
    # Beyond 1e6 the float64 formula itself loses its digits; the series about the mean does not.
    expected = (
        kl_reference(exact, temperature)[1] if temperature < 1e4 else exact.mean() + exact.var() / 2 / temperature
    )
    np.testing.assert_allclose(value, expected, rtol=3e-7)


def test_kl_value_falls_with_temperature_by_the_divergence(x64):
    losses = jnp.array([0.3, 2.0, 0.7, 5.1])
    value = functools.partial(weights.kl_dro_value, losses)
    for temperature in (0.5, 2.0, 50.0):
        step = 1e-6 * temperature
        numeric = (value(temperature=temperature + step) - value(temperature=temperature - step)) / (2 * step)
        exact = jax.grad(lambda t: value(temperature=t))(temperature)
        np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-8)


def test_kl_value_has_second_derivatives(x64):
    losses = jnp.array([0.3, 2.0, 0.7, 1.1])
    direct = jax.jit(jax.hessian(lambda x: 0.8 * (jax.nn.logsumexp(x / 0.8) - jnp.log(4.0))))(losses)
    np.testing.assert_allclose(jax.jit(jax.hessian(lambda x: weights.kl_dro_value(x, temperature=0.8)))(losses), direct)


@hypothesis.given(losses=losses_at_large, radius=st.floats(0.01, 8))
def test_chi2_weights_fill_the_ball_and_never_leave_it(losses, radius):
    with jax.enable_x64(True):
        losses = np.array(losses)
        w, _, _ = run("chi2", losses, radius)
        reach = N / np.sum(losses == losses.max()) - 1
        expected = 0 if np.ptp(losses) == 0 else min(radius, reach)
        np.testing.assert_allclose(np.mean((w - 1) ** 2), expected, rtol=1e-6, atol=1e-9)
        sample = weights.effective_sample_size(w)
        assert sample >= N / (1 + radius) * (1 - 1e-9)


def test_unclipped_chi2_value_is_the_mean_plus_standard_deviations():
    losses = np.float32([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    _, value, _ = run("chi2", losses, 0.2)
    np.testing.assert_allclose(value, losses.mean() + np.sqrt(0.2) * losses.std(), rtol=1e-6)


def test_chi2_tells_apart_losses_that_differ_in_their_last_digits():
    losses = np.float32([1.0, np.nextafter(np.float32(1), np.float32(0)), -1e6, 0, 0, 0, 0])
    w, _, _ = run("chi2", losses, 0.1)
    assert np.mean((w - 1) ** 2) <= 0.1 * (1 + 1e-4)
    near = np.array([0.0, -1e-25, -1.0, -1.0, -1.0, -1.0, -1.0], np.float32)
    w, _, _ = run("chi2", near, 2.5)
    assert np.mean((w - 1) ** 2) <= 2.5 * (1 + 1e-6)


def test_cvar_of_a_whole_number_of_examples_is_the_mean_of_the_worst():
    losses = np.float32([5, 1, 4, 2, 3, 0, 6])
    w, value, _ = run("cvar", losses, 3 / 7)
    np.testing.assert_allclose(w, 7 / 3 * (losses >= 4), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(value, 5, rtol=1e-6)


def test_schemes_reweigh_a_large_batch_as_the_formulas_do():
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=20_000).astype(np.float32)
    for name, strength in (("kl", 0.7), ("cvar", 0.05), ("chi2", 3.0)):
        w, _, _ = run(name, losses, strength)
        expected, _ = REFERENCES[name](losses.astype(np.float64), strength)
        np.testing.assert_allclose(w, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(w.mean(), 1, rtol=1e-5)


def test_the_compositional_normaliser_agrees_with_the_golden_numbers(x64):
    case = GOLDEN[5]
    scheme = weights.compositional_kl_dro(temperature=case["params"]["r"], step_size=case["params"]["eta"])
    state = scheme.init()
    for losses, log_u, expected in zip(
        case["inputs"]["losses_by_step"],
        case["expected"]["log_u_by_step"],
        case["expected"]["weights_by_step"],
        strict=True,
    ):
        w, state = scheme.update(state, jnp.array(losses))
        np.testing.assert_allclose(state.log_normalizer, log_u, rtol=1e-9)
        np.testing.assert_allclose(w / len(losses), expected, rtol=1e-9)


def test_compositional_weights_at_step_size_one_are_those_of_kl_dro():
    scheme = weights.compositional_kl_dro(temperature=0.5, step_size=1.0)
    state = scheme.init()
    for seed in range(3):
        losses = np.random.default_rng(seed).exponential(size=9).astype(np.float32)
        mask = np.arange(9) < 7
        w, state = scheme.update(state, losses, mask=mask)
        np.testing.assert_allclose(w, run("kl", losses, 0.5, mask)[0], rtol=1e-5)


def test_the_compositional_estimate_is_less_biased_than_the_batch_softmax():
    rng = np.random.default_rng(1)
    data = (2 * rng.normal(size=4000)).astype(np.float32)
    target = np.mean(np.asarray(weights.kl_dro_weights(data)) * data)
    scheme = weights.compositional_kl_dro(step_size=0.02)
    update = jax.jit(lambda state, batch: scheme.update(state, batch))
    state, running, batches = scheme.init(), [], []
    for _ in range(600):
        batch = rng.choice(data, 4)
        w, state = update(state, batch)
        running.append(np.mean(np.asarray(w) * batch))
        batches.append(np.mean(run("kl", batch, 1.0)[0] * batch))
    assert abs(np.mean(running[200:]) - target) < 0.5 * abs(np.mean(batches) - target)


def test_no_compositional_weight_exceeds_the_batch_size_over_the_step_size():
    scheme = weights.compositional_kl_dro(temperature=0.1, step_size=0.25)
    _, state = scheme.update(scheme.init(), jnp.zeros(4))
    w, _ = scheme.update(state, jnp.array([1e4, 0.0, 0.0, 0.0]))
    assert np.max(w) <= 4 / 0.25 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: weights.kl_dro_weights(x, temperature=-1.0), "temperature"),
        (lambda x: weights.kl_dro_value(x, temperature=float("nan")), "temperature"),
        (lambda x: weights.kl_dro(temperature=-0.1), "temperature"),
        (lambda x: weights.compositional_kl_dro(temperature=0), "temperature"),
        (lambda x: weights.compositional_kl_dro(step_size=0.0), "step_size"),
        (lambda x: weights.cvar_weights(x, alpha=0), "alpha"),
        (lambda x: weights.cvar_value(x, alpha=1.5), "alpha"),
        (lambda x: weights.cvar_dro(alpha="0.5"), "alpha"),
        (lambda x: weights.chi2_dro_weights(x, radius=-1), "radius"),
        (lambda x: weights.chi2_dro(radius=-1), "radius"),
        (lambda x: weights.chi2_dro_value(x, mask=np.ones(3)), "mask"),
        (lambda x: weights.kl_dro_weights(x.astype(int)), "losses"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(np.ones(4, np.float32))
