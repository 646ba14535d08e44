"""Sentences on how two outcomes differ, for all checks."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from conformance.case import Arrays
from conformance.probe import Outcome, Probe, difference, is_float

Findings = Iterator[str]

EXACT = 2e-6  # the same float32 arithmetic in another order
REFERENCE = 1e-6  # float64 against float64, where thresholds may be found by bisection


def compare(what: str, came: Any, wanted: Any, tolerance: float) -> Findings:
    found = difference(came, wanted, tolerance)
    if found is not None:
        yield f"{what}: {found}"


def compare_outcomes(what: str, came: Outcome, wanted: Outcome, tolerance: float, *, state: bool = True) -> Findings:
    yield from compare(f"{what}, value", came.value, wanted.value, tolerance)
    for name, grad in wanted.grads.items():
        yield from compare(f"{what}, gradient of {name}", came.grads[name], grad, tolerance)
    if state:
        yield from compare(f"{what}, state", came.state, wanted.state, tolerance)


def finite(what: str, outcome: Outcome) -> Findings:
    for leaf in jax.tree.leaves(outcome.value):
        if is_float(leaf) and not np.isfinite(np.asarray(leaf, np.float64)).all():
            yield f"{what}: the value is not finite: {np.asarray(leaf).ravel()[:8]}"
    for name, grad in outcome.grads.items():
        if not np.isfinite(np.asarray(grad, np.float64)).all():
            yield f"{what}: the gradient of {name} is not finite: {np.asarray(grad).ravel()[:8]}"
    for leaf in jax.tree.leaves(outcome.state):
        if is_float(leaf) and not np.isfinite(np.asarray(leaf, np.float64)).all():
            yield f"{what}: the state is not finite"


def same(left: Any, right: Any) -> bool:
    return difference(left, right, 0.0) is None


def are_weights(what: str, probe: Probe, arrays: Arrays, outcome: Outcome) -> Findings:
    value = np.asarray(outcome.value, np.float64)
    keep = np.ones(value.shape, bool)
    if probe.case.mask is not None:
        keep = np.broadcast_to(arrays[probe.case.mask].astype(bool), value.shape)
    if not (value >= 0).all():
        yield f"{what}: a weight is {value.min()}"
    if np.any(value[~keep]):
        yield f"{what}: a masked example has weight {np.abs(value[~keep]).max()}"
    if probe.case.mean is not None and keep.any():
        mean = value[keep].mean()
        if not abs(mean - probe.case.mean) <= 1e-4 * probe.case.mean:
            yield f"{what}: the weights have mean {mean:.7g}, not {probe.case.mean:g}"


def invariants(probe: Any) -> Findings:
    """What the case says about the method in particular."""
    for invariant in probe.case.invariants:
        try:
            invariant(probe)
        except AssertionError as error:
            yield f"{invariant.__name__}: {error}"
