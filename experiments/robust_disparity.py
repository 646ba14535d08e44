"""What does robustness cost each class?

Logistic regression, plain and trained on attacks, on two classes of which one is more frequent. A robust rule gives up
entries of small mean, from which both classes lose; and it has less margin, so that the prior odds move its boundary
farther towards the rare class. For Gaussian noise both effects have a closed form, against which what is learned is
held. Heavy tails are another matter: rare classes are given up without any attack, and robustness adds less the rarer
they are. A seed draws the examples and their order; accuracies are of balanced test data without attack.
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
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import stable_classes
from experiments.envs.stable_classes import LAWS
from experiments.harness import figures
from reweight import dynamics
from reweight.losses import adversarial
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Params = dict[str, Array]  # of all models: [methods, laws, ratios, ...]
RATIOS = (1, 2, 5, 10)  # how many times as frequent the positive class is
THETA = np.linspace(0.5, 0.05, 20)


class Method(NamedTuple):
    """The name in the figure, and the size of the attack in training as a part of the largest entry of the mean."""

    label: str
    part: float


METHODS: dict[str, Method] = {
    "standard": Method("standard", 0.0),
    "robust_small": Method("attack 1/4", 1 / 4),
    "robust_medium": Method("attack 3/8", 3 / 8),
    "robust_large": Method("attack 1/2", 1 / 2),
}

METRICS = (
    *(
        harness.Metric(f"{law}_{name}", label, better=None, percent=True, digits=1, table=LAWS[law].label)
        for law in LAWS
        for name, label in (
            ("accuracy", "accuracy, R = 1"),
            *((f"disparity_{ratio}", f"disparity, R = {ratio}") for ratio in RATIOS[1:]),
            ("growth", "R = 10 less R = 2"),
        )
    ),
    harness.Metric(
        "gaussian_distance", "off the closed form", better=None, percent=True, digits=1, table=LAWS["gaussian"].label
    ),
)

_claim = functools.partial(harness.Claim, "Hu et al. 2023, arXiv 2211.15762", "robust_large", "standard")
CLAIMS = (
    # The inherent effect: where classes are balanced robustness costs accuracy, whatever the tails.
    *(_claim(f"{law}_accuracy", "lower") for law in LAWS),
    # The effect of the imbalance: the frequent class gains on the rare one.
    *(_claim(f"gaussian_disparity_{ratio}", "higher") for ratio in RATIOS[1:]),
    # What robustness adds to the disparity grows with the imbalance; with heavy tails it shrinks.
    _claim("gaussian_growth", "higher"),
    _claim("holtsmark_growth", "lower"),
    _claim("cauchy_growth", "lower"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Examples and budget."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 16
    examples: int = 8192
    """Training examples."""
    steps: int = 1000
    """Training steps."""
    batch_size: int = 128
    """Examples a step."""
    learning_rate: float = 0.02
    """The learning rate of Adam at the start; it falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("examples", "steps", "batch_size")
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("standard", "robust_large"), examples=64, steps=8, batch_size=16)


def _examples(key: PRNGKeyArray, config: Config) -> dict[str, Array]:
    """Noise under every law, and uniform numbers that say which examples are positive at any ratio."""
    of_noise, of_labels = jax.random.split(key)
    shape = (config.examples, THETA.size)
    noise = [
        law.scale * stable_classes.symmetric_stable(key, law.alpha, shape)
        for key, law in zip(jax.random.split(of_noise, len(LAWS)), LAWS.values(), strict=True)
    ]
    return {"noise": jnp.stack(noise, axis=1), "uniform": jax.random.uniform(of_labels, (config.examples,))}


