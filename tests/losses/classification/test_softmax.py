import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses import classification

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
EFFECTIVE = json.loads((GOLDEN / "effective_number_and_focal.json").read_text())["cases"][:3]
B, C = 4, 3

logits_at_large = st.lists(st.floats(-30, 30, width=32), min_size=B * C, max_size=B * C)
LABELS = np.array([2, 0, 1, 2])


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


graded = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(classification.cross_entropy(x, y))))
graded_focal = jax.jit(jax.value_and_grad(lambda x, y, g: jnp.sum(classification.focal_loss(x, y, gamma=g))))
per_example = jax.jit(lambda x, y, m: classification.cross_entropy(x, y, class_mask=m))


@hypothesis.given(values=logits_at_large)
def test_cross_entropy_is_minus_the_log_probability_of_the_label(values):
    logits = np.float32(values).reshape(B, C)
    losses = per_example(logits, LABELS, np.ones((B, C)))
    np.testing.assert_allclose(losses, -log_softmax(logits)[np.arange(B), LABELS], rtol=1e-5, atol=1e-6)


@hypothesis.given(values=logits_at_large, seed=st.integers(0, 100))
def test_cross_entropy_of_probabilities_is_the_expectation_over_labels(values, seed):
    logits = np.float32(values).reshape(B, C)
    targets = np.random.default_rng(seed).dirichlet(np.ones(C), B).astype(np.float32)
    losses = per_example(logits, targets, np.ones((B, C)))
    np.testing.assert_allclose(losses, -np.sum(targets * log_softmax(logits), -1), rtol=1e-4, atol=1e-5)


def test_one_hot_probabilities_are_labels():
    logits = np.random.default_rng(0).normal(size=(B, C)).astype(np.float32)
    one_hot = jax.nn.one_hot(LABELS, C)
    for left, right in zip(graded(logits, LABELS), graded(logits, one_hot), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_logits_of_ten_thousand_give_finite_losses_and_gradients(size):
    logits = np.float32(size) * np.array([[1, -1, 0], [1, 1, -1], [0, 0, 1], [-1, 1, 1]], np.float32)
    for value, grad in (
        graded(logits, LABELS),
        graded(logits, np.full((B, C), 1 / 3, np.float32)),
        graded_focal(logits, LABELS, 0.5),
        graded_focal(logits, LABELS, 2.0),
    ):
        assert np.isfinite(value)
        assert np.all(np.isfinite(grad))


def test_small_losses_keep_their_digits_at_large_logits():
    logits = np.float32([[9000.0, 8990.0, 8980.0]])
    loss = classification.cross_entropy(logits, np.array([0]))
    # The spacing of float32 at 9000 is 1e-3, twenty times the loss.
    np.testing.assert_allclose(loss, -log_softmax(logits)[:, 0], rtol=1e-3)


@pytest.mark.parametrize("label", [-1, -100, C, 10**6])
def test_a_label_that_is_no_class_costs_nothing(label):
    logits = np.random.default_rng(1).normal(size=(B, C)).astype(np.float32)
    labels = np.array([label, 0, 1, 2])
    for function in (graded, lambda x, y: graded_focal(x, y, 2.0)):
        _, grad = function(logits, labels)
        assert np.all(np.asarray(grad[0]) == 0)
        assert np.any(np.asarray(grad[1]) != 0)
    assert classification.cross_entropy(logits, labels)[0] == 0
    assert classification.focal_loss(logits, labels, gamma=0.0)[0] == 0


def test_masked_classes_are_left_out_of_the_softmax_and_never_read():
    logits = np.random.default_rng(2).normal(size=(B, C)).astype(np.float32)
    mask = np.array([1, 0, 1])
    poisoned = np.where(mask, logits, np.nan)
    labels = np.array([0, 1, 0, 0])
    value, grad = jax.jit(
        jax.value_and_grad(
            lambda x: jnp.sum(classification.cross_entropy(x, np.where(labels == 1, 2, labels), class_mask=mask))
        )
    )(poisoned)
    expected, expected_grad = graded(logits[:, [0, 2]], labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(grad)[:, [0, 2]], expected_grad, rtol=1e-5)
    assert np.all(np.asarray(grad)[:, 1] == 0)


def test_target_probabilities_of_masked_classes_are_never_read():
    logits = np.random.default_rng(3).normal(size=(B, C)).astype(np.float32)
    mask = np.array([[1, 1, 0]])
    targets = np.broadcast_to(np.float32([0.25, 0.75, np.nan]), (B, C))
    losses = per_example(logits, targets, np.broadcast_to(mask, (B, C)))
    np.testing.assert_allclose(losses, -log_softmax(logits[:, :2]) @ [0.25, 0.75], rtol=1e-5)


def test_a_masked_label_and_a_row_without_classes_cost_nothing():
    logits = np.random.default_rng(4).normal(size=(B, C)).astype(np.float32)
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]])
    for labels in (np.array([2, 1, 0, 0]), np.float32([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 0]])):
        value, grad = jax.jit(
            jax.value_and_grad(lambda x, y: jnp.sum(classification.cross_entropy(x, y, class_mask=mask)[:2]))
        )(logits, labels)
        assert value == 0
        assert np.all(np.asarray(grad) == 0)


