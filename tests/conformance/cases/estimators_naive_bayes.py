"""Naive Bayes from moments of classes."""

import numpy as np
from scipy import stats

from conformance.case import Case
from reweight.estimators import naive_bayes

CLASSES = 3
FIELDS = naive_bayes.ClassMoments._fields
_MOMENTS = {"moments": "three arrays, checked one by one"}
EPS = {"var_eps": (0.0, -1.0, np.inf)}


def labelled(rng, n):
    labels = rng.permutation(np.arange(n) % CLASSES)
    return {"features": rng.normal(size=(n, 4)) + labels[:, None], "labels": labels, "weights": rng.uniform(0.2, 2, n)}


def given(rng, n):
    features = 2 * rng.normal(size=(n, 4))
    counts, means = rng.uniform(1, 9, CLASSES), rng.normal(size=(CLASSES, 4))
    return {
        "counts": counts,
        "means": means,
        "deviations": counts[:, None] * rng.uniform(0.5, 2, (CLASSES, 4)),
        "features": features,
    }


def without_features(rng, n):
    return {name: array for name, array in given(rng, n).items() if name != "features"}


def two(rng, n):
    return {f"{side}_{name}": x for side in ("first", "second") for name, x in without_features(rng, n).items()}


def moments(features, labels, weights, mask, num_classes):
    counts, means, deviations = np.zeros(num_classes), np.zeros((num_classes, 4)), np.zeros((num_classes, 4))
    for label in range(num_classes):
        own = mask & (labels == label)
        counts[label] = weights[own].sum()
        if own.any():
            means[label] = np.average(features[own], axis=0, weights=weights[own])
            deviations[label] = weights[own] @ (features[own] - means[label]) ** 2
    return naive_bayes.ClassMoments(counts, means, deviations)


def merged(**sides):
    (n, a, s), (m, b, t) = ([sides[f"{side}_{name}"] for name in FIELDS] for side in ("first", "second"))
    mean = (n[:, None] * a + m[:, None] * b) / (n + m)[:, None]
    squares = s + n[:, None] * a**2 + t + m[:, None] * b**2
    return naive_bayes.ClassMoments(n + m, mean, squares - (n + m)[:, None] * mean**2)


def variances(counts, means, deviations, shared_variance=True, var_eps=1e-9):
    own = deviations / counts[:, None] + var_eps
    return np.average(own, axis=0, weights=counts) if shared_variance else own


def joint(features, counts, means, deviations, shared_variance, var_eps):
    spread = np.broadcast_to(np.sqrt(variances(counts, means, deviations, shared_variance, var_eps)), means.shape)
    return np.stack(
        [
            np.log(n / counts.sum()) + stats.norm.logpdf(features, m, s).sum(-1)
            for n, m, s in zip(counts, means, spread, strict=True)
        ],
        axis=-1,
    )


def probe(counts, means, deviations, var_eps, centred):
    inverse = np.diag(1 / variances(counts, means, deviations, True, var_eps))
    kernel, bias = means @ inverse, np.log(counts / counts.sum()) - np.diag(means @ inverse @ means.T) / 2
    if centred:
        centre = np.average(means, axis=0, weights=counts)
        kernel, bias = kernel - centre @ inverse, bias + centre @ inverse @ centre / 2
    return naive_bayes.LinearProbe(kernel, bias)


def of_moments(function):
    def call(counts, means, deviations, **rest):
        return function(naive_bayes.ClassMoments(counts, means, deviations), **rest)

    return call


def merging(**sides):
    one, other = (
        naive_bayes.ClassMoments(*(sides[f"{side}_{name}"] for name in FIELDS)) for side in ("first", "second")
    )
    return naive_bayes.merge_moments(one, other)


def duplicating_the_batch_changes_no_mean(case_probe):
    arrays = case_probe.arrays()
    once = case_probe.value({**arrays, "mask": np.arange(16) < 8})
    twice = case_probe.value(
        {**{k: np.tile(a[:8], (2,) + (1,) * (a.ndim - 1)) for k, a in arrays.items()}, "mask": np.ones(16, bool)}
    )
    np.testing.assert_allclose(twice.means, once.means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(twice.counts, 2 * once.counts, rtol=1e-5)
    np.testing.assert_allclose(twice.deviations, 2 * once.deviations, rtol=1e-4, atol=1e-5)


SIDES = tuple(f"{side}_{name}" for side in ("first", "second") for name in FIELDS)

CASES = [
    Case(
        function=naive_bayes.class_moments,
        inputs=labelled,
        returns="batch",
        hyper={"num_classes": CLASSES},
        mask="mask",
        differentiable=("features", "weights"),
        extremes={"weights": (0.0, 1e4)},
        reference=moments,
        invariants=(duplicating_the_batch_changes_no_mean,),
        bad={"num_classes": (0, -1, 2.5)},
    ),
    Case(
        function=naive_bayes.merge_moments,
        call=merging,
        inputs=two,
        returns="batch",
        fixed=SIDES,
        differentiable=SIDES,
        reference=merged,
        free=dict.fromkeys(("first", "second"), "three arrays, checked one by one") | dict.fromkeys(SIDES, "a field"),
    ),
    *(
        Case(
            function=naive_bayes.class_variances,
            variant="shared" if shared else "",
            call=of_moments(naive_bayes.class_variances),
            inputs=without_features,
            returns="batch",
            hyper={"shared_variance": shared, "var_eps": 0.1},
            fixed=FIELDS,
            differentiable=("deviations",),
            constant=("counts", "means"),
            reference=variances,
            bad=EPS,
            defaults={"var_eps": 1e-9},
            free=_MOMENTS,
        )
        for shared in (True, False)
    ),
    *(
        Case(
            function=naive_bayes.log_joint,
            variant="shared" if shared else "",
            call=of_moments(naive_bayes.log_joint),
            inputs=given,
            hyper={"shared_variance": shared, "var_eps": 0.1},
            fixed=FIELDS,
            differentiable=("features", "means", "deviations"),
            constant=("counts",),
            reference=joint,
            bad=EPS,
            defaults={"var_eps": 1e-9},
            free=_MOMENTS,
        )
        for shared in (True, False)
    ),
    *(
        Case(
            function=naive_bayes.linear_probe,
            variant="centred" if centred else "",
            call=of_moments(naive_bayes.linear_probe),
            inputs=without_features,
            returns="batch",
            hyper={"var_eps": 0.1, "centred": centred},
            fixed=FIELDS,
            differentiable=("means", "deviations"),
            constant=("counts",),
            reference=probe,
            bad=EPS,
            defaults={"var_eps": 1e-9},
            free=_MOMENTS,
        )
        for centred in (False, True)
    ),
]
