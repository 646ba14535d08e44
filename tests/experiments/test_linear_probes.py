import numpy as np
import pytest
from scipy import special

from experiments import linear_probes


def test_gaussian_classes_are_those_of_the_paper():
    drawn = linear_probes.gaussian_classes(np.random.default_rng(0), 30_000, classes=3, size=10)
    np.testing.assert_array_equal(np.bincount(drawn.labels[:9]), 3)
    for label, mean in enumerate((-1, 1, 2)):
        own = drawn.features[drawn.labels == label]
        np.testing.assert_allclose(own.mean(axis=0), mean, atol=0.15)
        np.testing.assert_allclose(own.var(axis=0), [10] * 5 + [1] * 5, rtol=0.06)


def test_the_least_error_is_that_of_the_true_means_and_variances():
    test = linear_probes.gaussian_classes(np.random.default_rng(1), 200_000, classes=2, size=4)
    # The means are 1 to either side of the middle in each feature, of variances 4, 4, 1, 1.
    wanted = special.ndtr(-np.sqrt(1 / 4 + 1 / 4 + 1 + 1))
    np.testing.assert_allclose(linear_probes._least_error(test, 2), wanted, atol=0.002)


@pytest.mark.parametrize("excess", [[0.3, 0.02, 0.009, 0.02], [0.3, 0.2, 0.01, 0.0]])
def test_examples_needed_are_the_first_that_are_enough(excess):
    assert linear_probes._needed([2, 4, 8, 16], np.array(excess)) == 8
    assert linear_probes._needed([2, 4, 8, 16], np.array([0.5, 0.5, 0.5, 0.5])) == 16


def test_naive_bayes_of_prefixes_is_that_of_each_set_alone():
    rng = np.random.default_rng(2)
    train, test = (linear_probes.gaussian_classes(rng, n, classes=2, size=6) for n in (64, 500))
    together = linear_probes._naive_bayes(train, test, [8, 64], 0.0)
    alone = [linear_probes._naive_bayes(train.first(n), test, [n], 0.0)[0] for n in (8, 64)]
    np.testing.assert_allclose(together, alone, atol=0.003)
