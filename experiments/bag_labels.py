"""What is lost when only the mean response of a bag of examples is known?

Linear regression from bags of k, in closed form, at every interpolation between the loss of the bag's mean prediction
(rho = 0) and the losses of its instances (rho = 1); the same where the means are released with noise that keeps every
response private, so that large bags hide responses and small ones do not; and a network that learns labels from the
share of positive ones in a bag. A seed draws the truth, the examples, the noise and the bags.

The interpolation between the two ends is chosen without what it is judged on. That of the linear problems, whose data
are drawn anew for every seed, is the one with the least mean risk over the other seeds. That of the network has the
least bag loss on bags that are held out from training, as one can choose it who knows no label, and lies strictly
between the ends: for the bag loss itself is what it is compared with.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight import _checks, data, models
from reweight.losses import aggregate
from reweight.train import LossOutput, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

PAPER = "Javanmard et al. 2024, arXiv 2401.11081"
SIZES = (1, 2, 5, 10)
EPSILONS = (0.2, 1.0, 10.0)
RHOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
CLIP = 3.0  # covers 99.2 % of the responses of the private problem
NETWORK_SIZE, NETWORK_RHOS = 16, (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03, 1.0)
HELD_OUT = 8  # bags of the 28 that the network could be trained on

METHODS: dict[str, str] = {
    "bag": "bag loss",
    "instance": "instance loss",
    "interpolated": "interpolated",
    **{f"private_{size}": f"bags of {size}" for size in SIZES},
}

METRICS = (
    *(
        harness.Metric(f"risk_{size}", f"k = {size}", better="lower", digits=3, table="risk of linear regression")
        for size in SIZES
    ),
    harness.Metric("accuracy", f"accuracy, k = {NETWORK_SIZE}", percent=True, digits=1, table="network"),
    *(
        harness.Metric(f"risk_eps{eps:g}", f"epsilon = {eps:g}", better="lower", digits=3, table="risk under privacy")
        for eps in EPSILONS
    ),
)

CLAIMS = (
    harness.Claim(PAPER, "interpolated", "bag", "risk_2", "lower"),
    harness.Claim(PAPER, "interpolated", "instance", "risk_2", "lower"),
    harness.Claim(PAPER, "interpolated", "bag", "risk_5", "lower"),
    harness.Claim(PAPER, "interpolated", "instance", "risk_5", "lower"),
    harness.Claim(PAPER, "interpolated", "bag", "accuracy"),
    harness.Claim(PAPER, "interpolated", "instance", "accuracy"),
    harness.Claim(PAPER, "private_10", "private_1", "risk_eps0.2", "lower"),
    harness.Claim(PAPER, "private_1", "private_10", "risk_eps10", "lower"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The sizes of the problems."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    examples: int = 600
    """Examples of the linear problems, a multiple of 10."""
    features: int = 100
    """Features of the linear problem with exact means."""
    private_features: int = 20
    """Features of the one with noisy means."""
    noise: float = 0.5
    """Standard deviation of the responses given the features."""
    steps: int = 300
    """Training steps of the network."""
    batch_size: int = 8
    """Bags a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The interpolation that a seed is judged at is chosen on the others.
        self.check_counts("seeds", low=2)
        self.check_counts("examples", "features", "private_features", "steps", "batch_size")
        if self.examples % max(SIZES):
            _checks.fail("experiments.Config", "examples", str(self.examples), f"a multiple of {max(SIZES)}")
        _checks.number("experiments.Config", "noise", self.noise, low=0, open_high=True)

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, small problems."""
        return cls(seeds=2, methods=("bag", "interpolated"), examples=40, features=4, private_features=3, steps=8)


class Linear(NamedTuple):
    """A linear problem: features `[n, d]`, responses `[n]` and the coefficients `[d]` behind them."""

    features: Float[Array, "n d"]
    responses: Float[Array, " n"]
    truth: Float[Array, " d"]


def _linear(key: PRNGKeyArray, examples: int, features: int, noise: float) -> Linear:
    """Standard normal features, and coefficients of length 1."""
    of_truth, of_features, of_noise = jax.random.split(key, 3)
    truth = jax.random.normal(of_truth, (features,))
    truth /= jnp.linalg.norm(truth)
    x = jax.random.normal(of_features, (examples, features))
    return Linear(x, x @ truth + noise * jax.random.normal(of_noise, (examples,)), truth)


def _risks(problem: Linear, means: Float[Array, " bags"], ids: Array) -> Float[Array, " rhos"]:
    """The squared distance to the truth at every interpolation."""

    def risk(rho: Array) -> Array:
        found = aggregate.interpolated_ridge(problem.features, ids, means, rho=rho)  # type: ignore[arg-type]
        return jnp.sum((found - problem.truth) ** 2)

    return jax.vmap(risk)(jnp.array(RHOS))


@functools.partial(jax.jit, static_argnums=(1, 2))
@functools.partial(jax.vmap, in_axes=(0, None, None))
def _exact(key: PRNGKeyArray, config: Config, size: int) -> Float[Array, " rhos"]:
    problem = _linear(key, config.examples, config.features, config.noise)
    ids = jnp.arange(config.examples) // size
    return _risks(problem, problem.responses.reshape(-1, size).mean(axis=1), ids)


@functools.partial(jax.jit, static_argnums=(1, 2))
@functools.partial(jax.vmap, in_axes=(0, None, None))
def _private(key: PRNGKeyArray, config: Config, size: int) -> Float[Array, "epsilons rhos"]:
    of_problem, of_noise = jax.random.split(key)
    problem = _linear(of_problem, config.examples, config.private_features, config.noise)
    ids = jnp.arange(config.examples) // size
    num_bags = config.examples // size

    def risks(epsilon: Array) -> Array:
        means = aggregate.private_bag_means(
            of_noise, problem.responses, ids, num_bags=num_bags, epsilon=epsilon, clip=CLIP,  # type: ignore[arg-type]
        )  # fmt: skip
        return _risks(problem, means, ids)

    return jax.vmap(risks)(jnp.array(EPSILONS))


def _at_the_least(values: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Of values `[seeds, rhos]`, each seed's at the interpolation of the least cost."""
    return np.take_along_axis(values, costs.argmin(axis=1)[:, None], axis=1)[:, 0]


