"""Foundation models in small: networks trained on some class frequencies whose features are tuned on others.

A mixture of Gaussians has a class each. Every model is pre-trained on a long tail over the classes in an order of its
own, then its features are frozen and a linear classifier on them is tuned on another long tail. What a model has not
learned of a class that was rare in pre-training, no loss brings back in tuning; another model may have learned it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments import harness
from reweight import models
from reweight.data import variants
from reweight.losses import classification
from reweight.train import LossOutput, init_state, make_step

__all__ = ["CLASSES", "DIFFERENT", "MODELS", "Tuned", "tune"]

CLASSES, DIMENSIONS, FEATURES = 12, 24, 6
SPREAD = 0.75  # standard deviation of the coordinates of the class means; that of the examples around them is 1
PRETRAINING_SIZE, TUNING_SIZE, BALANCED_SIZE, TEST_SIZE = 6000, 1500, 600, 2400
RATIO = 100.0  # of both tails
# Three models with an order of the classes each, and two more with the order of the first.
ORDERS = (0, 1, 2, 0, 0)
MODELS = len(ORDERS)
DIFFERENT = 3

Tree = Any  # a pytree of arrays
Losses = Mapping[str, Callable[..., Array]]


class Tuned(NamedTuple):
    """Test logits by loss, seed and model, the test labels, and how frequent the classes were.

    Attributes:
      logits: name of the loss -> `[seeds, models, examples, classes]`.
      labels: `[seeds, examples]`, as many of each class.
      pretraining: expected frequencies of the classes by model `[seeds, models, classes]`.
      tuning: examples of each class in tuning `[classes]`, the same for all seeds.
    """

    logits: dict[str, np.ndarray]
    labels: np.ndarray
    pretraining: np.ndarray
    tuning: np.ndarray


class _World(NamedTuple):
    """What a seed draws: the data sets, and the frequencies of the classes in pre-training."""

    pretraining: dict[str, Array]
    tuning: dict[str, Array]
    balanced: dict[str, Array]
    test: dict[str, Array]
    frequencies: Float[Array, "models classes"]


def _tuning_counts() -> np.ndarray:
    profile = RATIO ** (-np.arange(CLASSES) / (CLASSES - 1))
    full = np.full(CLASSES, int(TUNING_SIZE / profile.sum()))
    return variants.long_tail_counts(full, RATIO)


def _draw(key: PRNGKeyArray) -> _World:
    of_means, of_orders, of_labels, *of_noise = jax.random.split(key, 7)
    means = SPREAD * jax.random.normal(of_means, (CLASSES, DIMENSIONS))

    def around(key: PRNGKeyArray, labels: Int[Array, "..."]) -> dict[str, Array]:
        return {"inputs": means[labels] + jax.random.normal(key, (*labels.shape, DIMENSIONS)), "labels": labels}

    profile = RATIO ** (-jnp.arange(CLASSES) / (CLASSES - 1))
    ranks = jax.vmap(lambda key: jax.random.permutation(key, CLASSES))(jax.random.split(of_orders, DIFFERENT))
    frequencies = (profile / profile.sum())[ranks][np.array(ORDERS)]
    labels = jax.random.categorical(of_labels, jnp.log(frequencies), shape=(PRETRAINING_SIZE, MODELS))
    tuned = jnp.repeat(jnp.arange(CLASSES), _tuning_counts(), total_repeat_length=int(_tuning_counts().sum()))
    return _World(
        around(of_noise[0], labels),
        around(of_noise[1], tuned),
        around(of_noise[2], jnp.arange(BALANCED_SIZE) % CLASSES),
        around(of_noise[3], jnp.arange(TEST_SIZE) % CLASSES),
        frequencies,
    )


def _build(key: PRNGKeyArray) -> dict[str, Tree]:
    of_trunk, of_head = jax.random.split(key)
    trunk = models.functional(models.build("mlp", (DIMENSIONS,), FEATURES, key=of_trunk, widths=(32,)))
    head = models.functional(models.build("mlp", (FEATURES,), CLASSES, key=of_head, widths=()))
    return {"trunk": trunk.params, "head": head.params}


def _features(params: Mapping[str, Tree], inputs: Array) -> Array:
    trunk = models.functional(models.build("mlp", (DIMENSIONS,), FEATURES, key=jax.random.key(0), widths=(32,)))
    return jax.nn.relu(trunk.apply(params["trunk"], {}, inputs)[0])


def _classify(head: Tree, features: Array) -> Array:
    kernel = head["head"]
    return features @ kernel["kernel"] + kernel["bias"]


def tune(
    losses: Losses, *, seeds: np.ndarray, steps: int, batch_size: int, context: harness.Context, mesh: str | None
) -> Tuned:
    """Pre-trains all models of all seeds, and tunes a classifier on the features of each with each of the losses.

    Args:
      losses: by name, `loss(logits, labels, class_counts=..., model_prior=...)`, with the counts of the tuning set and
        the class frequencies that `estimate_label_prior` finds in the model as it was pre-trained.
      seeds: their numbers.
      steps: of pre-training, and of tuning.
      batch_size: examples a step.
      context: where to write and whom to tell of progress.
      mesh: as for `harness.train_seeds`.

    Returns:
      What the tuned models say of balanced test examples.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    worlds = jax.jit(jax.vmap(_draw))(keys)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    counts = jnp.asarray(_tuning_counts())

    # The models of a seed share nothing: the sum of their losses trains each by its own.
    def pretraining(params: Tree, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del extra, key

        def loss(params: Tree, inputs: Array, labels: Array) -> Array:
            return classification.cross_entropy(_classify(params["head"], _features(params, inputs)), labels)

        return LossOutput(jax.vmap(loss, (0, 1, 1))(params, batch["inputs"], batch["labels"]).sum(axis=0))

    def tuning(params: Tree, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        total = jnp.zeros(())
        for name, loss in losses.items():

            def one(head: Tree, features: Array, prior: Array, loss: Callable[..., Array] = loss) -> Array:
                return loss(_classify(head, features), batch["labels"], class_counts=counts, model_prior=prior)

            total = total + jax.vmap(one, (0, 1, 0))(params[name], batch["features"], extra).sum(axis=0)
        return LossOutput(total)

    def train(name: str, loss_fn: Any, params: Tree, extra: Tree, arrays: dict[str, Array]) -> Tree:
        start = jax.jit(jax.vmap(lambda params, extra, key: init_state(params, extra, optimizer, key=key)))
        state, _ = harness.train_seeds(
            name,
            make_step(loss_fn, optimizer),
            start(params, extra, keys),
            arrays,
            keys,
            batch_size=batch_size,
            num_steps=steps,
            context=context,
            stacked_arrays=True,
            mesh=mesh,
        )
        return jax.device_get(state.params)  # from wherever the mesh had them

    fresh = jax.jit(jax.vmap(lambda key: jax.vmap(_build)(jax.random.split(key, MODELS))))(keys)
    found = train("pretraining", pretraining, fresh, None, worlds.pretraining)

    @jax.jit
    @jax.vmap
    def as_pretrained(params: Tree, world: _World) -> tuple[Array, Array, Array]:
        """Features of the tuning and test sets, and the class frequencies that each model carries."""

        def one(params: Tree) -> tuple[Array, Array, Array]:
            zero_shot = _classify(params["head"], _features(params, world.balanced["inputs"]))
            prior = classification.estimate_label_prior(zero_shot, world.balanced["labels"])
            return _features(params, world.tuning["inputs"]), _features(params, world.test["inputs"]), prior

        tuned, test, priors = jax.vmap(one)(params)
        return tuned.swapaxes(0, 1), test, priors

    features, test, priors = as_pretrained(found, worlds)
    heads = {name: found["head"] for name in losses}
    arrays = {"features": features, "labels": worlds.tuning["labels"]}
    heads = train("tuning", tuning, heads, priors, arrays)
    logits = jax.jit(lambda heads: {name: jax.vmap(jax.vmap(_classify))(head, test) for name, head in heads.items()})(
        heads
    )
    return Tuned(
        jax.device_get(logits),
        np.asarray(worlds.test["labels"]),
        np.asarray(worlds.frequencies),
        np.asarray(counts),
    )
