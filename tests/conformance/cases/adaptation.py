"""Adaptation without labels: the entropy of predictions, who is sure of them, and the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from conformance.case import Case, TransformCase, WeightingCase
from conformance.cases.losses_classification import log_softmax
from reweight import adapt, optim, weights
from reweight.losses import classification

CLASSES = 5


def entropy(logits, class_mask=None):
    allowed = np.ones(logits.shape, bool) if class_mask is None else class_mask
    some = allowed.any(-1, keepdims=True)
    log_p = np.where(allowed, log_softmax(np.where(some, logits, 0), allowed | ~some), 0)
    return -np.sum(np.where(allowed, np.exp(log_p) * log_p, 0), -1)


def keep(logits, mask, fraction=0.4):
    return (mask.astype(bool) & (entropy(logits) < fraction * np.log(CLASSES))).astype(float)


def step(inputs, kernel, mask, fraction=0.4):
    """The kernel after a step of size 0.1 down the mean entropy of those who are kept."""
    scores = inputs @ kernel
    kept, log_p = keep(scores, mask, fraction), log_softmax(scores, np.ones(scores.shape, bool))
    slopes = -kept[:, None] * np.exp(log_p) * (log_p + entropy(scores)[:, None])
    return kernel - 0.1 * inputs.T @ slopes / max(kept.sum(), 1)


def take_step(inputs, kernel, mask=None, fraction=0.4):
    # A gradient of 0 times an input of NaN is NaN: the padding of a batch has to be finite.
    inputs = inputs if mask is None else jnp.where(mask[:, None] != 0, inputs, 0)
    optimizer = optax.sgd(0.1)
    state = optimizer.init(kernel)
    return adapt.entropy_step(lambda k: inputs @ k, kernel, state, optimizer, fraction=fraction, mask=mask).params


def left_after(losses, sure, threshold=0.2, decay=0.9):
    """What is left of steps from 0 to 1, 2, ..., each with one loss, and the running mean."""
    recover = adapt.recovery(threshold=threshold, decay=decay)

    def step(state, now):
        number, loss, sure = now
        came, state = recover.update(state, adapt.Adapted(number, (), jnp.zeros((1, 2)), sure[None], loss))
        return state, (came.params, state.average)

    numbers = jnp.arange(1.0, 1 + len(losses))
    return jax.lax.scan(step, recover.init(jnp.zeros(()), ()), (numbers, losses, sure))[1]


def left_by_hand(losses, sure, threshold, decay):
    left, means, mean = [], [], None
    for number, (loss, some) in enumerate(zip(losses, sure, strict=True), 1):
        if some:
            mean = loss if mean is None else decay * mean + (1 - decay) * loss
        left.append(0 if mean is not None and mean < threshold else number)
        means.append(0 if mean is None else mean)
    return np.array(left, float), np.array(means)


def ascend(grads, rho=0.05, eps=1e-12):
    return rho * grads / (np.linalg.norm(grads) + eps)


def close_gap(grads, perturbed_grads, gap_weight=0.4, eps=1e-12):
    here, there = np.linalg.norm(grads), np.linalg.norm(perturbed_grads)
    along = np.sum(grads * perturbed_grads) / (here * there + eps) * here / (there + eps)
    return perturbed_grads - gap_weight * (grads - along * perturbed_grads)


def curved(grads, params):
    """The gradient of a loss that has the gradient `grads` at `params`, and curves differently along each axis."""
    return lambda elsewhere: jax.tree.map(lambda g, p, q: g + 0.2 * (1 + p * p) * (q - p), grads, params, elsewhere)


def on_curved_losses(inner, rho=0.05, gap_weight=0.4, eps=1e-12):
    """The transform, which is given the gradient elsewhere."""
    transform = optim.sharpness_aware(inner, rho=rho, gap_weight=gap_weight, eps=eps)

    def update(grads, state, params=None):
        return transform.update(grads, state, params, grad_fn=curved(grads, params))

    return optax.GradientTransformation(transform.init, update)


def down_curved_losses(params, grads, inner, rho, gap_weight, eps=1e-12):
    del inner
    flat, unflatten = ravel_pytree(params)
    for tree in grads:
        here = ravel_pytree(tree)[0]
        there = here + 0.2 * (1 + flat * flat) * ascend(here, rho, eps)
        flat = flat - 0.1 * close_gap(here, there, gap_weight, eps)
    return unflatten(flat)


def a_constant_changes_nothing(probe):
    arrays = probe.arrays()
    moved = {**arrays, "logits": arrays["logits"] + 7.0}
    np.testing.assert_allclose(probe.value(moved), probe.value(arrays), rtol=1e-4, atol=1e-5)


def logits(rng, n):
    return {"logits": 2 * rng.normal(size=(n, CLASSES))}


_RANGES = {"rho": (-0.1, np.inf), "gap_weight": (-0.1, np.inf), "eps": (0.0, -1e-12)}


def _bad(*names):
    return {name: _RANGES[name] for name in names}


CASES = [
    Case(
        function=classification.prediction_entropy,
        inputs=logits,
        differentiable=("logits",),
        reference=entropy,
        invariants=(a_constant_changes_nothing,),
        bad={"logits": (np.zeros((4, CLASSES), int), np.float64(1.0))},
    ),
    Case(
        function=classification.prediction_entropy,
        variant="masked classes",
        inputs=lambda rng, n: {**logits(rng, n), "class_mask": rng.random((n, CLASSES)) > 0.3},
        differentiable=("logits",),
        reference=entropy,
    ),
    Case(
        function=weights.entropy_filter_weights,
        defaults={"fraction": 0.4},
        inputs=logits,
        hyper={"fraction": 0.6},
        mask="mask",
        stopped=("logits",),
        weights=True,
        mean=None,
        reference=keep,
        invariants=(a_constant_changes_nothing,),
        bf16=None,
        bad={"fraction": (-0.1, np.inf), "logits": (np.zeros((4, CLASSES), int), np.float64(1.0))},
    ),
    WeightingCase(
        function=weights.entropy_filter,
        defaults={"fraction": 0.4},
        inputs=lambda rng, n: {"losses": rng.exponential(size=n), **logits(rng, n)},
        hyper={"fraction": 0.6},
        mean=None,
        reference=lambda steps, fraction: [keep(step["logits"], step["mask"], fraction) for step in steps],
        bf16=None,
        bad={"fraction": (-0.1, np.inf)},
    ),
    Case(
        function=adapt.entropy_step,
        call=take_step,
        defaults={"fraction": 0.4},
        inputs=lambda rng, n: {"inputs": rng.normal(size=(n, 3)), "kernel": 2 * rng.normal(size=(3, CLASSES))},
        returns="batch",
        hyper={"fraction": 0.7},
        fixed=("kernel",),
        mask="mask",
        constant=("inputs", "kernel"),
        empty=lambda inputs, kernel, mask: kernel,
        reference=step,
        bf16=None,
        free={
            **{name: "a model and its optimizer" for name in ("logits_fn", "params", "opt_state", "optimizer")},
            **{name: "meets the model first; tested in tests/adapt" for name in ("inputs", "mask")},
        },
        bad={"fraction": (-0.1, np.inf)},
    ),
    Case(
        function=adapt.recovery,
        call=left_after,
        defaults={"threshold": 0.2, "decay": 0.9},
        inputs=lambda rng, n: {"losses": rng.exponential(size=n), "sure": rng.random(n) > 0.2},
        hyper={"threshold": 0.9, "decay": 0.6},
        stopped=("losses",),
        couples=True,
        ordered=True,
        reference=left_by_hand,
        bf16=None,
        free={name: "is an array of its own scan; tested in tests/adapt" for name in ("losses", "sure")},
        bad={"threshold": (-0.1, np.inf), "decay": (-0.1, 1.1)},
    ),
    Case(
        function=optim.ascent_step,
        defaults={"rho": 0.05, "eps": 1e-12},
        inputs=lambda rng, n: {"grads": rng.normal(size=(n, 5))},
        call=lambda grads, **hyper: optim.ascent_step({"w": grads}, **hyper)["w"],
        hyper={"rho": 0.3},
        differentiable=("grads",),
        couples=True,
        reference=ascend,
        bf16=None,
        bad=_bad("rho", "eps"),
    ),
    Case(
        function=optim.surrogate_gap_gradient,
        defaults={"gap_weight": 0.4, "eps": 1e-12},
        inputs=lambda rng, n: {name: rng.normal(size=(n, 5)) for name in ("grads", "perturbed_grads")},
        call=lambda grads, perturbed_grads, **hyper: optim.surrogate_gap_gradient(
            {"w": grads}, {"w": perturbed_grads}, **hyper
        )["w"],
        hyper={"gap_weight": 0.7},
        differentiable=("grads", "perturbed_grads"),
        couples=True,
        reference=close_gap,
        bf16=None,
        free={
            "grads": "any tree",
            "perturbed_grads": "refused by the name of the leaf; tested in tests/optim",
        },
        bad=_bad("gap_weight", "eps"),
    ),
    TransformCase(
        function=optim.sharpness_aware,
        call=on_curved_losses,
        defaults={"rho": 0.05, "gap_weight": 0.4, "eps": 1e-12},
        hyper={"inner": optax.sgd(0.1), "rho": 2.0, "gap_weight": 0.7},
        couples=True,
        injectable=("rho", "gap_weight"),
        reference=down_curved_losses,
        free={"inner": "any transform"},
        bad=_bad("rho", "gap_weight", "eps"),
    ),
]
