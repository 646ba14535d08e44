"""What do uncertain pseudo-labels add?

Digits of which four a class have a label, and the others none. A network is trained on the labels alone; on its own
certain predictions too, in the same view (pseudo-labels) or in a harder one (FixMatch); with predictions that are
aligned, so that all classes are predicted as often; and (ShrinkMatch) on its uncertain predictions, after the classes
that it confuses with the most likely one are left out. Model, budget, views and labelled examples are the same for all;
a seed draws the labelled examples, the initial parameters, the views and the order of the batches. Claims are judged on
the test set, as in the papers; accuracy on all 1,797 digits, of which 40 had a label, stands beside it. That
ShrinkMatch uses more of the unlabelled examples is no claim: it leaves out classes until an example is certain.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs.image_views import strong_view, two_heads, weak_view
from experiments.harness import figures
from reweight import _checks, data
from reweight.losses import BatchLoss, semi_supervised
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

CLASSES = 10
ALIGNMENT = semi_supervised.distribution_alignment(CLASSES)


class Method(NamedTuple):
    """How much unlabelled examples count, whether they are trained in the strong view, and the papers' additions."""

    label: str
    unlabelled_weight: float = 1.0
    strong: bool = True
    aligned: bool = False
    shrunk: bool = False

    def loss(self, threshold: float) -> BatchLoss:
        """The objective. Pseudo-labels are hard for all: of the same view, soft ones would have no gradient."""
        alignment = ALIGNMENT if self.aligned else None
        if self.shrunk:
            # The paper's running mean of 1000 steps would not leave its start in a run that is so much shorter.
            return semi_supervised.shrinkmatch(alignment, threshold=threshold, hard=True, decay=0.99)
        return semi_supervised.fixmatch(alignment, threshold=threshold, unlabelled_weight=self.unlabelled_weight)


METHODS: dict[str, Method] = {
    "supervised": Method("labels alone", unlabelled_weight=0.0),
    "pseudo_label": Method("pseudo-labels", strong=False),
    "fixmatch": Method("FixMatch"),
    "fixmatch_aligned": Method("FixMatch, aligned", aligned=True),
    "shrinkmatch": Method("ShrinkMatch", aligned=True, shrunk=True),
}

METRICS = (
    harness.Metric("test_accuracy", "test accuracy", percent=True, digits=1),
    harness.Metric("accuracy", "on all digits", percent=True, digits=1),
    harness.Metric("used", "unlabelled examples used", percent=True, digits=1),
    harness.Metric("right", "of these right", None, percent=True, digits=1),
)

