"""Digits that come two at a time, and networks that learn them held to those before: by a head, or by prototypes."""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.envs import digit_tasks
from experiments.envs.digit_tasks import CLASSES
from reweight.losses import continual
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = [
    "PER_TASK",
    "TASKS",
    "Kind",
    "Part",
    "Past",
    "aligned",
    "cosine",
    "examples",
    "exemplars",
    "initial",
    "lengths",
    "part",
]

Tree = Any  # a pytree of arrays
TASKS = 5
PER_TASK = CLASSES // TASKS
Kind = Literal["any_sign", "non_negative", "prototypes"]
TASK_OF = np.arange(CLASSES) // PER_TASK


class Past(NamedTuple):
    """What is known of earlier tasks while one is trained: the model at their end, their classes, and how to hold on.

    The weight is the share of distillation, or how much the relations to prototypes count.
    """

    old: Tree
    old_classes: Any
    classes: Any
    weight: Any
    order: Any  # of each digit its class


@functools.partial(jax.jit, static_argnames="width")
@functools.partial(jax.vmap, in_axes=(0, None))
def initial(key: PRNGKeyArray, width: int) -> Tree:
    """Parameters of every seed to start from."""
    keys = jax.random.split(key, 3)
    return {
        **digit_tasks.initial(keys[0], width),
        "projection": jax.random.normal(keys[1], (width, width)) / np.sqrt(width),
        "prototypes": jax.random.normal(keys[2], (CLASSES, width)) / np.sqrt(width),
    }


def _by_head(params: Tree, past: Past, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
    """Cross-entropy of the classes so far and distillation of the old ones."""
    seen = digit_tasks.views(key, batch["inputs"])
    losses = continual.distilled_cross_entropy(
        digit_tasks.logits(params, seen),
        jnp.broadcast_to(batch["labels"][:, None], seen.shape[:2]),
        digit_tasks.logits(past.old, seen),
        distillation_weight=past.weight,
        class_mask=past.classes,
        old_mask=past.old_classes,
    )
    return LossOutput(losses.mean(axis=1), {"mask": batch["labels"] >= 0})


def _by_prototypes(params: Tree, past: Past, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
    seen, kept = digit_tasks.views(key, batch["inputs"]), batch["labels"] >= 0
    found = digit_tasks.features(params, seen)
    losses = continual.prototype_sample_relation(
        found @ params["projection"],
        found,
        batch["labels"],
        params["prototypes"],
        digit_tasks.features(past.old, seen),
        past.old["prototypes"],
        jnp.where(past.old_classes, TASK_OF, -1),
        distillation_weight=past.weight,
        mask=kept,
    )
    return LossOutput(losses, {"mask": kept})


class Part(NamedTuple):
    """How methods of one kind begin, are trained and evaluated: compiled once for all of them."""

    begin: Any
    step: Any
    evaluate: Any
    evaluate_all: Any  # the same for all seeds


def part(kind: Kind, *, learning_rate: float, prototype_rate: float) -> Part:
    """How methods of a kind learn, by Adam; prototypes by plain gradient descent."""
    test = digit_tasks.test_set()

    def evaluate(state: TrainState) -> dict[str, Array]:
        """Of each task the share of test examples classified rightly, without and with the task told."""
        params, past = state.params, state.extra
        found = digit_tasks.features(params, jnp.asarray(test["inputs"]))
        scores = (
            continual.cosine_scores(found, params["prototypes"]) if kind == "prototypes" else found @ params["head"]
        )
        labels = past.order[test["labels"]]
        tasks = labels // PER_TASK
        count = jax.ops.segment_sum(jnp.ones(len(labels)), tasks, TASKS)

        def of_tasks(among: Array) -> Array:
            right = jnp.argmax(jnp.where(among, scores, -jnp.inf), axis=1) == labels
            return jax.ops.segment_sum(right.astype(jnp.float32), tasks, TASKS) / count

        return {"accuracy": of_tasks(past.classes), "told": of_tasks(jnp.asarray(TASK_OF) == tasks[:, None])}

    rates = {
        "net": optax.adam(learning_rate),
        "head": optax.chain(optax.adam(learning_rate), optax.keep_params_nonnegative()),
        "prototypes": optax.sgd(prototype_rate),
    }
    labels = {"head": "head" if kind == "non_negative" else "net", "prototypes": "prototypes"}
    optimizer = optax.multi_transform(rates, lambda params: {name: labels.get(name, "net") for name in params})

    def begin(params: Tree, past: Past, key: PRNGKeyArray) -> TrainState:
        return init_state(params, past, optimizer, key=key)

    return Part(
        jax.jit(jax.vmap(begin, (0, Past(0, None, None, None, 0), 0))),
        make_step(_by_prototypes if kind == "prototypes" else _by_head, optimizer),
        evaluate,
        jax.jit(jax.vmap(evaluate)),
    )


def examples(
    current: Float[Array, "seeds new examples pixels"],
    memory: Float[Array, "seeds classes kept pixels"],
    new: np.ndarray,
    remembered: np.ndarray,
) -> dict[str, Array]:
    """The examples of a task and the kept ones in one array; places that are not used have the label -1."""
    labels = [
        np.repeat(new, current.shape[2]),
        np.repeat(np.where(remembered, np.arange(CLASSES), -1), memory.shape[2]),
    ]
    inputs = jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in (current, memory)], axis=1)
    return {"inputs": inputs, "labels": jnp.broadcast_to(np.concatenate(labels).astype(np.int32), inputs.shape[:2])}


@functools.partial(jax.jit, static_argnames="kept")
def exemplars(params: Tree, images: Float[Array, "seeds new examples pixels"], kept: int) -> Array:
    """The images of each class to keep."""

    def of_class(params: Tree, images: Array) -> Array:
        return images[continual.herding(digit_tasks.features(params, images), kept)]

    return jax.vmap(jax.vmap(of_class, (None, 0)))(params, images)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
def aligned(head: Array, new: Array, known: Array) -> Array:
    """Heads of every seed with the weights of the new classes as long as those of the other known ones."""
    return continual.align_weights(head, new, class_mask=known)


@jax.jit
def lengths(params: Tree) -> Array:
    """How much longer the weights of the last task's classes are than those of earlier ones."""
    length = jnp.linalg.norm(params["head"], axis=1)
    return length[:, -PER_TASK:].mean(axis=1) / length[:, :-PER_TASK].mean(axis=1)


@jax.jit
def cosine(params: Tree, images: Float[Array, "seeds classes examples pixels"]) -> Array:
    """The mean cosine of the prototypes of earlier tasks to the mean directions of their classes' features."""

    def of_seed(params: Tree, images: Array) -> Array:
        found = digit_tasks.features(params, images)
        means = jnp.mean(found / jnp.linalg.norm(found, axis=-1, keepdims=True).clip(1e-6), axis=1)
        return jnp.mean(jnp.diag(continual.cosine_scores(means, params["prototypes"]))[:-PER_TASK])

    return jax.vmap(of_seed)(params, images)
