"""Does training on a metric raise that metric, and does training on many losses beat each of them?

Two ways to leave a fixed loss behind, on tables of two classes.

Where one class is rare, a linear model that minimises cross-entropy or squared error hardly ever predicts it. AnyLoss
is one minus a metric of the confusion matrix, of predictions that are nearly hard: F1, the geometric mean of the two
recalls, or their mean (balanced accuracy). What a metric loses by cross-entropy may also be won back after training, by
the threshold that is best for it on the training set. All are measured on test examples with the same share of
positives, of two Gaussians with one positive in fifty, and of breast cancer, known by two features that do not tell it
apart well, with one in twenty. A seed draws the training set.

Where a network fits all of a small and noisy training set, what it does elsewhere depends on the loss. EnsLoss draws
the derivatives of the loss anew in every step. Two moons with eighteen features of noise and one wrong label in ten are
learned by a network that is far too large for them, with a fixed loss and with EnsLoss; a seed draws the training set,
the initial parameters and the order of the batches.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight import data
from reweight.losses import BatchLoss, binary, metric
from reweight.metrics import confusion
from reweight.train import LossOutput, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "Table", "draw", "gaussians", "moons", "run", "tumours"]

Scores = Float[Array, " batch"]
Labels = Bool[Array, " batch"]
Tree = Any  # a pytree of arrays

SCORED: dict[str, Callable[..., Array]] = {
    "f1": confusion.f_beta,
    "g_mean": confusion.g_mean,
    "balanced_accuracy": confusion.balanced_accuracy,
}
NAMES = {"f1": "F1", "g_mean": "geometric mean", "balanced_accuracy": "balanced accuracy"}
RARE = {"gaussians": "two Gaussians, 1 in 50 positive", "tumours": "breast cancer, 1 in 20 positive"}
EVALS = 30
# Mean texture and mean smoothness; with all thirty features a linear model hardly makes a mistake.
FEATURES = (1, 4)


def _squared_error(scores: Scores, labels: Labels) -> Float[Array, " batch"]:
    return (jax.nn.sigmoid(scores) - labels) ** 2


class Method(NamedTuple):
    """The name in tables and figures, the loss (a `BatchLoss` where it is of the batch), and what it is tried on.

    One that is `tuned` takes the network of another, and for every metric the threshold that is best for it on the
    training set, in place of even odds.
    """

    label: str
    loss: Callable[[Scores, Labels], Float[Array, " batch"]] | BatchLoss
    rare: bool = True
    tuned: str | None = None


# AnyLoss and EnsLoss have the hyperparameters of their papers.
METHODS: dict[str, Method] = {
    "cross_entropy": Method("cross-entropy", binary.logistic),
    "tuned_threshold": Method("cross-entropy, tuned threshold", binary.logistic, tuned="cross_entropy"),
    "squared_error": Method("squared error", _squared_error),
    "anyloss_f1": Method("AnyLoss, F1", metric.batch_anyloss(metric=confusion.f_beta)),
    "anyloss_g_mean": Method("AnyLoss, geometric mean", metric.batch_anyloss(metric=confusion.g_mean)),
    "anyloss_balanced_accuracy": Method(
        "AnyLoss, balanced accuracy", metric.batch_anyloss(metric=confusion.balanced_accuracy)
    ),
    "logistic": Method("logistic", binary.logistic, rare=False),
    "hinge": Method("hinge", binary.hinge, rare=False),
    "exponential": Method("exponential", binary.exponential, rare=False),
    "ensloss": Method("EnsLoss", binary.stream_ensloss(), rare=False),
}

METRICS = (
    *(
        harness.Metric(f"{name}_{table}", NAMES[name], percent=True, digits=1, table=title)
        for table, title in RARE.items()
        for name in SCORED
    ),
    harness.Metric("accuracy", "test accuracy", percent=True, digits=2, table="two moons with noise"),
    harness.Metric("fitted", "training labels fitted", None, percent=True, digits=1, table="two moons with noise"),
)

# The paper cuts probabilities at 0.5 throughout and claims nothing against tuned thresholds.
_anyloss = functools.partial(harness.Claim, "Han et al. 2024, arXiv 2405.14745")
CLAIMS = (
    *(
        _anyloss(f"anyloss_{name}", than, f"{name}_{table}")
        for table in RARE
        for name in SCORED
        for than in ("cross_entropy", "squared_error")
    ),
    *(
        harness.Claim("Dai 2024, arXiv 2409.00908", "ensloss", than, "accuracy")
        for than in ("logistic", "hinge", "exponential")
    ),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    steps: int = 600
    """Training steps, of the whole training set for linear models, of batches for networks."""
    batch_size: int = 50
    """Examples a step of a network."""
    width: int = 128
    """Size of the two hidden layers of a network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "batch_size", "width")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("anyloss_f1", "ensloss"), steps=40, width=16)


