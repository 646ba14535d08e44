"""Adaptation at test time, without labels."""

from reweight.adapt.entropy import Adapted, entropy_step

__all__ = ["Adapted", "entropy_step"]
