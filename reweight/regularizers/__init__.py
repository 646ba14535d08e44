"""Penalties on parameters, features and outputs, and the fits that they make."""

from reweight.regularizers import fused

__all__ = ["fused"]
