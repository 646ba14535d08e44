"""Classification losses that know class frequencies, and the estimate of those that a model carries."""

import numpy as np

from conformance.case import BatchLossCase, Case
from conformance.cases.losses_classification import (
    CLASSES,
    COUNTS,
    a_constant_changes_nothing,
    an_unknown_label_costs_nothing,
    cross_entropy,
    hard,
)
from conformance.cases.losses_classification_families import LOGITS, probabilities
from reweight.losses import classification as losses

CARRIED = np.array([0.1, 0.3, 0.2, 0.35, 0.05])


def counted(rng, n):
    return {**hard(rng, n), "class_counts": COUNTS}


def adjusted(logits, labels, class_counts, model_prior, tau):
    prior = class_counts / class_counts.sum()
    return cross_entropy(logits + tau * np.log(prior + 1e-9) + np.log(model_prior), labels)


def ldam(logits, labels, class_counts, max_margin, scale, scale_logits):
    margins = class_counts**-0.25
    margins *= max_margin / margins.max()
    lost = scale * margins[labels][:, None] * np.eye(CLASSES)[labels]
    return cross_entropy((scale if scale_logits else 1) * logits - lost, labels)


def lade(steps, class_counts, weight, penalty):
    prior, values = class_counts / class_counts.sum(), []
    for arrays in steps:
        kept = arrays["mask"]
        logits, labels = arrays["logits"][kept], arrays["labels"][kept]
        number = len(labels)
        own = np.eye(CLASSES)[labels]
        partition = np.log(np.mean(np.exp(logits), 0)) - np.log(prior + 1e-9) + np.log(1 / CLASSES + 1e-9)
        members = np.sum(own * (number * prior / (own.sum(0) + 1e-8)) * logits, -1)
        estimate = members - np.sum(prior * (partition + penalty * partition**2))
        losses = np.zeros(len(kept))
        losses[kept] = cross_entropy(logits + np.log(prior), labels) - weight * estimate
        values.append(losses)
    return values


def carried(logits, labels, mask, num_steps):
    """By proportional fitting: each class is moved until its mean probability is its share of the labels."""
    logits, labels = logits[mask], labels[mask]
    members = np.bincount(labels, minlength=CLASSES)
    present = members > 0
    shift = np.zeros(CLASSES)
    for _ in range(4000):
        expected = probabilities(np.where(present, logits + shift, -np.inf)).sum(0)
        shift = np.where(present, shift + np.log(np.where(present, members / np.where(present, expected, 1), 1)), 0)
    mass = np.where(present, np.exp(-shift), 0)
    return mass / mass.sum()


def narrow(rng, n):
    return {
        "logits": rng.normal(size=(n, CLASSES)),
        "labels": np.concatenate([np.arange(5), rng.integers(0, 5, n)])[:n],
    }


SHARED = (a_constant_changes_nothing, an_unknown_label_costs_nothing)

CASES = [
    Case(
        function=losses.logit_adjusted_cross_entropy,
        variant="model prior",
        inputs=lambda rng, n: {**counted(rng, n), "model_prior": CARRIED},
        hyper={"tau": 0.7},
        fixed=("class_counts", "model_prior"),
        differentiable=("logits",),
        constant=("class_counts", "model_prior"),
        reference=adjusted,
        invariants=SHARED,
        bad={"model_prior": (np.ones(CLASSES + 1), np.ones(CLASSES, int))},
    ),
    *(
        Case(
            function=losses.ldam,
            variant="scaled logits" if scaled else "",
            inputs=counted,
            hyper={"max_margin": 0.4, "scale": 5.0, "scale_logits": scaled},
            fixed=("class_counts",),
            differentiable=("logits",),
            constant=("class_counts",),
            reference=ldam,
            invariants=SHARED,
            bad={
                "max_margin": (-1.0, np.inf),
                "scale": (0.0, np.inf),
                "class_counts": (np.ones(CLASSES + 1),),
                **LOGITS,
            },
            defaults={"max_margin": 0.5, "scale": 30.0},
        )
        for scaled in (False, True)
    ),
    BatchLossCase(
        function=losses.lade,
        inputs=hard,
        hyper={"class_counts": COUNTS, "weight": 0.3, "penalty": 0.2},
        differentiable=("logits",),
        surrogate=True,
        reference=lade,
        bad={"weight": (-1.0, np.inf), "penalty": (-1.0, np.inf), "class_counts": (np.ones((2, 2)),), **LOGITS},
        defaults={"weight": 0.1, "penalty": 0.1},
    ),
    Case(
        function=losses.estimate_label_prior,
        returns="batch",
        inputs=narrow,
        hyper={"num_steps": 50},
        mask="mask",
        stopped=("logits",),
        empty=1 / CLASSES,
        reference=carried,
        bad={"num_steps": (0, 2.5), "logits": (np.zeros((16, CLASSES), int), np.zeros(16))},
        defaults={"num_steps": 50},
        bf16=1e-2,
    ),
]
