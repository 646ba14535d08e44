"""The mixture in which a generator adds to the training set."""

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import Case
from reweight import dynamics

C, D = 3, 4


def labelled(rng, n, classes=2):
    labels = rng.permutation(np.arange(n) % classes)
    return {"features": rng.normal(size=(n, D)) + labels[:, None], "labels": labels}


def fitted(features, labels, mask, num_classes, var_eps):
    x, y = features[mask], labels[mask]
    of_class = [x[y == label] for label in range(num_classes)]
    means = [rows.mean(axis=0) if len(rows) else np.zeros(D) for rows in of_class]
    own = [rows.var(axis=0, ddof=1) if len(rows) > 1 else np.zeros(D) for rows in of_class]
    shares = np.array([len(rows) for rows in of_class]) / max(len(x), 1)
    return dynamics.GaussianGenerator(np.stack(means), shares @ (np.stack(own) + var_eps))


def given_means(labels, means, variances):
    return dynamics.generate(jax.random.key(0), dynamics.GaussianGenerator(means, variances), labels)


def known_labels(rng, n):
    return {"labels": rng.integers(0, C, n), "means": rng.normal(size=(C, D)), "variances": np.zeros(D)}


def of_labels(labels, means, variances):
    del variances
    return means[labels]


def rule(features, labels, mask):
    return np.where(labels == 1, 1, -1)[mask] @ features[mask] / max(mask.sum(), 1)


def losses(theta, features, labels, scale):
    signs = np.where(labels == 1, 1.0, -1.0)
    nll = np.linalg.norm(features - np.outer(signs, theta), axis=1) ** 2 / (2 * scale**2)
    return dynamics.RuleLosses(nll, (np.where(features @ theta >= 0, 1, -1) != signs).astype(float))


def train_and_test(rng, n):
    train, test = labelled(rng, n), labelled(rng, 10)
    return {
        "theta": rng.normal(size=D),
        **{f"train_{name}": x for name, x in train.items()},
        **{f"test_{name}": x for name, x in test.items()},
    }


def gap(theta, train_features, train_labels, test_features, test_labels, mask, scale):
    seen = losses(theta, train_features[mask], train_labels[mask], scale)
    fresh = losses(theta, test_features, test_labels, scale)
    return np.stack([abs(a.mean() - b.mean()) for a, b in zip(seen, fresh, strict=True)])


def both_gaps(**given):
    return jnp.stack(dynamics.generalization_gap(**given))


ROWS = {"features": (np.zeros((16, D), int), np.zeros(16))}
LABELS = {"labels": (np.zeros(16), np.zeros(7, int))}
SCALE = {"scale": (0.0, -1.0, np.inf)}

CASES = [
    Case(
        function=dynamics.gaussian_generator,
        inputs=lambda rng, n: labelled(rng, n, C),
        returns="batch",
        hyper={"num_classes": C, "var_eps": 1e-3},
        mask="mask",
        differentiable=("features",),
        reference=fitted,
        bad={**ROWS, **LABELS, "num_classes": (0, 2.5), "var_eps": (-1.0, np.inf)},
        defaults={"var_eps": 1e-9},
    ),
    Case(
        function=dynamics.generate,
        call=given_means,
        inputs=known_labels,
        fixed=("means", "variances"),
        differentiable=("means",),
        constant=("variances",),
        reference=of_labels,
        bad={"labels": (np.zeros(16),)},
        free={"key": "of the noise, drawn by the case", "generator": "two arrays, checked one by one"},
        bf16=None,
    ),
    Case(
        function=dynamics.mean_rule,
        inputs=labelled,
        returns="batch",
        mask="mask",
        differentiable=("features",),
        reference=rule,
        bad={**ROWS, **LABELS},
    ),
    Case(
        function=dynamics.rule_losses,
        inputs=lambda rng, n: {"theta": rng.normal(size=D), **labelled(rng, n)},
        fixed=("theta",),
        hyper={"scale": 0.6},
        differentiable=("theta", "features"),
        reference=losses,
        bad={**ROWS, **LABELS, **SCALE, "theta": (np.zeros((D, 1)),)},
    ),
    Case(
        function=dynamics.generalization_gap,
        call=both_gaps,
        inputs=train_and_test,
        returns="batch",
        fixed=("theta", "test_features", "test_labels"),
        hyper={"scale": 0.6},
        mask="mask",
        differentiable=("theta", "train_features", "test_features"),
        reference=gap,
        empty=lambda **given: np.stack(
            [x.mean() for x in losses(given["theta"], given["test_features"], given["test_labels"], 0.6)]
        ),
        bad={**SCALE, "train_features": (np.zeros(16),), "test_labels": (np.zeros(10),)},
    ),
]
