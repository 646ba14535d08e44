"""What does robustness cost each class?

Logistic regression, plain and trained on attacks, on two classes of which one is more frequent. A robust rule gives up
entries of small mean, from which both classes lose, unless the attack is measured by Euclidean length; and it has less
margin, so that the prior odds move its boundary farther towards the rare class. For Gaussian noise both effects have a
closed form, against which what is learned is held. Heavy tails are another matter: rare classes are given up without
any attack, after which robustness has little to add. A seed draws the examples and their order; accuracies are of
balanced test data without attack.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

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

Norm = Literal["linf", "l2"]
Params = dict[str, Array]  # of all models: [methods, settings, ratios, ...]
RATIOS = (1, 2, 5, 10)  # how many times as frequent the positive class is
THETA = np.linspace(0.5, 0.05, 20)


class Method(NamedTuple):
    """The name in the figure, and the size of the attack in training as a part of that of the mean."""

    label: str
    part: float


METHODS: dict[str, Method] = {
    "standard": Method("standard", 0.0),
    "robust_small": Method("attack 1/4", 1 / 4),
    "robust_medium": Method("attack 3/8", 3 / 8),
    "robust_large": Method("attack 1/2", 1 / 2),
}


class Setting(NamedTuple):
    """The name in the figure, the law of the noise, and the norm of the attack."""

    label: str
    law: str
    norm: Norm = "linf"

    @property
    def reach(self) -> float:
        """The size of the mean: that of an attack that leaves nothing between the classes."""
        return float(np.linalg.norm(THETA, np.inf if self.norm == "linf" else 2))


SETTINGS: dict[str, Setting] = {
    "gaussian": Setting("Gaussian", "gaussian"),
    "euclidean": Setting("Gaussian, Euclidean attack", "gaussian", "l2"),
    "holtsmark": Setting(LAWS["holtsmark"].label, "holtsmark"),
    "cauchy": Setting(LAWS["cauchy"].label, "cauchy"),
}
CLOSED = tuple(name for name, setting in SETTINGS.items() if setting.law == "gaussian")  # those with a closed form

METRICS = (
    *(
        harness.Metric(f"{setting}_{name}", label, better=None, percent=True, digits=1, table=SETTINGS[setting].label)
        for setting in SETTINGS
        for name, label in (
            ("accuracy", "accuracy, R = 1"),
            *((f"disparity_{ratio}", f"disparity, R = {ratio}") for ratio in RATIOS[1:]),
            ("growth", "R = 10 less R = 2"),
            *((("distance", "off the closed form"),) if setting in CLOSED else ()),
        )
    ),
)

_claim = functools.partial(harness.Claim, "Hu et al. 2023, arXiv 2211.15762", "robust_large", "standard")
CLAIMS = (
    # The inherent effect: where classes are balanced robustness costs accuracy, whatever the tails. Under Euclidean
    # attacks it costs none where variances are equal, which no interval can show: see the distance to the closed form.
    *(_claim(f"{law}_accuracy", "lower") for law in LAWS),
    # The effect of the imbalance: the frequent class gains on the rare one.
    *(_claim(f"{setting}_disparity_{ratio}", "higher") for setting in CLOSED for ratio in RATIOS[1:]),
    # What robustness adds to the disparity grows with the imbalance. With heavy tails that is a matter of scale: on
    # other seeds it grew where the standard rule still tells the rare class at R = 10, and shrank where it does not.
    *(_claim(f"{setting}_growth", "higher") for setting in CLOSED),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Examples and budget."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 32
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
    """The rules of all methods, settings, ratios and seeds, `[seeds, methods, settings, ratios, ...]`."""
    parts = jnp.array([METHODS[name].part for name in config.chosen])
    frequent = jnp.array([ratio / (1 + ratio) for ratio in RATIOS])
    theta = jnp.asarray(THETA, jnp.float32)
    # One example from the tail has a gradient from which Adam would not recover.
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.chain(optax.clip(1.0), optax.adam(rate))

    def losses(rule: Params, noise: Array, labels: Array, eps: Array, norm: Norm) -> Float[Array, " batch"]:
        def of(inputs: Array) -> Float[Array, " batch"]:
            return jax.nn.softplus(-labels * (inputs @ rule["weights"] + rule["bias"]))

        # One step to the border is the worst attack on a linear rule.
        step: dict[str, Any] = {"eps": eps, "step_size": eps, "steps": 1, "norm": norm, "init": "none", "clip": None}
        return of(adversarial.pgd_attack(None, of, labels[:, None] * theta + noise, **step))

    def of_setting(params: Params, number: int, batch: Mapping[str, Array], labels: Array) -> Float[Array, " batch"]:
        setting = list(SETTINGS.values())[number]
        noise = batch["noise"][:, list(LAWS).index(setting.law)]
        by_ratio = jax.vmap(functools.partial(losses, norm=setting.norm), (0, None, 0, None))
        by_method = jax.vmap(by_ratio, (0, None, None, 0))
        rules = {name: array[:, number] for name, array in params.items()}
        return by_method(rules, noise, labels, parts * setting.reach).sum(axis=(0, 1))

    def loss_fn(params: Params, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        labels = jnp.where(batch["uniform"] < frequent[:, None], 1.0, -1.0)
        # The rules share nothing, so the sum of their losses trains each by its own.
        every = [of_setting(params, number, batch, labels) for number in range(len(SETTINGS))]
        return LossOutput(jnp.sum(jnp.stack(every), axis=0), extra=extra)

    def start(key: PRNGKeyArray) -> TrainState:
        shape = (len(config.chosen), len(SETTINGS), len(RATIOS))
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


def _accuracies(rules: Params) -> Float[np.ndarray, "seeds methods settings ratios 2"]:
    """Those of the two classes, without attack."""
    weights, bias = (np.asarray(rules[name], np.float64) for name in ("weights", "bias"))
    found = [
        stable_classes.accuracies(weights[:, :, i], bias[:, :, i], THETA, LAWS[setting.law])
        for i, setting in enumerate(SETTINGS.values())
    ]
    return np.stack(found, axis=2)


def _closed_form(methods: tuple[str, ...], setting: Setting = SETTINGS["gaussian"]) -> Float[np.ndarray, "m r 2"]:
    """The accuracies of the best rules under Gaussian noise, `[methods, ratios, 2]`."""
    theta = jnp.asarray(THETA, jnp.float32)

    def of(part: Array, ratio: Array) -> Float[Array, "2"]:
        eps = part * setting.reach
        rule = dynamics.robust_gaussian_classifier(theta, 1.0, ratio=ratio, eps=eps, norm=setting.norm)
        return jnp.stack(dynamics.class_accuracies(*rule, theta, 1.0))

    parts = jnp.array([METHODS[name].part for name in methods])
    return np.asarray(jax.vmap(jax.vmap(of, (None, 0)), (0, None))(parts, jnp.array(RATIOS, jnp.float32)), np.float64)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Learns all rules side by side, and measures what each class loses."""
    context = harness.Context() if context is None else context
    with context.bar(config.steps) as inner:
        found = _accuracies(_learn(config, inner))
    best = {name: _closed_form(config.chosen, SETTINGS[name]) for name in CLOSED}
    balanced, disparity = found.mean(axis=-1), found[..., 0] - found[..., 1]
    values: dict[str, dict[str, np.ndarray]] = {}
    for i, name in enumerate(config.chosen):
        values[name] = {}
        for j, setting in enumerate(SETTINGS):
            by_ratio = dict(zip(RATIOS, disparity[:, i, j].T, strict=True))
            values[name][f"{setting}_accuracy"] = balanced[:, i, j, 0]
            values[name] |= {f"{setting}_disparity_{ratio}": by_ratio[ratio] for ratio in RATIOS[1:]}
            values[name][f"{setting}_growth"] = by_ratio[10] - by_ratio[2]
            if setting in best:
                values[name][f"{setting}_distance"] = np.abs(found[:, i, j] - best[setting][i]).max(axis=(1, 2))
    closed = {f"closed_form/{setting}": accuracies for setting, accuracies in best.items()}
    return harness.Results.of(config, values, {"balanced": balanced, "disparity": disparity} | closed)


