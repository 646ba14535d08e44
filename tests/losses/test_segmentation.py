import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight.losses import classification, segmentation
from reweight.train import LossOutput, init_state, make_step

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "fair_error_bound.json").read_text())
CASES = GOLDEN["cases"][:3]
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-12}
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 2, 3, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, (6, 2, 3))
GROUPS = np.array([0, 1, 1, 0, 2, 1])
BEST = np.tanh(1.0)


def last(array):
    """From the official code's [batch, classes, height, width]."""
    return np.moveaxis(np.array(array), 1, -1)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_losses_agree_with_the_golden_numbers(case, x64):
    params, expected = case["params"], case["expected"]
    logits, labels, groups = (
        last(case["inputs"]["logits"]),
        *(np.array(case["inputs"][n]) for n in ("labels", "groups")),
    )
    probs = jax.nn.softmax(logits)
    sums, sizes = segmentation.group_dice_sums(probs, labels, groups, num_groups=params["n_groups"])
    errors = segmentation.dice_errors(sums, smooth=params["smooth"]).sum(-1)
    np.testing.assert_allclose(errors, expected["group_dice_error"], **CLOSE)
    weights = segmentation.error_bound_weights(errors, sizes, gamma=params["gamma"])
    np.testing.assert_allclose(weights, expected["group_weight"], **CLOSE)
    np.testing.assert_allclose(
        segmentation.dice_loss(probs, labels, smooth=params["smooth"]), expected["plain_dice"], **CLOSE
    )

    def fair(logits):
        return segmentation.fair_error_bound_dice(
            logits, labels, groups, num_groups=params["n_groups"], gamma=params["gamma"], smooth=params["smooth"]
        )

    value, grad = jax.value_and_grad(fair)(logits)
    np.testing.assert_allclose(value, expected["fair_dice"], **CLOSE)
    np.testing.assert_allclose(grad, last(expected["grad_logits_fair_dice"]), **CLOSE)
    entropy = jnp.mean(classification.cross_entropy(logits, labels))
    np.testing.assert_allclose(entropy, expected["mean_ce"], **CLOSE)
    loss = segmentation.batch_fair_error_bound(
        num_groups=params["n_groups"],
        gamma=params["gamma"],
        smooth=params["smooth"],
        dice_weight=params["dice_weight"],
    )
    values, _ = loss.update((), logits=logits, labels=labels, groups=groups)
    np.testing.assert_allclose(jnp.mean(values), expected["total"], **CLOSE)


def test_without_gamma_and_with_one_group_the_weight_is_that_of_the_best():
    errors = np.float32([0.2, 0.9, 0.5])
    np.testing.assert_allclose(segmentation.error_bound_weights(errors, np.ones(3), gamma=0.0), BEST, rtol=1e-6)
    np.testing.assert_allclose(segmentation.error_bound_weights(errors[:1], np.ones(1)), BEST, rtol=1e-6)


def test_worse_groups_get_less_and_absent_ones_are_never_read():
    errors, present = np.float32([0.2, np.nan, 0.5, 0.9]), np.array([1, 0, 1, 1])
    weights = segmentation.error_bound_weights(errors, present)
    np.testing.assert_allclose(weights, np.tanh([1, 1, 0.4, 0.2 / 0.9]), rtol=1e-6)
    np.testing.assert_allclose(segmentation.error_bound_weights(np.zeros(2, np.float32), np.ones(2)), BEST, rtol=1e-6)
    assert np.all(np.isfinite(segmentation.error_bound_weights(errors, np.zeros(4))))


def test_an_error_of_zero_for_an_absent_group_takes_all_weights_to_zero_as_in_the_released_code():
    weights = segmentation.error_bound_weights(np.float32([0.2, 0, 0.5]), np.ones(3))
    np.testing.assert_allclose(weights, [0, BEST, 0], rtol=1e-6)


