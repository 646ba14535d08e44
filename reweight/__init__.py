"""Losses, weighting schemes and optimizers in JAX: every way of saying that one example counts more than another."""

from reweight import (
    adapt,
    decoding,
    dynamics,
    estimators,
    losses,
    merge,
    metrics,
    optim,
    parallel,
    reduce,
    regularizers,
    schedules,
    tokens,
    weights,
)

__all__ = [
    "adapt",
    "decoding",
    "dynamics",
    "estimators",
    "losses",
    "merge",
    "metrics",
    "optim",
    "parallel",
    "reduce",
    "regularizers",
    "schedules",
    "tokens",
    "weights",
]
__version__ = "0.1.0"
