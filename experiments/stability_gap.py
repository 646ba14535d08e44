"""What does accuracy at the end of a task hide?

A network has learned upright digits and goes on with turned ones, held to the old task by kept examples (replay), by
the old model's probabilities of these (distillation) or by a penalty on moving what mattered (elastic weights). Both
tasks are evaluated after every step. Old accuracy falls in the first steps and comes back: at the switch the parameters
are at the minimum of what holds them, whose gradient is about zero. How deep it falls is asked of turns from 0 degrees,
which is no switch at all, to 80. A seed draws initial parameters, kept examples and batches.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import digit_tasks
from experiments.envs.digit_tasks import CLASSES
from experiments.harness import figures
from reweight import dynamics
from reweight.losses import classification, continual
from reweight.metrics import continual as metrics
from reweight.train import TrainState, init_state

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Tree = Any  # a pytree of arrays


class Method(NamedTuple):
    """The name in the figure, the turn of the second task in degrees, and the weights of what holds the old one."""

    label: str
    degrees: float = 80.0
    replay: float = 0.0
    distillation: float = 0.0
    elastic: float = 0.0


# Distillation has the factor T^2 at T = 2; the weight of elastic weights comes from trials on examples held out of the
# training split.
METHODS: dict[str, Method] = {
    "finetune": Method("nothing, 80°"),
    "replay": Method("replay, 80°", replay=1.0),
    "distillation": Method("distillation, 80°", distillation=4.0),
    "elastic": Method("elastic weights, 80°", elastic=100.0),
    "replay_40": Method("replay, 40°", degrees=40.0, replay=1.0),
    "replay_20": Method("replay, 20°", degrees=20.0, replay=1.0),
    "no_switch": Method("replay, no switch", degrees=0.0, replay=1.0),
}

METRICS = (
    harness.Metric("before", "old task before", None, percent=True, digits=1),
    harness.Metric("minimum", "lowest after", percent=True, digits=1),
    harness.Metric("end", "at the end", percent=True, digits=1),
    harness.Metric("gap", "gap", "lower", percent=True, digits=1),
    harness.Metric("accuracy", "both tasks at the end", percent=True, digits=1),
    harness.Metric("worst", "worst case", percent=True, digits=1),
    harness.Metric("forgetting", "drop in 10 steps", "lower", percent=True, digits=1),
    harness.Metric("share", "holding gradient at the switch", None, percent=True, digits=1),
)

_claim = functools.partial(harness.Claim, "De Lange et al. 2022, arXiv 2205.13452")
CLAIMS = (
    *(_claim(method, "no_switch", "gap") for method in ("replay", "distillation", "elastic")),
    _claim("replay_20", "no_switch", "gap"),
    _claim("replay", "replay_20", "gap"),
    # Of replay only: what distillation and elastic weights hold with has no gradient at the switch by construction.
    _claim("replay", "no_switch", "share", "lower"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Budget and sizes."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 8
    steps: int = 200
    """Training steps of each of the two tasks, after each of which both are evaluated."""
    batch_size: int = 64
    """Examples of the current task a step, and as many kept ones."""
    kept: int = 20
    """Examples kept of each class of the old task."""
    width: int = 64
    """Units of each of the two hidden layers."""
    learning_rate: float = 0.03
    """Of gradient descent with momentum 0.9."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "batch_size", "kept", "width")
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("elastic", "no_switch"), steps=5, batch_size=16, kept=2)


class Held(NamedTuple):
    """What holds the old task: kept examples, the old model, how much each parameter mattered, and their weights."""

    inputs: Array
    labels: Array
    old: Tree
    fisher: Tree
    weights: Mapping[str, Array]
    test: Array  # images of the second task


def _plasticity(params: Tree, batch: Mapping[str, Array]) -> Array:
    return jnp.mean(classification.cross_entropy(digit_tasks.logits(params, batch["inputs"]), batch["labels"]))


def _stability(params: Tree, held: Held, batch: Mapping[str, Array], key: Array) -> Array:
    """All three that hold, each with its weight, so that one program serves all methods."""
    rows = jax.random.randint(key, batch["labels"].shape, 0, len(held.labels))
    kept = held.inputs[rows]
    replay = _plasticity(params, {"inputs": kept, "labels": held.labels[rows]})
    now, before = (digit_tasks.logits(p, kept) for p in (params, held.old))
    distillation = jnp.mean(continual.old_class_distillation(now, before, temperature=2.0))
    moved = jax.tree.map(lambda p, q, f: jnp.sum(f * (p - q) ** 2) / 2, params, held.old, held.fisher)
    terms: dict[str, Any] = {"replay": replay, "distillation": distillation, "elastic": optax.tree.sum(moved)}
    return sum((held.weights[name] * term for name, term in terms.items()), start=jnp.zeros(()))


