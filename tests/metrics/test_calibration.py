import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.metrics.calibration import Bins, ace, aurc, confidence_bins, eaurc, ece, mce, top_label

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
OVERLAP = json.loads((FOLDER / "temperature_overlap.json").read_text())
RANKED = json.loads((FOLDER / "ps_kd.json").read_text())


def predictions(seed=0, n=200, classes=4):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(classes), n)
    return np.float32(probs), rng.integers(0, classes, n)


@pytest.mark.parametrize("case", OVERLAP["cases"][:3], ids=range(3))
def test_calibration_errors_agree_with_the_golden_numbers(case, x64):
    probs, expected = jax.nn.softmax(np.array(case["inputs"]["logits"])), case["expected"]
    bins = confidence_bins(*top_label(probs, np.array(case["inputs"]["labels"])), num_bins=case["params"]["n_bins"])
    for metric in (ece, mce, ace):
        np.testing.assert_allclose(metric(bins), expected[metric.__name__], rtol=OVERLAP["rtol"])


@pytest.mark.parametrize("case", RANKED["cases"][2:], ids=range(3))
def test_areas_agree_with_the_golden_numbers(case, x64):
    top, expected = top_label(np.array(case["inputs"]["probs"]), np.array(case["inputs"]["labels"])), case["expected"]
    np.testing.assert_allclose(100 * ece(confidence_bins(*top, num_bins=10)), expected["ece_x100"], rtol=RANKED["rtol"])
    np.testing.assert_allclose(1000 * aurc(*top), expected["aurc_x1000"], rtol=RANKED["rtol"])
    np.testing.assert_allclose(1000 * eaurc(*top), expected["eaurc_x1000"], rtol=RANKED["rtol"], atol=1e-9)


def test_the_most_probable_class_and_whether_it_is_right():
    probs = np.float32([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.1, 0.8]])
    confidences, correct = top_label(probs, np.array([1, 1, 7]))
    np.testing.assert_array_equal(confidences, probs.max(axis=1))
    np.testing.assert_array_equal(correct, [True, False, False])  # of equal ones the first; 7 is no class


def test_bins_are_open_below_and_closed_above_and_the_first_has_zero():
    edges = np.float32(np.arange(6) / 5)
    above = np.nextafter(edges, np.float32(2))[:5]
    bins = confidence_bins(np.concatenate([edges, above]), np.ones(11), num_bins=5)
    np.testing.assert_array_equal(bins.examples, [3, 2, 2, 2, 2])
    np.testing.assert_array_equal(confidence_bins(edges, np.ones(6), num_bins=1).examples, [6])


def test_bins_of_pieces_add_up_to_those_of_the_whole():
    top = top_label(*predictions())
    pieces = [confidence_bins(*(x[rows] for x in top)) for rows in (slice(0, 30), slice(30, 31), slice(31, None))]
    whole = confidence_bins(*top)
    summed = jax.tree.map(lambda *leaves: sum(leaves), *pieces)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), summed, whole)
    np.testing.assert_allclose(ece(summed), ece(whole), rtol=1e-6)


def test_weights_count_examples_several_times_and_masked_ones_are_not_there():
    confidences, correct = top_label(*predictions(n=20))
    times = np.random.default_rng(1).integers(0, 4, 20)
    weighted = confidence_bins(confidences, correct, times)
    repeated = confidence_bins(np.repeat(confidences, times), np.repeat(correct, times))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), weighted, repeated)
    hidden = confidence_bins(jnp.where(times > 0, confidences, jnp.nan), correct, times, mask=times > 0)
    jax.tree.map(np.testing.assert_array_equal, hidden, weighted)


