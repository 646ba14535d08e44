"""Metrics of predictions, as pure functions of arrays: they read, and change nothing."""

from reweight.metrics import confusion

__all__ = ["confusion"]
