"""Mixup with learned intervals, and the discriminator that they are learned from."""

import jax
import numpy as np

from conformance.case import Case
from reweight.regularizers import adaptive_mixup

KEY = jax.random.key(3)
POLICY = np.random.default_rng(4).normal(size=(4, 3))


def _softmax(z):
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def pairs(rng, n):
    return {"policy_logits": rng.normal(size=(n, 3)), "u": rng.random(n), "partners": rng.permutation(n)}


def interval(policy_logits, u, partners):
    low, width, _ = _softmax(policy_logits).T
    own = low + u * width
    return np.stack([np.arange(len(u)), partners], axis=1), np.stack([own, 1 - own], axis=1)


def rows(rng, n):
    return {"x": rng.normal(size=(n, 2, 3)), "partners": rng.permutation(n)}


def gate(x, partners):
    noise = np.asarray(jax.random.truncated_normal(KEY, -2, 2, (2, *x.shape), np.float32), np.float64)
    return (noise[0] * x + noise[1] * x[partners]) / 2


def examples(rng, n):
    return {"x": rng.normal(size=(n, 4)), "targets": rng.dirichlet(np.ones(3), n)}


def _of_linear_policy(x, targets):
    return adaptive_mixup.adaptive_mixup(KEY, lambda pairs: pairs @ POLICY.astype(pairs.dtype), x, targets)


def mixed(x, targets):
    """The weights of each pair again, from the partners and the place in the interval that were drawn."""
    pair_key, gate_key, u_key = jax.random.split(KEY, 3)
    partners = np.asarray(adaptive_mixup.draw_mixture(pair_key, len(x)).partners[:, 1])
    noise = np.asarray(jax.random.truncated_normal(gate_key, -2, 2, (2, *x.shape), np.float32), np.float64)
    u = np.asarray(jax.random.uniform(u_key, (len(x),), np.float32), np.float64)
    both, weights = interval((noise[0] * x + noise[1] * x[partners]) / 2 @ POLICY, u, partners)
    own = weights[:, :1]
    return own * x + (1 - own) * x[partners], own * targets + (1 - own) * targets[partners], both, weights


def told(rng, n):
    return {"logits": rng.normal(size=(n, 2)), "real": rng.random(n) > 0.5}


DRAWS = {"couples": True, "ordered": True}  # what is drawn belongs to places in the batch

CASES = [
    Case(
        function=adaptive_mixup.interval_mixture,
        inputs=pairs,
        differentiable=("policy_logits", "u"),
        extremes={"u": (0.0, 1.0), "partners": ()},
        ordered=True,  # partners are numbers of rows
        couples=True,
        reference=interval,
        bad={"policy_logits": (np.zeros((16, 2)),), "partners": (np.zeros(16),)},
        bf16=1e-2,
    ),
    Case(
        function=adaptive_mixup.gate,
        inputs=rows,
        call=lambda x, partners: adaptive_mixup.gate(KEY, x, partners),
        differentiable=("x",),
        bf16=None,
        reference=gate,
        bad={"partners": (np.zeros(16),)},
        free={"key": "any key"},
        **DRAWS,
    ),
    Case(
        function=adaptive_mixup.adaptive_mixup,
        inputs=examples,
        call=_of_linear_policy,
        differentiable=("x", "targets"),
        bf16=None,
        reference=mixed,
        bad={"x": (np.zeros((16, 4), int),), "targets": (np.zeros((16, 3), int),)},
        free={"key": "any key", "policy": "any network"},
        **DRAWS,
    ),
    Case(
        function=adaptive_mixup.intrusion_loss,
        inputs=told,
        differentiable=("logits",),
        reference=lambda logits, real: -np.log(_softmax(logits))[np.arange(len(real)), real.astype(int)],
        bad={"logits": (np.zeros((16, 3)),)},
    ),
]
