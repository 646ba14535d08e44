import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight._segments import segment_means

IDS = np.array([2, 0, 2, -1, 5, 0, 7])
MASK = np.array([1, 1, 1, 1, 1, 0, 1], bool)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_means_are_of_the_rows_that_are_kept_and_have_an_id(shape):
    rows = np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float32)
    kept = np.isin(IDS, [0, 2]) & MASK
    hidden = np.where(kept.reshape(-1, *(1,) * len(shape)), rows, np.nan)
    means, counts = segment_means(hidden, IDS, 4, MASK)
    wanted = np.zeros((4, *shape))
    wanted[0], wanted[2] = rows[1], (rows[0] + rows[2]) / 2
    np.testing.assert_allclose(means, wanted, rtol=1e-6)
    np.testing.assert_array_equal(counts, [1, 0, 2, 0])
    slopes = jax.grad(lambda x: jnp.sum(segment_means(x, IDS, 4, MASK)[0]))(hidden)
    shares = np.where(kept, [0.5, 1, 0.5, 0, 0, 0, 0], 0)
    np.testing.assert_array_equal(slopes, np.broadcast_to(shares.reshape(-1, *(1,) * len(shape)), rows.shape))


def test_sums_of_half_precision_are_wide():
    means, counts = segment_means(jnp.full((3000, 1), 1.5, jnp.bfloat16), jnp.zeros(3000, int), 1)
    assert means.dtype == counts.dtype == jnp.float32
    np.testing.assert_array_equal(means, 1.5)
