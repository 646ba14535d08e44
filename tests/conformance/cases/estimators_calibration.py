"""Fits of a calibration."""

import numpy as np
from scipy import optimize, special

from conformance.case import Case
from reweight.estimators import calibration


def held_out(rng, n):
    logits = 3 * rng.normal(size=(n, 4))
    labels = np.where(rng.random(n) < 0.6, logits.argmax(-1), rng.integers(0, 4, n))
    return {"logits": logits, "labels": labels, "weights": rng.uniform(0.5, 2.0, n)}


def temperature(logits, labels, weights, mask, init, max_log):
    def slope(log_temperature):
        scaled = logits[mask] * np.exp(-log_temperature)
        ahead = np.sum(special.softmax(scaled, axis=1) * scaled, axis=1) - scaled[np.arange(mask.sum()), labels[mask]]
        return np.sum(weights[mask] * ahead)

    return np.exp(optimize.brentq(slope, -max_log, max_log, xtol=1e-13))


def scaling_the_logits_scales_the_temperature(probe):
    arrays = probe.arrays()
    wanted = probe.value(arrays)
    for scale in (0.2, 7.0):
        np.testing.assert_allclose(
            probe.value({**arrays, "logits": scale * arrays["logits"]}), scale * wanted, rtol=1e-5
        )


def the_start_does_not_matter(probe):
    arrays = probe.arrays()
    np.testing.assert_allclose(probe.value(arrays, init=20.0), probe.value(arrays, init=0.05), rtol=1e-5)


CASES = [
    Case(
        function=calibration.fit_temperature,
        inputs=held_out,
        returns="batch",
        hyper={"init": 1.0, "max_log": 5.0},
        mask="mask",
        stopped=("logits", "weights"),
        extremes={"weights": (0.0, 1e4)},
        empty=1.0,
        reference=temperature,
        invariants=(scaling_the_logits_scales_the_temperature, the_start_does_not_matter),
        bad={"init": (0.0, -1.0, np.inf), "max_log": (0.0, -1.0, np.inf), "solver": ("adam",)},
        defaults={"init": 1.0, "max_log": 5.0},
    ),
]
