"""Data sets by name through TensorFlow Datasets (without TensorFlow), their variants, and grain pipelines over them."""

from reweight.data.config import EMBEDDED, DataConfig
from reweight.data.dataset import Dataset, Info, Source, load, stream
from reweight.data.loader import make_loader
from reweight.data.prepare import cache_dir, prepare

__all__ = [
    "EMBEDDED",
    "DataConfig",
    "Dataset",
    "Info",
    "Source",
    "cache_dir",
    "load",
    "make_loader",
    "prepare",
    "stream",
]
