import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses import continual, contrastive

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "prototype_sample_relation.json").read_text())
CASES = GOLDEN["cases"]
close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-11)


def joined(lists):
    """Prototypes of several tasks in one array, and which task each belongs to."""
    tasks = np.concatenate([np.full(len(rows), k) for k, rows in enumerate(lists)])
    return jnp.concatenate([jnp.array(rows, float) for rows in lists]), tasks


def of_case(case):
    inputs = case["inputs"]
    prototypes, tasks = joined(inputs["prototypes"])
    old_prototypes, _ = joined(inputs["old_prototypes"])
    return jnp.array(inputs["features"]), jnp.array(inputs["old_features"]), prototypes, old_prototypes, tasks


def drawn(seed=0, n=6, classes=5, size=4):
    rng = np.random.default_rng(seed)
    f, g = rng.normal(size=(2, n, size)).astype("f")
    w, v = rng.normal(size=(2, classes, size)).astype("f")
    return f, g, w, v, np.array([0, 0, 1, 1, -1])


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_distillation_of_relations_agrees_with_the_golden_numbers(case, x64):
    features, old_features, prototypes, old_prototypes, tasks = of_case(case)
    expected, temperature = case["expected"], case["params"]["temperature"]

    def mean(features, prototypes):
        losses = continual.relation_distillation(
            features, old_features, prototypes, old_prototypes, tasks, temperature=temperature
        )
        return jnp.mean(losses), losses

    (value, losses), grads = jax.value_and_grad(mean, (0, 1), has_aux=True)(features, prototypes)
    close(losses, expected["distillation_per_row"])
    close(value, expected["distillation_mean"])
    close(grads[0], expected["grad_features_distillation_mean"])
    close(grads[1], np.concatenate(expected["grad_prototypes_distillation_mean"]))
    for task, wanted in enumerate(expected["distillation_by_task"]):
        only = np.where(tasks == task, task, -1)
        losses = continual.relation_distillation(
            features, old_features, prototypes, old_prototypes, only, temperature=temperature
        )
        close(losses.mean(), wanted)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_prototypes_agree_with_the_golden_numbers(case, x64):
    features, current = (jnp.array(case["inputs"][k]) for k in ("features", "current_prototypes"))
    labels, expected = jnp.array(case["inputs"]["labels"]), case["expected"]
    close(continual.prototype_scores(features, current), expected["prototype_scores"])
    losses = continual.prototype_loss(features, current, labels)
    close(losses, expected["prototype_loss_per_row"])
    grad = jax.grad(lambda w: continual.prototype_loss(features, w, labels).mean())(current)
    close(grad, expected["grad_current_prototypes"])


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_whole_loss_is_made_of_the_golden_parts(case, x64):
    views = jnp.array(case["inputs"]["supcon_features"])
    labels = jnp.array(case["inputs"]["supcon_labels"])
    unit = views / jnp.linalg.norm(views, axis=-1, keepdims=True)
    features, old_features, old, frozen, tasks = of_case(case)
    features, old_features = (x.reshape(-1, 2, x.shape[1]) for x in (features, old_features))
    current = jnp.array(case["inputs"]["current_prototypes"])
    prototypes, frozen = jnp.concatenate([current, old]), jnp.concatenate([current, frozen])
    tasks = np.concatenate([np.full(len(current), -1), tasks])
    params = case["params"]
    hyper = {"temperature": params["supcon_temperature"], "base_temperature": params["supcon_base_temperature"]}
    found = continual.prototype_sample_relation(
        views, features, labels, prototypes, old_features, frozen, tasks,
        relation_temperature=params["temperature"], **hyper,
    )  # fmt: skip
    rows = continual.prototype_loss(features.reshape(-1, features.shape[-1]), prototypes, jnp.repeat(labels, 2))
    wanted = contrastive.supcon(unit, labels, **hyper).mean() + 2 * rows.mean()
    np.testing.assert_allclose(found.mean(), wanted + 4 * case["expected"]["distillation_mean"], rtol=1e-9)
    # The golden vectors have length one up to six decimals, and are not normalised again.
    as_given = contrastive.supcon(views, labels, normalize=False, **hyper)
    close(as_given.mean(), case["expected"]["supcon_mean"])


@pytest.mark.parametrize("axis", ["classes", "samples"])
def test_the_same_model_costs_nothing_and_is_a_minimum(axis):
    f, _, w, _, tasks = drawn()

    def total(now, prototypes):
        return continual.relation_distillation(now, f, prototypes, w, tasks, axis=axis).sum()

    value, grads = jax.value_and_grad(total, (0, 1))(jnp.asarray(f), jnp.asarray(w))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    for grad in grads:
        np.testing.assert_allclose(grad, 0, atol=1e-6)


@pytest.mark.parametrize("axis", ["classes", "samples"])
def test_the_length_of_a_prototype_changes_nothing_and_that_of_a_feature_does(axis):
    f, g, w, v, tasks = drawn(1)
    loss = functools.partial(continual.relation_distillation, tasks=tasks, axis=axis)
    wanted = loss(f, g, w, v)
    np.testing.assert_allclose(loss(f, g, 3 * w, v * np.arange(1, 6)[:, None].astype("f")), wanted, rtol=1e-4)
    assert np.max(np.abs(loss(2 * f, g, w, v) - wanted)) > 0.01


