"""The views, the network with two heads and the labelled examples of the experiment on pseudo-labels."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import semi_supervised
from experiments.envs import image_views


def images(n=3):
    return jax.random.normal(jax.random.key(0), (n, 8, 8, 1))


def test_a_warp_without_room_changes_nothing_and_one_of_a_constant_image_gives_it_back():
    key = jax.random.key(1)
    np.testing.assert_allclose(image_views.warp(key, images(), shift=0.0, stretch=0.0), images(), atol=1e-6)
    flat = jnp.full((4, 8, 6, 1), 2.0)
    np.testing.assert_allclose(image_views.warp(key, flat, shift=3.0, stretch=0.5), flat, rtol=1e-6)


def test_a_warp_moves_a_ramp_by_no_more_than_the_shift():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (50, 8, 8, 1))
    moved = image_views.warp(jax.random.key(2), ramp, shift=0.5, stretch=0.0) - ramp
    assert 0.4 < float(jnp.max(jnp.abs(moved))) <= 0.5 + 1e-5
    np.testing.assert_allclose(moved[:, 3], moved[:, 4], atol=1e-5)  # away from the edge all rows move alike


def test_the_strong_view_has_a_hole_and_the_weak_one_has_none():
    flat = jnp.full((20, 8, 8, 1), 5.0)
    np.testing.assert_allclose(image_views.weak_view(jax.random.key(3), flat), flat, rtol=1e-6)
    strong = image_views.strong_view(jax.random.key(3), flat)
    np.testing.assert_array_equal(jnp.sum(jnp.abs(strong) < 2.5, axis=(1, 2, 3)), 9)


def test_the_auxiliary_head_sees_the_last_inputs_only_and_predictions_do_not_depend_on_it():
    made = image_views.two_heads(jax.random.key(4), (8, 8, 1), 10)
    inputs = images(6)
    logits, auxiliary, extra = made.apply(made.params, made.extra, inputs, 2)
    assert logits.shape == (6, 10)
    assert auxiliary.shape == (2, 10)
    np.testing.assert_allclose(made.predict(made.params, inputs), logits, rtol=1e-5, atol=1e-6)
    other = made.apply(made.params, made.extra, inputs.at[:4].set(0), 2)
    np.testing.assert_allclose(other[1], auxiliary, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(extra) == jax.tree.structure(made.extra)


def test_every_class_has_as_many_labelled_examples_and_they_are_repeated_alike():
    labels = np.repeat(np.arange(10), 12)
    rows = semi_supervised._labelled_rows(labels, 3, 7)
    assert rows.shape == (120,)
    found, times = np.unique(rows, return_counts=True)
    assert len(found) == 30
    np.testing.assert_array_equal(times, 4)
    np.testing.assert_array_equal(np.bincount(labels[found]), 3)
    assert not np.array_equal(rows, semi_supervised._labelled_rows(labels, 3, 8))