def draw(results: harness.Results) -> Figure:
    """Balanced accuracy and disparity by ratio, one column a setting."""
    curves = results.curves
    with figures.figure(10.8, 5.6) as drawn:
        grid = drawn.subplots(2, len(SETTINGS), sharex=True, sharey="row")
        grid[0, 0].set_xscale("log")
        grid[0, 0].set_xticks(RATIOS, [str(ratio) for ratio in RATIOS])
        grid[0, 0].minorticks_off()
        grid[0, 0].set_xlim(0.9, 11)
        for row, quantity in zip(grid, ("balanced", "disparity"), strict=True):
            ends = {}
            for j, (axes, (name, setting)) in enumerate(zip(row, SETTINGS.items(), strict=True)):
                for i, method in enumerate(results.values):
                    numbers = 100 * curves[quantity][:, i, j]
                    color = figures.PALETTE[list(METHODS).index(method)]
                    figures.band(axes, RATIOS, numbers, label="", color=color)
                    if name in CLOSED:
                        frequent, rare = curves[f"closed_form/{name}"][i].T
                        best = (frequent + rare) / 2 if quantity == "balanced" else frequent - rare
                        axes.plot(RATIOS, 100 * best, "o", color=color, markerfacecolor="none")
                    if j == 0:
                        ends[results.label(method)] = (RATIOS[-1], numbers[:, -1].mean(), color)
                if quantity == "balanced":
                    axes.set_title(f"{setting.label}\n" + ("(circles: closed form)" if name in CLOSED else ""))
                else:
                    axes.set_xlabel("R, frequent to rare examples")
            figures.label_ends(row[0], ends)
        grid[0, 0].set_ylabel("balanced accuracy, %")
        grid[1, 0].set_ylabel("disparity: frequent less rare, points")
    return drawn


if __name__ == "__main__":
    harness.main("robust_disparity", config=Config, run=run, draw=draw)
