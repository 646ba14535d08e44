"""Learned weights, and the rescaling of losses by what several passes with dropout say."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax

from conformance.case import Case, WeightingCase
from reweight import weights

CLASSES, PASSES, WINDOW, HIDDEN = 3, 3, 5, 4
LEAST = 1e-8


def _probs(logits):
    z = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def _rows(losses, logits, labels):
    """The six numbers of an example without its group, and its agreement."""
    confidence, votes = _probs(logits).max(axis=-1), logits.argmax(axis=-1) == labels[:, None]
    share = votes.mean(axis=1)
    agrees = np.where(share == 0.5, votes[:, 0], share > 0.5)
    values = [losses.mean(1), losses.std(1, ddof=1), confidence.mean(1), confidence.std(1, ddof=1)]
    return list(zip(*values, agrees, strict=True))


def _moments(values):
    return [np.mean(values), np.std(values, ddof=1) if len(values) > 1 else LEAST]


def _divergence(row, mean, std):
    if row[1] == 0 or std == 0:
        return 0.0
    return np.log(std / row[1]) + (row[1] ** 2 + (row[0] - mean) ** 2) / (2 * std**2) - 0.5


def _overlap(row, mean, std):
    own, other = (statistics.NormalDist(m, max(s, LEAST)) for m, s in ((row[0], row[1]), (mean, std)))
    return own.overlap(other)


def _features(memory, losses, logits, labels, mask, window):
    """Features of a batch, and the memory, a list of rows a label, with the batch in it."""
    rows = _rows(losses, logits, labels)
    memory = [list(rows_of_label) for rows_of_label in memory]
    for row, label, kept in zip(rows, labels, mask, strict=True):
        if kept:
            memory[label] = [*memory[label], row][-window:]
    found = np.zeros((len(rows), 19))
    for i in np.flatnonzero(mask):
        group = [row for row in memory[labels[i]] if row[4] == rows[i][4]]
        if not group:  # the batch had more of this label than the memory has places
            group = [(0.0, 0.0, 0.0, 0.0, rows[i][4])]
        columns = []
        for j in range(4):
            columns += [rows[i][j], *_moments([row[j] for row in group])]
        centre, width = columns[1], columns[4]
        for compared in (_divergence, _overlap):
            columns += [compared(rows[i], centre, width), *_moments([compared(row, centre, width) for row in group])]
        found[i] = [*columns, rows[i][4]]
    return found, memory


def _normalized(values):
    return (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0) + 1e-5)


def _network(params, features, labels, mask):
    hidden, hidden_bias, output, output_bias = params
    kept, found = np.flatnonzero(mask), np.zeros(len(labels))
    for label in range(len(hidden)):
        inner = np.maximum(_normalized(features[kept] @ hidden[label] + hidden_bias[label]), 0)
        shares = _probs(_normalized(inner @ output[label] + output_bias[label]))[:, 1]
        found[kept] = np.where(labels[kept] == label, shares, found[kept])
    return found


def passes(rng, n):
    logits = 2 * rng.normal(size=(n, PASSES, CLASSES))
    labels = rng.integers(0, CLASSES, n)
    losses = -np.log(np.take_along_axis(_probs(logits), labels[:, None, None], axis=2))[..., 0]
    return {"losses": losses, "logits": logits, "labels": labels}


def remembered(rng, n):
    filled = np.arange(WINDOW) >= np.array([2, 0, 5])[:, None]
    values = rng.exponential(size=(CLASSES, WINDOW, 4)) * filled[..., None]
    return {**passes(rng, n), "values": values, "agrees": (rng.random(filled.shape) > 0.4) & filled, "filled": filled}


def _with_memory(values, agrees, filled, losses, logits, labels, mask=None):
    memory = weights.PassMemory(values, agrees, filled)
    return weights.storm_features(memory, losses, logits, labels, mask=mask)[0]


def features_with_memory(values, agrees, filled, losses, logits, labels, mask):
    rows = [
        [(*value, agree) for value, agree, there in zip(*label, strict=True) if there]
        for label in zip(values, agrees, filled, strict=True)
    ]
    return _features(rows, losses, logits, labels, mask, WINDOW)[0]


def network(rng, n):
    return {
        "hidden": rng.normal(size=(CLASSES, 6, HIDDEN)),
        "hidden_bias": rng.normal(size=(CLASSES, HIDDEN)),
        "output": rng.normal(size=(CLASSES, HIDDEN, 2)),
        "output_bias": rng.normal(size=(CLASSES, 2)),
        "features": rng.normal(size=(n, 6)),
        "labels": rng.integers(0, CLASSES, n),
    }


PARAMS = ("hidden", "hidden_bias", "output", "output_bias")


def _of_network(features, labels, mask=None, **params):
    return weights.storm_weights(weights.RescalingParams(**params), features, labels, mask=mask)


def one_example_weighs_a_half(probe):
    arrays = probe.arrays(mask=np.arange(16) == 3)
    np.testing.assert_allclose(probe.value(arrays)[3], 0.5, rtol=1e-6)


def _drawn(num_classes, hidden=HIDDEN):
    """Parameters of ordinary size: those of a start make every weight hang on rounding."""
    rng = np.random.default_rng(3)
    shapes = ((19, hidden), (hidden,), (hidden, 2), (2,))
    return weights.RescalingParams(*(rng.normal(size=(num_classes, *shape)) for shape in shapes))


def _fixed(num_classes, window):
    learned = weights.storm(num_classes, window=window, hidden=HIDDEN)
    return learned.fixed(jax.tree.map(jnp.asarray, _drawn(num_classes)))


def signals(rng, n):
    drawn = passes(rng, n)
    return {
        "losses": drawn["losses"][:, 0],
        "pass_losses": drawn["losses"],
        "pass_logits": drawn["logits"],
        "labels": drawn["labels"],
    }


def stormed(steps, num_classes, window):
    memory, found = [[] for _ in range(num_classes)], []
    for step in steps:
        given = (step["pass_losses"], step["pass_logits"], step["labels"], step["mask"])
        features, memory = _features(memory, *given, window)
        found.append(_network(_drawn(num_classes), features, step["labels"], step["mask"]))
    return found


RATE = 0.3


def regression(rng, n):
    return {"params": rng.normal(size=3), "meta": rng.normal(size=2), "x": rng.normal(size=(n, 3)),
            "y": rng.normal(size=n), "features": rng.normal(size=(n, 2))}  # fmt: skip


def _regression_gradient(params, meta, x, y, features):
    """Even rows train a linear model on weights sigmoid(features . meta), odd rows judge it on theirs."""

    def on(rows):
        def objective(params, meta):
            weight = jax.nn.sigmoid(features[rows] @ meta)
            return jnp.sum(weight * (x[rows] @ params - y[rows]) ** 2) / len(y), ()

        return objective

    optimizer = optax.sgd(RATE)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    found = weights.meta_gradient(
        params, meta, optimizer.init(params), inner=on(even), outer=on(odd), optimizer=optimizer
    )
    return found.grads, found.params


def regression_gradient(params, meta, x, y, features):
    n, even, odd = len(y), slice(0, None, 2), slice(1, None, 2)
    weight = 1 / (1 + np.exp(-features @ meta))
    slope = weight * (1 - weight)
    error = x @ params - y
    new = params - RATE * (2 * (weight * error)[even] @ x[even]) / n
    after = x @ new - y
    ahead = 2 * (weight * after)[odd] @ x[odd] / n
    direct = (slope * after**2)[odd] @ features[odd] / n
    through = -RATE * (2 * slope * error * (x @ ahead))[even] @ features[even] / n
    return direct + through, new


CASES = [
    Case(
        function=weights.storm_features,
        inputs=remembered,
        fixed=("values", "agrees", "filled"),
        call=_with_memory,
        mask="mask",
        stopped=("losses", "logits"),
        constant=("values",),
        extremes={"labels": ()},
        couples=True,
        ordered=True,  # a memory keeps the last
        reference=features_with_memory,
        bad={"losses": (np.zeros((16, 0)),), "logits": (np.zeros((16, PASSES, 2)),), "labels": (np.zeros(16),)},
        free={"memory": "a tree of arrays"},
        bf16=2e-3,
    ),
    Case(
        function=weights.storm_weights,
        inputs=network,
        fixed=PARAMS,
        call=_of_network,
        mask="mask",
        differentiable=PARAMS,
        stopped=("features",),
        couples=True,
        weights=True,
        mean=None,
        reference=lambda features, labels, mask, **params: _network(params.values(), features, labels, mask),
        invariants=(one_example_weighs_a_half,),
        bad={"features": (np.zeros((16, 5)),), "labels": (np.zeros(16),)},
        free={"params": "a tree of arrays"},
    ),
    WeightingCase(
        function=weights.storm,
        blames=("storm_features",),
        defaults={"hidden": 19},
        inputs=signals,
        hyper={"num_classes": CLASSES, "window": WINDOW},
        call=_fixed,
        ordered=True,  # a memory keeps the last
        mean=None,
        reference=stormed,
        bad={"num_classes": (1, 2.5), "window": (0, 1.5)},
        free={"hidden": "the width of a network", "optimizer": "any optax transformation"},
    ),
    Case(
        function=weights.meta_gradient,
        inputs=regression,
        call=_regression_gradient,
        returns="batch",
        fixed=("params", "meta", "x", "y", "features"),
        constant=("params", "meta", "x", "y", "features"),
        bf16=None,
        reference=regression_gradient,
        free={
            "inner": "any objective",
            "outer": "any objective",
            "optimizer": "any optax transformation",
            "meta_params": "any tree of arrays",
            "opt_state": "a state of the optimizer",
        },
    ),
]
