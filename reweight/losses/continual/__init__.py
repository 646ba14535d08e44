"""Losses and prototypes for learning classes one after the other."""

from reweight.losses.continual.alignment import (
    align_weights,
    distilled_cross_entropy,
    herding,
    old_class_distillation,
)
from reweight.losses.continual.prototypes import (
    assign_prototypes,
    calibrate_prototypes,
    class_prototypes,
    cosine_scores,
    dr_loss,
    etf_prototypes,
    simplex_etf,
)
from reweight.losses.continual.relation import (
    prototype_loss,
    prototype_sample_relation,
    prototype_scores,
    relation_distillation,
)

__all__ = [
    "align_weights",
    "assign_prototypes",
    "calibrate_prototypes",
    "class_prototypes",
    "cosine_scores",
    "distilled_cross_entropy",
    "dr_loss",
    "etf_prototypes",
    "herding",
    "old_class_distillation",
    "prototype_loss",
    "prototype_sample_relation",
    "prototype_scores",
    "relation_distillation",
    "simplex_etf",
]