def test_a_group_that_is_not_in_the_batch_changes_nothing():
    losses = [
        segmentation.fair_error_bound_dice(LOGITS, LABELS, groups, num_groups=size)
        for groups, size in ((GROUPS, 3), (GROUPS + 2, 7))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_no_gradient_flows_through_the_weights():
    def scaled(logits, weighting):
        probs = jax.nn.softmax(logits)
        sums, sizes = segmentation.group_dice_sums(jax.nn.softmax(weighting), LABELS, GROUPS, num_groups=3)
        own = segmentation.error_bound_weights(segmentation.dice_errors(sums).sum(-1), sizes)[GROUPS]
        return segmentation.dice_loss(probs * own[:, None, None, None], LABELS)

    fair = jax.grad(lambda x: segmentation.fair_error_bound_dice(x, LABELS, GROUPS, num_groups=3))(LOGITS)
    np.testing.assert_allclose(fair, jax.grad(scaled)(LOGITS, LOGITS), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(jax.grad(scaled, argnums=1)(LOGITS, LOGITS), 0)


def test_the_sums_of_pieces_give_the_loss_of_the_whole():
    probs = jax.nn.softmax(LOGITS)
    pieces = [segmentation.dice_sums(probs[s], LABELS[s]) for s in (slice(1), slice(1, 6))]
    added = jax.tree.map(jnp.add, *pieces)
    np.testing.assert_allclose(
        jnp.mean(segmentation.dice_errors(added)), segmentation.dice_loss(probs, LABELS), rtol=1e-6
    )
    by_group, sizes = segmentation.group_dice_sums(probs, LABELS, GROUPS, num_groups=3)
    for came, wanted in zip(by_group, added, strict=True):
        np.testing.assert_allclose(came.sum(0), wanted, rtol=1e-5)
    np.testing.assert_array_equal(sizes, [2, 3, 1])


def test_a_perfect_segmentation_costs_nothing_and_a_missing_class_neither():
    labels = np.zeros((2, 3), int)
    probs = jax.nn.one_hot(labels, 3)
    np.testing.assert_allclose(segmentation.dice_loss(probs, labels), 0, atol=1e-6)
    np.testing.assert_allclose(segmentation.dice_loss(1 - probs, labels), 1, atol=1e-4)


def test_pixels_without_a_class_are_left_out():
    labels = np.where(np.arange(3) == 1, 255, LABELS)
    for function in (
        lambda x, y: segmentation.dice_loss(jax.nn.softmax(x), y),
        lambda x, y: segmentation.fair_error_bound_dice(x, y, GROUPS, num_groups=3),
    ):
        wanted = function(LOGITS[:, :, [0, 2]], LABELS[:, :, [0, 2]])
        np.testing.assert_allclose(function(LOGITS, labels), wanted, rtol=1e-6)


def test_the_cross_entropy_is_the_mean_over_the_labelled_pixels_of_the_batch(x64):
    labels, mask = LABELS.copy(), np.arange(6) != 5
    labels[0], labels[1, 0] = 255, -1
    known = (labels >= 0) & (labels < 4) & mask[:, None, None]
    logits = np.where(known[..., None], LOGITS.astype(float), np.nan)
    given = {"labels": labels, "groups": GROUPS, "mask": mask}
    loss = segmentation.batch_fair_error_bound(num_groups=3, dice_weight=0.3)
    value, grad = jax.value_and_grad(lambda x: jnp.sum(loss.update((), logits=x, **given)[0]) / 5)(logits)
    entropy = jnp.mean(classification.cross_entropy(np.nan_to_num(logits), labels)[known])
    dice = segmentation.fair_error_bound_dice(logits, num_groups=3, **given)
    np.testing.assert_allclose(value, 0.3 * dice + 0.7 * entropy, rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(grad)[~known], 0)
    assert np.all(np.isfinite(grad))


def test_a_step_in_microbatches_is_that_of_the_batch(x64):
    inputs, mask = RNG.normal(size=(6, 5, 3)), np.arange(6) != 3
    labels = np.where(RNG.random((6, 5)) < 0.8, RNG.integers(0, 2, (6, 5)), 255)
    batch = {"inputs": inputs, "labels": labels, "groups": GROUPS, "mask": mask}
    loss, optimizer = segmentation.batch_fair_error_bound(num_groups=4, dice_weight=0.7), optax.sgd(0.1)

    def signals(params, extra, batch, key):
        return LossOutput(signals={"logits": batch["inputs"] @ params})

    def whole(params):
        logits = inputs @ params
        dice = segmentation.fair_error_bound_dice(logits, labels, GROUPS, num_groups=4, mask=mask)
        return 0.7 * dice + 0.3 * jnp.mean(classification.cross_entropy(logits, labels)[mask[:, None] & (labels < 2)])

    start = RNG.normal(size=(3, 2))
    value, grad = jax.value_and_grad(whole)(start)
    for microbatches in (1, 3):
        state = init_state(jnp.asarray(start), None, optimizer, key=jax.random.key(0), loss=loss)
        state, metrics = make_step(signals, optimizer, loss=loss, microbatches=microbatches)(state, batch)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-9)
        np.testing.assert_allclose(state.params, start - 0.1 * grad, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: segmentation.dice_loss(LOGITS, LABELS[:2]), "labels"),
        (lambda: segmentation.dice_loss(LOGITS, LABELS, smooth=0.0), "smooth"),
        (lambda: segmentation.dice_loss(LOGITS, LABELS, mask=np.ones(2)), "mask"),
        (lambda: segmentation.fair_error_bound_dice(LOGITS, LABELS, GROUPS[:2], num_groups=3), "groups"),
        (lambda: segmentation.fair_error_bound_dice(LOGITS, LABELS, GROUPS, num_groups=0), "num_groups"),
        (lambda: segmentation.batch_fair_error_bound(num_groups=3, dice_weight=2.0), "dice_weight"),
        (lambda: segmentation.error_bound_weights(np.ones(3), np.ones(2)), "present"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