class _Keys(NamedTuple):
    """A seed's keys."""

    train: PRNGKeyArray
    test: PRNGKeyArray
    model: PRNGKeyArray
    run: PRNGKeyArray
    order: PRNGKeyArray

    @classmethod
    def of(cls, seed: Int[Array, ""]) -> Self:
        return cls(*jax.random.split(jax.random.key(seed), len(cls._fields)))


class Table(NamedTuple):
    """Examples of two classes, with weights that stand for how often there are such."""

    inputs: Float[Array, "n features"]
    labels: Bool[Array, " n"]
    weights: Float[Array, " n"]


def gaussians(key: PRNGKeyArray, size: int, *, features: int = 5, apart: float = 2.0, ratio: int = 50) -> Table:
    """Two unit Gaussians whose means are so far apart along the first feature; one in `ratio` examples is positive."""
    labels = jnp.arange(size) % ratio == 0
    shift = jnp.where(labels[:, None], apart, 0) * (jnp.arange(features) == 0)
    return Table(jax.random.normal(key, (size, features)) + shift, labels, jnp.ones(size))


@functools.cache
def _tumours() -> tuple[np.ndarray, np.ndarray]:
    """Standardised features, and whether the rarer class, malignant, is there."""
    sets = [data.load(data.DataConfig("breast_cancer"), split) for split in ("train", "test")]
    inputs, labels = (np.concatenate([s[name] for s in sets]) for name in ("inputs", "labels"))
    inputs = inputs[:, FEATURES]
    standard = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    return standard.astype(np.float32), labels == np.argmin(np.bincount(labels))


def tumours(key: PRNGKeyArray, *, ratio: int = 20) -> tuple[Table, Table]:
    """Breast cancer as if one case in `ratio` were malignant: a training set and a test set.

    The training set has half the benign cases and a few malignant ones, the test set all others, of which the malignant
    ones weigh less, so that they are as rare.
    """
    inputs, rare = _tumours()
    keys = jax.random.split(key)
    benign, malignant = (
        jax.random.permutation(k, jnp.asarray(np.flatnonzero(x))) for k, x in zip(keys, (~rare, rare), strict=True)
    )
    half = len(benign) // 2
    few = half // (ratio - 1)

    def table(benign: Array, malignant: Array) -> Table:
        rows = jnp.concatenate([benign, malignant])
        weight = len(benign) / (ratio - 1) / len(malignant)
        weights = jnp.concatenate([jnp.ones(len(benign)), jnp.full(len(malignant), weight)])
        return Table(jnp.asarray(inputs)[rows], jnp.arange(len(rows)) >= len(benign), weights)

    return table(benign[:half], malignant[:few]), table(benign[half:], malignant[few:])


def moons(key: PRNGKeyArray, size: int, *, noise: float = 0.25, idle: int = 18, flipped: float = 0.1) -> Table:
    """Two interlocked half circles with noise, beside features that say nothing; so many labels are flipped."""
    angle_key, noise_key, idle_key, flip_key = jax.random.split(key, 4)
    upper = jnp.arange(size) % 2 == 0
    angle = jnp.pi * jax.random.uniform(angle_key, (size,))
    x = jnp.where(upper, jnp.cos(angle), 1 - jnp.cos(angle))
    y = jnp.where(upper, jnp.sin(angle), 0.5 - jnp.sin(angle))
    told = jnp.stack([x, y], axis=1) + noise * jax.random.normal(noise_key, (size, 2))
    inputs = jnp.concatenate([told, jax.random.normal(idle_key, (size, idle))], axis=1)
    return Table(inputs, upper ^ (jax.random.uniform(flip_key, (size,)) < flipped), jnp.ones(size))


