"""Losses, weighting schemes and optimizers in JAX: every way of saying that one example counts more than another."""

from reweight import decoding, losses, optim, parallel, reduce, tokens, weights

__all__ = ["decoding", "losses", "optim", "parallel", "reduce", "tokens", "weights"]
__version__ = "0.1.0"
