import json
import pathlib

import numpy as np
import pytest

from reweight import reduce
from reweight.metrics import survival

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "discrete_hazard.json").read_text())
RANKED = GOLDEN["cases"][2:5]
RNG = np.random.default_rng(0)
RISKS, TIMES, EVENTS = RNG.normal(size=600), RNG.exponential(size=600), RNG.random(600) < 0.6


@pytest.mark.parametrize("case", RANKED, ids=range(len(RANKED)))
def test_the_index_agrees_with_the_golden_numbers(case, x64):
    given, expected = {name: np.array(value) for name, value in case["inputs"].items()}, case["expected"]
    arguments = (-given["predicted_time"], given["time"], given["event"])
    index = survival.concordance_index(*arguments, undefined=np.nan)
    np.testing.assert_allclose(index, float(expected["c_index"]), rtol=GOLDEN["rtol"])
    assert survival.concordance_pairs(*arguments).denominator == expected["comparable_pairs"]
    if "c_index_ties_censored_outlives" in expected:
        ties = survival.concordance_index(*arguments, censored_ties=True)
        np.testing.assert_allclose(ties, expected["c_index_ties_censored_outlives"], rtol=GOLDEN["rtol"])


def test_many_rows_are_compared_in_blocks():
    comparable = (TIMES[:, None] < TIMES) & EVENTS[:, None]
    wanted = np.mean((RISKS[:, None] > RISKS)[comparable])
    np.testing.assert_allclose(survival.concordance_index(RISKS, TIMES, EVENTS), wanted, rtol=1e-5)


def test_the_order_of_the_times_is_perfect_and_its_reverse_is_the_opposite():
    assert survival.concordance_index(-TIMES, TIMES, EVENTS) == 1
    assert survival.concordance_index(TIMES, TIMES, EVENTS) == 0
    assert survival.concordance_index(np.zeros(600), TIMES, EVENTS) == 0.5
    flipped = survival.concordance_index(-RISKS, TIMES, EVENTS)
    np.testing.assert_allclose(survival.concordance_index(RISKS, TIMES, EVENTS), 1 - flipped, rtol=1e-5)


def test_a_rising_map_of_risks_or_times_changes_nothing():
    came = survival.concordance_index(np.exp(RISKS), TIMES**2, EVENTS)
    np.testing.assert_allclose(came, survival.concordance_index(RISKS, TIMES, EVENTS), rtol=1e-6)


def test_the_pairs_of_strata_add_up():
    strata = [survival.concordance_pairs(RISKS[s], TIMES[s], EVENTS[s]) for s in (slice(300), slice(300, 600))]
    same = (np.arange(600)[:, None] < 300) == (np.arange(600) < 300)
    comparable = (TIMES[:, None] < TIMES) & EVENTS[:, None] & same
    wanted = np.mean((RISKS[:, None] > RISKS)[comparable])
    np.testing.assert_allclose(reduce.combine(strata), wanted, rtol=1e-5)


def test_a_weight_is_a_number_of_copies():
    copies = np.arange(20) % 3
    rows = np.repeat(np.arange(20), copies)
    came = survival.concordance_pairs(RISKS[:20], TIMES[:20], EVENTS[:20], copies)
    wanted = survival.concordance_pairs(RISKS[rows], TIMES[rows], EVENTS[rows])
    np.testing.assert_allclose(came, wanted, rtol=1e-6)


def test_without_a_comparable_pair_comes_what_is_asked_for():
    none = np.zeros(600, bool)
    assert survival.concordance_index(RISKS, TIMES, none) == 0
    assert survival.concordance_index(RISKS, TIMES, none, undefined=0.5) == 0.5
    assert survival.concordance_index(RISKS, TIMES, EVENTS, mask=none) == 0