def test_losses_have_the_shape_of_the_labels():
    logits = np.random.default_rng(5).normal(size=(2, 5, C)).astype(np.float32)
    labels = np.random.default_rng(5).integers(0, C, (2, 5))
    losses = jax.jit(classification.cross_entropy)(logits, labels)
    assert losses.shape == (2, 5)
    np.testing.assert_allclose(
        losses.ravel(), -np.take_along_axis(log_softmax(logits), labels[..., None], -1).ravel(), rtol=1e-5
    )
    alone = jax.jit(classification.cross_entropy)(logits[0, 0], labels[0, 0])
    assert alone.shape == ()
    np.testing.assert_allclose(alone, losses[0, 0], rtol=1e-6)


def test_bfloat16_logits_give_float32_losses():
    logits = jnp.asarray(np.random.default_rng(6).normal(size=(B, C)), jnp.bfloat16)
    wide = logits.astype(jnp.float32)
    counts = np.float32([5, 1, 3])
    for function in (
        classification.cross_entropy,
        classification.focal_loss,
        lambda x, y: classification.logit_adjusted_cross_entropy(x, y, class_counts=counts),
    ):
        losses = function(logits, LABELS)
        assert losses.dtype == jnp.float32
        np.testing.assert_allclose(losses, function(wide, LABELS), rtol=1e-6)


@pytest.mark.parametrize("case", EFFECTIVE, ids=range(len(EFFECTIVE)))
def test_focal_loss_and_cross_entropy_agree_with_the_golden_numbers(case, x64):
    logits, labels = jnp.array(case["inputs"]["logits"]), jnp.array(case["inputs"]["labels"])
    gamma, expected = case["params"]["focal_gamma"], case["expected"]
    # The stored losses are quotients of numbers of 12 digits, some after a difference.
    np.testing.assert_allclose(
        classification.cross_entropy(logits, labels), expected["cross_entropy_per_example"], rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose(
        classification.focal_loss(logits, labels, gamma=gamma), expected["focal_per_example"], rtol=1e-8, atol=1e-9
    )


@hypothesis.given(values=logits_at_large, gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_focal_loss_and_its_gradient_are_the_formula(values, gamma):
    logits = np.float32(values).reshape(B, C)
    value, grad = graded_focal(logits, LABELS, gamma)
    log_p = log_softmax(logits)
    log_y = log_p[np.arange(B), LABELS]
    missing = -np.expm1(log_y)
    np.testing.assert_allclose(value, -np.sum(missing**gamma * log_y), rtol=1e-4, atol=1e-5)
    slope = gamma * np.exp(log_y) * np.where(missing > 0, missing, 1) ** (gamma - 1) * log_y - missing**gamma
    slope = np.where(missing > 0, slope, 0)
    expected = slope[:, None] * (np.eye(C)[LABELS] - np.exp(log_p))
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5)


def test_focal_loss_at_gamma_zero_is_cross_entropy():
    logits = np.random.default_rng(10).normal(size=(B, C)).astype(np.float32)
    for left, right in zip(graded_focal(logits, LABELS, 0.0), graded(logits, LABELS), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)


@hypothesis.given(values=logits_at_large)
def test_entropy_and_its_gradient_are_the_formula(values):
    logits = np.float32(values).reshape(B, C)
    value, grad = jax.jit(jax.value_and_grad(lambda x: jnp.sum(classification.prediction_entropy(x))))(logits)
    log_p = log_softmax(logits)
    entropies = -np.sum(np.exp(log_p) * log_p, axis=1)
    np.testing.assert_allclose(value, entropies.sum(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad, -np.exp(log_p) * (log_p + entropies[:, None]), rtol=1e-3, atol=1e-5)


def test_entropy_is_that_of_the_classes_that_count():
    logits = np.random.default_rng(11).normal(size=(B, C)).astype(np.float32)
    np.testing.assert_allclose(classification.prediction_entropy(np.zeros((B, C), np.float32)), np.log(C), rtol=1e-6)
    two = np.array([True, False, True])
    np.testing.assert_allclose(
        classification.prediction_entropy(logits, class_mask=two), classification.prediction_entropy(logits[:, two]),
        rtol=1e-5,
    )  # fmt: skip
    np.testing.assert_array_equal(classification.prediction_entropy(logits, class_mask=np.array([0, 0, 1])), 0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: classification.cross_entropy(x, np.array([0, 1])), "labels"),
        (lambda x: classification.cross_entropy(x, np.ones((B, C + 1), np.float32)), "labels"),
        (lambda x: classification.cross_entropy(x, np.ones(B, np.float32)), "labels"),
        (lambda x: classification.cross_entropy(x.astype(int), LABELS), "logits"),
        (lambda x: classification.cross_entropy(x[0, 0], LABELS), "logits"),
        (lambda x: classification.cross_entropy(x, LABELS, class_mask=np.ones(B)), "class_mask"),
        (lambda x: classification.focal_loss(x, LABELS, gamma=-1.0), "gamma"),
        (lambda x: classification.focal_loss(x, np.ones((B, C), np.float32)), "labels"),
        (lambda x: classification.prediction_entropy(x.astype(int)), "logits"),
        (lambda x: classification.logit_adjusted_cross_entropy(x, LABELS, class_counts=np.ones(2)), "class_counts"),
        (lambda x: classification.logit_adjusted_cross_entropy(x, LABELS, class_counts=np.ones(C), tau=-1), "tau"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(np.ones((B, C), np.float32))
