"""When does temperature scaling fail?

Where classes overlap, a network that fits every label is sure and wrong, and one temperature cannot take its confidence
from the pair of classes that share an input without handing it to all others. In pairs of Gaussian classes with a
common part (`envs.overlapping_classes`) the true probabilities are known. More classes and more overlap are tried, with
as many examples. Compared are the interpolating network as it is and at the best temperature for held-out examples,
mixtures of two and of four examples, which no temperature follows, smooth labels and self-distillation. A seed draws
the classes, the examples, the initial parameters and the order of the batches.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import overlapping_classes as world
from experiments.harness import figures
from reweight import models, schedules
from reweight.estimators.calibration import fit_temperature
from reweight.losses import BatchLoss
from reweight.losses.classification import cross_entropy, ps_kd
from reweight.metrics import calibration
from reweight.regularizers.mixup import d_mixup
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = ["CELLS", "CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

CLASSES, FEATURES, RADIUS = 32, 16, 6.0
WIDTHS = (64, 64)


class Cell(NamedTuple):
    """How many classes there are, and the share of examples that two of them have in common."""

    classes: int
    overlap: float

    def metric(self, name: str) -> str:
        """The name of a metric here."""
        return f"{name}_{self.classes}_{self.overlap:g}"


HARDEST = Cell(CLASSES, 0.6)
CELLS = (Cell(2, 0.6), Cell(8, 0.6), HARDEST, Cell(CLASSES, 0.3), Cell(CLASSES, 0.0))


class Method(NamedTuple):
    """The name in the figure, how many examples make one, and whose network it scales or what it trains otherwise."""

    label: str
    d: int = 1
    smoothing: float = 0.0  # the share of a label that all classes get alike
    scales: str | None = None
    distils: bool = False


METHODS: dict[str, Method] = {
    "cross_entropy": Method("cross-entropy"),
    "temperature": Method("+ temperature", scales="cross_entropy"),
    "mixup": Method("mixup", d=2),
    "mixup_4": Method("mixup of 4", d=4),
    "label_smoothing": Method("label smoothing", smoothing=0.1),
    "ps_kd": Method("PS-KD", distils=True),
    "truth": Method("true probabilities"),
}

METRICS = (
    *(
        metric
        for cell in CELLS
        for table in (f"{cell.classes} classes, overlap {cell.overlap:g}",)
        for metric in (
            harness.Metric(cell.metric("nll"), "NLL", "lower", digits=3, table=table),
            harness.Metric(cell.metric("ece"), "ECE", "lower", percent=True, digits=1, table=table),
            harness.Metric(cell.metric("ace"), "ACE", "lower", percent=True, digits=1, table=table),
            harness.Metric(cell.metric("aurc"), "AURC", "lower", percent=True, digits=1, table=table),
            harness.Metric(cell.metric("accuracy"), "accuracy", percent=True, digits=1, table=table),
        )
    ),
    harness.Metric("growth", "NLL of 32 classes less that of 2", "lower", digits=3, table="overlap 0.6"),
    harness.Metric("aurc", "AURC", "lower", percent=True, digits=2, table="mean where classes overlap"),
)

_OVERLAP = "Chidambaram and Ge 2023, arXiv 2306.00740"
_PS_KD = "Kim et al. 2021, arXiv 2006.12000"
_GUO = "Guo et al. 2017, arXiv 1706.04599"
CLAIMS = (
    harness.Claim(_OVERLAP, "mixup", "temperature", HARDEST.metric("nll"), "lower"),
    harness.Claim(_OVERLAP, "mixup", "temperature", HARDEST.metric("ece"), "lower"),
    harness.Claim(_OVERLAP, "mixup", "temperature", HARDEST.metric("ace"), "lower"),
    harness.Claim(_OVERLAP, "mixup", "temperature", "growth", "lower"),
    harness.Claim(_OVERLAP, "mixup_4", "temperature", HARDEST.metric("nll"), "lower"),
    harness.Claim(_OVERLAP, "mixup_4", "temperature", HARDEST.metric("ece"), "lower"),
    harness.Claim(_OVERLAP, "mixup_4", "temperature", "growth", "lower"),
    harness.Claim(_GUO, "temperature", "cross_entropy", HARDEST.metric("nll"), "lower"),
    harness.Claim(_GUO, "temperature", "cross_entropy", HARDEST.metric("ece"), "lower"),
    *(
        claim
        for than in ("cross_entropy", "label_smoothing")
        for claim in (
            harness.Claim(_PS_KD, "ps_kd", than, HARDEST.metric("nll"), "lower"),
            harness.Claim(_PS_KD, "ps_kd", than, HARDEST.metric("ece"), "lower"),
            harness.Claim(_PS_KD, "ps_kd", than, "aurc", "lower"),
            harness.Claim(_PS_KD, "ps_kd", than, HARDEST.metric("accuracy")),
        )
    ),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The size of the problem and the budget."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 8
    examples: int = 512
    """Training examples, for any number of classes; a quarter as many are held out for the temperature."""
    test_examples: int = 2000
    """Test examples."""
    steps: int = 800
    """Training steps; enough to fit all labels."""
    batch_size: int = 64
    """Examples a step."""
    learning_rate: float = 5e-3
    """The learning rate of Adam at the start; it falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("examples", "test_examples", "steps", "batch_size", low=4)
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("cross_entropy", "temperature"), examples=64, test_examples=100, steps=8)


