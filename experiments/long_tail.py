"""What helps the rare classes?

The training set has an exponential long tail; in the test set all classes are as frequent. Plain cross-entropy is
compared with weights by class frequency (inverse, effective number), weights by loss (focal, KL-DRO, CVaR-DRO, Group
DRO with the classes as groups) and losses that know the frequencies (logit adjustment, LADE, LDAM with weights that set
in late). Model, budget, learning rate and seeds are the same for all; a seed draws the training subset, the initial
parameters and the order of the batches.

A second part asks it of models that bring a long tail with them: features are pre-trained on other frequencies, and a
classifier on them is tuned on a long tail of its own. Which classes suffer, those that were rare in tuning or those
that were rare before, and what helps them: the loss, or other models?
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import foundation
from experiments.harness import figures
from reweight import _checks, merge, weights
from reweight.losses import BatchLoss, classification

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Logits = Float[Array, "batch classes"]
Labels = Int[Array, " batch"]
Counts = Float[Array, " classes"]
Losses = Float[Array, " batch"]


def _per_example(loss: Callable[..., Losses]) -> Callable[[Counts], Callable[[Logits, Labels], Losses]]:
    """A loss that is given the class counts by name, as a function of them."""
    return lambda counts: functools.partial(loss, class_counts=counts)


class Method(NamedTuple):
    """A name for the figure; a loss and a weighting, made with the class counts of the training set; when that sets in.

    `late` is the share of the steps that is taken before, with equal weights.
    """

    label: str
    loss: Callable[[Counts], Callable[[Logits, Labels], Losses] | BatchLoss] = lambda counts: (
        classification.cross_entropy
    )
    weighting: Callable[[Counts], weights.Weighting] = lambda counts: weights.uniform()
    late: float = 0.0


class Tuning(NamedTuple):
    """A loss for classifiers on pre-trained features, the models that these are of, and how several of them count.

    Of `"each"` model the scores are averaged; `"best"` takes the one with the highest test accuracy, seed by seed;
    `"together"` averages the models' predictions.
    """

    label: str
    loss: str
    combine: Literal["each", "best", "together"] = "each"
    models: tuple[int, ...] = tuple(range(foundation.DIFFERENT))


# Focal loss, Group DRO, logit adjustment, LADE and LDAM with late weights have the values of their papers. The scale of
# LDAM, 30, goes with normalised features there; here it did best on examples held out of the training split. Where a
# paper leaves a choice, beta = 0.999 did best on held-out examples; temperature 1, alpha = 0.2 and the learning rate of
# all come from early trials on other splits of the same digits, and did as well as their neighbours on held-out ones.
METHODS: dict[str, Method | Tuning] = {
    "cross_entropy": Method("cross-entropy"),
    "inverse_frequency": Method("inverse frequency", weighting=weights.inverse_frequency),
    "effective_number": Method("effective number", weighting=lambda counts: weights.class_balanced(counts, beta=0.999)),
    "focal": Method("focal", lambda counts: functools.partial(classification.focal_loss, gamma=2.0)),
    "kl_dro": Method("KL-DRO", weighting=lambda counts: weights.kl_dro(temperature=1.0)),
    "cvar_dro": Method("CVaR-DRO", weighting=lambda counts: weights.cvar_dro(alpha=0.2)),
    "group_dro": Method(
        "Group DRO", weighting=lambda counts: weights.group_dro(len(counts), step_size=0.01, signal="labels")
    ),
    "logit_adjustment": Method("logit adjustment", _per_example(classification.logit_adjusted_cross_entropy)),
    "lade": Method("LADE", lambda counts: classification.lade(class_counts=counts)),
    "ldam_deferred": Method(
        "LDAM, late weights",
        _per_example(classification.ldam),
        lambda counts: weights.class_balanced(counts, beta=0.999),
        late=0.8,
    ),
    "tuned": Tuning("cross-entropy", "cross_entropy"),
    "tuned_adjusted": Tuning("logit adjustment", "adjusted"),
    "tuned_generalized": Tuning("adjusted for both tails", "generalized"),
    "tuned_best": Tuning("best of 3 adjusted", "adjusted", "best"),
    "same_together": Tuning("3 pre-trained alike", "adjusted", "together", (0, 3, 4)),
    "backdoor_adjustment": Tuning("3 pre-trained apart", "adjusted", "together"),
}
TUNING_LOSSES: dict[str, Callable[..., Losses]] = {
    "cross_entropy": lambda logits, labels, class_counts, model_prior: classification.cross_entropy(logits, labels),
    "adjusted": lambda logits, labels, class_counts, model_prior: classification.logit_adjusted_cross_entropy(
        logits, labels, class_counts=class_counts
    ),
    "generalized": classification.logit_adjusted_cross_entropy,
}

METRICS = (
    harness.Metric("balanced_accuracy", "balanced accuracy", percent=True, digits=1),
    harness.Metric("worst_class_accuracy", "worst class", percent=True, digits=1),
    harness.Metric("tail_accuracy", "rarest third", percent=True, digits=1),
    harness.Metric("head_accuracy", "most frequent third", percent=True, digits=1),
    harness.Metric("accuracy", "accuracy at training frequencies", percent=True, digits=1),
    *(
        harness.Metric(name, label, percent=True, digits=1, table="models tuned on frequencies other than their own")
        for name, label in (
            ("tuned_accuracy", "balanced accuracy"),
            ("tuning_tail", "rarest third in tuning"),
            ("pretraining_tail", "rarest third in pre-training"),
        )
    ),
)

# The worst class has few test examples, and which class that is differs from seed to seed: where a paper speaks of the
# worst group, or of rare classes, the rarest third is judged.
FOUNDATION = "Chen et al. 2025, arXiv 2501.15955"
CLAIMS = (
    harness.Claim("Menon et al. 2021, arXiv 2007.07314", "logit_adjustment", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Menon et al. 2021, arXiv 2007.07314", "logit_adjustment", "effective_number", "tail_accuracy"),
    harness.Claim("Cui et al. 2019, arXiv 1901.05555", "effective_number", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Lin et al. 2017, arXiv 1708.02002", "focal", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Li et al. 2020, arXiv 2007.01162", "kl_dro", "cross_entropy", "tail_accuracy"),
    harness.Claim("Levy et al. 2020, arXiv 2010.05893", "cvar_dro", "cross_entropy", "tail_accuracy"),
    harness.Claim("Sagawa et al. 2019, arXiv 1911.08731", "group_dro", "cross_entropy", "tail_accuracy"),
    harness.Claim("Hong et al. 2021, arXiv 2012.00321", "lade", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Hong et al. 2021, arXiv 2012.00321", "lade", "logit_adjustment", "balanced_accuracy"),
    harness.Claim("Cao et al. 2019, arXiv 1906.07413", "ldam_deferred", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Cao et al. 2019, arXiv 1906.07413", "ldam_deferred", "effective_number", "tail_accuracy"),
    harness.Claim(FOUNDATION, "tuned_adjusted", "tuned", "tuning_tail"),
    harness.Claim(FOUNDATION, "backdoor_adjustment", "tuned_best", "tuned_accuracy"),
    harness.Claim(FOUNDATION, "backdoor_adjustment", "tuned_adjusted", "pretraining_tail"),
    harness.Claim(FOUNDATION, "backdoor_adjustment", "tuned_generalized", "pretraining_tail"),
    harness.Claim(FOUNDATION, "backdoor_adjustment", "same_together", "pretraining_tail"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.ClassifierConfig):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 8
    ratio: float = 50.0
    """How many times the examples of the rarest class the most frequent one has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.number("experiments.Config", "ratio", self.ratio, low=1, open_high=True)

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("cross_entropy", "group_dro"), steps=40)


