"""When does augmentation by a generative model help?

First a mixture of two Gaussians where all can be computed: the generator is fitted to the real examples alone, and adds
to the mean rule as many times as many examples; what shrinks is the gap between the loss on the training set and the
loss on fresh examples, and the question is by which share, where there are few examples and where there are many. Then
classes with many modes, of which the real examples show few, and generators that come from elsewhere: they know the
same modes or all of them, make a few or many examples, err about the class, are filtered by likeness to the real
examples, or make classes beyond those of the task. A seed draws the world, the examples and the initial parameters.
"""

import dataclasses
import functools
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import mode_world
from experiments.harness import figures
from reweight import dynamics

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

GDA = "Zheng et al. 2023, arXiv 2305.17476"
DIVERGEN = "Fan et al. 2024, arXiv 2405.10185"
SCALE, FRESH = 0.6, 2000
RATIOS = (0, 1, 5, 20)
# Features and real examples of the two problems in which the ratio of generated to real examples changes.
PROBLEMS = {"few": (50, 10), "many": (1, 40)}
# Which pools a change in accuracy is between.
GROWTHS = {"growth_same": ("same_64", "same_1024"), "growth_diverse": ("diverse_64", "diverse_1024")}

METHODS: dict[str, str] = {
    **{f"times_{ratio}": f"{ratio} x generated" for ratio in RATIOS},
    "real": "real examples only",
    "same_64": "known modes, 64",
    "same_256": "known modes, 256",
    "same_1024": "known modes, 1024",
    "diverse_64": "all modes, 64",
    "diverse_256": "all modes, 256",
    "diverse_1024": "all modes, 1024",
    "filtered": "all modes, filtered",
    "extra_classes": "filtered, extra classes",
    "gain_few": "10 in 50 dimensions",
    "gain_many": "40 in 1 dimension",
    "growth_same": "known modes",
    "growth_diverse": "all modes",
}

METRICS = (
    harness.Metric("few", "10 in 50 dimensions", better="lower", digits=3, table="gap of the mean rule"),
    harness.Metric("many", "40 in 1 dimension", better="lower", digits=3, table="gap of the mean rule"),
    harness.Metric("accuracy", "test accuracy", percent=True, digits=1, table="classes with modes"),
    harness.Metric("gap", "training - test", percent=True, digits=1, better="lower", table="classes with modes"),
    harness.Metric("distance", "distance of the law", digits=2, better="lower", table="classes with modes"),
    harness.Metric("gain", "share of the gap that 20 x generated take away", percent=True, digits=1, table="gain"),
    harness.Metric("growth", "accuracy with 1024 - with 64 generated", percent=True, digits=1, table="growth"),
)

CLAIMS = (
    harness.Claim(GDA, "times_20", "times_0", "few", "lower"),
    harness.Claim(GDA, "times_20", "times_1", "few", "lower"),
    harness.Claim(GDA, "gain_few", "gain_many", "gain"),
    harness.Claim(DIVERGEN, "diverse_1024", "real", "accuracy"),
    harness.Claim(DIVERGEN, "diverse_1024", "same_1024", "accuracy"),
    harness.Claim(DIVERGEN, "diverse_1024", "diverse_64", "accuracy"),
    harness.Claim(DIVERGEN, "growth_diverse", "growth_same", "growth"),
    harness.Claim(DIVERGEN, "diverse_1024", "same_1024", "gap", "lower"),
    harness.Claim(DIVERGEN, "filtered", "diverse_1024", "accuracy"),
    harness.Claim(DIVERGEN, "extra_classes", "filtered", "accuracy"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The sizes of the problems."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 8
    repeats: int = 200
    """Draws of the Gaussian mixture that a seed averages over."""
    steps: int = 200
    """Training steps of the networks."""
    batch_size: int = 128
    """Examples a step."""
    learning_rate: float = 3e-3
    """The learning rate at the start; it falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("repeats", "steps", "batch_size")
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("times_1", "diverse_64"), repeats=3, steps=8, batch_size=16)


def _gap(key: PRNGKeyArray, features: int, examples: int, ratio: int) -> Float[Array, ""]:
    """The gap of the negative log-likelihood for one draw: half of the real examples in each class."""
    of_real, of_generated, of_fresh = jax.random.split(key, 3)
    mean = jnp.full(features, features**-0.5)
    truth = dynamics.GaussianGenerator(jnp.stack([-mean, mean]), jnp.full(features, SCALE**2))
    labels = jnp.arange(examples) % 2
    rows = dynamics.generate(of_real, truth, labels)
    if ratio:
        more = jnp.arange(ratio * examples) % 2
        fitted = dynamics.gaussian_generator(rows, labels, num_classes=2)
        rows = jnp.concatenate([rows, dynamics.generate(of_generated, fitted, more)])
        labels = jnp.concatenate([labels, more])
    fresh = jnp.arange(FRESH) % 2
    test = dynamics.generate(of_fresh, truth, fresh)
    return dynamics.generalization_gap(dynamics.mean_rule(rows, labels), rows, labels, test, fresh, scale=SCALE).nll


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _mean_gaps(keys: PRNGKeyArray, repeats: int, features: int, examples: int, ratio: int) -> Float[Array, " seeds"]:
    def one(key: PRNGKeyArray) -> Array:
        return jnp.mean(jax.lax.map(lambda k: _gap(k, features, examples, ratio), jax.random.split(key, repeats)))

    return jax.vmap(one)(keys)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Averages the gaps of the mixture, and trains the networks."""
    context = harness.Context() if context is None else context
    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seed_numbers))

    @functools.cache
    def gaps(problem: str, ratio: int) -> np.ndarray:
        return np.asarray(_mean_gaps(keys, config.repeats, *PROBLEMS[problem], ratio), np.float64)

    values: dict[str, dict[str, np.ndarray]] = {}
    for ratio in RATIOS:
        if (name := f"times_{ratio}") in config.chosen:
            values[name] = {problem: gaps(problem, ratio) for problem in PROBLEMS}
    compared = {pool for name in config.chosen for pool in GROWTHS.get(name, ())}
    pools = [name for name in mode_world.POOLS if name in compared.union(config.chosen)]
    worlds: dict[str, dict[str, np.ndarray]] = {}
    with context.bar(len(pools) * config.steps) as inner:
        if pools:
            worlds = mode_world.learn_worlds(
                pools,
                config.seed_numbers,
                steps=config.steps,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                context=inner,
                mesh=config.mesh,
            )
    values |= {name: worlds[name] for name in pools if name in config.chosen}
    for problem in PROBLEMS:
        if (name := f"gain_{problem}") in config.chosen:
            values[name] = {"gain": 1 - gaps(problem, RATIOS[-1]) / gaps(problem, 0)}
    for name, (small, large) in GROWTHS.items():
        if name in config.chosen:
            values[name] = {"growth": worlds[large]["accuracy"] - worlds[small]["accuracy"]}
    return harness.Results.of(
        config, values, {f"{metric}/{name}": x for name, found in values.items() for metric, x in found.items()}
    )


