"""A world of classes with many modes, of which the real examples show a few, and generators that know more or less."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments import harness
from reweight import models, weights
from reweight.losses import classification
from reweight.metrics.distribution import energy_distance
from reweight.train import LossOutput, init_state, make_step

__all__ = ["POOLS", "Pool", "Rows", "World", "draw_rows", "draw_world", "learn_worlds", "training_rows"]

CLASSES, EXTRA, MODES, KNOWN_MODES, FEATURES = 8, 4, 8, 2, 24
REAL, ROWS, TEST, COMPARED = 64, 2048, 2000, 256
OFF_CLASS = 0.3  # of what a generator makes shows another class
THRESHOLD = 0.15  # on other worlds it keeps 88 % of what shows its class and 17 % of what does not


class World(NamedTuple):
    """Centres of the modes of the classes, those beyond the task's included `[classes + extra, modes, features]`."""

    centres: Float[Array, "classes modes features"]


class Rows(NamedTuple):
    """Examples `[n, ...]`."""

    inputs: Float[Array, "n features"]
    labels: Int[Array, " n"]


class Pool(NamedTuple):
    """What is generated: how many examples, how many modes of a class the generator knows, and what is done with them.

    Attributes:
      size: examples; 0 for none.
      modes: the number of modes that the generator knows, the ones that real examples show first.
      filtered: whether what is unlike the real examples of its class is left out.
      extra: whether the generator also makes classes beyond those of the task.
    """

    size: int
    modes: int = KNOWN_MODES
    filtered: bool = False
    extra: bool = False


POOLS: dict[str, Pool] = {
    "real": Pool(0),
    "same_64": Pool(64),
    "same_256": Pool(256),
    "same_1024": Pool(1024),
    "diverse_64": Pool(64, MODES),
    "diverse_256": Pool(256, MODES),
    "diverse_1024": Pool(1024, MODES),
    "filtered": Pool(1024, MODES, filtered=True),
    "extra_classes": Pool(1024, MODES, filtered=True, extra=True),
}


def draw_world(key: PRNGKeyArray) -> World:
    """Classes in random directions, with modes around them."""
    of_classes, of_modes = jax.random.split(key)
    classes = jax.random.normal(of_classes, (CLASSES + EXTRA, 1, FEATURES))
    return World(classes + 1.1 * jax.random.normal(of_modes, (CLASSES + EXTRA, MODES, FEATURES)))


def draw_rows(key: PRNGKeyArray, world: World, labels: Int[Array, " n"], modes: int) -> Rows:
    """Examples of labels, each out of one of the first so many modes of its class."""
    of_mode, of_noise = jax.random.split(key)
    chosen = jax.random.randint(of_mode, labels.shape, 0, modes)
    noise = jax.random.normal(of_noise, (len(labels), FEATURES))
    return Rows(world.centres[labels, chosen] + noise, labels)


def _generated(key: PRNGKeyArray, world: World, pool: Pool, real: Rows) -> tuple[Rows, Array]:
    """A pool, and which of its examples are kept."""
    of_labels, of_error, of_shown, of_rows = jax.random.split(key, 4)
    known = CLASSES + EXTRA if pool.extra else CLASSES
    labels = jax.random.randint(of_labels, (pool.size,), 0, known)
    wrong = jax.random.bernoulli(of_error, OFF_CLASS, (pool.size,))
    shown = jnp.where(wrong, jax.random.randint(of_shown, (pool.size,), 0, known), labels)
    inputs = draw_rows(of_rows, world, shown, pool.modes).inputs
    if not pool.filtered:
        return Rows(inputs, labels), jnp.ones(pool.size, bool)
    found = weights.similarity_filter(
        inputs, labels, real.inputs, real.labels, num_classes=CLASSES, threshold=THRESHOLD
    )
    return Rows(inputs, labels), found.keep


