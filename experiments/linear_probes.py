"""How many examples does a linear probe need?

Naive Bayes estimates each feature by itself and needs examples in the order of the logarithm of the number of features;
logistic regression fits all of them together and needs as many as there are features. Gaussian classes of which half of
the features are noisy, in more and more dimensions: how many examples until the error is within a hundredth of the
least possible one. And digits, where the features are not independent: what each gets from a few examples a class, and
from many. A seed draws the examples.

Both are linear. Naive Bayes has one variance of each feature for all classes (`estimators.naive_bayes`), and logistic
regression is scikit-learn's with its defaults (L-BFGS, C = 1), as in the paper.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from experiments import harness
from experiments.harness import figures
from reweight import data
from reweight.estimators import naive_bayes

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "gaussian_classes", "run"]

PAPER = "Zheng et al. 2023, arXiv 2302.02334"
CLASSES = 2
DIMENSIONS = (50, 100, 200, 400)
WITHIN = 0.01
FEW, MANY = 2, 64
PER_CLASS = (1, FEW, 4, 8, 16, 32, MANY)

METHODS: dict[str, str] = {"naive_bayes": "naive Bayes", "logistic_regression": "logistic regression"}

METRICS = (
    *(
        harness.Metric(f"needed_{size}", f"{size} features", "lower", digits=0, table="examples needed")
        for size in DIMENSIONS
    ),
    harness.Metric("growth", "exponent of their growth with the features", "lower", table="examples needed"),
    *(
        harness.Metric(f"accuracy_{count}", f"{count} a class", percent=True, digits=1, table="accuracy on digits")
        for count in (FEW, MANY)
    ),
)

CLAIMS = (
    *(
        harness.Claim(PAPER, "naive_bayes", "logistic_regression", f"needed_{size}", "lower")
        for size in (DIMENSIONS[0], DIMENSIONS[-1])
    ),
    harness.Claim(PAPER, "naive_bayes", "logistic_regression", "growth", "lower"),
    # Of the two regimes the paper speaks for features of pre-trained networks; these are pixels.
    harness.Claim(PAPER, "naive_bayes", "logistic_regression", f"accuracy_{FEW}"),
    harness.Claim(PAPER, "logistic_regression", "naive_bayes", f"accuracy_{MANY}"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The sizes of the problems."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)
    spreads: ClassVar[bool] = False

    seeds: int = 8
    repeats: int = 2
    """Training sets a seed, over which the error is averaged."""
    test_examples: int = 1000
    """Test examples of the Gaussian problems."""
    largest: int = 1024
    """Training examples of the Gaussian problems at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("repeats", "test_examples", "largest")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, and few examples."""
        return cls(seeds=2, repeats=1, test_examples=100, largest=32)


class Labelled(NamedTuple):
    """Features `[n, d]` and labels `[n]`."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]

    def first(self, n: int) -> "Labelled":
        """The first n of them."""
        return Labelled(self.features[:n], self.labels[:n])


