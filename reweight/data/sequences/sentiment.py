"""Reviews from a small grammar, with a known score."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reweight import _checks
from reweight.data.sequences.base import BOS, EOS, PAD, SEP, SPECIAL, Mask, Response, SequenceTask

__all__ = ["Sentiment", "SentimentScores"]

TOPICS = ("food", "film", "hotel", "phone")
ENTITIES = ("aria", "bolt", "cedar", "delta", "ember", "fjord", "grove", "haven")
MODIFIERS = {"not": -1.0, "very": 2.0}
AND = "and"
# What a word is worth, for each topic where the topics differ.
WORDS: dict[str, tuple[float, float, float, float]] = {
    "superb": (0.5,) * 4,
    "great": (0.375,) * 4,
    "good": (0.25,) * 4,
    "fine": (0.125,) * 4,
    "plain": (0.0,) * 4,
    "usual": (0.0,) * 4,
    "weak": (-0.125,) * 4,
    "bad": (-0.25,) * 4,
    "poor": (-0.375,) * 4,
    "awful": (-0.5,) * 4,
    "light": (0.25, 0.0, -0.25, 0.5),
    "quiet": (0.0, -0.5, 0.5, -0.25),
    "long": (-0.25, -0.375, 0.25, 0.375),
    "rich": (0.5, 0.375, 0.25, -0.5),
}
FIRST_TOPIC = len(SPECIAL)
FIRST_MODIFIER = FIRST_TOPIC + len(TOPICS) + len(ENTITIES)
FIRST_WORD = FIRST_MODIFIER + len(MODIFIERS)
AND_ID = FIRST_WORD + len(WORDS)


class SentimentScores(NamedTuple):
    """What is known of a response.

    Attributes:
      quality: the mean value of its clauses, mapped from [-1, 1] to [0, 1]; 0 if it is not of the grammar.
      clauses: how many clauses it has; 0 if it is not of the grammar.
      grammatical: whether it is of the grammar.
      log_prob: its log-probability under the grammar; -inf if it is not of the grammar.
    """

    quality: Float[Array, " n"]
    clauses: Int[Array, " n"]
    grammatical: Bool[Array, " n"]
    log_prob: Float[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Sentiment(SequenceTask):
    """A review of an entity: `<bos> hotel cedar <sep>` may go on with `very quiet and not good and usual <eos>`.

    A review is a chain of clauses joined by `and`; a clause is a word, alone or after `not` or `very`. Every word has
    a value in [-1/2, 1/2], some another one for each topic; `very` doubles it and `not` turns its sign. `sample` draws
    reviews from the grammar: each clause has a modifier with probability `modified`, either one as likely, and then any
    of the words; after it another clause follows with probability `continued`, up to `max_clauses`. These are random
    reviews and no best answers; the best ones have clauses worth 1 only, such as `very superb`.

    The quality of a review is the mean value :math:`v` of its clauses as :math:`(1 + v) / 2`: graded, in [0, 1],
    and not changed by the length as such. The reward is `(1 - length_bias) * quality + length_bias * clauses /
    max_clauses` for a review of the grammar, else 0. So a judge who likes long reviews has a known taste: one more
    clause of the same mean value raises the reward by `length_bias / max_clauses`.

    Args:
      max_clauses: the longest review.
      continued: the probability of another clause, in [0, 1].
      modified: the probability of a modifier, in [0, 1].
      length_bias: how much of the reward is for length, in [0, 1].
    """

    max_clauses: int = 5
    continued: float = 0.6
    modified: float = 0.4
    length_bias: float = 0.0

    def __post_init__(self) -> None:
        name = "data.sequences.Sentiment"
        _checks.number(name, "max_clauses", self.max_clauses, low=1, integer=True)
        for field in ("continued", "modified", "length_bias"):
            _checks.number(name, field, getattr(self, field), low=0, high=1)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Topics, entities, modifiers, words and `and`."""
        return (*TOPICS, *ENTITIES, *MODIFIERS, *WORDS, AND)

    @property
    def prompt_length(self) -> int:
        """The width of prompts."""
        return 4

    @property
    def response_length(self) -> int:
        """The width of reviews: the longest one has a modifier in every clause."""
        return 3 * self.max_clauses

    def _example(self, key: PRNGKeyArray) -> tuple[Int[Array, " prompt"], Int[Array, " response"]]:
        topic_key, entity_key, modified_key, modifier_key, word_key, length_key = jax.random.split(key, 6)
        clauses = (self.max_clauses,)
        topic = FIRST_TOPIC + jax.random.randint(topic_key, (), 0, len(TOPICS))
        entity = FIRST_TOPIC + len(TOPICS) + jax.random.randint(entity_key, (), 0, len(ENTITIES))
        modifiers = FIRST_MODIFIER + jax.random.randint(modifier_key, clauses, 0, len(MODIFIERS))
        modifiers = jnp.where(jax.random.bernoulli(modified_key, self.modified, clauses), modifiers, PAD)
        words = FIRST_WORD + jax.random.randint(word_key, clauses, 0, len(WORDS))
        goes_on = jax.random.bernoulli(length_key, self.continued, clauses).at[-1].set(False)
        begun = jnp.append(True, jnp.cumprod(goes_on)[:-1] == 1)
        joints = jnp.where(goes_on, AND_ID, EOS)
        tokens = jnp.where(begun[:, None], jnp.stack([modifiers, words, joints], axis=1), PAD).ravel()
        # A stable sort brings the tokens together and keeps their order.
        return jnp.array([BOS, topic, entity, SEP]), tokens[jnp.argsort(tokens == PAD)]

    def _read(self, prompt: Int[Array, " prompt"], response: Response) -> SentimentScores:
        topic = jnp.clip(prompt[1] - FIRST_TOPIC, 0, len(TOPICS) - 1)
        values = jnp.array(list(WORDS.values()), jnp.float32)[:, topic]
        factors = jnp.array(list(MODIFIERS.values()), jnp.float32)
        tokens = response.tokens
        before = jnp.append(AND_ID, tokens[:-1])

        def among(ids: Array, first: int, count: int) -> Array:
            return (ids >= first) & (ids < first + count)

        is_word, is_modifier = among(tokens, FIRST_WORD, len(WORDS)), among(tokens, FIRST_MODIFIER, len(MODIFIERS))
        after_word, after_modifier = (
            among(before, FIRST_WORD, len(WORDS)),
            among(before, FIRST_MODIFIER, len(MODIFIERS)),
        )
        after_joint, is_joint = before == AND_ID, tokens == AND_ID
        # A word begins a clause or follows a modifier, a modifier begins a clause, and `and` follows a word.
        fits = (is_word & (after_joint | after_modifier)) | (is_modifier & after_joint) | (is_joint & after_word)
        live = response.before_end
        last = tokens[jnp.maximum(response.length - 1, 0)]
        clauses = jnp.sum(is_word & live)
        grammatical = (
            response.ended & jnp.all(fits | ~live) & among(last, FIRST_WORD, len(WORDS)) & (clauses <= self.max_clauses)
        )
        factor = jnp.where(after_modifier, factors[jnp.clip(before - FIRST_MODIFIER, 0, len(MODIFIERS) - 1)], 1.0)
        worth = jnp.where(is_word & live, factor * values[jnp.clip(tokens - FIRST_WORD, 0, len(WORDS) - 1)], 0.0)
        quality = 0.5 + 0.5 * jnp.sum(worth) / jnp.maximum(clauses, 1)
        modifiers = jnp.sum(is_modifier & live)
        choices = (
            (modifiers, self.modified / len(MODIFIERS)),
            (clauses - modifiers, 1 - self.modified),
            (clauses, 1 / len(WORDS)),
            (clauses - 1, self.continued),
            (clauses < self.max_clauses, 1 - self.continued),
        )
        # 0 log 0 is 0: what is not chosen costs nothing.
        log_prob = sum(jnp.where(count == 0, 0.0, count * jnp.log(p)) for count, p in choices)
        return SentimentScores(
            jnp.where(grammatical, quality, 0.0),
            jnp.where(grammatical, clauses, 0),
            grammatical,
            jnp.where(grammatical, log_prob, -jnp.inf).astype(jnp.float32),
        )

    def _score(self, prompt: Int[Array, " prompt"], response: Response) -> Float[Array, ""]:
        quality, clauses, grammatical, _ = self._read(prompt, response)
        reward = (1 - self.length_bias) * quality + self.length_bias * clauses / self.max_clauses
        return jnp.where(grammatical, reward, 0.0)

    def scores(
        self, prompts: Int[Array, "n prompt"], responses: Int[Array, "n *samples time"], response_mask: Mask
    ) -> SentimentScores:
        """Quality, length and log-probability under the grammar of responses, from which other rewards can be made.

        Args:
          prompts: as for `reward`.
          responses: as for `reward`.
          response_mask: as for `reward`.

        Returns:
          `SentimentScores` of arrays `[n]`, or `[n, samples]` for several responses a prompt.

        Raises:
          ValueError: if the shapes do not fit.
        """
        return self._per_row(self._read, "scores", prompts, responses, response_mask)
