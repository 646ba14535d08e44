"""The world of modes, and the gaps of the mixture."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import generated_data
from experiments.envs import mode_world

WORLD = mode_world.draw_world(jax.random.key(0))


def test_real_rows_show_the_known_modes_only():
    labels = jnp.arange(4000) % mode_world.CLASSES
    rows = mode_world.draw_rows(jax.random.key(1), WORLD, labels, 1)
    for label in range(3):
        mine = np.asarray(rows.inputs)[np.asarray(labels) == label]
        np.testing.assert_allclose(mine.mean(axis=0), WORLD.centres[label, 0], atol=0.2)


def test_a_training_set_is_half_real_where_something_is_generated():
    alone, _ = mode_world.training_rows(jax.random.key(2), WORLD, mode_world.POOLS["real"])
    real = {row.tobytes() for row in np.asarray(alone.inputs)}
    assert len(real) == mode_world.REAL
    for name in ("same_64", "diverse_1024", "filtered"):
        rows, _ = mode_world.training_rows(jax.random.key(2), WORLD, mode_world.POOLS[name])
        seen = [row.tobytes() for row in np.asarray(rows.inputs)]
        assert len(seen) == mode_world.ROWS
        assert sum(row in real for row in seen) == mode_world.ROWS // 2
        made = set(seen) - real
        size = mode_world.POOLS[name].size
        assert len(made) == size if name != "filtered" else len(made) < size


def test_more_modes_are_nearer_to_the_truth():
    distances = {
        name: float(mode_world.training_rows(jax.random.key(3), WORLD, mode_world.POOLS[name])[1])
        for name in ("real", "diverse_1024")
    }
    assert distances["diverse_1024"] < 0.7 * distances["real"]


def test_the_gap_of_a_mean_is_the_known_one():
    # Of m examples in d dimensions the training loss is too low by d / m on average, in units of the variance.
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    gaps = generated_data._mean_gaps(keys, 100, 50, 10, 0)
    np.testing.assert_allclose(gaps, 50 / 10, rtol=0.05)
