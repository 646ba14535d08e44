"""Attacks, and the gradient that follows them."""

import jax
import numpy as np
import optax

from conformance.case import BatchLossCase, Case
from conformance.cases.losses_contrastive import supcon
from reweight.losses import adversarial

CENTRE = np.array([0.3, 0.6, 0.2])
SLOPES = np.array([1.0, -2.0, 0.5])


def inputs(rng, n):
    return {"x": rng.uniform(0.1, 0.9, (n, 3))}


def attacked(rng, n):
    return {"params": rng.normal(size=3), "x": rng.normal(size=(n, 3)), "delta": rng.uniform(-0.2, 0.2, (n, 3))}


def quadratic(x):
    return (((x - CENTRE.astype(x.dtype)) ** 2) * SLOPES.astype(x.dtype)).sum(-1)


def quadratic_slope(x):
    return 2 * SLOPES * (x - CENTRE)


def logistic(params, x):
    return jax.nn.softplus(-(x @ params))


def pgd(x, eps, step_size, steps):
    delta = np.zeros_like(x)
    for _ in range(steps):
        delta = np.clip(delta + step_size * np.sign(quadratic_slope(x + delta)), -eps, eps)
        delta = np.clip(x + delta, 0, 1) - x
    return x + delta


def pgd_l2(x, eps, step_size, steps, norm):
    delta = np.zeros_like(x)
    for _ in range(steps):
        slope = quadratic_slope(x + delta)
        delta = delta + step_size * slope / np.linalg.norm(slope, axis=1, keepdims=True)
        norms = np.linalg.norm(delta, axis=1, keepdims=True)
        delta = np.where(norms > eps, delta * eps / norms, delta)
        delta = np.clip(x + delta, 0, 1) - x
    return x + delta


def objective(losses, delta, eps, barrier):
    return -losses - barrier * np.sum(np.log(eps - delta) + np.log(eps + delta), -1)


def barrier_attack(x, eps, barrier, steps, optimizer=None):
    delta = np.zeros_like(x)
    for _ in range(steps):
        slope = -quadratic_slope(x + delta) + barrier * (1 / (eps - delta) - 1 / (eps + delta))
        delta = np.clip(delta - 0.01 * slope, -0.999 * eps, 0.999 * eps)
    return delta


def hypergradient(params, x, delta, eps, barrier, mode="relu", solver_steps=None):
    total = np.zeros_like(params)
    for row, attack in zip(x, delta, strict=True):
        z = row + attack
        p = 1 / (1 + np.exp(z @ params))
        diagonal = barrier * (1 / (eps - attack) ** 2 + 1 / (eps + attack) ** 2)
        mixed = -(p * (1 - p) * np.outer(z, params) - p * np.eye(3))
        hessian = np.diag(diagonal) - (mode == "cg") * p * (1 - p) * np.outer(params, params)
        indirect = mixed @ np.linalg.solve(hessian, -p * params)
        total += -p * z - (indirect if mode != "danskin" else 0)
    return total / len(x)


KERNEL = np.random.default_rng(4).normal(size=(3, 3))
CLASS_WEIGHTS = np.array([0.2, 0.8, 2.0])


def classified(rng, n):
    return {**inputs(rng, n), "labels": rng.integers(0, 3, n)}


def linear(x):
    return x @ KERNEL.astype(x.dtype)


def log_probs(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), -1, keepdims=True))


def of_labels(values, labels):
    return np.take_along_axis(values, labels[:, None], 1)[:, 0]


def attack_classifier(x, labels, eps, step_size, steps):
    delta, standing, withstood = np.zeros_like(x), np.ones(len(x), bool), np.zeros(len(x), int)
    for _ in range(steps):
        logits = (x + delta) @ KERNEL
        standing &= logits.argmax(1) == labels
        withstood += standing
        slope = (np.exp(log_probs(logits)) - np.eye(3)[labels]) @ KERNEL.T
        delta = np.clip(delta + step_size * np.sign(slope), -eps, eps)
        delta = np.clip(x + delta, 0, 1) - x
    return x + delta, withstood


def adversarial_cross_entropy(x, labels, **hyper):
    attacked, _ = attack_classifier(x, labels, **hyper)
    return -of_labels(log_probs(attacked @ KERNEL), labels)


def under_attack(rng, n):
    return {
        "attacked_logits": 2 * rng.normal(size=(n, 3)),
        "attacked_features": rng.normal(size=(n, 4)),
        "labels": rng.integers(0, 3, n),
    }


def srat(attacked_logits, attacked_features, labels, mask, class_weights, sep_weight, temperature):
    base = -class_weights[labels] * of_labels(log_probs(attacked_logits), labels)
    return mask * (base + sep_weight * supcon(attacked_features, labels, temperature, temperature, mask=mask))


def an_example_without_a_class_costs_nothing(probe):
    arrays = probe.arrays()
    for unknown in (-1, 3):
        arrays["labels"][0] = unknown
        assert probe.value(arrays)[0] == 0


_BOX = {"eps": (0.0, -1.0, np.inf), "barrier": (0.0, -1.0, np.inf)}
_LOSS = {"loss_fn": "any function of the inputs"}

