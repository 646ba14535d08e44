import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import weights
from reweight.losses import survival

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "discrete_hazard.json").read_text())
HAZARDS, BUCKETS, TWO_TERMS = GOLDEN["cases"][:2], GOLDEN["cases"][5], GOLDEN["cases"][6]
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-12}
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(8, 5)).astype(np.float32)
INTERVALS = np.array([0, 1, 2, 3, 4, 5, 5, 2])
EVENTS = np.array([1, 0, 1, 0, 1, 0, 1, 0])


def arrays(case):
    return {name: np.array(value) for name, value in case["inputs"].items()}


@pytest.mark.parametrize("case", HAZARDS, ids=range(2))
def test_the_likelihood_agrees_with_the_golden_numbers(case, x64):
    given, expected = arrays(case), case["expected"]
    per_example = given.pop("weights")

    def nll(logits, **more):
        return survival.discrete_hazard_nll(logits, given["intervals"], given["events"], **more)

    given = {"intervals": given["interval"], "events": given["event"], "logits": given["hazard_logits"]}
    losses = nll(given["logits"])
    np.testing.assert_allclose(losses, expected["nll"], **CLOSE)
    np.testing.assert_allclose(per_example * losses, expected["nll_weighted"], **CLOSE)
    np.testing.assert_allclose(
        nll(given["logits"], censored_survived=True), expected["nll_censored_interval_included"], **CLOSE
    )
    grad = jax.grad(lambda x: nll(x).sum())(given["logits"])
    np.testing.assert_allclose(grad, expected["grad_hazard_logits_of_sum"], **CLOSE)
    alive = survival.survival_from_hazard(given["logits"])
    np.testing.assert_allclose(alive, expected["survival"], rtol=1e-9)
    np.testing.assert_allclose(-alive.sum(-1), expected["risk"], rtol=1e-9)


def test_intervals_agree_with_the_golden_numbers():
    for grid in ("short", "long"):
        given = arrays(BUCKETS)
        seen = survival.bucketize(given["days"], given["event"], edges=BUCKETS["params"][f"{grid}_edges"])
        np.testing.assert_array_equal(seen.intervals, BUCKETS["expected"][f"{grid}_interval"])
        np.testing.assert_array_equal(seen.events, BUCKETS["expected"][f"{grid}_event"])


def test_two_grids_agree_with_the_golden_numbers(x64):
    given, expected = arrays(TWO_TERMS), TWO_TERMS["expected"]

    def nll(short, long):
        return survival.two_term_hazard_nll(short, long, given["days"], given["event"], lam=TWO_TERMS["params"]["lam"])

    logits = (given["short_logits"], given["long_logits"])
    np.testing.assert_allclose(nll(*logits), expected["two_term_nll"], **CLOSE)
    short, long = jax.grad(lambda *x: nll(*x).sum(), argnums=(0, 1))(*logits)
    np.testing.assert_allclose(short, expected["grad_short_logits_of_sum"], **CLOSE)
    np.testing.assert_allclose(long, expected["grad_long_logits_of_sum"], **CLOSE)


def test_one_interval_is_binary_cross_entropy():
    logits, came = LOGITS[:, :1], EVENTS > 0
    # Whoever has no event has outlived the only interval.
    losses = survival.discrete_hazard_nll(logits, np.where(came, 0, 1), EVENTS)
    wanted = np.log1p(np.exp(np.where(came, -logits[:, 0], logits[:, 0])))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_it_is_the_likelihood_of_a_logistic_regression_on_the_intervals_lived_through():
    losses = survival.discrete_hazard_nll(LOGITS, INTERVALS, EVENTS)
    for logits, last, event, came in zip(LOGITS, INTERVALS, EVENTS, losses, strict=True):
        periods = [(t, 0) for t in range(min(last, 5))] + ([(last, 1)] if event and last < 5 else [])
        wanted = sum(np.log1p(np.exp(-logits[t] if y else logits[t])) for t, y in periods)
        np.testing.assert_allclose(came, wanted, rtol=1e-5, atol=1e-7)


