"""A small language model learns from preferences between its own reviews: reward and divergence along the way.

One model learns the grammar of reviews and is the reference. For every seed it writes two reviews of each prompt, and
an annotator, who knows how good a review is, prefers one as Bradley and Terry say. All losses then train a copy of the
model on the same pairs, side by side; now and then each writes reviews, whose true quality is the reward, and whose
log-probabilities give the divergence.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from experiments import harness
from experiments.envs.preference_learning import Method, View
from experiments.harness.language import LanguageTraining, decoder_for, log_probs_from_hidden, train_language
from reweight import _checks, decoding, models
from reweight.data.sequences import Sentiment
from reweight.losses import preference
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = ["LanguageConfig", "learn_language"]

Tree = Any  # a pytree of arrays
TASK = Sentiment(max_clauses=3)
MODEL = decoder_for(TASK, "0.2M", d_model=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=64)
SHARPNESS = 8.0  # of the annotator: the quality of reviews varies by about 0.15


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """How large the runs with the language model are."""

    reference_steps: int = 200
    prompts: int = 512
    steps: int = 150
    batch_size: int = 16
    learning_rate: float = 1e-3
    evaluations: int = 6
    reviews: int = 256


class Texts(NamedTuple):
    """Prompts with reviews, and which of the tokens belong to the reviews."""

    tokens: Int[Array, "*rows time"]
    mask: Bool[Array, "*rows time"]


def _model() -> models.LanguageModel:
    """The functions of the model; its parameters are shapes."""
    return jax.eval_shape(lambda: models.language_model(MODEL, key=jax.random.key(0)))


def _sums(params: Tree, texts: Texts) -> preference.SequenceLogProbs:
    """Log-probs and lengths of reviews `[..., time]`."""
    model = _model()
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), texts)
    seen, targets, mask = flat.tokens[:, :-1], flat.tokens[:, 1:], flat.mask[:, 1:]
    hidden, _ = model.apply(params, seen, mask=seen != TASK.pad_id)
    found = preference.sequence_log_probs(log_probs_from_hidden(model, params, hidden, targets, mask), mask)
    return jax.tree.map(lambda x: x.reshape(texts.tokens.shape[:-1]), found)


class Reviews(NamedTuple):
    """What a model wrote, several reviews of each prompt: with quality, and log-probability under the model."""

    texts: Texts
    quality: Float[Array, "n num"]
    log_probs: Float[Array, "n num"]


def _write(key: PRNGKeyArray, params: Tree, number: int, num: int) -> Reviews:
    ask, write = jax.random.split(key)
    prompts = TASK.prompts(ask, number).tokens
    samples = decoding.sample(
        write,
        params,
        _model(),
        prompts,
        max_new_tokens=TASK.response_length,
        num_samples=num,
        stop_tokens=(TASK.eos_id,),
    )
    repeated = jnp.repeat(prompts[:, None], num, axis=1)
    quality = jax.vmap(TASK.reward, (None, 1, 1), 1)(prompts, samples.tokens, samples.mask)
    mask = jnp.concatenate([jnp.zeros(repeated.shape, bool), samples.mask], axis=-1)
    texts = Texts(jnp.concatenate([repeated, samples.tokens], axis=-1), mask)
    return Reviews(texts, quality, jnp.sum(samples.log_probs, axis=-1))


def _pairs(key: PRNGKeyArray, reference: Tree, number: int) -> dict[str, Array]:
    """The pairs of a seed, chosen before rejected, with what the reference says of them."""
    write, prefer = jax.random.split(key)
    reviews = _write(write, reference, number, 2)
    wins = jax.nn.sigmoid(SHARPNESS * (reviews.quality[:, 0] - reviews.quality[:, 1]))
    order = jnp.where(jax.random.bernoulli(prefer, wins)[:, None], jnp.array([0, 1]), jnp.array([1, 0]))

    def ordered(values: Array) -> Array:
        return jnp.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), axis=1)

    return {
        "tokens": ordered(reviews.texts.tokens),
        "of_review": ordered(reviews.texts.mask),
        "reference": ordered(reviews.log_probs),
        "quality": ordered(reviews.quality),
    }


def _of_all_answers() -> NoReturn:
    """What a bandit's losses may ask of all the answers to a prompt, and a language model cannot tell."""
    came = "with a loss that looks at all the answers to a prompt"
    _checks.fail("experiments.learn_language", "methods", came, "losses of the log-probabilities of the two answers")


