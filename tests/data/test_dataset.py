"""Variants by config, and what a loaded set holds."""

import dataclasses
import json

import numpy as np
import pytest

from reweight import data
from reweight.data import variants


def load(split="train", **fields):
    return data.load(data.DataConfig(**fields), split)


def test_digits_are_standardised_images_with_ids():
    train = load()
    assert train["inputs"].shape == (1438, 8, 8, 1)
    assert train["inputs"].dtype == np.float32
    np.testing.assert_allclose(train["inputs"].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(train["inputs"].std(), 1, rtol=1e-5)
    np.testing.assert_array_equal(train["indices"], np.arange(1438))
    np.testing.assert_array_equal(train["labels"], train["clean_labels"])
    assert train.info.class_counts == tuple(np.bincount(train["labels"]))
    assert train.info.num_classes == train.info.num_outputs == 10


def test_the_map_of_the_inputs_is_that_of_the_training_split_and_not_of_the_variant():
    whole, tail = load(), load(long_tail=20.0)
    np.testing.assert_array_equal(tail["inputs"], whole["inputs"][tail["indices"]])
    test = load("test", name="wine")
    assert abs(test["inputs"].mean()) > 1e-3


def test_a_regression_target_is_standardised_and_can_be_taken_back():
    from sklearn.datasets import load_diabetes

    train, test = load(name="diabetes"), load("test", name="diabetes")
    assert train.info.num_outputs == 1
    np.testing.assert_allclose([train["labels"].mean(), train["labels"].std()], [0, 1], atol=1e-5)
    assert (train.info.label_mean, train.info.label_std) == (test.info.label_mean, test.info.label_std)
    standardised = np.concatenate([train["labels"], test["labels"]])
    targets = test.info.label_mean + test.info.label_std * standardised
    np.testing.assert_allclose(np.sort(targets), np.sort(load_diabetes().target), rtol=1e-5)


def test_a_long_tail_has_exactly_its_counts_and_leaves_the_test_split_alone():
    tail = load(long_tail=20.0, seed=3)
    counts = variants.long_tail_counts(np.array(load().info.class_counts), 20.0)
    assert tail.info.class_counts == tuple(counts)
    assert counts[0] == 142
    assert counts[-1] == 7
    assert load("test", long_tail=20.0).info == load("test").info


def test_seeds_draw_different_examples_and_the_same_seed_the_same():
    one, again, other = (load(long_tail=10.0, label_noise=0.3, seed=seed) for seed in (0, 0, 1))
    for name in one.arrays:
        np.testing.assert_array_equal(one[name], again[name])
    assert not np.array_equal(one["indices"], other["indices"])
    assert one.info == again.info


@pytest.mark.parametrize("kind", ["symmetric", "pair", "instance"])
def test_noise_is_exact_after_the_long_tail_and_keeps_the_true_labels(kind):
    noisy = load(long_tail=5.0, label_noise=0.4, noise_kind=kind)
    clean = load(long_tail=5.0)
    np.testing.assert_array_equal(noisy["clean_labels"], clean["labels"])
    for c, n in enumerate(clean.info.class_counts):
        of_class = noisy["clean_labels"] == c
        assert (noisy["labels"][of_class] != c).sum() == round(0.4 * n)
    assert noisy.info.class_counts == tuple(np.bincount(noisy["labels"], minlength=10))
    test = load("test", label_noise=0.4)
    np.testing.assert_array_equal(test["labels"], test["clean_labels"])


def test_a_planted_attribute_makes_groups_of_class_and_attribute():
    train = load(spurious=0.9, groups=("label", "attribute"))
    attribute, label = train["groups"] % 2, train["groups"] // 2
    np.testing.assert_array_equal(label, train["labels"])
    assert train.info.num_groups == 20
    assert train.info.group_counts == tuple(np.bincount(train["groups"]))
    for c in range(10):
        agrees = attribute[label == c] == c % 2
        assert agrees.sum() == round(0.9 * len(agrees))
    # It can be read off the corner of the image, and nothing else is changed.
    corner = train["inputs"][:, :2, :2, 0]
    np.testing.assert_array_equal(corner, np.broadcast_to((2 * attribute - 1)[:, None, None], corner.shape))
    np.testing.assert_array_equal(train["inputs"][:, 2:], load()["inputs"][:, 2:])


def test_in_the_test_split_the_attribute_says_nothing_about_the_class():
    test = load("test", spurious=1.0, groups=("label", "attribute"))
    pairs = np.reshape(test.info.group_counts, (10, 2))
    assert (np.abs(pairs[:, 0] - pairs[:, 1]) <= 1).all()


def test_to_vectors_the_attribute_is_one_more_feature():
    plain, planted = load(name="wine"), load(name="wine", spurious=1.0)
    assert planted.info.input_shape == (14,)
    np.testing.assert_array_equal(planted["inputs"][:, :13], plain["inputs"])
    np.testing.assert_array_equal(planted["inputs"][:, 13], 2 * (planted["labels"] % 2) - 1)


def test_groups_by_the_given_and_by_the_true_label_differ_under_noise():
    given, true = (load(label_noise=0.2, groups=(name,))["groups"] for name in ("label", "clean_label"))
    noisy = load(label_noise=0.2)
    np.testing.assert_array_equal(given, noisy["labels"])
    np.testing.assert_array_equal(true, noisy["clean_labels"])


def test_info_goes_into_json():
    info = load(groups=("label",)).info
    assert json.loads(json.dumps(dataclasses.asdict(info)))["class_counts"] == list(info.class_counts)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "mnist"}, "name"),
        ({"name": "tfds:"}, "name"),
        ({"long_tail": 0.5}, "long_tail"),
        ({"long_tail": np.inf}, "long_tail"),
        ({"label_noise": 1.0}, "label_noise"),
        ({"noise_kind": "uniform"}, "noise_kind"),
        ({"spurious": 1.5}, "spurious"),
        ({"groups": "label"}, "groups"),
        ({"groups": ("attribute",)}, "groups"),
        ({"groups": ("label", "label")}, "groups"),
        ({"groups": ("colour",)}, "groups"),
        ({"seed": -1}, "seed"),
        ({"image_size": 0}, "image_size"),
        ({"train_split": "all"}, "train_split"),
        ({"label_feature": "target"}, "label_feature"),
        ({"name": "diabetes", "long_tail": 2.0}, "long_tail"),
        ({"name": "diabetes", "label_noise": 0.1}, "label_noise"),
        ({"name": "diabetes", "spurious": 0.9}, "spurious"),
        ({"name": "diabetes", "groups": ("label",)}, "groups"),
    ],
)
def test_a_bad_field_is_named(fields, named):
    with pytest.raises(ValueError, match=rf"data.DataConfig: argument `{named}`"):
        load(**fields)


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"data.load: argument `split` is 'valid'; allowed: one of 'train', 'test'"):
        load("valid")
