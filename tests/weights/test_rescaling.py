import functools
import json
import pathlib
import statistics

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import weights
from reweight.weights import rescaling

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "storm.json").read_text())
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-10}

features_of = jax.jit(weights.storm_features)
overlap = jax.jit(rescaling._overlap)


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None, None], axis=2)[..., 0]


def batch(seed=0, size=12, passes=3, classes=2):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(size, passes, classes)).astype(np.float32)
    labels = rng.integers(0, classes, size)
    return cross_entropy(logits, labels), logits, labels


def params_of(case, dtype=float):
    kernels = [np.array(case["inputs"][f"net_{name}"], dtype) for name in ("W1", "b1", "W2", "b2")]
    return weights.RescalingParams(kernels[0].swapaxes(1, 2), kernels[1], kernels[2].swapaxes(1, 2), kernels[3])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_features_and_weights_agree_with_the_golden_numbers(case, x64):
    size = case["params"]["batch"] * case["params"]["window_batches"]
    memory = weights.PassMemory.empty(case["params"]["n_classes"], size)
    for i, logits in enumerate(case["inputs"]["logits_by_batch"]):
        logits, labels = np.moveaxis(np.array(logits), 0, 1), np.array(case["inputs"]["labels_by_batch"][i])
        features, memory = weights.storm_features(memory, cross_entropy(logits, labels), logits, labels)
        np.testing.assert_allclose(features, case["expected"]["features_by_batch"][i], **CLOSE)
        np.testing.assert_array_equal(features[:, -1], case["expected"]["agreement_by_batch"][i])
        found = weights.storm_weights(params_of(case), features, labels)
        np.testing.assert_allclose(found, case["expected"]["weights_by_batch"][i], **CLOSE)


gaussians = st.tuples(st.floats(-3, 3), st.floats(0.01, 5), st.floats(-3, 3), st.floats(0.01, 5))


@hypothesis.given(pair=gaussians, alike=st.booleans())
def test_the_overlap_of_gaussians_is_that_of_the_standard_library(pair, alike):
    mean, std, other_mean, other_std = (float(np.float32(x)) for x in pair)
    other_std = std if alike else other_std
    wanted = statistics.NormalDist(mean, std).overlap(statistics.NormalDist(other_mean, other_std))
    found = overlap(*map(np.float32, (mean, std, other_mean, other_std)))
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(overlap(*map(np.float32, (other_mean, other_std, mean, std))), wanted, atol=2e-6)


@pytest.mark.parametrize("nearly", [0, 1e-7, 1e-5, 1e-3])
def test_the_overlap_of_gaussians_as_wide_or_nearly_so_has_no_cancellation(nearly):
    std = np.float32(0.7 * (1 + nearly))
    for apart in (0.0, 1e-4, 0.3):
        wanted = statistics.NormalDist(0, float(np.float32(0.7))).overlap(statistics.NormalDist(apart, float(std)))
        np.testing.assert_allclose(overlap(np.float32(0), np.float32(0.7), np.float32(apart), std), wanted, atol=1e-6)


