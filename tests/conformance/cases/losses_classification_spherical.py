"""The spherical family of classification losses."""

import numpy as np

from conformance.case import Case
from conformance.cases.losses_classification import a_constant_changes_nothing, an_unknown_label_costs_nothing
from conformance.cases.losses_classification_families import LOGITS, OF_LABELS, of_label
from reweight.losses import classification as losses

FEATURES = 3


def z_loss(logits, labels, a, b, eps):
    z = (of_label(logits, labels) - logits.mean(-1)) / (logits.std(-1) + eps)
    return np.logaddexp(0, a * (b - z)) / a


def minus_log_share(mass, labels):
    return -np.log(of_label(mass, labels) / mass.sum(-1))


def squared_error(logits, labels):
    return np.sum((logits - np.eye(logits.shape[-1])[labels]) ** 2, -1)


def statistics(hidden, target_rows, kernel):
    scores = hidden @ kernel.T
    return np.sum(hidden * target_rows, -1) - scores.mean(-1), scores.mean(-1), scores.var(-1)


def sums(kernel):
    return kernel.T @ kernel, kernel.sum(0), np.float64(len(kernel))


def updated(old_rows, new_rows, kernel):
    return sums(np.concatenate([kernel, new_rows]))[0] - old_rows.T @ old_rows, kernel.sum(0) + (
        new_rows - old_rows
    ).sum(0)


def descended(labels, row_slopes, gram, total, kernel, learning_rate):
    whole = kernel @ (gram + gram.T) + total
    np.add.at(whole, labels, row_slopes)
    kernel = kernel - learning_rate * whole
    return kernel, *sums(kernel)[:2]


def descend(labels, row_slopes, gram, total, kernel, learning_rate):
    slopes = losses.KernelSums(gram, total, 0.0)
    factored = losses.factored_kernel(kernel)
    factored = losses.factored_step(factored, labels, row_slopes, slopes, learning_rate=learning_rate)
    return factored.kernel, *factored.sums[:2]


def drawn_slopes(rng, n):
    return {
        **rows(rng, n, "row_slopes"),
        "labels": rng.integers(0, 7, n),
        "kernel": rng.normal(size=(7, FEATURES)),
        "gram": rng.normal(size=(FEATURES, FEATURES)),
        "total": rng.normal(size=FEATURES),
    }


def rows(rng, n, *names):
    return {name: rng.normal(size=(n, FEATURES)) for name in names}


def moments(rng, n):
    return {"lead": rng.normal(size=n), "mean": rng.normal(size=n), "variance": 0.1 + rng.random(n)}


A = {"a": (0.0, np.inf), "b": (-np.inf, np.inf), "eps": (-1.0, np.inf)}
UNKNOWN = (an_unknown_label_costs_nothing,)

CASES = [
    Case(
        function=losses.z_loss,
        **OF_LABELS,
        hyper={"a": 1.7, "b": 0.4, "eps": 0.01},
        reference=z_loss,
        invariants=(a_constant_changes_nothing, *UNKNOWN),
        bad={**A, **LOGITS},
        defaults={"a": 1.0, "b": 0.0, "eps": 1e-12},
    ),
    Case(
        function=losses.taylor_softmax_cross_entropy,
        **OF_LABELS,
        reference=lambda logits, labels: minus_log_share(1 + logits + logits**2 / 2, labels),
        invariants=UNKNOWN,
        bad=LOGITS,
    ),
    Case(
        function=losses.spherical_softmax_cross_entropy,
        **OF_LABELS,
        hyper={"eps": 0.3},
        reference=lambda logits, labels, eps: minus_log_share(logits**2 + eps, labels),
        invariants=UNKNOWN,
        bad={"eps": (0.0, np.inf), **LOGITS},
        defaults={"eps": 0.01},
    ),
    Case(
        function=losses.squared_error,
        **OF_LABELS,
        reference=squared_error,
        invariants=UNKNOWN,
        bad=LOGITS,
    ),
    Case(
        function=losses.spherical_loss,
        inputs=moments,
        call=lambda name, lead, mean, variance, **hyper: losses.spherical_loss(
            name, losses.SphericalStatistics(lead, mean, variance, 5.0), **hyper
        ),
        hyper={"name": "z_loss", "a": 1.7, "b": 0.4},
        differentiable=("lead", "variance"),
        stopped=("mean",),
        extremes={"variance": (0.0, 1e4)},
        reference=lambda name, lead, mean, variance, a, b: np.logaddexp(0, a * (b - lead / np.sqrt(variance))) / a,
        bad={"name": ("z",), "a": A["a"], "b": A["b"]},
        free={
            "statistics": "a tuple of arrays, made by a function that checks them",
            "hyper": "checked by the loss",
            **dict.fromkeys(("lead", "mean", "variance"), "entries of that tuple"),
        },
    ),
    Case(
        function=losses.spherical_statistics,
        inputs=lambda rng, n: {**rows(rng, n, "hidden", "target_rows"), "kernel": rng.normal(size=(7, FEATURES))},
        call=lambda kernel, **arrays: losses.spherical_statistics(**arrays, sums=losses.kernel_sums(kernel))[:3],
        fixed=("kernel",),
        differentiable=("hidden", "target_rows", "kernel"),
        reference=statistics,
        bad={"hidden": (np.zeros((16, FEATURES + 1)),), "target_rows": (np.zeros((16, FEATURES + 1)),)},
        free={"sums": "made by a function that checks the kernel"},
        # A variance that is a small difference of large numbers.
        bf16=1e-2,
    ),
    Case(
        function=losses.kernel_sums,
        returns="batch",
        inputs=lambda rng, n: rows(rng, n, "kernel"),
        differentiable=("kernel",),
        reference=sums,
        bad={"kernel": (np.zeros(3), np.zeros((4, 3), int))},
    ),
    Case(
        function=losses.update_kernel_sums,
        returns="batch",
        inputs=lambda rng, n: {**rows(rng, n, "old_rows", "new_rows"), "kernel": rng.normal(size=(7, FEATURES))},
        call=lambda kernel, **arrays: losses.update_kernel_sums(losses.kernel_sums(kernel), **arrays)[:2],
        fixed=("kernel",),
        differentiable=("old_rows", "new_rows", "kernel"),
        reference=updated,
        bad={"new_rows": (np.zeros((16, FEATURES + 1)),), "old_rows": (np.zeros((16, FEATURES + 1)),)},
        free={"sums": "made by a function that checks the kernel"},
    ),
    Case(
        function=losses.factored_kernel,
        inputs=lambda rng, n: rows(rng, n, "kernel"),
        call=lambda kernel: losses.factored_kernel(kernel).kernel,
        differentiable=("kernel",),
        reference=lambda kernel: kernel,
        bad={"kernel": (np.zeros(3), np.zeros((4, 3), int))},
    ),
    Case(
        function=losses.factored_step,
        returns="batch",
        inputs=drawn_slopes,
        call=descend,
        hyper={"learning_rate": 0.02},
        fixed=("gram", "total", "kernel"),
        differentiable=("row_slopes", "kernel"),
        constant=("gram", "total"),
        reference=descended,
        bad={"labels": (np.zeros(16),), "row_slopes": (np.zeros((16, FEATURES + 1)),), "learning_rate": (-1.0, np.inf)},
        free={
            "factored": "made by a function that checks the kernel",
            "sum_slopes": "a tuple of arrays, whose entries are checked",
            **dict.fromkeys(("gram", "total"), "entries of that tuple"),
        },
    ),
]