def _learn(config: Config, context: harness.Context) -> Params:
    """The rules of all methods, laws, ratios and seeds, `[seeds, methods, laws, ratios, ...]`."""
    sizes = jnp.array([METHODS[name].part * THETA.max() for name in config.chosen])
    frequent = jnp.array([ratio / (1 + ratio) for ratio in RATIOS])
    theta = jnp.asarray(THETA, jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    def losses(rule: Params, noise: Array, labels: Array, eps: Array) -> Float[Array, " batch"]:
        def of(inputs: Array) -> Float[Array, " batch"]:
            return jax.nn.softplus(-labels * (inputs @ rule["weights"] + rule["bias"]))

        # One step to the border of the box is the worst attack on a linear rule.
        step: dict[str, Any] = {"eps": eps, "step_size": eps, "steps": 1, "init": "none", "clip": None}
        return of(adversarial.pgd_attack(None, of, labels[:, None] * theta + noise, **step))

    by_ratio = jax.vmap(losses, (0, None, 0, None))
    by_law = jax.vmap(by_ratio, (0, 1, None, None))
    by_method = jax.vmap(by_law, (0, None, None, 0))

    def loss_fn(params: Params, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        labels = jnp.where(batch["uniform"] < frequent[:, None], 1.0, -1.0)
        # The rules share nothing, so the sum of their losses trains each by its own.
        every = by_method(params, batch["noise"], labels, sizes)
        return LossOutput(every.sum(axis=(0, 1, 2)), extra=extra)

    def start(key: PRNGKeyArray) -> TrainState:
        shape = (len(config.chosen), len(LAWS), len(RATIOS))
        params = {"weights": jnp.zeros((*shape, THETA.size)), "bias": jnp.zeros(shape)}
        return init_state(params, None, optimizer, key=key)

    of_examples, of_run = jnp.moveaxis(
        jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(jnp.asarray(config.seed_numbers)), 1, 0
    )
    state, _ = harness.train_seeds(
        "rules",
        make_step(loss_fn, optimizer),
        jax.jit(jax.vmap(start))(of_run),
        jax.jit(jax.vmap(functools.partial(_examples, config=config)))(of_examples),
        of_run,
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        mesh=config.mesh,
    )
    return state.params


def _accuracies(rules: Params) -> Float[np.ndarray, "seeds methods laws ratios 2"]:
    """Those of the two classes, without attack."""
    weights, bias = (np.asarray(rules[name], np.float64) for name in ("weights", "bias"))
    found = [
        stable_classes.accuracies(weights[:, :, i], bias[:, :, i], THETA, law) for i, law in enumerate(LAWS.values())
    ]
    return np.stack(found, axis=2)


def _closed_form(methods: tuple[str, ...]) -> Float[np.ndarray, "methods ratios 2"]:
    """The accuracies of the best rules under Gaussian noise."""
    theta = jnp.asarray(THETA, jnp.float32)

    def of(part: Array, ratio: Array) -> Float[Array, "2"]:
        rule = dynamics.robust_gaussian_classifier(theta, 1.0, ratio=ratio, eps=part * theta.max())
        return jnp.stack(dynamics.class_accuracies(*rule, theta, 1.0))

    parts = jnp.array([METHODS[name].part for name in methods])
    return np.asarray(jax.vmap(jax.vmap(of, (None, 0)), (0, None))(parts, jnp.array(RATIOS, jnp.float32)), np.float64)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Learns all rules side by side, and measures what each class loses."""
    context = harness.Context() if context is None else context
    with context.bar(config.steps) as inner:
        found = _accuracies(_learn(config, inner))
    best = _closed_form(config.chosen)
    balanced, disparity = found.mean(axis=-1), found[..., 0] - found[..., 1]
    values: dict[str, dict[str, np.ndarray]] = {}
    for i, name in enumerate(config.chosen):
        values[name] = {}
        for j, law in enumerate(LAWS):
            by_ratio = dict(zip(RATIOS, disparity[:, i, j].T, strict=True))
            values[name][f"{law}_accuracy"] = balanced[:, i, j, 0]
            values[name] |= {f"{law}_disparity_{ratio}": by_ratio[ratio] for ratio in RATIOS[1:]}
            values[name][f"{law}_growth"] = by_ratio[10] - by_ratio[2]
        values[name]["gaussian_distance"] = np.abs(found[:, i, 0] - best[i]).max(axis=(1, 2))
    return harness.Results.of(config, values, {"balanced": balanced, "disparity": disparity, "closed_form": best})


def draw(results: harness.Results) -> Figure:
    """Balanced accuracy and disparity by ratio, one column a law."""
    curves, closed = results.curves, results.curves["closed_form"]
    of_closed = {"balanced": closed.mean(axis=-1), "disparity": closed[..., 0] - closed[..., 1]}
    with figures.figure(9.6, 5.6) as drawn:
        grid = drawn.subplots(2, len(LAWS), sharex=True, sharey="row")
        grid[0, 0].set_xscale("log")
        grid[0, 0].set_xticks(RATIOS, [str(ratio) for ratio in RATIOS])
        grid[0, 0].minorticks_off()
        grid[0, 0].set_xlim(0.9, 11)
        for row, quantity in zip(grid, of_closed, strict=True):
            ends = {}
            for j, (axes, law) in enumerate(zip(row, LAWS.values(), strict=True)):
                for i, name in enumerate(results.values):
                    numbers = 100 * curves[quantity][:, i, j]
                    color = figures.PALETTE[list(METHODS).index(name)]
                    figures.band(axes, RATIOS, numbers, label="", color=color)
                    if j == 0:
                        axes.plot(RATIOS, 100 * of_closed[quantity][i], "o", color=color, markerfacecolor="none")
                        ends[results.label(name)] = (RATIOS[-1], numbers[:, -1].mean(), color)
                if quantity == "balanced":
                    axes.set_title(f"{law.label}" + (" (circles: closed form)" if j == 0 else ""))
                else:
                    axes.set_xlabel("R, frequent to rare examples")
            figures.label_ends(row[0], ends)
        grid[0, 0].set_ylabel("balanced accuracy, %")
        grid[1, 0].set_ylabel("disparity: frequent less rare, points")
    return drawn


if __name__ == "__main__":
    harness.main("robust_disparity", config=Config, run=run, draw=draw)
