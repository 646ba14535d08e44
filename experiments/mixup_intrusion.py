"""Does mixup harm a class that lies between two others, and do learned mixing intervals spare it?

Mixtures of examples of two classes are labelled as both. Where a third class lives between the two, its examples get
such mixtures as neighbours: its manifold is intruded. Points of three classes stand in a row in the plane, the middle
class is rare, and a network is trained on the points as they are, on mixtures, or by AdaMixUp: a policy learns for each
pair the interval of the weights, from the classifier's loss and from a discriminator that tells mixtures from examples.
AdaMixUp trains on the examples of the mixtures too, and mixup does not; mixup with the examples beside its mixtures
tells what that alone does. What is left of the intervals is measured beside the recall of the middle class. A seed
draws the training set, the initial parameters and the order of the batches.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight.losses.classification import cross_entropy
from reweight.regularizers.adaptive_mixup import adaptive_mixup, intrusion_loss
from reweight.regularizers.mixup import draw_mixture, mix, mixup
from reweight.train import LossOutput, TrainState, init_state, make_step, whole_batch

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "points", "run"]

Tree = Any  # a pytree of arrays
Batch = Mapping[str, Array]
MIDDLE = 1
CENTRES = np.array([-2.0, 0.0, 2.0])
SPREAD = 0.35
SHARES = (0.47, 0.06, 0.47)
TRAIN, TEST = 500, 3000


class Method(NamedTuple):
    """The name in the figure, and how examples are mixed: not, evenly, or by a policy, with a discriminator or not.

    With `halves` half of a batch is mixed and trained on both mixed and as it is, as AdaMixUp does.
    """

    label: str
    mixes: bool = True
    halves: bool = False
    learned: bool = False
    discriminates: bool = False


METHODS: dict[str, Method] = {
    "plain": Method("no mixing", mixes=False),
    "mixup": Method("mixup"),
    "mixup_and_examples": Method("mixup and examples", halves=True),
    "adamixup": Method("AdaMixUp", halves=True, learned=True, discriminates=True),
    "no_discriminator": Method("AdaMixUp without discriminator", halves=True, learned=True),
}

METRICS = (
    harness.Metric("middle", "recall of the middle class", percent=True, digits=1),
    harness.Metric("balanced_accuracy", "balanced accuracy", percent=True, digits=1),
    harness.Metric("intruding", "mixtures of the outer classes in the middle", None, percent=True, digits=1),
    harness.Metric("mixing", "smaller weight of a pair, mean", None, digits=3),
)

_claim = functools.partial(harness.Claim, "Guo, Mao and Zhang 2018, arXiv 1809.02499")
CLAIMS = (
    _claim("mixup", "plain", "middle", "lower"),
    _claim("adamixup", "mixup", "middle"),
    _claim("adamixup", "mixup", "balanced_accuracy"),
    _claim("adamixup", "mixup_and_examples", "middle"),
    _claim("adamixup", "mixup_and_examples", "balanced_accuracy"),
    _claim("adamixup", "no_discriminator", "balanced_accuracy"),
    _claim("adamixup", "plain", "balanced_accuracy"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 16
    """How many seeds: AdaMixUp ends well or badly, so that few seeds say little of its mean."""
    steps: int = 500
    """Training steps."""
    batch_size: int = 128
    """Examples a step, of which all or half are mixed."""
    learning_rate: float = 2e-3
    """Of Adam, with weight decay of 1e-4."""
    width: int = 32
    """Size of hidden layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "batch_size", "width")
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("mixup", "adamixup"), steps=40, width=8)


class _Keys(NamedTuple):
    """A seed's keys."""

    train: PRNGKeyArray
    test: PRNGKeyArray
    model: PRNGKeyArray
    run: PRNGKeyArray
    order: PRNGKeyArray
    measure: PRNGKeyArray

    @classmethod
    def of(cls, seed: Int[Array, ""]) -> Self:
        return cls(*jax.random.split(jax.random.key(seed), len(cls._fields)))


