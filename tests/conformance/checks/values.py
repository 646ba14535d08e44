"""Checks of what comes out for one batch: under jit, in other precisions, against references, at the ends."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import Arrays
from conformance.checks.comparing import (
    EXACT,
    REFERENCE,
    Findings,
    are_weights,
    compare,
    compare_outcomes,
    finite,
)
from conformance.probe import Outcome, Probe, cast, is_float

LARGE = (1e4, -1e4)
STEP = 1e-5  # of finite differences


def jit(probe: Probe) -> Findings:
    """It runs under `jax.jit`, with hyperparameters that are numbers and with traced ones (a schedule, a vmap)."""
    arrays = cast(probe.arrays(), np.float32)
    jax.eval_shape(lambda arrays: probe.call(arrays, probe.initial()), arrays)
    probe.base()
    yield from ()


def declared(probe: Probe) -> Findings:
    """The case says of every float array whether a gradient flows."""
    case = probe.case
    if probe.is_weighting:
        return
    said = (*case.differentiable, *case.stopped, *case.constant, case.mask)
    for name, array in probe.arrays().items():
        if is_float(array) and name not in said:
            yield f"the case does not say whether {name} is differentiable, stopped or constant"


def eager(probe: Probe) -> Findings:
    """Eager and jitted agree, and so do boolean and 0/1 masks."""
    arrays = cast(probe.arrays(), np.float32)
    if probe.case.mask is not None:
        arrays[probe.case.mask] = arrays[probe.case.mask].astype(np.float32)
    with jax.default_matmul_precision("highest"):
        value, state = probe.call({name: jnp.asarray(array) for name, array in arrays.items()}, probe.initial())
    yield from compare("eager against jit, value", value, probe.base().value, EXACT)
    if probe.has_state:
        yield from compare("eager against jit, state", state, probe.base().state, EXACT)


def _directions(probe: Probe) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    for name in probe.case.differentiable:
        yield name, rng.standard_normal(probe.arrays()[name].shape)


def gradient_and_vmap(probe: Probe) -> Findings:
    """vmap = loop; float32 = float64; the gradient is that of finite differences; the reference, if there is one."""
    if probe.has_state:
        yield from _scanned(probe)
        if probe.is_batch_loss:
            yield from _differences(probe, probe.rows64([probe.arrays(), *_moved(probe)]))
        return
    case = probe.case
    base, other = probe.arrays(0), probe.arrays(1)
    if not base:
        yield from compare("reference", probe.base().value, case.reference(**case.hyper), EXACT)
        return
    outcomes = probe.rows64([base, *_moved(probe), other])
    for index, arrays, outcome in ((0, base, outcomes[0]), (1, other, outcomes.pop())):
        yield from compare_outcomes(
            f"vmap in float64 against a float32 loop, row {index}", probe.base(index), outcome, case.tolerance
        )
        if case.reference is not None:
            wanted = case.reference(**arrays, **case.hyper)
            yield from compare(f"reference, draw {index}", outcome.value, wanted, REFERENCE)
    for leaf in jax.tree.leaves(outcomes[0].value):
        if any(map(is_float, base.values())) and is_float(leaf) and leaf.dtype != np.float64:
            yield f"from float64 comes {leaf.dtype}"
    yield from _differences(probe, outcomes)


def _moved(probe: Probe) -> list[Arrays]:
    """The inputs a step forth and back in the direction of each argument."""
    base = probe.arrays()
    return [
        {**base, name: base[name] + sign * STEP * direction}
        for name, direction in _directions(probe)
        for sign in (1, -1)
    ]


def _differences(probe: Probe, outcomes: list[Outcome]) -> Findings:
    """The gradient against finite differences, from the outcomes of the inputs and of the moved ones."""
    base, *moved = outcomes
    for (name, direction), plus, minus in zip(_directions(probe), moved[::2], moved[1::2], strict=True):
        numeric, analytic = (plus.loss - minus.loss) / (2 * STEP), float(np.sum(base.grads[name] * direction))
        size = np.sqrt(np.sum((base.grads[name] * direction) ** 2))
        same = np.isfinite(analytic) and abs(numeric - analytic) <= 1e-5 * max(size, abs(numeric), 1e-2)
        if not same and not probe.case.surrogate:
            yield f"gradient of {name}: {analytic:.8g} along a direction in which finite differences give {numeric:.8g}"
        if not np.any(base.grads[name]):
            yield f"gradient of {name}: zero everywhere"


def _scanned(probe: Probe) -> Findings:
    case = probe.case
    sequences = [[probe.arrays(10 * row + step) for step in range(case.steps)] for row in range(2)]
    values, states = probe.scan64(sequences)
    for row, steps in enumerate(sequences):
        state, loop = probe.initial(), []
        for arrays in steps:
            outcome = probe.run(arrays, state)
            state = outcome.state
            loop.append(outcome.value)
        what = f"vmap of a scan in float64 against a float32 loop, row {row}"
        yield from compare(f"{what}, values", np.stack(loop), values[row], case.tolerance)
        yield from compare(f"{what}, state", state, jax.tree.map(lambda leaf, r=row: leaf[r], states), case.tolerance)
        if case.reference is not None:
            wanted = np.stack(case.reference(steps, **case.hyper))
            yield from compare(f"reference, sequence {row}", values[row], wanted, REFERENCE)
    if not np.issubdtype(values.dtype, np.floating) or np.finfo(values.dtype).bits < 32:
        yield f"from float64 comes {values.dtype}"


def bfloat16(probe: Probe) -> Findings:
    """bfloat16 inputs give what the same numbers give in float32, in float32."""
    if probe.case.bf16 is None or not any(is_float(array) for array in probe.arrays().values()):
        return
    arrays = cast(probe.arrays(), jnp.bfloat16)
    wide = probe.run({name: np.asarray(a, np.float32) if is_float(a) else a for name, a in arrays.items()})
    if probe.case.mask is not None:
        arrays[probe.case.mask] = arrays[probe.case.mask].astype(np.float64)
    narrow = probe.run(arrays, dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(narrow.value):
        if is_float(leaf) and jnp.finfo(leaf.dtype).bits < 32:
            yield f"from bfloat16 comes {leaf.dtype}"
    yield from compare("bfloat16 against float32, value", narrow.value, wide.value, probe.case.bf16)
    for name, grad in wide.grads.items():
        # A gradient takes the dtype of its input, and is rounded to it.
        yield from compare(f"bfloat16 against float32, gradient of {name}", narrow.grads[name], grad, 1e-2)


def _extremes(probe: Probe, name: str) -> tuple[float, ...]:
    array = probe.arrays()[name]
    return probe.case.extremes.get(name, LARGE if is_float(array) and name != probe.case.mask else ())


def extreme_inputs(probe: Probe) -> Iterator[tuple[str, Arrays]]:
    """Inputs as large as they may come, alone and together, and inputs that are all alike."""
    arrays, rng = probe.arrays(), np.random.default_rng(6)
    names = [name for name in probe.batched if _extremes(probe, name)]
    for name in names:
        ends = _extremes(probe, name)
        shape = arrays[name].shape
        for end in ends:
            yield f"{name} = {end:g}", {**arrays, name: np.full(shape, end)}
            one = arrays[name].copy()
            one[0] = end
            yield f"{name} = {end:g} at one example", {**arrays, name: one}
        rows = np.resize(np.asarray(ends, float), shape[0]).reshape((-1,) + (1,) * (len(shape) - 1))
        yield f"{name} alternating", {**arrays, name: np.broadcast_to(rows, shape)}
        if min(ends) <= 0 <= max(ends):
            yield f"{name} = 0", {**arrays, name: np.zeros(shape)}
    for _ in range(3):
        mixed = {n: rng.choice(np.asarray(_extremes(probe, n), float), arrays[n].shape) for n in names}
        if mixed:
            yield "all arguments extreme", {**arrays, **mixed}
    alike = {n: np.broadcast_to(a[:1], a.shape) for n, a in arrays.items() if n in names}
    if alike:
        yield "all examples alike", {**arrays, **alike}


def extreme(probe: Probe) -> Findings:
    """Value, gradient and state stay finite for inputs as large as they may come; weights stay weights."""
    for what, arrays in extreme_inputs(probe):
        outcome = probe.run(arrays)
        found = list(finite(what, outcome))
        if not found and probe.case.weights:
            found = list(are_weights(what, probe, arrays, outcome))
        if not found and probe.has_state:
            after = probe.run(probe.arrays(1), outcome.state)
            found = [*finite(f"the step after {what}", after)]
            if not found and probe.case.weights:
                found += are_weights(f"the step after {what}", probe, probe.arrays(1), after)
        yield from found[:1]