def _score(params: Tree, inputs: Array) -> Scores:
    """Scores of a network with ReLUs; of one layer, of a linear model."""
    *hidden, last = params
    for kernel, bias in hidden:
        inputs = jax.nn.relu(inputs @ kernel + bias)
    return (inputs @ last[0] + last[1])[:, 0]


def _initial(key: PRNGKeyArray, sizes: tuple[int, ...]) -> Tree:
    """He's initial parameters, and zeros in the last layer."""
    layers = []
    for a, b in itertools.pairwise(sizes[:-1]):
        key, own = jax.random.split(key)
        layers.append((jax.random.normal(own, (a, b)) * jnp.sqrt(2 / a), jnp.zeros(b)))
    return [*layers, (jnp.zeros((sizes[-2], sizes[-1])), jnp.zeros(sizes[-1]))]


def best_threshold(score: Callable[..., Array], scores: Scores, table: Table) -> Float[Array, ""]:
    """The cut between two scores of a table at which a metric is largest."""
    order = jnp.argsort(-scores)
    weights = jnp.where(jnp.stack([table.labels, ~table.labels]), table.weights, 0)[:, order]
    # Of n examples 1, 2, ..., n - 1 are above a cut.
    tp, fp = jnp.cumsum(weights, axis=1)[:, :-1]
    positives, negatives = jnp.sum(weights, axis=1)
    best = jnp.argmax(score(confusion.Confusion(tp, fp, positives - tp, negatives - fp)))
    return jnp.mean(scores[order][best + jnp.arange(2)])


@jax.jit
@jax.vmap
def _tuned(params: Tree, train: Table, test: Table) -> dict[str, Array]:
    """Metrics on the test sets of all seeds, each at the threshold that is best for it on the training set."""
    fitted, scores = _score(params, train.inputs), _score(params, test.inputs)
    return {
        name: score(confusion.counts(scores > best_threshold(score, fitted, train), test.labels, test.weights))
        for name, score in SCORED.items()
    }


def _measured(params: Tree, test: Table) -> dict[str, Array]:
    found = confusion.counts(_score(params, test.inputs) > 0, test.labels, test.weights)
    return {name: score(found) for name, score in (*SCORED.items(), ("accuracy", confusion.accuracy))}


class _Trained(NamedTuple):
    """Scores on the test set `[seeds]`, by even odds and tuned, their curves `[seeds, evals]`, and labels fitted.

    Networks have curves and no tuned scores, linear models the other way round.
    """

    scores: Mapping[str, np.ndarray]
    tuned: Mapping[str, np.ndarray]
    curves: Mapping[str, np.ndarray]
    fitted: np.ndarray


