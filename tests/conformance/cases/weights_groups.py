"""Groups and Group DRO."""

import numpy as np

from conformance.case import Case, WeightingCase
from reweight import weights

GROUPS = 4


def grouped_losses(rng, n):
    return {"losses": rng.exponential(size=n), "groups": rng.permutation(np.arange(n) % GROUPS)}


def _means(values, groups, mask, num_groups):
    counts = np.array([np.sum(mask & (groups == g)) for g in range(num_groups)], float)
    sums = np.array([np.sum(values[mask & (groups == g)]) for g in range(num_groups)])
    return sums / np.maximum(counts, 1), counts


def _mixture(groups, mask, probs):
    counts = _means(np.zeros(groups.shape), groups, mask, len(probs))[1]
    return np.where(mask, mask.sum() * (probs / np.maximum(counts, 1))[groups], 0)


def group_dro(steps, num_groups, step_size=0.01, adjustment=0.0, group_counts=None, signal="groups"):
    probs, found = np.full(num_groups, 1 / num_groups), []
    fear = 0.0 if group_counts is None else adjustment / np.sqrt(group_counts)
    for step in steps:
        means, _ = _means(step["losses"], step[signal], step["mask"], num_groups)
        probs = probs * np.exp(step_size * (means + fear))
        probs = probs / probs.sum()
        found.append(_mixture(step[signal], step["mask"], probs))
    return found


def the_worst_group_gains(probe):
    arrays = probe.arrays(mask=np.ones(16, bool))
    arrays["losses"] = np.where(arrays["groups"] == 2, 5.0, 1.0)
    value = probe.value(arrays)
    assert value[arrays["groups"] == 2].min() > 1 > value[arrays["groups"] != 2].max()
    np.testing.assert_allclose(value.mean(), 1, rtol=1e-5)


def an_unknown_group_has_no_weight(probe):
    arrays = probe.arrays(mask=np.ones(16, bool))
    groups = probe.case.hyper.get("signal", "groups")
    for unknown in (-1, GROUPS):
        arrays[groups] = np.where(np.arange(16) == 3, unknown, arrays[groups])
        assert probe.value(arrays)[3] == 0


CASES = [
    Case(
        function=weights.lookup,
        inputs=lambda rng, n: {
            "table": rng.normal(size=GROUPS),
            "ids": rng.permutation(np.arange(n) % (GROUPS + 2) - 1),
        },
        fixed=("table",),
        differentiable=("table",),
        reference=lambda table, ids: np.where((ids >= 0) & (ids < GROUPS), table[np.clip(ids, 0, GROUPS - 1)], 0),
        bad={"table": (np.zeros((2, 2)),)},
    ),
    Case(
        function=weights.group_means,
        inputs=lambda rng, n: {"values": rng.normal(size=n), "groups": rng.integers(0, GROUPS, n)},
        returns="batch",
        hyper={"num_groups": GROUPS},
        mask="mask",
        differentiable=("values",),
        reference=lambda **arguments: weights.GroupMeans(*_means(**arguments)),
        bad={"num_groups": (0, -1, 2.5)},
    ),
    Case(
        function=weights.group_dro_weights,
        inputs=lambda rng, n: {"groups": rng.integers(0, GROUPS, n), "group_probs": rng.dirichlet(np.ones(GROUPS))},
        fixed=("group_probs",),
        mask="mask",
        stopped=("group_probs",),
        couples=True,
        weights=True,
        mean=None,
        reference=lambda groups, group_probs, mask: _mixture(groups, mask, group_probs),
        invariants=(an_unknown_group_has_no_weight,),
        bad={"group_probs": (np.ones((2, 2)),)},
    ),
    WeightingCase(
        function=weights.group_dro,
        defaults={"step_size": 0.01, "adjustment": 0.0},
        inputs=grouped_losses,
        hyper={"num_groups": GROUPS, "step_size": 0.5},
        mean=None,
        reference=group_dro,
        invariants=(the_worst_group_gains, an_unknown_group_has_no_weight),
        bad={
            "num_groups": (0, 2.5),
            "step_size": (-0.1, np.inf),
            "adjustment": (-1.0, np.inf),
            "group_counts": (np.ones(GROUPS + 1),),
        },
        free={"signal": "any name"},
    ),
    WeightingCase(
        function=weights.group_dro,
        variant="adjusted, by label",
        inputs=lambda rng, n: {"losses": rng.exponential(size=n), "labels": rng.integers(0, GROUPS, n)},
        hyper={
            "num_groups": GROUPS,
            "step_size": 0.2,
            "adjustment": 2.0,
            "group_counts": np.array([4.0, 9.0, 25.0, 100.0]),
            "signal": "labels",
        },
        mean=None,
        reference=group_dro,
        invariants=(an_unknown_group_has_no_weight,),
        bad={"group_counts": (None,)},
    ),
]
