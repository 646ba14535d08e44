"""Any TFDS name by config, prepared and read without TensorFlow."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from reweight import data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def config(cache, **fields):
    return data.DataConfig(**{"name": "tfds:cifar100", "cache": str(cache)} | fields)


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Grey images of different sizes, nested features, a boolean; the row number is in the pixels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(None, None, 1)),
                    "attributes": {"tall": np.bool_, "kind": tfds.features.ClassLabel(num_classes=3)},
                    "score": np.float32,
                    "tokens": tfds.features.Tensor(shape=(4,), dtype=np.int64),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(9):
            shape = (12 + 4 * (i % 2), 12, 1)
            yield (
                i,
                {
                    "picture": np.full(shape, 10 * i, np.uint8),
                    "attributes": {"tall": bool(i % 2), "kind": i % 3},
                    "score": i / 2,
                    "tokens": np.arange(4),
                },
            )


class NeedsTensorflow(Pictures):
    """Computes with TensorFlow while it is prepared."""

    def _generate_examples(self):
        yield 0, {"picture": tf.zeros((4, 4, 1))}


PICTURES = {
    "name": "tfds:pictures",
    "input_feature": "picture",
    "label_feature": "attributes/kind",
    "image_size": 8,
}


def test_the_builder_of_cifar100_is_prepared_and_read_without_tensorflow(cifar100, cache, no_network):
    for split in ("train", "test"):
        loaded = data.load(config(cache), split)
        images, fine = cifar100[split]
        assert loaded.info.num_classes == 100
        assert loaded.info.input_shape == (32, 32, 3)
        assert loaded.info.num_indices == len(images)
        order = np.lexsort(loaded["inputs"].reshape(len(images), -1).T[:4])
        truth = np.lexsort(images.reshape(len(images), -1).T[:4])
        np.testing.assert_array_equal(loaded["labels"][order], fine[truth])
        np.testing.assert_allclose(loaded["inputs"][order], images[truth] / np.float32(127.5) - 1, atol=1e-6)
    assert "tensorflow" not in sys.modules
    assert "io" not in vars(tf)


def test_variants_apply_to_any_set_and_keep_the_ids_of_its_examples(cifar100, cache):
    whole = data.load(config(cache), "train")
    tail = data.load(config(cache, long_tail=3, label_noise=0.5, groups=("coarse_label",), seed=1), "train")
    assert tail.info.class_counts != whole.info.class_counts
    assert np.bincount(tail["clean_labels"]).tolist() == [int(3 * 3 ** (-c / 99) + 1e-9) for c in range(100)]
    np.testing.assert_array_equal(tail["inputs"], whole["inputs"][tail["indices"]])
    np.testing.assert_array_equal(tail["clean_labels"], whole["labels"][tail["indices"]])
    np.testing.assert_array_equal(tail["groups"], tail["clean_labels"] // 5)
    assert tail.info.num_groups == 20


def test_streaming_reads_what_loading_does(cifar100, cache):
    settings = config(cache, long_tail=2, spurious=0.9, groups=("label", "attribute"))
    loaded, streamed = data.load(settings, "train"), data.stream(settings, "train")
    assert streamed.info == loaded.info
    rows = np.array([5, 0, 100])
    for name, values in streamed.read(rows).items():
        np.testing.assert_array_equal(values, loaded[name][rows])


def test_parts_of_splits_are_splits(cifar100, cache):
    part = data.load(config(cache, train_split="train[:10]", test_split="train[10:]"), "train")
    rest = data.load(config(cache, train_split="train[:10]", test_split="train[10:]"), "test")
    whole = data.load(config(cache), "train")
    np.testing.assert_array_equal(np.concatenate([part["labels"], rest["labels"]]), whole["labels"])


def test_images_of_different_sizes_are_scaled_and_cropped(cache):
    loaded = data.load(config(cache, **PICTURES, groups=("attributes/tall",)), "train")
    assert loaded["inputs"].shape == (9, 8, 8, 1)
    grey = np.round((loaded["inputs"][:, 4, 4, 0] + 1) * 12.75).astype(int)
    assert sorted(grey) == list(range(9))
    np.testing.assert_array_equal(loaded["labels"], grey % 3)
    np.testing.assert_array_equal(loaded["groups"], grey % 2)


def test_scaling_keeps_the_centre_of_the_longer_side(cifar100, cache):
    images = data.load(config(cache, image_size=16), "test")["inputs"]
    full = data.load(config(cache), "test")["inputs"]
    assert images.shape == (40, 16, 16, 3)
    # Scaling by a half averages: the mean stays, and so does what is bright on a coarse scale.
    np.testing.assert_allclose(images.mean((1, 2)), full.mean((1, 2)), atol=0.03)


def test_a_float_feature_makes_a_regression_set(cache):
    loaded = data.load(config(cache, **PICTURES | {"label_feature": "score"}), "train")
    assert loaded.info.num_classes == 0
    assert loaded.info.num_outputs == 1
    scores = loaded.info.label_mean + loaded.info.label_std * loaded["labels"]
    np.testing.assert_allclose(sorted(scores), np.arange(9) / 2, atol=1e-6)


def test_a_builder_that_computes_with_tensorflow_is_refused_clearly(cache):
    with pytest.raises(ImportError, match="prepares needs_tensorflow with TensorFlow: install it for this once"):
        data.load(config(cache, **PICTURES | {"name": "tfds:needs_tensorflow"}), "train")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "tfds:no_such_set"}, "name"),
        ({"train_split": "valid"}, "train_split"),
        ({"train_split": "train[:"}, "train_split"),
        ({"groups": ("fine",)}, "groups"),
        ({"label_feature": "id"}, "label_feature"),
        ({"input_feature": "img"}, "input_feature"),
        ({"input_feature": "id"}, "input_feature"),
        (PICTURES | {"image_size": None}, "image_size"),
        (PICTURES | {"label_feature": None}, "label_feature"),
        (PICTURES | {"input_feature": "tokens"}, "input_feature"),
        ({"name": "tfds:scikit_learn/wine", "image_size": 8}, "image_size"),
        (PICTURES | {"input_feature": "score"}, "input_feature"),
        (PICTURES | {"label_feature": "score", "label_noise": 0.1}, "label_noise"),
    ],
)
def test_what_does_not_fit_the_set_is_named(cifar100, cache, fields, named):
    with pytest.raises(ValueError, match=rf"data.DataConfig: argument `{named}`"):
        data.load(config(cache, **fields), "train")


def test_damage_in_a_downloaded_set_names_the_folder_and_deletes_nothing(cifar100, tmp_path):
    data.load(config(tmp_path), "train")
    path = next((tmp_path / "cifar100").rglob("*train.array_record*"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=f"the files in {path.parent} are damaged; delete the folder"):
        data.load(config(tmp_path), "train")
    assert path.exists()
