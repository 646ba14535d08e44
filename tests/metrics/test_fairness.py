import json
import pathlib

import jax
import numpy as np
import pytest

from reweight.metrics import fairness

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "fair_error_bound.json").read_text())
METRICS = GOLDEN["cases"][3:]
GROUPS = np.float32([0.9, 0.6, 0.75])


@pytest.mark.parametrize("case", METRICS, ids=range(len(METRICS)))
@pytest.mark.parametrize(("spread", "name"), [("abs_sum", "equity_scaled"), ("std", "equity_scaled_std")])
def test_scaled_metrics_agree_with_the_golden_numbers(case, spread, name, x64):
    groups = np.array([np.mean(images) for images in case["inputs"]["per_image_by_group"]])
    found = fairness.equity_scaled(
        np.float64(case["inputs"]["overall"]), groups, alpha=case["params"]["alpha"], spread=spread
    )
    np.testing.assert_allclose(found, case["expected"][name], rtol=GOLDEN["rtol"])


@pytest.mark.parametrize("spread", ["abs_sum", "std"])
def test_equal_groups_and_no_alpha_leave_the_metric(spread):
    overall = np.float32(0.7)
    np.testing.assert_allclose(fairness.equity_scaled(overall, np.full(3, overall), spread=spread), 0.7, rtol=1e-6)
    np.testing.assert_allclose(fairness.equity_scaled(overall, GROUPS, alpha=0.0, spread=spread), 0.7, rtol=1e-6)
    assert fairness.equity_scaled(overall, GROUPS, spread=spread) < 0.7


@pytest.mark.parametrize("spread", ["abs_sum", "std"])
def test_names_of_groups_do_not_matter_and_absent_groups_are_never_read(spread):
    wanted = fairness.equity_scaled(np.float32(0.7), GROUPS, spread=spread)
    np.testing.assert_allclose(fairness.equity_scaled(np.float32(0.7), GROUPS[::-1], spread=spread), wanted, rtol=1e-6)
    more = np.append(GROUPS, np.float32(np.nan))
    came = fairness.equity_scaled(np.float32(0.7), more, spread=spread, mask=np.isfinite(more))
    np.testing.assert_allclose(came, wanted, rtol=1e-6)


def test_one_group_has_no_deviation():
    value, grad = jax.value_and_grad(lambda x: fairness.equity_scaled(np.float32(0.7), x, spread="std"))(GROUPS[:1])
    np.testing.assert_allclose(value, 0.7, rtol=1e-6)
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"spread": "range"}, "spread"),
        ({"overall": GROUPS}, "overall"),
        ({"mask": np.ones(2)}, "mask"),
    ],
)
def test_a_static_mistake_is_named(change, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        fairness.equity_scaled(**{"overall": np.float32(0.5), "per_group": GROUPS, **change})
