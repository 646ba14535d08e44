"""Classification losses by family: composition, with attacks too, and stable softmax."""

import numpy as np

from conformance.case import Case
from conformance.cases.losses_classification import (
    CLASSES,
    a_constant_changes_nothing,
    an_unknown_label_costs_nothing,
    hard,
)
from reweight.losses import adversarial
from reweight.losses import classification as losses

LOGITS = {"logits": (np.zeros((4, CLASSES), int), np.float64(1.0))}
OF_LABELS = {"inputs": hard, "differentiable": ("logits",)}


def probabilities(logits):
    mass = np.exp(logits - logits.max(-1, keepdims=True))
    return mass / mass.sum(-1, keepdims=True)


def of_label(values, labels):
    return values[np.arange(len(labels)), labels]


# -- composition


def comp_sum(logits, labels, tau, rho):
    u = 1 / of_label(probabilities(logits / rho), labels) - 1
    return np.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def calibration(beta, tau, num_classes):
    if tau == 1:
        terms = [(1 + side) * np.log(np.where(side > -1, 1 + side, 1)) for side in (beta, -beta)]
        return (terms[0] + terms[1]) / 2
    if tau >= 2:
        return beta / ((tau - 1) * num_classes ** (tau - 1))
    mean = (((1 + beta) ** (1 / (2 - tau)) + (1 - beta) ** (1 / (2 - tau))) / 2) ** (2 - tau)
    return (2 if tau < 1 else num_classes) ** (1 - tau) * (mean - 1) / (tau - 1)


def bound(excess, tau, num_classes):
    if tau < 1:
        return np.sqrt(2**tau * (2 - tau) * excess)
    if tau < 2:
        return np.sqrt(2 * num_classes ** (tau - 1) * excess)
    return (tau - 1) * num_classes ** (tau - 1) * excess


def attacked(rng, n):
    return {**hard(rng, n), "attacked_logits": 2 * rng.normal(size=(n, CLASSES))}


def margin_shift(logits, attacked_logits, labels):
    moved = attacked_logits - logits
    return np.sqrt(np.sum((moved - of_label(moved, labels)[:, None]) ** 2, -1) + 1e-12)


def smooth_comp_sum(logits, attacked_logits, labels, tau, rho, nu):
    return comp_sum(logits, labels, tau, rho) + nu * margin_shift(logits, attacked_logits, labels)


OF_ATTACKS = {"inputs": attacked, "differentiable": ("logits", "attacked_logits")}
ATTACKED = {"attacked_logits": (np.zeros((16, CLASSES + 1)), np.zeros((16, CLASSES), int)), **LOGITS}

# -- stable softmax


def stable(logits):
    mass = np.where(logits >= 0, logits + 1, 1 / (1 - np.minimum(logits, 0)))
    return mass / mass.sum(-1, keepdims=True)


SHIFTED = (a_constant_changes_nothing, an_unknown_label_costs_nothing)

CASES = [
    *(
        Case(
            function=losses.comp_sum_loss,
            variant=f"tau {tau:g}",
            **OF_LABELS,
            hyper={"tau": tau, "rho": 1.3},
            reference=comp_sum,
            invariants=SHIFTED,
            bad={"tau": (-0.1, np.inf), "rho": (0.0, np.inf), **LOGITS},
            defaults={"tau": 1.0, "rho": 1.0},
        )
        for tau in (0.5, 1.0, 1.6)
    ),
    *(
        Case(
            function=losses.comp_sum_calibration,
            variant=f"tau {tau:g}",
            inputs=lambda rng, n: {"beta": rng.random(n)},
            hyper={"tau": tau, "num_classes": 4},
            constant=("beta",),
            extremes={"beta": (0.0, 1.0)},
            reference=calibration,
            bad={"tau": (-0.1, np.inf), "num_classes": (1, 2.5), "beta": (np.zeros(4, int),)},
            defaults={"tau": 1.0},
        )
        for tau in (0.0, 1.0, 1.6, 2.5)
    ),
    *(
        Case(
            function=losses.comp_sum_bound,
            variant=f"tau {tau:g}",
            inputs=lambda rng, n: {"excess": rng.random(n)},
            hyper={"tau": tau, "num_classes": 4},
            constant=("excess",),
            extremes={"excess": (0.0, 1e4)},
            reference=bound,
            bad={"tau": (-0.1, np.inf), "num_classes": (1, 2.5), "excess": (np.zeros(4, int),)},
            defaults={"tau": 1.0},
        )
        for tau in (0.5, 1.5, 2.5)
    ),
    *(
        Case(
            function=function,
            inputs=lambda rng, n: {"logits": 2 * rng.normal(size=(n, CLASSES))},
            differentiable=("logits",),
            reference=formula,
            bad={"axis": (2, "last"), "logits": (np.zeros((4, CLASSES), int),)},
            defaults={"axis": -1},
        )
        for function, formula in (
            (losses.stablemax, stable),
            (losses.log_stablemax, lambda logits: np.log(stable(logits))),
        )
    ),
    Case(
        function=adversarial.margin_shift,
        **OF_ATTACKS,
        reference=margin_shift,
        invariants=SHIFTED,
        bad=ATTACKED,
    ),
    Case(
        function=adversarial.smooth_comp_sum_loss,
        **OF_ATTACKS,
        hyper={"tau": 1.6, "rho": 1.3, "nu": 0.7},
        reference=smooth_comp_sum,
        invariants=SHIFTED,
        bad={"tau": (-0.1, np.inf), "rho": (0.0, np.inf), "nu": (-0.1, np.inf), **ATTACKED},
        defaults={"tau": 1.0, "rho": 1.0, "nu": 1.0},
        blames=("comp_sum_loss",),
    ),
    Case(
        function=losses.stablemax_cross_entropy,
        **OF_LABELS,
        reference=lambda logits, labels: -np.log(of_label(stable(logits), labels)),
        invariants=(an_unknown_label_costs_nothing,),
        bad=LOGITS,
    ),
]