def test_who_is_as_often_right_as_confident_has_no_error():
    confidences = np.float32(np.repeat([0.25, 0.5, 0.75], 4))
    correct = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0])
    bins = confidence_bins(confidences, correct, num_bins=7)
    assert ece(bins) == mce(bins) == ace(bins) == 0
    # Sure and wrong half of the time, in one bin.
    bins = confidence_bins(np.ones(4, np.float32), np.array([1, 0, 1, 0]))
    assert ece(bins) == mce(bins) == ace(bins) == 0.5


def test_the_three_errors_differ_in_how_bins_count():
    bins = Bins(np.float32([8, 2, 0]), np.float32([2, 1.8, 0]), np.float32([4, 1, 0]))
    np.testing.assert_allclose([ece(bins), mce(bins), ace(bins)], [0.28, 0.4, 0.325], rtol=1e-6)


def test_nothing_has_no_error():
    nothing = confidence_bins(np.float32([np.nan, 0.4]), np.ones(2), mask=np.zeros(2))
    assert ece(nothing) == mce(nothing) == ace(nothing) == 0
    for area in (aurc, eaurc):
        assert area(np.float32([0.5]), np.ones(1), mask=np.zeros(1)) == area(np.zeros(0, np.float32), np.zeros(0)) == 0


def test_the_area_is_that_of_the_definition_and_a_best_ranking_has_no_excess():
    confidences, correct = (np.asarray(x) for x in top_label(*predictions(2)))
    wrong = ~correct[np.argsort(-confidences)]
    risks = np.cumsum(wrong) / np.arange(1, 201)
    np.testing.assert_allclose(aurc(confidences, correct), risks.mean(), rtol=1e-5)
    best = aurc(np.float32(correct) + confidences, correct)
    np.testing.assert_allclose(eaurc(confidences, correct), risks.mean() - best, rtol=1e-4)
    np.testing.assert_allclose(eaurc(np.float32(correct), correct), 0, atol=1e-6)


def test_of_equal_confidences_the_area_is_the_expectation_over_their_order():
    confidences, correct = np.float32([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0, 1])
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        wrong = 1 - correct[np.lexsort((rng.random(5), -confidences))]
        found.append(np.mean(np.cumsum(wrong) / np.arange(1, 6)))
    np.testing.assert_allclose(aurc(confidences, correct), np.mean(found), rtol=0.02)
    np.testing.assert_allclose(aurc(np.full(8, np.float32(0.3)), np.arange(8) % 2), 0.5, rtol=1e-6)


def test_only_the_ranking_counts_for_the_areas():
    confidences, correct = top_label(*predictions(3))
    for area in (aurc, eaurc):
        wanted = area(confidences, correct)
        np.testing.assert_allclose(area(confidences**3, correct), wanted, rtol=1e-6)
        np.testing.assert_allclose(area(confidences[::-1], correct[::-1]), wanted, rtol=1e-6)
        assert 0 <= wanted <= 1


def test_the_gradient_goes_through_sums_and_not_through_bins():
    confidences, correct = np.float32([0.61, 0.62, 0.93]), np.array([0, 1, 1])
    grad = jax.grad(lambda c: ece(confidence_bins(c, correct, num_bins=10)))(confidences)
    np.testing.assert_allclose(grad, [1 / 3, 1 / 3, -1 / 3], rtol=1e-5)
    assert not np.any(jax.grad(aurc)(confidences, correct))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: top_label(np.float32(0.5), np.int32(0)), "probs"),
        (lambda: top_label(np.ones((3, 2), np.float32), np.ones(3)), "labels"),
        (lambda: confidence_bins(np.ones(3, np.float32), np.ones(2)), "correct"),
        (lambda: confidence_bins(np.ones(3, np.float32), np.ones(3), num_bins=0), "num_bins"),
        (lambda: ece(Bins(np.ones(3), np.ones(3), np.ones(2))), "correct"),
        (lambda: aurc(np.ones(3, int), np.ones(3)), "confidences"),
        (lambda: eaurc(np.ones(3, np.float32), np.ones(3), mask=np.ones(2)), "mask"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