def gaussian_classes(rng: np.random.Generator, n: int, *, classes: int, size: int) -> Labelled:
    """Examples of Gaussian classes with all features alike: means -1, 1, 2, 4, ..., and variance d or 1.

    Every `classes` examples have one of each class. The first half of the features has the variance `size`, the other
    half 1.
    """
    labels = np.concatenate([rng.permutation(classes) for _ in range(-(-n // classes))])[:n]
    means = np.array([-1.0, *(2.0**k for k in range(classes - 1))])
    scales = np.where(np.arange(size) < size // 2, np.sqrt(size), 1.0)
    return Labelled(means[labels][:, None] + scales * rng.standard_normal((n, size)), labels)


def _least_error(test: Labelled, classes: int) -> float:
    """The error of the true probabilities on these examples."""
    size = test.features.shape[1]
    means = np.array([-1.0, *(2.0**k for k in range(classes - 1))])
    variances = np.where(np.arange(size) < size // 2, size, 1.0)
    distances = np.stack([np.sum((test.features - mean) ** 2 / variances, axis=1) for mean in means])
    return float(np.mean(distances.argmin(axis=0) != test.labels))


@jax.jit
def _moments_of_prefixes(
    features: Float[Array, "n d"], members: Float[Array, "n classes"], sizes: Int[Array, " sizes"]
) -> naive_bayes.ClassMoments:
    """The moments of the first so many examples, for each size: every piece is read once and merged to those before."""
    labels, starts = jnp.argmax(members, axis=1), jnp.append(0, sizes[:-1])

    def step(before: naive_bayes.ClassMoments, piece: tuple[Array, Array]) -> Any:
        start, end = piece
        at = jnp.arange(len(labels))
        new = naive_bayes.class_moments(
            features, labels, num_classes=members.shape[1], mask=(at >= start) & (at < end)
        )  # fmt: skip
        both = naive_bayes.merge_moments(before, new)
        return both, both

    shape = (members.shape[1], features.shape[1])
    nothing = naive_bayes.ClassMoments(jnp.zeros(shape[0]), jnp.zeros(shape), jnp.zeros(shape))
    return jax.lax.scan(step, nothing, (starts, sizes))[1]


@jax.jit
def _errors_of_probes(
    moments: naive_bayes.ClassMoments, features: Float[Array, "n d"], labels: Int[Array, " n"]
) -> Float[Array, " sizes"]:
    def error(moments: naive_bayes.ClassMoments) -> Array:
        kernel, bias = naive_bayes.linear_probe(moments, centred=True)
        return jnp.mean(jnp.argmax(features @ kernel.T + bias, axis=1) != labels)

    return jax.vmap(error)(moments)


def _naive_bayes(train: Labelled, test: Labelled, sizes: Sequence[int], enough: float) -> list[float]:
    del enough  # all sizes cost little more than the largest
    members = np.eye(test.labels.max() + 1, dtype=np.float32)[train.labels]
    moments = _moments_of_prefixes(np.float32(train.features), members, np.array(sizes))
    return np.asarray(_errors_of_probes(moments, np.float32(test.features), test.labels), np.float64).tolist()


def _logistic_regression(train: Labelled, test: Labelled, sizes: Sequence[int], enough: float) -> list[float]:
    """Until the error is no more than enough; after that size, larger sets have its error."""
    errors: list[float] = []
    for size in sizes:
        if errors and errors[-1] <= enough:
            errors.append(errors[-1])
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 100 steps, the default, as in the paper
            fitted = LogisticRegression().fit(*train.first(size))
        errors.append(float(np.mean(fitted.predict(test.features) != test.labels)))
    return errors


_ERRORS: dict[str, Callable[[Labelled, Labelled, Sequence[int], float], list[float]]] = {
    "naive_bayes": _naive_bayes,
    "logistic_regression": _logistic_regression,
}


def _sizes(largest: int) -> list[int]:
    """From one example a class on, half an octave after the other."""
    count = int(2 * np.log2(max(largest / CLASSES, 1))) + 1
    return sorted({CLASSES * round(2 ** (k / 2)) for k in range(count)})


def _needed(sizes: Sequence[int], excess: Float[np.ndarray, " sizes"]) -> float:
    """The least number of examples with which the error is close to the least one; the largest tried if never."""
    close = np.flatnonzero(excess <= WITHIN)
    return float(sizes[close[0]] if len(close) else sizes[-1])


def _excess(config: Config, method: str, size: int) -> Float[np.ndarray, "seeds sizes"]:
    """By how much the error is above the least one, averaged over the training sets of a seed."""
    sizes, curves = _sizes(config.largest), []
    for seed in config.seed_numbers.tolist():
        errors = []
        for repeat in range(config.repeats):
            rng = np.random.default_rng([seed, repeat, size])
            train = gaussian_classes(rng, sizes[-1], classes=CLASSES, size=size)
            test = gaussian_classes(rng, config.test_examples, classes=CLASSES, size=size)
            least = _least_error(test, CLASSES)
            found = _ERRORS[method](train, test, sizes, least)
            errors.append(np.array(found) - least)
        curves.append(np.mean(errors, axis=0))
    return np.array(curves)


def _accuracy(config: Config, method: str) -> Float[np.ndarray, "seeds counts"]:
    """The accuracy on the test set of digits by the number of training examples a class."""
    sets = [data.load(data.DataConfig("digits"), split) for split in ("train", "test")]
    train, test = (Labelled(s["inputs"].reshape(len(s["labels"]), -1), s["labels"]) for s in sets)
    rows = []
    for seed in config.seed_numbers.tolist():
        order = np.random.default_rng(seed).permutation(len(train.labels))
        by_class = np.stack([order[train.labels[order] == label][: PER_CLASS[-1]] for label in range(10)], axis=1)
        chosen = by_class.ravel()  # one example of each class after the other
        subset = Labelled(train.features[chosen], train.labels[chosen])
        rows.append(1 - np.array(_ERRORS[method](subset, test, [10 * n for n in PER_CLASS], 0.0)))
    return np.array(rows)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Fits both probes on more and more examples of every problem."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in config.chosen}
    sizes = _sizes(config.largest)
    curves: dict[str, np.ndarray] = {"sizes": np.array(sizes)}
    # The problems are small: threads would wait for each other longer than they compute.
    with context.bar(len(config.chosen) * len(DIMENSIONS)) as inner, threadpoolctl.threadpool_limits(1):
        for name in config.chosen:
            needed = []
            for size in DIMENSIONS:
                excess = _excess(config, name, size)
                curves[f"excess_{size}/{name}"] = excess
                needed.append([_needed(sizes, row) for row in excess])
                values[name][f"needed_{size}"] = np.array(needed[-1])
                inner.tick(name, 1)
            values[name]["growth"] = np.polyfit(np.log(DIMENSIONS), np.log(needed), 1)[0]
            accuracy = _accuracy(config, name)
            curves[f"accuracy/{name}"] = accuracy
            for count in (FEW, MANY):
                values[name][f"accuracy_{count}"] = accuracy[:, PER_CLASS.index(count)]
    return harness.Results.of(config, values, curves)


def _draw_needed(axes: Axes, results: harness.Results) -> None:
    for name, color, marker in zip(results.values, figures.PALETTE[1:], figures.MARKERS, strict=False):
        logs = np.log([results.values[name][f"needed_{size}"] for size in DIMENSIONS])
        found = np.exp([harness.mean_interval(row) for row in logs])
        figures.points(axes, DIMENSIONS, found, color=color, marker=marker)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(DIMENSIONS, [str(size) for size in DIMENSIONS])
    axes.minorticks_off()
    axes.set(xlabel="features", ylabel="examples")
    axes.set_title(f"Until the error is within {WITHIN:g} of the least")


def draw(results: harness.Results) -> Figure:
    """Examples needed against the number of features; error against examples; digits."""
    size = DIMENSIONS[-1]
    with figures.figure(10.2, 3.6) as drawn:
        left, middle, right = drawn.subplots(1, 3)
        _draw_needed(left, results)
        lines = {}
        for name, color in zip(results.values, figures.PALETTE[1:], strict=False):
            excess = 100 * results.curves[f"excess_{size}/{name}"]
            lines[results.label(name)] = figures.band(middle, results.curves["sizes"], excess, label="", color=color)
            figures.band(right, PER_CLASS, 100 * results.curves[f"accuracy/{name}"], label="", color=color)
        middle.set_xscale("log")
        middle.set(xlabel="examples", ylabel="error above the least, points")
        middle.set_title(f"Gaussian classes, {size} features")
        right.set_xscale("log", base=2)
        right.set_xticks(PER_CLASS, [str(count) for count in PER_CLASS])
        right.set(xlabel="examples a class", ylabel="accuracy, %")
        right.set_title("Digits: pixels are not independent")
        drawn.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    return drawn


if __name__ == "__main__":
    harness.main("linear_probes", config=Config, run=run, draw=draw)
