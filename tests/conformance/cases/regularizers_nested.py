"""Nested dropout, and the width that it leaves the choice of."""

import jax
import numpy as np

from conformance.case import Case
from reweight.regularizers import nested

KEY, FEATURES, CLASSES = jax.random.key(3), 6, 4


def nested_probs(num_features, sigma, mu=0.0):
    odds = np.exp(-(((np.arange(1, num_features + 1) - mu) / sigma) ** 2))
    return odds / odds.sum()


def kept_features(rng, n):
    return {"features": rng.normal(size=(n, FEATURES))}


def first_features(features, sigma, mu=0.0):
    drawn = jax.random.categorical(KEY, np.log(nested_probs(FEATURES, sigma, mu)).astype(np.float32))
    return features * (np.arange(FEATURES) <= int(drawn))


def linear(rng, n):
    return {**kept_features(rng, n), "kernel": rng.normal(size=(FEATURES, CLASSES)),
            "labels": rng.integers(0, CLASSES, n)}  # fmt: skip


def prefix_hits(features, kernel, labels):
    logits = np.cumsum(features[:, :, None] * kernel, axis=1)
    return (logits.argmax(axis=2) == labels[:, None]).astype(float)


def best_width(accuracies, penalty=1e-5):
    return np.argmax(accuracies - penalty * np.arange(len(accuracies))) + 1


CASES = [
    Case(
        function=nested.nested_probs,
        inputs=lambda rng, n: {},
        returns="batch",
        hyper={"num_features": FEATURES, "sigma": 2.0},
        static={"sigma": "a constant of the distribution", "mu": "a constant of the distribution"},
        defaults={"mu": 0.0},
        reference=nested_probs,
        bad={"num_features": (0, 2.5), "sigma": (0.0, -1.0), "mu": (np.inf,)},
    ),
    Case(
        function=nested.nested_dropout,
        inputs=kept_features,
        hyper={"sigma": 4.0, "mu": 1.0},
        defaults={"mu": 0.0},
        call=lambda features, **hyper: nested.nested_dropout(KEY, features, **hyper),
        differentiable=("features",),
        bf16=None,
        reference=first_features,
        bad={"sigma": (0.0, -1.0), "mu": (np.inf,), "features": (np.zeros((16, 0)), np.zeros((16, 3), int))},
        free={"key": "any key"},
    ),
    Case(
        function=nested.prefix_hits,
        inputs=linear,
        fixed=("kernel",),
        stopped=("features", "kernel"),
        bf16=None,
        reference=prefix_hits,
        bad={"kernel": (np.zeros((FEATURES + 1, CLASSES)),), "labels": (np.zeros(16),)},
    ),
    Case(
        function=nested.best_width,
        inputs=lambda rng, n: {"accuracies": np.round(rng.random(9), 1)},
        returns="batch",
        fixed=("accuracies",),
        constant=("accuracies",),
        hyper={"penalty": 1e-5},
        defaults={"penalty": 1e-5},
        reference=best_width,
        bad={"accuracies": (np.zeros(0), np.zeros((3, 2))), "penalty": (-1.0, np.inf)},
    ),
]
