"""How should a classifier of levels learn ratings that people gave?

Two data sets of items with a hidden quality, rated on scales of their own: 1 to 10 in the first, in the second, which
has better items only, 0 to 100. An item has a mean rating and a spread, since raters agree more on some items than on
others. A network with five outputs, for the levels from bad to excellent, learns from both sets the nearest level, a
distribution over the levels with the mean and the spread of the ratings, or such a distribution and, for pairs out of
one set, which item is the better one. A seed draws the items, the raters and the initial parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight import models
from reweight.losses import ordinal, ranking
from reweight.train import LossOutput, init_state, make_step, whole_batch

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

PAPER = "You et al. 2025, arXiv 2501.11561"
FEATURES, TEST = 12, 1000
SCALES = ((1.0, 10.0), (0.0, 100.0))


class Items(NamedTuple):
    """Rated items `[n, ...]`.

    Attributes:
      inputs: features.
      quality: the hidden quality, in [0, 1].
      source: the data set, 0 or 1.
      means: mean ratings, as levels of the data set, in [1, 5].
      stds: spreads of the ratings, on the scale of levels.
      labels: distributions over the levels, the best first `[n, 5]`.
    """

    inputs: Float[Array, "n p"]
    quality: Float[Array, " n"]
    source: Int[Array, " n"]
    means: Float[Array, " n"]
    stds: Float[Array, " n"]
    labels: Float[Array, "n levels"]


def _draw(key: PRNGKeyArray, n: int) -> Items:
    of_quality, of_world, of_inputs, of_raters = jax.random.split(key, 4)
    source = jnp.arange(n) % 2
    quality = jax.random.uniform(of_quality, (n,))
    quality = jnp.where(source == 1, 0.4 + 0.6 * quality, quality)
    # The features show the quality through noise, and how much raters agree; the map is one for all seeds' items.
    content = jax.random.normal(of_inputs, (n, 5))
    shown = jnp.stack([jnp.sin(3 * quality), quality**2, jnp.cos(5 * quality)], axis=1)
    shown += 0.15 * jax.random.normal(of_world, shown.shape)
    mix = jax.random.normal(jax.random.key(7), (8, FEATURES)) / 3
    inputs = jnp.tanh(jnp.concatenate([shown, content], axis=1) @ mix)
    stds, means = 0.25 + 0.6 * jax.nn.sigmoid(2 * content[:, 0]), 1 + 4 * quality
    means += stds / 4 * jax.random.normal(of_raters, (n,))
    # Each data set stretches its own range of mean ratings to that of the levels.
    labels, rescaled, spreads = [], [], []
    for number, (low, high) in enumerate(SCALES):
        mine = source == number
        rating = low + (high - low) * (means - 1) / 4
        spread = (high - low) * stds / 4
        least = jnp.min(jnp.where(mine, rating, jnp.inf))
        most = jnp.max(jnp.where(mine, rating, -jnp.inf))
        labels.append(ordinal.soft_level_labels(rating, spread, low=least, high=most))  # type: ignore[arg-type]
        rescaled.append(jnp.clip(4 * (rating - least) / (most - least) + 1, 1, 5))
        spreads.append(4 * spread / (most - least))
    first = source == 0
    return Items(
        inputs=inputs,
        quality=quality,
        source=source,
        means=jnp.where(first, rescaled[0], rescaled[1]),
        stds=jnp.where(first, spreads[0], spreads[1]),
        labels=jnp.where(first[:, None], labels[0], labels[1]),
    )


def _sets(key: PRNGKeyArray, examples: int) -> tuple[Items, Items]:
    """The items that a seed trains on, and those that it is tested on."""
    _, of_train, _, of_test = jax.random.split(key, 4)
    return _draw(of_train, examples), _draw(of_test, TEST)


def _one_hot(logits: Array, items: Items) -> Array:
    nearest = 5 - jnp.round(items.means).astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, nearest)


def _soft(logits: Array, items: Items) -> Array:
    return ordinal.level_kl(logits, items.labels)


def _soft_and_pairs(logits: Array, items: Items) -> Array:
    """Each item is compared with the next of its data set in the batch, as far as the next one is of its set."""
    scores = ordinal.level_scores(logits).scores
    other = functools.partial(jnp.roll, shift=1, axis=0)
    fidelity = ranking.thurstone_fidelity(
        scores, other(scores), items.means, other(items.means), items.stds, other(items.stds)
    )
    return jnp.where(items.source == other(items.source), 2 * fidelity, 0) + 0.05 * _soft(logits, items)


class Method(NamedTuple):
    """A loss of logits and rated items, and its name in the figure."""

    label: str
    losses: Callable[[Array, Items], Float[Array, " batch"]]


METHODS: dict[str, Method] = {
    "one_hot": Method("nearest level", _one_hot),
    "soft": Method("soft levels", _soft),
    "soft_and_pairs": Method("soft levels, pairs", _soft_and_pairs),
}

METRICS = (
    harness.Metric("within", "correlation within a set", percent=True, digits=1),
    harness.Metric("across", "rank correlation across sets", percent=True, digits=1),
    harness.Metric("spread_error", "error of the spread, levels", better="lower", digits=3),
)

CLAIMS = (
    harness.Claim(PAPER, "soft", "one_hot", "within"),
    harness.Claim(PAPER, "soft", "one_hot", "spread_error", "lower"),
    harness.Claim(PAPER, "soft_and_pairs", "soft", "within"),
    harness.Claim(PAPER, "soft_and_pairs", "soft", "across"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The size of the problem."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 8
    examples: int = 400
    """Rated items of the training set, half of them in each data set."""
    steps: int = 400
    """Training steps."""
    batch_size: int = 64
    """Items a step."""
    learning_rate: float = 3e-3
    """The learning rate at the start; it falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("examples", "steps", "batch_size")
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("soft", "soft_and_pairs"), examples=32, steps=8, batch_size=16)


