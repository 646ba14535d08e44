"""Losses: a value per example before any weight or reduction, one module a family."""

from reweight.losses import adversarial, classification, preference
from reweight.losses.base import BatchLoss

__all__ = ["BatchLoss", "adversarial", "classification", "preference"]
