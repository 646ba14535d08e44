"""Metrics of predictions, as pure functions of arrays: they read, and change nothing."""

from reweight.metrics import confusion, survival

__all__ = ["confusion", "survival"]