def _step(optimizer: optax.GradientTransformation) -> Any:
    """A step that takes the two gradients apart and adds them."""

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        loss, learn = jax.value_and_grad(_plasticity)(state.params, batch)
        hold = jax.grad(_stability)(state.params, state.extra, batch, key)
        updates, opt_state = optimizer.update(optax.tree.add(learn, hold), state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        split = dynamics.gradient_split(hold, learn)
        measured = {"loss": loss, "stability": split.stability_norm, "plasticity": split.plasticity_norm}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), measured

    return step


@jax.jit
def _fisher(params: Tree, inputs: Array, labels: Array) -> Tree:
    """Squared gradients of single examples, on average: the diagonal of the empirical Fisher matrix, for each seed."""

    def of_example(params: Tree, row: Array, label: Array) -> Tree:
        return jax.grad(_plasticity)(params, {"inputs": row[None], "labels": label[None]})

    def of_seed(params: Tree, inputs: Array, labels: Array) -> Tree:
        grads = jax.vmap(of_example, (None, 0, 0))(params, inputs, labels)
        return jax.tree.map(lambda g: jnp.mean(g**2, axis=0), grads)

    return jax.vmap(of_seed)(params, inputs, labels)


class Problem(NamedTuple):
    """What all methods share: images of each class `[seeds, classes, n, pixels]`, the program, and keys."""

    config: Config
    context: harness.Context
    images: np.ndarray
    test: dict[str, np.ndarray]
    begin: Any
    step: Any
    evaluate: Any
    keys: Array

    def learn(self, name: str, task: int, degrees: float, params: Tree, held: Held) -> tuple[Tree, dict[str, Any]]:
        """The parameters after a task, and what was measured."""
        config = self.config
        inputs = jnp.asarray(digit_tasks.rotated(self.images, degrees)).reshape(config.seeds, -1, self.images.shape[-1])
        labels = jnp.broadcast_to(jnp.repeat(jnp.arange(CLASSES), self.images.shape[2]), inputs.shape[:2])
        state, measured = harness.train_seeds(
            name,
            self.step,
            self.begin(params, held, self.keys[:, task, 0]),
            {"inputs": inputs, "labels": labels},
            self.keys[:, task, 1],
            batch_size=config.batch_size,
            num_steps=config.steps,
            context=self.context,
            stacked_arrays=True,
            chunks=1,
            eval_fn=self.evaluate,
            eval_every=1,
            mesh=config.mesh,
        )
        return state.params, measured


@jax.jit
@jax.vmap
def _keys(seed: Array) -> Array:
    """For each of the tasks a key of the run and one of the order of the data; then one of the initial parameters."""
    return jax.random.split(jax.random.key(seed), (3, 2))


@functools.partial(jax.jit, static_argnames="width")
def _initial(keys: Array, width: int) -> Tree:
    return jax.vmap(lambda key: digit_tasks.initial(key, width))(keys)


def _problem(config: Config, context: harness.Context) -> Problem:
    test = digit_tasks.test_set()

    def evaluate(state: TrainState) -> dict[str, Array]:
        """The accuracy on both tasks."""

        def accuracy(inputs: Array) -> Array:
            return jnp.mean(jnp.argmax(digit_tasks.logits(state.params, inputs), axis=-1) == test["labels"])

        return {"accuracy": jnp.stack([accuracy(jnp.asarray(test["inputs"])), accuracy(state.extra.test)])}

    optimizer = optax.sgd(config.learning_rate, momentum=0.9)
    images = np.stack([digit_tasks.by_class(seed, np.arange(CLASSES)) for seed in config.seed_numbers])
    begin = jax.jit(jax.vmap(lambda params, held, key: init_state(params, held, optimizer, key=key)))
    return Problem(
        config, context, images, test, begin, _step(optimizer), evaluate, _keys(jnp.asarray(config.seed_numbers))
    )


