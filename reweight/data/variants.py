"""Long tails, label noise and planted attributes, as pure functions of labels and a seed.

They draw from the raw bits of a counter-based generator, whose stream NumPy keeps the same in all versions, so that a
variant is the same on every machine, in every year.
"""

import zlib

import numpy as np
from jaxtyping import Float, Int

from reweight import _checks
from reweight.data.config import NoiseKind

__all__ = [
    "flip_labels",
    "long_tail_counts",
    "long_tail_rows",
    "plant_attribute",
    "projections",
    "stratified_test_rows",
]

Labels = Int[np.ndarray, " n"]


def _bits(n: int, seed: int, purpose: str) -> np.ndarray:
    """`n` random 64-bit words; different purposes and seeds give independent ones."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return np.asarray(np.random.Philox(entropy).random_raw(n))


def _shuffled_classes(labels: Labels, num_classes: int, seed: int, purpose: str) -> list[np.ndarray]:
    """The rows of each class, in a random order."""
    order = np.argsort(_bits(len(labels), seed, purpose), kind="stable")
    return [order[labels[order] == c] for c in range(num_classes)]


def stratified_test_rows(strata: Labels, share: float) -> np.ndarray:
    """The rows of a test split that holds `share` of every stratum (rounded), sorted; always the same ones."""
    classes = _shuffled_classes(strata, int(strata.max()) + 1, 0, "test split")
    return np.sort(np.concatenate([rows[: round(share * len(rows))] for rows in classes]))


def long_tail_counts(class_counts: np.ndarray, ratio: float) -> np.ndarray:
    r"""The sizes of the classes of a long tail with an exponential profile.

    .. math:: n_c = \max(1, \lfloor n_0\, \rho^{-c/(C-1)} \rfloor)

    with the largest :math:`n_0` for which every :math:`n_c \le N_c`.

    The classes keep their order: class 0 is the head. A profile that the data can't fill is scaled down rather than
    bent, so that the sizes depend on :math:`n_0` and the ratio alone.

    Args:
      class_counts: the sizes :math:`N_c` of the classes, `[C]`, at least two classes and none empty.
      ratio: the imbalance ratio :math:`\rho`, in [1, inf).

    Returns:
      The sizes `[C]`, non-increasing.

    References:
      Cui, Jia, Lin, Song, Belongie, *Class-Balanced Loss Based on Effective Number of Samples*, 2019, arXiv 1901.05555.
    """
    counts = np.asarray(class_counts)
    profile = ratio ** (-np.arange(len(counts)) / max(len(counts) - 1, 1))
    # 1e-9: 500 · 0.01 is 5, whatever the last digit of the power says.
    head = np.floor(np.min((counts + 1 - 1e-6) / profile))
    return np.maximum(np.floor(head * profile + 1e-9).astype(int), 1)


def long_tail_rows(labels: Labels, num_classes: int, ratio: float, seed: int) -> np.ndarray:
    """The rows of a long tail, sorted: of each class as many as `long_tail_counts` says, drawn at random."""
    counts = long_tail_counts(np.bincount(labels, minlength=num_classes), ratio)
    classes = _shuffled_classes(labels, num_classes, seed, "long tail")
    return np.sort(np.concatenate([rows[:count] for rows, count in zip(classes, counts, strict=True)]))


def projections(inputs: Float[np.ndarray, "n ..."], num_classes: int, seed: int) -> Float[np.ndarray, "n classes"]:
    """How far each input reaches along a random direction a class: what `flip_labels` wants for noise by instance.

    The directions are signs, so that nothing but a sum depends on the machine.

    Args:
      inputs: `[n, ...]`.
      num_classes: C.
      seed: draws the directions.

    Returns:
      Sums of inputs with signs `[n, C]`, float64; inputs may be projected in pieces.
    """
    flat = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    words = _bits(flat.shape[1] * num_classes, seed, "directions").reshape(-1, num_classes)
    return np.asarray(flat @ (1.0 - 2.0 * (words >> np.uint64(63))))


def flip_labels(
    labels: Labels,
    num_classes: int,
    rate: float,
    kind: NoiseKind,
    seed: int,
    projected: Float[np.ndarray, "n classes"] | None = None,
) -> Labels:
    r"""Labels of which in each class a share `rate` is wrong: exactly `round(rate * n_c)` of them.

    | kind | a wrong label is | which are wrong |
    |---|---|---|
    | `"symmetric"` | uniform over the other C - 1 classes | drawn at random |
    | `"pair"` | the next class modulo C | drawn at random |
    | `"instance"` | the class along whose direction the input reaches farthest | drawn with weights |

    The weight of an example is :math:`e^{s}`, with its reach s along that direction in standard deviations of the set:
    some inputs are far more likely to be labelled wrongly than others, and alike ones get the same wrong label.

    Args:
      labels: the true labels `[n]`.
      num_classes: C, at least 2.
      rate: the share of wrong labels, in [0, 1).
      kind: see the table.
      seed: draws which labels are wrong, and the wrong labels. A higher rate keeps the wrong ones of a lower one.
      projected: the `projections` of the inputs `[n, C]`; needed for `"instance"`.

    Returns:
      The given labels `[n]`.

    Raises:
      ValueError: if `projected` is missing or not of a row a label and a column a class.

    References:
      Xia et al., *Part-dependent Label Noise: Towards Instance-dependent Label Noise*, 2020, arXiv 2006.07836, whose
      wrong labels come from random projections too; there, which labels are wrong does not depend on the input.
    """
    wrong_labels = (labels + 1) % num_classes
    classes = _shuffled_classes(labels, num_classes, seed, "label noise")
    if kind == "symmetric":
        words = _bits(len(labels), seed, "wrong labels") >> np.uint64(32)
        wrong_labels = (labels + 1 + (words % np.uint64(num_classes - 1)).astype(labels.dtype)) % num_classes
    elif kind == "instance":
        if projected is None:
            _checks.fail(
                "data.variants.flip_labels", "projected", "missing", "an array [n, classes] for noise by instance"
            )
        _checks.array(
            "data.variants.flip_labels", "projected", projected, shape=(len(labels), num_classes), kind="float"
        )
        spread = projected.std(axis=0)
        scores = (projected - projected.mean(axis=0)) / np.where(spread > 0, spread, 1)
        scores[np.arange(len(labels)), labels] = -np.inf
        wrong_labels = np.argmax(scores, axis=1).astype(labels.dtype)
        # The largest sums of a logarithmic weight and a Gumbel draw are a draw without replacement with these weights.
        uniform = ((_bits(len(labels), seed, "label noise") >> np.uint64(11)) + 0.5) / 2.0**53
        keys = scores[np.arange(len(labels)), wrong_labels] - np.log(-np.log(uniform))
        classes = [rows[np.argsort(-keys[rows], kind="stable")] for rows in classes]
    flipped = labels.copy()
    for rows in classes:
        wrong = rows[: round(rate * len(rows))]
        flipped[wrong] = wrong_labels[wrong]
    return flipped


def plant_attribute(labels: Labels, num_classes: int, agreement: float, seed: int) -> Int[np.ndarray, " n"]:
    """A binary attribute `[n]`: the parity of the class for exactly `round(agreement · n_c)` examples of each class."""
    attribute = labels % 2
    for rows in _shuffled_classes(labels, num_classes, seed, "attribute"):
        against = rows[round(agreement * len(rows)) :]
        attribute[against] = 1 - attribute[against]
    return attribute
