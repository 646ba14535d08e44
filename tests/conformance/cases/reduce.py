"""Reductions."""

import numpy as np

from conformance.case import Case
from reweight import reduce


def _mean(values, weights, where, normalizer="weights"):
    total = np.sum(values * weights * where)
    count = np.sum(weights * where) if normalizer == "weights" else np.sum(where)
    return np.asarray(total / count)


def _values(rng, n):
    return {"values": rng.normal(size=n), "weights": rng.uniform(0.2, 2.0, n)}


def _token_inputs(rng, n):
    mask = rng.random((n, 5)) > 0.3
    mask[0], mask[1] = True, False
    return {"values": rng.normal(size=(n, 5)), "mask": mask, "weights": rng.uniform(0.2, 2.0, (n, 5))}


def _sequence_weights(rng, n):
    return {**_token_inputs(rng, n), "weights": rng.uniform(0.2, 2.0, n)}


def _tokens(values, mask, weights, mode, length=None):
    if weights.ndim == 1:
        weights = weights[:, None]
    sums, counts = np.sum(values * mask * weights, axis=1), np.sum(mask, axis=1)
    sequences = np.sum(counts > 0)
    return np.asarray(
        {
            "token-mean": np.sum(sums) / np.sum(counts),
            "seq-mean-token-mean": np.sum(sums / np.maximum(counts, 1)) / sequences,
            "seq-mean-token-sum": np.sum(sums) / sequences,
            "token-sum-fixed-length": np.sum(sums) / (sequences * (length or 1)),
        }[mode]
    )


def _parts(reference, denominator):
    def parts(parts, **arguments):
        value, below = reference(**arguments), denominator(**arguments)
        return reduce.Parts(value * below if below else value, np.asarray(float(below)))

    return parts


_WEIGHTS_MAY_BE_LARGE = {"weights": (0.0, 1e4)}
_FREE = {"axis": "every choice of axes is tested in tests/test_reduce.py", "parts": "a boolean"}
_PARTS = dict.fromkeys(
    ("parts", "total", "totals", "denominator", "denominators"), "Parts are made by the reductions, in shapes that fit"
)
_BAD_MEAN = {"normalizer": ("mean", None), "axis": (1, (0, 0))}
_BAD_TOKENS = {"mode": ("mean", None)}

CASES = [
    Case(
        function=reduce.weighted_mean,
        inputs=_values,
        returns="batch",
        mask="where",
        differentiable=("values", "weights"),
        extremes=_WEIGHTS_MAY_BE_LARGE,
        reference=_mean,
        bad=_BAD_MEAN,
        free=_FREE,
    ),
    Case(
        function=reduce.weighted_mean,
        variant="count",
        inputs=_values,
        returns="batch",
        hyper={"normalizer": "count"},
        mask="where",
        differentiable=("values", "weights"),
        extremes=_WEIGHTS_MAY_BE_LARGE,
        reference=_mean,
    ),
    Case(
        function=reduce.weighted_mean,
        variant="parts",
        inputs=_values,
        returns="parts",
        hyper={"parts": True},
        mask="where",
        differentiable=("values", "weights"),
        extremes=_WEIGHTS_MAY_BE_LARGE,
        reference=_parts(_mean, lambda values, weights, where: np.sum(weights * where)),
    ),
    Case(
        function=reduce.weighted_mean,
        variant="rows",
        inputs=lambda rng, n: {
            "values": rng.normal(size=(n, 3)),
            "weights": rng.uniform(0.2, 2.0, (n, 3)),
            "where": np.arange(3 * n).reshape(n, 3) % 5 > 0,
        },
        hyper={"axis": 1},
        mask="where",
        differentiable=("values", "weights"),
        extremes=_WEIGHTS_MAY_BE_LARGE,
        reference=lambda values, weights, where, axis: (
            np.sum(values * weights * where, axis) / np.sum(weights * where, axis)
        ),
    ),
    Case(
        function=reduce.weighted_sum,
        inputs=_values,
        returns="batch",
        mask="where",
        differentiable=("values", "weights"),
        extremes=_WEIGHTS_MAY_BE_LARGE,
        reference=lambda values, weights, where: np.sum(values * weights * where),
        bad={"axis": (1, (0, 0))},
        free=_FREE,
    ),
    Case(
        function=reduce.weighted_sum,
        variant="parts",
        inputs=_values,
        returns="parts",
        hyper={"parts": True},
        mask="where",
        differentiable=("values", "weights"),
        extremes=_WEIGHTS_MAY_BE_LARGE,
        reference=_parts(lambda values, weights, where: np.sum(values * weights * where), lambda **_: 0),
    ),
    *(
        Case(
            function=reduce.tokens,
            variant=mode if draw is _token_inputs else "weights of sequences",
            inputs=draw,
            returns="batch",
            hyper={"mode": mode, **({"length": 7} if mode == "token-sum-fixed-length" else {})},
            mask="mask",
            differentiable=("values", "weights"),
            extremes=_WEIGHTS_MAY_BE_LARGE,
            hidden=("values", "weights") if draw is _token_inputs else ("values",),
            reference=_tokens,
            bad={**_BAD_TOKENS, "length": (0, 2.5, None) if mode == "token-sum-fixed-length" else (8,)},
            free={"parts": "a boolean"},
        )
        for mode, draw in (
            ("token-mean", _token_inputs),
            ("seq-mean-token-mean", _token_inputs),
            ("seq-mean-token-mean", _sequence_weights),
            ("seq-mean-token-sum", _token_inputs),
            ("token-sum-fixed-length", _token_inputs),
        )
    ),
    *(
        Case(
            function=reduce.tokens,
            variant=f"{mode}, parts",
            inputs=_token_inputs,
            returns="parts",
            hyper={"mode": mode, "parts": True, **({"length": 7} if mode == "token-sum-fixed-length" else {})},
            mask="mask",
            differentiable=("values", "weights"),
            extremes=_WEIGHTS_MAY_BE_LARGE,
        )
        for mode in reduce.TOKEN_MODES
    ),
    Case(
        function=reduce.finish,
        inputs=lambda rng, n: {"total": rng.normal(size=n), "denominator": rng.integers(0, 3, n).astype(float)},
        call=lambda total, denominator: reduce.finish(reduce.Parts(total, denominator)),
        differentiable=("total",),
        bf16=None,
        constant=("denominator",),
        extremes={"denominator": (0.0, 1e4)},
        reference=lambda total, denominator: np.where(denominator == 0, total, total / np.maximum(denominator, 1)),
        free=_PARTS,
    ),
    Case(
        function=reduce.combine,
        inputs=lambda rng, n: {"totals": rng.normal(size=n), "denominators": rng.integers(0, 3, n).astype(float)},
        call=lambda totals, denominators: reduce.combine(map(reduce.Parts, totals, denominators)),
        returns="batch",
        differentiable=("totals",),
        bf16=None,
        constant=("denominators",),
        extremes={"denominators": (0.0, 1e4)},
        reference=lambda totals, denominators: np.sum(totals) / np.sum(denominators),
        free=_PARTS,
    ),
]