def _at_the_best_of_the_others(risks: np.ndarray) -> np.ndarray:
    """Of risks `[seeds, rhos]`, each seed's at the interpolation with the least mean over the other seeds."""
    return _at_the_least(risks, risks.sum(axis=0) - risks)


def _bags_of_cells(seed: int) -> dict[str, np.ndarray]:
    """The training set in bags `[bags, size, ...]`, shuffled; what does not fill a bag is left out."""
    train = data.load(data.DataConfig("breast_cancer", seed=seed), "train")
    order = np.random.default_rng(seed).permutation(len(train["labels"]))
    kept = order[: len(order) // NETWORK_SIZE * NETWORK_SIZE].reshape(-1, NETWORK_SIZE)
    return {"inputs": train["inputs"][kept], "shares": train["labels"][kept].mean(axis=1).astype(np.float32)}


class Learned(NamedTuple):
    """Of the networks: test accuracy, and the bag loss on the bags that were held out, `[seeds, rhos]` each."""

    accuracy: Float[np.ndarray, "seeds rhos"]
    held_out: Float[np.ndarray, "seeds rhos"]


def _networks(config: Config, context: harness.Context) -> Learned:
    """Networks that have only seen the share of positive labels in bags."""
    test = data.load(data.DataConfig("breast_cancer"), "test")
    shape = test["inputs"].shape[1:]

    def build(key: PRNGKeyArray) -> Any:
        return models.functional(models.build("mlp", shape, 1, key=key))

    apply = build(jax.random.key(0)).apply
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, config.steps))

    def losses(params: Any, extra: Any, batch: Mapping[str, Array], rho: Array) -> Float[Array, " bags"]:
        bags, size = batch["inputs"].shape[:2]
        inputs, ids = batch["inputs"].reshape(-1, *shape), jnp.repeat(jnp.arange(bags), size)
        logits, _ = apply(params, extra, inputs)
        return aggregate.interpolated_loss(
            logits[:, 0], ids, batch["shares"], rho=rho, loss="logistic",  # type: ignore[arg-type]
        )  # fmt: skip

    def loss_fn(params: Any, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        # The networks share nothing, so the sum of their losses trains each by its own.
        each = jax.vmap(losses, (0, None, None, 0))(params, extra, batch, jnp.array(NETWORK_RHOS))
        return LossOutput(each.sum(axis=0), extra=extra)

    def start(key: PRNGKeyArray) -> Any:
        model = build(key)
        params = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(NETWORK_RHOS), *x.shape)), model.params)
        return init_state(params, model.extra, optimizer, key=key)

    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seed_numbers))
    sets = [_bags_of_cells(seed) for seed in config.seed_numbers.tolist()]
    bags = {field: jnp.stack([s[field] for s in sets]) for field in sets[0]}
    state, _ = harness.train_seeds(
        "network",
        make_step(loss_fn, optimizer),
        jax.jit(jax.vmap(start))(keys),
        {field: x[:, HELD_OUT:] for field, x in bags.items()},
        keys,
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        mesh=config.mesh,
    )

    def evaluate(params: Any, extra: Any, held_out: dict[str, Array]) -> tuple[Array, Array]:
        logits, _ = apply(params, extra, jnp.asarray(test["inputs"]))
        right = (logits[:, 0] > 0) == test["labels"]
        return jnp.mean(right), jnp.mean(losses(params, extra, held_out, jnp.zeros(())))

    held_out = {field: x[:, :HELD_OUT] for field, x in bags.items()}
    found = jax.jit(jax.vmap(jax.vmap(evaluate, (0, None, None))))(state.params, state.extra, held_out)
    return Learned(*(np.asarray(x, np.float64) for x in found))


