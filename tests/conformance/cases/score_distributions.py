"""Distributions over rated levels, and the fidelity of comparisons."""

import math

import numpy as np

from conformance.case import Case
from reweight.losses import ordinal, ranking

IDS = (5, 0, 3)
LOW, HIGH = 10.0, 90.0


def phi(x):
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.ravel(x)]).reshape(np.shape(x))


def rated(rng, n):
    return {"means": rng.uniform(LOW, HIGH, n), "stds": rng.uniform(2.0, 25.0, n)}


def labels(means, stds, low, high, density, min_std, max_error, renormalize=False):
    found = []
    for m, s in zip(means, stds, strict=True):
        mu, sd = 4 * (m - low) / (high - low) + 1, 4 * s / (high - low)
        x = np.arange(5, 0, -1)
        raw = np.exp(-(((x - mu) / sd) ** 2) / 2) / sd / math.sqrt(2 * math.pi)
        if density == "cdf":
            raw = phi((x + 0.5 - mu) / sd) - phi((x - 0.5 - mu) / sd)
        # Solve for the scale and the shift that give sum 1 and mean mu.
        scale, shift = np.linalg.solve([[raw.sum(), 5.0], [raw @ x + 1e-9, 15.0]], [1.0, mu])
        row = np.maximum(scale * raw + shift, 0)
        if sd < min_std or abs(row @ x - mu) > max_error:
            row = np.maximum(1 - np.abs(x - mu), 0)
        elif renormalize:
            row = row / row.sum()
        found.append(row)
    return np.array(found)


def softmax(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def kl(logits, targets, level_ids):
    return np.sum(targets * np.log(targets / softmax(logits)[:, list(level_ids)]), axis=-1)


def moments(logits, level_ids):
    shares = softmax(logits[:, list(level_ids)])
    means = shares @ np.array([3.0, 2, 1])
    return means, np.sqrt(shares @ np.array([9.0, 4, 1]) - means**2)


def open_moments(logits, level_ids, closed_set):
    shares, levels = softmax(logits)[:, list(level_ids)], np.array([3.0, 2, 1])
    means = shares @ levels
    return means, np.sqrt(np.sum(shares * (levels - means[:, None]) ** 2, axis=1))


def pairs(rng, n):
    return {name: rng.normal(size=n) for name in ("pred_a", "pred_b", "human_a", "human_b")}


def spread(rng, n):
    human = {name: rng.uniform(0.3, 1.0, n) for name in ("human_std_a", "human_std_b")}
    return {**pairs(rng, n), **human}


def all_spread(rng, n):
    return {**spread(rng, n), **{name: rng.uniform(0.3, 1.0, n) for name in ("pred_std_a", "pred_std_b")}}


def fidelity(pred_a, pred_b, human_a, human_b, human_std_a, human_std_b, eps, pred_std_a=None, pred_std_b=None, **_):
    width = np.sqrt(2) if pred_std_a is None else np.sqrt(pred_std_a**2 + pred_std_b**2 + eps)
    p = phi((pred_a - pred_b) / width)
    t = phi((human_a - human_b) / np.sqrt(human_std_a**2 + human_std_b**2 + eps))
    return 1 - np.sqrt(p * t + eps) - np.sqrt((1 - p) * (1 - t) + eps)


def binary(pred_a, pred_b, human_a, human_b):
    p = phi((pred_a - pred_b) / np.sqrt(2))
    return 1 - np.sqrt(np.where(human_a > human_b, p, 1 - p))


HUMAN = ("human_a", "human_b", "human_std_a", "human_std_b")
STDS = {name: (0.0, 1e4) for name in ("human_std_a", "human_std_b", "pred_std_a", "pred_std_b")}
EPS = {"eps": (0.0, np.inf)}

CASES = [
    *(
        Case(
            function=ordinal.soft_level_labels,
            variant=density + (", renormalized" if renormalize else ""),
            inputs=rated,
            hyper={
                "low": LOW,
                "high": HIGH,
                "density": density,
                "min_std": 0.3,
                "max_error": 0.05,
                "renormalize": renormalize,
            },
            stopped=("means", "stds"),
            extremes={"means": (LOW, HIGH, -1e4, 1e4), "stds": (0.0, 1e4)},
            reference=labels,
            bad={
                "high": (LOW, np.inf),
                "low": (HIGH, -np.inf),
                "num_levels": (1, 2.5),
                "density": ("sum",),
                "min_std": (-1.0, np.inf),
                "max_error": (-1.0, np.inf),
            },
            defaults={"num_levels": 5, "min_std": 0.2, "max_error": 0.1},
        )
        for density, renormalize in (("pdf", False), ("cdf", False), ("pdf", True))
    ),
    Case(
        function=ordinal.level_kl,
        inputs=lambda rng, n: {"logits": rng.normal(size=(n, 6)), "targets": rng.dirichlet(np.ones(3), n)},
        hyper={"level_ids": IDS},
        differentiable=("logits", "targets"),
        extremes={"logits": (1e4, -1e4), "targets": (0.0, 1.0)},
        reference=kl,
        bad={"level_ids": ((0.5, 1.0, 2.0),), "logits": (np.float64(1.0),)},
    ),
    Case(
        function=ordinal.level_scores,
        inputs=lambda rng, n: {"logits": rng.normal(size=(n, 6))},
        hyper={"level_ids": IDS},
        differentiable=("logits",),
        reference=moments,
        bad={"level_ids": ((0.5, 1.0),), "levels": ((1.0, 2.0),), "logits": (np.float64(1.0),)},
    ),
    Case(
        function=ordinal.level_scores,
        variant="open set",
        inputs=lambda rng, n: {"logits": rng.normal(size=(n, 6))},
        hyper={"level_ids": IDS, "closed_set": False},
        differentiable=("logits",),
        reference=open_moments,
    ),
    Case(
        function=ranking.thurstone_fidelity,
        inputs=spread,
        hyper={"eps": 1e-8},
        differentiable=("pred_a", "pred_b"),
        stopped=HUMAN,
        extremes=STDS,
        reference=fidelity,
        bad=EPS,
        defaults={"eps": 1e-8},
    ),
    *(
        Case(
            function=ranking.thurstone_fidelity,
            variant="constant stds" if detached else "stds",
            inputs=all_spread,
            hyper={"eps": 1e-3, "detach_std": detached},
            differentiable=("pred_a", "pred_b") if detached else ("pred_a", "pred_b", "pred_std_a", "pred_std_b"),
            stopped=(*HUMAN, "pred_std_a", "pred_std_b") if detached else HUMAN,
            extremes=STDS,
            reference=fidelity,
            bad={**EPS, "pred_std_a": (None,)},
        )
        for detached in (True, False)
    ),
    Case(
        function=ranking.binary_fidelity,
        inputs=pairs,
        differentiable=("pred_a", "pred_b"),
        stopped=("human_a", "human_b"),
        reference=binary,
    ),
]