def test_a_single_pass_has_no_spread_and_no_divergence():
    losses, logits, labels = batch(passes=1)
    features, _ = features_of(weights.PassMemory.empty(2, 12), losses, logits, labels)
    for column in (3, 4, 9, 10, 12, 13):  # standard deviations of losses and confidences, and divergence
        np.testing.assert_array_equal(features[:, column], 0)
    np.testing.assert_allclose(features[:, 0], losses[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(features[:, -1], np.argmax(logits[:, 0], axis=1) == labels)


@pytest.mark.parametrize("seed", range(4))
def test_passes_that_are_alike_have_no_spread_and_no_divergence(seed, x64):
    losses, logits, labels = batch(seed, passes=1)
    losses, logits = (np.repeat(np.asarray(x, float), 3, axis=1) for x in (losses, logits))
    features, _ = features_of(weights.PassMemory.empty(2, 12), losses, logits, labels)
    for column in (3, 4, 9, 10, 12, 13):
        np.testing.assert_array_equal(features[:, column], 0)


def test_a_divergence_has_the_range_of_its_dtype(x64):
    found = rescaling._divergence(*map(np.float64, (3.0, 1e-9, 0.0, 2e-9)))
    np.testing.assert_allclose(found, np.log(2) + (1e-18 + 9) / (2 * 4e-18) - 0.5, rtol=1e-12)
    wanted = statistics.NormalDist(1, 30).overlap(statistics.NormalDist(1, 1e-8))
    np.testing.assert_allclose(overlap(*map(np.float64, (1.0, 30.0, 1.0, 1e-8))), wanted, rtol=1e-6)


def test_of_a_tie_the_first_pass_decides():
    logits = np.float32([[[1, 0], [0, 1]], [[0, 1], [1, 0]]])
    features, _ = features_of(weights.PassMemory.empty(2, 2), np.ones((2, 2), np.float32), logits, np.array([0, 0]))
    np.testing.assert_array_equal(features[:, -1], [1, 0])


def test_an_example_alone_in_its_group_is_its_mean_and_overlaps_it():
    losses, logits, labels = batch(size=1)
    features, _ = features_of(weights.PassMemory.empty(2, 4), losses, logits, labels)
    np.testing.assert_allclose(features[0, 1::3][:4], features[0, 0::3][:4], rtol=1e-6)
    np.testing.assert_allclose(features[0, 2::3], 1e-8, rtol=1e-6)
    np.testing.assert_allclose(features[0, [12, 15]], [0, 1], atol=1e-6)


@hypothesis.given(seed=st.integers(0, 100), window=st.integers(1, 9))
def test_the_memory_keeps_the_last_of_each_label_in_their_order(seed, window):
    rng = np.random.default_rng(seed)
    memory, seen = weights.PassMemory.empty(3, window), {0: [], 1: [], 2: []}
    remember = jax.jit(rescaling._remember)
    for _ in range(3):
        labels, kept, values = rng.integers(0, 3, 7), rng.random(7) > 0.3, rng.normal(size=(7, 4)).astype(np.float32)
        memory = remember(memory, rescaling._Passes(values, values[:, 0] > 0, labels, kept))
        for label in range(3):
            seen[label] = [*seen[label], *values[kept & (labels == label)]][-window:]
            there = np.asarray(memory.filled[label])
            assert there.sum() == len(seen[label])
            np.testing.assert_array_equal(memory.values[label][there], np.reshape(seen[label], (-1, 4)))
            np.testing.assert_array_equal(memory.agrees[label][there], memory.values[label][there][:, 0] > 0)
            assert np.all(np.diff(there.astype(int)) >= 0)


def test_no_gradient_flows_through_features_and_huge_losses_stay_finite():
    _, logits, labels = batch()

    def total(logits):
        return jnp.sum(weights.storm_features(memory, cross_entropy(logits, labels), logits, labels)[0])

    memory = weights.PassMemory.empty(2, 12)
    np.testing.assert_array_equal(jax.grad(total)(logits), 0)
    for losses in (np.full((12, 3), 1e4, np.float32), np.geomspace(1e-12, 1e12, 36, dtype=np.float32).reshape(12, 3)):
        features, _ = features_of(memory, losses, logits, labels)
        assert np.all(np.isfinite(features))
        params = weights.RescalingParams.draw(jax.random.key(0), 2)
        assert np.all(np.isfinite(weights.storm_weights(params, features, labels)))


@functools.cache
def drawn():
    return weights.RescalingParams.draw(jax.random.key(1), 3, hidden=5)


def test_weights_lie_in_the_unit_interval_and_average_to_a_half_where_features_hardly_differ():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 64)
    found = weights.storm_weights(drawn(), rng.normal(size=(64, 19)).astype(np.float32), labels)
    assert np.all((found > 0) & (found < 1))
    alike = 1 + 1e-5 * rng.normal(size=(64, 19)).astype(np.float32)
    np.testing.assert_allclose(weights.storm_weights(drawn(), alike, labels), 0.5, atol=1e-2)


def test_the_outputs_of_a_network_are_centred_so_that_weights_cannot_all_vanish():
    features = np.random.default_rng(0).normal(size=(64, 19)).astype(np.float32)
    loud = drawn()._replace(output_bias=jnp.full((3, 2), jnp.array([50.0, -50.0])))
    labels = np.zeros(64, int)
    np.testing.assert_allclose(
        weights.storm_weights(loud, features, labels), weights.storm_weights(drawn(), features, labels), atol=1e-3
    )
    logits = jax.scipy.special.logit(weights.storm_weights(drawn(), features, labels))
    np.testing.assert_allclose(np.mean(logits), 0, atol=1e-4)


def test_every_label_has_a_network_of_its_own():
    features = np.random.default_rng(0).normal(size=(12, 19)).astype(np.float32)
    labels = np.arange(12) % 3
    changed = drawn()._replace(hidden=drawn().hidden.at[1].multiply(-1))
    before, after = (weights.storm_weights(params, features, labels) for params in (drawn(), changed))
    np.testing.assert_array_equal(before[labels != 1], after[labels != 1])
    assert not np.allclose(before[labels == 1], after[labels == 1])


def test_a_label_that_is_no_class_weighs_nothing_and_is_not_remembered():
    losses, logits, labels = batch()
    odd = np.where(np.arange(12) < 2, [-1] * 6 + [7] * 6, labels)
    features, memory = features_of(weights.PassMemory.empty(2, 12), losses, logits, odd)
    assert np.sum(memory.filled) == 10
    params = weights.RescalingParams.draw(jax.random.key(0), 2)
    np.testing.assert_array_equal(features[:2], 0)
    np.testing.assert_array_equal(weights.storm_weights(params, features, odd)[:2], 0)


def test_with_fixed_parameters_it_is_a_weighting():
    losses, logits, labels = batch()
    learned = weights.storm(2, window=12)
    state = learned.init(jax.random.key(2))
    scheme = learned.fixed(state.params)
    found, memory = scheme.update(scheme.init(), losses[:, 0], pass_losses=losses, pass_logits=logits, labels=labels)
    features, wanted = weights.storm_features(state.memory, losses, logits, labels)
    np.testing.assert_array_equal(found, weights.storm_weights(state.params, features, labels))
    jax.tree.map(np.testing.assert_array_equal, memory, wanted)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: weights.storm(1, window=4), "num_classes"),
        (lambda: weights.storm(2, window=0), "window"),
        (lambda: weights.storm(2, window=4, hidden=0), "hidden"),
        (lambda: weights.PassMemory.empty(2, 0), "window"),
        (lambda: weights.storm(2, window=4).fixed(None).update((), np.ones(3, np.float32)), "pass_losses"),
        (lambda: weights.storm_weights(drawn(), np.ones((4, 7), np.float32), np.ones(4, int)), "features"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
