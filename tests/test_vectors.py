import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import _vectors

X = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (), None])
@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_lengths_and_slopes_are_those_of_float64_on_every_scale(axis, factor):
    x, wide = np.float32(factor) * X, np.float64(factor) * X
    wanted = np.sqrt(np.sum(wide**2, axis=axis, keepdims=True))
    for keepdims in (True, False):
        came = _vectors.length(x, axis=axis, keepdims=keepdims)
        shape = wanted.shape if keepdims else np.sum(X, axis=axis).shape
        np.testing.assert_allclose(came, wanted.reshape(shape), rtol=1e-6)
    slopes = jax.grad(lambda x: jnp.sum(_vectors.length(x, axis=axis)))(x)
    np.testing.assert_allclose(slopes, wide / wanted, rtol=1e-5)
    np.testing.assert_allclose(
        _vectors.unit(x), X / np.linalg.norm(X, axis=-1, keepdims=True) * (factor > 1e-12), rtol=1e-6
    )


@pytest.mark.parametrize("function", [_vectors.length, _vectors.unit])
@pytest.mark.parametrize("rows", [[[0.0, 0.0]], [[0.0, -0.0], [3.0, 4.0]], [[1e-45, 0.0]], np.zeros((2, 0))])
def test_zeros_have_length_zero_and_no_slope(function, rows):
    x = np.asarray(rows, np.float32)
    slopes = jax.grad(lambda x: jnp.sum(function(x)))(x)
    assert np.all(np.isfinite(function(x)))
    assert np.all(np.isfinite(slopes))
    assert not np.any(slopes[:1])
