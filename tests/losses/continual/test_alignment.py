import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses import classification, continual

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "weight_aligning.json").read_text())
CASES = GOLDEN["cases"]
HEADS = [case for case in CASES if "logits" in case["inputs"]]
RTOL = 1e-9


def drawn(seed=0, n=6, classes=5, old=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(n, classes)).astype("f"), labels, rng.normal(size=(n, old)).astype("f")


def norms(kernel):
    return np.linalg.norm(kernel, axis=0)


@pytest.mark.parametrize("case", HEADS, ids=range(len(HEADS)))
def test_losses_agree_with_the_golden_numbers(case, x64):
    logits, old, labels = (jnp.array(case["inputs"][k]) for k in ("logits", "old_logits", "labels"))
    expected = case["expected"]
    found = continual.old_class_distillation(logits, old, temperature=case["params"]["temperature"])
    np.testing.assert_allclose(found, expected["lwf_kd_per_example"], rtol=RTOL)
    losses = continual.distilled_cross_entropy(logits, labels, old, temperature=case["params"]["temperature"])
    np.testing.assert_allclose(losses, expected["wa_loss_per_example"], rtol=RTOL)
    value, grad = jax.value_and_grad(lambda z: jnp.mean(continual.distilled_cross_entropy(z, labels, old)))(logits)
    np.testing.assert_allclose(value, expected["wa_loss_mean"], rtol=RTOL)
    np.testing.assert_allclose(grad, expected["grad_logits_mean"], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("case", [case for case in CASES if "W" in case["inputs"]], ids=range(3))
def test_aligned_weights_agree_with_the_golden_numbers(case, x64):
    rows = jnp.array(case["inputs"]["W"])
    new = jnp.arange(len(rows)) >= case["params"]["n_old"]
    aligned = continual.align_weights(rows, new, class_axis=0)
    np.testing.assert_allclose(aligned, case["expected"]["W_aligned"], rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(continual.align_weights(rows.T, new), aligned.T, rtol=1e-12)


def test_the_examples_kept_agree_with_the_golden_numbers(x64):
    case = CASES[2]
    features = jnp.array(case["inputs"]["features"])
    np.testing.assert_array_equal(continual.herding(features, 5), case["expected"]["herding_order"])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.mean(0), case["expected"]["class_mean_of_unit_features"], rtol=1e-6)
    np.testing.assert_array_equal(continual.herding(unit, 5, normalize=False), case["expected"]["herding_order"])


def test_distillation_of_old_classes_sees_nothing_of_the_new_ones():
    logits, _, old = drawn()
    moved = logits + np.float32([0, 0, 0, 7, -3])
    np.testing.assert_array_equal(
        continual.old_class_distillation(logits, old), continual.old_class_distillation(moved, old)
    )
    grad = jax.grad(lambda z: continual.old_class_distillation(z, old).sum())(jnp.asarray(logits))
    assert not np.any(grad[:, 3:])
    np.testing.assert_allclose(grad.sum(axis=1), 0, atol=1e-6)


def test_distillation_is_least_where_the_models_agree():
    logits, _, old = drawn()
    at = jnp.concatenate([old + 3.0, logits[:, 3:]], axis=1)
    grad = jax.grad(lambda z: continual.old_class_distillation(z, old).sum())(at)
    np.testing.assert_allclose(grad, 0, atol=1e-6)
    assert np.all(continual.old_class_distillation(at, old) < continual.old_class_distillation(logits, old))


def test_no_gradient_flows_to_the_old_model():
    logits, labels, old = drawn()
    grad = jax.grad(lambda z: continual.distilled_cross_entropy(logits, labels, z).sum())(jnp.asarray(old))
    assert not np.any(grad)


def test_without_old_classes_it_is_cross_entropy():
    logits, labels, _ = drawn()
    wanted = classification.cross_entropy(logits, labels)
    none = np.zeros((6, 0), np.float32)
    np.testing.assert_array_equal(continual.distilled_cross_entropy(logits, labels, none), wanted)
    hidden = continual.distilled_cross_entropy(logits, labels, np.full((6, 5), np.nan, "f"), old_mask=np.zeros(5))
    np.testing.assert_array_equal(hidden, wanted)


def test_a_head_with_room_for_more_gives_the_losses_of_one_that_grew():
    logits, labels, old = drawn()
    wider = np.concatenate([logits, np.full((6, 3), np.nan, "f")], axis=1)
    old_wider = np.concatenate([old, np.full((6, 5), np.nan, "f")], axis=1)
    found = continual.distilled_cross_entropy(
        wider, labels, old_wider, class_mask=np.arange(8) < 5, old_mask=np.arange(8) < 3
    )
    np.testing.assert_allclose(found, continual.distilled_cross_entropy(logits, labels, old), rtol=1e-6)


def test_the_share_may_be_given():
    logits, labels, old = drawn()
    for share in (0.0, 0.25, 1.0):
        wanted = (1 - share) * classification.cross_entropy(logits, labels)
        wanted += share * continual.old_class_distillation(logits, old)
        found = continual.distilled_cross_entropy(logits, labels, old, distillation_weight=share)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


NEW = np.array([False, True, False, True, True, False])
KERNEL = np.random.default_rng(3).normal(size=(4, 6)).astype("f") * np.where(NEW, 3.0, 1.0).astype("f")


def test_aligned_weights_have_one_mean_length_and_keep_their_directions():
    aligned = continual.align_weights(KERNEL, NEW)
    np.testing.assert_allclose(norms(aligned)[NEW].mean(), norms(KERNEL)[~NEW].mean(), rtol=1e-6)
    np.testing.assert_array_equal(aligned[:, ~NEW], KERNEL[:, ~NEW])
    factors = np.asarray(aligned / KERNEL)[:, NEW]
    np.testing.assert_allclose(factors, factors[0, 0], rtol=1e-5)
    features = np.random.default_rng(4).normal(size=(50, 4)).astype("f")
    before, after = features @ KERNEL[:, NEW], features @ aligned[:, NEW]
    np.testing.assert_array_equal(before.argmax(1), after.argmax(1))


def test_aligning_twice_is_aligning_once_and_equal_lengths_stay():
    once = continual.align_weights(KERNEL, NEW)
    np.testing.assert_allclose(continual.align_weights(once, NEW), once, rtol=1e-6)
    unit = KERNEL / norms(KERNEL)
    np.testing.assert_allclose(continual.align_weights(unit, NEW), unit, rtol=1e-6)


def test_the_factor_is_proportional_to_the_old_lengths():
    aligned = continual.align_weights(KERNEL, NEW)
    longer = continual.align_weights(np.where(NEW, 1, 5).astype("f") * KERNEL, NEW)
    np.testing.assert_allclose(longer, 5 * aligned, rtol=1e-5)


def test_each_class_may_be_scaled_by_itself():
    aligned = continual.align_weights(KERNEL, NEW, per_class=True)
    np.testing.assert_allclose(norms(aligned)[NEW], norms(KERNEL)[~NEW].mean(), rtol=1e-6)


def test_nothing_old_nothing_new_or_nothing_there_leaves_the_weights():
    for new in (np.zeros(6, bool), np.ones(6, bool)):
        np.testing.assert_array_equal(continual.align_weights(KERNEL, new), KERNEL)
    none = np.where(NEW, 0, KERNEL)
    for per_class in (False, True):
        np.testing.assert_array_equal(continual.align_weights(none, NEW, per_class=per_class), none)


def test_classes_still_to_come_count_nowhere_and_keep_their_weights():
    known = np.arange(6) < 4
    aligned = continual.align_weights(KERNEL, NEW, class_mask=known)
    np.testing.assert_array_equal(aligned[:, 4:], KERNEL[:, 4:])
    np.testing.assert_allclose(aligned[:, :4], continual.align_weights(KERNEL[:, :4], NEW[:4]), rtol=1e-6)


def features(n=40, seed=5):
    return np.random.default_rng(seed).normal(size=(n, 3)).astype("f") + 1


def test_examples_are_kept_once_and_a_longer_list_begins_with_the_shorter():
    x = features()
    picked = np.asarray(continual.herding(x, 15))
    assert len(set(picked)) == 15
    np.testing.assert_array_equal(continual.herding(x, 4), picked[:4])


def test_the_mean_of_the_kept_is_closer_than_that_of_random_ones():
    x = features()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = lambda ids: np.linalg.norm(unit[ids].mean(0) - unit.mean(0))  # noqa: E731
    rng = np.random.default_rng(6)
    by_chance = [distance(rng.permutation(40)[:6]) for _ in range(100)]
    assert distance(np.asarray(continual.herding(x, 6))) < np.quantile(by_chance, 0.02)


def test_each_class_picks_among_its_own():
    x, labels = features(), np.arange(40) % 3
    picked = jax.vmap(lambda c: continual.herding(x, 20, mask=labels == c))(jnp.arange(3))
    for c, own in enumerate(np.asarray(picked)):
        count = (labels == c).sum()
        assert set(labels[own[:count]]) == {c}
        np.testing.assert_array_equal(own[count:], -1)
        alone = np.flatnonzero(labels == c)
        np.testing.assert_array_equal(own[:count], alone[continual.herding(x[alone], 20)[:count]])


def test_of_no_example_none_is_kept():
    np.testing.assert_array_equal(continual.herding(np.zeros((0, 3), "f"), 2), [-1, -1])
    np.testing.assert_array_equal(continual.herding(features(), 2, mask=np.zeros(40)), [-1, -1])


def test_mistakes_are_named():
    logits, labels, old = drawn()
    for call, named in (
        (lambda: continual.old_class_distillation(old, logits), "old_logits"),
        (lambda: continual.distilled_cross_entropy(logits, labels, old, class_mask=np.ones(4)), "class_mask"),
        (
            lambda: continual.distilled_cross_entropy(logits, labels, old, distillation_weight=1.5),
            "distillation_weight",
        ),
        (lambda: continual.align_weights(KERNEL, NEW[:-1]), "new_classes"),
        (lambda: continual.herding(features(), 0), "num_selected"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
