"""Sampling from a language model, the whole loop on the device."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.decoding.truncation import top_k_mask, top_p_mask

__all__ = ["Samples", "SequenceModel", "sample"]

FUNCTION = "decoding.sample"


class SequenceModel(Protocol):
    """What `sample` needs of a model; `models.LanguageModel` has it.

    A cache is a tree of arrays with the batch as their leading axis, and of scalars. The model without one, which
    `use_cache=False` takes, has no `init_cache`.
    """

    def apply(self, params: Any, tokens: Any, /, *, mask: Any = None, cache: Any = None) -> tuple[Any, Any]:
        """`(hidden [B, T, D], cache)` of tokens `[B, T]`, after those in the cache; positions count unmasked tokens."""
        ...

    def logits(self, params: Any, hidden: Any, /) -> Any:
        """Logits `[..., V]` of hidden states `[..., D]`."""
        ...

    def init_cache(self, batch_size: int, length: int, /) -> Any:
        """An empty cache with room for `length` tokens."""
        ...


class Samples(NamedTuple):
    """Sampled continuations of prompts.

    Attributes:
      tokens: `[prompts, samples, new]`, `pad_token` after the stop token.
      mask: which of them were sampled, the stop token included.
      log_probs: the model's log-probabilities of them, at temperature 1 and over the whole vocabulary: those of the
        policy, which a forward pass over prompt and answer gives again. 0 where masked.
      sampling_log_probs: those of the distribution that they were drawn from, after temperature, top-k and top-p: the
        behaviour policy of importance sampling. 0 where masked, and where the choice was greedy.
      stopped: `[prompts, samples]`, whether a stop token came; an answer that did not was cut off.
    """

    tokens: Int[Array, "prompts samples new"]
    mask: Bool[Array, "prompts samples new"]
    log_probs: Float[Array, "prompts samples new"]
    sampling_log_probs: Float[Array, "prompts samples new"]
    stopped: Bool[Array, "prompts samples"]


class _Draw(NamedTuple):
    """One token for each row."""

    token: Int[Array, " rows"]
    log_prob: Float[Array, " rows"]
    sampling_log_prob: Float[Array, " rows"]


def _scores(
    logits: Float[Array, "rows vocabulary"], temperature: Any, top_k: Any, top_p: Any
) -> Float[Array, "rows vocabulary"]:
    """Logits of the distribution to draw from: -inf for tokens that are ruled out."""
    greedy = jnp.where(jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool), 0.0, -jnp.inf)
    warm = jnp.asarray(temperature) > 0
    # Centred, so that a small temperature makes -inf of what is far below the largest, and nothing infinite of that.
    centred = logits - jnp.max(logits, axis=-1, keepdims=True)
    scores = jnp.where(warm, centred / jnp.where(warm, temperature, 1), greedy)
    if top_k is not None:
        scores = jnp.where(top_k_mask(scores, k=top_k), scores, -jnp.inf)
    if top_p is not None:
        scores = jnp.where(top_p_mask(scores, p=top_p), scores, -jnp.inf)
    return scores


def _draw(
    keys: PRNGKeyArray, step: Any, logits: Float[Array, "rows vocabulary"], temperature: Any, top_k: Any, top_p: Any
) -> _Draw:
    logits = logits.astype(_checks.accumulation_dtype(logits))
    scores = _scores(logits, temperature, top_k, top_p)
    # A key for each row and step, so that a row's noise depends on no other row and on no length.
    token = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))(keys, scores)

    def pick(scores: Array) -> Array:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), token[:, None], axis=-1)[:, 0]
        return chosen.astype(jnp.float32)

    return _Draw(token.astype(jnp.int32), pick(logits), pick(scores))


class _Context(NamedTuple):
    """The tokens so far, for a model without a cache."""

    tokens: Int[Array, "rows length"]
    mask: Bool[Array, "rows length"]


def _check(
    prompts: Any, prompt_mask: Any, prompt_ids: Any, stop_tokens: Any, pad_token: Any, sizes: dict[str, int]
) -> None:
    _checks.array(FUNCTION, "prompts", prompts, ndim=2, kind="integer")
    rows, length = jnp.shape(prompts)
    if not length:
        _checks.fail(FUNCTION, "prompts", f"of shape {(rows, length)}", "prompts of at least one token")
    if prompt_mask is not None:
        _checks.array(FUNCTION, "prompt_mask", prompt_mask, shape=(rows, length))
    if prompt_ids is not None:
        _checks.array(FUNCTION, "prompt_ids", prompt_ids, shape=(rows,), kind="integer")
    for name, value in sizes.items():
        if isinstance(value, jax.Array):
            _checks.fail(FUNCTION, name, "an array", "a Python integer, as it makes shapes")
        _checks.number(FUNCTION, name, value, low=1, integer=True)
    _checks.number(FUNCTION, "pad_token", pad_token, integer=True)
    if isinstance(stop_tokens, jax.Array | np.ndarray):
        _checks.array(FUNCTION, "stop_tokens", stop_tokens, ndim=1, kind="integer")
    else:
        for token in stop_tokens:
            _checks.number(FUNCTION, "stop_tokens", token, low=0, integer=True)


def sample(
    key: PRNGKeyArray,
    params: Any,
    model: SequenceModel,
    prompts: Int[Array, "prompts length"],
    prompt_mask: Bool[Array, "prompts length"] | Num[Array, "prompts length"] | None = None,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] | None = None,
    top_p: float | Float[Array, ""] | None = None,
    stop_tokens: Sequence[int] | Int[Array, " stops"] = (),
    pad_token: int = 0,
    prompt_ids: Int[Array, " prompts"] | None = None,
    use_cache: bool = True,
) -> Samples:
    """Continuations of prompts, token by token, until a stop token or `max_new_tokens`.

        draw = jax.jit(lambda key, params, prompts: decoding.sample(key, params, model, prompts, max_new_tokens=32))

    Each prompt is run once; its cache is repeated for its samples. The loop ends as soon as all rows have stopped.
    Logits are divided by the temperature, cut to the `top_k` largest, then to the smallest set that has the mass
    `top_p` of what is left.

    Random numbers depend on the key, the prompt's id, the sample and the step, on nothing else: a batch can be split in
    any way if `prompt_ids` says which prompt is which, and more new tokens or samples leave the others as they were.

    No gradient flows: the log-probabilities are data. Run the model over prompts and answers to differentiate them.

    Args:
      key: one random key.
      params: the model's parameters.
      model: functions `apply`, `logits` and `init_cache`, such as a `models.LanguageModel`.
      prompts: token ids `[B, P]`, `P` at least 1.
      prompt_mask: boolean or 0/1 `[B, P]`, 0 for padding, on the left or on the right. Default: no padding. A prompt
        that is all padding has no samples: their mask is False.
      max_new_tokens: the most tokens of an answer, at least 1.
      num_samples: independent answers for each prompt, at least 1.
      temperature: divides the logits, in [0, inf); 0 takes the most probable token. May be traced.
      top_k: the number of most probable tokens to choose from, at least 1; None for all. May be traced.
      top_p: their mass, in (0, 1]; None for all. May be traced.
      stop_tokens: token ids that end an answer and belong to it.
      pad_token: the token id that fills an answer after its end.
      prompt_ids: what tells the prompts apart in their random numbers `[B]`, non-negative. Default: their rows. Prompts
        of equal id are sampled with the same noise.
      use_cache: False runs the model over the whole text for each token: much slower, for models without a cache.

    Returns:
      Tokens, mask and log-probabilities `[B, num_samples, max_new_tokens]`, and which answers stopped by themselves.

    Raises:
      ValueError: if a shape does not fit, or a hyperparameter is out of range.

    References:
      Fan, Lewis, Dauphin, *Hierarchical Neural Story Generation*, 2018, arXiv 1805.04833, for top-k. Holtzman et al.,
      *The Curious Case of Neural Text Degeneration*, 2020, arXiv 1904.09751, for top-p.
    """
    sizes = {"max_new_tokens": max_new_tokens, "num_samples": num_samples}
    _check(prompts, prompt_mask, prompt_ids, stop_tokens, pad_token, sizes)
    _checks.number(FUNCTION, "temperature", temperature, low=0, open_high=True)
    if top_k is not None:
        _checks.number(FUNCTION, "top_k", top_k, low=1, integer=True)
    if top_p is not None:
        _checks.number(FUNCTION, "top_p", top_p, low=0, open_low=True, high=1)
    for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
        if value is not None:
            _checks.array(FUNCTION, name, value, ndim=0)
    params = jax.lax.stop_gradient(params)
    batch, length = jnp.shape(prompts)
    total = length + max_new_tokens
    prompts = jnp.asarray(prompts).astype(jnp.int32)
    known = _checks.kept(prompt_mask, (batch, length))
    ids = jnp.arange(batch) if prompt_ids is None else jnp.asarray(prompt_ids)
    stops = jnp.asarray(stop_tokens, jnp.int32)

    def repeat(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.repeat(x, num_samples, axis=0) if x.ndim else x, tree)

    def row_keys(prompt: Array) -> PRNGKeyArray:
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, prompt), jnp.arange(num_samples))

    keys = jax.vmap(row_keys)(ids)
    keys = keys.reshape(batch * num_samples, *keys.shape[2:])
    hidden, cache = model.apply(
        params, prompts, mask=known, cache=model.init_cache(batch, total) if use_cache else None
    )
    last = jnp.max(jnp.where(known, jnp.arange(length), 0), axis=1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    pad = ((0, 0), (0, max_new_tokens))
    context = cache if use_cache else _Context(jnp.pad(prompts, pad), jnp.pad(known, pad))
    context, logits, alive = repeat((context, model.logits(params, hidden), jnp.any(known, axis=1)))

    def extend(context: Any, token: Array, alive: Array, step: Any) -> tuple[Any, Array]:
        """The text with one token more in each row that is alive, and the logits of the next."""
        if use_cache:
            hidden, context = model.apply(params, token[:, None], mask=alive[:, None], cache=context)
            return context, model.logits(params, hidden[:, 0])
        slot = length + step
        context = _Context(context.tokens.at[:, slot].set(token), context.mask.at[:, slot].set(alive))
        hidden, _ = model.apply(params, context.tokens, mask=context.mask, cache=None)
        return context, model.logits(params, jax.lax.dynamic_index_in_dim(hidden, slot, 1, keepdims=False))

    def record(samples: Samples, logits: Array, alive: Array, step: Any) -> tuple[Samples, Array, Array]:
        """One token drawn for each row that is alive, written down; the tokens, and which rows go on."""
        drawn = _draw(keys, step, logits, temperature, top_k, top_p)
        token = jnp.where(alive, drawn.token, jnp.int32(pad_token))
        stop = alive & jnp.any(token[:, None] == stops, axis=-1)
        samples = Samples(
            tokens=samples.tokens.at[:, step].set(token),
            mask=samples.mask.at[:, step].set(alive),
            log_probs=samples.log_probs.at[:, step].set(jnp.where(alive, drawn.log_prob, 0)),
            sampling_log_probs=samples.sampling_log_probs.at[:, step].set(jnp.where(alive, drawn.sampling_log_prob, 0)),
            stopped=samples.stopped | stop,
        )
        return samples, token, alive & ~stop

    def running(carry: tuple[Any, ...]) -> Array:
        step, _, _, _, alive = carry
        return (step < max_new_tokens) & jnp.any(alive)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, context, samples, token, alive = carry
        context, logits = extend(context, token, alive, step - 1)
        samples, token, alive = record(samples, logits, alive, step)
        return step + 1, context, samples, token, alive

    shape = (batch * num_samples, max_new_tokens)
    zeros = jnp.zeros(shape, jnp.float32)
    empty = Samples(
        jnp.full(shape, pad_token, jnp.int32), jnp.zeros(shape, bool), zeros, zeros, jnp.zeros(shape[:1], bool)
    )
    samples, token, alive = record(empty, logits, alive, 0)
    samples = jax.lax.while_loop(running, body, (jnp.int32(1), context, samples, token, alive))[2]
    return jax.tree.map(lambda x: x.reshape(batch, num_samples, *x.shape[1:]), samples)
