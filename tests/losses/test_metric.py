import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import losses
from reweight.losses import metric
from reweight.metrics import confusion
from reweight.train import LossOutput, init_state, make_step

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "anyloss.json").read_text())
CASES = GOLDEN["cases"][:3]
ALONE = GOLDEN["cases"][3]
NAMES = ("accuracy", "f_beta", "g_mean", "balanced_accuracy", "precision", "recall", "jaccard", "mcc")
RNG = np.random.default_rng(0)
PROBS = RNG.uniform(size=12).astype(np.float32)
LABELS = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0])


def named(name, beta):
    function = getattr(confusion, name)
    return functools.partial(function, beta=beta) if name == "f_beta" else function


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("name", NAMES)
def test_anyloss_agrees_with_the_golden_numbers(case, name, x64):
    inputs, params, expected = case["inputs"], case["params"], case["expected"]
    labels, weights = np.array(inputs["labels01"]), np.array(inputs["weights"])

    def loss(z):
        return metric.anyloss(
            jax.nn.sigmoid(z),
            labels,
            weights,
            metric=named(name, params["beta"]),
            scale=params["L"],
            threshold=params["threshold"],
        )

    value, grad = jax.value_and_grad(loss)(np.array(inputs["z"]))
    np.testing.assert_allclose(value, expected[f"loss_{name}"], rtol=GOLDEN["rtol"])
    np.testing.assert_allclose(grad, expected[f"grad_z_{name}"], rtol=GOLDEN["rtol"], atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_soft_sums_agree_with_the_golden_numbers(case, x64):
    inputs, params = case["inputs"], case["params"]
    sums = metric.soft_confusion(
        np.array(inputs["probs"]), np.array(inputs["labels01"]), np.array(inputs["weights"]), scale=params["L"]
    )
    for name, came in sums._asdict().items():
        np.testing.assert_allclose(came, case["expected"][name], rtol=GOLDEN["rtol"])


@pytest.mark.parametrize("name", ["g_mean", "balanced_accuracy"])
def test_a_batch_of_one_class_costs_nothing_where_the_metric_needs_two(name, x64):
    labels = np.array(ALONE["inputs"]["labels01"])
    loss = lambda z: metric.anyloss(jax.nn.sigmoid(z), labels, metric=named(name, 1.0))  # noqa: E731
    value, grad = jax.value_and_grad(loss)(np.array(ALONE["inputs"]["z"]))
    assert value == ALONE["expected"][f"loss_{name}"]
    np.testing.assert_array_equal(grad, ALONE["expected"][f"grad_z_{name}"])


@pytest.mark.parametrize("name", NAMES)
def test_hard_amplification_is_the_metric_of_thresholded_predictions(name):
    loss = metric.anyloss(PROBS, LABELS, metric=named(name, 2.0), scale=1e5)
    wanted = named(name, 2.0)(confusion.counts(PROBS > 0.5, LABELS))
    np.testing.assert_allclose(loss, 1 - wanted, atol=1e-5)


def test_the_loss_of_accuracy_is_the_mean_absolute_error():
    soft = 1 / (1 + np.exp(-30 * (PROBS - 0.5)))
    loss = metric.anyloss(PROBS, LABELS, metric=confusion.accuracy, scale=30.0)
    np.testing.assert_allclose(loss, np.abs(LABELS - soft).mean(), rtol=1e-5)
    alone = metric.anyloss(PROBS, np.zeros(12, int), metric=confusion.accuracy, scale=30.0)
    np.testing.assert_allclose(alone, soft.mean(), rtol=1e-5)


def test_certain_predictions_of_both_classes_have_the_slope_of_their_distance():
    probs = np.float32([0.02, 0.2, 0.8, 0.98])
    grad = jax.grad(lambda p: metric.anyloss(p, np.array([1, 1, 0, 0]), metric=confusion.accuracy))(probs)
    slope = 73 * np.exp(-73 * np.abs(probs.astype(float) - 0.5)) / 4
    np.testing.assert_allclose(grad, [-1, -1, 1, 1] * slope, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_duplicates_and_weights_of_two_are_the_same(name):
    twice = metric.anyloss(np.tile(PROBS, 2), np.tile(LABELS, 2), metric=named(name, 1.0), scale=20.0)
    np.testing.assert_allclose(metric.anyloss(PROBS, LABELS, metric=named(name, 1.0), scale=20.0), twice, rtol=1e-5)
    repeated = np.repeat(np.arange(12), np.arange(12) % 3)
    weighted = metric.anyloss(PROBS, LABELS, np.arange(12) % 3, metric=named(name, 1.0), scale=20.0)
    wanted = metric.anyloss(PROBS[repeated], LABELS[repeated], metric=named(name, 1.0), scale=20.0)
    np.testing.assert_allclose(weighted, wanted, rtol=1e-5)


def test_the_loss_from_added_sums_is_that_of_the_batch():
    sums = [metric.soft_confusion(PROBS[part], LABELS[part]) for part in (slice(5), slice(5, 12))]
    added = confusion.f_beta(jax.tree.map(jnp.add, *sums))
    np.testing.assert_allclose(1 - added, metric.anyloss(PROBS, LABELS), rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_of_the_batch_loss_has_value_and_gradient_of_the_metric(masked):
    mask = LABELS + np.arange(12) % 2 > 0 if masked else None
    loss = metric.batch_anyloss(metric=confusion.mcc, scale=15.0)

    def mean(probs):
        values, _ = loss.update(loss.init(), probs=probs, labels=LABELS, mask=mask)
        return jnp.sum(values) / (12 if mask is None else mask.sum())

    plain = functools.partial(metric.anyloss, labels=LABELS, metric=confusion.mcc, scale=15.0, mask=mask)
    for came, wanted in zip(jax.value_and_grad(mean)(PROBS), jax.value_and_grad(plain)(PROBS), strict=True):
        np.testing.assert_allclose(came, wanted, rtol=2e-5, atol=1e-7)


def test_a_step_in_microbatches_is_the_step_of_the_batch(x64):
    inputs = RNG.normal(size=(12, 3))
    batch = {"inputs": inputs, "labels": LABELS, "mask": np.arange(12) != 4}
    optimizer = optax.sgd(0.1)
    loss = metric.batch_anyloss(metric=confusion.g_mean, scale=10.0)

    def signals(params, extra, batch, key):
        return LossOutput(signals={"probs": jax.nn.sigmoid(batch["inputs"] @ params)})

    ends = []
    for microbatches in (1, 4):
        state = init_state(jnp.ones(3), None, optimizer, key=jax.random.key(0), loss=loss)
        state, metrics = make_step(signals, optimizer, loss=loss, microbatches=microbatches)(state, batch)
        ends.append((state.params, metrics["loss"]))
    whole = lambda params: metric.anyloss(  # noqa: E731
        jax.nn.sigmoid(inputs @ params), LABELS, metric=confusion.g_mean, scale=10.0, mask=batch["mask"]
    )
    value, grad = jax.value_and_grad(whole)(jnp.ones(3))
    for params, reported in ends:
        np.testing.assert_allclose(reported, value, rtol=1e-9)
        np.testing.assert_allclose(params, 1 - 0.1 * grad, rtol=1e-9)


def test_a_ratio_of_sums_is_built_from_its_terms():
    loss = losses.of_sums(lambda x, y: (x * y, y), lambda sums: sums[0] / sums[1], signals=("x", "y"))
    x, y = np.float32([1.0, 2.0, 4.0]), np.float32([1.0, 3.0, 2.0])
    values, _ = loss.update((), x=x, y=y, mask=np.array([1, 0, 1]))
    np.testing.assert_allclose(values, [3.0, 0.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: metric.anyloss(PROBS, LABELS, metric="f1"), "metric"),
        (lambda: metric.anyloss(PROBS, LABELS, scale=0.0), "scale"),
        (lambda: metric.anyloss(PROBS, LABELS, threshold=1.5), "threshold"),
        (lambda: metric.soft_confusion(LABELS, LABELS), "probs"),
        (lambda: metric.batch_anyloss(scale=-1.0), "scale"),
        (lambda: metric.batch_anyloss().update((), probs=PROBS), "labels"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
