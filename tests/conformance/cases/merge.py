"""Predictions of several models as one."""

import jax.numpy as jnp
import numpy as np

from conformance.case import Case
from conformance.cases.losses_classification import CLASSES
from conformance.cases.losses_classification_families import probabilities
from reweight import merge

MODELS = 3
WEIGHTS = np.array([3.0, 1.0, 0.0])


def several(rng, n):
    return {"logits": 2 * rng.normal(size=(n, MODELS, CLASSES)), "model_weights": WEIGHTS}


def over_models(logits, **others):
    return merge.backdoor_adjustment(jnp.swapaxes(logits, 0, 1), **others)


def mean(logits, model_weights, mode):
    shares = (model_weights / model_weights.sum())[:, None]
    if mode == "logits":
        return np.sum(shares * logits, 1)
    return np.log(np.sum(shares * probabilities(logits), 1))


CASES = [
    Case(
        function=merge.backdoor_adjustment,
        variant=mode,
        call=over_models,
        inputs=several,
        hyper={"mode": mode},
        fixed=("model_weights",),
        differentiable=("logits",),
        constant=("model_weights",),
        reference=mean,
        bad={
            "mode": ("sum",),
            "model_weights": (np.ones(MODELS + 1), np.float64(1.0)),
            "logits": (np.zeros((16, MODELS, CLASSES), int),),
        },
    )
    for mode in ("logits", "probs")
]
