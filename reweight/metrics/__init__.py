"""Metrics of predictions, as pure functions of arrays: they read, and change nothing."""

from reweight.metrics import attribution, calibration, confusion, continual, distribution, fairness, survival

__all__ = ["attribution", "calibration", "confusion", "continual", "distribution", "fairness", "survival"]