def _scores(recalls: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of every seed from its recalls `[seeds, classes]` and the class counts of the training set."""
    third = math.ceil(0.3 * len(counts))
    by_count = np.argsort(-counts, kind="stable")
    return {
        "balanced_accuracy": recalls.mean(axis=1),
        "worst_class_accuracy": recalls.min(axis=1),
        "tail_accuracy": recalls[:, by_count[-third:]].mean(axis=1),
        "head_accuracy": recalls[:, by_count[:third]].mean(axis=1),
        "accuracy": recalls @ (counts / counts.sum()),
    }


def _tail(frequencies: np.ndarray) -> np.ndarray:
    """The rarest third of the classes, as booleans over the last axis."""
    third = math.ceil(0.3 * frequencies.shape[-1])
    return np.argsort(np.argsort(frequencies, axis=-1, kind="stable"), axis=-1) < third


def _tuned_scores(method: Tuning, tuned: foundation.Tuned) -> dict[str, np.ndarray]:
    """The metrics of every seed; the tail of pre-training is each model's own, and averaged over the models."""
    models = list(method.models)
    logits = tuned.logits[method.loss][:, models]
    if method.combine == "together":
        logits = np.asarray(merge.backdoor_adjustment(jnp.moveaxis(logits, 1, 0)))[:, None].repeat(len(models), axis=1)
    right = logits.argmax(axis=-1) == tuned.labels[:, None]
    # As many test examples of each class, in turn.
    recalls = right.reshape(*right.shape[:2], -1, foundation.CLASSES).mean(axis=2)
    tails = {"tuning_tail": _tail(tuned.tuning), "pretraining_tail": _tail(tuned.pretraining[:, models])}
    scores = {"tuned_accuracy": recalls.mean(axis=-1)}
    scores |= {name: np.where(tail, recalls, 0).sum(axis=-1) / tail.sum(axis=-1) for name, tail in tails.items()}
    if method.combine == "best":
        best = scores["tuned_accuracy"].argmax(axis=1)[:, None]
        return {name: np.take_along_axis(score, best, axis=1)[:, 0] for name, score in scores.items()}
    return {name: score.mean(axis=1) for name, score in scores.items()}


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method over all seeds and scores it on the balanced test set; then tunes the pre-trained models."""
    context = harness.Context() if context is None else context
    values, curves = {}, {}
    trained = {name: method for name in config.chosen if isinstance(method := METHODS[name], Method)}
    tuned = {name: method for name in config.chosen if isinstance(method := METHODS[name], Tuning)}
    with context.bar(len(trained) * config.total_steps + (2 * config.steps if tuned else 0)) as inner:
        if trained:
            problem = harness.Problem(config, inner, variant={"long_tail": config.ratio})
            counts = np.array(problem.info.class_counts, np.float32)
            curves["class_counts"] = counts
        for name, method in trained.items():
            weighting = method.weighting(jnp.asarray(counts))
            if method.late:
                weighting = weights.deferred(weighting, start_step=round(method.late * config.steps))
            training = harness.Training(
                optimizer=optax.adamw(config.cosine(config.learning_rate), weight_decay=1e-4),
                loss=method.loss(jnp.asarray(counts)),
                weighting=weighting,
            )
            outcome = problem.train(name, training)
            values[name] = _scores(outcome.recalls, counts)
            curves[f"recalls/{name}"] = outcome.recalls
        if tuned:
            used = {method.loss for method in tuned.values()}
            found = foundation.tune(
                {name: loss for name, loss in TUNING_LOSSES.items() if name in used},
                seeds=config.seed_numbers,
                steps=config.steps,
                batch_size=config.batch_size,
                context=inner,
                mesh=config.mesh,
            )
            values |= {name: _tuned_scores(method, found) for name, method in tuned.items()}
    return harness.Results.of(config, values, curves)


def _draw_recalls(axes: Axes, results: harness.Results, methods: list[str]) -> None:
    counts = results.curves["class_counts"]
    by_count = np.argsort(-counts, kind="stable")
    for i, name in enumerate(methods):
        recalls = results.curves[f"recalls/{name}"].mean(axis=0)[by_count]
        width, order = (2.4, 3) if i == 0 else (1.4, 2)
        axes.plot(
            counts[by_count], 100 * recalls, zorder=order, linewidth=width,
            color=figures.PALETTE[i], marker=figures.MARKERS[i],
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = counts[by_count[np.linspace(0, len(counts) - 1, min(len(counts), 5)).astype(int)]]
    axes.set_xticks(ticks, [f"{count:.0f}" for count in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set(xlabel="training examples of the class", ylabel="recall of the class, %")
    axes.set_title("Recall falls with the number of examples")


def draw(results: harness.Results) -> Figure:
    """Above, digits: the recall of each class, and what each method changes. Below: tuned models, likewise."""
    trained = [name for name in results.values if isinstance(METHODS[name], Method)]
    tuned = [name for name in results.values if isinstance(METHODS[name], Tuning)]
    rows = [methods for methods in (trained, tuned) if methods]
    with figures.figure(9.6, sum(1.2 + 0.28 * len(methods) for methods in rows)) as drawn:
        parts = drawn.subfigures(len(rows), 1, squeeze=False, height_ratios=[4 + len(methods) for methods in rows])
        for part, methods in zip(parts[:, 0], rows, strict=True):
            if methods is trained:
                grid = part.add_gridspec(1, 4, width_ratios=[1.9, 1, 1, 1])
                _draw_recalls(part.add_subplot(grid[0]), results, methods)
                panels = [part.add_subplot(grid[1 + j]) for j in range(3)]
                metrics = METRICS[:3]
            else:
                panels = list(part.subplots(1, 3))
                metrics = METRICS[-3:]
                part.suptitle("Models that were pre-trained on other frequencies", x=0.01, ha="left", fontsize=10)
            for axes, metric in zip(panels, metrics, strict=True):
                figures.changes(axes, results, metric, methods, named=axes is panels[0])
    return drawn


if __name__ == "__main__":
    harness.main("long_tail", config=Config, run=run, draw=draw)
