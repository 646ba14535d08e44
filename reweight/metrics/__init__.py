"""Metrics of predictions, as pure functions of arrays: they read, and change nothing."""

from reweight.metrics import confusion, fairness, survival

__all__ = ["confusion", "fairness", "survival"]
