"""Mixup with learned intervals, and the discriminator that they are learned from."""

import jax
import numpy as np

from conformance.case import Case
from reweight.regularizers import adaptive_mixup, mixup

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


def _partners(key, size, mask):
    return mixup.draw_mixture(key, size, mask=mask).partners[:, 1]


def _of_drawn_partners(x, mask=None):
    return adaptive_mixup.gate(KEY, x, _partners(KEY, len(x), mask), mask=mask)


def gate(x, mask, key=KEY, pair_key=KEY):
    """The pairs again: kept rows have the noise of the first ones, masked rows are zeros."""
    x, found = np.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), np.zeros(x.shape)
    noise = np.asarray(jax.random.truncated_normal(key, -2, 2, (len(x), 2, *x.shape[1:]), np.float32), np.float64)
    partners = np.asarray(_partners(pair_key, len(x), mask))
    for i, row in enumerate(np.flatnonzero(mask)):
        found[row] = (noise[i, 0] * x[row] + noise[i, 1] * x[partners[row]]) / 2
    return found


def examples(rng, n):
    return {"x": rng.normal(size=(n, 4)), "targets": rng.dirichlet(np.ones(3), n)}


def _of_linear_policy(x, targets, mask=None):
    return adaptive_mixup.adaptive_mixup(KEY, lambda pairs: pairs @ POLICY.astype(pairs.dtype), x, targets, mask=mask)


def _mixed(x, targets, mask=None):
    found = _of_linear_policy(x, targets, mask)
    return found.x, found.targets


def mixed(x, targets, mask):
    """The weights of each pair again, from the partners and the place in the interval that were drawn."""
    pair_key, gate_key, u_key = jax.random.split(KEY, 3)
    u = np.asarray(jax.random.uniform(u_key, (len(x),), np.float32), np.float64)[np.cumsum(mask) - 1]
    partners = np.where(mask, np.asarray(_partners(pair_key, len(x), mask)), 0)
    _, weights = interval(gate(x, mask, gate_key, pair_key) @ POLICY, u, partners)
    own, kept = weights[:, :1], mask[:, None]
    return tuple(np.where(kept, own * rows + (1 - own) * rows[partners], 0) for rows in (x, targets))


def mixtures_are_of_kept_rows(probe):
    arrays = probe.arrays()
    mask = arrays["mask"]
    partners, weights = _of_linear_policy(**{name: jax.numpy.asarray(a) for name, a in arrays.items()}).mixture
    assert np.isin(partners[mask], np.flatnonzero(mask)).all()
    assert (partners[~mask] == len(mask)).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


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
        inputs=lambda rng, n: {"x": rng.normal(size=(n, 2, 3))},
        call=_of_drawn_partners,
        mask="mask",
        differentiable=("x",),
        bf16=None,
        reference=gate,
        free={"key": "any key", "partners": "drawn here; refused in tests/regularizers"},
        blames=("draw_mixture",),
        **DRAWS,
    ),
    Case(
        function=adaptive_mixup.adaptive_mixup,
        inputs=examples,
        call=_mixed,
        mask="mask",
        differentiable=("x", "targets"),
        bf16=None,
        reference=mixed,
        invariants=(mixtures_are_of_kept_rows,),
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
