"""What keeps old classes when new ones come with five examples each?

Six digits are learned from many examples, then four more come one at a time with five examples each, and nothing old is
seen again. The baseline freezes the encoder after the base classes, and classifies by cosine to class means. Tricks
prepare the features for classes to come (supervised contrastive loss, fixed prototypes in a simplex, rotated images as
extra classes or their rotation as a side task, pre-training without labels), move the prototypes of the new classes
towards the old ones that they resemble, or go on training a little on the five examples, all of the encoder or a tenth
of its parameters. A seed draws which digits are new, the examples, the initial parameters and the order of the batches.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs.growing_digits import BASE, CLASSES, GrowingDigits, growing_digits
from experiments.envs.image_views import strong_view
from experiments.harness import figures
from reweight import models, optim
from reweight.losses import classification, continual, contrastive, self_supervised
from reweight.regularizers.pseudo_classes import rotated_classes
from reweight.train import LossOutput, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Tree = Any  # a pytree of arrays
FEATURES, SCALE = 64, 16.0  # of the encoder; of cosines in a softmax


class Base(NamedTuple):
    """How the base classes are learned: by cross-entropy of cosines, and what else."""

    contrastive: bool = False
    simplex: bool = False
    rotation: bool = False
    side_task: bool = False
    pretraining: bool = False

    @property
    def classes(self) -> int:
        """Outputs in training."""
        return BASE * (4 if self.rotation else 1)

    @property
    def name(self) -> str:
        """Which tricks are on."""
        return "_".join(field for field in self._fields if getattr(self, field)) or "plain"


class Keys(NamedTuple):
    """What each of the keys of a seed draws."""

    model: PRNGKeyArray
    head: PRNGKeyArray
    projection: PRNGKeyArray
    turns: PRNGKeyArray
    order: PRNGKeyArray
    pretraining: PRNGKeyArray
    pretraining_order: PRNGKeyArray
    run: PRNGKeyArray


class Method(NamedTuple):
    """What a method does.

    Attributes:
      label: its name in figures.
      base: how the base classes are learned.
      tuned: the share of the encoder's parameters that the examples of a new class may move.
      calibration: how far new prototypes are moved towards old ones.
    """

    label: str
    base: Base = Base()
    tuned: float = 0.0
    calibration: float = 0.0


# Pre-training has its steps on top of those on the base classes; otherwise all have the same examples and steps.
METHODS: dict[str, Method] = {
    "frozen": Method("frozen"),
    "supcon": Method("+ contrastive loss", Base(contrastive=True)),
    "simplex": Method("+ simplex prototypes", Base(simplex=True)),
    "rotation": Method("+ rotated classes", Base(rotation=True)),
    "side_task": Method("+ rotation side task", Base(side_task=True)),
    "pretraining": Method("+ pre-training", Base(pretraining=True)),
    "calibrated": Method("+ calibration", calibration=0.2),  # of 0.1, 0.2 and 0.5, chosen like the tuning rate
    "fine_tuning": Method("+ fine-tuning", tuned=1.0),
    "subnet": Method("+ subnet tuning", tuned=0.1),
    "all": Method("all tricks", Base(*[True] * len(Base._fields)), tuned=0.1),
}

METRICS = (
    harness.Metric("accuracy", "all ten classes", percent=True, digits=1),
    harness.Metric("base_accuracy", "six base classes", percent=True, digits=1),
    harness.Metric("new_accuracy", "four new classes", percent=True, digits=1),
    harness.Metric("harmonic_mean", "harmonic mean of the two", percent=True, digits=1),
    harness.Metric("drop", "drop from the first session", "lower", percent=True, digits=1),
)

_tricks = functools.partial(harness.Claim, "Roy et al. 2024, arXiv 2403.14392")
# The rotation side task gains 1.0 to 1.6 points of accuracy in three blocks of sixteen seeds, each give or take 1.2:
# a row of the table, and too close to call for a claim.
CLAIMS = (
    _tricks("all", "frozen", "accuracy"),
    _tricks("all", "frozen", "harmonic_mean"),
    _tricks("all", "frozen", "drop", "lower"),
    _tricks("supcon", "frozen", "accuracy"),
    _tricks("simplex", "frozen", "accuracy"),
    _tricks("rotation", "frozen", "accuracy"),
    _tricks("pretraining", "frozen", "accuracy"),
    _tricks("fine_tuning", "frozen", "new_accuracy"),
    _tricks("subnet", "frozen", "new_accuracy"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 16  # what a trick changes depends on which digits are new
    shots: int = 5
    """Examples of a new class."""
    steps: int = 200
    """Training steps on the base classes, and of the pre-training before them."""
    batch_size: int = 64
    """Examples a step."""
    learning_rate: float = 3e-3
    """The learning rate on the base classes at the start; it falls to 0 along a cosine."""
    tuning_steps: int = 20
    """Steps on the examples of a new class."""
    # The best of 0.0003, 0.001, 0.003 and 0.01 on other seeds and held-out training examples.
    tuning_rate: float = 1e-3
    """The learning rate there, of plain gradient descent."""
    held_out: bool = False
    """Whether to predict training examples that are held out rather than the test set, as in the choice above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("shots", "steps", "batch_size", "tuning_steps")
        self.check_positive("learning_rate", "tuning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("frozen", "all"), steps=8, batch_size=16, tuning_steps=2)


class Problem(NamedTuple):
    """What all methods share."""

    config: Config
    digits: GrowingDigits
    context: harness.Context


def _build(key: PRNGKeyArray) -> nnx.Module:
    return models.build("mlp", (8, 8, 1), FEATURES, key=key, widths=(128, 128), norm="layer")


@functools.cache
def _apply() -> models.ApplyFn:
    return models.functional(nnx.eval_shape(lambda: _build(jax.random.key(0)))).apply


def _encode(params: Tree, inputs: Float[Array, "*batch 8 8 1"]) -> Float[Array, "*batch features"]:
    features, _ = _apply()(params, {}, inputs.reshape(-1, 8, 8, 1))
    return features.reshape(*inputs.shape[:-3], FEATURES)


def _projection(key: PRNGKeyArray) -> Array:
    return jax.random.normal(key, (2, FEATURES, FEATURES)) / FEATURES**0.5


def _projected(params: Tree, features: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """What contrastive losses see. It is thrown away afterwards, so that the features keep more than the classes."""
    hidden, out = params["projection"]
    return jax.nn.relu(features @ hidden) @ out


def _base_loss(base: Base, params: Tree, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
    """One loss an example; `extra` holds the fixed prototypes, if there are any."""
    del key
    images, labels = batch["inputs"][:, None], batch["labels"][:, None]
    turned, classes = rotated_classes(batch["inputs"], batch["labels"], num_classes=BASE)
    features = _encode(params["encoder"], turned if base.rotation or base.side_task else images)
    if base.rotation:
        labels = classes
    flat, ids = features[:, : labels.shape[1]].reshape(-1, FEATURES), labels.reshape(-1)
    head = extra["prototypes"] if base.simplex else params["head"]
    losses = classification.cross_entropy(continual.cosine_scores(flat, head, scale=SCALE), ids)
    if base.contrastive:
        losses += contrastive.supcon(_projected(params, flat), ids, temperature=0.1, base_temperature=0.1)
    losses = losses.reshape(labels.shape).mean(axis=1)
    if base.side_task:
        losses += self_supervised.transformation_prediction(features @ params["turns"])
    return LossOutput(losses)


def _own_label_loss(params: Tree, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
    """The contrastive loss of two views without labels: every example is a class of its own."""
    del extra
    views = jnp.stack([strong_view(of_view, batch["inputs"]) for of_view in jax.random.split(key)], axis=1)
    projected, own = _projected(params, _encode(params["encoder"], views)), jnp.arange(len(views))
    # The temperature is that of SimCLR on small images.
    return LossOutput(contrastive.supcon(projected, own, temperature=0.5, base_temperature=0.5))


@jax.jit
@jax.vmap
def _keys(seed: Array) -> Keys:
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


@functools.partial(jax.jit, static_argnames="base")
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0))
def _start(base: Base, keys: Keys, encoder: Tree, inputs: Array, labels: Array) -> tuple[Tree, Tree]:
    """The parameters of a seed before the base classes, and what is fixed."""
    params: Tree = {"encoder": encoder}
    if base.contrastive:
        params["projection"] = _projection(keys.projection)
    if base.side_task:
        params["turns"] = jax.random.normal(keys.turns, (FEATURES, 4)) / FEATURES**0.5
    if not base.simplex:
        params["head"] = jax.random.normal(keys.head, (base.classes, FEATURES)) / FEATURES**0.5
        return params, {}
    images, ids = inputs, labels
    if base.rotation:
        images, ids = (x.reshape(-1, *x.shape[2:]) for x in rotated_classes(inputs, labels, num_classes=BASE))
    # Vectors for the base classes, and in reserve for those to come.
    vectors = continual.etf_prototypes(keys.head, FEATURES, base.classes + CLASSES - BASE)
    means = continual.class_prototypes(_encode(encoder, images), ids, num_classes=base.classes)
    return params, {"prototypes": vectors[continual.assign_prototypes(means, vectors)]}


def _train(name: str, loss: Any, start: tuple[Tree, Tree], keys: tuple[Array, Array], problem: Problem) -> Tree:
    """The encoders of all seeds after training from parameters and what is fixed; keys of the run and of the order."""
    config, digits = problem.config, problem.digits
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    begin = jax.jit(jax.vmap(lambda params, extra, key: init_state(params, extra, optimizer, key=key)))
    run, order = keys
    state, _ = harness.train_seeds(
        name,
        make_step(loss, optimizer),
        begin(*start, run),
        {"inputs": digits.inputs, "labels": digits.labels},
        order,
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=problem.context,
        stacked_arrays=True,
        chunks=1,
        mesh=config.mesh,
    )
    return state.params["encoder"]


def _encoders(bases: Sequence[Base], problem: Problem) -> dict[Base, Tree]:
    """The encoders of all seeds after the base classes are learned in each of the ways."""
    digits = problem.digits
    keys = _keys(jnp.asarray(problem.config.seed_numbers))
    plain = pretrained = jax.jit(jax.vmap(lambda key: models.functional(_build(key)).params))(keys.model)
    if any(base.pretraining for base in bases):
        start: Tree = {"encoder": plain, "projection": jax.jit(jax.vmap(_projection))(keys.projection)}
        of_both = keys.pretraining, keys.pretraining_order
        pretrained = _train("without_labels", _own_label_loss, (start, {}), of_both, problem)
    encoders = {}
    for base in bases:
        start = _start(base, keys, pretrained if base.pretraining else plain, digits.inputs, digits.labels)
        loss = functools.partial(_base_loss, base)
        encoders[base] = _train(base.name, loss, start, (keys.run, keys.order), problem)
    return encoders


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.vmap, in_axes=(None, 0, 0, None, None))
def _sessions(
    config: Config, encoder: Tree, digits: GrowingDigits, tuned: Array, calibration: Array
) -> Int[Array, "sessions examples"]:
    """What a seed predicts for the test set after the base classes, and after each class that comes."""
    base = continual.class_prototypes(_encode(encoder, digits.inputs), digits.labels, num_classes=BASE)
    prototypes = jnp.zeros((CLASSES, FEATURES)).at[:BASE].set(base)

    def predictions(encoder: Tree, prototypes: Array, seen: Array | int) -> Array:
        scores = continual.cosine_scores(_encode(encoder, digits.test_inputs), prototypes)
        return jnp.argmax(jnp.where(jnp.arange(CLASSES) < seen, scores, -jnp.inf), axis=-1)

    def prototype(encoder: Tree, few: Array) -> Array:
        new = continual.class_prototypes(_encode(encoder, few), jnp.zeros(len(few), int), num_classes=1)
        return continual.calibrate_prototypes(new, base, alpha=calibration)[0]  # type: ignore[arg-type]

    def session(carry: tuple[Tree, Array], arrived: tuple[Array, Array]) -> tuple[tuple[Tree, Array], Array]:
        (encoder, prototypes), (number, few) = carry, arrived
        prototypes = prototypes.at[number].set(prototype(encoder, few))

        def loss(encoder: Tree) -> Array:
            scores = continual.cosine_scores(_encode(encoder, few), prototypes, scale=SCALE)
            own = jnp.full(len(few), number)
            return jnp.mean(classification.cross_entropy(scores, own, class_mask=jnp.arange(CLASSES) <= number))

        mask = optim.subnet_mask(encoder, jax.grad(loss)(encoder), fraction=tuned)  # type: ignore[arg-type]

        def tune(_: int, encoder: Tree) -> Tree:
            steps = jax.tree.map(lambda grad, on: -config.tuning_rate * grad * on, jax.grad(loss)(encoder), mask)
            return optax.apply_updates(encoder, steps)

        encoder = jax.lax.fori_loop(0, config.tuning_steps, tune, encoder)
        prototypes = prototypes.at[number].set(prototype(encoder, few))
        return (encoder, prototypes), predictions(encoder, prototypes, number + 1)

    first = predictions(encoder, prototypes, BASE)
    _, later = jax.lax.scan(session, (encoder, prototypes), (jnp.arange(BASE, CLASSES), digits.shots))
    return jnp.concatenate([first[None], later])


def _scores(right: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The metrics of every seed, and the accuracy after each session `[seeds, sessions]`.

    Args:
      right: whether a test example is classified rightly after a session `[seeds, sessions, examples]`.
      labels: `[seeds, examples]`.
    """

    def mean(session: int, among: np.ndarray) -> np.ndarray:
        return (right[:, session] & among).sum(axis=1) / among.sum(axis=1)

    curve = np.stack([mean(s, labels < BASE + s) for s in range(right.shape[1])], axis=1)
    base, new = mean(-1, labels < BASE), mean(-1, labels >= BASE)
    return {
        "accuracy": curve[:, -1],
        "base_accuracy": base,
        "new_accuracy": new,
        "harmonic_mean": 2 * base * new / np.maximum(base + new, 1e-9),
        "drop": curve[:, 0] - curve[:, -1],
    }, curve


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Learns the base classes in every way that is asked for, then brings the new ones."""
    context = harness.Context() if context is None else context
    digits = growing_digits(config.seed_numbers, shots=config.shots, held_out=config.held_out)
    values, curves = {}, {}
    bases = list(dict.fromkeys(METHODS[name].base for name in config.chosen))
    runs = len(bases) + any(base.pretraining for base in bases)
    with context.bar(runs * config.steps) as inner:
        encoders = _encoders(bases, Problem(config, digits, inner))
    for name in config.chosen:
        method = METHODS[name]
        predicted = _sessions(config, encoders[method.base], digits, method.tuned, method.calibration)
        labels = np.asarray(digits.test_labels)
        values[name], curves[f"sessions/{name}"] = _scores(np.asarray(predicted) == labels[:, None], labels)
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """What tricks change, paired over the seeds: left of three as classes come, right of all at the end."""
    with figures.figure(9.6, 3.9) as drawn:
        left, *panels = drawn.subplots(1, 4, width_ratios=[1.7, 1, 1, 1])
        baseline, *others = names = list(results.values)
        frozen = results.curves[f"sessions/{baseline}"]
        # Of all the intervals would cover each other; the panels at the right have them.
        shown = [name for name in ("rotation", "fine_tuning", "all") if name in others]
        for shift, name in zip((-0.08, 0.0, 0.08), shown, strict=False):
            change = results.curves[f"sessions/{name}"] - frozen
            found = [harness.mean_interval(session) for session in change.T]
            color, marker = (table[names.index(name)] for table in (figures.PALETTE, figures.MARKERS))
            classes = BASE + shift + np.arange(change.shape[1])
            figures.points(left, classes, found, color=color, marker=marker, scale=100, label=results.label(name))
        left.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        left.legend(loc="upper left")
        left.set_xticks(range(BASE, CLASSES + 1))
        left.set(xlabel="classes so far", ylabel="change of accuracy on these, points")
        first, end = (100 * frozen[:, session].mean() for session in (0, -1))
        left.set_title(f"As classes come\n{results.label(baseline)}: {first:.1f}% to {end:.1f}%")
        for axes, metric in zip(panels, METRICS, strict=False):
            figures.changes(axes, results, metric, named=axes is panels[0])
    return drawn


if __name__ == "__main__":
    harness.main("few_shot_classes", config=Config, run=run, draw=draw)