def _draw_gaps(axes: Axes, results: harness.Results) -> None:
    ratios = [ratio for ratio in RATIOS if f"times_{ratio}" in results.values]
    for problem, color, marker in zip(PROBLEMS, figures.PALETTE[1:], figures.MARKERS, strict=False):
        found = [results.interval(f"times_{ratio}", problem) for ratio in ratios]
        if found:
            figures.points(axes, range(len(ratios)), found, color=color, marker=marker)
            text, gain = results.label(f"gain_{problem}"), f"gain_{problem}"
            if gain in results.values:
                text += f", gap {-100 * results.interval(gain, 'gain').mean:+.0f} %"
            axes.annotate(
                text, (len(ratios) - 1, found[-1].mean), xytext=(0, 9 if problem == "many" else -18),
                textcoords="offset points", color=color, fontsize=8, ha="right",
            )  # fmt: skip
    axes.set_xticks(range(len(ratios)), [str(ratio) for ratio in ratios])
    axes.set_yscale("log")
    axes.set(xlabel="generated examples per real one", ylabel="gap of the negative log-likelihood, nats")
    axes.set_title("Few examples in many dimensions gain")


def _draw_pools(axes: Axes, results: harness.Results) -> None:
    sizes = (64, 256, 1024)
    for kind, color, marker in zip(("same", "diverse"), figures.PALETTE[1:], figures.MARKERS, strict=False):
        names = [name for size in sizes if (name := f"{kind}_{size}") in results.values]
        found = [results.interval(name, "accuracy") for name in names]
        if found:
            at = [sizes.index(int(name.split("_")[1])) for name in names]
            figures.points(axes, at, found, color=color, marker=marker, scale=100)
            axes.annotate(
                results.label(f"growth_{kind}"), (at[-1], 100 * found[-1].mean), xytext=(-9, 9),
                textcoords="offset points", color=color, fontsize=8, ha="right",
            )  # fmt: skip
    beside = (("filtered", figures.PALETTE[3], 0.14, -5), ("extra_classes", figures.PALETTE[4], 0.28, -17))
    for name, color, shift, drop in beside:
        if name in results.values:
            reached = results.interval(name, "accuracy")
            figures.points(axes, [2 + shift], [reached], color=color, marker="D", scale=100)
            axes.annotate(
                f"  {results.label(name)}", (2.36, 100 * reached.mean), xytext=(0, drop), textcoords="offset points",
                color=color, va="center", fontsize=8,
            )  # fmt: skip
    if "real" in results.values:
        real = 100 * results.interval("real", "accuracy").mean
        axes.axhline(real, color="#444444", linewidth=1, linestyle="--")
        axes.annotate(
            "real examples only", (3.45, real), xytext=(0, 3), textcoords="offset points", fontsize=8, ha="right"
        )  # fmt: skip
    axes.set_xticks(range(3), [str(size) for size in sizes])
    axes.set_xlim(-0.2, 3.5)
    axes.set(xlabel="generated examples", ylabel="test accuracy, %")
    axes.set_title("More helps if it shows more")


def draw(results: harness.Results) -> Figure:
    """Left: gaps of the mixture against the ratio of generated examples. Right: accuracy against their number."""
    with figures.figure(9.2, 3.7) as drawn:
        left, right = drawn.subplots(1, 2)
        _draw_gaps(left, results)
        _draw_pools(right, results)
    return drawn


if __name__ == "__main__":
    harness.main("generated_data", config=Config, run=run, draw=draw)
