"""What is forgotten when classes arrive one task after another?

Ten digits come in five tasks of two; a network sees the examples of the current task, and at most ten it has kept of
each earlier class. Trained on by plain cross-entropy it calls everything a new class. Compared are kept examples
(replay), the old model's probabilities as targets (distillation), both, both with the head's weights aligned after each
task, and prototypes that follow the features without any kept example. Data, steps and augmentation are the same for
all; a seed draws the order of the digits, the examples, the initial parameters and the batches. Accuracy is that among
all classes so far, or, where the task of a test example is told, among the two of its task; "after each" is the mean
over the ends of all tasks but the first.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import digit_tasks, incremental_tasks
from experiments.envs.digit_tasks import CLASSES
from experiments.envs.incremental_tasks import PER_TASK, TASKS, Kind, Part, Past
from experiments.harness import figures
from reweight.metrics import continual as metrics
from reweight.train import TrainState

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Tree = Any  # a pytree of arrays


class Method(NamedTuple):
    """The name in the figure, whether examples are kept, old classes distilled and weights aligned, and what predicts.

    That is a head of weights of any sign, one of weights that are not negative, or prototypes.
    """

    label: str
    replay: bool = False
    distil: bool = False
    align: bool = False
    kind: Kind = "any_sign"


METHODS: dict[str, Method] = {
    "finetune": Method("fine-tuning"),
    "lwf": Method("distillation", distil=True),
    "replay": Method("replay", replay=True),
    "kd": Method("replay + distillation", replay=True, distil=True),
    # Aligned as in the code of a peer, and with weights that are held non-negative, as in the paper.
    "kd_aligned": Method("… aligned", replay=True, distil=True, align=True),
    "kd_positive": Method("… non-negative", replay=True, distil=True, kind="non_negative"),
    "weight_aligning": Method("… both", replay=True, distil=True, align=True, kind="non_negative"),
    "drifting": Method("prototypes left behind", kind="prototypes"),
    "prd": Method("prototypes that follow", distil=True, kind="prototypes"),
}

METRICS = (
    harness.Metric("accuracy", "at the end", percent=True, digits=1),
    harness.Metric("old", "old classes", percent=True, digits=1),
    harness.Metric("new", "new classes", percent=True, digits=1),
    harness.Metric("worst", "worst case", percent=True, digits=1),
    harness.Metric("incremental", "after each task", percent=True, digits=1),
    harness.Metric("bias", "new − old after each", "lower", percent=True, digits=1),
    harness.Metric("told", "task told, after each", percent=True, digits=1),
    harness.Metric("forgotten", "forgotten, task told", "lower", percent=True, digits=1),
    harness.Metric("lengths", "new / old weights", None, digits=2),
    harness.Metric("cosine", "old prototypes · class means", digits=3),
)

_ZHAO = functools.partial(harness.Claim, "Zhao et al. 2019, arXiv 1911.07053")
_ASADI = functools.partial(harness.Claim, "Asadi et al. 2023, arXiv 2303.14771")
CLAIMS = (
    _ZHAO("weight_aligning", "kd", "incremental"),
    _ZHAO("weight_aligning", "kd", "bias", "lower"),
    _ZHAO("weight_aligning", "kd_positive", "incremental"),
    _ZHAO("weight_aligning", "kd_aligned", "incremental"),
    _ASADI("prd", "lwf", "told"),
    _ASADI("prd", "replay", "told"),
    _ASADI("prd", "drifting", "told"),
    _ASADI("prd", "lwf", "incremental"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Budget and sizes."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    steps: int = 100
    """Training steps of a task."""
    batch_size: int = 64
    """Examples a step, kept ones included."""
    kept: int = 10
    """Examples kept of each class."""
    width: int = 64
    """Units of each of the two hidden layers."""
    learning_rate: float = 3e-3
    """Of Adam, which starts anew with each task."""
    prototype_rate: float = 0.3
    """Of plain gradient descent on the prototypes."""
    eval_every: int = 5
    """Steps between two evaluations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "batch_size", "kept", "width", "eval_every")
        self.check_positive("learning_rate", "prototype_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("weight_aligning", "prd"), steps=4, batch_size=16, eval_every=2)


@jax.jit
@jax.vmap
def _keys(seed: Array) -> PRNGKeyArray:
    """Keys of the initial parameters, of the runs and of the orders of the data, one a task."""
    return jax.random.split(jax.random.key(seed), (3, TASKS))


class Learned(NamedTuple):
    """Accuracies at every evaluation `[seeds, times, tasks]`, the task in training then, and the last state."""

    accuracy: np.ndarray
    told: np.ndarray
    current: np.ndarray
    state: TrainState


def _ends(current: np.ndarray) -> np.ndarray:
    """Where the evaluation at the end of each task stands."""
    return np.flatnonzero(np.append(np.diff(current), 1))


def _scores(learned: Learned, images: Array, prototypes: bool) -> dict[str, np.ndarray]:
    end = learned.accuracy[:, -1]
    ends = _ends(learned.current)[1:]  # those at which there is something old

    def after_each(accuracies: np.ndarray, of_known: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.mean([of_known(accuracies[:, at, : task + 2]) for task, at in enumerate(ends)], axis=0)

    current = jnp.asarray(learned.current)
    forgotten = jax.vmap(metrics.average_forgetting, (0, None))(jnp.asarray(learned.told), current)[:, -1]
    worst = jax.vmap(metrics.wc_acc, (0, None))(jnp.asarray(learned.accuracy), current)[:, -1]
    scores = {
        "accuracy": end.mean(axis=1),
        "old": end[:, :-1].mean(axis=1),
        "new": end[:, -1],
        "worst": worst,
        "incremental": after_each(learned.accuracy, lambda a: a.mean(axis=1)),
        "bias": after_each(learned.accuracy, lambda a: a[:, -1] - a[:, :-1].mean(axis=1)),
        "told": after_each(learned.told, lambda a: a.mean(axis=1)),
        "forgotten": forgotten,
    }
    params = learned.state.params
    scores |= (
        {"cosine": incremental_tasks.cosine(params, images)}
        if prototypes
        else {"lengths": incremental_tasks.lengths(params)}
    )
    return {name: np.asarray(values, np.float64) for name, values in scores.items()}


def _weight(method: Method, share: float) -> np.float32:
    """The weights of the papers, given the share of old classes: without kept examples both terms count alike."""
    if not method.distil or share == 0:
        return np.float32(0)
    return np.float32(4 if method.kind == "prototypes" else share if method.replay else 0.5)


def _learn(name: str, config: Config, part: Part, images: Array, orders: Array, context: harness.Context) -> Learned:
    """Goes through the tasks. `images` are those of each class `[seeds, classes, n, pixels]`."""
    method = METHODS[name]
    keys = _keys(jnp.asarray(config.seed_numbers))
    params = incremental_tasks.initial(keys[:, 0, 0], config.width)
    memory = jnp.zeros((config.seeds, CLASSES, config.kept, images.shape[-1]))
    accuracies: dict[str, list[np.ndarray]] = {"accuracy": [], "told": []}
    for task in range(TASKS):
        old, known = np.arange(CLASSES) < task * PER_TASK, np.arange(CLASSES) < (task + 1) * PER_TASK
        new = known & ~old
        past = Past(params, old, known, _weight(method, old.sum() / known.sum()), orders)
        state, measured = harness.train_seeds(
            f"{name}-{task + 1}",
            part.step,
            part.begin(params, past, keys[:, 1, task]),
            incremental_tasks.examples(
                images[:, new], memory, np.flatnonzero(new), old if method.replay else np.zeros_like(old)
            ),
            keys[:, 2, task],
            batch_size=config.batch_size,
            num_steps=config.steps,
            context=context,
            stacked_arrays=True,
            chunks=1,
            eval_fn=part.evaluate,
            eval_every=config.eval_every,
            mesh=config.mesh,
        )
        params = state.params
        if method.align and task:
            params = params | {"head": incremental_tasks.aligned(params["head"], new, known)}
        if method.replay:
            memory = memory.at[:, new].set(incremental_tasks.exemplars(params, images[:, new], config.kept))
        state = state.replace(params=params)
        # What counts at the end of a task is the model as it goes into the next one.
        last = part.evaluate_all(state)
        for kind, values in accuracies.items():
            values.append(np.concatenate([measured[kind], np.asarray(last[kind])[:, None]], axis=1))
    times = accuracies["told"][0].shape[1]
    joined = {kind: np.concatenate(values, axis=1) for kind, values in accuracies.items()}
    return Learned(**joined, current=np.repeat(np.arange(TASKS), times), state=state)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Takes every method through the tasks, over all seeds at once."""
    context = harness.Context() if context is None else context
    digits = np.stack([np.random.default_rng([seed, 0]).permutation(CLASSES) for seed in config.seed_numbers])
    images = jnp.stack([
        digit_tasks.by_class(seed, order) for seed, order in zip(config.seed_numbers, digits, strict=True)
    ])  # fmt: skip
    orders = jnp.asarray(np.argsort(digits, axis=1), jnp.int32)
    parts: dict[Kind, Part] = {
        kind: incremental_tasks.part(kind, learning_rate=config.learning_rate, prototype_rate=config.prototype_rate)
        for kind in get_args(Kind)
    }
    values, curves = {}, {}
    with context.bar(len(config.chosen) * config.steps * TASKS) as inner:
        for name in config.chosen:
            kind = METHODS[name].kind
            learned = _learn(name, config, parts[kind], images, orders, inner)
            values[name] = _scores(learned, images, kind == "prototypes")
            curves[f"accuracy/{name}"], curves[f"told/{name}"] = learned.accuracy, learned.told
            curves["current"] = learned.current
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Left: accuracy among the classes so far, step by step. Middle: old and new classes. Right: with the task told."""
    names, current = list(results.values), results.curves["current"]
    times = np.arange(len(current)) / (len(current) / TASKS) + 1
    with figures.figure(10.4, 3.9) as drawn:
        left, middle, right = drawn.subplots(1, 3, width_ratios=[1.5, 1, 1.25])
        for i, name in enumerate(names):
            color, marker = figures.PALETTE[i], figures.MARKERS[i]
            curve = results.curves[f"accuracy/{name}"]
            known = np.arange(TASKS) <= current[:, None]
            among_known = np.where(known, curve, 0).sum(axis=2) / known.sum(axis=1)
            left.plot(times, 100 * among_known.mean(axis=0), color=color, linewidth=1.3)
            for at, metric in enumerate(("old", "new")):
                fill = color if at else "white"
                found = results.interval(name, metric)
                figures.interval(middle, found, i, color=color, marker=marker, scale=100, markerfacecolor=fill)
            told = results.curves[f"told/{name}"][:, _ends(current)]
            so_far = [100 * told[:, k, : k + 1].mean() for k in range(TASKS)]
            right.plot(np.arange(1, TASKS + 1), so_far, color=color, marker=marker)
        left.set(xlabel="task", ylabel="accuracy among the classes so far, %")
        left.set_xticks(np.arange(TASKS) + 1.5, [str(task + 1) for task in range(TASKS)])
        left.tick_params(axis="x", length=0)
        left.grid(axis="x", visible=False)
        for start in range(2, TASKS + 1):
            left.axvline(start, color="#e6e6e6", linewidth=0.6, zorder=0)
        left.set_title("Accuracy drops whenever a task begins")
        figures.name_rows(middle, [results.label(name) for name in names])
        middle.set(xlabel="accuracy at the end, %", title="Old (open) and new classes")
        right.set(xlabel="after task", xticks=range(1, TASKS + 1), ylabel="accuracy within the task, %")
        right.set_title("When the task is told")
    return drawn


if __name__ == "__main__":
    harness.main("class_incremental", config=Config, run=run, draw=draw)
