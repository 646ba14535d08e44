"""Pseudo-classes, telling transformations apart, and the part of a network that few examples may move."""

import numpy as np

from conformance.case import Case
from conformance.cases.losses_classification import log_softmax
from reweight import optim
from reweight.losses import self_supervised
from reweight.regularizers import mixup, pseudo_classes

CLASSES = 4


def images(rng, n):
    return {"images": rng.normal(size=(n, 3, 3, 2)), "labels": rng.permutation(np.arange(n) % (CLASSES + 2) - 1)}


def pairs(rng, n):
    partners = np.stack([np.arange(n), rng.integers(0, n + 2, n)], axis=1)  # two are no rows
    weights = rng.dirichlet(np.ones(2), n)
    labels = rng.permutation(np.arange(n) % (CLASSES + 2) - 1)
    return {"inputs": rng.normal(size=(n, 3)), "labels": labels, "partners": partners, "weights": weights}


def rotated(images, labels, num_classes):
    known = (labels >= 0) & (labels < num_classes)
    turned = np.stack([np.rot90(images, turn, (1, 2)) for turn in range(4)], axis=1)
    return turned, np.where(known[:, None], labels[:, None] + num_classes * np.arange(4), -1)


def mixed(inputs, labels, partners, weights, num_classes):
    rows, n = np.concatenate([inputs, np.zeros((2, inputs.shape[1]))]), len(inputs)
    numbers = {(a, b): i for i, (a, b) in enumerate(zip(*np.triu_indices(num_classes, 1), strict=True), num_classes)}
    found = np.full(n, -1)
    for i, (left, right) in enumerate(partners):
        if left < n and right < n:
            found[i] = numbers.get(tuple(sorted((labels[left], labels[right]))), -1)
    return np.einsum("nd,ndf->nf", weights, rows[partners]), found


def told(logits):
    return -np.einsum("nkk->n", log_softmax(logits, np.ones(logits.shape, bool))) / logits.shape[-1]


def largest(params, grads, fraction=0.1):
    scores = np.abs(params * grads).ravel()
    chosen = np.zeros(scores.size, bool)
    chosen[np.argsort(-scores, kind="stable")[: round(fraction * scores.size)]] = True
    return chosen.reshape(params.shape)


CASES = [
    Case(
        function=pseudo_classes.rotated_classes,
        inputs=images,
        hyper={"num_classes": CLASSES},
        differentiable=("images",),
        reference=rotated,
        bf16=None,
        bad={"num_classes": (0, 2.5), "images": (np.zeros((16, 3, 2)), np.zeros(16))},
    ),
    Case(
        function=pseudo_classes.mixed_classes,
        call=lambda partners, weights, **given: pseudo_classes.mixed_classes(
            **given, mixture=mixup.Mixture(partners, weights)
        ),
        inputs=pairs,
        hyper={"num_classes": CLASSES},
        differentiable=("inputs", "weights"),
        couples=True,
        ordered=True,
        reference=mixed,
        bf16=None,
        blames=("mix",),
        free={"mixture": "its parts are refused in their names", "weights": "see mixture", "partners": "see mixture"},
        bad={"num_classes": (0, 2.5), "inputs": (np.zeros((16, 3), int),)},
    ),
    Case(
        function=self_supervised.transformation_prediction,
        inputs=lambda rng, n: {"logits": rng.normal(size=(n, 4, 4))},
        differentiable=("logits",),
        reference=told,
        bad={"logits": (np.zeros((16, 4, 4), int), np.zeros((16, 4, 3)), np.zeros(4))},
    ),
    Case(
        function=optim.subnet_mask,
        defaults={"fraction": 0.1},
        inputs=lambda rng, n: {name: rng.normal(size=(n, 5)) for name in ("params", "grads")},
        call=lambda params, grads, **hyper: optim.subnet_mask({"w": params}, {"w": grads}, **hyper)["w"],
        hyper={"fraction": 0.3},
        stopped=("params", "grads"),
        couples=True,
        reference=largest,
        bf16=None,
        free={"params": "any tree", "grads": "refused by the name of the leaf; tested in tests/optim"},
        bad={"fraction": (-0.1, 1.1)},
    ),
]
