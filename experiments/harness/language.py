"""Training the language models of an experiment on a sequence task, all seeds side by side on the device."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.harness.command import Context
from experiments.harness.seeds import train_seeds
from reweight import decoding, models
from reweight.data.sequences import SequenceBatch, SequenceTask
from reweight.train import LossOutput, init_state, make_step, token_reduction

__all__ = [
    "LanguageTraining",
    "Trained",
    "answer_log_probs",
    "decoder_for",
    "exact_accuracy",
    "log_probs_from_hidden",
    "train_language",
]

Tree = Any  # a pytree of arrays
Hidden = Float[Array, "batch time features"]
Tokens = Int[Array, "batch time"]
LogProbs = Float[Array, "batch time"]


def decoder_for(task: SequenceTask, name: str = "0.2M", **changes: Any) -> models.DecoderConfig:
    """A decoder of `models.DECODERS` for the vocabulary and the length of a task; `changes` are made besides."""
    fitted = {"vocab_size": task.vocab_size, "max_length": task.max_length}
    return dataclasses.replace(models.DECODERS[name], **(fitted | changes))


def log_probs_from_hidden(
    model: models.LanguageModel, params: Tree, hidden: Hidden, targets: Tokens, mask: Array
) -> LogProbs:
    """Log-probabilities of the targets by `tokens.token_statistics`; 0 where masked."""
    log_probs = model.token_statistics(params, hidden, targets, mask=mask).log_probs
    assert log_probs is not None
    return log_probs


class LanguageTraining(NamedTuple):
    """How a language model is trained.

    Attributes:
      config: the shape of the model.
      optimizer: an optax transformation.
      steps: how many steps.
      batch_size: rows of a step.
      examples: rows of the training set, of which every seed draws its own.
      log_probs: how the log-probabilities of the targets come from the hidden states.
    """

    config: models.DecoderConfig
    optimizer: optax.GradientTransformation
    steps: int
    batch_size: int = 32
    examples: int = 8192
    log_probs: Callable[[models.LanguageModel, Tree, Hidden, Tokens, Array], LogProbs] = log_probs_from_hidden


class Trained(NamedTuple):
    """What the training of a language model gave.

    Attributes:
      params: of every seed, `[seeds, ...]`.
      config: the shape of the model.
      metrics: of every step `[seeds, steps]`; `loss` is the mean over the answers' tokens, in nats.
    """

    params: Tree
    config: models.DecoderConfig
    metrics: dict[str, np.ndarray]


class _Keys(NamedTuple):
    """A seed's keys: of the initial parameters, of the training set, of the run, and of the order of the rows."""

    model: PRNGKeyArray
    data: PRNGKeyArray
    run: PRNGKeyArray
    order: PRNGKeyArray


def _functions(config: models.DecoderConfig) -> models.LanguageModel:
    """The functions of a model, with no parameters drawn."""
    return jax.eval_shape(lambda: models.language_model(config, key=jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0))
def _initial(
    config: models.DecoderConfig, task: SequenceTask, examples: int, model_key: PRNGKeyArray, data_key: PRNGKeyArray
) -> tuple[Tree, dict[str, Array]]:
    """The parameters and the training set with which seeds start, compiled once for all methods."""
    rows = task.sample(data_key, examples)
    arrays = {"tokens": rows.tokens, "real": rows.mask, "mask": rows.response_mask[:, 1:]}
    return models.language_model(config, key=model_key).params, arrays


