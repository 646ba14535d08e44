"""The distance of clouds of points."""

import numpy as np
import pytest
import scipy.stats

from reweight.metrics.distribution import energy_distance


def test_energy_distance_of_numbers_is_the_square_of_scipys():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 1)), 1 + 2 * rng.normal(size=(50, 1))
    np.testing.assert_allclose(energy_distance(x, y), scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2, rtol=1e-4)
    np.testing.assert_allclose(energy_distance(x, x), 0, atol=1e-6)


def test_energy_distance_grows_as_clouds_part():
    x = np.random.default_rng(2).normal(size=(20, 3))
    near, far = energy_distance(x, x + 0.5), energy_distance(x, x + 5.0)
    assert 0 < near < far
    with pytest.raises(ValueError, match="`second` is of shape"):
        energy_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="`first` is of shape"):
        energy_distance(x[:0], x)
