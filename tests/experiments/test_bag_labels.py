"""Pieces of the experiment on bags."""

import jax
import numpy as np
import pytest

from experiments import bag_labels


def test_the_interpolation_is_chosen_without_the_seed_it_is_judged_on():
    risks = np.array([[1.0, 2.0], [1.0, 2.0], [9.0, 0.0]])
    # The first two seeds are for the second column by the sum 10 : 2 and 10 : 2, the last one for the first.
    np.testing.assert_array_equal(bag_labels._at_the_best_of_the_others(risks), [2.0, 2.0, 9.0])
    with pytest.raises(ValueError, match="`seeds` is 1"):
        bag_labels.Config(seeds=1)


def test_bags_of_one_are_ordinary_regression_at_every_interpolation():
    config = bag_labels.Config(examples=80, features=5)
    keys = jax.vmap(jax.random.key)(np.arange(3))
    risks = np.asarray(bag_labels._exact(keys, config, 1))
    np.testing.assert_allclose(risks, risks[:, :1].repeat(risks.shape[1], axis=1), rtol=1e-3)
    # The expected risk of least squares is noise^2 d / (n - d - 1).
    np.testing.assert_allclose(risks[:, 0].mean(), 0.25 * 5 / 74, rtol=1.0)


def test_bags_of_cells_hold_every_example_at_most_once():
    bags = bag_labels._bags_of_cells(0)
    rows = bags["inputs"].reshape(-1, bags["inputs"].shape[-1])
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert bags["shares"].shape == (len(bags["inputs"]),)
    assert np.all((bags["shares"] >= 0) & (bags["shares"] <= 1))
