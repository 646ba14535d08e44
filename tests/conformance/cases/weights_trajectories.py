"""Weights of whole sequences."""

import numpy as np

from conformance.case import Case, WeightingCase
from conformance.cases.losses_preference_pairs import TIME, token_log_probs, token_mask
from conformance.cases.weights_base import some_losses
from reweight import weights

SIDES = ("chosen", "rejected")
VALUES = tuple(f"{side}_{what}" for what in ("log_probs", "sum_squares") for side in SIDES)
EXTREMES = {
    **{f"{side}_log_probs": (-1e4, 0.0) for side in SIDES},
    **{f"{side}_sum_squares": (1e-7, 1.0) for side in SIDES},
}


def values(rng, n):
    arrays = {}
    for side in SIDES:
        arrays[f"{side}_log_probs"] = token_log_probs(rng, n)
        arrays[f"{side}_sum_squares"] = np.exp(-2 * rng.random((n, TIME)))
    return arrays


def two_masks(rng, n):
    return {**values(rng, n), **{f"{side}_mask": token_mask(rng, n) for side in SIDES}}


def wpo(clip=True, **arrays):
    product = 1.0
    for side in SIDES:
        log_probs, squares, mask = (arrays[f"{side}_{what}"] for what in ("log_probs", "sum_squares", "mask"))
        product = product * np.array(
            [
                np.exp(np.mean(row[kept] - np.log(square[kept]))) if kept.any() else 1.0
                for row, square, kept in zip(log_probs, squares, mask, strict=True)
            ]
        )
    return np.minimum(product, 1) if clip else product


def with_one_mask(mask, **arrays):
    return weights.wpo_weights(**arrays, chosen_mask=mask, rejected_mask=mask)


CASES = [
    Case(
        function=weights.wpo_weights,
        inputs=two_masks,
        stopped=VALUES,
        extremes=EXTREMES,
        weights=True,
        mean=None,
        reference=wpo,
        bad={"chosen_sum_squares": (np.ones((16, TIME + 1)),), "chosen_mask": (np.ones((16, TIME + 1)),)},
    ),
    Case(
        function=weights.wpo_weights,
        variant="not clipped",
        inputs=two_masks,
        hyper={"clip": False},
        stopped=VALUES,
        extremes=EXTREMES,
        weights=True,
        mean=None,
        reference=wpo,
    ),
    Case(
        function=weights.wpo_weights,
        variant="one mask",
        inputs=lambda rng, n: {**values(rng, n), "mask": token_mask(rng, n)},
        call=with_one_mask,
        mask="mask",
        stopped=VALUES,
        extremes=EXTREMES,
        empty=1.0,
        free={"mask": "stands for both masks here, which errors name"},
    ),
    WeightingCase(
        function=weights.wpo,
        inputs=lambda rng, n: {**some_losses(rng, n), **two_masks(rng, n)},
        extremes=EXTREMES,
        mean=None,
        reference=lambda steps: [
            np.where(
                step["mask"], wpo(**{name: array for name, array in step.items() if name not in ("losses", "mask")}), 0
            )
            for step in steps
        ],
    ),
]