def train_language(
    method: str,
    task: SequenceTask,
    training: LanguageTraining,
    *,
    seeds: Sequence[int] | np.ndarray,
    mesh: str | None = None,
    context: Context | None = None,
    every: int = 10,
) -> Trained:
    """Trains a decoder to answer, by the cross-entropy of the answers' tokens, over all seeds at once.

    Prompts are read and not learnt. A seed draws the training set, the initial parameters and the order of the rows.
    The run writes metrics and checkpoints and can be gone on with, as `train_seeds` says.

    Args:
      method: the name under which files are written and progress is told.
      task: what is learnt.
      training: how.
      seeds: their numbers.
      mesh: devices among which the seeds are divided along the axis `data`, such as `"data=8"`. Default: one device.
      context: where to write and whom to tell of progress.
      every: steps between two records of the metrics on disk.

    Returns:
      The parameters of every seed, and the metrics of all steps.
    """
    keys = jax.vmap(lambda seed: _Keys(*jax.random.split(jax.random.key(seed), 4)))(jnp.asarray(seeds))
    model = _functions(training.config)

    def loss_fn(params: Tree, extra: Tree, batch: Any, key: PRNGKeyArray) -> LossOutput:
        del key
        hidden, _ = model.apply(params, batch["tokens"][:, :-1], mask=batch["real"][:, :-1])
        log_probs = training.log_probs(model, params, hidden, batch["tokens"][:, 1:], batch["mask"])
        return LossOutput(-log_probs, extra=extra)

    params, arrays = _initial(training.config, task, training.examples, keys.model, keys.data)
    state = jax.vmap(lambda params, key: init_state(params, None, training.optimizer, key=key))(params, keys.run)
    state, metrics = train_seeds(
        method,
        make_step(loss_fn, training.optimizer, reduction=token_reduction("token-mean")),
        state,
        arrays,
        keys.order,
        batch_size=training.batch_size,
        num_steps=training.steps,
        context=Context() if context is None else context,
        stacked_arrays=True,
        every=every,
        mesh=mesh,
    )
    return Trained(state.params, training.config, metrics)


def answer_log_probs(trained: Trained, batch: SequenceBatch) -> Float[np.ndarray, "seeds n"]:
    """What the models of all seeds make of given answers: the sums of their tokens' log-probabilities.

    Args:
      trained: the models.
      batch: prompts with answers.

    Returns:
      Log-probabilities of the answers `[seeds, n]`.
    """
    return np.asarray(_answer_log_probs(trained.config, trained.params, batch))


@functools.partial(jax.jit, static_argnums=0)
def _answer_log_probs(config: models.DecoderConfig, params: Tree, batch: SequenceBatch) -> Float[Array, "seeds n"]:
    model = _functions(config)

    def of_one(params: Tree) -> Array:
        hidden, _ = model.apply(params, batch.tokens[:, :-1], mask=batch.mask[:, :-1])
        log_probs = log_probs_from_hidden(model, params, hidden, batch.tokens[:, 1:], batch.response_mask[:, 1:])
        return jnp.sum(log_probs, axis=1)

    return jax.vmap(of_one)(params)


def exact_accuracy(
    trained: Trained, task: SequenceTask, *, prompts: int = 256, key: PRNGKeyArray | None = None
) -> Float[np.ndarray, " seeds"]:
    """The share of fresh prompts that every seed's model, taking the most probable token each time, answers exactly.

    Args:
      trained: the models.
      task: what they were trained on.
      prompts: how many prompts, the same ones for every seed.
      key: draws the prompts. Default: one that no seed is trained with.

    Returns:
      The share of answers of reward 1, `[seeds]`.
    """
    key = jax.random.fold_in(jax.random.key(0), 2**31) if key is None else key
    return np.asarray(_exact(trained.config, task, prompts, trained.params, key))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _exact(
    config: models.DecoderConfig, task: SequenceTask, prompts: int, params: Tree, key: PRNGKeyArray
) -> Float[Array, " seeds"]:
    asked = task.prompts(key, prompts)
    model = _functions(config)

    def of_one(params: Tree) -> Array:
        samples = decoding.sample(
            key, params, model, asked.tokens, asked.mask,
            max_new_tokens=task.response_length, temperature=0.0, stop_tokens=(task.eos_id,),
        )  # fmt: skip
        rewards = task.reward(asked.tokens, samples.tokens[:, 0], samples.mask[:, 0])
        return jnp.mean(rewards == 1, dtype=jnp.float32)

    return jax.vmap(of_one)(params)
