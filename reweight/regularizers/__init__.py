"""Penalties on parameters, features and outputs, and the fits that they make."""

from reweight.regularizers import adaptive_mixup, attribution, fused, mixup, nested, pseudo_classes

__all__ = ["adaptive_mixup", "attribution", "fused", "mixup", "nested", "pseudo_classes"]
