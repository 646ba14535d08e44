"""Penalties on parameters, features and outputs, and the fits that they make."""

from reweight.regularizers import adaptive_mixup, fused, mixup, nested, pseudo_classes

__all__ = ["adaptive_mixup", "fused", "mixup", "nested", "pseudo_classes"]
