"""Preparing TFDS sets where TensorFlow is not installed.

TFDS reads without TensorFlow and writes without it too, but for two habits of its builders: they open files through
`tf.io.gfile`, and they hand images over as arrays, which TFDS encodes with TensorFlow. Here local files take the place
of the one and PIL that of the other, for as long as a set is prepared. A builder that computes with TensorFlow
still needs it.
"""

import contextlib
import functools
import glob
import importlib.util
import os
import shutil
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import lazy_imports_utils

__all__ = ["download_and_prepare"]

_GFILE = types.SimpleNamespace(
    GFile=open,
    copy=lambda source, target, overwrite=False: shutil.copyfile(source, target),
    exists=os.path.exists,
    glob=glob.glob,
    isdir=os.path.isdir,
    listdir=os.listdir,
    makedirs=functools.partial(os.makedirs, exist_ok=True),
    remove=os.remove,
    rename=os.replace,
    rmtree=shutil.rmtree,
    walk=os.walk,
)


def download_and_prepare(builder: tfds.core.DatasetBuilder) -> None:
    """`builder.download_and_prepare()`, also where TensorFlow is not installed.

    Raises:
      ImportError: if the builder computes with TensorFlow, or needs another package that is not installed.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        builder.download_and_prepare()
        return
    _encode_with_pil(builder)
    try:
        with _local_files():
            builder.download_and_prepare()
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        message = f"TFDS prepares {builder.name} with TensorFlow: install it for this once, or bring a prepared folder"
        raise ImportError(f"{message}. Reading the set needs no TensorFlow.", name="tensorflow") from error


@contextlib.contextmanager
def _local_files() -> Iterator[None]:
    """Gives TFDS's builders `tf.io.gfile` over local files."""
    # The stand-in for the module that all of TFDS shares looks in its own dictionary before it imports TensorFlow.
    attributes = vars(lazy_imports_utils.tensorflow)
    attributes["io"] = types.SimpleNamespace(gfile=_GFILE)
    try:
        yield
    finally:
        del attributes["io"]


def _encode_with_pil(builder: tfds.core.DatasetBuilder) -> None:
    """Makes a builder hand images over as PIL images, which TFDS encodes as PNG without TensorFlow."""
    generators = builder._split_generators

    def split_generators(*args: Any, **kwargs: Any) -> dict[str, Any]:
        features = builder.info.features
        return {
            split: ((key, _as_pil(features, example)) for key, example in examples)
            for split, examples in generators(*args, **kwargs).items()
        }

    builder._split_generators = split_generators


def _as_pil(feature: Any, value: Any) -> Any:
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _as_pil(feature[key], part) for key, part in value.items()}
    lossless = isinstance(feature, tfds.features.Image) and feature.encoding_format in (None, "png")
    if lossless and isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value)
    return value