def test_tasks_add_up_and_their_numbers_do_not_matter():
    f, g, w, v, tasks = drawn(2)
    loss = functools.partial(continual.relation_distillation, f, g, w, v)
    alone = [loss(np.where(tasks == k, k, -1)) for k in (0, 1)]
    np.testing.assert_allclose(loss(tasks), alone[0] + alone[1], rtol=1e-5)
    np.testing.assert_allclose(loss(np.array([3, 3, 0, 0, 9])), loss(tasks), rtol=1e-6)


def test_a_task_of_one_class_and_a_class_of_no_earlier_task_cost_nothing():
    f, g, w, v, _ = drawn(3)
    np.testing.assert_allclose(continual.relation_distillation(f, g, w, v, np.arange(5)), 0, atol=1e-6)
    broken = np.where(np.arange(5)[:, None] == 4, np.nan, w)
    none = np.full(5, -1)
    np.testing.assert_array_equal(continual.relation_distillation(f, g, broken, v, none), 0)
    tasks = np.array([0, 0, 1, 1, -1])
    np.testing.assert_allclose(
        continual.relation_distillation(f, g, broken, v, tasks), continual.relation_distillation(f, g, w, v, tasks)
    )


def test_over_samples_the_mean_is_the_sum_of_the_divergences_of_the_prototypes():
    f, g, w, v, tasks = drawn(4)
    losses = continual.relation_distillation(f, g, w, v, tasks, axis="samples", temperature=2.0)
    probs = [jax.nn.softmax(continual.prototype_scores(x, y) / 2.0, axis=0)[:, :4] for x, y in ((f, w), (g, v))]
    wanted = np.sum(probs[1] * np.log(probs[1] / probs[0]))
    np.testing.assert_allclose(losses.mean(), wanted, rtol=1e-5)
    assert np.all(losses >= 0)


def test_the_gradient_of_relations_flows_into_the_present_and_never_into_the_past():
    f, g, w, v, tasks = (jnp.asarray(x) for x in drawn(5))
    grads = jax.grad(lambda *a: continual.relation_distillation(*a, tasks).sum(), (0, 1, 2, 3))(f, g, w, v)
    assert np.any(grads[0])
    assert not np.any(grads[1])
    assert np.any(grads[2][:4])
    assert not np.any(grads[2][4])
    assert not np.any(grads[3])


def test_naming_moves_the_prototypes_of_the_labels_alone():
    f, _, w, _, _ = (jnp.asarray(x) for x in drawn(6))
    labels = jnp.array([4, 4, 2, 4, 2, 9])
    loss = lambda f, w: continual.prototype_loss(f, w, labels)  # noqa: E731
    grads = jax.grad(lambda f, w: loss(f, w).sum(), (0, 1))(f, w)
    assert not np.any(grads[0])
    np.testing.assert_array_equal(np.any(grads[1], axis=1), [False, False, True, False, True])
    np.testing.assert_allclose(loss(f, w)[:5], 1 - continual.cosine_scores(f, w)[np.arange(5), labels[:5]], rtol=1e-5)
    assert loss(f, w)[5] == 0


def test_what_a_prototype_settles_at_is_the_mean_direction_of_its_class():
    rng = np.random.default_rng(7)
    f = rng.normal(size=(60, 3)).astype("f") + np.float32([2, 0, 1])
    labels = np.zeros(60, int)
    w = jnp.asarray(rng.normal(size=(1, 3)), jnp.float32)
    slope = jax.jit(jax.grad(lambda w: continual.prototype_loss(f, w, labels).mean()))
    for _ in range(300):
        w = w - 0.3 * slope(w)
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    np.testing.assert_allclose(continual.cosine_scores(unit.mean(0), w), 1, atol=1e-4)


def test_in_the_first_task_there_is_nothing_to_keep():
    f, g, w, v, tasks = drawn(8)
    labels = np.array([0, 1, 0, 1, 4, 4])
    first = continual.prototype_sample_relation(g, f, labels, w)
    np.testing.assert_allclose(
        first, contrastive.supcon(g, labels, temperature=0.1) + 2 * continual.prototype_loss(f, w, labels), rtol=1e-5
    )
    kept = continual.prototype_sample_relation(g, f, labels, w, g, v, tasks, distillation_weight=0.0)
    np.testing.assert_array_equal(kept, first)


def test_features_get_their_gradient_from_the_relations_alone():
    f, g, w, v, tasks = drawn(9)
    labels = np.full(6, 4)
    whole = jax.grad(lambda x: continual.prototype_sample_relation(g, x, labels, w, g, v, tasks).sum())(jnp.asarray(f))
    part = jax.grad(lambda x: continual.relation_distillation(x, g, w, v, tasks).sum())(jnp.asarray(f))
    np.testing.assert_allclose(whole, 4 * part, rtol=1e-5)


def test_mistakes_are_named():
    f, g, w, v, tasks = drawn()
    labels = np.zeros(6, int)
    for call, named in (
        (lambda: continual.prototype_scores(f, w[:, :3]), "prototypes"),
        (lambda: continual.relation_distillation(f, g, w, v, tasks, axis="rows"), "axis"),
        (lambda: continual.relation_distillation(f, g, w, v, tasks, temperature=0.0), "temperature"),
        (lambda: continual.prototype_sample_relation(g, f, labels, w, old_features=g), "old_prototypes"),
        (lambda: continual.prototype_sample_relation(g, f, labels, w, prototype_weight=-1.0), "prototype_weight"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