def points(key: PRNGKeyArray, size: int, shares: tuple[float, ...]) -> tuple[Float[Array, "n 2"], Int[Array, " n"]]:
    """Points of three classes around centres in a row, with shares of the classes that are exact up to rounding."""
    ends = np.round(np.cumsum(shares) * size)
    labels = jnp.asarray(np.searchsorted(ends, np.arange(size), side="right"), jnp.int32)
    centres = jnp.stack([jnp.asarray(CENTRES)[labels], jnp.zeros(size)], axis=1)
    return centres + SPREAD * jax.random.normal(key, (size, 2)), labels


def _layers(key: PRNGKeyArray, *sizes: int) -> Tree:
    """He's initial parameters of a network with ReLUs."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) * jnp.sqrt(2 / a), jnp.zeros(b))
        for k, (a, b) in zip(keys, itertools.pairwise(sizes), strict=True)
    ]


def _apply(layers: Tree, x: Array) -> Array:
    *hidden, (kernel, bias) = layers
    for inner, shift in hidden:
        x = jax.nn.relu(x @ inner + shift)
    return x @ kernel + bias


def _initial(key: PRNGKeyArray, width: int) -> Tree:
    """A trunk with two heads, of which one classifies and the other discriminates, and the policy."""
    trunk, classes, real, policy = jax.random.split(key, 4)
    return {
        "trunk": _layers(trunk, 2, width, width),
        "classes": _layers(classes, width, 3),
        "real": _layers(real, width, width, 2),
        "policy": _layers(policy, 2, width, width, 3),
    }


def _classify(params: Tree, x: Array) -> Array:
    return _apply(params["classes"], jax.nn.relu(_apply(params["trunk"], x)))


def _discriminate(params: Tree, x: Array) -> Array:
    return _apply(params["real"], jax.nn.relu(_apply(params["trunk"], x)))


def _loss_fn(method: Method) -> Any:
    @whole_batch
    def loss_fn(params: Tree, extra: Tree, batch: Batch, key: PRNGKeyArray) -> LossOutput:
        x, targets = batch["inputs"], jax.nn.one_hot(batch["labels"], 3)
        if not method.mixes:
            return LossOutput(cross_entropy(_classify(params, x), targets))
        if not method.halves:
            x, targets = mixup(key, x, targets, per_example=True)
            return LossOutput(cross_entropy(_classify(params, x), targets))
        (seen, unseen), wanted = (x[::2], x[1::2]), targets[::2]
        if method.learned:
            policy = functools.partial(_apply, params["policy"])
            mixed, labelled, _ = adaptive_mixup(key, policy, seen, wanted)
        else:
            mixed, labelled = mixup(key, seen, wanted, per_example=True)
        logits = _classify(params, jnp.concatenate([mixed, seen]))
        fit = cross_entropy(logits, jnp.concatenate([labelled, wanted]))
        if not method.discriminates:
            return LossOutput(fit)
        told = intrusion_loss(
            _discriminate(params, jnp.concatenate([mixed, seen, unseen])), jnp.arange(3 * len(seen)) >= len(seen)
        )
        return LossOutput(fit + jnp.mean(told))

    return loss_fn


def _measured(method: Method, params: Tree, key: PRNGKeyArray, test: tuple[Array, Array]) -> dict[str, Array]:
    """Recalls, and what the mixtures of test examples are like."""
    x, labels = test
    found = jnp.argmax(_classify(params, x), axis=1) == labels
    recalls = jax.ops.segment_sum(found.astype(jnp.float32), labels, 3) / jnp.bincount(labels, length=3)
    targets = jax.nn.one_hot(labels, 3)
    weights = jnp.ones(labels.shape)
    if method.mixes:
        mixture = draw_mixture(key, len(labels), per_example=True)
        if method.learned:
            mixture = adaptive_mixup(key, functools.partial(_apply, params["policy"]), x, targets).mixture
        x, targets, weights = mix(x, mixture), mix(targets, mixture), mixture.weights[:, 0]
    outer = targets[:, MIDDLE] == 0
    inside = outer & (jnp.abs(x[:, 0]) < 2 * SPREAD)
    return {
        "middle": recalls[MIDDLE],
        "balanced_accuracy": jnp.mean(recalls),
        "intruding": jnp.sum(inside) / jnp.sum(outer),
        "mixing": jnp.mean(jnp.minimum(weights, 1 - weights)),
        "places": jnp.where(outer, x[:, 0], jnp.nan),
    }


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method over all seeds and scores it on a test set in which the classes are as frequent."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {}
    edges = np.linspace(-3.5, 3.5, 57)
    curves: dict[str, np.ndarray] = {"places": (edges[1:] + edges[:-1]) / 2}
    keys = jax.vmap(_Keys.of)(jnp.asarray(config.seed_numbers))
    train, test = (
        jax.jit(jax.vmap(functools.partial(points, size=size, shares=shares)))(of_seeds)
        for of_seeds, size, shares in ((keys.train, TRAIN, SHARES), (keys.test, TEST, (1 / 3,) * 3))
    )
    optimizer = optax.adamw(config.learning_rate, weight_decay=1e-4)

    def start(keys: _Keys) -> TrainState:
        return init_state(_initial(keys.model, config.width), None, optimizer, key=keys.run)

    with context.bar(len(config.chosen) * config.steps) as inner:
        for name in config.chosen:
            method = METHODS[name]
            state, _ = harness.train_seeds(
                name,
                make_step(_loss_fn(method), optimizer),
                jax.jit(jax.vmap(start))(keys),
                dict(zip(("inputs", "labels"), train, strict=True)),
                keys.order,
                batch_size=config.batch_size,
                num_steps=config.steps,
                context=inner,
                stacked_arrays=True,
                mesh=config.mesh,
            )
            measure = jax.jit(jax.vmap(functools.partial(_measured, method)))
            found = jax.device_get(measure(state.params, keys.measure, test))
            values[name] = {metric.name: found[metric.name] for metric in METRICS}
            places = [row[np.isfinite(row)] for row in found["places"]]
            curves[f"density/{name}"] = np.stack([np.histogram(row, edges, density=True)[0] for row in places])
    for i, label in enumerate(("left", "middle", "right")):
        curves[f"density/{label} class"] = np.stack(
            [np.histogram(x[y == i, 0], edges, density=True)[0] for x, y in zip(*map(np.asarray, test), strict=True)]
        )
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Left where mixtures of the outer classes fall, right what becomes of the middle class, with a dash a seed."""
    colors = dict(zip(METHODS, figures.PALETTE, strict=False))
    at = results.curves["places"]
    with figures.figure(9.6, 3.6) as drawn:
        left, middle, right = drawn.subplots(1, 3, width_ratios=[1.6, 1, 1])
        whole = results.curves["density/middle class"].mean(axis=0)
        left.fill_between(at, whole, color="#d9d9d9", linewidth=0)
        left.text(0, whole.max(), "middle class", ha="center", va="bottom", fontsize=8, color="#666666")
        for name in results.values:
            style = "-" if name in ("mixup", "adamixup") else "--"
            density = results.curves[f"density/{name}"].mean(axis=0)
            left.plot(at, density, color=colors[name], linestyle=style, label=results.label(name))
        left.set(xlabel="place along the row", ylabel="density", title="Mixtures of the outer classes")
        left.set_ylim(0, 1.25 * whole.max())
        drawn.legend(loc="outside lower center", ncols=len(results.values))
        names = list(results.values)
        for axes, metric in zip((middle, right), METRICS[:2], strict=True):
            for i, name in enumerate(names):
                seeds = 100 * results.values[name][metric.name]
                axes.plot(seeds, np.full(len(seeds), i + 0.2), "|", color=colors[name], markersize=6, alpha=0.6)
                found = results.interval(name, metric.name)
                figures.interval(axes, found, i, color=colors[name], marker=figures.MARKERS[i], scale=100)
            axes.set(title=metric.label, xlabel="%", xlim=(-3, 109))
            labels = [results.label(name).replace(" without ", "\nwithout ") for name in names]
            figures.name_rows(axes, labels, [colors[name] for name in names], named=axes is middle)
    return drawn


if __name__ == "__main__":
    harness.main("mixup_intrusion", config=Config, run=run, draw=draw)
