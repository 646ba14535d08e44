"""Losses, weighting schemes and optimizers in JAX: every way of saying that one example counts more than another."""

from reweight import decoding, losses, metrics, optim, parallel, reduce, regularizers, tokens, weights

__all__ = ["decoding", "losses", "metrics", "optim", "parallel", "reduce", "regularizers", "tokens", "weights"]
__version__ = "0.1.0"
