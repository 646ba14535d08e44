"""Can a student be both accurate and robust?

A small network learns from the class probabilities of larger ones: at attacked inputs from a teacher trained on
attacks, at clean inputs from the same teacher or from one that has only seen clean inputs. Two teachers pull in two
directions, with losses that fall at different speeds and probabilities of different sharpness; MTARD weighs the losses
by how far they have fallen, B-MTARD makes the teachers equally sure as well. A seed draws the split of the digits,
teachers, initial parameters and batches. An attack changes every pixel by 0.15 of its range at most; at 0.1 the robust
teacher is as accurate on clean inputs as the other one, and there is nothing to balance.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight import _checks, data, models
from reweight.losses import adversarial, classification, distillation
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Tree = Any  # a pytree of arrays
Batch = Mapping[str, Array]
CLASSES = 10
TRAIN_SHARE = 0.5  # so that enough is left to measure by


class Method(NamedTuple):
    """The name in the figure, who teaches at clean inputs, and which balances are kept."""

    label: str
    clean_teacher: str = "clean_teacher"
    weights: bool = False
    temperatures: bool = False


METHODS: dict[str, Method] = {
    "one_teacher": Method("robust teacher only", clean_teacher="robust_teacher"),
    "fixed": Method("two teachers, 1/2 each"),
    "mtard": Method("MTARD", weights=True),
    "b_mtard": Method("B-MTARD", weights=True, temperatures=True),
}

TEACHERS = {"robust_teacher": "robust teacher", "clean_teacher": "clean teacher"}

# Of the weight of the attacked inputs, and of the temperatures of the two teachers.
COURSES = ("weight", "robust_temperature", "temperature")

METRICS = (
    harness.Metric("clean", "clean", percent=True, digits=1),
    harness.Metric("robust", "under attack", percent=True, digits=1),
    harness.Metric("mean", "mean of both", percent=True, digits=1),
)

_claim = functools.partial(harness.Claim, "Zhao et al. 2024, arXiv 2306.16170")
CLAIMS = (
    _claim("b_mtard", "one_teacher", "mean"),
    _claim("b_mtard", "one_teacher", "clean"),
    _claim("b_mtard", "fixed", "mean"),
    _claim("mtard", "fixed", "mean"),
    _claim("b_mtard", "mtard", "mean"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Sizes, budget and the strength of the attack."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 8
    steps: int = 400
    """Training steps of a student."""
    teacher_steps: int = 250
    """Training steps of a teacher."""
    batch_size: int = 64
    """Examples a step."""
    width: int = 32
    """Hidden units of a student."""
    teacher_width: int = 64
    """Hidden units of a teacher, in each of two layers."""
    learning_rate: float = 3e-3
    """The learning rate at the start; it falls to 0 along a cosine, and the rates of the balances with it."""
    weight_rate: float = 0.025
    """The rate of the balance of losses at the start, the paper's."""
    temperature_rate: float = 0.1
    """The rate of the balance of temperatures at the start. The paper's, 0.001, is for runs of 117,000 steps."""
    eps: float = 0.15
    """The largest change of a pixel, whose range is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "teacher_steps", "batch_size", "width", "teacher_width")
        for name in ("learning_rate", "weight_rate", "temperature_rate", "eps"):
            _checks.number("experiments.Config", name, getattr(self, name), low=0, open_high=True)

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("fixed", "b_mtard"), steps=8, teacher_steps=8, teacher_width=16)


def _halves(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and test examples, pixels in [0, 1], drawn from all digits."""
    parts = [data.load(data.DataConfig("digits"), split) for split in ("train", "test")]
    inputs, labels = (np.concatenate([part[name] for part in parts]) for name in ("inputs", "labels"))
    inputs = (inputs - inputs.min()) / (inputs.max() - inputs.min())
    order = np.random.default_rng(seed).permutation(len(labels))
    cut = round(TRAIN_SHARE * len(labels))
    train, test = ({"inputs": inputs[rows], "labels": labels[rows]} for rows in (order[:cut], order[cut:]))
    return train, test


