"""Metrics of learning one task after another, and the two gradients at a switch of tasks."""

import functools

import jax
import numpy as np

from conformance.case import Case
from reweight import dynamics
from reweight.metrics import continual

E = 4


def record(rng, n):
    return {"accuracies": rng.random((n, E)), "current_task": np.sort(np.arange(n) * E // n)}


def history(accuracies, current_task, task, now):
    """The accuracies of a task from the start of its training to now, and from its end to now."""
    times = range(now + 1)
    return (
        [accuracies[t, task] for t in times if current_task[t] >= task],
        [accuracies[t, task] for t in times if current_task[t] > task],
        [accuracies[t, task] for t in times if current_task[t] == task],
    )


def by_hand(of_task, counts):
    """A metric from what it is of one task, and of which tasks it is the mean."""

    def reference(accuracies, current_task, per_task=False, undefined=0.0, **hyper):
        found = []
        for now, current in enumerate(current_task):
            values = {
                task: of_task(*history(accuracies, current_task, task, now), **hyper)
                for task in range(E)
                if counts(task, current)
            }
            values = {task: value for task, value in values.items() if value is not None}
            if per_task:
                found.append([values.get(task, undefined) for task in range(E)])
            else:
                found.append(np.mean(list(values.values())) if values else undefined)
        return np.array(found)

    return reference


def known(task, current):
    return task <= current


def past(task, current):
    return task < current


def rise(values, window):
    window = len(values) if window is None else window
    return max(
        later - earlier
        for i, earlier in enumerate(values)
        for later in values[i : i + window]
    )  # fmt: skip


def fall(since, after, own, window):
    return rise([-value for value in since], window)


def gain(since, after, own, window):
    return rise(since, window)


def area(since, after, own, beta):
    return np.mean(own[:beta]) if len(own) >= beta else None


MEAN = by_hand(lambda since, after, own: since[-1], known)
FORGOTTEN = by_hand(lambda since, after, own: own[-1] - since[-1], past)
LOWEST = by_hand(lambda since, after, own: min(after), past)
WORST = by_hand(lambda since, after, own: min(after) if after else since[-1], known)
FALL, GAIN, AREA = by_hand(fall, known), by_hand(gain, known), by_hand(area, known)


def streamed(accuracies, current_task, window, beta):
    stream = continual.continual_stream(E, window=window, beta=beta)

    def step(state, now):
        return stream.update(state, *now)[::-1]

    return tuple(jax.lax.scan(step, stream.init(), (accuracies, current_task))[1])


def all_by_hand(accuracies, current_task, window, beta):
    given = {"accuracies": accuracies, "current_task": current_task}
    plain = (metric(**given) for metric in (MEAN, FORGOTTEN, LOWEST, WORST))
    return (*plain, FALL(**given, window=window), GAIN(**given, window=window), AREA(**given, beta=beta))


def trees(function, **vectors):
    """Gradients as trees of two leaves."""
    return function(**{name: {"kernel": array[:, :2], "bias": array[:, 2]} for name, array in vectors.items()})


def split(stability, plasticity):
    norms = np.linalg.norm(stability), np.linalg.norm(plasticity)
    return (*norms, np.sum(stability * plasticity) / np.prod(norms))


RECORD = {
    "inputs": record,
    "stopped": ("accuracies",),
    "couples": True,
    "ordered": True,
    "extremes": {"accuracies": (0.0, 1.0)},
}
SHAPES = {"accuracies": (np.zeros(16), np.zeros((16, E), int))}
WINDOW = {"window": (0, 2.5), **SHAPES}
UNDEFINED = {"undefined": "stands for what is not defined, and may be any number"}

CASES = [
    Case(function=continual.average_accuracy, reference=MEAN, bad=SHAPES, **RECORD),
    *(
        Case(
            function=continual.average_forgetting,
            variant="of each task" if per_task else "",
            hyper={"per_task": per_task},
            reference=FORGOTTEN,
            bad=SHAPES,
            **RECORD,
        )
        for per_task in (False, True)
    ),
    *(
        Case(
            function=continual.min_acc,
            variant="of each task" if per_task else "",
            hyper={"per_task": per_task, "undefined": 0.25},
            reference=LOWEST,
            bad=SHAPES,
            defaults={"undefined": 0.0},
            free=UNDEFINED,
            **RECORD,
        )
        for per_task in (False, True)
    ),
    Case(function=continual.wc_acc, reference=WORST, bad=SHAPES, **RECORD),
    *(
        Case(
            function=metric,
            variant=variant,
            hyper={"window": window, "per_task": window == 3},
            reference=reference,
            bad=WINDOW,
            defaults={"window": 10},
            **RECORD,
        )
        for metric, reference in ((continual.windowed_forgetting, FALL), (continual.windowed_plasticity, GAIN))
        for variant, window in (("of each task", 3), ("all evaluations", None))
    ),
    Case(
        function=continual.lca,
        hyper={"beta": 3, "undefined": 0.25},
        reference=AREA,
        bad={"beta": (0, 2.5), **SHAPES},
        defaults={"beta": 10, "undefined": 0.0},
        free=UNDEFINED,
        **RECORD,
    ),
    Case(
        function=continual.continual_stream,
        call=streamed,
        hyper={"window": 3, "beta": 2},
        reference=all_by_hand,
        bad={"window": (0, 2.5), "beta": (0, 2.5)},
        defaults={"window": 10, "beta": 10},
        free={"num_tasks": "a size, checked against the accuracies", "current_task": "is an array of its own scan"},
        **RECORD,
    ),
    Case(
        function=dynamics.gradient_split,
        call=functools.partial(trees, dynamics.gradient_split),
        inputs=lambda rng, n: {"stability": rng.normal(size=(n, 3)), "plasticity": rng.normal(size=(n, 3))},
        returns="batch",
        stopped=("stability", "plasticity"),
        reference=split,
    ),
    Case(
        function=dynamics.feature_drift,
        inputs=lambda rng, n: {"before": rng.normal(size=(n, 2, 3)), "after": rng.normal(size=(n, 2, 3))},
        mask="mask",
        differentiable=("before", "after"),
        reference=lambda before, after, mask: np.where(mask, np.sum((after - before) ** 2, axis=(1, 2)), 0),
        bad={"before": (np.zeros((16, 2, 3), int), np.float64(1.0))},
    ),
]
