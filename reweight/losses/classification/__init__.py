"""Losses per example for classification, from logits `[..., C]` and labels."""

from reweight.losses.classification.composition import comp_sum_bound, comp_sum_calibration, comp_sum_loss
from reweight.losses.classification.softmax import cross_entropy, focal_loss, logit_adjusted_cross_entropy
from reweight.losses.classification.stable_softmax import log_stablemax, stablemax, stablemax_cross_entropy

__all__ = [
    "comp_sum_bound",
    "comp_sum_calibration",
    "comp_sum_loss",
    "cross_entropy",
    "focal_loss",
    "log_stablemax",
    "logit_adjusted_cross_entropy",
    "stablemax",
    "stablemax_cross_entropy",
]