def training_rows(key: PRNGKeyArray, world: World, pool: Pool) -> tuple[Rows, Array]:
    """A training set of `ROWS` rows, half of them real where there are generated ones, and the distance of its law.

    Real and generated examples are repeated to fill their halves. The distance is the energy distance of a part of the
    rows from as many fresh examples.
    """
    of_real, of_pool, of_fresh, of_choice, of_some = jax.random.split(key, 5)
    real = draw_rows(of_real, world, jnp.arange(REAL) % CLASSES, KNOWN_MODES)
    half = ROWS // 2
    rows = jnp.arange(ROWS) % REAL
    filled = Rows(real.inputs[rows], real.labels[rows])
    if pool.size:
        made, keep = _generated(of_pool, world, pool, real)
        chosen = jax.random.choice(of_choice, pool.size, (half,), p=keep / jnp.maximum(jnp.sum(keep), 1))
        # A pool that is smaller than its half comes in whole.
        chosen = jnp.where(jnp.all(keep), jnp.arange(half) % pool.size, chosen)
        filled = Rows(*(a.at[:half].set(b[chosen]) for a, b in zip(filled, made, strict=True)))
    fresh = draw_rows(of_fresh, world, jnp.arange(COMPARED) % CLASSES, MODES)
    some = jax.random.permutation(of_some, ROWS)[:COMPARED]
    return filled, energy_distance(filled.inputs[some], fresh.inputs)


def learn_worlds(
    names: list[str],
    seeds: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    context: harness.Context,
    mesh: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Trains a network for every seed on the real examples and each pool: test accuracy, gap and distance `[seeds]`."""

    def build(key: PRNGKeyArray) -> Any:
        return models.functional(models.build("mlp", (FEATURES,), CLASSES + EXTRA, key=key))

    apply = build(jax.random.key(0)).apply
    optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=1e-3)

    def loss_fn(params: Any, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        logits, _ = apply(params, extra, batch["inputs"])
        return LossOutput(classification.cross_entropy(logits, batch["labels"]), extra=extra)

    def accuracy(params: Any, extra: Any, rows: Rows) -> Array:
        """Among the classes of the task; examples of others do not count."""
        logits, _ = apply(params, extra, rows.inputs)
        counted = rows.labels < CLASSES
        right = counted & (jnp.argmax(logits[:, :CLASSES], axis=1) == rows.labels)
        return jnp.sum(right) / jnp.sum(counted)

    @jax.jit
    @jax.vmap
    def start(key: PRNGKeyArray) -> tuple[Any, list[Rows], Array]:
        of_model, of_world, of_rows, run, _ = jax.random.split(key, 5)
        model, world = build(of_model), draw_world(of_world)
        sets = [training_rows(of_rows, world, POOLS[name]) for name in names]
        return init_state(model.params, model.extra, optimizer, key=run), [s for s, _ in sets], jnp.stack(
            [distance for _, distance in sets]
        )  # fmt: skip

    @jax.jit
    @jax.vmap
    def evaluate(key: PRNGKeyArray, params: Any, extra: Any, train: Rows) -> tuple[Array, Array]:
        _, of_world, _, _, of_test = jax.random.split(key, 5)
        test = draw_rows(of_test, draw_world(of_world), jnp.arange(TEST) % CLASSES, MODES)
        reached = accuracy(params, extra, test)
        return reached, accuracy(params, extra, train) - reached

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    state, sets, distances = start(keys)
    step = make_step(loss_fn, optimizer)
    found = {}
    for i, name in enumerate(names):
        trained, _ = harness.train_seeds(
            name,
            step,
            jax.tree.map(jnp.copy, state),
            sets[i]._asdict(),
            keys,
            batch_size=batch_size,
            num_steps=steps,
            context=context,
            stacked_arrays=True,
            every=max(1, steps // 20),
            mesh=mesh,
        )
        reached, gap = evaluate(keys, trained.params, trained.extra, sets[i])
        numbers = {"accuracy": reached, "gap": gap, "distance": distances[:, i]}
        found[name] = {metric: np.asarray(x, np.float64) for metric, x in numbers.items()}
    return found
