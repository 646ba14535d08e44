import json
import pathlib

import numpy as np
import pytest

from reweight import weights
from reweight.losses.classification import prediction_entropy

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "csfa.json").read_text())["cases"][2:]
LOGITS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32) * 3


def logits(case):
    inputs = {name: np.array(value) for name, value in case["inputs"].items()}
    return inputs["x"] @ inputs["W"].T + inputs["b"]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_who_is_kept_agrees_with_the_official_code(case, x64):
    np.testing.assert_allclose(prediction_entropy(logits(case)), case["expected"]["entropy"], rtol=1e-8)
    kept = weights.entropy_filter_weights(logits(case), fraction=case["params"]["fraction"])
    np.testing.assert_array_equal(kept, case["expected"]["kept_first"])


def test_more_are_kept_as_the_fraction_grows_until_all_are():
    kept = [np.asarray(weights.entropy_filter_weights(LOGITS, fraction=f)) for f in (0.0, 0.3, 0.6, 1.0, 1.1)]
    assert [k.sum() for k in kept] == sorted(k.sum() for k in kept)
    assert kept[0].sum() == 0
    assert 0 < kept[1].sum() < kept[2].sum() < 9
    np.testing.assert_array_equal(kept[3], 1)
    assert weights.entropy_filter_weights(np.zeros(4, np.float32), fraction=0.99) == 0
    assert weights.entropy_filter_weights(np.zeros(4, np.float32), fraction=1.1) == 1


def test_the_weighting_reads_logits_and_not_losses():
    weighting = weights.entropy_filter(fraction=0.5)
    came, _ = weighting.update(weighting.init(), np.ones(9, np.float32), logits=LOGITS)
    np.testing.assert_array_equal(came, weights.entropy_filter_weights(LOGITS, fraction=0.5))
    assert weighting.scope == "example"