def _scores(accuracies: np.ndarray, current: np.ndarray, measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics from the accuracies `[seeds, times, tasks]` on both tasks."""

    def last(metric: Any, **hyper: Any) -> np.ndarray:
        return np.asarray(jax.vmap(lambda a: metric(a, current, **hyper)[-1])(accuracies), np.float64)

    before, end = (accuracies[:, at, 0] for at in (int(np.sum(current == 0)) - 1, -1))
    minimum, hold = last(metrics.min_acc), measured["stability"][:, 0]
    pull = hold + measured["plasticity"][:, 0]
    return {
        "before": before,
        "minimum": minimum,
        "end": end,
        # How far it falls below both ends: what is lost for good is not counted.
        "gap": np.minimum(before, end) - minimum,
        "accuracy": last(metrics.average_accuracy),
        "worst": last(metrics.wc_acc),
        "forgetting": last(functools.partial(metrics.windowed_forgetting, per_task=True), window=10)[:, 0],
        "share": hold / np.maximum(pull, 1e-12),
    }


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains the first task once and the second with every method, over all seeds at once."""
    context = harness.Context() if context is None else context
    values, curves = {}, {}
    with context.bar((len(config.chosen) + 1) * config.steps) as inner:
        problem = _problem(config, inner)
        seeds, images = config.seeds, problem.images
        params = _initial(problem.keys[:, 2, 0], config.width)
        kept = jnp.asarray(images[:, :, : config.kept]).reshape(seeds, -1, images.shape[-1])
        labels = jnp.broadcast_to(jnp.repeat(jnp.arange(CLASSES), config.kept), kept.shape[:2])

        def held(old: Tree, fisher: Tree, method: Method) -> Held:
            weights = {name: getattr(method, name) for name in ("replay", "distillation", "elastic")}
            test = digit_tasks.rotated(problem.test["inputs"], method.degrees)
            shared = jax.tree.map(lambda x: jnp.broadcast_to(jnp.float32(x), (seeds, *np.shape(x))), (weights, test))
            return Held(kept, labels, old, fisher, *shared)

        nothing = held(params, jax.tree.map(jnp.zeros_like, params), Method("", degrees=0.0))
        params, first = problem.learn("first_task", 0, 0.0, params, nothing)
        fisher = _fisher(params, kept, labels)
        for name in config.chosen:
            method = METHODS[name]
            _, second = problem.learn(name, 1, method.degrees, params, held(params, fisher, method))
            accuracies = np.concatenate([first["accuracy"], second["accuracy"]], axis=1)
            current = np.repeat([0, 1], config.steps)
            values[name] = _scores(accuracies, current, second)
            curves[f"accuracy/{name}"] = accuracies
            curves[f"stability/{name}"], curves[f"plasticity/{name}"] = second["stability"], second["plasticity"]
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Left: accuracy on the old task after every step. Then the two gradients of replay, and the gap by turn."""
    steps, names = results.config["steps"], list(results.values)
    around = min(20, steps)
    time = np.arange(-around, steps)
    with figures.figure(10.4, 3.9) as drawn:
        left, middle, right = drawn.subplots(1, 3, width_ratios=[1.6, 1, 1.1])
        lines = []
        for i, name in enumerate(names):
            curve = results.curves[f"accuracy/{name}"][:, steps - around :, 0]
            lines.append(
                left.plot(time, 100 * curve.mean(axis=0), color=figures.PALETTE[i], label=results.label(name))[0]
            )
        left.axvline(0, color="#999999", linewidth=0.8, linestyle=":")
        left.set(xlabel="steps since the switch", ylabel="accuracy on the old task, %")
        left.set_title("Accuracy on the old task, step by step")
        left.legend(handles=lines, loc=(0.48, 0.34), fontsize=7)
        shown = "replay" if "replay" in names else names[0]
        for kind, color, label in (
            ("plasticity", "#D55E00", "learns the new"),
            ("stability", "#0072B2", "holds the old"),
        ):
            norms = results.curves[f"{kind}/{shown}"]
            figures.band(middle, np.arange(1, steps + 1), norms, label=label, color=color, log=True)
            middle.annotate(
                label,
                (1, norms[:, 0].mean()),
                xytext=(12, 0),
                textcoords="offset points",
                color=color,
                va="center",
                fontsize=8,
            )
        middle.set(xscale="log", yscale="log", xlabel="steps since the switch", ylabel="norm of the gradient")
        middle.set_title(f"Who pulls ({results.label(shown)})")
        for i, name in enumerate(names):
            color = figures.PALETTE[i]
            for metric, fill in (("minimum", color), ("end", "white")):
                found = results.interval(name, metric)
                figures.interval(right, found, i, color=color, scale=100, markerfacecolor=fill)
        figures.name_rows(right, [results.label(name) for name in names])
        right.set(xlabel="accuracy on the old task, %", title="At the end (open), lowest (filled)")
    return drawn


if __name__ == "__main__":
    harness.main("stability_gap", config=Config, run=run, draw=draw)
