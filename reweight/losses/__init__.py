"""Losses: a value per example before any weight or reduction, one module a family."""

from reweight.losses import adversarial, classification, preference

__all__ = ["adversarial", "classification", "preference"]