def learn_language(
    methods: Mapping[str, Method],
    knobs: Sequence[float],
    config: LanguageConfig,
    *,
    seeds: Sequence[int] | np.ndarray,
    mesh: str | None,
    context: harness.Context,
) -> dict[str, Float[np.ndarray, "seeds evaluations methods"]]:
    """Trains the reference, then a copy by each of the losses, for all seeds at once.

    Args:
      methods: losses of pairs, by name.
      knobs: of each of them.
      config: how large the runs are.
      seeds: their numbers.
      mesh: devices among which the seeds are divided along the axis `data`. Default: one device.
      context: where to write and whom to tell of progress.

    Returns:
      `reward`, the mean quality of reviews, and `kl`, in nats a review; at first those of the reference.

    Raises:
      ValueError: if a loss looks at all the answers to a prompt, which only a bandit can list.
    """
    training = LanguageTraining(MODEL, optax.adam(1e-2), config.reference_steps, batch_size=32, examples=4096)
    trained = train_language("reference", TASK, training, seeds=[0], context=context, every=50)
    reference = jax.tree.map(lambda x: x[0], trained.params)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))

    def loss_fn(params: Tree, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        texts = Texts(batch["tokens"], batch["of_review"])
        found = jax.vmap(_sums, (0, None))(params, texts)
        total, states = jnp.zeros(len(batch["tokens"])), {}
        for i, (name, method) in enumerate(methods.items()):
            view = View(
                policy=found.sums[i],
                reference=batch["reference"],
                lengths=found.lengths[i],
                ratings=batch["quality"],
                counted=jnp.ones_like(total, bool),
                flip_rate=0.0,
                mismatched=_of_all_answers,
                divergence=_of_all_answers,
                sum_squares=_of_all_answers,
            )
            losses, states[name] = method.loss(view, jnp.asarray(knobs[i]), extra[name])
            total = total + losses
        return LossOutput(total, extra=states)

    def evaluate(params: Tree) -> dict[str, Array]:
        # The same prompts and random numbers for all policies.
        reviews = _write(jax.random.key(2**31), params, config.reviews, 1)
        ratios = reviews.log_probs - _sums(reference, reviews.texts).sums
        return {"reward": jnp.mean(reviews.quality), "kl": jnp.mean(ratios)}

    optimizer = optax.adam(config.learning_rate)

    @jax.jit
    @jax.vmap
    def start(key: PRNGKeyArray) -> tuple[TrainState, dict[str, Array]]:
        draw, run = jax.random.split(key)
        params = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(methods), *x.shape)), reference)
        states = {name: () if method.init is None else method.init(run) for name, method in methods.items()}
        return init_state(params, states, optimizer, key=run), _pairs(draw, reference, config.prompts)

    state, arrays = start(keys)
    _, found = harness.train_seeds(
        "language",
        make_step(loss_fn, optimizer),
        state,
        arrays,
        keys,
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        every=10,
        eval_fn=lambda state: jax.vmap(evaluate)(state.params),
        eval_every=-(-config.steps // config.evaluations),
        mesh=mesh,
    )

    def after(reference: float, later: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full((len(seeds), 1, len(methods)), reference), later], axis=1)

    return {
        "reward": after(float(jnp.mean(arrays["quality"])), found["reward"]),
        "kl": after(0.0, found["kl"]),
    }
