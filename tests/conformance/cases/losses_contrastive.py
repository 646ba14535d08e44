"""Contrastive losses."""

import numpy as np

from conformance.case import BatchLossCase, Case
from reweight.losses import contrastive, of_batch


def single(rng, n):
    return {"features": rng.normal(size=(n, 3)), "labels": rng.integers(0, 4, n)}


def views(rng, n):
    return {"features": rng.normal(size=(n, 2, 3)), "labels": rng.integers(0, 4, n)}


def supcon(features, labels, temperature, base_temperature, normalize=True, mask=None):
    """Pair by pair, as the paper has it."""
    kept = np.ones(len(labels), bool) if mask is None else mask
    features = features.reshape(len(labels), -1, features.shape[-1])
    vectors = [(i, v) for i in np.flatnonzero(kept) for v in range(features.shape[1])]
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True) if normalize else features
    losses = np.zeros(features.shape[:2])
    for one in vectors:
        others = [other for other in vectors if other != one]
        scores = {other: unit[one] @ unit[other] / temperature for other in others}
        positives = [other for other in others if labels[other[0]] == labels[one[0]]]
        total = np.log(np.sum(np.exp(list(scores.values())))) if others else 0.0
        if positives:
            losses[one] = np.mean([total - scores[other] for other in positives]) * temperature / base_temperature
    return losses.mean(axis=1)


def of_every_step(steps, **hyper):
    return [supcon(step["features"], step["labels"], mask=step["mask"], **hyper) for step in steps]


def distances(x, mask):
    return ((x[:, None] - x) ** 2 * mask).sum(1) * mask


_HYPER = {"temperature": 0.4, "base_temperature": 0.3}
_OPTIONS = {
    "hyper": _HYPER,
    "differentiable": ("features",),
    "bad": {"temperature": (0.0, -1.0, np.inf), "base_temperature": (0.0, -1.0, np.inf)},
    "defaults": {"temperature": 0.07, "base_temperature": 0.07},
}

CASES = [
    *(
        Case(
            function=contrastive.supcon,
            variant=variant,
            inputs=inputs,
            mask="mask",
            couples=True,
            reference=supcon,
            **{**_OPTIONS, "hyper": _HYPER | {"normalize": normalize}},
        )
        for variant, inputs, normalize in (("", single, True), ("views", views, True), ("as they are", single, False))
    ),
    BatchLossCase(
        function=contrastive.batch_supcon,
        inputs=single,
        surrogate=True,
        reference=of_every_step,
        **_OPTIONS,
    ),
    BatchLossCase(
        function=of_batch,
        call=lambda: of_batch(distances, signals=("x",)),
        inputs=lambda rng, n: {"x": rng.normal(size=n)},
        surrogate=True,
        differentiable=("x",),
        reference=lambda steps: [distances(s["x"], s["mask"]) for s in steps],
        free={
            "function": "a function of the caller",
            "signals": "the names of what the caller's function takes",
            "name": "what errors call the caller's function",
        },
    ),
]
