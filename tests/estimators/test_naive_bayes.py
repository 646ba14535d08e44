import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB

from reweight.estimators.naive_bayes import (
    ClassMoments,
    class_moments,
    class_variances,
    linear_probe,
    log_joint,
    merge_moments,
)

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "naive_bayes_probe.json").read_text())


def data(seed=0, n=60, classes=3, features=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    means, scales = rng.normal(size=(classes, features)), rng.uniform(0.5, 2.0, features)
    return np.float32(means[labels] + scales * rng.normal(size=(n, features))), labels


def assert_same(came, wanted, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), came, wanted)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=["two fits", "one example of a class"])
def test_fits_and_scores_agree_with_the_golden_numbers(case, x64):
    inputs, expected = {name: np.array(value) for name, value in case["inputs"].items()}, case["expected"]
    fits = [(inputs[f"X{k}"], inputs[f"y{k}"]) for k in (1, 2) if f"X{k}" in inputs]
    moments = functools.reduce(
        merge_moments, [class_moments(x, y, num_classes=case["params"]["n_classes"]) for x, y in fits]
    )
    close = functools.partial(np.testing.assert_allclose, rtol=GOLDEN["rtol"])
    options = {"var_eps": case["params"]["var_eps"]}
    close(moments.means, expected["means"])
    close(moments.counts / np.sum(moments.counts), expected["priors"])
    close(class_variances(moments, shared_variance=False, **options), expected["class_variances"])
    shared = class_variances(moments, **options)
    close(shared, expected["shared_variance"])
    joint = log_joint(moments, inputs["X_test"], **options)
    close(joint + np.sum(np.log(2 * np.pi * shared)) / 2, expected["scores"])
    close(joint - np.log(expected["priors"]), expected["log_likelihood"])
    np.testing.assert_array_equal(np.argmax(joint, axis=1), expected["predictions"])
    probe = linear_probe(moments, **options)
    close(probe.kernel, expected["linear_weights"])
    close(probe.bias, expected["linear_bias"])


def test_with_variances_of_their_own_classes_have_the_scores_of_scikit_learn(x64):
    features, labels = data()
    features = np.float64(features)
    theirs = GaussianNB(var_smoothing=0.0).fit(features, labels)
    moments = class_moments(features, labels, num_classes=3)
    np.testing.assert_allclose(moments.means, theirs.theta_, rtol=1e-9)
    np.testing.assert_allclose(class_variances(moments, shared_variance=False), theirs.var_, rtol=1e-7)
    wanted = theirs.predict_joint_log_proba(features)
    np.testing.assert_allclose(log_joint(moments, features, shared_variance=False), wanted, rtol=1e-6)


def test_the_joint_density_integrates_to_one(x64):
    features, labels = data(features=1)
    moments = class_moments(np.float64(features), labels, num_classes=3)
    grid = np.linspace(-40, 40, 20_001)
    for shared in (True, False):
        density = np.exp(log_joint(moments, grid[:, None], shared_variance=shared)).sum(axis=1)
        np.testing.assert_allclose(density.sum() * (grid[1] - grid[0]), 1, rtol=1e-6)


def test_the_linear_form_has_the_probabilities_of_the_joint_density():
    features, labels = data()
    moments = class_moments(features, labels, num_classes=3)
    kernel, bias = linear_probe(moments)
    linear = jax.nn.softmax(features @ kernel.T + bias)
    np.testing.assert_allclose(linear, jax.nn.softmax(log_joint(moments, features)), rtol=1e-3, atol=1e-6)


def test_a_centred_probe_has_the_same_probabilities_and_keeps_digits():
    features, labels = data(8)
    moments = class_moments(features, labels, num_classes=5)
    probs = [jax.nn.softmax(features @ k.T + b) for k, b in (linear_probe(moments, centred=c) for c in (False, True))]
    np.testing.assert_allclose(*probs, rtol=1e-3, atol=1e-6)
    # A feature that is always 3 says nothing, and must not drown the others.
    features = np.concatenate([features, np.full((60, 1), 3, np.float32)], axis=1)
    kernel, bias = linear_probe(class_moments(features, labels, num_classes=5), centred=True)
    np.testing.assert_allclose(jax.nn.softmax(features @ kernel.T + bias), probs[0], rtol=1e-3, atol=1e-5)


def test_batches_in_any_order_are_the_whole():
    features, labels = data(1)
    pieces = [slice(0, 1), slice(1, 20), slice(20, 60)]
    whole = class_moments(features, labels, num_classes=3)
    for order in itertools.permutations(pieces):
        merged = functools.reduce(
            merge_moments, [class_moments(features[rows], labels[rows], num_classes=3) for rows in order]
        )
        assert_same(merged, whole)


