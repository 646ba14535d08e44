"""Digits whose classes come one after the other, the stream made of them, and the scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import drifting_stream as following
from experiments import few_shot_classes
from experiments.envs.drifting_digits import drifted, drifting_stream
from experiments.envs.growing_digits import BASE, CLASSES, growing_digits

DIGITS = growing_digits(np.array([3, 4]), shots=5, per_class=20)


def test_a_seed_draws_the_order_of_the_classes_and_nothing_else_changes_it():
    again = growing_digits(np.array([4]), shots=5, per_class=20)
    for name in ("inputs", "labels", "shots", "test_labels"):
        np.testing.assert_array_equal(getattr(again, name)[0], getattr(DIGITS, name)[1])
    assert np.any(np.asarray(DIGITS.test_labels[0] != DIGITS.test_labels[1]))


def test_base_classes_are_as_frequent_and_new_ones_have_only_their_shots():
    np.testing.assert_array_equal(np.bincount(DIGITS.labels[0]), np.full(BASE, 20))
    assert DIGITS.shots.shape == (2, CLASSES - BASE, 5, 8, 8, 1)
    base = {image.tobytes() for image in np.asarray(DIGITS.inputs[0])}
    assert base.isdisjoint(image.tobytes() for image in np.asarray(DIGITS.shots[0]).reshape(-1, 8, 8, 1))
    assert set(np.asarray(DIGITS.test_labels[0]).tolist()) == set(range(CLASSES))


def test_held_out_examples_are_of_all_classes_and_not_seen_in_training():
    digits = growing_digits(np.array([3, 4]), held_out=True)
    for seed in range(2):
        np.testing.assert_array_equal(np.bincount(digits.test_labels[seed]), np.full(CLASSES, 19))
        seen = np.concatenate([np.asarray(part[seed]).reshape(-1, 64) for part in (digits.inputs, digits.shots)])
        held_out = {image.tobytes() for image in np.asarray(digits.test_inputs[seed]).reshape(-1, 64)}
        assert held_out.isdisjoint(image.tobytes() for image in seen)


def test_images_drift_from_nothing_to_a_turn():
    images = DIGITS.test_inputs[0, :4]
    still = drifted(jax.random.key(0), images, jnp.float32(0))
    np.testing.assert_allclose(still, images, atol=1e-5)
    distances = [jnp.mean((drifted(jax.random.key(0), images, jnp.float32(s)) - images) ** 2) for s in (0.2, 0.5, 1.0)]
    assert distances == sorted(distances)


@pytest.mark.parametrize("dominant", [0.0, 0.8])
def test_classes_appear_after_every_fifth_of_the_stream(dominant):
    stream = jax.jit(
        lambda key: drifting_stream(
            key, DIGITS.test_inputs[0], DIGITS.test_labels[0], DIGITS.shots[0], batches=20, size=32, dominant=dominant
        )
    )(jax.random.key(0))
    np.testing.assert_array_equal(stream.seen, BASE + np.arange(20) // 4)
    arrivals = {4: 6, 8: 7, 12: 8, 16: 9}
    np.testing.assert_array_equal(stream.arrived, [arrivals.get(step, -1) for step in range(20)])
    assert np.all(np.asarray(stream.labels) < np.asarray(stream.seen)[:, None])
    top = np.array([np.bincount(labels).max() for labels in np.asarray(stream.labels)]).mean() / 32
    assert (top > 0.6) == (dominant > 0)


def test_scores_of_sessions():
    labels = np.array([[0, 1, 5, 6, 9]])
    right = np.ones((1, 5, 5), bool)
    right[0, -1] = [True, True, False, True, False]
    scores, curve = few_shot_classes._scores(right, labels)
    np.testing.assert_allclose(curve[0], [1, 1, 1, 1, 0.6])
    wanted = {"accuracy": 0.6, "base_accuracy": 2 / 3, "new_accuracy": 0.5, "harmonic_mean": 4 / 7, "drop": 0.4}
    for name, value in wanted.items():
        np.testing.assert_allclose(scores[name], [value], err_msg=name)


def test_scores_of_a_stream():
    labels = np.tile(np.array([0, 5, 6, 9]), (1, 10, 1))
    right = np.zeros((1, 10, 4), bool)
    right[0, 8:, :3] = True
    scores = following._scores(right, labels, "balanced")
    wanted = {"accuracy": 6 / 40, "late": 0.75, "base": 1.0, "new": 0.5}
    for name, value in wanted.items():
        np.testing.assert_allclose(scores[f"{name}_balanced"], [value], err_msg=name)