class Sets(NamedTuple):
    """What a seed draws in every cell, with the cells on the axis after the examples."""

    train: world.Examples
    held_out: world.Examples
    test: world.Examples
    truth: Float[Array, "cells n classes"]  # logarithms of the true probabilities of the test labels


@dataclasses.dataclass(frozen=True)
class _Keys:
    """A seed's keys."""

    data: PRNGKeyArray
    model: PRNGKeyArray
    run: PRNGKeyArray

    @classmethod
    def of(cls, seed: Int[Array, ""]) -> Self:
        return cls(*jax.random.split(jax.random.key(seed), 3))


def _sets(seed: Int[Array, ""], config: Config) -> Sets:
    of_centres, *of_sets = jax.random.split(_Keys.of(seed).data, 4)
    centres = world.centres(of_centres, classes=CLASSES, features=FEATURES, radius=RADIUS)

    def cell(classes: Array, overlap: Array) -> tuple[world.Examples, world.Examples, world.Examples, Array]:
        sizes = (config.examples, config.examples // 4, config.test_examples)
        train, held_out, test = (
            world.sample(key, centres, overlap, n, present=classes) for key, n in zip(of_sets, sizes, strict=True)
        )
        return train, held_out, test, world.log_posterior(test.inputs, centres, overlap, present=classes)

    classes, overlaps = (jnp.array(column) for column in zip(*CELLS, strict=True))
    return Sets(*jax.vmap(cell)(classes, overlaps))


def _network(key: PRNGKeyArray) -> models.Functional:
    return models.functional(models.build("mlp", (FEATURES,), CLASSES, key=key, widths=WIDTHS))


def _initial(seed: Int[Array, ""]) -> Any:
    """The parameters of a seed: one network a cell, all from the same start."""
    keys = jnp.broadcast_to(_Keys.of(seed).model, (len(CELLS),))
    return jax.vmap(lambda key: _network(key).params)(keys)


def _logits(params: Any, inputs: Float[Array, "cells n features"]) -> Float[Array, "cells n classes"]:
    """The logits of every cell's network, -1e4 for classes that the cell does not have."""
    apply = _network(jax.random.key(0)).apply
    logits = jax.vmap(lambda params, inputs: apply(params, {}, inputs)[0])(params, inputs)
    return jnp.where(_present()[:, None], logits, -1e4)


def _present() -> Bool[Array, "cells classes"]:
    """Which classes there are in a cell."""
    return jnp.arange(CLASSES) < jnp.array([cell.classes for cell in CELLS])[:, None]


def _train(name: str, config: Config, context: harness.Context, train: world.Examples) -> Any:
    """The trained parameters `[seeds, cells, ...]`; the networks share nothing but a sum of losses."""
    method, cells = METHODS[name], len(CELLS)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    loss: BatchLoss | None = None
    if method.distils:
        per_epoch = config.examples // config.batch_size
        share = schedules.epoch_ramp(0.8, -(-config.steps // per_epoch), per_epoch)  # 0.8 as in the paper
        loss = ps_kd(config.examples * cells, CLASSES, share=share)

    def loss_fn(params: Any, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del extra
        inputs, targets = batch["inputs"], jax.nn.one_hot(batch["labels"], CLASSES)
        evenly = _present() / jnp.sum(_present(), axis=1, keepdims=True)
        targets += method.smoothing * (evenly - targets)
        inputs, targets = d_mixup(key, inputs, targets, d=method.d)
        logits = jnp.moveaxis(_logits(params, jnp.moveaxis(inputs, 1, 0)), 0, 1).reshape(-1, CLASSES)
        if loss is None:
            return LossOutput(cross_entropy(logits, targets.reshape(-1, CLASSES)))
        rows = batch["indices"][:, None] * cells + jnp.arange(cells)
        return LossOutput(None, {"logits": logits, "labels": batch["labels"].ravel(), "indices": rows.ravel()})

    def start(seed: Int[Array, ""]) -> TrainState:
        return init_state(_initial(seed), {}, optimizer, key=_Keys.of(seed).run, loss=loss)

    seeds = jnp.asarray(config.seed_numbers)
    state, _ = harness.train_seeds(
        name,
        make_step(loss_fn, optimizer, loss=loss),
        jax.jit(jax.vmap(start))(seeds),
        {field: jnp.moveaxis(x, 1, 2) for field, x in train._asdict().items()},
        jax.vmap(lambda seed: _Keys.of(seed).run)(seeds),
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        mesh=config.mesh,
    )
    return state.params


def _scores(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> tuple[dict[str, Array], calibration.Bins]:
    top = calibration.top_label(jax.nn.softmax(logits), labels)
    bins = calibration.confidence_bins(*top)
    return {
        "nll": jnp.mean(cross_entropy(logits, labels)),
        "ece": calibration.ece(bins),
        "ace": calibration.ace(bins),
        "aurc": calibration.aurc(*top),
        "accuracy": jnp.mean(top.correct),
    }, bins


def _numbers(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores `[seeds, cells]` by the names of the metrics."""
    values = {
        cell.metric(name): np.asarray(x[:, i], np.float64) for name, x in scores.items() for i, cell in enumerate(CELLS)
    }
    values["aurc"] = np.mean([values[cell.metric("aurc")] for cell in CELLS if cell.overlap > 0], axis=0)
    values["growth"] = values[HARDEST.metric("nll")] - values[CELLS[0].metric("nll")]
    return values


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains the networks of every method in all cells and scores them on fresh examples."""
    context = harness.Context() if context is None else context
    sets = jax.jit(jax.vmap(lambda seed: _sets(seed, config)))(jnp.asarray(config.seed_numbers))
    over_seeds_and_cells: Callable[..., Any] = jax.jit(jax.vmap(jax.vmap(_scores)))
    outputs = jax.jit(jax.vmap(_logits))
    values: dict[str, dict[str, np.ndarray]] = {}
    curves: dict[str, np.ndarray] = {}
    trained: dict[str, Any] = {}
    networks = dict.fromkeys(METHODS[name].scales or name for name in config.chosen if name != "truth")
    with context.bar(len(networks) * config.steps) as inner:
        for name in networks:
            trained[name] = _train(name, config, inner, sets.train)
    for name in config.chosen:
        if name == "truth":
            logits = sets.truth
        else:
            params = trained[METHODS[name].scales or name]
            logits = outputs(params, sets.test.inputs)
            curves[f"fitted/{name}"] = np.mean(
                np.argmax(outputs(params, sets.train.inputs), axis=-1) == sets.train.labels, axis=-1
            )
        if METHODS[name].scales:
            held_out = outputs(params, sets.held_out.inputs)
            temperatures = jax.jit(jax.vmap(jax.vmap(fit_temperature)))(held_out, sets.held_out.labels)
            logits = logits / temperatures[..., None, None]
            curves["temperatures"] = np.asarray(temperatures)
        scores, bins = over_seeds_and_cells(logits, sets.test.labels)
        values[name] = _numbers(scores)
        curves |= {f"bins/{name}/{field}": np.asarray(x) for field, x in bins._asdict().items()}
    return harness.Results.of(config, values, curves)


def _draw_curve(axes: Axes, results: harness.Results, cells: list[Cell], at: Sequence[float], name: str) -> None:
    for method, color, marker in zip(METHODS, figures.PALETTE, figures.MARKERS, strict=False):
        if method in results.values:
            found = [results.interval(method, cell.metric(name)) for cell in cells]
            figures.points(axes, at, found, color=color, marker=marker, linewidth=1.4, label=results.label(method))


def _draw_reliability(axes: Axes, results: harness.Results) -> None:
    cell = CELLS.index(HARDEST)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    for method, color, marker in zip(METHODS, figures.PALETTE, figures.MARKERS, strict=False):
        if method in results.values and method != "truth":
            sums = {f: results.curves[f"bins/{method}/{f}"][:, cell].sum(axis=0) for f in calibration.Bins._fields}
            some = sums["examples"] > 0.002 * sums["examples"].sum()
            count = sums["examples"][some]
            axes.plot(sums["confidence"][some] / count, sums["correct"][some] / count, color=color, marker=marker)
    axes.set(xlabel="confidence", ylabel="accuracy")
    axes.set_title(f"Reliability: {HARDEST.classes} classes, overlap {HARDEST.overlap:g}")


def draw(results: harness.Results) -> Figure:
    """NLL against the number of classes and against overlap, and how often confidence is right in the hardest cell.

    That a temperature does no better than equal probabilities is said of the limit of many classes: the dashed line
    shows how far off that is.
    """
    many = [cell for cell in CELLS if cell.overlap == HARDEST.overlap]
    overlapping = sorted((cell for cell in CELLS if cell.classes == CLASSES), key=lambda cell: cell.overlap)
    with figures.figure(10.2, 3.7) as drawn:
        left, middle, right = drawn.subplots(1, 3)
        classes = [cell.classes for cell in many]
        _draw_curve(left, results, many, classes, "nll")
        left.plot(classes, np.log(classes), color="#999999", linestyle="--", label="equal probabilities")
        left.set_xscale("log", base=2)
        left.set_xticks(classes, [str(number) for number in classes])
        left.set(xlabel="classes", ylabel="NLL, nats")
        left.set_title(f"More classes, overlap {HARDEST.overlap:g}")
        _draw_curve(middle, results, overlapping, [cell.overlap for cell in overlapping], "nll")
        middle.set(xlabel="overlap", ylabel="NLL, nats")
        middle.set_title(f"More overlap, {CLASSES} classes")
        _draw_reliability(right, results)
        handles, labels = left.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=(len(labels) + 1) // 2)
    return drawn


if __name__ == "__main__":
    harness.main("calibration", config=Config, run=run, draw=draw)
