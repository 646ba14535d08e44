"""A language of many words, in which two words before say what comes next; its probabilities are known.

Every word has one of a few roles. The word after two others is drawn from a softmax of how well its features go with
their roles, and of how frequent it is: frequencies fall as one over the rank, as those of words do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

__all__ = ["Examples", "Language", "language", "sample"]


class Language(NamedTuple):
    """What a language is made of.

    Attributes:
      roles: of each word `[words]`.
      scores: of each word after each pair of roles, the logarithms of probabilities `[roles, roles, words]`.
      frequencies: of the words of a context `[words]`.
    """

    roles: Int[Array, " words"]
    scores: Float[Array, "roles roles words"]
    frequencies: Float[Array, " words"]

    def log_probs(self, contexts: Int[Array | np.ndarray, "n 2"]) -> Float[Array, "n words"]:
        """Logarithms of the true probabilities of the next word."""
        first, second = self.roles[contexts].T
        return self.scores[first, second]


class Examples(NamedTuple):
    """Two words, and the one after them."""

    contexts: Int[Array | np.ndarray, "n 2"]
    labels: Int[Array | np.ndarray, " n"]


def language(key: PRNGKeyArray, *, words: int, roles: int = 12, features: int = 8, sharpness: float = 1.0) -> Language:
    """A language drawn at random.

    Args:
      key: draws roles, features, and which word has which frequency.
      words: how many there are.
      roles: how many kinds of words a context can tell apart.
      features: by how many numbers a word goes with a role.
      sharpness: of the probabilities; with 0 the context says nothing.
    """
    of_roles, of_words, of_firsts, of_seconds, of_ranks = jax.random.split(key, 5)
    frequencies = jax.random.permutation(of_ranks, 1 / (jnp.arange(words) + 10.0))
    frequencies /= jnp.sum(frequencies)
    firsts, seconds = (jax.random.normal(k, (roles, features)) for k in (of_firsts, of_seconds))
    fits = (firsts[:, None] + seconds) @ jax.random.normal(of_words, (words, features)).T
    scores = jax.nn.log_softmax(sharpness * fits / jnp.sqrt(features / 4) + jnp.log(frequencies))
    return Language(jax.random.randint(of_roles, (words,), 0, roles), scores, frequencies)


def sample(rng: np.random.Generator, language: Language, n: int) -> Examples:
    """Contexts of frequent and rare words, and the word after each."""
    roles, words = np.asarray(language.roles), len(language.roles)
    frequencies = np.asarray(language.frequencies, np.float64)
    contexts = rng.choice(words, size=(n, 2), p=frequencies / frequencies.sum())
    # All cumulative distributions one after the other, each a unit above the one before, searched at once.
    kinds = len(language.scores)
    probs = np.exp(np.asarray(language.scores, np.float64)).reshape(kinds**2, words)
    ends = np.cumsum(probs / probs.sum(axis=1, keepdims=True), axis=1) + np.arange(kinds**2)[:, None]
    pair = kinds * roles[contexts[:, 0]] + roles[contexts[:, 1]]
    labels = np.searchsorted(ends.ravel(), pair + rng.random(n), side="right") - words * pair
    return Examples(contexts, np.clip(labels, 0, words - 1))
