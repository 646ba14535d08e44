"""Losses of ordered classes, and the fused penalty of their boundaries."""

import jax
import numpy as np

from conformance.case import Case
from reweight.losses import ordinal
from reweight.regularizers import fused

K = 4


def boundaries(rng, n):
    return {"boundary_logits": np.sort(2 * rng.normal(size=(n, K - 1)), axis=-1), "labels": np.arange(n) % K}


def of_logits(logits):
    ends = np.concatenate([np.zeros((len(logits), 1)), 1 / (1 + np.exp(-logits)), np.ones((len(logits), 1))], axis=1)
    return np.diff(ends, axis=1)


def nll(boundary_logits, labels, min_gap=1e-8):
    return -np.log(of_logits(boundary_logits)[np.arange(len(labels)), labels])


def probs(boundary_logits):
    return of_logits(boundary_logits), np.zeros(len(boundary_logits), bool)


def penalty(coefficients, alpha):
    first, later = coefficients[:, 0], coefficients[:, 1:] - coefficients[:, :-1]
    absolute = np.abs(first).sum() + np.abs(later).sum()
    squares = (first**2).sum() + (later**2).sum()
    return alpha * absolute + (1 - alpha) / 2 * squares


def an_unknown_label_costs_nothing(probe):
    for unknown in (-1, K):
        labels = np.where(np.arange(16) == 3, unknown, probe.arrays()["labels"])
        assert probe.value(probe.arrays(labels=labels))[3] == 0


def a_wide_gap_is_the_likelihood_whatever_the_smallest(probe):
    arrays = probe.arrays(boundary_logits=np.tile([-1.0, 0.5, 2.0], (16, 1)))
    np.testing.assert_allclose(probe.value(arrays, min_gap=0.1), probe.value(arrays), rtol=1e-6)


def rows(rng, n):
    features = rng.normal(size=(n, 2))
    score = features[:, 0] + rng.normal(size=n)
    return {"features": features, "labels": np.digitize(score, np.quantile(score, [0.4, 0.8]))}


def path(**given):
    return fused.presto_path(**given)[:4]


def path_of_cross_validation(**given):
    return fused.presto_cross_validation(jax.random.key(0), **given).path[:4]


def the_first_fit_of_a_lasso_has_only_zeros(probe):
    increments = probe.value(probe.arrays(), alpha=1.0)[3]
    assert not np.any(np.abs(increments[0]) > 1e-5)


CASES = [
    Case(
        function=ordinal.cumulative_logit_nll,
        inputs=boundaries,
        hyper={"min_gap": 1e-8},
        differentiable=("boundary_logits",),
        reference=nll,
        invariants=(an_unknown_label_costs_nothing, a_wide_gap_is_the_likelihood_whatever_the_smallest),
        bad={"boundary_logits": (np.zeros((16, K - 1), int), np.float64(1.0)), "min_gap": (0.0, np.inf)},
        defaults={"min_gap": 1e-8},
    ),
    Case(
        function=ordinal.cumulative_probs,
        inputs=lambda rng, n: {"boundary_logits": boundaries(rng, n)["boundary_logits"]},
        differentiable=("boundary_logits",),
        reference=probs,
        bad={"boundary_logits": (np.zeros((16, K - 1), int), np.float64(1.0))},
    ),
    Case(
        function=fused.presto_penalty,
        inputs=lambda rng, n: {"coefficients": rng.normal(size=(n, K - 1))},
        hyper={"alpha": 0.4},
        returns="batch",
        differentiable=("coefficients",),
        reference=penalty,
        bad={"alpha": (-0.1, 1.1), "coefficients": (np.zeros(16),)},
        defaults={"alpha": 1.0},
    ),
    Case(
        function=fused.presto_path,
        call=path,
        inputs=rows,
        hyper={"num_classes": 3, "alpha": 0.5, "num_lambdas": 3, "lambda_min_ratio": 0.3, "tolerance": 1e-7},
        returns="batch",
        mask="mask",
        constant=("features",),
        invariants=(the_first_fit_of_a_lasso_has_only_zeros,),
        bad={
            "num_classes": (1, 2.5),
            "alpha": (-0.1, 1.1),
            "num_lambdas": (0, 1.5),
            "lambda_min_ratio": (0.0, 1.0),
            "tolerance": (0.0, np.inf),
            "max_iterations": (0, 1.5),
        },
        free={"lambdas": "any strengths, in an array"},
        defaults={
            "alpha": 1.0,
            "num_lambdas": 20,
            "lambda_min_ratio": 0.01,
            "tolerance": 1e-6,
            "max_iterations": 2000,
        },
        tolerance=1e-3,
        bf16=None,
    ),
    Case(
        function=fused.presto_cross_validation,
        call=path_of_cross_validation,
        inputs=rows,
        hyper={
            "num_classes": 3,
            "alpha": 0.5,
            "num_lambdas": 3,
            "lambda_min_ratio": 0.3,
            "tolerance": 1e-7,
            "folds": 2,
        },
        returns="batch",
        mask="mask",
        constant=("features",),
        bad={
            "num_classes": (1, 2.5),
            "folds": (1, 2.5),
            "alpha": (-0.1, 1.1),
            "num_lambdas": (0, 1.5),
            "lambda_min_ratio": (0.0, 1.0),
            "tolerance": (0.0, np.inf),
            "max_iterations": (0, 1.5),
        },
        free={"key": "of the folds, drawn by the case"},
        defaults={
            "folds": 5,
            "alpha": 1.0,
            "num_lambdas": 20,
            "lambda_min_ratio": 0.01,
            "tolerance": 1e-6,
            "max_iterations": 2000,
        },
        tolerance=1e-3,
        bf16=None,
    ),
]
