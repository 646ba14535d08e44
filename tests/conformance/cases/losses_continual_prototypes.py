"""Prototypes of classes, and classification by cosine to them."""

import itertools

import jax
import numpy as np

from conformance.case import Case
from reweight.losses import continual

CLASSES, FEATURES = 4, 5


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def labelled(rng, n):
    return {"features": rng.normal(size=(n, FEATURES)), "labels": rng.permutation(np.arange(n) % (CLASSES + 2) - 1)}


def fixed(rng, n, count=CLASSES, size=FEATURES):
    return {"features": rng.normal(size=(n, size)), "prototypes": rng.normal(size=(count, size))}


def class_prototypes(features, labels, num_classes, mask):
    mask = mask.astype(bool)
    return unit(np.stack([features[mask & (labels == c)].sum(0) for c in range(num_classes)]))


def calibrate(new, base, alpha=0.5, tau=16.0):
    mass = np.exp(tau * unit(new) @ unit(base).T)
    return (1 - alpha) * unit(new) + alpha * unit(mass / mass.sum(1, keepdims=True) @ unit(base))


def simplex(basis):
    count = basis.shape[1]
    return (np.sqrt(count / (count - 1)) * basis @ (np.eye(count) - 1 / count)).T


def assign(class_means, prototypes):
    scores = unit(class_means) @ unit(prototypes).T
    orders = list(itertools.permutations(range(len(prototypes)), len(class_means)))
    return np.array(max(orders, key=lambda order: scores[np.arange(len(order)), list(order)].sum()))


def dot_regression(features, prototypes, labels):
    known = (labels >= 0) & (labels < CLASSES)
    cosine = np.sum(unit(features) * unit(prototypes)[np.where(known, labels, 0)], -1)
    return np.where(known, 0.5 * (cosine - 1) ** 2, 0)


def lengths_of_features_do_not_matter(probe):
    arrays = probe.arrays()
    longer = {**arrays, "features": 7 * arrays["features"]}
    np.testing.assert_allclose(probe.value(longer), probe.value(arrays), rtol=1e-4, atol=1e-5)


CASES = [
    Case(
        function=continual.class_prototypes,
        inputs=labelled,
        returns="batch",
        hyper={"num_classes": CLASSES},
        mask="mask",
        differentiable=("features",),
        reference=class_prototypes,
        bad={"num_classes": (0, 2.5), "features": (np.zeros(4),)},
    ),
    Case(
        function=continual.cosine_scores,
        defaults={"scale": 1.0},
        inputs=fixed,
        hyper={"scale": 3.0},
        fixed=("prototypes",),
        differentiable=("features", "prototypes"),
        reference=lambda features, prototypes, scale: scale * unit(features) @ unit(prototypes).T,
        invariants=(lengths_of_features_do_not_matter,),
        bf16=1e-2,
        bad={"scale": (0.0, -1.0), "prototypes": (np.zeros((CLASSES, FEATURES + 1)), np.zeros((0, FEATURES)))},
    ),
    Case(
        function=continual.calibrate_prototypes,
        defaults={"alpha": 0.5, "tau": 16.0},
        inputs=lambda rng, n: {"new": rng.normal(size=(n, FEATURES)), "base": rng.normal(size=(CLASSES, FEATURES))},
        hyper={"alpha": 0.3, "tau": 4.0},
        fixed=("base",),
        differentiable=("new", "base"),
        reference=calibrate,
        bad={"alpha": (-0.1, 1.1), "tau": (-1.0,), "base": (np.zeros((CLASSES, FEATURES + 1)),)},
    ),
    Case(
        function=continual.simplex_etf,
        inputs=lambda rng, n: {"basis": np.linalg.qr(rng.normal(size=(FEATURES, CLASSES)))[0]},
        returns="batch",
        fixed=("basis",),
        differentiable=("basis",),
        extremes={"basis": ()},
        reference=simplex,
        bad={"basis": (np.zeros((3, 4)), np.zeros((4, 1)))},
    ),
    Case(
        function=continual.etf_prototypes,
        inputs=lambda rng, n: {},
        call=lambda dim, num_classes: continual.etf_prototypes(jax.random.key(0), dim, num_classes),
        returns="batch",
        hyper={"dim": FEATURES, "num_classes": CLASSES},
        reference=lambda dim, num_classes: simplex(
            np.asarray(jax.random.orthogonal(jax.random.key(0), dim, m=num_classes))
        ),
        free={"key": "any key"},
        bad={"dim": (CLASSES - 1, 4.5), "num_classes": (1, 2.5)},
    ),
    Case(
        function=continual.assign_prototypes,
        inputs=lambda rng, n: {
            "class_means": rng.normal(size=(CLASSES, FEATURES)),
            "prototypes": rng.normal(size=(CLASSES + 1, FEATURES)),
        },
        returns="batch",
        fixed=("class_means", "prototypes"),
        stopped=("class_means", "prototypes"),
        reference=assign,
        bad={"prototypes": (np.zeros((CLASSES - 1, FEATURES)), np.zeros((CLASSES, FEATURES + 1)))},
    ),
    Case(
        function=continual.dr_loss,
        inputs=lambda rng, n: {**labelled(rng, n), "prototypes": rng.normal(size=(CLASSES, FEATURES))},
        fixed=("prototypes",),
        differentiable=("features",),
        stopped=("prototypes",),
        reference=dot_regression,
        invariants=(lengths_of_features_do_not_matter,),
        bad={"prototypes": (np.zeros((CLASSES, FEATURES + 1)), np.zeros((0, FEATURES)))},
    ),
]
