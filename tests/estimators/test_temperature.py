import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from reweight.estimators.calibration import fit_temperature
from reweight.losses.classification import cross_entropy
from reweight.metrics.calibration import confidence_bins, ece, top_label

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "temperature_overlap.json").read_text())
CASES = [{name: np.array(value) for name, value in case["inputs"].items()} for case in GOLDEN["cases"][:3]]


def overconfident(seed=0, n=400, classes=5, scale=3.0):
    """Labels drawn from a softmax, and its logits times a scale: the best temperature is about the scale."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, classes))
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    return scale * logits, labels


def nll(logits, labels, temperature):
    return float(jnp.mean(cross_entropy(logits / temperature, labels)))


@pytest.mark.parametrize("number", range(3))
def test_the_temperature_and_what_it_gives_agree_with_the_golden_numbers(number, x64):
    logits, labels = CASES[number]["logits"], CASES[number]["labels"]
    case = GOLDEN["cases"][number]
    expected = case["expected"]
    found = fit_temperature(logits, labels)
    np.testing.assert_allclose(found, expected["temperature"], rtol=GOLDEN["rtol"])
    np.testing.assert_allclose(nll(logits, labels, 1.0), expected["nll"], rtol=GOLDEN["rtol"])
    np.testing.assert_allclose(nll(logits, labels, found), expected["nll_at_temperature"], rtol=GOLDEN["rtol"])
    bins = confidence_bins(*top_label(jax.nn.softmax(logits / found), labels), num_bins=case["params"]["n_bins"])
    np.testing.assert_allclose(ece(bins), expected["ece_at_temperature"], rtol=1e-6)
    released = fit_temperature(logits, labels, solver="released")
    np.testing.assert_allclose(released, expected["temperature_one_lbfgs_call"], rtol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_in_float32_the_temperature_is_the_same(number):
    found = fit_temperature(np.float32(CASES[number]["logits"]), CASES[number]["labels"])
    np.testing.assert_allclose(found, GOLDEN["cases"][number]["expected"]["temperature"], rtol=1e-5)


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("init", [0.1, 1.0, 40.0])
def test_it_is_the_minimum_wherever_the_search_starts(scale, init, x64):
    logits, labels = overconfident(1, scale=scale)
    found = fit_temperature(logits, labels, init=init)
    best = optimize.minimize_scalar(
        lambda u: nll(logits, labels, np.exp(u)), bounds=(-5, 5), method="bounded", options={"xatol": 1e-7}
    )
    np.testing.assert_allclose(np.log(found), best.x, atol=1e-4)
    np.testing.assert_allclose(found, scale * fit_temperature(*overconfident(1, scale=1.0)), rtol=1e-10)


def test_of_a_softmax_that_the_labels_were_drawn_from_it_is_one():
    np.testing.assert_allclose(fit_temperature(*overconfident(n=20_000, scale=1.0)), 1, atol=0.03)


def test_a_shift_of_the_logits_changes_nothing_and_no_prediction_changes():
    logits, labels = overconfident()
    found = fit_temperature(logits, labels)
    shifted = logits + 10 * np.random.default_rng(0).normal(size=(400, 1))
    np.testing.assert_allclose(fit_temperature(shifted, labels), found, rtol=1e-4)
    np.testing.assert_array_equal(np.argmax(logits / found, axis=1), np.argmax(logits, axis=1))


@pytest.mark.parametrize("margin", [1e-3, 1.0, 1e3])
def test_the_ends_come_back_where_labels_have_always_or_never_the_largest_logit(margin):
    logits, labels = margin * np.eye(4, 3, dtype=np.float32)[:3], np.arange(3)
    np.testing.assert_allclose(fit_temperature(logits, labels), np.exp(-5.0), rtol=1e-5)
    np.testing.assert_allclose(fit_temperature(-logits, labels), np.exp(5.0), rtol=1e-5)
    np.testing.assert_allclose(fit_temperature(logits, labels, max_log=2.0), np.exp(-2.0), rtol=1e-5)


def test_where_every_temperature_is_as_good_the_first_comes_back():
    assert fit_temperature(np.ones((4, 3), np.float32), np.zeros(4, int), init=2.5) == 2.5
    assert fit_temperature(np.full((4, 3), np.nan, np.float32), np.zeros(4, int), mask=np.zeros(4)) == 1
    assert fit_temperature(np.ones((4, 1), np.float32), np.zeros(4, int)) == 1


def test_masked_and_unknown_and_weightless_examples_are_not_there():
    logits, labels = overconfident(n=60)
    keep = np.arange(60) % 3 > 0
    wanted = fit_temperature(logits[keep], labels[keep])
    dirty = np.where(keep[:, None], logits, np.nan)
    np.testing.assert_allclose(fit_temperature(dirty, labels, mask=keep), wanted, rtol=1e-5)
    np.testing.assert_allclose(fit_temperature(logits, np.where(keep, labels, -1)), wanted, rtol=1e-5)
    np.testing.assert_allclose(fit_temperature(logits, labels, 1.0 * keep), wanted, rtol=1e-5)
    twice = fit_temperature(np.repeat(logits, 1 + keep, axis=0), np.repeat(labels, 1 + keep))
    np.testing.assert_allclose(fit_temperature(logits, labels, 1 + keep), twice, rtol=1e-5)


def test_it_runs_under_jit_and_vmap_and_has_no_gradient():
    sets = [overconfident(seed, n=50) for seed in range(3)]
    logits, labels = (np.stack(x) for x in zip(*sets, strict=True))
    found = jax.jit(jax.vmap(fit_temperature))(logits, labels)
    np.testing.assert_allclose(found, [fit_temperature(*one) for one in sets], rtol=1e-5)
    assert not np.any(jax.grad(fit_temperature)(np.float32(logits[0]), labels[0]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"init": 0.0}, "init"),
        ({"max_log": -1.0}, "max_log"),
        ({"solver": "adam"}, "solver"),
        ({"labels": np.zeros(3)}, "labels"),
        ({"weights": np.ones(2)}, "weights"),
        ({"mask": np.ones(2)}, "mask"),
    ],
)
def test_a_static_mistake_is_named(change, named):
    with pytest.raises(ValueError, match=f"fit_temperature: argument `{named}`"):
        fit_temperature(**{"logits": np.zeros((3, 2), np.float32), "labels": np.zeros(3, int), **change})