def test_probabilities_of_all_outcomes_sum_to_one():
    outcomes = [(t, 1) for t in range(5)] + [(5, 0)]
    total = sum(
        np.exp(-survival.discrete_hazard_nll(LOGITS, np.full(8, last), np.full(8, event))) for last, event in outcomes
    )
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_an_event_after_the_grid_is_not_seen():
    outlived = survival.discrete_hazard_nll(LOGITS, np.full(8, 5), np.zeros(8, int))
    for last in (5, 6, 1000):
        came = survival.discrete_hazard_nll(LOGITS, np.full(8, last), np.ones(8, int))
        np.testing.assert_allclose(came, outlived, rtol=1e-6)
    np.testing.assert_allclose(outlived, -np.log(survival.survival_from_hazard(LOGITS)[:, -1]), rtol=1e-5)


def test_what_an_example_was_not_alive_in_is_never_read():
    last = np.append(-1, INTERVALS[1:])
    read = np.arange(5) < last[:, None] + ((EVENTS > 0) & (last >= 0))[:, None]
    total = lambda x: jnp.sum(survival.discrete_hazard_nll(x, last, EVENTS))  # noqa: E731
    value, grad = jax.value_and_grad(total)(np.where(read, LOGITS, np.nan))
    wanted = jax.value_and_grad(total)(LOGITS)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(grad, wanted[1], rtol=1e-6)


def test_surviving_an_interval_as_censored_is_being_censored_in_the_next():
    lived = survival.discrete_hazard_nll(LOGITS, INTERVALS, 0 * EVENTS, censored_survived=True)
    np.testing.assert_allclose(lived, survival.discrete_hazard_nll(LOGITS, INTERVALS + 1, 0 * EVENTS), rtol=1e-6)


def test_all_of_the_weight_on_one_grid_is_that_grid():
    times, events = np.float32([0.5, 4.0, 8.0, 20.0, 75.0, 200.0, 10.0, 1.0]), EVENTS
    short, long = LOGITS[:, :4], LOGITS
    for lam, edges, logits in ((1.0, survival.DAYS_OF_CUT_OUT, short), (0.0, survival.DAYS_OF_WEAR_OUT, long)):
        seen = survival.bucketize(times, events, edges=edges)
        np.testing.assert_allclose(
            survival.two_term_hazard_nll(short, long, times, events, lam=lam),
            survival.discrete_hazard_nll(logits, *seen),
            rtol=1e-6,
        )


def test_equal_click_rates_weigh_as_none_and_no_impressions_weigh_nothing():
    clicks, impressions = np.float32([2, 1, 0, 4]), np.float32([20, 10, 0, 40])
    rates = weights.normalize(clicks / np.maximum(impressions, 1), mask=impressions > 0)
    np.testing.assert_allclose(rates, [1, 1, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_losses_and_gradients_are_finite_at_extreme_logits(size):
    value, grad = jax.value_and_grad(
        lambda x: jnp.sum(survival.discrete_hazard_nll(x, INTERVALS, EVENTS) + survival.survival_from_hazard(x).sum(-1))
    )(np.full_like(LOGITS, size))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: survival.discrete_hazard_nll(LOGITS, INTERVALS + 0.5, EVENTS), "intervals"),
        (lambda: survival.discrete_hazard_nll(LOGITS, INTERVALS[:3], EVENTS), "intervals"),
        (lambda: survival.discrete_hazard_nll(LOGITS, INTERVALS, EVENTS[:3]), "events"),
        (lambda: survival.bucketize(INTERVALS, EVENTS, edges=(2.0, 1.0)), "edges"),
        (lambda: survival.two_term_hazard_nll(LOGITS, LOGITS, INTERVALS, EVENTS), "short_logits"),
        (lambda: survival.two_term_hazard_nll(LOGITS[:, :4], LOGITS, INTERVALS, EVENTS, lam=2.0), "lam"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
