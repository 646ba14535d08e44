"""The page that leads from a trouble to what helped says what the stored results say."""

import functools
import pathlib
import re

import numpy as np
import pytest

import reweight
from experiments.harness import results, troubles

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"


def test_the_page_is_the_one_that_the_stored_results_give():
    assert (DOCS / "troubles.md").read_text() == troubles.page()


@pytest.mark.parametrize("trouble", troubles.TROUBLES, ids=lambda trouble: trouble.heading)
def test_what_a_method_is_made_of_is_in_the_package(trouble):
    for made_of in trouble.methods.values():
        for path in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", made_of):
            functools.reduce(getattr, path.split("."), reweight)


@pytest.mark.parametrize(
    ("better", "change", "text"),
    [
        ("higher", [1.0, 1.2, 0.8], "**+1.0 [0.5, 1.5]**"),
        ("lower", [1.0, 1.2, 0.8], "*+1.0 [0.5, 1.5]*"),
        ("lower", [-1.0, -1.2, -0.8], "**-1.0 [-1.5, -0.5]**"),
        ("higher", [-1.0, 1.2, 0.8], "+0.3 [-2.6, 3.2]"),
    ],
)
def test_only_what_is_told_from_no_change_is_marked(better, change, text):
    metric = results.Metric("m", "m", better=better, digits=1)
    assert troubles._cell(metric, 5 + np.array(change), np.full(3, 5.0)) == text


def test_shares_change_by_points():
    metric = results.Metric("m", "m", percent=True, digits=0)
    assert troubles._cell(metric, np.array([0.5, 0.5]), np.array([0.4, 0.4])) == "**+10 [10, 10]**"