def _correlation(x: Array, y: Array, keep: Array) -> Array:
    """Pearson's, over the items that are kept."""
    count = jnp.sum(keep)
    x, y = (jnp.where(keep, a - jnp.sum(jnp.where(keep, a, 0)) / count, 0) for a in (x, y))
    return jnp.sum(x * y) / jnp.sqrt(jnp.sum(x**2) * jnp.sum(y**2))


def _rank(x: Array) -> Array:
    return jnp.argsort(jnp.argsort(x)).astype(jnp.float32)


def _scored(logits: Array, items: Items) -> dict[str, Array]:
    scores, stds = ordinal.level_scores(logits)
    within = [_correlation(scores, items.means, items.source == number) for number in range(2)]
    everywhere = jnp.ones(scores.shape, bool)
    return {
        "within": jnp.mean(jnp.stack(within)),
        "across": _correlation(_rank(scores), _rank(items.quality), everywhere),
        "spread_error": jnp.mean(jnp.abs(stds - items.stds)),
        "scores": scores,
    }


def _train(name: str, config: Config, context: harness.Context) -> dict[str, np.ndarray]:
    """What `_scored` says of every seed's network on new items."""

    def build(key: PRNGKeyArray) -> Any:
        return models.functional(models.build("mlp", (FEATURES,), 5, key=key))

    apply = build(jax.random.key(0)).apply
    optimizer = optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.steps), weight_decay=1e-4)

    @whole_batch
    def loss_fn(params: Any, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        logits, _ = apply(params, extra, batch["inputs"])
        items = Items(**{field: batch[field] for field in Items._fields})
        return LossOutput(METHODS[name].losses(logits, items), extra=extra)

    @jax.jit
    @jax.vmap
    def start(key: PRNGKeyArray) -> tuple[Any, dict[str, Array]]:
        of_model, _, run, _ = jax.random.split(key, 4)
        model = build(of_model)
        train, _ = _sets(key, config.examples)
        return init_state(model.params, model.extra, optimizer, key=run), train._asdict()

    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seed_numbers))
    state, arrays = start(keys)
    state, _ = harness.train_seeds(
        name,
        make_step(loss_fn, optimizer),
        state,
        arrays,
        keys,
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        mesh=config.mesh,
    )

    @jax.jit
    @jax.vmap
    def evaluate(key: PRNGKeyArray, params: Any, extra: Any) -> dict[str, Array]:
        _, items = _sets(key, config.examples)
        return _scored(apply(params, extra, items.inputs)[0], items) | {
            "quality": items.quality,
            "source": items.source,
        }

    return {field: np.asarray(x) for field, x in evaluate(keys, state.params, state.extra).items()}


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method over all seeds and scores it on new items."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {}
    curves: dict[str, np.ndarray] = {}
    with context.bar(len(config.chosen) * config.steps) as inner:
        for name in config.chosen:
            found = _train(name, config, inner)
            values[name] = {metric.name: found[metric.name].astype(np.float64) for metric in METRICS}
            curves |= {f"{field}/{name}": found[field][0] for field in ("scores", "quality", "source")}
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Above, predicted scores against the hidden quality, by data set; below, what each method changes."""
    names = list(results.values)
    with figures.figure(9.6, 5.4) as drawn:
        above, below = drawn.subfigures(2, 1, squeeze=False, height_ratios=[1.5, 1])[:, 0]
        (scatters,) = above.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(scatters, names, strict=True):
            scores, quality, source = (results.curves[f"{field}/{name}"] for field in ("scores", "quality", "source"))
            for number, color in enumerate(figures.PALETTE[1:3]):
                mine = source == number
                axes.plot(quality[mine], scores[mine], ".", markersize=2.5, alpha=0.5, color=color)
                axes.plot([], [], "o", color=color, label=("all qualities", "good items only")[number])
            axes.set_title(results.label(name))
            axes.set_xlabel("hidden quality, items of the first seed")
        scatters[0].set_ylabel("predicted level")
        scatters[0].legend(title="data set with", loc="lower right", handletextpad=0.1)
        panels = below.subplots(1, len(METRICS))
        for axes, metric in zip(panels, METRICS, strict=True):
            figures.changes(axes, results, metric, named=axes is panels[0])
    return drawn


if __name__ == "__main__":
    harness.main("quality_scores", config=Config, run=run, draw=draw)