class _Net:
    """A network of a size, and attacks on it."""

    def __init__(self, widths: tuple[int, ...], eps: float) -> None:
        self.widths, self.eps = widths, eps
        self._apply = self._build(jax.random.key(0)).apply

    def _build(self, key: PRNGKeyArray) -> models.Functional:
        return models.functional(models.build("mlp", (8, 8, 1), CLASSES, key=key, widths=self.widths))

    def init(self, key: PRNGKeyArray) -> Tree:
        """Initial parameters."""
        return self._build(key).params

    def apply(self, params: Tree, inputs: Array) -> Float[Array, "batch classes"]:
        """Logits."""
        return self._apply(params, {}, inputs)[0]

    def attack(self, key: PRNGKeyArray, params: Tree, batch: Batch, steps: int) -> Array:
        """PGD on the cross-entropy, in steps of a quarter of the radius as in the paper."""
        attack = adversarial.attack_classifier(
            key,
            functools.partial(self.apply, params),
            batch["inputs"],
            batch["labels"],
            eps=self.eps,
            step_size=self.eps / 4,
            steps=steps,
            init="normal",
        )
        return attack.inputs

    @functools.cached_property
    def accuracies(self) -> Callable[[PRNGKeyArray, Tree, Batch], Float[Array, "seeds 2"]]:
        """Of all seeds, at clean and at attacked inputs."""

        def one(key: PRNGKeyArray, params: Tree, test: Batch) -> Float[Array, "2"]:
            seen = jnp.stack([test["inputs"], self.attack(key, params, test, 20)])
            return jnp.mean(jax.vmap(self.apply, (None, 0))(params, seen).argmax(-1) == test["labels"], axis=1)

        return jax.jit(jax.vmap(one))