def test_a_scan_over_batches_starts_from_nothing():
    features, labels = data(2)
    nothing = ClassMoments(jnp.zeros(3), jnp.zeros((3, 4)), jnp.zeros((3, 4)))

    def step(moments, batch):
        return merge_moments(moments, class_moments(*batch, num_classes=3)), None

    batches = (features.reshape(6, 10, 4), labels.reshape(6, 10))
    assert_same(jax.lax.scan(step, nothing, batches)[0], class_moments(features, labels, num_classes=3))


def test_far_from_zero_nothing_is_lost():
    features, labels = data(3)
    near = class_moments(features, labels, num_classes=3)
    far = class_moments(features + 1000, labels, num_classes=3)
    np.testing.assert_allclose(far.deviations, near.deviations, rtol=2e-3)
    halves = [class_moments(features[rows] + 1000, labels[rows], num_classes=3) for rows in (slice(30), slice(30, 60))]
    np.testing.assert_allclose(merge_moments(*halves).deviations, near.deviations, rtol=2e-3)


def test_seeing_all_data_twice_changes_no_prediction():
    features, labels = data(4)
    once = class_moments(features, labels, num_classes=3)
    assert_same(log_joint(merge_moments(once, once), features), log_joint(once, features), rtol=1e-4)


def test_weights_count_examples_several_times_and_masked_and_unknown_ones_are_not_there():
    features, labels = data(5)
    times = np.random.default_rng(0).integers(0, 3, 60)
    wanted = class_moments(np.repeat(features, times, axis=0), np.repeat(labels, times), num_classes=3)
    assert_same(class_moments(features, labels, times, num_classes=3), wanted)
    keep = times > 0
    dirty = np.where(keep[:, None], features, np.nan)
    wanted = class_moments(features[keep], labels[keep], num_classes=3)
    assert_same(class_moments(dirty, labels, num_classes=3, mask=keep), wanted)
    assert_same(class_moments(features, np.where(keep, labels, 3), num_classes=3), wanted)


def test_a_class_without_examples_is_never_predicted():
    features, labels = data(6)
    moments = class_moments(features, labels, num_classes=5)
    for shared in (True, False):
        scores = log_joint(moments, features, shared_variance=shared)
        assert np.all(scores[:, 3:] == -np.inf)
        assert np.all(np.isfinite(scores[:, :3]))
    np.testing.assert_array_equal(linear_probe(moments).bias[3:], -np.inf)
    three = class_moments(features, labels, num_classes=3)
    np.testing.assert_allclose(class_variances(moments), class_variances(three), rtol=1e-6)
    np.testing.assert_allclose(log_joint(moments, features)[:, :3], log_joint(three, features), rtol=1e-5)


def test_of_nothing_all_classes_are_alike():
    nothing = class_moments(np.full((4, 2), np.nan, np.float32), np.zeros(4, int), num_classes=3, mask=np.zeros(4))
    assert not any(np.any(x) for x in nothing)
    scores = log_joint(nothing, np.ones((2, 2), np.float32))
    assert np.all(np.isfinite(scores))
    np.testing.assert_array_equal(scores, scores[:, :1].repeat(3, axis=1))


def test_the_gradient_flows_to_the_features_it_was_fitted_on():
    features, labels = data(7)

    def loss(features):
        scores = log_joint(class_moments(features, labels, num_classes=4), features)
        return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(60), labels])

    grad = jax.grad(loss)(features)
    assert np.all(np.isfinite(grad))
    assert np.any(grad)
    assert loss(features - 0.05 * grad / np.abs(grad).max()) < loss(features)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, y, m: class_moments(x, y, num_classes=0), "num_classes"),
        (lambda x, y, m: class_moments(x, y[:3], num_classes=3), "labels"),
        (lambda x, y, m: class_moments(x[0], y, num_classes=3), "features"),
        (lambda x, y, m: log_joint(m, x[:, :2]), "features"),
        (lambda x, y, m: log_joint(m, x, var_eps=0.0), "var_eps"),
        (lambda x, y, m: linear_probe(m._replace(counts=m.counts[:2])), "moments.counts"),
        (lambda x, y, m: merge_moments(m, jax.tree.map(lambda a: a[:2], m)), "second.means"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    features, labels = data()
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(features, labels, class_moments(features, labels, num_classes=3))
