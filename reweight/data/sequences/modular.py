"""Arithmetic modulo a number."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reweight import _checks
from reweight.data.sequences.base import BOS, EOS, Response, SequenceTask, fitted

__all__ = ["ModularArithmetic"]

OPERATIONS = ("+", "-", "*")


@dataclasses.dataclass(frozen=True)
class ModularArithmetic(SequenceTask):
    """A chain of operations modulo `modulus`, taken from left to right, with every number one symbol.

    Modulo 23, `<bos> 7 + 20 * 3 =` has the answer `4 12 <eos>`: the result after each operation.

    The reward is the share of right results in their places. It is 0 if the number of results is not the right one or
    the end token is missing, so that for two terms it is 1 or 0.

    Args:
      modulus: in [2, 1000].
      terms: how many numbers a chain has, at least 2.
      operations: out of `"+"`, `"-"` and `"*"`, each as likely.
    """

    modulus: int = 23
    terms: int = 2
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        name = "data.sequences.ModularArithmetic"
        _checks.number(name, "modulus", self.modulus, low=2, high=1000, integer=True)
        _checks.number(name, "terms", self.terms, low=2, integer=True)
        if not self.operations or len(set(self.operations)) != len(self.operations):
            _checks.fail(name, "operations", repr(self.operations), "distinct operations, at least one")
        for operation in self.operations:
            _checks.choice(name, "operations", operation, OPERATIONS)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The numbers, the operations and `=`."""
        return (*map(str, range(self.modulus)), *OPERATIONS, "=")

    @property
    def prompt_length(self) -> int:
        """The width of prompts."""
        return 2 * self.terms + 1

    @property
    def response_length(self) -> int:
        """The width of answers."""
        return self.terms

    def _example(self, key: PRNGKeyArray) -> tuple[Int[Array, " prompt"], Int[Array, " response"]]:
        number_key, operation_key = jax.random.split(key)
        numbers = self._id("0") + jax.random.randint(number_key, (self.terms,), 0, self.modulus)
        operations = jax.random.choice(operation_key, self._ids(" ".join(self.operations)), (self.terms - 1,))
        operations = jnp.append(operations, self._id("="))
        prompt = jnp.concatenate([jnp.array([BOS]), jnp.stack([numbers, operations], axis=1).ravel()])
        return prompt, self._answer(prompt)

    def _answer(self, prompt: Int[Array, " prompt"]) -> Int[Array, " response"]:
        numbers, operations = prompt[1::2] - self._id("0"), prompt[2:-1:2]

        def apply(value: Array, term: tuple[Array, Array]) -> tuple[Array, Array]:
            number, operation = term
            results = jnp.stack([value + number, value - number, value * number]) % self.modulus
            value = results[jnp.clip(operation - self._id("+"), 0, 2)]
            return value, value

        _, values = jax.lax.scan(apply, numbers[0], (numbers[1:], operations))
        return jnp.append(self._id("0") + values, EOS)

    def _score(self, prompt: Int[Array, " prompt"], response: Response) -> Float[Array, ""]:
        results = self.terms - 1
        right = jnp.mean(fitted(response.tokens, results) == self._answer(prompt)[:-1], dtype=jnp.float32)
        return jnp.where(response.ended & (response.length == results), right, 0.0)