class _Run(NamedTuple):
    """What all trainings share: the examples and keys of the seeds, and the two sizes of networks."""

    config: Config
    context: harness.Context
    train: dict[str, Array]
    test: dict[str, Array]
    keys: PRNGKeyArray
    teacher: _Net
    student: _Net

    def fit(self, name: str, step: Any, state: TrainState, steps: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """The state after training, and the metrics of all steps `[seeds, steps]`."""
        return harness.train_seeds(
            name,
            step,
            state,
            self.train,
            self.keys,
            batch_size=self.config.batch_size,
            num_steps=steps,
            context=self.context,
            stacked_arrays=True,
            mesh=self.config.mesh,
        )

    def scores(self, net: _Net, params: Tree) -> dict[str, np.ndarray]:
        """The metrics of every seed, on its test set."""
        clean, robust = np.asarray(net.accuracies(self.keys, params, self.test), np.float64).T
        return {"clean": clean, "robust": robust, "mean": (clean + robust) / 2}


def _teacher(run: _Run, name: str) -> Tree:
    """Parameters of a teacher trained on clean or on attacked inputs, for every seed."""
    net, steps = run.teacher, run.config.teacher_steps
    optimizer = optax.adam(optax.cosine_decay_schedule(run.config.learning_rate, steps))

    def loss_fn(params: Tree, extra: Tree, batch: Batch, key: PRNGKeyArray) -> LossOutput:
        inputs = net.attack(key, params, batch, 5) if name == "robust_teacher" else batch["inputs"]
        return LossOutput(classification.cross_entropy(net.apply(params, inputs), batch["labels"]), extra=extra)

    def start(key: PRNGKeyArray) -> TrainState:
        return init_state(net.init(key), None, optimizer, key=key)

    state, _ = run.fit(name, make_step(loss_fn, optimizer), jax.jit(jax.vmap(start))(run.keys), steps)
    return state.params


def _student(run: _Run, name: str, teachers: dict[str, Tree]) -> tuple[Tree, dict[str, np.ndarray]]:
    """Parameters of the student of a method, for every seed, and the course of its balances `[seeds, steps]`."""
    config, method = run.config, METHODS[name]
    falling = functools.partial(optax.cosine_decay_schedule, decay_steps=config.steps)
    optimizer = optax.adam(falling(config.learning_rate))
    loss = distillation.batch_mtard(
        weight_rate=falling(config.weight_rate) if method.weights else 0.0,
        temperature_rate=falling(config.temperature_rate) if method.temperatures else 0.0,
    )

    def loss_fn(params: Tree, extra: Tree, batch: Batch, key: PRNGKeyArray) -> LossOutput:
        attacked = run.student.attack(key, params, batch, 10)
        signals = {
            "student_logits": run.student.apply(params, batch["inputs"]),
            "attacked_student_logits": run.student.apply(params, attacked),
            "teacher_logits": run.teacher.apply(extra[method.clean_teacher], batch["inputs"]),
            "attacked_teacher_logits": run.teacher.apply(extra["robust_teacher"], attacked),
        }
        return LossOutput(signals=signals, extra=extra)

    def start(key: PRNGKeyArray, teachers: Tree) -> TrainState:
        return init_state(run.student.init(key), teachers, optimizer, key=key, loss=loss)

    step = make_step(loss_fn, optimizer, loss=loss)

    def measured(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        new, metrics = step(state, batch)
        robust, clean = new.loss_state.teachers.temperatures
        balances = {"weight": new.loss_state.losses.weights[0], "robust_temperature": robust, "temperature": clean}
        return new, metrics | balances

    state, metrics = run.fit(name, measured, jax.jit(jax.vmap(start))(run.keys, teachers), config.steps)
    return state.params, {course: metrics[course] for course in COURSES}


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains the two teachers, and the student of each method from them."""
    context = harness.Context() if context is None else context
    halves = zip(*(_halves(seed) for seed in config.seed_numbers.tolist()), strict=True)
    train, test = ({name: jnp.stack([half[name] for half in side]) for name in side[0]} for side in halves)
    values: dict[str, dict[str, np.ndarray]] = {}
    curves: dict[str, np.ndarray] = {}
    with context.bar(2 * config.teacher_steps + len(config.chosen) * config.steps) as inner:
        shared = _Run(
            config,
            inner,
            train,
            test,
            keys=jax.vmap(jax.random.key)(jnp.asarray(config.seed_numbers)),
            teacher=_Net((config.teacher_width, config.teacher_width), config.eps),
            student=_Net((config.width,), config.eps),
        )
        teachers = {}
        for name in TEACHERS:
            teachers[name] = _teacher(shared, name)
            scores = shared.scores(shared.teacher, teachers[name])
            curves |= {f"{metric}/{name}": numbers for metric, numbers in scores.items()}
        for name in config.chosen:
            params, courses = _student(shared, name, teachers)
            values[name] = shared.scores(shared.student, params)
            curves |= {f"{course}/{name}": numbers for course, numbers in courses.items()}
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Left: accuracy against robustness. Right: the course of weights and temperatures."""
    colors = dict(zip(METHODS, figures.PALETTE, strict=False))
    with figures.figure(9.6, 3.7) as drawn:
        left, *right = drawn.subplots(1, 3, width_ratios=[1.5, 1, 1])
        for name, label in TEACHERS.items():
            x, y = (100 * results.curves[f"{metric}/{name}"].mean() for metric in ("clean", "robust"))
            left.plot(x, y, marker="*", color="#7F7F7F", markersize=9, linestyle="")
            left.annotate(
                label, (x, y), (-7, 0), textcoords="offset points", color="#555555", fontsize=8, ha="right", va="center"
            )
        for marker, (name, values) in zip(figures.MARKERS, results.values.items(), strict=False):
            (x, *across), (y, *along) = (
                [100 * number for number in results.interval(name, metric)] for metric in ("clean", "robust")
            )
            spread = {"xerr": [[x - across[0]], [across[1] - x]], "yerr": [[y - along[0]], [along[1] - y]]}
            mean = 100 * values["mean"].mean()
            left.errorbar(
                x, y, **spread, color=colors[name], marker=marker, capsize=2, linewidth=1.2,
                linestyle="", label=f"{results.label(name)}: mean of both {mean:.1f}%",
            )  # fmt: skip
        left.legend(loc="lower left")
        left.set(xlabel="accuracy on clean inputs, %", ylabel="accuracy under attack, %")
        left.set_title("Students (dots) and their teachers (stars)")
        for axes, courses in zip(right, (("weight",), ("temperature", "robust_temperature")), strict=True):
            for name in results.values:
                for course in courses:
                    numbers = results.curves[f"{course}/{name}"]
                    line = figures.band(axes, np.arange(1, numbers.shape[1] + 1), numbers, label="", color=colors[name])
                    line.set_linestyle("--" if course == "robust_temperature" else "-")
            axes.set_xlabel("step")
        right[0].set_title("Weight of attacked inputs")
        right[1].set_title("Temperatures of the teachers:\nclean (solid), robust (dashed)")
    return drawn


if __name__ == "__main__":
    harness.main("robust_distillation", config=Config, run=run, draw=draw)
