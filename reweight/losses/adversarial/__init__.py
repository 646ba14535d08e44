"""Attacks on inputs, losses under attack, and how the loss at an attacked input depends on the parameters."""

from reweight.losses.adversarial.attacks import Attack, attack_classifier, pgd_attack
from reweight.losses.adversarial.barrier import barrier_attack, barrier_objective, hypergradient
from reweight.losses.adversarial.training import (
    SratState,
    SratStatistics,
    adversarial_cross_entropy,
    batch_srat,
    margin_shift,
    smooth_comp_sum_loss,
    srat_loss,
)

__all__ = [
    "Attack",
    "SratState",
    "SratStatistics",
    "adversarial_cross_entropy",
    "attack_classifier",
    "barrier_attack",
    "barrier_objective",
    "batch_srat",
    "hypergradient",
    "margin_shift",
    "pgd_attack",
    "smooth_comp_sum_loss",
    "srat_loss",
]
