import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses.classification import (
    SPHERICAL_LOSSES,
    factored_kernel,
    factored_step,
    kernel_sums,
    spherical_loss,
    spherical_statistics,
)

CLASSES, FEATURES, BATCH = 7, 4, 6
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(CLASSES, FEATURES))


def loss(name, hidden, rows, sums):
    return jnp.mean(spherical_loss(name, spherical_statistics(hidden, rows, sums)))


@jax.jit
def step(factored, row_slopes, sum_slopes, labels, learning_rate):
    return factored_step(factored, labels, row_slopes, sum_slopes, learning_rate=learning_rate)


@pytest.mark.parametrize("name", SPHERICAL_LOSSES)
def test_steps_are_those_of_gradient_descent_on_the_whole_kernel(name, x64):
    @jax.jit
    def whole(kernel, hidden, labels):
        def of_kernel(kernel):
            return loss(name, hidden, kernel[labels], kernel_sums(kernel))

        return kernel - 0.05 * jax.grad(of_kernel)(kernel)

    slopes = jax.jit(jax.grad(functools.partial(loss, name), argnums=(1, 2)))
    kernel, factored = KERNEL, factored_kernel(KERNEL)
    for _ in range(12):
        hidden, labels = RNG.normal(size=(BATCH, FEATURES)), RNG.integers(0, CLASSES, BATCH)
        labels[1] = labels[0]  # a class that comes twice
        kernel = whole(kernel, hidden, labels)
        factored = step(factored, *slopes(hidden, factored.rows(labels), factored.sums), labels, 0.05)
    np.testing.assert_allclose(factored.kernel, kernel, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(factored.rows(labels), kernel[labels], rtol=1e-9, atol=1e-11)
    for came, wanted in zip(factored.sums, kernel_sums(kernel), strict=True):
        np.testing.assert_allclose(came, wanted, rtol=1e-9, atol=1e-11)
    assert np.abs(factored.mixing - np.eye(FEATURES)).max() > 1e-4


def test_a_label_that_is_no_class_moves_no_row():
    factored, none = factored_kernel(KERNEL), jax.tree.map(jnp.zeros_like, kernel_sums(KERNEL))
    labels, row_slopes = np.array([2, -1, CLASSES, 2]), RNG.normal(size=(4, FEATURES))
    row_slopes[1:3] = np.nan
    moved = step(factored, row_slopes, none, labels, 0.1)
    wanted = KERNEL.copy()
    wanted[2] -= 0.1 * (row_slopes[0] + row_slopes[3])
    np.testing.assert_allclose(moved.kernel, wanted, rtol=1e-5)
    np.testing.assert_allclose(moved.sums.gram, wanted.T @ wanted, rtol=1e-4, atol=1e-5)


def test_without_a_rate_nothing_moves():
    factored = factored_kernel(np.float32(KERNEL))
    slopes = np.ones((2, FEATURES), np.float32), kernel_sums(np.float32(KERNEL))
    for came, wanted in zip(
        jax.tree.leaves(step(factored, *slopes, np.array([0, 3]), 0.0)), jax.tree.leaves(factored), strict=True
    ):
        np.testing.assert_allclose(came, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"labels": np.zeros(2)}, "labels"),
        ({"row_slopes": np.zeros((2, 3))}, "row_slopes"),
        ({"sum_slopes": kernel_sums(np.zeros((2, 3)))}, "sum_slopes.gram"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_a_static_mistake_is_named(changed, named):
    given = {
        "labels": np.zeros(2, int),
        "row_slopes": np.zeros((2, FEATURES)),
        "sum_slopes": kernel_sums(KERNEL),
        "learning_rate": 0.1,
    }
    with pytest.raises(ValueError, match=f"factored_step: argument `{named}`"):
        factored_step(factored_kernel(KERNEL), **{**given, **changed})
