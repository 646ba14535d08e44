"""Adaptation at test time, without labels."""

from reweight.adapt.entropy import Adapted, entropy_step
from reweight.adapt.recovery import Recovery, RecoveryState, recovery

__all__ = ["Adapted", "Recovery", "RecoveryState", "entropy_step", "recovery"]
