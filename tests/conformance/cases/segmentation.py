"""Dice and fair error-bound scaling."""

import numpy as np

from conformance.case import BatchLossCase, Case
from reweight.losses import segmentation as losses
from reweight.metrics import fairness

C, G = 3, 4  # of the groups the last is absent
SMOOTH = 1e-2


def images(rng, n):
    return {"probs": rng.dirichlet(np.ones(C), (n, 2)), "labels": rng.integers(0, C, (n, 2))}


def grouped(rng, n):
    return {**images(rng, n), "groups": np.arange(n) % (G - 1)}


def scored(rng, n):
    return {"logits": rng.normal(size=(n, 2, C)), **{k: v for k, v in grouped(rng, n).items() if k != "probs"}}


def sums(probs, labels, mask):
    y = np.eye(C)[labels]
    p, y = probs[mask].reshape(-1, C), y[mask].reshape(-1, C)
    return losses.DiceSums((p * y).sum(0), (p**2).sum(0), (y**2).sum(0))


def errors(products, predicted, labelled, smooth):
    return (predicted + labelled - 2 * products) / (predicted + labelled + smooth)


def group_sums(probs, labels, groups, mask, num_groups):
    found = [sums(probs, labels, mask & (groups == g)) for g in range(num_groups)]
    sizes = np.array([np.sum(mask & (groups == g)) * 1.0 for g in range(num_groups)])
    return losses.DiceSums(*map(np.stack, zip(*found, strict=True))), sizes


def dice(probs, labels, mask, smooth):
    return errors(*sums(probs, labels, mask), smooth).mean()


def weights(errors, present, gamma):
    least = min(e for e, there in zip(errors, present, strict=True) if there)
    return np.array([np.tanh((least / e) ** gamma if there else 1) for e, there in zip(errors, present, strict=True)])


def fair(logits, labels, groups, mask, num_groups, gamma, smooth):
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_group, sizes = group_sums(probs, labels, groups, mask, num_groups)
    own = weights(errors(*by_group, smooth).sum(-1), sizes, gamma)[groups]
    return dice(probs * own[:, None, None], labels, mask, smooth)


def whole(steps, dice_weight, **hyper):
    found = []
    for step in steps:
        given = {name: step[name] for name in ("logits", "labels", "groups", "mask")}
        logs = step["logits"] - np.log(np.exp(step["logits"]).sum(-1, keepdims=True))
        entropy = -np.take_along_axis(logs, step["labels"][..., None], -1)[..., 0].mean(-1)
        found.append(np.where(step["mask"], dice_weight * fair(**given, **hyper) + (1 - dice_weight) * entropy, 0))
    return found


def scaled(overall, per_group, mask, alpha, spread):
    own = per_group[mask]
    apart = np.abs(own - overall).sum() if spread == "abs_sum" else own.std(ddof=1)
    return overall / (1 + alpha * apart)


def of_fields(products, predicted, labelled, **hyper):
    return losses.dice_errors(losses.DiceSums(products, predicted, labelled), **hyper)


def an_absent_group_changes_nothing(probe):
    arrays = probe.arrays()
    outside = {**arrays, "groups": np.where(arrays["groups"] == 0, G - 1, arrays["groups"])}
    np.testing.assert_allclose(probe.value(outside), probe.value(arrays), rtol=1e-5)


GAMMA = {"gamma": (-1.0, np.inf)}
SMOOTHING = {"smooth": (0.0, np.inf)}
GROUPS = {"num_groups": (0, 1.5)}
UNIT = {"probs": (0.0, 1.0)}

CASES = [
    Case(
        function=losses.dice_sums,
        inputs=images,
        returns="sums",
        mask="mask",
        differentiable=("probs",),
        extremes=UNIT,
        reference=sums,
        bad={"probs": (np.ones((16, 2, C), int), np.ones(16))},
    ),
    Case(
        function=losses.group_dice_sums,
        inputs=grouped,
        returns="sums",
        hyper={"num_groups": G},
        mask="mask",
        differentiable=("probs",),
        extremes=UNIT,
        reference=group_sums,
        bad=GROUPS,
    ),
    Case(
        function=losses.dice_errors,
        call=of_fields,
        inputs=lambda rng, n: {
            "products": rng.uniform(0, 1, (n, C)),
            "predicted": rng.uniform(1, 2, (n, C)),
            "labelled": rng.uniform(1, 2, (n, C)),
        },
        hyper={"smooth": SMOOTH},
        differentiable=("products", "predicted", "labelled"),
        extremes={name: (0.0, 1e4) for name in losses.DiceSums._fields},
        reference=errors,
        bad=SMOOTHING,
        defaults={"smooth": 1e-5},
        free={"sums": "three arrays, checked one by one"},
    ),
    Case(
        function=losses.dice_loss,
        inputs=images,
        returns="batch",
        hyper={"smooth": SMOOTH},
        mask="mask",
        differentiable=("probs",),
        extremes=UNIT,
        reference=dice,
        bad=SMOOTHING,
        defaults={"smooth": 1e-5},
        blames=("dice_errors",),
    ),
    Case(
        function=losses.error_bound_weights,
        inputs=lambda rng, n: {"errors": rng.uniform(0.1, 1, n), "present": rng.random(n) > 0.3},
        hyper={"gamma": 1.5},
        couples=True,
        stopped=("errors",),
        extremes={"errors": (0.0, 1e4)},
        reference=weights,
        bad=GAMMA,
        defaults={"gamma": 1.0},
    ),
    Case(
        function=losses.fair_error_bound_dice,
        inputs=scored,
        returns="batch",
        hyper={"num_groups": G, "gamma": 1.5, "smooth": SMOOTH},
        mask="mask",
        surrogate=True,  # the weights are constant; the golden numbers hold the gradient
        differentiable=("logits",),
        reference=fair,
        invariants=(an_absent_group_changes_nothing,),
        bad={**GROUPS, **GAMMA, **SMOOTHING, "logits": (np.ones((16, 2, C), int),)},
        defaults={"gamma": 1.0, "smooth": 1e-5},
        blames=("dice_errors", "error_bound_weights"),
    ),
    BatchLossCase(
        function=losses.batch_fair_error_bound,
        inputs=scored,
        hyper={"num_groups": G, "gamma": 1.5, "smooth": SMOOTH, "dice_weight": 0.7},
        surrogate=True,
        differentiable=("logits",),
        reference=whole,
        bad={**GROUPS, **GAMMA, **SMOOTHING, "dice_weight": (-0.1, 1.1)},
        defaults={"gamma": 1.0, "smooth": 1e-5, "dice_weight": 0.8},
    ),
    *(
        Case(
            function=fairness.equity_scaled,
            variant=spread,
            inputs=lambda rng, n: {"overall": np.float64(rng.random()), "per_group": rng.random(n)},
            hyper={"alpha": 0.7, "spread": spread},
            returns="batch",
            fixed=("overall",),
            mask="mask",
            differentiable=("overall", "per_group"),
            empty=lambda overall, per_group, mask: overall,
            reference=scaled,
            bad={"alpha": (-1.0, np.inf), "spread": ("range",)},
            defaults={"alpha": 1.0},
        )
        for spread in ("abs_sum", "std")
    ),
]
