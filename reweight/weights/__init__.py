"""Weighting schemes: which examples, classes, groups or tokens count how much."""

from reweight.weights.base import (
    Weighting,
    chain,
    effective_sample_size,
    max_weight_share,
    normalize,
    stateless,
    uniform,
    weight_entropy,
)

__all__ = [
    "Weighting",
    "chain",
    "effective_sample_size",
    "max_weight_share",
    "normalize",
    "stateless",
    "uniform",
    "weight_entropy",
]
