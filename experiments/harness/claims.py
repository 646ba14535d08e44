"""What a paper claims against a baseline, and what the seeds of an experiment say about it.

Every method of an experiment sees the same seeds (the same data, initial parameters and batches where it can), so that
methods are compared seed by seed: a claim is about the mean of the paired differences.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy import special

from reweight import _checks

__all__ = ["Claim", "Direction", "Interval", "Values", "Verdict", "judge", "mean_interval"]

Direction = Literal["higher", "lower"]
Values = Mapping[str, Mapping[str, np.ndarray]]  # method -> metric -> one number a seed


class Claim(NamedTuple):
    """A paper's claim: `better` has a higher (or lower) `metric` than the baseline `than`.

    Attributes:
      paper: who claims it, as `Authors year, arXiv id`, or with the title where there is none.
      better: the method the claim is about, by its name in the experiment's table of methods.
      than: its baseline.
      metric: the name of the metric.
      direction: which way is better, `"higher"` or `"lower"`.
    """

    paper: str
    better: str
    than: str
    metric: str
    direction: Direction = "higher"


class Interval(NamedTuple):
    """A mean and its 95% confidence interval; NaN ends where one seed leaves no estimate of the spread."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


class Verdict(NamedTuple):
    """A claim with its paired difference `better − than` over the seeds, and whether the interval bears it out."""

    claim: Claim
    difference: Interval
    seeds: int
    shown: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.claim._asdict(),
            "difference": self.difference.mean,
            "interval": [self.difference.low, self.difference.high],
            "seeds": self.seeds,
            "verdict": "shown" if self.shown else "not shown",
        }


def mean_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    r"""The mean of independent numbers with Student's interval: :math:`\bar x \pm t_{n-1} s / \sqrt n`.

    Args:
      values: one number a seed `[n]`, at least one.
      confidence: the coverage of the interval, in (0, 1).

    Returns:
      The mean with the ends of its interval; the ends are NaN for a single number.

    Raises:
      ValueError: if there is no number, or `confidence` is not in (0, 1).
    """
    _checks.number("harness.mean_interval", "confidence", confidence, low=0, high=1, open_low=True, open_high=True)
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        _checks.fail("harness.mean_interval", "values", f"of shape {values.shape}", "one number a seed, at least one")
    mean, n = float(values.mean()), values.size
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def judge(claim: Claim, values: Values) -> Verdict | None:
    """Whether the seeds show a claim: the 95% interval of the paired difference lies wholly on the claimed side of 0.

    Args:
      claim: what is claimed.
      values: the numbers of every method, metric and seed; a method's numbers stand in the same order of seeds.

    Returns:
      The verdict, or None if one of the two methods was not run or has no such metric. One seed shows nothing.

    Raises:
      ValueError: if the direction is unknown, or the two methods ran on different numbers of seeds.
    """
    _checks.choice("harness.judge", "claim.direction", claim.direction, get_args(Direction))
    sides = [values.get(name, {}).get(claim.metric) for name in (claim.better, claim.than)]
    better, than = sides
    if better is None or than is None:
        return None
    if np.shape(better) != np.shape(than):
        _checks.fail(
            "harness.judge",
            "values",
            f"of {np.shape(better)} seeds for {claim.better!r} and {np.shape(than)} for {claim.than!r}",
            "the same seeds for both",
        )
    difference = mean_interval(np.asarray(better, np.float64) - np.asarray(than, np.float64))
    shown = difference.low > 0 if claim.direction == "higher" else difference.high < 0
    return Verdict(claim, difference, len(better), bool(shown))
