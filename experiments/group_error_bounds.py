"""Does a segmentation treat groups of images more alike when their errors bound their predictions?

Discs in noise, the more of it the smaller the group, segmented from 5×5 neighbourhoods. The fair error-bound loss
multiplies the predictions for a group by less the larger its error is; it is compared with cross-entropy and Dice
alone, with one factor for all groups, which shows what the scaling does apart from fairness, and with Group DRO.
Equity-scaled Dice is the mean Dice divided by one plus what the groups have apart. A seed draws images, initial
parameters and batches; in the test groups are of equal size.

Group DRO weighs the losses of images, and so has the Dice loss of each image where the others have that of the batch.
What this does by itself is seen with equal weights.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight import _checks, metrics, weights
from reweight.losses import classification, segmentation
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Params = dict[str, Array]
SIDE, REACH, CLASSES = 12, 2, 2
NOISE = (0.5, 1.0, 1.5)  # standard deviation, by group; a disc is 1 above its ground
SHARES = (0.6, 0.3, 0.1)  # of the training images
DICE_WEIGHT = 0.8  # the paper's, for an adapter


class Method(NamedTuple):
    """The name in the figure; the exponent of the scaling; or whether each image has its Dice loss, and is weighted."""

    label: str
    gamma: float | None = None
    of_images: bool = False
    group_dro: bool = False


METHODS: dict[str, Method] = {
    "plain": Method("cross-entropy and Dice"),
    "one_factor": Method("one factor for all", gamma=0.0),
    "fair": Method("fair error bounds", gamma=1.0),
    "of_images": Method("Dice of each image", of_images=True),
    "group_dro": Method("… and Group DRO", of_images=True, group_dro=True),
}

METRICS = (
    harness.Metric("equity_scaled", "equity-scaled Dice", percent=True, digits=1),
    harness.Metric("dice", "Dice", percent=True, digits=1),
    harness.Metric("worst_group", "Dice of the worst group", percent=True, digits=1),
    harness.Metric("apart", "best less worst group", "lower", percent=True, digits=1),
)

_claim = functools.partial(harness.Claim, "Tian et al. 2024, arXiv 2311.02189", "fair")
CLAIMS = (
    _claim("plain", "equity_scaled"),
    _claim("plain", "dice"),
    _claim("one_factor", "equity_scaled"),
    _claim("group_dro", "equity_scaled"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Images, network and budget."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 16
    images: int = 600
    """Training images, a multiple of 10; as many are in the test."""
    steps: int = 250
    """Training steps."""
    batch_size: int = 32
    """Images a step."""
    width: int = 16
    """Hidden units for each pixel."""
    learning_rate: float = 0.01
    """The learning rate of Adam at the start; it falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("images", "steps", "batch_size", "width")
        self.check_positive("learning_rate")
        if self.images % 10:
            _checks.fail("experiments.Config", "images", str(self.images), "a multiple of 10")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("plain", "fair"), images=40, steps=8, batch_size=16)


def _discs(key: PRNGKeyArray, groups: Int[np.ndarray, " images"]) -> dict[str, Array]:
    """Images with one disc each, and the pixels that belong to it."""
    of_centre, of_radius, of_noise = jax.random.split(key, 3)
    count = len(groups)
    centre = jax.random.uniform(of_centre, (count, 2, 1, 1), minval=3, maxval=SIDE - 4)
    radius = jax.random.uniform(of_radius, (count, 1, 1), minval=2, maxval=4)
    inside = jnp.sum((jnp.indices((SIDE, SIDE)) - centre) ** 2, axis=1) <= radius**2
    spread = jnp.array(NOISE)[groups][:, None, None]
    noise = spread * jax.random.normal(of_noise, (count, SIDE, SIDE))
    return {"inputs": inside + noise, "labels": inside.astype(jnp.int32), "groups": jnp.asarray(groups)}


def _apply(params: Params, images: Float[Array, "batch side side"]) -> Float[Array, "batch side side classes"]:
    """Logits of each pixel from its neighbourhood."""
    padded = jnp.pad(images, ((0, 0), (REACH, REACH), (REACH, REACH)))
    around = range(2 * REACH + 1)
    patches = [padded[:, i : i + SIDE, j : j + SIDE] for i in around for j in around]
    hidden = jax.nn.relu(jnp.stack(patches, axis=-1) @ params["hidden"] + params["bias"])
    return hidden @ params["head"]


def _initial(key: PRNGKeyArray, width: int) -> Params:
    pixels = (2 * REACH + 1) ** 2
    of_hidden, of_head = jax.random.split(key)
    return {
        "hidden": jax.random.normal(of_hidden, (pixels, width)) * (2 / pixels) ** 0.5,
        "bias": jnp.zeros(width),
        "head": jax.random.normal(of_head, (width, CLASSES)) / width**0.5,
    }


