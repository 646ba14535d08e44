"""Metrics of predictions, as pure functions of arrays: they read, and change nothing."""

from reweight.metrics import confusion, continual, fairness, survival

__all__ = ["confusion", "continual", "fairness", "survival"]
