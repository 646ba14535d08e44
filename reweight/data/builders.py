"""The sets that come with scikit-learn, as one TFDS builder.

    builder = tfds.builder("scikit_learn/digits", data_dir=..., file_format="array_record")

TFDS writes ArrayRecord files without TensorFlow as long as no image has to be encoded, so images are stored as tensors.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from reweight.data.variants import stratified_test_rows

__all__ = ["ScikitLearn"]

TEST_SHARE = 0.2
# A regression set is stratified by tenths of its target.
STRATA = 10

_DESCRIPTIONS = {
    "digits": "1,797 grey images of hand-written digits, 8×8 pixels with values from 0 to 16; ten classes.",
    "breast_cancer": "569 tumours described by 30 measurements; malignant or benign.",
    "wine": "178 wines described by 13 chemical measurements; three cultivars.",
    "diabetes": "442 patients described by 10 measurements; the progression of the disease a year later.",
}


def _read(name: str) -> Any:
    # Imported here: scikit-learn takes a second, and only preparing needs it.
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")()


class ScikitLearn(tfds.core.GeneratorBasedBuilder):
    """digits, breast_cancer, wine and diabetes, each with a fixed stratified split into 80 % training and 20 % test.

    Features: `inputs` (float32) and `label` (a class, or for diabetes a float32). Rows keep scikit-learn's order, so
    that a row's position in its split is a stable id.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's own interface
        tfds.core.BuilderConfig(name=name, description=text) for name, text in _DESCRIPTIONS.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        name = self.builder_config.name
        shapes = {"digits": (8, 8, 1), "breast_cancer": (30,), "wine": (13,), "diabetes": (10,)}
        classes = {"digits": 10, "breast_cancer": 2, "wine": 3}
        label = tfds.features.ClassLabel(num_classes=classes[name]) if name in classes else np.float32
        features = {"inputs": tfds.features.Tensor(shape=shapes[name], dtype=np.float32), "label": label}
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTIONS[name],
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("inputs", "label"),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        bunch = _read(self.builder_config.name)
        inputs = np.asarray(bunch.data, np.float32).reshape(len(bunch.data), *self.info.features["inputs"].shape)
        target = np.asarray(bunch.target)
        strata = target
        if not np.issubdtype(target.dtype, np.integer):
            ranks = np.argsort(np.argsort(target, kind="stable"), kind="stable")
            strata = ranks * STRATA // len(target)
        test = np.zeros(len(target), bool)
        test[stratified_test_rows(strata, TEST_SHARE)] = True
        return {
            "train": self._generate_examples(inputs[~test], target[~test]),
            "test": self._generate_examples(inputs[test], target[test]),
        }

    def _generate_examples(self, inputs: np.ndarray, target: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (example, label) in enumerate(zip(inputs, target, strict=True)):
            yield row, {"inputs": example, "label": label}
