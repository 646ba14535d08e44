import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import reduce, weights
from reweight.losses import classification

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
EFFECTIVE = json.loads((GOLDEN / "effective_number_and_focal.json").read_text())["cases"]
SRAT = json.loads((GOLDEN / "srat.json").read_text())["cases"]
ADJUSTED = json.loads((GOLDEN / "logit_adjustment.json").read_text())["cases"]

class_counts = st.lists(st.integers(1, 10**6), min_size=4, max_size=4)


@pytest.mark.parametrize("case", EFFECTIVE, ids=range(len(EFFECTIVE)))
def test_effective_number_weights_agree_with_the_golden_numbers(case, x64):
    params, expected = case["params"], case["expected"]["class_weights"]
    betas, rows = (params["beta_list"], expected) if "beta_list" in params else ([params["beta"]], [expected])
    counts = np.array(params.get("class_counts", case["inputs"].get("class_counts")))
    for beta, row in zip(betas, rows, strict=True):
        for dtype in (np.float64, np.int32, np.int64):
            came = weights.effective_number_weights(counts.astype(dtype), beta=beta)
            np.testing.assert_allclose(came, row, rtol=1e-8)


def test_class_balanced_cross_entropy_agrees_with_the_golden_numbers(x64):
    case = ADJUSTED[0]
    logits, labels = jnp.array(case["inputs"]["logits"]), jnp.array(case["inputs"]["labels"])
    counts = jnp.array(case["params"]["class_counts"])
    np.testing.assert_allclose(
        weights.effective_number_weights(counts), case["expected"]["class_balanced_weights"], rtol=1e-9
    )
    losses = classification.cross_entropy(logits, labels)
    w, _ = weights.class_balanced(counts).update((), losses, labels=labels)
    np.testing.assert_allclose(
        reduce.weighted_mean(losses, w), case["expected"]["class_balanced_weighted_mean"], rtol=1e-9
    )


@hypothesis.given(counts=class_counts, beta=st.sampled_from([0.0, 0.5, 0.99, 0.9999, 0.999999999, 1.0]))
def test_effective_number_weights_are_the_formula_in_double_precision(counts, beta):
    number = np.array(counts, np.float64)
    effective = number if beta == 1 else -np.expm1(number * np.log(beta)) if beta > 0 else np.ones(4)
    expected = 1 / effective
    w = weights.effective_number_weights(np.float32(counts), beta=beta)
    np.testing.assert_allclose(w, expected / expected.mean(), rtol=1e-5)


@hypothesis.given(counts=class_counts)
def test_effective_number_runs_from_equal_weights_to_inverse_frequency(counts):
    counts = np.float32(counts)
    np.testing.assert_allclose(weights.effective_number_weights(counts, beta=0.0), 1, rtol=1e-6)
    np.testing.assert_allclose(
        weights.effective_number_weights(counts, beta=1.0), weights.inverse_frequency_weights(counts), rtol=1e-6
    )


def test_a_traced_beta_gives_the_same_weights():
    counts = jnp.array([1000.0, 50.0, 3.0])
    traced = jax.jit(lambda beta: weights.effective_number_weights(counts, beta=beta))
    for beta in (0.0, 0.5, 0.999, 1.0):
        np.testing.assert_allclose(traced(beta), weights.effective_number_weights(counts, beta=beta), rtol=1e-4)


@pytest.mark.parametrize("weigh", [weights.effective_number_weights, weights.inverse_frequency_weights])
@hypothesis.given(counts=class_counts)
def test_each_scale_has_mean_one_where_it_says(weigh, counts):
    counts = np.float32(counts)
    np.testing.assert_allclose(np.mean(weigh(counts, scale="classes")), 1, rtol=1e-5)
    np.testing.assert_allclose(np.average(weigh(counts, scale="examples"), weights=counts), 1, rtol=1e-5)


@pytest.mark.parametrize("weigh", [weights.effective_number_weights, weights.inverse_frequency_weights])
@pytest.mark.parametrize("scale", ["classes", "examples"])
def test_a_class_without_examples_has_weight_zero_and_changes_no_other(weigh, scale):
    some = weigh(np.float32([90, 10]), scale=scale)
    np.testing.assert_allclose(weigh(np.float32([90, 0, 10]), scale=scale), [some[0], 0, some[1]], rtol=1e-6)
    np.testing.assert_array_equal(weigh(np.zeros(3, np.float32), scale=scale), 0)


def test_inverse_frequency_by_examples_is_the_usual_balanced_weight():
    counts = np.array([100, 30, 4])
    w = weights.inverse_frequency_weights(counts, scale="examples")
    np.testing.assert_allclose(w, counts.sum() / (3 * counts), rtol=1e-6)


def test_the_power_runs_from_equal_weights_through_the_square_root_to_inverse_frequency():
    counts = np.float32([100, 25])
    ratios = [np.divide(*weights.inverse_frequency_weights(counts, power=power)[::-1]) for power in (0, 0.5, 1)]
    np.testing.assert_allclose(ratios, [1, 2, 4], rtol=1e-6)


def test_rarer_classes_never_weigh_less():
    counts = np.float32([1e6, 1e4, 1e3, 10, 1])
    for w in (weights.effective_number_weights(counts), weights.inverse_frequency_weights(counts)):
        assert np.all(np.diff(w) >= 0)


