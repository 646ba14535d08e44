"""Losses and prototypes for learning classes one after the other."""

from reweight.losses.continual.prototypes import (
    assign_prototypes,
    calibrate_prototypes,
    class_prototypes,
    cosine_scores,
    dr_loss,
    etf_prototypes,
    simplex_etf,
)

__all__ = [
    "assign_prototypes",
    "calibrate_prototypes",
    "class_prototypes",
    "cosine_scores",
    "dr_loss",
    "etf_prototypes",
    "simplex_etf",
]