CASES = [
    Case(
        function=adversarial.pgd_attack,
        inputs=inputs,
        hyper={"eps": 0.1, "step_size": 0.04, "steps": 4},
        call=lambda x, **hyper: adversarial.pgd_attack(None, quadratic, x, **{"init": "none", **hyper}),
        stopped=("x",),
        extremes={"x": (0.0, 1.0)},
        bf16=None,
        reference=pgd,
        bad={
            "eps": (-0.1, np.inf),
            "step_size": (-0.1, np.inf),
            "steps": (-1, 2.5),
            "norm": ("l1",),
            "init": ("zero",),
            "clip": ((1.0, 0.0),),
            "x": (np.float64(0.5), np.ones((16, 3), int)),
        },
        free={**_LOSS, "key": "a random key; the random starts are tested in tests/losses"},
    ),
    Case(
        function=adversarial.pgd_attack,
        variant="l2",
        inputs=inputs,
        hyper={"eps": 0.1, "step_size": 0.04, "steps": 4, "norm": "l2"},
        call=lambda x, **hyper: adversarial.pgd_attack(None, quadratic, x, init="none", **hyper),
        stopped=("x",),
        extremes={"x": (0.0, 1.0)},
        bf16=None,
        reference=pgd_l2,
    ),
    Case(
        function=adversarial.barrier_objective,
        inputs=lambda rng, n: {"losses": rng.normal(size=n), "delta": rng.uniform(-0.25, 0.25, (n, 3))},
        hyper={"eps": 0.3, "barrier": 0.05},
        differentiable=("losses", "delta"),
        reference=objective,
        bad=_BOX,
    ),
    Case(
        function=adversarial.barrier_attack,
        inputs=inputs,
        hyper={"eps": 0.1, "barrier": 0.01, "steps": 3, "optimizer": optax.sgd(0.01)},
        call=lambda x, **hyper: adversarial.barrier_attack(quadratic, x, **hyper),
        stopped=("x",),
        bf16=5e-2,  # the inner function sees its inputs in their own dtype
        reference=barrier_attack,
        bad={**_BOX, "steps": (-1, 2.5)},
        free={**_LOSS, "optimizer": "any elementwise optax transform", "delta": "the start; tested in tests/losses"},
    ),
    *(
        Case(
            function=adversarial.hypergradient,
            defaults={"solver_steps": 20},
            variant=mode,
            inputs=attacked,
            returns="batch",
            hyper={"eps": 0.3, "barrier": 0.5, "mode": mode, "solver_steps": 6},
            call=lambda params, x, delta, **hyper: adversarial.hypergradient(logistic, params, x, delta, **hyper),
            fixed=("params",),
            constant=("params", "x", "delta"),
            extremes={"x": (3.0, -3.0), "delta": (0.29, -0.29)},
            bf16=None,
            reference=hypergradient,
            bad={**_BOX, "mode": ("exact",), "solver_steps": (0, 2.5)},
            free={**_LOSS, "weights": "one a row; tested in tests/losses"},
        )
        for mode in ("danskin", "relu", "cg")
    ),
    *(
        Case(
            function=function,
            inputs=classified,
            defaults={"eps": 8 / 255, "step_size": 2 / 255, "steps": 10},
            hyper={"eps": 0.1, "step_size": 0.03, "steps": 5},
            call=lambda x, labels, function=function, **hyper: function(
                None, linear, x, labels, **{"init": "none", **hyper}
            ),
            stopped=("x",),
            extremes={"x": (0.0, 1.0)},
            bf16=None,
            reference=reference,
            blames=("attack_classifier",),
            bad={
                "eps": (-0.1, np.inf),
                "step_size": (-0.1, np.inf),
                "steps": (-1, 2.5),
                "norm": ("l1",),
                "init": ("zero",),
                "clip": ((1.0, 0.0),),
                "x": (np.float64(0.5), np.ones((16, 3), int)),
            },
            free={
                "logits_fn": "any function of the inputs",
                "key": "a random key; the random starts are tested in tests/losses",
            },
        )
        for function, reference in (
            (adversarial.attack_classifier, attack_classifier),
            (adversarial.adversarial_cross_entropy, adversarial_cross_entropy),
        )
    ),
    Case(
        function=adversarial.srat_loss,
        inputs=lambda rng, n: {**under_attack(rng, n), "class_weights": CLASS_WEIGHTS},
        fixed=("class_weights",),
        hyper={"sep_weight": 0.7, "temperature": 0.4},
        mask="mask",
        couples=True,
        differentiable=("attacked_logits", "attacked_features"),
        stopped=("class_weights",),
        reference=srat,
        invariants=(an_example_without_a_class_costs_nothing,),
        bad={
            "sep_weight": (-1.0, np.inf),
            "temperature": (0.0, np.inf),
            "class_weights": (np.ones(4), np.ones((1, 3))),
        },
        defaults={"sep_weight": 2.0, "temperature": 0.1},
        free={"base_loss": "a function of the caller"},
    ),
    BatchLossCase(
        function=adversarial.batch_srat,
        inputs=under_attack,
        hyper={"class_weights": CLASS_WEIGHTS, "sep_weight": 0.7, "temperature": 0.4},
        surrogate=True,
        differentiable=("attacked_logits", "attacked_features"),
        reference=lambda steps, **hyper: [srat(**step, **hyper) for step in steps],
        invariants=(an_example_without_a_class_costs_nothing,),
        bad={
            "sep_weight": (-1.0, np.inf),
            "temperature": (0.0, np.inf),
            "class_weights": (np.ones(4), np.ones((1, 3))),
        },
        defaults={"sep_weight": 2.0, "temperature": 0.1},
        free={"base_loss": "a function of the caller"},
    ),
]
