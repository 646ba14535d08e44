"""Intervals and verdicts of the experiments, against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.harness import Claim, judge, mean_interval

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_interval_of_a_mean_is_students(n):
    values = RNG.normal(3.0, 2.0, n)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(mean_interval(values), [values.mean(), expected.low, expected.high], rtol=1e-12)


def test_the_interval_of_one_seed_has_no_ends():
    mean, low, high = mean_interval(np.array([0.25]))
    assert mean == 0.25
    assert math.isnan(low)
    assert math.isnan(high)


def test_intervals_cover_the_mean_as_often_as_they_say():
    samples = np.random.default_rng(1).normal(0.7, 1.0, (2000, 5))
    covered = [low <= 0.7 <= high for _, low, high in map(mean_interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("bad", [np.zeros(0), np.zeros((2, 2)), np.float64(1.0)])
def test_an_interval_needs_one_number_a_seed(bad):
    with pytest.raises(ValueError, match="`values`"):
        mean_interval(bad)


def test_a_verdict_is_about_the_paired_differences():
    seeds = 10 * RNG.normal(size=6)  # what a seed does to both methods is far larger than what the method does
    values = {"new": {"m": seeds + 1 + 0.1 * RNG.normal(size=6)}, "old": {"m": seeds}}
    verdict = judge(Claim("", "new", "old", "m"), values)
    paired = stats.ttest_rel(values["new"]["m"], values["old"]["m"]).confidence_interval(0.95)
    np.testing.assert_allclose(verdict.difference[1:], [paired.low, paired.high], rtol=1e-12)
    assert verdict.shown
    assert stats.ttest_ind(values["new"]["m"], values["old"]["m"]).pvalue > 0.5


def test_direction_says_which_side_of_zero_is_claimed():
    values = {"a": {"m": np.array([1.0, 1.1, 0.9])}, "b": {"m": np.array([2.0, 2.1, 2.0])}}
    assert judge(Claim("", "a", "b", "m", "lower"), values).shown
    assert not judge(Claim("", "a", "b", "m", "higher"), values).shown
    assert not judge(Claim("", "b", "a", "m", "lower"), values).shown


def test_an_interval_that_holds_zero_shows_nothing():
    values = {"a": {"m": np.array([0.0, 3.0, -1.0])}, "b": {"m": np.zeros(3)}}
    assert not judge(Claim("", "a", "b", "m"), values).shown
    assert not judge(Claim("", "a", "b", "m", "lower"), values).shown


def test_one_seed_shows_nothing():
    values = {"a": {"m": np.array([9.0])}, "b": {"m": np.zeros(1)}}
    assert not judge(Claim("", "a", "b", "m"), values).shown


def test_a_claim_about_a_method_that_was_not_run_has_no_verdict():
    assert judge(Claim("", "a", "b", "m"), {"a": {"m": np.zeros(3)}}) is None
    assert judge(Claim("", "a", "b", "m"), {"a": {"m": np.zeros(3)}, "b": {"other": np.zeros(3)}}) is None


def test_a_claim_with_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="direction"):
        judge(Claim("", "a", "b", "m", "up"), {})


def test_methods_with_other_seeds_are_not_compared():
    with pytest.raises(ValueError, match="same seeds"):
        judge(Claim("", "a", "b", "m"), {"a": {"m": np.zeros(3)}, "b": {"m": np.zeros(2)}})
