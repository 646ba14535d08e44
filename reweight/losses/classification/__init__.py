"""Losses per example for classification, from logits `[..., C]` and labels."""

from reweight.losses.classification.softmax import cross_entropy, focal_loss, logit_adjusted_cross_entropy

__all__ = ["cross_entropy", "focal_loss", "logit_adjusted_cross_entropy"]
