"""Addition of numbers with several digits, with the carries written out column by column."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reweight import _checks
from reweight.data.sequences.base import BOS, EOS, Response, SequenceTask, fitted

__all__ = ["Addition"]

STEP = 9  # the symbols of a step such as 7 + 5 + 0 = 1 2 ;


@dataclasses.dataclass(frozen=True)
class Addition(SequenceTask):
    """The sum of two numbers, with a chain of steps.

    The prompt `<bos> 4 7 + 8 5 =` has the answer

        7 + 5 + 0 = 1 2 ; 4 + 8 + 1 = 1 3 ; 1 3 2 <eos>

    A step adds the two digits of a column, from the right, and the carry into it; its two digits are the carry out of
    it and the digit of the sum. Numbers have leading zeros, so that all rows are equally long.

    The reward is `process_weight` times the share of right steps plus `1 - process_weight` times whether the sum is
    right. A step is right if it stands in its place with every symbol right; the share is of the steps that are needed
    or of those that were written, if those are more. The sum is what stands between the last `;` (or the beginning)
    and the end token, whatever the steps say. Without `steps` only the sum is asked for, and counts.

    Args:
      digits: of either number, in [1, 9].
      steps: whether the answer has the chain of steps.
      process_weight: the share of the steps in the reward, in [0, 1); 0 rewards the outcome alone.
    """

    digits: int = 3
    steps: bool = True
    process_weight: float = 0.5

    def __post_init__(self) -> None:
        name = "data.sequences.Addition"
        _checks.number(name, "digits", self.digits, low=1, high=9, integer=True)
        _checks.choice(name, "steps", self.steps, (True, False))
        _checks.number(name, "process_weight", self.process_weight, low=0, high=1, open_high=True)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Digits, `+`, `=` and `;`."""
        return (*"0123456789", "+", "=", ";")

    @property
    def prompt_length(self) -> int:
        """The width of prompts."""
        return 2 * self.digits + 3

    @property
    def response_length(self) -> int:
        """The width of answers."""
        return self._chain_length + self.digits + 2

    @property
    def _chain_length(self) -> int:
        return STEP * self.digits if self.steps else 0

    def _example(self, key: PRNGKeyArray) -> tuple[Int[Array, " prompt"], Int[Array, " response"]]:
        left, right = jax.random.randint(key, (2, self.digits), 0, 10) + self._id("0")
        plus, equals = self._ids("+"), self._ids("=")
        prompt = jnp.concatenate([jnp.array([BOS]), left, plus, right, equals])
        return prompt, self._answer(prompt)

    def _answer(self, prompt: Int[Array, " prompt"]) -> Int[Array, " response"]:
        zero, d = self._id("0"), self.digits
        left, right = (jnp.clip(prompt[at : at + d] - zero, 0, 9) for at in (1, d + 2))

        def column(carry: Array, digits: Array) -> tuple[Array, tuple[Array, Array]]:
            total = digits[0] + digits[1] + carry
            shown = zero + jnp.stack([digits[0], digits[1], carry, total // 10, total % 10])
            plus, equals, end = self._ids("+ = ;")
            a, b, c, tens, ones = shown
            return total // 10, (jnp.stack([a, plus, b, plus, c, equals, tens, ones, end]), ones)

        columns = jnp.stack([left, right], axis=1)[::-1]
        carry, (chain, ones) = jax.lax.scan(column, jnp.zeros((), prompt.dtype), columns)
        total = jnp.concatenate([jnp.array([zero + carry]), ones[::-1], jnp.array([EOS])])
        return jnp.concatenate([chain.ravel(), total]) if self.steps else total

    def _score(self, prompt: Int[Array, " prompt"], response: Response) -> Float[Array, ""]:
        answer = self._answer(prompt)
        separator, width = self._id(";"), self.digits + 1
        expected = answer[self._chain_length : -1]
        tokens = jnp.pad(response.tokens, (width + 1, 0), constant_values=separator)
        last = jax.lax.dynamic_slice_in_dim(tokens, response.length, width + 1)
        outcome = response.ended & (last[0] == separator) & jnp.all(last[1:] == expected)
        if not self.steps:
            return outcome.astype(jnp.float32)
        chain = fitted(response.tokens, self._chain_length).reshape(self.digits, STEP)
        right = jnp.sum(jnp.all(chain == answer[: self._chain_length].reshape(chain.shape), axis=1))
        written = jnp.sum(response.tokens == separator)
        share = right / jnp.maximum(self.digits, written).astype(jnp.float32)
        return self.process_weight * share + (1 - self.process_weight) * outcome
