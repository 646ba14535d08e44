"""Sampling from language models on the device, with the log-probabilities of what was sampled."""

from reweight.decoding.sampling import Samples, SequenceModel, sample
from reweight.decoding.truncation import top_k_mask, top_p_mask

__all__ = ["Samples", "SequenceModel", "sample", "top_k_mask", "top_p_mask"]
