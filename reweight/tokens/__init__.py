"""Statistics of tokens from hidden states and the output kernel, without logits.

What token-level losses want is a number a token: the log-probability of the target, an entropy, a divergence from a
reference model. What fills the memory are the logits it comes from. `token_statistics` takes the vocabulary a chunk at
a time, forward and again backward, and gives the numbers; losses take the numbers.
"""

from reweight.tokens.rows import Statistic
from reweight.tokens.statistics import TokenStatistics, token_statistics, token_statistics_from_logits

__all__ = ["Statistic", "TokenStatistics", "token_statistics", "token_statistics_from_logits"]