FIXMATCH = "Sohn et al. 2020, arXiv 2001.07685"
SHRINKMATCH = "Yang et al. 2023, arXiv 2308.06777"
CLAIMS = (
    harness.Claim(FIXMATCH, "fixmatch", "supervised", "test_accuracy"),
    harness.Claim(FIXMATCH, "fixmatch", "pseudo_label", "test_accuracy"),
    harness.Claim("Berthelot et al. 2019, arXiv 1911.09785", "fixmatch_aligned", "fixmatch", "test_accuracy"),
    harness.Claim(SHRINKMATCH, "shrinkmatch", "fixmatch_aligned", "test_accuracy"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Labels and budget."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 24
    labels_per_class: int = 4
    """Labelled examples of each digit."""
    steps: int = 400
    """Training steps."""
    batch_size: int = 64
    """Unlabelled examples a step; a third as many labelled ones go with them."""
    learning_rate: float = 3e-3
    """Adam's at the start; it falls to 0 along a cosine."""
    threshold: float = 0.95
    """The probability from which on a prediction is certain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("labels_per_class", "steps")
        self.check_counts("batch_size", low=3)
        self.check_positive("learning_rate")
        _checks.number("experiments.Config", "threshold", self.threshold, low=0, high=1)

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("fixmatch_aligned", "shrinkmatch"), steps=8, batch_size=16)


def _labelled_rows(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Rows of `per_class` random examples of each class, shuffled, and repeated until there are as many as labels."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(CLASSES)]
    return np.resize(rng.permutation(np.concatenate(rows)), len(labels))


class _Problem:
    """The data, and the states from which the seeds start, the same for all methods."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.train, self.test = (data.load(data.DataConfig("digits"), split) for split in ("train", "test"))
        self.shape = self.train["inputs"].shape[1:]
        self.network = two_heads(jax.random.key(0), self.shape, CLASSES)
        self.optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(config.seed_numbers))

        def start(key: PRNGKeyArray) -> tuple[Any, Any]:
            made = two_heads(key, self.shape, CLASSES)
            return made.params, made.extra

        self.initial = jax.jit(jax.vmap(start))(self.keys)
        rows = np.stack(
            [_labelled_rows(self.train["labels"], config.labels_per_class, s) for s in config.seed_numbers.tolist()]
        )
        self.arrays = {
            "inputs": jnp.broadcast_to(self.train["inputs"], (config.seeds, *self.train["inputs"].shape)),
            "labelled": jnp.asarray(self.train["inputs"][rows]),
            "labels": jnp.asarray(self.train["labels"][rows]),
        }

    def step(self, method: Method, loss: BatchLoss) -> Any:
        """A step on views of labelled and unlabelled examples: the rows of the signals are the former, then these."""

        def loss_fn(params: Any, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
            keys, unlabelled = jax.random.split(key, 3), len(batch["inputs"])
            labelled = unlabelled // 3
            views = jnp.concatenate(
                [
                    weak_view(keys[0], batch["labelled"][:labelled]),
                    weak_view(keys[1], batch["inputs"]),
                    strong_view(keys[2], batch["inputs"]),
                ]
            )
            logits, auxiliary, extra = self.network.apply(params, extra, views, unlabelled)
            weak, strong = logits[:-unlabelled], logits[-unlabelled:] if method.strong else logits[labelled:-unlabelled]
            labels = jnp.concatenate([batch["labels"][:labelled], jnp.full(unlabelled, -1)])
            no_view = jnp.zeros((labelled, CLASSES))
            signals = {
                "logits": weak,
                "labels": labels,
                "strong_logits": jnp.concatenate([no_view, strong]),
                "aux_logits": jnp.concatenate([no_view, auxiliary]),
            }
            return LossOutput(signals=signals, extra=extra)

        return make_step(loss_fn, self.optimizer, loss=loss)

    def measure(self, method: Method, state: TrainState) -> dict[str, Array]:
        """Accuracy; which share of the training examples would be used, and which of these be right."""

        def right(logits: Array, labels: np.ndarray) -> Array:
            return jnp.argmax(logits, axis=-1) == labels

        logits, on_test = (
            self.network.predict(state.params, jnp.asarray(part["inputs"])) for part in (self.train, self.test)
        )
        test = right(on_test, self.test["labels"])
        both = jnp.concatenate([right(logits, self.train["labels"]), test])
        found = {"accuracy": jnp.mean(both), "test_accuracy": jnp.mean(test)}
        pseudo = jax.nn.softmax(logits)
        if method.aligned:
            past = state.loss_state.alignment if method.shrunk else state.loss_state
            pseudo, _ = ALIGNMENT.update(past, pseudo)
        threshold = self.config.threshold
        used = jnp.max(pseudo, axis=-1) >= threshold
        if method.shrunk:
            used = semi_supervised.shrink_classes(pseudo, threshold=threshold).confidence >= threshold
        hits = jnp.sum(used & right(pseudo, self.train["labels"]))
        return found | {"used": jnp.mean(used), "right": hits / jnp.maximum(jnp.sum(used), 1)}


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method over all seeds side by side."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {}
    every = max(1, config.steps // 10)
    curves: dict[str, np.ndarray] = {"steps": np.arange(every, config.steps + 1, every)}
    with context.bar(len(config.chosen) * config.steps) as inner:
        problem = _Problem(config)
        for name in config.chosen:
            method = METHODS[name]
            loss = method.loss(config.threshold)

            def begin(params: Any, extra: Any, key: PRNGKeyArray, loss: BatchLoss = loss) -> TrainState:
                return init_state(params, extra, problem.optimizer, key=key, loss=loss)

            def evaluate(state: TrainState, method: Method = method) -> dict[str, Array]:
                return problem.measure(method, state)

            state, measured = harness.train_seeds(
                name,
                problem.step(method, loss),
                jax.jit(jax.vmap(begin))(*problem.initial, problem.keys),
                problem.arrays,
                problem.keys,
                batch_size=config.batch_size,
                num_steps=config.steps,
                context=inner,
                stacked_arrays=True,
                eval_fn=evaluate,
                eval_every=every,
                mesh=config.mesh,
            )
            found = jax.device_get(jax.jit(jax.vmap(evaluate))(state))
            metrics = ("accuracy", "test_accuracy", "used", "right")[: 4 if method.unlabelled_weight else 2]
            values[name] = {metric: np.asarray(found[metric], np.float64) for metric in metrics}
            curves |= {f"{metric}/{name}": measured[metric] for metric in metrics}
    return harness.Results.of(config, values, curves)


def _draw_curves(axes: Axes, results: harness.Results, metric: str, title: str, *, against: str | None = None) -> None:
    """A metric over the steps, in percent; or how far it is above that of another method, paired over the seeds."""
    ends = {}
    for name, color in zip(METHODS, figures.PALETTE, strict=False):
        if f"{metric}/{name}" in results.curves:
            values = 100 * results.curves[f"{metric}/{name}"]
            if against is not None:
                values = values - 100 * results.curves[f"{metric}/{against}"]
            line = figures.band(axes, results.curves["steps"], values, label="", color=color)
            x, y = (float(np.asarray(coordinates)[-1]) for coordinates in line.get_data())
            ends[results.label(name)] = (x, y, color)
    axes.set(title=title, xlabel="step", ylabel="%" if against is None else "points")
    figures.label_ends(axes, ends)


def draw(results: harness.Results) -> Figure:
    """Over the steps: what is gained in test accuracy, the share of examples used, and which share of them is right."""
    baseline, *_ = results.values
    level = 100 * results.interval(baseline, "test_accuracy").mean
    with figures.figure(11.4, 3.6) as drawn:
        left, middle, right = drawn.subplots(1, 3)
        title = f"Test accuracy above that of\n{results.label(baseline)} ({level:.1f}% at the end)"
        _draw_curves(left, results, "test_accuracy", title, against=baseline)
        _draw_curves(middle, results, "used", "Unlabelled examples that are used")
        _draw_curves(right, results, "right", "Of these, predicted rightly")
    return drawn


if __name__ == "__main__":
    harness.main("semi_supervised", config=Config, run=run, draw=draw)
