"""Losses: a value per example before any weight or reduction, one module a family."""

from reweight.losses import (
    adversarial,
    aggregate,
    binary,
    classification,
    continual,
    contrastive,
    distillation,
    metric,
    ordinal,
    preference,
    ranking,
    segmentation,
    self_supervised,
    semi_supervised,
    survival,
)
from reweight.losses.base import BatchLoss, of_batch, of_sums

__all__ = [
    "BatchLoss",
    "adversarial",
    "aggregate",
    "binary",
    "classification",
    "continual",
    "contrastive",
    "distillation",
    "metric",
    "of_batch",
    "of_sums",
    "ordinal",
    "preference",
    "ranking",
    "segmentation",
    "self_supervised",
    "semi_supervised",
    "survival",
]
