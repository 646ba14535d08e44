"""What all sequence tasks share: vocabulary and text, the layout of a batch, and the way to a reward.

A task says how one example is drawn and how one response is scored; batches are `vmap`s of that. Every row of a batch
has the same two fields: columns `[0, P)` are the prompt, padded on the left, columns `[P, P + R)` the answer, padded on
the right. So the real tokens of a row are contiguous, `tokens[:, :P]` is what a sampler starts from, and `join` puts
what it samples in the place of the answer.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks

__all__ = ["SPECIAL", "Prompts", "Response", "SequenceBatch", "SequenceTask", "join"]

SPECIAL = ("<pad>", "<bos>", "<eos>", "<sep>")
PAD, BOS, EOS, SEP = range(len(SPECIAL))

T = TypeVar("T")
Mask = Bool[Array, "n *samples time"] | Num[Array, "n *samples time"]


class SequenceBatch(NamedTuple):
    """Prompts with their answers.

    Attributes:
      tokens: ids `[n, P + R]`, int32.
      mask: the real tokens, that is all but padding.
      response_mask: the tokens of the answer, the end token included.
      prompt_mask: the tokens of the prompt.
    """

    tokens: Int[Array, "n time"]
    mask: Bool[Array, "n time"]
    response_mask: Bool[Array, "n time"]
    prompt_mask: Bool[Array, "n time"]


class Prompts(NamedTuple):
    """Prompts alone.

    Attributes:
      tokens: ids `[n, P]`, int32, padded on the left.
      mask: the real tokens.
    """

    tokens: Int[Array, "n prompt"]
    mask: Bool[Array, "n prompt"]


def join(
    prompts: Int[Array, "n prompt"], prompt_mask: Mask, responses: Int[Array, "n *samples time"], response_mask: Mask
) -> SequenceBatch:
    """Prompts with the responses of a model, or with the answers of other rows.

        prompts = task.prompts(key, 64)
        drawn = decoding.sample(key, params, model, prompts.tokens, prompts.mask, max_new_tokens=task.response_length)
        batch = sequences.join(prompts.tokens, prompts.mask, drawn.tokens, drawn.mask)  # [64, samples, time]

    Args:
      prompts: ids `[n, P]`.
      prompt_mask: boolean or 0/1 `[n, P]`: the real tokens.
      responses: ids `[n, R]`, or several a prompt `[n, samples, R]`.
      response_mask: boolean or 0/1, of the same shape: the tokens of the response, its end token included.

    Returns:
      A `SequenceBatch` of width `P + R`, with the leading axes of the responses.

    Raises:
      ValueError: if the shapes do not fit.
    """
    function = "data.sequences.join"
    _checks.array(function, "prompts", prompts, ndim=2, kind="integer")
    _checks.array(function, "prompt_mask", prompt_mask, shape=jnp.shape(prompts))
    _checks.array(function, "responses", responses, ndim=(2, 3), kind="integer")
    leading = jnp.shape(responses)[:-1]
    if leading[0] != jnp.shape(prompts)[0]:
        _checks.fail(function, "responses", f"of shape {jnp.shape(responses)}", f"{jnp.shape(prompts)[0]} rows")
    _checks.array(function, "response_mask", response_mask, shape=jnp.shape(responses))

    def repeated(array: Array) -> Array:
        if len(leading) > 1:
            array = array[:, None]
        return jnp.broadcast_to(array, (*leading, array.shape[-1]))

    asked, answered = repeated(jnp.asarray(prompt_mask) != 0), jnp.asarray(response_mask) != 0
    tokens = jnp.concatenate([repeated(jnp.asarray(prompts)), responses], axis=-1).astype(jnp.int32)
    in_prompt = jnp.concatenate([asked, jnp.zeros_like(answered)], axis=-1)
    in_response = jnp.concatenate([jnp.zeros_like(asked), answered], axis=-1)
    mask = in_prompt | in_response
    return SequenceBatch(jnp.where(mask, tokens, PAD), mask, in_response, in_prompt)


class Response(NamedTuple):
    """One response as a scorer sees it.

    Attributes:
      tokens: ids of the vocabulary `[R]`; padding from the end token on, and where the mask or the id was off.
      length: how many tokens stand before the end token; `R` without one.
      ended: whether there is an end token.
    """

    tokens: Int[Array, " response"]
    length: Int[Array, ""]
    ended: Bool[Array, ""]

    @property
    def before_end(self) -> Bool[Array, " response"]:
        """The columns before the end token."""
        return jnp.arange(self.tokens.shape[0]) < self.length


@dataclasses.dataclass(frozen=True)
class SequenceTask(abc.ABC):
    """A synthetic task on token sequences, with exact answers and an exact reward.

    Tasks are pure generators: nothing is stored or downloaded, every example comes from the key. The methods on arrays
    run under `jax.jit` (`n` is static) and `jax.vmap` over keys.
    """

    @property
    @abc.abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """The symbols of the task itself, without white space."""

    @property
    @abc.abstractmethod
    def prompt_length(self) -> int:
        """The width `P` of prompts."""

    @property
    @abc.abstractmethod
    def response_length(self) -> int:
        """The width `R` of answers, with their end token."""

    @abc.abstractmethod
    def _example(self, key: PRNGKeyArray) -> tuple[Int[Array, " prompt"], Int[Array, " response"]]:
        """A prompt, padded on the left, and its answer with the end token, padded on the right."""

    @abc.abstractmethod
    def _score(self, prompt: Int[Array, " prompt"], response: Response) -> Float[Array, ""]:
        """The reward of one response to a prompt of this task."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All symbols; the id of a symbol is its place."""
        return SPECIAL + self.symbols

    @property
    def vocab_size(self) -> int:
        """How many symbols there are."""
        return len(self.vocabulary)

    @property
    def max_length(self) -> int:
        """The width `P + R` of a batch."""
        return self.prompt_length + self.response_length

    @property
    def pad_id(self) -> int:
        """The id of padding."""
        return PAD

    @property
    def bos_id(self) -> int:
        """The id of the token that every prompt begins with."""
        return BOS

    @property
    def eos_id(self) -> int:
        """The id of the token that every answer ends with."""
        return EOS

    @property
    def sep_id(self) -> int:
        """The id of the separator."""
        return SEP

    def _id(self, symbol: str) -> int:
        return self.vocabulary.index(symbol)

    def _ids(self, text: str) -> Int[Array, " time"]:
        return jnp.asarray(self.encode(text))

    def encode(self, text: str) -> Int[np.ndarray, " time"]:
        """The ids of a text of symbols separated by white space.

        Args:
          text: symbols of the vocabulary.

        Returns:
          Their ids, int32.

        Raises:
          ValueError: if a word is not in the vocabulary.
        """
        words = text.split()
        for word in words:
            if word not in self.vocabulary:
                _checks.fail(self._name("encode"), "text", f"with {word!r}", f"words of {' '.join(self.vocabulary)}")
        return np.array([self.vocabulary.index(word) for word in words], np.int32)

    def decode(self, ids: Int[Array, " time"] | Iterable[int]) -> str:
        """The text of one row of ids: symbols with spaces between them, without padding.

        Args:
          ids: one row of ids of the vocabulary.

        Returns:
          The text, of which `encode` makes the ids again.

        Raises:
          ValueError: if an id is not in the vocabulary.
        """
        row = np.asarray(ids)
        if row.ndim != 1 or not np.all((row >= 0) & (row < self.vocab_size)):
            _checks.fail(self._name("decode"), "ids", repr(row.tolist()), f"one row of ids in [0, {self.vocab_size})")
        return " ".join(self.vocabulary[i] for i in row if i != PAD)

    def sample(self, key: PRNGKeyArray, n: int) -> SequenceBatch:
        """Draws prompts with their answers.

        Args:
          key: determines the batch.
          n: how many rows.

        Returns:
          A `SequenceBatch` of width `max_length`.

        Raises:
          ValueError: if `n` is not a positive integer.
        """
        _checks.number(self._name("sample"), "n", n, low=1, integer=True)
        prompts, answers = jax.vmap(self._example)(jax.random.split(key, n))
        tokens = jnp.concatenate([prompts, answers], axis=1).astype(jnp.int32)
        mask = tokens != PAD
        in_response = jnp.arange(self.max_length) >= self.prompt_length
        return SequenceBatch(tokens, mask, mask & in_response, mask & ~in_response)

    def prompts(self, key: PRNGKeyArray, n: int) -> Prompts:
        """Draws prompts: those of `sample` for the same key.

        Args:
          key: determines the prompts.
          n: how many.

        Returns:
          `Prompts` of width `prompt_length`.

        Raises:
          ValueError: if `n` is not a positive integer.
        """
        batch = self.sample(key, n)
        return Prompts(batch.tokens[:, : self.prompt_length], batch.mask[:, : self.prompt_length])

    def reward(
        self, prompts: Int[Array, "n prompt"], responses: Int[Array, "n *samples time"], response_mask: Mask
    ) -> Float[Array, "n *samples"]:
        """The reward of responses, in [0, 1]: 1 for the answer of `sample`, 0 for garbage; the class says what between.

        Args:
          prompts: ids `[n, P]` as `prompts` and `sample` give them.
          responses: ids of any width, one response a prompt `[n, T]` or several `[n, samples, T]`. Any ids have a
            reward; those outside the vocabulary count as padding. What follows the first end token is not read.
          response_mask: boolean or 0/1, of the same shape: the tokens of the response, its end token included. Tokens
            that are masked count as padding.

        Returns:
          Rewards `[n]` or `[n, samples]`, float32.

        Raises:
          ValueError: if the shapes do not fit.
        """
        return self._per_row(self._score, "reward", prompts, responses, response_mask).astype(jnp.float32)

    def _name(self, method: str) -> str:
        return f"data.sequences.{type(self).__name__}.{method}"

    def _per_row(
        self,
        function: Callable[[Int[Array, " prompt"], Response], T],
        method: str,
        prompts: Int[Array, "n prompt"],
        responses: Int[Array, "n *samples time"],
        response_mask: Mask,
    ) -> T:
        """Applies a function of one prompt and one response to all responses."""
        name = self._name(method)
        _checks.array(name, "prompts", prompts, shape=(None, self.prompt_length), kind="integer")
        several = jnp.ndim(responses) == 3
        wanted = (jnp.shape(prompts)[0], *(None,) * (1 + several))
        _checks.array(name, "responses", responses, shape=wanted, kind="integer")
        _checks.array(name, "response_mask", response_mask, shape=jnp.shape(responses))

        def one(prompt: Array, tokens: Array, mask: Array) -> T:
            known = (mask != 0) & (tokens >= 0) & (tokens < self.vocab_size)
            tokens = jnp.where(known, tokens, PAD).astype(jnp.int32)
            before_end = jnp.cumsum(tokens == EOS) == 0
            response = Response(jnp.where(before_end, tokens, PAD), jnp.sum(before_end), jnp.any(tokens == EOS))
            return function(prompt, response)

        of_prompt = jax.vmap(one, (None, 0, 0)) if several else one
        return jax.vmap(of_prompt)(jnp.asarray(prompts), jnp.asarray(responses), jnp.asarray(response_mask))


def fitted(tokens: Int[Array, " time"], width: int) -> Int[Array, " width"]:
    """A response cut or padded on the right to a width."""
    return jnp.pad(tokens[:width], (0, max(0, width - tokens.shape[0])), constant_values=PAD)
