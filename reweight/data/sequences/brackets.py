"""Bracket languages: complete a string of brackets, or say whether it is balanced."""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reweight import _checks
from reweight.data.sequences.base import BOS, EOS, PAD, SEP, SPECIAL, Response, SequenceTask

__all__ = ["BracketBalance", "BracketCompletion"]

PAIRS = ("()", "[]", "{}", "<>")
SWAPS = 8
FIRST = len(SPECIAL)  # the id of the first bracket; an opening bracket is followed by its closing one


class _Stack(NamedTuple):
    """What a stack machine knows after each token of a string.

    Attributes:
      open: the ids of the brackets that are open `[T, depth]`.
      depth: how many are open `[T]`.
      valid: whether every bracket closed the last one that was open, and all tokens were brackets `[T]`.
    """

    open: Int[Array, "time depth"]
    depth: Int[Array, " time"]
    valid: Bool[Array, " time"]


def _run(tokens: Int[Array, " time"], read: Bool[Array, " time"], kinds: int) -> _Stack:
    """Reads the tokens marked by `read`; the machine stands still at the others, and for good at a mistake."""

    def step(before: _Stack, seen: tuple[Array, Array]) -> tuple[_Stack, _Stack]:
        token, read = seen
        stack, depth, valid = before
        opens = (token - FIRST) % 2 == 0
        bracket = (token >= FIRST) & (token < FIRST + 2 * kinds)
        allowed = bracket & (opens | ((depth > 0) & (stack[depth - 1] == token - 1)))
        moves = read & valid & allowed
        stack = jnp.where(moves & opens, stack.at[depth].set(token, mode="drop"), stack)
        depth = depth + jnp.where(moves, jnp.where(opens, 1, -1), 0)
        after = _Stack(stack, depth, valid & (allowed | ~read))
        return after, after

    start = _Stack(jnp.zeros(tokens.shape[0], tokens.dtype), jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return jax.lax.scan(step, start, (tokens, read))[1]


@dataclasses.dataclass(frozen=True)
class _Brackets(SequenceTask):
    """What both tasks draw their brackets with."""

    @property
    @abc.abstractmethod
    def _kinds(self) -> int:
        """How many kinds of brackets there are."""

    @property
    @abc.abstractmethod
    def _width(self) -> int:
        """The largest number of brackets in a prompt."""

    @property
    def prompt_length(self) -> int:
        """The width of prompts."""
        return self._width + 2

    @property
    def _brackets(self) -> tuple[str, ...]:
        return tuple("".join(PAIRS[: self._kinds]))

    def _prompt(self, brackets: Int[Array, " width"]) -> Int[Array, " prompt"]:
        """Brackets, padded on the left, between the token of the beginning and the separator."""
        padding = jnp.sum(brackets == PAD)
        return jnp.concatenate([jnp.array([PAD]), brackets, jnp.array([SEP])]).at[padding].set(BOS)

    def _draw(self, key: PRNGKeyArray, length: Int[Array, ""], *, depth: int, closed: bool) -> Int[Array, " width"]:
        """So many random brackets, padded on the left: all closed in the end, or at least one open.

        Every next bracket opens or closes with probability 1/2 where it may do both. It may not open below `depth` open
        ones, nor so late that not all could be closed; it may not close the last open one at the end.
        """

        def step(state: tuple[Array, Array], seen: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            stack, opened = state
            key, remaining = seen
            side_key, kind_key = jax.random.split(key)
            drawn = remaining <= length
            if closed:
                must_open, must_close = opened == 0, opened >= remaining
            else:
                must_open, must_close = (opened == 0) | ((remaining == 1) & (opened == 1)), jnp.zeros((), bool)
            opens = ~(must_close | (opened == depth)) & (must_open | jax.random.bernoulli(side_key))
            opening = FIRST + 2 * jax.random.randint(kind_key, (), 0, self._kinds, jnp.int32)
            token = jnp.where(opens, opening, stack[opened - 1] + 1)
            stack = jnp.where(drawn & opens, stack.at[opened].set(token, mode="drop"), stack)
            opened = opened + jnp.where(drawn, jnp.where(opens, 1, -1), 0)
            return (stack, opened), jnp.where(drawn, token, PAD)

        start = (jnp.zeros(self._width, jnp.int32), jnp.zeros((), jnp.int32))
        return jax.lax.scan(step, start, (jax.random.split(key, self._width), self._width - jnp.arange(self._width)))[1]


@dataclasses.dataclass(frozen=True)
class BracketCompletion(_Brackets):
    """Brackets to be closed: `<bos> ( [ ] ( <sep>` has the answer `) ) <eos>`, the shortest one.

    The reward is 1 for every response that balances the string, and half the share of the prompt's open brackets that
    it closes for one that does not. What comes after the first mistake (a wrong bracket, or no bracket) closes nothing.

    Args:
      max_brackets: the longest prompt; the number of brackets is drawn from 1 to this.
      depth: the most brackets that are open at a time, at least 2.
      kinds: how many kinds of brackets, in [1, 4].
    """

    max_brackets: int = 12
    depth: int = 4
    kinds: int = 2

    def __post_init__(self) -> None:
        name = "data.sequences.BracketCompletion"
        _checks.number(name, "max_brackets", self.max_brackets, low=1, integer=True)
        _checks.number(name, "depth", self.depth, low=2, integer=True)
        _checks.number(name, "kinds", self.kinds, low=1, high=len(PAIRS), integer=True)

    @property
    def _kinds(self) -> int:
        return self.kinds

    @property
    def _width(self) -> int:
        return self.max_brackets

    @property
    def symbols(self) -> tuple[str, ...]:
        """The brackets."""
        return self._brackets

    @property
    def response_length(self) -> int:
        """The width of answers."""
        return self.depth + 1

    def _example(self, key: PRNGKeyArray) -> tuple[Int[Array, " prompt"], Int[Array, " response"]]:
        length_key, bracket_key = jax.random.split(key)
        length = jax.random.randint(length_key, (), 1, self.max_brackets + 1)
        brackets = self._draw(bracket_key, length, depth=self.depth, closed=False)
        state = _run(brackets, brackets != PAD, self.kinds)
        depth, place = state.depth[-1], jnp.arange(self.depth + 1)
        closing = state.open[-1][jnp.clip(depth - 1 - place, 0, self.max_brackets - 1)] + 1
        answer = jnp.where(place < depth, closing, jnp.where(place == depth, EOS, PAD))
        return self._prompt(brackets), answer

    def _score(self, prompt: Int[Array, " prompt"], response: Response) -> Float[Array, ""]:
        read = jnp.concatenate([prompt >= FIRST, response.before_end])
        state = _run(jnp.concatenate([prompt, response.tokens]), read, self.kinds)
        opened = state.depth[self.prompt_length - 1]
        closed = opened - jnp.min(state.depth[self.prompt_length - 1 :])
        balanced = response.ended & state.valid[-1] & (state.depth[-1] == 0)
        return jnp.where(balanced, 1.0, 0.5 * closed / jnp.maximum(opened, 1))


@dataclasses.dataclass(frozen=True)
class BracketBalance(_Brackets):
    """Whether brackets are balanced: `<bos> ( [ ) ] <sep>` has the answer `no <eos>`.

    Half of the strings are balanced, on average. The others are balanced strings in which two brackets changed places,
    so that counting brackets does not give the answer.

    The reward is 1 for the right word followed by the end token, else 0.

    Args:
      max_brackets: the longest prompt, even; the number of brackets is drawn from the even ones from 2 to this.
      kinds: how many kinds of brackets, in [1, 4].
    """

    max_brackets: int = 12
    kinds: int = 2

    def __post_init__(self) -> None:
        name = "data.sequences.BracketBalance"
        _checks.number(name, "max_brackets", self.max_brackets, low=2, integer=True)
        if self.max_brackets % 2:
            _checks.fail(name, "max_brackets", repr(self.max_brackets), "an even integer")
        _checks.number(name, "kinds", self.kinds, low=1, high=len(PAIRS), integer=True)

    @property
    def _kinds(self) -> int:
        return self.kinds

    @property
    def _width(self) -> int:
        return self.max_brackets

    @property
    def symbols(self) -> tuple[str, ...]:
        """The brackets, `yes` and `no`."""
        return (*self._brackets, "yes", "no")

    @property
    def response_length(self) -> int:
        """The width of answers."""
        return 2

    def _example(self, key: PRNGKeyArray) -> tuple[Int[Array, " prompt"], Int[Array, " response"]]:
        length_key, bracket_key, which_key, swap_key = jax.random.split(key, 4)
        length = 2 * jax.random.randint(length_key, (), 1, self.max_brackets // 2 + 1)
        brackets = self._draw(bracket_key, length, depth=self.max_brackets, closed=True)
        # A swap may leave the string balanced, so the first one of several that does not is taken. One never does: that
        # of the first bracket and the last, after which the string begins with a closing one.
        start = self.max_brackets - length
        ends = jnp.stack([start, jnp.full_like(start, self.max_brackets - 1)])
        pairs = jnp.concatenate([jax.random.randint(swap_key, (SWAPS, 2), start, self.max_brackets), ends[None]])
        swapped = jax.vmap(lambda pair: brackets.at[pair].set(brackets[pair[::-1]]))(pairs)
        broken = swapped[jnp.argmax(~jax.vmap(self._balanced)(swapped))]
        brackets = jnp.where(jax.random.bernoulli(which_key), brackets, broken)
        prompt = self._prompt(brackets)
        return prompt, jnp.array([self._word(prompt), EOS])

    def _balanced(self, tokens: Int[Array, " time"]) -> Bool[Array, ""]:
        state = _run(tokens, tokens >= FIRST, self.kinds)
        return state.valid[-1] & (state.depth[-1] == 0)

    def _word(self, prompt: Int[Array, " prompt"]) -> Int[Array, ""]:
        return jnp.where(self._balanced(prompt), self._id("yes"), self._id("no"))

    def _score(self, prompt: Int[Array, " prompt"], response: Response) -> Float[Array, ""]:
        right = response.ended & (response.length == 1) & (response.tokens[0] == self._word(prompt))
        return right.astype(jnp.float32)
