"""What helps the rare classes?

The training set has an exponential long tail; in the test set all classes are as frequent. Plain cross-entropy is
compared with weights by class frequency (inverse, effective number), weights by loss (focal, KL-DRO, CVaR-DRO, Group
DRO with the classes as groups) and a loss that knows the frequencies (logit adjustment). Model, budget, learning rate
and seeds are the same for all; a seed draws the training subset, the initial parameters and the order of the batches.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight import _checks, weights
from reweight.losses import classification

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Logits = Float[Array, "batch classes"]
Labels = Int[Array, " batch"]
Counts = Float[Array, " classes"]


def _cross_entropy(logits: Logits, labels: Labels, counts: Counts) -> Float[Array, " batch"]:
    del counts
    return classification.cross_entropy(logits, labels)


def _focal(logits: Logits, labels: Labels, counts: Counts) -> Float[Array, " batch"]:
    del counts
    return classification.focal_loss(logits, labels, gamma=2.0)


def _logit_adjusted(logits: Logits, labels: Labels, counts: Counts) -> Float[Array, " batch"]:
    return classification.logit_adjusted_cross_entropy(logits, labels, class_counts=counts, tau=1.0)


class Method(NamedTuple):
    """A loss and a weighting, both made with the class counts of the training set, and the name in the figure."""

    label: str
    loss: Callable[[Logits, Labels, Counts], Float[Array, " batch"]] = _cross_entropy
    weighting: Callable[[Counts], weights.Weighting] = lambda counts: weights.uniform()


# Focal loss, Group DRO and logit adjustment have the values of their papers. Where a paper leaves a choice, beta =
# 0.999 did best on examples held out of the training split; temperature 1, alpha = 0.2 and the learning rate of all
# come from early trials on other splits of the same digits, and did as well as their neighbours on the held-out
# examples.
METHODS: dict[str, Method] = {
    "cross_entropy": Method("cross-entropy"),
    "inverse_frequency": Method("inverse frequency", weighting=weights.inverse_frequency),
    "effective_number": Method("effective number", weighting=lambda counts: weights.class_balanced(counts, beta=0.999)),
    "focal": Method("focal", loss=_focal),
    "kl_dro": Method("KL-DRO", weighting=lambda counts: weights.kl_dro(temperature=1.0)),
    "cvar_dro": Method("CVaR-DRO", weighting=lambda counts: weights.cvar_dro(alpha=0.2)),
    "group_dro": Method(
        "Group DRO", weighting=lambda counts: weights.group_dro(len(counts), step_size=0.01, signal="labels")
    ),
    "logit_adjustment": Method("logit adjustment", loss=_logit_adjusted),
}

METRICS = (
    harness.Metric("balanced_accuracy", "balanced accuracy", percent=True, digits=1),
    harness.Metric("worst_class_accuracy", "worst class", percent=True, digits=1),
    harness.Metric("tail_accuracy", "rarest third", percent=True, digits=1),
    harness.Metric("head_accuracy", "most frequent third", percent=True, digits=1),
    harness.Metric("accuracy", "accuracy at training frequencies", percent=True, digits=1),
)

CLAIMS = (
    harness.Claim("Menon et al. 2021, arXiv 2007.07314", "logit_adjustment", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Menon et al. 2021, arXiv 2007.07314", "logit_adjustment", "effective_number", "balanced_accuracy"),
    harness.Claim("Cui et al. 2019, arXiv 1901.05555", "effective_number", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Lin et al. 2017, arXiv 1708.02002", "focal", "cross_entropy", "balanced_accuracy"),
    harness.Claim("Li et al. 2020, arXiv 2007.01162", "kl_dro", "cross_entropy", "tail_accuracy"),
    harness.Claim("Levy et al. 2020, arXiv 2010.05893", "cvar_dro", "cross_entropy", "tail_accuracy"),
    harness.Claim("Sagawa et al. 2019, arXiv 1911.08731", "group_dro", "cross_entropy", "worst_class_accuracy"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.ClassifierConfig):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

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


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method over all seeds and scores it on the balanced test set."""
    context = harness.Context() if context is None else context
    values, curves = {}, {}
    with context.bar(len(config.chosen) * config.total_steps) as inner:
        problem = harness.Problem(config, inner, variant={"long_tail": config.ratio})
        counts = np.array(problem.info.class_counts, np.float32)
        for name in config.chosen:
            method = METHODS[name]
            outcome = problem.train(
                name,
                harness.Training(
                    optimizer=optax.adamw(config.cosine(config.learning_rate), weight_decay=1e-4),
                    loss=lambda logits, labels, m=method: m.loss(logits, labels, jnp.asarray(counts)),  # type: ignore[misc]
                    weighting=method.weighting(jnp.asarray(counts)),
                ),
            )
            values[name] = _scores(outcome.recalls, counts)
            curves[f"recalls/{name}"] = outcome.recalls
    curves["class_counts"] = counts
    return harness.Results(
        experiment="long_tail",
        question=(__doc__ or "").splitlines()[0],
        config=dataclasses.asdict(config),
        metrics=METRICS,
        values=values,
        claims=CLAIMS,
        curves=curves,
        labels={name: method.label for name, method in METHODS.items()},
    )


def draw(results: harness.Results) -> Figure:
    """Left: the recall of each class. Right: what each method changes against the first, paired over the seeds."""
    counts = results.curves["class_counts"]
    by_count = np.argsort(-counts, kind="stable")
    baseline, *_ = methods = list(results.values)
    labels = [results.label(name) for name in methods]
    with figures.figure(9.6, 3.9) as drawn:
        grid = drawn.add_gridspec(1, 4, width_ratios=[1.9, 1, 1, 1])
        left = drawn.add_subplot(grid[0])
        for i, name in enumerate(methods):
            recalls = results.curves[f"recalls/{name}"].mean(axis=0)[by_count]
            width, order = (2.4, 3) if i == 0 else (1.4, 2)
            left.plot(
                counts[by_count], 100 * recalls, zorder=order, linewidth=width,
                color=figures.PALETTE[i], marker=figures.MARKERS[i],
            )  # fmt: skip
        left.set_xscale("log")
        ticks = counts[by_count[np.linspace(0, len(counts) - 1, min(len(counts), 5)).astype(int)]]
        left.set_xticks(ticks, [f"{count:.0f}" for count in ticks])
        left.minorticks_off()
        left.invert_xaxis()
        left.set(xlabel="training examples of the class", ylabel="recall of the class, %")
        left.set_title("Recall falls with the number of examples")
        first = None
        for j, metric in enumerate(METRICS[:3]):
            axes = drawn.add_subplot(grid[1 + j], sharey=first)
            for i, name in enumerate(methods):
                mean, low, high = (100 * x for x in results.difference(name, baseline, metric.name))
                axes.errorbar(
                    mean, i, xerr=[[mean - low], [high - mean]],
                    color=figures.PALETTE[i], marker=figures.MARKERS[i], capsize=2.5, linewidth=1.4,
                )  # fmt: skip
            axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
            axes.set_title(f"{metric.label}\n{labels[0]}: {100 * results.interval(baseline, metric.name).mean:.1f}%")
            axes.set_xlabel("change, points")
            axes.grid(axis="y", visible=False)
            if first is None:
                first = axes
                axes.set_yticks(range(len(methods)), labels)
                axes.invert_yaxis()
                for text, color in zip(axes.get_yticklabels(), figures.PALETTE, strict=False):
                    text.set_color(color)
            else:
                axes.tick_params(axis="y", labelleft=False, length=0)
    return drawn


if __name__ == "__main__":
    harness.main("long_tail", config=Config, run=run, draw=draw)
