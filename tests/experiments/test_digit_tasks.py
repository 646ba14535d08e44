import jax
import jax.numpy as jnp
import numpy as np

from experiments import class_incremental, stability_gap
from experiments.envs import digit_tasks, incremental_tasks


def test_a_seed_names_the_classes_and_draws_the_examples():
    order = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    images, again, other = (digit_tasks.by_class(seed, order) for seed in (0, 0, 1))
    np.testing.assert_array_equal(images, again)
    assert np.any(images != other)
    assert images.shape[::2] == (10, 64)
    plain = digit_tasks.by_class(0, np.arange(10))
    # The means of digits do not depend on which of them are drawn by much.
    np.testing.assert_allclose(images.mean(1), plain.mean(1)[order], atol=0.2)


def test_images_turn_about_their_centre():
    images = digit_tasks.test_set()["inputs"][:5]
    np.testing.assert_allclose(digit_tasks.rotated(images, 0), images, atol=1e-6)
    quarter = digit_tasks.rotated(images, 90).reshape(5, 8, 8)
    np.testing.assert_allclose(quarter, np.rot90(images.reshape(5, 8, 8), axes=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(digit_tasks.rotated(images[None], 40)[0], digit_tasks.rotated(images, 40), atol=1e-6)


def test_views_are_moved_by_a_pixel_at_most():
    images = jnp.zeros((3, 64)).at[:, 8 * 4 + 4].set(100.0)
    seen = np.asarray(digit_tasks.views(jax.random.key(0), images, 20)).reshape(60, 8, 8)
    rows, columns = zip(*(np.unravel_index(view.argmax(), (8, 8)) for view in seen), strict=True)
    assert set(rows) == set(columns) == {3, 4, 5}


def test_kept_examples_stand_behind_those_of_the_task():
    current, memory = jnp.ones((2, 2, 3, 64)), jnp.zeros((2, 10, 4, 64))
    arrays = incremental_tasks.examples(current, memory, np.array([4, 5]), np.arange(10) < 4)
    labels = np.asarray(arrays["labels"])
    assert labels.shape == (2, 46)
    np.testing.assert_array_equal(labels[0, :6], [4, 4, 4, 5, 5, 5])
    np.testing.assert_array_equal(labels[0, 6:], np.repeat([0, 1, 2, 3, -1, -1, -1, -1, -1, -1], 4))
    np.testing.assert_array_equal(arrays["inputs"][:, :, 0], np.repeat([[1, 0]], [6, 40], axis=1).repeat(2, axis=0))


def test_the_gap_is_what_comes_back():
    old = np.array([[0.5, 0.9, 0.3, 0.6, 0.8], [0.5, 0.9, 0.7, 0.5, 0.4]])
    accuracies = np.stack([old, np.full_like(old, 0.6)], axis=2)
    norms = {"stability": np.ones((2, 3)), "plasticity": np.full((2, 3), 3.0)}
    scores = stability_gap._scores(accuracies, np.array([0, 0, 1, 1, 1]), norms)
    for name, wanted in {
        "before": [0.9, 0.9],
        "minimum": [0.3, 0.4],
        "end": [0.8, 0.4],
        "gap": [0.5, 0.0],
        "accuracy": [0.7, 0.5],
        "worst": [0.45, 0.5],
        "forgetting": [0.6, 0.5],
        "share": [0.25, 0.25],
    }.items():
        np.testing.assert_allclose(scores[name], wanted, rtol=1e-6, atol=1e-7)


def test_what_holds_the_old_task_has_no_gradient_at_the_switch():
    params = digit_tasks.initial(jax.random.key(0), 8)
    inputs, labels = jax.random.normal(jax.random.key(1), (20, 64)), jnp.arange(20) % 10
    ones = jax.tree.map(jnp.ones_like, params)
    for name, still in (("distillation", True), ("elastic", True), ("replay", False)):
        weights = {kind: jnp.float32(kind == name) for kind in ("replay", "distillation", "elastic")}
        held = stability_gap.Held(inputs, labels, params, ones, weights, inputs)
        batch = {"inputs": inputs, "labels": labels}
        grads = jax.grad(stability_gap._stability)(params, held, batch, jax.random.key(2))
        assert all(np.allclose(leaf, 0, atol=1e-6) for leaf in jax.tree.leaves(grads)) == still


def test_what_is_kept_counts_as_the_papers_say():
    weights = {name: class_incremental._weight(m, 0.75) for name, m in class_incremental.METHODS.items()}
    wanted = {"lwf": 0.5, "kd": 0.75, "kd_aligned": 0.75, "kd_positive": 0.75, "weight_aligning": 0.75, "prd": 4.0}
    assert weights == {name: wanted.get(name, 0.0) for name in weights}
    assert all(class_incremental._weight(m, 0.0) == 0 for m in class_incremental.METHODS.values())


def test_a_task_ends_at_the_last_evaluation_before_the_next():
    np.testing.assert_array_equal(class_incremental._ends(np.array([0, 0, 1, 1, 1, 2])), [1, 4, 5])
