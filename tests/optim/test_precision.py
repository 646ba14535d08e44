"""Moments are kept in float32 whatever the dtype of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import optim


@pytest.mark.parametrize("optimizer", [optim.adamp(1e-3), optim.sgdp(0.1, momentum=0.9)], ids=["adamp", "sgdp"])
def test_moments_of_bfloat16_parameters_are_float32_and_updates_bfloat16(optimizer):
    params = {"kernel": jnp.ones((4, 3), jnp.bfloat16), "bias": jnp.zeros(3, jnp.bfloat16)}
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    for tree in (state, after):
        moments = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]
        assert moments
        assert all(leaf.dtype == jnp.float32 for leaf in moments)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(updates))


def test_a_second_moment_in_bfloat16_training_follows_small_changes():
    params = {"kernel": jnp.ones((4, 3), jnp.bfloat16)}
    optimizer = optim.scale_by_adamp(b2=0.999)
    state = optimizer.init(params)
    for _ in range(200):
        _, state = optimizer.update(params, state, params)
    nu = optax.tree.get(state, "nu")["kernel"]
    np.testing.assert_allclose(nu, 1 - 0.999**200, rtol=1e-4)