def _ends(values: np.ndarray, interpolated: np.ndarray) -> dict[str, np.ndarray]:
    """Of values `[seeds, rhos]`: those of the two losses, and those given of the interpolation."""
    return {"bag": values[:, 0], "instance": values[:, -1], "interpolated": interpolated}


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Solves the linear problems at every interpolation and bag size, and trains the network."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in config.chosen}
    curves: dict[str, np.ndarray] = {}
    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seed_numbers))
    exact = [name for name in config.chosen if not name.startswith("private")]
    if exact:
        for size in SIZES:
            risks = np.asarray(_exact(keys, config, size), np.float64)
            curves[f"risk/{size}"] = risks
            found = _ends(risks, _at_the_best_of_the_others(risks))
            for name in exact:
                values[name][f"risk_{size}"] = found[name]
        with context.bar(config.steps) as inner:
            learned = _networks(config, inner)
        curves |= {f"network/{field}": numbers for field, numbers in learned._asdict().items()}
        chosen = _at_the_least(learned.accuracy[:, 1:-1], learned.held_out[:, 1:-1])
        found = _ends(learned.accuracy, chosen)
        for name in exact:
            values[name]["accuracy"] = found[name]
    for size in SIZES:
        if (name := f"private_{size}") in values:
            risks = np.asarray(_private(keys, config, size), np.float64)
            for i, eps in enumerate(EPSILONS):
                values[name][f"risk_eps{eps:g}"] = _at_the_best_of_the_others(risks[:, i])
    return harness.Results.of(config, values, curves)


def _draw_risks(axes: Axes, results: harness.Results) -> None:
    at = np.arange(len(RHOS))
    ends = {}
    for size, color in zip(SIZES, figures.PALETTE, strict=False):
        if f"risk/{size}" in results.curves:
            line = figures.band(axes, at, results.curves[f"risk/{size}"], label="", color=color, log=True)
            ends[f"k = {size}"] = (at[-1], float(np.asarray(line.get_ydata())[-1]), color)
    axes.set_yscale("log")
    axes.set_xticks(at, [f"{rho:g}" for rho in RHOS])
    axes.set(xlabel="interpolation: 0 bag loss, 1 instance loss", ylabel="risk: squared distance to the truth")
    axes.set_title("Between the two losses lies the least risk")
    for name, (x, y, color) in ends.items():
        axes.annotate(f" {name}", (x, y), color=color, va="center", fontsize=8, annotation_clip=False)


def _draw_privacy(axes: Axes, results: harness.Results) -> None:
    sizes = [size for size in SIZES if f"private_{size}" in results.values]
    for eps, color, marker in zip(EPSILONS, figures.PALETTE[1:], figures.MARKERS, strict=False):
        found = [results.interval(f"private_{size}", f"risk_eps{eps:g}") for size in sizes]
        if found:
            figures.points(axes, sizes, found, color=color, marker=marker)
            axes.annotate(
                f"  epsilon = {eps:g}", (sizes[-1], found[-1].mean), color=color, va="center", fontsize=8,
                annotation_clip=False,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.set(xlabel="bag size k", ylabel="risk: squared distance to the truth")
    axes.set_title("Large bags pay where privacy is strict")


def _draw_network(axes: Axes, results: harness.Results) -> None:
    at = np.arange(len(NETWORK_RHOS))
    if "network/accuracy" in results.curves:
        figures.band(axes, at, 100 * results.curves["network/accuracy"], label="", color=figures.PALETTE[1])
    if "accuracy" in results.values.get("interpolated", {}):
        chosen = 100 * results.interval("interpolated", "accuracy").mean
        axes.axhline(chosen, color="#444444", linewidth=1, linestyle="--")
        axes.annotate(
            "chosen on held-out bags", (at[-1], chosen), xytext=(0, -4), textcoords="offset points",
            ha="right", va="top", fontsize=8,
        )  # fmt: skip
    axes.set_xticks(at, [f"{rho:g}" for rho in NETWORK_RHOS])
    axes.tick_params(axis="x", labelsize=7)
    axes.set(xlabel="interpolation: 0 bag loss, 1 instance loss", ylabel="test accuracy, %")
    axes.set_title(f"A network, k = {NETWORK_SIZE}")


def draw(results: harness.Results) -> Figure:
    """Risk against interpolation, by bag size; the network's accuracy; risk against bag size, by privacy."""
    with figures.figure(12.0, 3.6) as drawn:
        left, middle, right = drawn.subplots(1, 3, width_ratios=[1.15, 0.9, 1])
        _draw_risks(left, results)
        _draw_network(middle, results)
        _draw_privacy(right, results)
    return drawn


if __name__ == "__main__":
    harness.main("bag_labels", config=Config, run=run, draw=draw)
