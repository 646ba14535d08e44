"""Long tails, label noise and planted attributes as functions of labels."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from reweight.data import variants

LABELS = np.arange(12) % 3
INPUTS = np.cos(np.arange(48.0) ** 2).reshape(12, 2, 2)
KINDS = ["symmetric", "pair", "instance"]


def flip(values, num_classes, rate, kind, seed):
    """Flipped labels, for noise by instance of inputs that are drawn."""
    inputs = np.random.default_rng(0).normal(size=(len(values), 7))
    projected = variants.projections(inputs, num_classes, seed)
    return variants.flip_labels(values, num_classes, rate, kind, seed, projected=projected)


@st.composite
def labels(draw, max_classes=6):
    """Labels in which every class occurs."""
    num_classes = draw(st.integers(2, max_classes))
    rest = draw(hnp.arrays(np.int32, st.integers(0, 80), elements=st.integers(0, num_classes - 1)))
    return np.concatenate([np.arange(num_classes, dtype=np.int32), rest]), num_classes


def test_the_long_tail_of_cifar_has_the_published_class_sizes():
    tail = variants.long_tail_counts(np.full(10, 5000), 100)
    assert tail.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert variants.long_tail_counts(np.full(100, 500), 100).sum() == 10847
    assert variants.long_tail_counts(np.full(100, 500), 100)[-1] == 5


@hypothesis.given(
    st.lists(st.integers(1, 500), min_size=2, max_size=12), st.floats(1, 1000), st.sampled_from([np.int32, np.int64])
)
def test_a_long_tail_is_the_largest_of_its_profile_that_the_data_can_fill(counts, ratio, dtype):
    counts = np.asarray(counts, dtype)
    tail = variants.long_tail_counts(counts, ratio)
    profile = ratio ** (-np.arange(len(counts)) / (len(counts) - 1))
    assert (tail <= counts).all()
    assert (tail >= 1).all()
    assert (np.diff(tail) <= 0).all()
    np.testing.assert_array_equal(tail, np.maximum(np.floor(tail[0] * profile + 1e-9), 1))
    larger = np.maximum(np.floor((tail[0] + 1) * profile), 1)
    assert (larger > counts).any()


def test_a_long_tail_at_ratio_one_is_balanced():
    assert variants.long_tail_counts(np.array([10, 7, 9]), 1).tolist() == [7, 7, 7]


@hypothesis.given(labels(), st.floats(1, 50), st.integers(0, 3))
def test_long_tail_rows_hold_exactly_the_counts(drawn, ratio, seed):
    values, num_classes = drawn
    rows = variants.long_tail_rows(values, num_classes, ratio, seed)
    counts = np.bincount(values, minlength=num_classes)
    np.testing.assert_array_equal(np.bincount(values[rows]), variants.long_tail_counts(counts, ratio))
    assert (np.diff(rows) > 0).all()


@hypothesis.given(labels(), st.floats(0, 0.99), st.sampled_from(KINDS), st.integers(0, 3))
def test_exactly_the_rate_of_labels_is_wrong_in_every_class(drawn, rate, kind, seed):
    values, num_classes = drawn
    flipped = flip(values, num_classes, rate, kind, seed)
    for c in range(num_classes):
        given = flipped[values == c]
        assert (given != c).sum() == round(rate * len(given))
    assert flipped.dtype == values.dtype
    assert (flipped >= 0).all()
    assert (flipped < num_classes).all()
    if kind == "pair":
        wrong = flipped != values
        np.testing.assert_array_equal(flipped[wrong], (values[wrong] + 1) % num_classes)


def test_symmetric_noise_is_uniform_over_the_other_classes():
    flipped = variants.flip_labels(np.zeros(30_000, np.int32), 4, 0.9, "symmetric", 0)
    counts = np.bincount(flipped, minlength=4)
    assert counts[0] == 3000
    # Four standard deviations of a binomial with n = 27000, p = 1/3.
    np.testing.assert_allclose(counts[1:], 9000, atol=310)


def test_noise_by_instance_follows_the_input():
    rng = np.random.default_rng(0)
    values, inputs = np.zeros(20_000, np.int32), rng.normal(size=(20_000, 9))
    projected = variants.projections(inputs, 4, 3)
    flipped = variants.flip_labels(values, 4, 0.3, "instance", 3, projected=projected)
    scores = ((projected - projected.mean(0)) / projected.std(0))[:, 1:]
    wrong = flipped != values
    np.testing.assert_array_equal(flipped[wrong], 1 + np.argmax(scores, -1)[wrong])
    # Those that reach far are more often wrong than those that don't, but neither always nor never.
    reach = scores.max(-1)
    low, high = (wrong[part].mean() for part in (reach < np.quantile(reach, 0.2), reach > np.quantile(reach, 0.8)))
    assert 0.02 < low < 0.2
    assert 0.45 < high < 0.98


def test_inputs_may_be_projected_in_pieces():
    whole = variants.projections(INPUTS, 3, 5)
    pieces = [variants.projections(part, 3, 5) for part in (INPUTS[:5], INPUTS[5:])]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-12)
    assert whole.shape == (12, 3)


def test_noise_by_instance_needs_the_inputs():
    for projected in (None, np.zeros((12, 2))):
        with pytest.raises(ValueError, match="argument `projected`"):
            variants.flip_labels(LABELS, 3, 0.2, "instance", 0, projected=projected)


@pytest.mark.parametrize("kind", KINDS)
def test_more_noise_keeps_the_wrong_labels_of_less(kind):
    values = np.arange(200) % 5
    few, many = (flip(values, 5, rate, kind, 1) for rate in (0.1, 0.4))
    wrong = few != values
    np.testing.assert_array_equal(many[wrong], few[wrong])


@hypothesis.given(labels(), st.floats(0, 1), st.integers(0, 3))
def test_the_attribute_agrees_with_the_parity_of_the_class_for_exactly_its_share(drawn, agreement, seed):
    values, num_classes = drawn
    attribute = variants.plant_attribute(values, num_classes, agreement, seed)
    for c in range(num_classes):
        agrees = attribute[values == c] == c % 2
        assert agrees.sum() == round(agreement * len(agrees))


def test_variants_with_other_seeds_differ_and_their_draws_do_not_follow_each_other():
    values = np.zeros(1000, np.int32)
    first, second = (variants.flip_labels(values, 2, 0.5, "symmetric", seed) for seed in (0, 1))
    attribute = variants.plant_attribute(values, 2, 0.5, 0)
    for a, b in ((first, second), (first, attribute)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (variants.stratified_test_rows(LABELS, 0.25), [1, 8, 9]),
        (variants.long_tail_rows(LABELS, 3, 4, 7), [0, 1, 3, 6, 7, 9, 11]),
        (variants.flip_labels(LABELS, 3, 0.5, "symmetric", 7), [1, 1, 2, 0, 1, 2, 0, 2, 1, 2, 0, 0]),
        (variants.flip_labels(LABELS, 3, 0.5, "pair", 7), [1, 1, 2, 0, 1, 2, 0, 2, 0, 1, 2, 0]),
        (
            variants.flip_labels(LABELS, 3, 0.5, "instance", 7, projected=variants.projections(INPUTS, 3, 7)),
            [0, 0, 2, 1, 2, 0, 2, 1, 2, 0, 1, 1],
        ),
        (variants.plant_attribute(LABELS, 3, 0.75, 7), [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 0]),
    ],
)
def test_the_draws_are_the_same_on_every_machine_and_in_every_version(drawn, expected):
    assert drawn.tolist() == expected
