"""Synthetic tasks on token sequences, with exact answers and exact rewards, drawn on the device.

    task = sequences.Addition(digits=2)
    batch = task.sample(jax.random.key(0), 64)
    print(task.decode(batch.tokens[0]))  # <bos> 4 7 + 8 5 = 7 + 5 + 0 = 1 2 ; 4 + 8 + 1 = 1 3 ; 1 3 2 <eos>
    prompts = task.prompts(jax.random.key(1), 64)
    rewards = task.reward(prompts.tokens, responses, response_mask)  # in [0, 1], 1 for an exact answer
    written = sequences.join(prompts.tokens, prompts.mask, responses, response_mask)  # a batch like `task.sample`'s

These are functions of a key and no stored sets: there are as many examples as keys.
"""

from collections.abc import Mapping

from reweight.data.sequences.addition import Addition
from reweight.data.sequences.base import Prompts, SequenceBatch, SequenceTask, join
from reweight.data.sequences.brackets import BracketBalance, BracketCompletion
from reweight.data.sequences.modular import ModularArithmetic
from reweight.data.sequences.recall import KeyValueRecall
from reweight.data.sequences.sentiment import Sentiment, SentimentScores

SEQUENCE_TASKS: Mapping[str, type[SequenceTask]] = {
    "addition": Addition,
    "modular_arithmetic": ModularArithmetic,
    "bracket_completion": BracketCompletion,
    "bracket_balance": BracketBalance,
    "sentiment": Sentiment,
    "key_value_recall": KeyValueRecall,
}

__all__ = [
    "SEQUENCE_TASKS",
    "Addition",
    "BracketBalance",
    "BracketCompletion",
    "KeyValueRecall",
    "ModularArithmetic",
    "Prompts",
    "Sentiment",
    "SentimentScores",
    "SequenceBatch",
    "SequenceTask",
    "join",
]