def test_class_weights_look_up_labels_or_groups():
    table = jnp.array([1.0, 0.25, 4.0])
    ids = jnp.array([2, 0, 1, 1])
    for signal in ("labels", "groups"):
        w, _ = weights.class_weighted(table, signal=signal).update((), jnp.zeros(4), **{signal: ids})
        np.testing.assert_array_equal(w, [4, 1, 0.25, 0.25])


def test_a_label_an_example_serves_all_tokens_of_its_row():
    w, _ = weights.class_weighted(jnp.array([1.0, 2.0])).update((), jnp.zeros((2, 3)), labels=jnp.array([[1], [0]]))
    np.testing.assert_array_equal(w, [[2, 2, 2], [1, 1, 1]])


def test_lookup_gives_zero_outside_the_table():
    np.testing.assert_array_equal(weights.lookup(jnp.array([5.0, 7.0]), jnp.array([-3, -1, 0, 1, 2])), [0, 0, 5, 7, 0])


@hypothesis.given(p=st.floats(0, 1, width=32), gamma=st.sampled_from([0.0, 0.5, 2.0, 5.0]))
def test_focal_weights_are_the_formula(p, gamma):
    log_p = np.log(np.float32(max(p, 1e-30)))
    w = weights.focal_weights(np.array([log_p], np.float32), gamma=gamma)
    np.testing.assert_allclose(w, [(-np.expm1(np.float64(log_p))) ** gamma], rtol=1e-5)


def test_focal_reads_logits_or_log_probs_alike():
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(3 * rng.normal(size=(6, 4)), jnp.float32), jnp.asarray(rng.integers(0, 4, 6))
    losses = classification.cross_entropy(logits, labels)
    by_logits, _ = weights.focal(gamma=1.5).update((), losses, logits=logits, labels=labels)
    by_log_probs, _ = weights.focal(gamma=1.5, source="log_probs").update((), losses, log_probs=-losses)
    np.testing.assert_allclose(by_logits, by_log_probs, rtol=1e-6)
    np.testing.assert_allclose(
        by_logits * losses, classification.focal_loss(logits, labels, gamma=1.5), rtol=1e-5, atol=1e-7
    )


def test_a_certain_target_weighs_nothing_and_an_impossible_one_fully():
    np.testing.assert_array_equal(weights.focal_weights(jnp.array([0.0, 1e-7, -1e4])), [0, 0, 1])


def test_focal_at_gamma_zero_is_uniform():
    np.testing.assert_array_equal(weights.focal_weights(jnp.array([0.0, -1e-3, -5.0]), gamma=0.0), 1)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: weights.effective_number_weights(np.ones(3), beta=1.1), "beta"),
        (lambda: weights.effective_number_weights(np.ones((3, 1))), "counts"),
        (lambda: weights.class_balanced(np.ones(3), beta=-0.1), "beta"),
        (lambda: weights.class_balanced(np.ones(3), scale="batch"), "scale"),
        (lambda: weights.inverse_frequency_weights([1, 2]), "counts"),
        (lambda: weights.inverse_frequency(np.ones(3), power=-1), "power"),
        (lambda: weights.class_weighted(np.ones((2, 2))), "class_weights"),
        (lambda: weights.class_weighted(np.ones(2)).update((), jnp.ones(2), labels=jnp.ones(2)), "labels"),
        (lambda: weights.class_weighted(np.ones(2)).update((), jnp.ones(2), labels=jnp.array([1, 1, 1])), "labels"),
        (lambda: weights.lookup(np.ones(2), np.ones(2)), "ids"),
        (lambda: weights.focal(gamma=-1), "gamma"),
        (lambda: weights.focal(source="losses"), "source"),
        (lambda: weights.focal_weights(jnp.zeros(2), gamma=float("inf")), "gamma"),
        (
            lambda: weights.focal().update((), jnp.ones(2), logits=jnp.ones((3, 4)), labels=jnp.array([0, 1])),
            "logits",
        ),
        (lambda: weights.focal(source="log_probs").update((), jnp.ones(2), log_probs=jnp.ones(3)), "log_probs"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()


@pytest.mark.parametrize("case", SRAT[:3], ids=range(3))
def test_deferred_weights_agree_with_the_golden_numbers_once_they_set_in(case, x64):
    counts, beta = np.array(case["params"]["class_counts"], np.float64), case["params"]["beta"]
    late = jax.jit(lambda step: weights.deferred_class_weights(counts, step, start_step=160, beta=beta))
    for step in (160, 199):
        np.testing.assert_allclose(late(step), case["expected"]["class_weights"], rtol=1e-8)
    for step in (0, 159):
        np.testing.assert_array_equal(late(step), 1)


def test_deferred_weights_are_the_table_of_deferred_class_balance():
    counts, labels = np.array([90.0, 9.0, 1.0]), jnp.array([0, 1, 2, 2])
    scheme = weights.deferred(weights.class_balanced(counts, beta=0.99), start_step=1)
    state = scheme.init()
    for step in range(3):
        w, state = scheme.update(state, jnp.ones(4), labels=labels)
        table = weights.deferred_class_weights(counts, step, start_step=1, beta=0.99)
        np.testing.assert_allclose(w, table[labels], rtol=1e-6)
