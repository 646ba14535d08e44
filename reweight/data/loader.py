"""Batches from a data set, with grain."""

from typing import Literal, get_args

import grain
import numpy as np
from absl import flags

from reweight import _checks, parallel
from reweight.data.dataset import Source
from reweight.data.records import Arrays

__all__ = ["Remainder", "make_loader"]

Remainder = Literal["drop", "pad"]
FUNCTION = "data.make_loader"


class _Reader:
    """This process's rows of a global batch, read."""

    def __init__(self, source: Source, batch_size: int, mine: slice) -> None:
        self.source, self.batch_size, self.mine = source, batch_size, mine

    def __call__(self, rows: np.ndarray) -> Arrays:
        mask = np.arange(self.batch_size) < len(rows)
        # A padded row repeats a real one, so that whatever reads it without the mask still finds an example.
        padded = np.concatenate([rows, np.full(self.batch_size - len(rows), rows[0], rows.dtype)])
        return self.source.read(padded[self.mine]) | {"mask": mask[self.mine]}


def make_loader(
    source: Source,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    remainder: Remainder = "drop",
    rows: slice | None = None,
    num_threads: int = 0,
    num_workers: int = 0,
) -> grain.IterDataset:
    """Batches in an order that depends on the seed alone, and that can be left and taken up again anywhere.

    Batches are dicts of NumPy arrays: what `source` has (`inputs`, `labels`, `clean_labels`, `indices`, `groups`), and
    `mask`, False for padding. Batch k is the same on any number of processes: each reads its own rows of the global
    batch, which `parallel.shard_batch` puts together. Every epoch has its own order.

    The iterator's `get_state()` is a small dict of numbers, the same on every process, and JSON takes it. After
    `set_state(state)` on an iterator of a loader with the same source, seed and batch size the batches are those that
    would have come, also on another number of processes and threads (of `num_workers`: on the same number).

        loader = data.make_loader(data.load("digits", "train"), batch_size=128, seed=0, epochs=10)
        iterator = iter(loader)
        batch = next(iterator)
        state = iterator.get_state()

    Args:
      source: from `load` or `stream`, or anything with `__len__` and `read(rows) -> dict of arrays`.
      batch_size: of the global batch.
      seed: draws the order, in [0, 2**32).
      shuffle: False keeps the order of the source.
      epochs: how many times every example is seen; default without end.
      remainder: what becomes of the last examples of an epoch where they don't fill a batch: left out (`"drop"`; others
        in every epoch) or filled up with masked rows (`"pad"`).
      rows: which rows of every global batch this process reads, `parallel.process_slice(batch_size, mesh)`. Default:
        the equal share of each process, in their order, which is right for a mesh whose only axis is that of the batch.
      num_threads: threads that read ahead, up to two batches each; 0 reads when the batch is asked for.
      num_workers: processes that read ahead, for decoding that is more than threads can do; 0 uses none.

    Returns:
      A grain dataset; `iter` of it gives the iterator.

    Raises:
      ValueError: if an argument is out of range; in particular if the source has less than one batch to give.
    """
    _checks.number(FUNCTION, "batch_size", batch_size, low=1, integer=True)
    _checks.number(FUNCTION, "seed", seed, low=0, high=2**32 - 1, integer=True)
    _checks.choice(FUNCTION, "remainder", remainder, get_args(Remainder))
    _checks.number(FUNCTION, "num_threads", num_threads, low=0, integer=True)
    _checks.number(FUNCTION, "num_workers", num_workers, low=0, integer=True)
    if epochs is not None:
        _checks.number(FUNCTION, "epochs", epochs, low=1, integer=True)
    mine = parallel.process_slice(batch_size) if rows is None else rows
    if mine.step not in (None, 1) or mine != slice(*mine.indices(batch_size)[:2]):
        _checks.fail(FUNCTION, "rows", repr(mine), f"slice(start, stop) within the {batch_size} rows of a batch")
    drop = remainder == "drop"
    if len(source) < (batch_size if drop else 1):
        allowed = f"at most the {len(source)} examples of the source, or remainder='pad'"
        _checks.fail(FUNCTION, "batch_size", repr(batch_size), allowed)
    order = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        order = order.shuffle()
    # Only numbers are shuffled and batched; the examples of a batch are then read at once, and only this process's.
    batches = order.batch(batch_size, drop_remainder=drop, batch_fn=np.asarray).repeat(epochs)
    batches = batches.map(_Reader(source, batch_size, mine))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    loader = batches.to_iter_dataset(options)
    if num_workers:
        # Grain's workers read absl flags, which a program without absl's own main function never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        loader = loader.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return loader
