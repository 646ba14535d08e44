"""The filter of generated examples."""

import json
import pathlib

import numpy as np
import pytest

from reweight import weights

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "divergen.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_golden_numbers(case, x64):
    given, wanted = case["inputs"], case["expected"]
    generated, real = (np.array(given[name]) for name in ("gen_feats", "real_feats"))
    found = weights.similarity_filter(
        generated, np.array(given["gen_cls"]), real, np.array(given["real_cls"]), num_classes=3, **case["params"]
    )
    scores = np.array([float(score) for score in wanted["score"]])
    np.testing.assert_array_equal(found.known, ~np.isnan(scores))
    np.testing.assert_allclose(found.scores, np.nan_to_num(scores), rtol=GOLDEN["rtol"])
    np.testing.assert_array_equal(found.keep, wanted["keep"])


def test_the_least_threshold_keeps_all_and_lengths_do_not_matter():
    rng = np.random.default_rng(0)
    features, real = rng.normal(size=(7, 3)), rng.normal(size=(9, 3))
    labels, real_labels = rng.integers(0, 2, 7), rng.integers(0, 2, 9)
    found = weights.similarity_filter(features, labels, real, real_labels, num_classes=2, threshold=-1.0)
    assert np.all(found.keep)
    rows = rng.normal(size=(200, 5)).astype(np.float32)
    alone = np.arange(200)
    opposite = weights.similarity_filter(-rows, alone, rows, alone, num_classes=200, threshold=-1.0)
    assert np.all(opposite.keep)
    stretched = weights.similarity_filter(
        features * rng.uniform(0.1, 9, (7, 1)), labels, real * rng.uniform(0.1, 9, (9, 1)), real_labels, num_classes=2
    )
    np.testing.assert_allclose(stretched.scores, found.scores, atol=1e-6)
