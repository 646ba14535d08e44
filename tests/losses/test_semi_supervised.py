"""Pseudo-labels, shrunk class spaces, distribution alignment, and the objectives of them."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight.losses import semi_supervised
from reweight.losses.classification import cross_entropy
from reweight.losses.semi_supervised import (
    distribution_alignment,
    fixmatch,
    pseudo_label_loss,
    shrink_classes,
    shrink_loss,
    shrinkmatch,
)
from reweight.train import LossOutput, init_state, make_step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CLASSES = 5


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def drawn(seed=0, n=200, classes=CLASSES):
    """Logits, and pseudo-labels from sure to undecided."""
    rng = np.random.default_rng(seed)
    pseudo = jax.nn.softmax(rng.choice([0.5, 2.0, 6.0], (n, 1)) * rng.normal(size=(n, classes)))
    return jnp.asarray(2 * rng.normal(size=(n, classes)), jnp.float32), jnp.asarray(pseudo, jnp.float32)


def batch(seed=0, n=24):
    """Signals of a batch in which a third of the examples has a label."""
    rng = np.random.default_rng(seed)
    arrays = {f"{view}logits": np.float32(3 * rng.normal(size=(n, CLASSES))) for view in ("", "strong_", "aux_")}
    return {**arrays, "labels": np.where(np.arange(n) % 3 == 0, rng.integers(0, CLASSES, n), -1)}


def mean_losses(loss, signals, state=None):
    losses, state = loss.update(loss.init() if state is None else state, **signals)
    return jnp.mean(losses), state


# -- golden numbers


@pytest.mark.parametrize("case", golden("shrinkmatch"), ids=range(4))
def test_the_losses_of_unlabelled_examples_agree_with_the_official_code(case, x64):
    threshold = case["params"]["threshold"]
    pseudo, logits = jnp.array(case["inputs"]["pseudo"]), jnp.array(case["inputs"]["aux_logits"])
    expected = case["expected"]
    values, pullback = jax.vjp(lambda x: shrink_loss(x, pseudo, threshold=threshold), logits)
    np.testing.assert_allclose(values, expected["per_example"], rtol=1e-9)
    (grad,) = pullback(jnp.ones_like(values))
    np.testing.assert_allclose(grad, expected["grad_aux_logits_of_sum"], rtol=1e-9, atol=1e-12)
    matched = pseudo_label_loss(logits, pseudo, threshold=threshold, hard=False)
    np.testing.assert_allclose(matched, expected["fixmatch_per_example"], rtol=1e-9)
    removed = np.sum(~shrink_classes(pseudo, threshold=threshold).class_mask, axis=1)
    ranks = np.array(expected["first_kept_rank"])
    np.testing.assert_array_equal(removed[ranks > 0], ranks[ranks > 0] - 1)
    np.testing.assert_array_equal(removed[ranks < 0], 0)


@pytest.mark.parametrize("case", golden("shrinkmatch_steps"), ids=range(2))
def test_a_run_of_shrinkmatch_agrees_with_the_official_code(case, x64):
    params = case["params"]
    alignment = distribution_alignment(params["num_classes"], window=params["window"])
    loss = shrinkmatch(alignment, threshold=params["threshold"])
    update = jax.jit(
        jax.value_and_grad(
            lambda views, state, labels: mean_losses(loss, views | {"labels": labels}, state), has_aux=True
        )
    )
    state = loss.init()
    for step in case["steps"]:
        inputs, expected = step["inputs"], step["expected"]
        labelled, weak = np.array(inputs["labelled_logits"]), np.array(inputs["weak_logits"])
        # What stands for the strong view of labelled examples is not read.
        strong, aux = (np.concatenate([labelled, inputs[name]]) for name in ("strong_logits", "aux_logits"))
        views = {"logits": np.concatenate([labelled, weak]), "strong_logits": strong, "aux_logits": aux}
        labels = np.concatenate([inputs["labels"], np.full(len(weak), -1)])
        statistics, _ = loss.statistics(state, **views, labels=labels)
        np.testing.assert_allclose(statistics.pseudo[len(labelled) :], expected["pseudo"], rtol=1e-9)
        (value, state), grads = update(views, state, labels)
        np.testing.assert_allclose(value, expected["loss"], rtol=1e-9)
        np.testing.assert_allclose(state.certain, expected["certain_ratio_ema"], rtol=1e-9)
        for name, grad in grads.items():
            own, others = grad[: len(labelled)], grad[len(labelled) :]
            if name == "logits":
                np.testing.assert_allclose(own, expected["grad_labelled_logits"], rtol=1e-9, atol=1e-12)
                assert not np.any(others)
            else:
                np.testing.assert_allclose(others, expected[f"grad_{name}"], rtol=1e-9, atol=1e-12)
                assert not np.any(own)


# -- pseudo-labels


def test_without_a_threshold_a_soft_pseudo_label_is_cross_entropy_towards_it():
    logits, pseudo = drawn()
    np.testing.assert_allclose(
        pseudo_label_loss(logits, pseudo, threshold=0.0, hard=False), cross_entropy(logits, pseudo)
    )
    hard = pseudo_label_loss(logits, pseudo, threshold=0.0)
    np.testing.assert_allclose(hard, cross_entropy(logits, jnp.argmax(pseudo, -1)))


def test_uncertain_pseudo_labels_cost_nothing_and_the_edge_is_certain():
    pseudo = jnp.array([[0.75, 0.25, 0.0], [0.74, 0.26, 0.0]])
    losses = pseudo_label_loss(jnp.zeros((2, 3)), pseudo, threshold=0.75)
    np.testing.assert_allclose(losses, [np.log(3), 0], rtol=1e-6)


# -- shrunk class spaces


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.95])
def test_the_fewest_rivals_go_that_make_the_top_class_certain(threshold):
    _, pseudo = drawn(1, n=300, classes=7)
    class_mask, confidence = map(np.asarray, shrink_classes(pseudo, threshold=threshold))
    pseudo = np.float64(pseudo)
    for row, mask, found in zip(pseudo, class_mask, confidence, strict=True):
        order = np.argsort(-row, kind="stable")
        gone = (~mask).sum()
        assert set(np.flatnonzero(~mask)) == set(order[1 : 1 + gone])
        np.testing.assert_allclose(found, row[order[0]] / row[mask].sum(), rtol=1e-5)
        assert found >= threshold or gone == 5
        if gone:
            assert row[order[0]] / row[np.r_[order[0], order[gone:]]].sum() < threshold * (1 + 1e-6)


def test_certain_rows_keep_all_classes_and_cost_nothing_in_the_shrunk_space():
    logits, pseudo = drawn(2)
    certain = np.asarray(pseudo.max(-1) >= 0.6)
    assert 0 < certain.sum() < len(certain)
    assert np.all(np.asarray(shrink_classes(pseudo, threshold=0.6).class_mask)[certain])
    assert not np.any(np.asarray(shrink_loss(logits, pseudo, threshold=0.6))[certain])


def test_without_a_threshold_all_are_certain_and_none_is_left_to_be_made_so():
    logits, pseudo = drawn(3)
    assert not np.any(shrink_loss(logits, pseudo, threshold=0.0))
    assert np.all(shrink_classes(pseudo, threshold=0.0).class_mask)


@pytest.mark.parametrize("classes", [1, 2])
def test_with_two_classes_there_is_none_to_remove(classes):
    logits, pseudo = drawn(4, classes=classes)
    assert np.all(shrink_classes(pseudo, threshold=0.99).class_mask)
    assert not np.any(shrink_loss(logits, pseudo, threshold=0.99))


def test_of_equal_probabilities_the_first_is_the_more_likely():
    class_mask, confidence = shrink_classes(jnp.full((1, 4), 0.25), threshold=0.95)
    np.testing.assert_array_equal(class_mask, [[True, False, False, True]])
    np.testing.assert_allclose(confidence, 0.5)


def test_the_shrunk_loss_moves_no_logit_of_a_class_that_was_removed():
    logits, pseudo = drawn(5)
    grad = np.asarray(jax.grad(lambda x: jnp.sum(shrink_loss(x, pseudo, threshold=0.8)))(logits))
    removed = ~np.asarray(shrink_classes(pseudo, threshold=0.8).class_mask)
    assert np.any(grad)
    assert not np.any(grad[removed])
    np.testing.assert_allclose(grad.sum(-1), 0, atol=1e-6)


def test_more_examples_are_certain_in_their_shrunk_space_than_without():
    _, pseudo = drawn(6)
    reached = shrink_classes(pseudo, threshold=0.8).confidence >= 0.8
    certain = pseudo.max(-1) >= 0.8
    assert np.all(reached[certain])
    assert np.sum(reached) > np.sum(certain)


# -- distribution alignment


def test_with_a_window_of_one_batch_classes_are_wanted_as_often_as_the_target_says():
    # Rows that are alike are moved onto the target itself.
    pseudo = jnp.broadcast_to(jnp.array([0.7, 0.2, 0.1]), (6, 3))
    for target in (None, np.array([1.0, 2.0, 5.0])):
        alignment = distribution_alignment(3, window=1, target=target)
        aligned, _ = alignment.update(alignment.init(), pseudo)
        wanted = np.ones(3) if target is None else target
        np.testing.assert_allclose(aligned, np.broadcast_to(wanted / wanted.sum(), (6, 3)), rtol=1e-6)


def test_alignment_remembers_as_many_batches_as_its_window_has():
    alignment = distribution_alignment(CLASSES, window=3)
    state, means = alignment.init(), []
    for seed in range(5):
        _, pseudo = drawn(seed, n=12)
        means.append(np.asarray(pseudo).mean(0))
        aligned, state = alignment.update(state, pseudo)
        wanted = np.asarray(pseudo) / np.mean(means[-3:], 0)
        np.testing.assert_allclose(aligned, wanted / wanted.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(state, means[-3:], rtol=1e-6)


def test_the_scale_of_the_target_does_not_matter_and_a_class_that_is_not_wanted_goes():
    _, pseudo = drawn(7)
    left, right = (
        distribution_alignment(CLASSES, target=scale * np.array([3.0, 1.0, 0.0, 2.0, 1.0])) for scale in (1.0, 1e30)
    )
    aligned, _ = left.update(left.init(), pseudo)
    np.testing.assert_allclose(aligned, right.update(right.init(), pseudo)[0], rtol=1e-5)
    assert not np.any(aligned[:, 2])


def test_a_class_that_was_never_predicted_leaves_alignment_finite():
    alignment = distribution_alignment(3)
    pseudo = jnp.array([[1.0, 0.0, 0.0], [1.0, 1e-38, 1e-45], [0.5, 0.5, 0.0]])
    aligned, state = alignment.update(alignment.init(), pseudo)
    assert np.all(np.isfinite(aligned))
    np.testing.assert_allclose(np.sum(aligned, -1), 1, rtol=1e-6)
    np.testing.assert_array_equal(aligned[:, 2], 0)
    assert np.all(np.isfinite(alignment.update(state, pseudo)[0]))


# -- objectives


def test_the_mean_is_that_of_the_labelled_plus_that_of_the_unlabelled():
    signals = batch()
    labelled = signals["labels"] >= 0
    pseudo = jax.nn.softmax(signals["logits"])
    supervised = cross_entropy(signals["logits"], np.maximum(signals["labels"], 0))[labelled].mean()
    unlabelled = pseudo_label_loss(signals["strong_logits"], pseudo, threshold=0.8)[~labelled].mean()
    value, _ = mean_losses(fixmatch(threshold=0.8, unlabelled_weight=0.3), signals)
    np.testing.assert_allclose(value, supervised + 0.3 * unlabelled, rtol=1e-6)


def test_without_weight_on_the_unlabelled_only_labels_count():
    signals = batch(1)
    value, _ = mean_losses(fixmatch(unlabelled_weight=0.0), signals)
    labelled = signals["labels"] >= 0
    np.testing.assert_allclose(value, cross_entropy(signals["logits"], signals["labels"])[labelled].mean(), rtol=1e-6)


def test_where_all_are_certain_or_none_was_shrinkmatch_is_fixmatch_with_soft_labels():
    signals = batch(2)
    for threshold in (0.0, 1.0):  # at 1 the share of certain examples, which is the weight, is 0
        left, _ = mean_losses(shrinkmatch(None, threshold=threshold), signals)
        right, _ = mean_losses(fixmatch(threshold=threshold, hard=False), signals)
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_uncertain_examples_count_as_much_as_the_running_share_of_certain_ones():
    signals, threshold = batch(3), 0.8
    unlabelled = signals["labels"] < 0
    pseudo = jax.nn.softmax(signals["logits"])
    ratio = float(np.mean(pseudo.max(-1)[unlabelled] >= threshold))
    loss = shrinkmatch(None, threshold=threshold, decay=0.75)
    first, state = mean_losses(loss, signals)
    np.testing.assert_allclose(state.certain, ratio, rtol=1e-6)
    plain, _ = mean_losses(fixmatch(threshold=threshold, hard=False), signals)
    shrunk = shrink_loss(signals["aux_logits"], pseudo, threshold=threshold)[unlabelled].mean()
    np.testing.assert_allclose(first - plain, ratio * shrunk, rtol=1e-4)
    sure = signals | {"logits": 100 * np.eye(CLASSES, dtype=np.float32)[np.arange(24) % CLASSES]}
    _, state = mean_losses(loss, sure, state)
    np.testing.assert_allclose(state.certain, 0.75 * ratio + 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    "loss", [fixmatch(distribution_alignment(CLASSES)), shrinkmatch(distribution_alignment(CLASSES))]
)
def test_a_strong_view_is_not_read_where_there_is_a_label_and_pseudo_labels_are_constant(loss):
    signals = batch(4)
    labelled = signals["labels"] >= 0
    dirty = {
        name: np.where(labelled[:, None], np.nan, array) if name in ("strong_logits", "aux_logits") else array
        for name, array in signals.items()
    }
    clean, state = loss.update(loss.init(), **signals)
    came, other = loss.update(loss.init(), **dirty)
    np.testing.assert_array_equal(came, clean)
    jax.tree.map(np.testing.assert_array_equal, other, state)
    grad = jax.grad(lambda x: mean_losses(loss, dirty | {"logits": x})[0])(signals["logits"])
    assert np.all(np.isfinite(grad))
    assert not np.any(np.asarray(grad)[~labelled])


def test_a_batch_without_labels_or_with_nothing_else_is_no_division_by_zero():
    signals = batch(5)
    loss = shrinkmatch(distribution_alignment(CLASSES))
    for labels in (np.full(24, -1), np.arange(24) % CLASSES):
        losses, state = loss.update(loss.init(), **signals | {"labels": labels})
        assert np.all(np.isfinite(losses))
        assert bool(state.started) == bool(np.any(labels < 0))
        assert np.any(state.alignment) == bool(np.any(labels < 0))


@pytest.mark.parametrize("make", [fixmatch, shrinkmatch])
def test_microbatches_learn_what_the_whole_batch_does(make, x64):
    loss = make(distribution_alignment(CLASSES, window=2), threshold=0.5)
    optimizer = optax.sgd(0.3)

    def views(params, extra, given, key):
        del extra, key
        names = {"logits": "weak", "strong_logits": "strong", "aux_logits": "aux"}
        return LossOutput(signals={name: given[view] @ params for name, view in names.items()})

    ends = []
    for microbatches in (1, 3):
        params = jax.random.normal(jax.random.key(0), (4, CLASSES))
        state = init_state(params, None, optimizer, None, jax.random.key(1), loss=loss)
        step = jax.jit(make_step(views, optimizer, loss=loss, microbatches=microbatches))
        for seed in range(3):
            rng = np.random.default_rng(seed)
            given = {view: rng.normal(size=(12, 4)) for view in ("weak", "strong", "aux")}
            # The labelled ones lie in one microbatch of three, masked ones in another.
            labels = np.where(np.arange(12) % 3 == 0, rng.integers(0, CLASSES, 12), -1)
            state, metrics = step(state, given | {"labels": labels, "mask": np.arange(12) % 6 != 1})
        ends.append((state.params, state.loss_state, metrics["loss"]))
        assert float(jnp.max(jnp.abs(state.params - params))) > 1e-2
    for left, right in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9)


def test_a_static_mistake_is_named():
    logits, pseudo = drawn()
    signals = batch()
    align = distribution_alignment(3)
    for call, named in (
        (lambda: pseudo_label_loss(logits, pseudo[:, 1:]), "pseudo"),
        (lambda: shrink_loss(logits, jnp.argmax(pseudo, -1)), "pseudo"),
        (lambda: shrink_classes(pseudo, threshold=1.5), "threshold"),
        (lambda: distribution_alignment(3, target=np.ones(4)), "target"),
        (lambda: align.update(align.init(), pseudo), "probs"),
        (lambda: fixmatch(threshold=-1.0), "threshold"),
        (lambda: shrinkmatch(32), "alignment"),
        (lambda: fixmatch(align).update(align.init(), **signals), "probs"),
        (lambda: fixmatch().update((), logits=signals["logits"], labels=signals["labels"]), "strong_logits"),
        (lambda: fixmatch().update((), **signals | {"strong_logits": logits}), "strong_logits"),
        (functools.partial(semi_supervised.fixmatch, unlabelled_weight=-1.0), "unlabelled_weight"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
