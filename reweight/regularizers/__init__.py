"""Penalties on parameters, features and outputs, and the fits that they make."""

from reweight.regularizers import fused, mixup, nested, pseudo_classes

__all__ = ["fused", "mixup", "nested", "pseudo_classes"]
