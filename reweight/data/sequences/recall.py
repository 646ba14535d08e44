"""Recall of values by key."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reweight import _checks
from reweight.data.sequences.base import BOS, EOS, SEP, Response, SequenceTask, fitted

__all__ = ["KeyValueRecall"]


@dataclasses.dataclass(frozen=True)
class KeyValueRecall(SequenceTask):
    """Which value stood behind a key: `<bos> k3 v1 v0 k0 v2 v2 k7 v0 v3 <sep> k0` has the answer `v2 v2 <eos>`.

    The keys of a prompt are distinct, and one of them is asked for; values are drawn with replacement.

    The reward is the share of right symbols of the value. It is 0 if their number is not the right one or the end token
    is missing.

    Args:
      pairs: how many keys a prompt holds, at most `keys`.
      keys: how many keys there are.
      values: how many symbols values are made of.
      span: symbols of a value.
    """

    pairs: int = 6
    keys: int = 16
    values: int = 16
    span: int = 1

    def __post_init__(self) -> None:
        name = "data.sequences.KeyValueRecall"
        for field in ("keys", "values", "span"):
            _checks.number(name, field, getattr(self, field), low=1, integer=True)
        _checks.number(name, "pairs", self.pairs, low=1, high=self.keys, integer=True)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Keys `k0`, `k1`, … and values `v0`, `v1`, …."""
        return (*(f"k{i}" for i in range(self.keys)), *(f"v{i}" for i in range(self.values)))

    @property
    def prompt_length(self) -> int:
        """The width of prompts."""
        return self.pairs * (1 + self.span) + 3

    @property
    def response_length(self) -> int:
        """The width of answers."""
        return self.span + 1

    def _example(self, key: PRNGKeyArray) -> tuple[Int[Array, " prompt"], Int[Array, " response"]]:
        key_key, value_key, query_key = jax.random.split(key, 3)
        keys = self._id("k0") + jax.random.permutation(key_key, self.keys)[: self.pairs]
        values = self._id("v0") + jax.random.randint(value_key, (self.pairs, self.span), 0, self.values)
        query = jax.random.randint(query_key, (), 0, self.pairs)
        pairs = jnp.concatenate([keys[:, None], values], axis=1).ravel()
        prompt = jnp.concatenate([jnp.array([BOS]), pairs, jnp.array([SEP]), keys[query][None]])
        return prompt, jnp.append(values[query], EOS)

    def _score(self, prompt: Int[Array, " prompt"], response: Response) -> Float[Array, ""]:
        pairs = prompt[1:-2].reshape(self.pairs, 1 + self.span)
        value = pairs[jnp.argmax(pairs[:, 0] == prompt[-1]), 1:]
        right = jnp.mean(fitted(response.tokens, self.span) == value, dtype=jnp.float32)
        return jnp.where(response.ended & (response.length == self.span), right, 0.0)
