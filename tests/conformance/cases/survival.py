"""Losses of discrete hazards, and the concordance index."""

import numpy as np

from conformance.case import Case
from reweight.losses import survival as losses
from reweight.metrics import survival as metrics

T = 4
SHORT, LONG = (0.5, 1.0, 2.0), (0.5, 2.0, 4.0, 8.0)


def seen(rng, n):
    return {
        "hazard_logits": 2 * rng.normal(size=(n, T)),
        "intervals": rng.integers(0, T + 1, n),
        "events": rng.integers(0, 2, n),
    }


def lives(rng, n):
    return {"times": rng.integers(1, 9, n) + 0.25, "events": rng.integers(0, 2, n)}


def nll(hazard_logits, intervals, events, censored_survived=False):
    found = []
    for logits, last, event in zip(hazard_logits, intervals, events, strict=True):
        hazards = 1 / (1 + np.exp(-logits))
        alive = last + (censored_survived and not event)
        likelihood = np.prod(1 - hazards[:alive])
        found.append(-np.log(likelihood * hazards[last] if event and last < len(logits) else likelihood))
    return np.array(found)


def intervals_of(times, edges):
    return np.array([sum(time > edge for edge in edges[1:]) for time in times])


def two_terms(short_logits, long_logits, times, events, short_edges, long_edges, lam):
    short, long = (
        nll(x, intervals_of(times, e), events) for x, e in ((short_logits, short_edges), (long_logits, long_edges))
    )
    return lam * short + (1 - lam) * long


def pairs(risks, times, events, mask, weights=None, censored_ties=False, undefined=0.0):
    weights = np.ones(len(risks)) if weights is None else weights
    right = comparable = 0.0
    for i in range(len(risks)):
        for j in range(len(risks)):
            longer = times[i] < times[j] or (censored_ties and times[i] == times[j] and not events[j])
            if mask[i] and mask[j] and events[i] and longer:
                comparable += weights[i] * weights[j]
                right += weights[i] * weights[j] * (1 + np.sign(risks[i] - risks[j])) / 2
    return right, comparable


def an_unknown_example_costs_nothing(probe):
    intervals = probe.arrays()["intervals"]
    intervals[3] = -1
    assert probe.value(probe.arrays(intervals=intervals))[3] == 0


def survival_falls(probe):
    assert np.all(np.diff(probe.value(probe.arrays()), axis=-1) <= 0)


RANKED = {
    "inputs": lambda rng, n: {
        "risks": rng.integers(0, 6, n) * 0.5,
        **lives(rng, n),
        "weights": rng.uniform(0.5, 1.5, n),
    },
    "hyper": {"censored_ties": True},
    "returns": "batch",
    "mask": "mask",
    "stopped": ("risks", "times", "weights"),
    "extremes": {"weights": (0.0, 1e4)},
}
EDGES = {"short_edges": ((1.0,), (2.0, 1.0)), "long_edges": ((1.0,), (2.0, 1.0))}

CASES = [
    *(
        Case(
            function=losses.discrete_hazard_nll,
            variant="censored survived" if survived else "",
            inputs=seen,
            hyper={"censored_survived": survived},
            differentiable=("hazard_logits",),
            reference=nll,
            invariants=(an_unknown_example_costs_nothing,),
            bad={"hazard_logits": (np.zeros((16, T), int), np.float64(1.0))},
        )
        for survived in (False, True)
    ),
    Case(
        function=losses.survival_from_hazard,
        inputs=lambda rng, n: {"hazard_logits": rng.normal(size=(n, T))},
        differentiable=("hazard_logits",),
        reference=lambda hazard_logits: np.cumprod(1 / (1 + np.exp(hazard_logits)), axis=-1),
        invariants=(survival_falls,),
        bad={"hazard_logits": (np.zeros((16, T), int), np.float64(1.0))},
    ),
    Case(
        function=losses.bucketize,
        inputs=lives,
        hyper={"edges": LONG},
        constant=("times",),
        reference=lambda times, events, edges: (intervals_of(times, edges), (events > 0) & (times <= edges[-1])),
        bad={"edges": ((1.0,), (2.0, 1.0), "days")},
    ),
    Case(
        function=losses.two_term_hazard_nll,
        inputs=lambda rng, n: {
            "short_logits": rng.normal(size=(n, 2)),
            "long_logits": rng.normal(size=(n, 3)),
            **lives(rng, n),
        },
        hyper={"short_edges": SHORT, "long_edges": LONG, "lam": 0.3},
        differentiable=("short_logits", "long_logits"),
        constant=("times",),
        reference=two_terms,
        bad={"lam": (-0.1, 1.1), **EDGES},
        defaults={"lam": 0.5},
    ),
    Case(function=metrics.concordance_pairs, reference=pairs, **RANKED),
    Case(
        function=metrics.concordance_index,
        reference=lambda **given: np.divide(*pairs(**given)),
        defaults={"undefined": 0.0},
        free={"undefined": "stands for what is not defined, and may be any number"},
        **{**RANKED, "hyper": {"censored_ties": True, "undefined": 0.0}},
    ),
]
