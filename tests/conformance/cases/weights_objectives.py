"""Balance between objectives and between teachers."""

import numpy as np

from conformance.case import Case, WeightingCase
from reweight import weights

OBJECTIVES = 3


def losses(rng, n):
    return {"losses": rng.exponential(size=n), "objectives": rng.permutation(np.arange(n) % OBJECTIVES)}


def shares(steps, num_objectives, rate, power=1.0):
    """The weights of the objectives after each step; all of them are in every batch."""
    found, current, first = [], np.full(num_objectives, 1 / num_objectives), None
    for step in steps:
        of = [step["losses"][step["mask"] & (step["objectives"] == k)].mean() for k in range(num_objectives)]
        first = np.array(of) if first is None else first
        relative = (np.array(of) / first) ** power
        current = np.maximum(current - rate * (current - relative / relative.sum()), 0)
        current = current / current.sum()
        found.append(current)
    return found


def balance(steps, num_objectives, rate, power=1.0, signal="objectives"):
    found = []
    for step, current in zip(steps, shares(steps, num_objectives, rate, power), strict=True):
        ids, mask = step[signal], step["mask"]
        sizes = np.array([np.sum(mask & (ids == k)) for k in range(num_objectives)])
        found.append(np.where(mask, mask.sum() * (current / sizes)[ids], 0))
    return found


def teachers(rng, n):
    return {"teacher_logits": rng.normal(size=(n, 2, 4)) * [[1], [3]]}


def temperatures(teacher_logits, mask=None, **hyper):
    """The temperatures after two equal batches."""
    made = weights.entropy_balance(2, **hyper)
    state = made.init()
    for _ in range(2):
        state = made.update(state, (teacher_logits[:, 0], teacher_logits[:, 1]), mask=mask)[1]
    return state.temperatures


def negative_entropy(logits, temperature, eps):
    q = np.exp(logits / temperature)
    q = q / q.sum(-1, keepdims=True)
    return np.mean(q * np.log(q + eps))


def after_two(teacher_logits, mask, rate, min_temperature, max_temperature, eps):
    found = np.full(2, min_temperature)
    for _ in range(2):
        a, b = (negative_entropy(teacher_logits[mask, k], found[k], eps) for k in range(2))
        found = np.clip(found - rate * np.sign([a / b - 1, b / a - 1]), min_temperature, max_temperature)
    return found


def an_unknown_objective_has_no_weight(probe):
    arrays = probe.arrays(mask=np.ones(16, bool))
    for unknown in (-1, OBJECTIVES):
        arrays["objectives"] = np.where(np.arange(16) == 3, unknown, arrays["objectives"])
        assert probe.value(arrays)[3] == 0


CASES = [
    WeightingCase(
        function=weights.normalized_loss_balance,
        inputs=losses,
        hyper={"num_objectives": OBJECTIVES, "rate": 0.6, "power": 1.5},
        extremes={"losses": (0.0, 1e4)},
        mean=None,
        reference=balance,
        invariants=(an_unknown_objective_has_no_weight,),
        bad={"num_objectives": (0, 2.5), "rate": (-0.1, np.inf), "power": (-1.0, np.inf)},
        defaults={"rate": 0.025, "power": 1.0},
        free={"signal": "any name"},
    ),
    Case(
        function=weights.entropy_balance,
        call=temperatures,
        inputs=teachers,
        hyper={"rate": 0.3, "min_temperature": 1.0, "max_temperature": 1.5, "eps": 1e-5},
        returns="batch",
        mask="mask",
        stopped=("teacher_logits",),
        empty=lambda **given: 1.0,
        reference=after_two,
        bad={
            "rate": (-0.1, np.inf),
            "min_temperature": (0.0, -1.0, np.inf),
            "max_temperature": (0.5, np.inf),
            "eps": (-1e-3, np.inf),
        },
        free={"num_teachers": "two here; more are tested in tests/weights"},
        defaults={"num_teachers": 2, "rate": 1e-3, "min_temperature": 1.0, "max_temperature": 10.0, "eps": 1e-5},
    ),
]
