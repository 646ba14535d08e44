"""Metrics of predictions, as pure functions of arrays: they read, and change nothing."""

from reweight.metrics import calibration, confusion, continual, fairness, survival

__all__ = ["calibration", "confusion", "continual", "fairness", "survival"]
