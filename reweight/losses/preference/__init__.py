"""Losses from preferences: pairs, unpaired answers, K answers a prompt, and reward models."""

from reweight.losses.preference import links
from reweight.losses.preference.anchored import apo_down, apo_zero, bco_pair, nca_pair, sppo, sppo_hard
from reweight.losses.preference.interface import PAIR_LOSSES, Pairs, pair_loss
from reweight.losses.preference.pairwise import (
    discopop,
    dpo,
    dpo_norm,
    dpop,
    exo_pair,
    hinge,
    ipo,
    ld_dpo,
    r_dpo,
    robust_dpo,
)
from reweight.losses.preference.reference_free import alphapo, cpo, orpo, rrhf, simpo, slic
from reweight.losses.preference.sequence import (
    SequenceLogProbs,
    implicit_rewards,
    log_odds,
    power_rewards,
    sequence_log_probs,
    shared_prefix_log_probs,
)
from reweight.losses.preference.transport import aot, aot_unpaired

__all__ = [
    "PAIR_LOSSES",
    "Pairs",
    "SequenceLogProbs",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "dpop",
    "exo_pair",
    "hinge",
    "implicit_rewards",
    "ipo",
    "ld_dpo",
    "links",
    "log_odds",
    "nca_pair",
    "orpo",
    "pair_loss",
    "power_rewards",
    "r_dpo",
    "robust_dpo",
    "rrhf",
    "sequence_log_probs",
    "shared_prefix_log_probs",
    "simpo",
    "slic",
    "sppo",
    "sppo_hard",
]