def _train(
    name: str,
    method: Method,
    tables: tuple[Table, Table],
    keys: _Keys,
    *,
    network: bool,
    config: Config,
    context: harness.Context,
) -> _Trained:
    """Trains on the first of two tables of all seeds `[seeds, n, ...]`, and scores on the second."""
    train, test = tables
    loss = method.loss if isinstance(method.loss, BatchLoss) else None
    sizes = (train.inputs.shape[-1], *(config.width, config.width)[: 2 * network], 1)
    # A step of a linear model sees all of the training set, as in the paper: a batch may have no positive at all.
    batch_size = config.batch_size if network else train.labels.shape[1]
    optimizer = optax.sgd(0.01, momentum=0.9) if network else optax.adam(0.02)

    def loss_fn(params: Tree, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        scores = _score(params, batch["inputs"])
        if loss is None:
            return LossOutput(method.loss(scores, batch["labels"]))  # type: ignore[operator]
        return LossOutput(signals={"scores": scores, "probs": jax.nn.sigmoid(scores)})

    def start(keys: _Keys, test: Table) -> Any:
        # The test set rides along, so that a seed can be measured on its own.
        return init_state(_initial(keys.model, sizes), test, optimizer, key=keys.run, loss=loss)

    every = max(1, config.steps // EVALS)
    state, metrics = harness.train_seeds(
        name,
        make_step(loss_fn, optimizer, loss=loss),
        jax.jit(jax.vmap(start))(keys, test),
        train._asdict(),
        keys.order,
        batch_size=batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        every=every,
        eval_fn=(lambda state: _measured(state.params, state.extra)) if network else None,
        eval_every=every if network else None,
        mesh=config.mesh,
    )
    hits = jax.vmap(lambda params, table: jnp.mean((_score(params, table.inputs) > 0) == table.labels))
    if network:
        # From step to step a network still moves: the mean of the last evaluations.
        curves = {score: metrics[score] for score in (*SCORED, "accuracy")}
        scores = {score: curve[:, -(EVALS // 5) :].mean(axis=1) for score, curve in curves.items()}
        tuned = {}
    else:
        curves, scores = {}, jax.device_get(jax.jit(jax.vmap(_measured))(state.params, test))
        tuned = jax.device_get(_tuned(state.params, train, test))
    return _Trained(scores, tuned, curves, np.asarray(jax.jit(hits)(state.params, train)))


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains linear models on what is rare, and networks on two moons."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in config.chosen}
    curves: dict[str, np.ndarray] = {}
    keys = jax.vmap(_Keys.of)(jnp.asarray(config.seed_numbers))
    draws: dict[str, Callable[[_Keys], tuple[Table, Table]]] = {
        "gaussians": lambda keys: (gaussians(keys.train, 2000), gaussians(keys.test, 10_000)),
        "tumours": lambda keys: tumours(keys.train),
        "moons": lambda keys: (moons(keys.train, 200), moons(keys.test, 2000, flipped=0)),
    }
    tables = {name: jax.jit(jax.vmap(drawn))(keys) for name, drawn in draws.items()}
    trained = dict.fromkeys(METHODS[name].tuned or name for name in config.chosen)
    runs = {name: tuple(RARE) if METHODS[name].rare else ("moons",) for name in trained}
    with context.bar(config.steps * sum(map(len, runs.values()))) as inner:
        for name, on in runs.items():
            for table in on:
                network = table == "moons"
                found = _train(
                    f"{name}-{table}", METHODS[name], tables[table], keys,
                    network=network, config=config, context=inner,
                )  # fmt: skip
                if network:
                    values[name] = {"accuracy": found.scores["accuracy"], "fitted": found.fitted}
                    curves[f"accuracy/{name}"] = found.curves["accuracy"]
                for own in config.chosen:
                    if not network and name in (own, METHODS[own].tuned):
                        scores = found.scores if own == name else found.tuned
                        values[own] |= {f"{score}_{table}": np.asarray(scores[score]) for score in SCORED}
    at = max(1, config.steps // EVALS)
    curves["steps"] = np.arange(at, config.steps + 1, at)
    return harness.Results.of(config, values, curves)


def _metrics_of_rare(axes: Axes, results: harness.Results, table: str, *, named: bool) -> None:
    """A row a method, a marker a metric."""
    methods = [name for name in results.values if METHODS[name].rare]
    for i, name in enumerate(methods):
        for j, score in enumerate(SCORED):
            color = figures.PALETTE[j + 1]
            figures.interval(
                axes, results.interval(name, f"{score}_{table}"), i + 0.16 * (j - 1), color=color, scale=100,
                marker=figures.MARKERS[j], linestyle="none", label=NAMES[score] if i == 0 and named else None,
                markerfacecolor=color if name == f"anyloss_{score}" else "white",
            )  # fmt: skip
    figures.name_rows(axes, [results.label(name) for name in methods], ["#000000"] * len(methods), named=named)
    axes.set(title=RARE[table], xlabel="on test examples, %")


def draw(results: harness.Results) -> Figure:
    """Left the metrics of linear models where positives are rare, right the accuracy of networks on two moons."""
    with figures.figure(10.2, 3.7) as drawn:
        left, middle, right = drawn.subplots(1, 3, width_ratios=[1, 1, 1])
        _metrics_of_rare(left, results, "gaussians", named=True)
        _metrics_of_rare(middle, results, "tumours", named=False)
        drawn.legend(loc="outside lower left", ncols=3, title="filled: the metric that is trained on")
        ends = {}
        for i, name in enumerate(name for name in results.values if not METHODS[name].rare):
            curve = 100 * results.curves[f"accuracy/{name}"]
            steps, color = results.curves["steps"], figures.PALETTE[i]
            figures.band(right, steps, curve, label=results.label(name), color=color)
            ends[results.label(name)] = (float(steps[-1]), float(curve[:, -1].mean()), color)
        right.set(title="two moons with noise, by network", xlabel="step", ylabel="test accuracy, %")
        figures.label_ends(right, ends)
    return drawn


if __name__ == "__main__":
    harness.main("metric_losses", config=Config, run=run, draw=draw)
