"""Fits in closed form or to convergence: what is estimated from data without a training loop."""

from reweight.estimators import calibration, naive_bayes

__all__ = ["calibration", "naive_bayes"]