def _losses(
    logits: Float[Array, "batch side side classes"],
    labels: Int[Array, "batch side side"],
    of: Literal["batch", "image"],
) -> Float[Array, " batch"]:
    """Cross-entropy of each image with the Dice loss of the batch, or of each image."""
    entropies = jnp.mean(classification.cross_entropy(logits, labels), axis=(1, 2))
    probs = jax.nn.softmax(logits)
    if of == "batch":
        overlap = segmentation.dice_loss(probs, labels)
    else:
        overlap = jax.vmap(lambda p, y: segmentation.dice_loss(p[None], y[None]))(probs, labels)
    return DICE_WEIGHT * overlap + (1 - DICE_WEIGHT) * entropies


def _train(name: str, config: Config, context: harness.Context, arrays: dict[str, Array], keys: PRNGKeyArray) -> Params:
    """The parameters of a method for every seed."""
    method = METHODS[name]
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    weighting = weights.group_dro(len(NOISE)) if method.group_dro else None
    loss = None
    if method.gamma is not None:
        loss = segmentation.batch_fair_error_bound(num_groups=len(NOISE), gamma=method.gamma, dice_weight=DICE_WEIGHT)

    def loss_fn(params: Params, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        logits = _apply(params, batch["inputs"])
        if loss is not None:
            return LossOutput(signals={"logits": logits}, extra=extra)
        return LossOutput(_losses(logits, batch["labels"], "image" if method.of_images else "batch"), extra=extra)

    def start(key: PRNGKeyArray) -> TrainState:
        return init_state(_initial(key, config.width), None, optimizer, weighting, key, loss=loss)

    state, _ = harness.train_seeds(
        name,
        make_step(loss_fn, optimizer, loss=loss, weighting=weighting),
        jax.jit(jax.vmap(start))(keys),
        arrays,
        keys,
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        mesh=config.mesh,
    )
    return state.params


@jax.jit
@jax.vmap
def _group_dice(params: Params, test: Mapping[str, Array]) -> Float[Array, " groups"]:
    """The mean Dice of the discs that are found, in each group."""
    found = _apply(params, test["inputs"]).argmax(axis=-1)
    both, either = (jnp.sum(x, axis=(1, 2)) for x in (found * test["labels"], found + test["labels"]))
    return weights.group_means(2.0 * both / either, test["groups"], num_groups=len(NOISE)).means


def _scores(by_group: Float[np.ndarray, "seeds groups"]) -> dict[str, np.ndarray]:
    """The metrics; groups are of equal size."""
    dice = by_group.mean(axis=1)
    scaled = jax.vmap(metrics.fairness.equity_scaled)(jnp.asarray(dice), jnp.asarray(by_group))
    return {
        "equity_scaled": np.asarray(scaled, np.float64),
        "dice": dice,
        "worst_group": by_group.min(axis=1),
        "apart": np.ptp(by_group, axis=1),
    }


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method over all seeds, and measures each group."""
    context = harness.Context() if context is None else context
    of_run, of_train, of_test = jnp.moveaxis(
        jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(jnp.asarray(config.seed_numbers)), 1, 0
    )
    unequal = np.repeat(np.arange(len(NOISE)), [round(share * config.images) for share in SHARES])
    train = jax.jit(jax.vmap(lambda key: _discs(key, unequal)))(of_train)
    test = jax.jit(jax.vmap(lambda key: _discs(key, np.arange(config.images) % len(NOISE))))(of_test)
    values, curves = {}, {}
    with context.bar(len(config.chosen) * config.steps) as inner:
        for name in config.chosen:
            params = _train(name, config, inner, train, of_run)
            curves[f"groups/{name}"] = np.asarray(_group_dice(params, test), np.float64)
            values[name] = _scores(curves[f"groups/{name}"])
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Left: the Dice of each group. Right: what each method changes against the first, paired over the seeds."""
    methods = list(results.values)
    with figures.figure(10.2, 3.6) as drawn:
        left, *right = drawn.subplots(1, 3, width_ratios=[1.2, 1, 1])
        for i, name in enumerate(methods):
            found = [harness.mean_interval(numbers) for numbers in results.curves[f"groups/{name}"].T]
            at = np.arange(len(NOISE)) + 0.09 * (i - (len(methods) - 1) / 2)
            figures.points(
                left, at, found, scale=100, color=figures.PALETTE[i], marker=figures.MARKERS[i],
                linestyle="", linewidth=1.4, label=results.label(name),
            )  # fmt: skip
        left.set_xticks(
            range(len(NOISE)),
            [f"noise {noise:g}\n{100 * share:.0f}% of images" for noise, share in zip(NOISE, SHARES, strict=True)],
        )
        left.grid(axis="x", visible=False)
        left.legend(loc="lower left")
        left.set_title("Dice of each group, %")
        for axes, metric in zip(right, METRICS, strict=False):
            figures.changes(axes, results, metric, named=axes is right[0])
    return drawn


if __name__ == "__main__":
    harness.main("group_error_bounds", config=Config, run=run, draw=draw)
