"""Robust rules of two Gaussian classes, whose entries take the place of examples."""

import numpy as np
from scipy import optimize, stats

from conformance.case import Case
from reweight import dynamics

ORDER = {"linf": 1, "l2": 2}


def moments(rng, n):
    return {"theta": rng.normal(size=n), "covariance": rng.uniform(0.5, 2, n)}


def rule(theta, covariance, ratio, eps, norm):
    """By minimising over the attack that reaches farthest, in place of the weights."""
    if norm == "linf":
        weights = (theta - np.clip(theta, -eps, eps)) / covariance
    else:
        reach = lambda mu: np.linalg.norm(mu * theta / (mu + covariance)) - eps  # noqa: E731
        weights = theta / (covariance + optimize.brentq(reach, 0, 1e4, xtol=1e-13))
    weights = weights / np.linalg.norm(weights)
    margin = weights @ theta - eps * np.linalg.norm(weights, ORDER[norm])
    return dynamics.LinearRule(weights, np.asarray(weights**2 @ covariance * np.log(ratio) / (2 * margin)))


def accuracies(weights, bias, theta, covariance, eps, norm):
    margin = weights @ theta - eps * np.linalg.norm(weights, ORDER[norm])
    spread = np.sqrt(weights**2 @ covariance)
    return dynamics.ClassAccuracies(*(stats.norm.cdf((margin + side * bias) / spread) for side in (1, -1)))


def gap(theta, covariance, ratio, eps, norm):
    standard, robust = (
        accuracies(*rule(theta, covariance, ratio, size, norm), theta, covariance, 0.0, norm) for size in (0.0, eps)
    )
    return dynamics.DisparityGap((sum(standard) - sum(robust)) / 2, robust[0] - robust[1] - (standard[0] - standard[1]))


def the_weights_have_length_one_and_go_along_with_their_entries(probe):
    arrays = probe.arrays()
    weights, bias = probe.value(arrays)
    np.testing.assert_allclose(np.linalg.norm(weights), 1, rtol=1e-5)
    turned = probe.value({name: array[::-1] for name, array in arrays.items()})
    np.testing.assert_allclose(turned[0], weights[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(turned[1], bias, rtol=1e-5)


_BAD = {
    "eps": (-0.1, np.inf),
    "norm": ("l1",),
    "theta": (np.ones((2, 2)), np.ones(3, int)),
    "covariance": (np.ones(3), np.ones((16, 3))),
}
_RULE = {**_BAD, "ratio": (0.0, -1.0, np.inf)}
_EXTREMES = {"theta": (1e4, -1e4), "covariance": (1e-4, 1e4), "bias": (1e4, -1e4), "weights": (1e4, -1e4)}

CASES = [
    case
    for norm, size in (("linf", 0.1), ("l2", 0.7))
    for case in (
        Case(
            function=dynamics.robust_gaussian_classifier,
            variant=norm,
            inputs=moments,
            hyper={"ratio": 3.0, "eps": 0.4, "norm": norm},
            returns="batch",
            ordered=True,  # the weights go along with the entries
            constant=("theta", "covariance"),
            extremes=_EXTREMES,
            reference=rule,
            invariants=(the_weights_have_length_one_and_go_along_with_their_entries,),
            bad=_RULE,
            bf16=2e-2,
        ),
        Case(
            function=dynamics.class_accuracies,
            variant=norm,
            inputs=lambda rng, n: {
                **moments(rng, n),
                "weights": rng.normal(size=n),
                "bias": np.float64(rng.normal()),
            },
            hyper={"eps": 0.1, "norm": norm},
            returns="batch",
            fixed=("bias",),
            differentiable=("weights", "bias", "theta", "covariance"),
            extremes=_EXTREMES,
            reference=accuracies,
            bad=_BAD,
            defaults={"eps": 0.0},
        ),
        Case(
            function=dynamics.disparity_gap,
            variant=norm,
            inputs=lambda rng, n: {"theta": 0.3 * rng.normal(size=n), "covariance": rng.uniform(0.5, 2, n)},
            hyper={"ratio": 3.0, "eps": size, "norm": norm},
            returns="batch",
            constant=("theta", "covariance"),
            extremes=_EXTREMES,
            reference=gap,
            bad=_RULE,
            blames=("robust_gaussian_classifier",),
            bf16=2e-2,
        ),
    )
]
