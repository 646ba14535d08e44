"""Attributions, their importance, and generated examples like real ones."""

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import BatchLossCase, Case
from reweight import weights
from reweight.metrics import attribution as metrics
from reweight.metrics.distribution import energy_distance
from reweight.regularizers import attribution

F = 4
SLOPES = np.array([1.0, -2.0, 0.5, 0.0])
KNOWN = np.array([0.4, 0.3, 0.2, 0.1])


def phi(rng, n):
    return {"attributions": rng.normal(size=(n, F))}


def importance(attributions, mask=None):
    rows = attributions if mask is None else attributions[mask]
    sizes = np.sqrt(rows**2 + 1e-12).sum(axis=0)
    return sizes / sizes.sum()


def divergence(knowledge, model, direction, floor):
    p, q = (np.maximum(x, floor) / np.maximum(x, floor).sum() for x in (knowledge, model))
    p, q = (p, q) if direction == "knowledge_to_model" else (q, p)
    return np.sum(p * np.log(p / q))


def shares(rng, n):
    return {"knowledge": rng.dirichlet(np.ones(n)), "model": rng.dirichlet(np.ones(n))}


def batch_divergences(steps, knowledge, direction, floor):
    return [np.where(step["mask"], divergence(knowledge, importance(**step), direction, floor), 0.0) for step in steps]


def quadratic(x):
    return x @ jnp.asarray(SLOPES, x.dtype) + x[:, 0] * x[:, 1]


def by_gradients(**given):
    return metrics.integrated_gradients(quadratic, **given)


def by_orders(**given):
    return metrics.shapley_sampling(jax.random.key(0), quadratic, **given)


def exact(features, baseline, **hyper):
    """Of a quadratic function both methods give the mean of the two orders."""
    del hyper
    moved, middle = features - baseline, (features + baseline) / 2
    out = moved * SLOPES
    out[:, 0] += moved[:, 0] * middle[:, 1]
    out[:, 1] += moved[:, 1] * middle[:, 0]
    return out


def rows(rng, n):
    return {"features": rng.normal(size=(n, F)), "baseline": rng.normal(size=F)}


def agreement(importances):
    models, size = importances.shape
    pairs = [(i, j) for i in range(size) for j in range(i)]
    agreed = [len({np.sign(importances[m, i] - importances[m, j]) for m in range(models)} | {0}) == 2 for i, j in pairs]
    tied = [any(importances[m, i] == importances[m, j] for m in range(models)) for i, j in pairs]
    return sum(a and not t for a, t in zip(agreed, tied, strict=True)) / len(pairs)


def generated(rng, n):
    return {
        "features": rng.normal(size=(n, F)),
        "labels": rng.integers(0, 3, n),
        "real_features": rng.normal(size=(9, F)),
        "real_labels": np.array([0, 0, 1, 1, 1, 0, -1, 7, 1]),
    }


def similar(features, labels, real_features, real_labels, num_classes, threshold):
    del num_classes
    scores, known = np.zeros(len(labels)), np.zeros(len(labels), bool)
    for i, (g, y) in enumerate(zip(features, labels, strict=True)):
        real = real_features[real_labels == y]
        known[i] = len(real) > 0
        if known[i]:
            scores[i] = np.mean(real @ g / np.linalg.norm(real, axis=1) / np.linalg.norm(g))
    return weights.SimilarityFilter(~known | (scores >= threshold), scores, known)


def energy(first, second):
    def mean(a, b):
        return np.mean(np.linalg.norm(a[:, None] - b[None], axis=-1))

    return 2 * mean(first, second) - mean(first, first) - mean(second, second)


DIVERGENCE = {"floor": (0.0, 1.0, np.nan), "direction": ("forward",)}

CASES = [
    Case(
        function=attribution.importance,
        inputs=phi,
        returns="batch",
        mask="mask",
        differentiable=("attributions",),
        reference=importance,
        empty=1 / F,
        bad={"attributions": (np.zeros(16), np.zeros((16, F), int))},
    ),
    Case(
        function=attribution.factor_consistency,
        inputs=shares,
        returns="batch",
        hyper={"direction": "knowledge_to_model", "floor": 1e-4},
        differentiable=("model",),
        constant=("knowledge",),
        extremes={"knowledge": (0.0, 1.0), "model": (0.0, 1.0)},
        reference=divergence,
        bad={**DIVERGENCE, "knowledge": (np.zeros((16, 2)),), "model": (np.zeros(16, int),)},
        defaults={"floor": 1e-8},
    ),
    BatchLossCase(
        function=attribution.batch_factor_consistency,
        inputs=phi,
        hyper={"knowledge": KNOWN, "direction": "model_to_knowledge", "floor": 1e-6},
        differentiable=("attributions",),
        couples=True,
        surrogate=True,
        reference=batch_divergences,
        bad={**DIVERGENCE, "knowledge": (np.zeros((F, 2)),), "attributions": (np.zeros(16), np.zeros((16, F + 1)))},
        defaults={"floor": 1e-8},
    ),
    Case(
        function=metrics.integrated_gradients,
        call=by_gradients,
        inputs=rows,
        fixed=("baseline",),
        hyper={"steps": 3},
        differentiable=("features", "baseline"),
        reference=exact,
        bad={"steps": (0, 1.5), "features": (np.zeros(16),), "baseline": (np.zeros(F + 1),)},
        defaults={"steps": 16},
        free={"model": "any function of rows"},
        bf16=None,
    ),
    Case(
        function=metrics.shapley_sampling,
        call=by_orders,
        inputs=rows,
        fixed=("baseline",),
        hyper={"permutations": 2},
        differentiable=("features", "baseline"),
        reference=exact,
        bad={"permutations": (0, 1.5), "features": (np.zeros(16),), "baseline": (np.zeros(F + 1),)},
        defaults={"permutations": 16},
        free={"model": "any function of rows", "key": "of the orders, drawn by the case"},
        bf16=None,
    ),
    Case(
        function=metrics.order_agreement,
        inputs=lambda rng, n: {"importances": rng.dirichlet(np.ones(3), n) + np.array([0.5, 0, 0])},
        returns="batch",
        constant=("importances",),
        reference=agreement,
        bad={"importances": (np.zeros(16),)},
    ),
    Case(
        function=weights.similarity_filter,
        inputs=generated,
        fixed=("real_features", "real_labels"),
        hyper={"num_classes": 3, "threshold": 0.1},
        stopped=("features", "real_features"),
        reference=similar,
        bad={
            "num_classes": (0, 2.5),
            "threshold": (-1.1, 1.1),
            "features": (np.zeros(16),),
            "labels": (np.zeros(16),),
            "real_features": (np.zeros((9, F + 1)),),
            "real_labels": (np.zeros(9),),
        },
        defaults={"threshold": 0.6},
    ),
    Case(
        function=energy_distance,
        inputs=lambda rng, n: {"first": rng.normal(size=(n, F)), "second": 1 + rng.normal(size=(7, F))},
        returns="batch",
        fixed=("second",),
        differentiable=("first", "second"),
        reference=energy,
        bad={"first": (np.zeros(16),), "second": (np.zeros((7, F + 1)), np.zeros((0, F)))},
    ),
]
