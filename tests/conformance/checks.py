"""The checks of functions of arrays and of weightings. Each yields what it finds wrong, one sentence at a time.

A check is generic: it knows a function only through its case, and yields nothing where it has no meaning.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import Arrays
from conformance.probe import N, Outcome, Probe, cast, difference, is_float
from conformance.refusals import refused
from reweight import reduce

Findings = Iterator[str]

EXACT = 2e-6  # the same float32 arithmetic in another order
REFERENCE = 1e-6  # float64 against float64, where thresholds may be found by bisection
LARGE = (1e4, -1e4)
STEP = 1e-5  # of finite differences


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
            found = list(_are_weights(what, probe, arrays, outcome))
        if not found and probe.has_state:
            after = probe.run(probe.arrays(1), outcome.state)
            found = [*finite(f"the step after {what}", after)]
            if not found and probe.case.weights:
                found += _are_weights(f"the step after {what}", probe, probe.arrays(1), after)
        yield from found[:1]


GARBAGE: dict[str, tuple[float, int]] = {
    "NaN": (np.nan, -1),
    "infinity": (np.inf, np.iinfo(np.int32).max),
    "minus infinity": (-np.inf, np.iinfo(np.int32).min),
    "1e4": (1e4, 10_000),
    "-1e4": (-1e4, -100),
    "other numbers": (0.37, 0),
}


def mask(probe: Probe) -> Findings:
    """What stands behind the mask is not read, whatever it is, and gets no gradient."""
    if probe.case.mask is None:
        return
    arrays, state = probe.arrays(), probe.warm()
    keep = arrays[probe.case.mask].astype(bool)
    wanted = probe.run(arrays, state)
    for name in probe.hidden:
        if name in wanted.grads and np.any(wanted.grads[name][~keep]):
            yield f"masked entries of {name} have a gradient"
    for label, (real, whole) in GARBAGE.items():
        dirty = dict(arrays)
        for name in probe.hidden:
            array = dirty[name].copy()
            array[~keep] = real if is_float(array) else bool(whole) if array.dtype == bool else whole
            dirty[name] = array
        came = probe.run(dirty, state)
        yield from list(compare_outcomes(f"{label} behind the mask", came, wanted, EXACT))[:2]
        if label == "NaN":
            # XLA reads the product with a boolean mask as a selection, and hides what the product with numbers does.
            numbers = {**arrays, probe.case.mask: keep.astype(np.float64)}
            clean = probe.run(numbers, dtype=jnp.bfloat16)
            came = probe.run({**dirty, probe.case.mask: numbers[probe.case.mask]}, dtype=jnp.bfloat16)
            yield from list(compare_outcomes("NaN behind a mask of numbers", came, clean, EXACT))[:2]


def masked_is_absent(probe: Probe) -> Findings:
    """A masked example is one that is not in the batch: nothing else changes when it is left out."""
    case = probe.case
    if case.mask is None or case.mask in case.fixed:
        return
    arrays, state = probe.arrays(), probe.warm()
    keep = arrays[case.mask].astype(bool)
    rows = np.arange(N) % 3 != 1 if keep.ndim > 1 else keep
    full = {**arrays, case.mask: keep & rows.reshape((-1,) + (1,) * (keep.ndim - 1))}
    short = {name: array if name in case.fixed else array[rows] for name, array in full.items()}
    if keep.ndim == 1:
        del short[case.mask]
    came, wanted = probe.run(short, state, examples=probe.examples[rows]), probe.run(full, state)
    take = (lambda leaf: leaf[rows]) if probe.per_example else (lambda leaf: leaf)
    yield from compare("a shorter batch against masked examples, value", came.value,
                       jax.tree.map(take, wanted.value), EXACT)  # fmt: skip
    yield from compare("a shorter batch against masked examples, state", came.state, wanted.state, EXACT)
    for name, grad in came.grads.items():
        whole = wanted.grads[name]
        yield from compare(f"a shorter batch against masked examples, gradient of {name}", grad,
                           whole if name in case.fixed else whole[rows], EXACT)  # fmt: skip


def empty_mask(probe: Probe) -> Findings:
    """A batch that is masked altogether gives a defined value and zero gradient, and leaves a state as it was."""
    case = probe.case
    if case.mask is None:
        return
    arrays, state = probe.arrays(), probe.warm()
    dirty = {n: np.full_like(a, np.nan) if n in probe.hidden and is_float(a) else a for n, a in arrays.items()}
    for what, inputs in (("all masked", arrays), ("all masked, NaN behind it", dirty)):
        outcome = probe.run({**inputs, case.mask: np.zeros_like(arrays[case.mask])}, state)
        for leaf in jax.tree.leaves(outcome.value):
            wanted = np.asarray(case.empty(**inputs) if callable(case.empty) else case.empty, np.float32)
            if is_float(leaf) and not np.all(leaf == wanted):
                yield f"{what}: the value is {np.ravel(leaf)[:4]}, not {wanted.ravel()[:4]}"
        for name, grad in outcome.grads.items():
            if (name in probe.hidden or not callable(case.empty)) and not np.all(grad == 0):
                yield f"{what}: the gradient of {name} is not zero"
        if not _same(outcome.state, state if probe.has_state else ()):
            yield f"{what}: the state changes"


def _same(left: Any, right: Any) -> bool:
    return difference(left, right, 0.0) is None


def permutation(probe: Probe) -> Findings:
    """Permuting the batch permutes the result, and leaves what belongs to the batch as it is."""
    case = probe.case
    if case.ordered:
        return
    arrays, state = probe.arrays(), probe.warm()
    order = np.random.default_rng(7).permutation(N)
    shuffled = {name: array if name in case.fixed else array[order] for name, array in arrays.items()}
    wanted = probe.run(arrays, state)
    came = probe.run(shuffled, state, examples=probe.examples[order])
    move = (lambda leaf: leaf[order]) if probe.per_example else (lambda leaf: leaf)
    permuted = Outcome(
        jax.tree.map(move, wanted.value),
        wanted.loss,
        {name: grad if name in case.fixed else grad[order] for name, grad in wanted.grads.items()},
        wanted.state,
    )
    yield from compare_outcomes("a permuted batch", came, permuted, 5 * EXACT)


def independence(probe: Probe) -> Findings:
    """An example's value does not depend on the other examples, unless the case says that it does."""
    case = probe.case
    if not probe.per_example or case.couples or probe.has_state:
        return
    arrays, others = probe.arrays(0), probe.arrays(1)
    mine = np.arange(N) % 2 == 0
    mixed = {
        name: array
        if name in case.fixed
        else np.where(mine.reshape((-1,) + (1,) * (array.ndim - 1)), array, others[name])
        for name, array in arrays.items()
    }
    came, wanted = probe.run(mixed), probe.base()
    pick = lambda tree: jax.tree.map(lambda leaf: leaf[mine], tree)  # noqa: E731
    yield from compare("with other examples in the batch, value", pick(came.value), pick(wanted.value), EXACT)
    for name in wanted.grads:
        if name not in case.fixed:
            yield from compare(f"with other examples in the batch, gradient of {name}",
                               came.grads[name][mine], wanted.grads[name][mine], EXACT)  # fmt: skip


def _pieces(probe: Probe) -> list[np.ndarray]:
    """A split of the batch into three unequal pieces, one of them empty after masking where a mask can do that."""
    rows = np.random.default_rng(8).permutation(N)
    return [np.isin(np.arange(N), part) for part in (rows[:3], rows[3:12], rows[12:])]


def accumulation(probe: Probe) -> Findings:
    """The parts or sums of pieces add up to those of the whole, in value and in gradient."""
    case = probe.case
    if case.returns not in ("parts", "sums"):
        return
    arrays, whole = probe.arrays(), probe.base()
    outcomes = []
    for piece in _pieces(probe):
        if case.mask is not None:
            inside = piece.reshape((-1,) + (1,) * (arrays[case.mask].ndim - 1))
            outcomes.append((piece, probe.run({**arrays, case.mask: arrays[case.mask].astype(bool) & inside}), False))
        else:
            part = {name: array if name in case.fixed else array[piece] for name, array in arrays.items()}
            outcomes.append((piece, probe.run(part, examples=probe.examples[piece]), True))
    summed = jax.tree.map(lambda *leaves: sum(leaves), *[outcome.value for _, outcome, _ in outcomes])
    yield from compare(f"the sum of the pieces' {case.returns}", summed, whole.value, EXACT)
    if case.returns == "parts":
        value = reduce.combine([outcome.value for _, outcome, _ in outcomes])
        yield from compare("the pieces combined", value, reduce.finish(whole.value), EXACT)
    for name, wanted in whole.grads.items():
        total = np.zeros_like(wanted)
        for piece, outcome, cut in outcomes:
            if cut and name not in case.fixed:
                total[piece] += outcome.grads[name]
            else:
                total += outcome.grads[name]
        yield from compare(f"the sum of the pieces' gradients of {name}", total, wanted, EXACT)


def statistics(probe: Probe) -> Findings:
    """Given the statistics of a batch, pieces of it have the losses and gradients that they have in the batch."""
    if not probe.is_batch_loss:
        return
    arrays, state = probe.arrays(), probe.warm()
    whole = probe.run(arrays, state)
    for rows in np.random.default_rng(8).permutation(N).reshape(2, -1):
        piece = probe.run_given(arrays, state, rows)
        yield from compare("losses of a piece against those in the batch", piece.value, whole.value[rows], EXACT)
        for name, grad in whole.grads.items():
            if name not in probe.case.fixed:
                came = piece.grads[name]
                yield from compare(f"gradient of {name} of a piece against that in the batch", came, grad[rows], EXACT)


def scope(probe: Probe) -> Findings:
    """A weighting of scope "example" gives pieces of a batch what it gives the batch, and ends in the same state."""
    if not probe.is_weighting:
        return
    declared = probe.made().scope
    found: list[str] = []
    state = probe.warm()
    for seed in (2, 3):
        arrays = probe.arrays(seed)
        keep = arrays["mask"].astype(bool)
        whole, weights, running = probe.run(arrays, state), np.zeros(N), state
        for piece in _pieces(probe):
            outcome = probe.run({**arrays, "mask": keep & piece}, running)
            running = outcome.state
            weights = np.where(piece, outcome.value, weights)
        found += compare("weights of the pieces against those of the batch", weights, whole.value, EXACT)
        found += compare("the state after the pieces against that after the batch", running, whole.state, EXACT)
        louder = {n: np.where(np.arange(N) % 2 == 0, a, a + 3 if is_float(a) else a) for n, a in arrays.items()
                  if n != "mask" and a.ndim == 1 and n not in probe.case.fixed}  # fmt: skip
        came = probe.run({**arrays, **louder}, state)
        found += compare("weights beside other losses", came.value[::2], whole.value[::2], EXACT)
    if declared == "example":
        yield from found
    elif not found:
        yield "scope 'batch' is declared, and no weight depends on other examples: 'example' would save a pass"


def weights(probe: Probe) -> Findings:
    """Weights are non-negative, have the mean that the method promises over the unmasked, and are 0 where masked."""
    if not probe.case.weights:
        return
    state = probe.initial()
    for seed in (0, 1, 2, 3):
        arrays = probe.arrays(seed)
        outcome = probe.run(arrays, state)
        yield from _are_weights(f"draw {seed}", probe, arrays, outcome)
        state = outcome.state if probe.has_state else state
    if probe.case.mask is not None:
        arrays = probe.arrays(0)
        arrays[probe.case.mask] = np.ones_like(arrays[probe.case.mask])
        yield from _are_weights("nothing masked", probe, arrays, probe.run(arrays, state))


def _are_weights(what: str, probe: Probe, arrays: Arrays, outcome: Outcome) -> Findings:
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


def state(probe: Probe) -> Findings:
    """A state keeps structure, shapes and dtypes, and a warm step is as good as a first one."""
    if not probe.has_state:
        return
    first = probe.initial()
    spec = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)  # noqa: E731
    _, new = jax.eval_shape(lambda arrays: probe.call(arrays, first), cast(probe.arrays(), np.float32))
    if jax.tree.structure(first) != jax.tree.structure(new):
        yield f"update changes the state's structure from {jax.tree.structure(first)} to {jax.tree.structure(new)}"
    elif spec(first) != spec(new):
        yield f"update changes the state's shapes or dtypes from {spec(first)} to {spec(new)}"
    for leaf in jax.tree.leaves(first):
        if not isinstance(leaf, jax.Array | np.ndarray):
            yield f"the state holds {type(leaf).__name__} {leaf!r}, not an array"
    ignored = {"a_signal_that_nobody_reads": np.zeros(N, np.float32)}
    with_more = jax.eval_shape(
        lambda arrays: probe.call(arrays, first)[0], {**cast(probe.arrays(), np.float32), **ignored}
    )
    if with_more.shape != ((N,) if probe.is_weighting or probe.is_batch_loss else probe.base().value.shape):
        yield f"for {N} examples comes the shape {with_more.shape}"


def stop_gradient(probe: Probe) -> Findings:
    """No gradient flows where the documentation says so; through a weighting none flows at all."""
    names = probe.watched if probe.is_weighting else probe.case.stopped
    state = probe.warm()
    for seed in (0, 1):
        outcome = probe.run(probe.arrays(seed), state)
        for name in names:
            if np.any(outcome.grads[name]):
                yield f"a gradient flows through {name}"


def sharded(probe: Probe) -> Findings:
    """Eight devices give the numbers of one, in plain code under jit and in `over_axis` on the shards."""
    if not probe.batched:
        return
    state = probe.warm()
    wanted = probe.run(probe.arrays(), state)
    jitted, mapped = probe.run_sharded(probe.arrays(), state)
    yield from compare_outcomes("eight devices against one", jitted, wanted, 5 * EXACT)
    yield from compare_outcomes("over_axis on eight shards against one device", mapped, wanted, 5 * EXACT)


def _refused(probe: Probe, arrays: Arrays, hyper: Mapping[str, Any], accepted: tuple[str, ...], what: str) -> Findings:
    def trace(arrays: Any) -> Any:
        return probe.call(arrays, probe.initial(hyper), hyper)[0]

    names = (probe.case.function.__name__, *probe.case.blames)
    yield from refused(what, lambda: jax.eval_shape(trace, cast(arrays, np.float32)), names, accepted)


def errors(probe: Probe) -> Findings:
    """Bad shapes, dtypes and hyperparameters are refused by name."""
    case, arrays, hyper = probe.case, probe.arrays(), dict(probe.case.hyper)
    for argument, values in case.bad.items():
        numeric = any(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        for value in (*values, *((float("nan"), "one") if numeric and argument not in arrays else ())):
            what = f"{argument} = {value!r}" if np.ndim(value) == 0 else f"{argument} of shape {np.shape(value)}"
            if argument in arrays:
                yield from _refused(probe, {**arrays, argument: value}, hyper, (argument,), what)
            else:
                yield from _refused(probe, arrays, {**hyper, argument: value}, (argument,), what)
    batched = [name for name in probe.batched if name not in case.free]
    if len(batched) > 1:
        for name in batched:
            longer = np.concatenate([arrays[name], arrays[name][:1]])
            names = (name,) if name == case.mask else probe.batched
            yield from _refused(probe, {**arrays, name: longer}, hyper, names, f"{name} of {N + 1} examples among {N}")
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.integer) and name not in case.free:
            yield from _refused(probe, {**arrays, name: array + 0.5}, hyper, (name,), f"{name} of floats")
    if probe.has_state:
        for name in getattr(probe.made(), "signals", ()):
            without = {n: a for n, a in arrays.items() if n != name}
            yield from _refused(probe, without, hyper, (name,), f"without the signal {name}")


def invariants(probe: Probe) -> Findings:
    """What the case says about the method in particular."""
    for invariant in probe.case.invariants:
        try:
            invariant(probe)
        except AssertionError as error:
            yield f"{invariant.__name__}: {error}"


CHECKS: dict[str, Callable[[Probe], Findings | None]] = {
    "jit": jit,
    "declared": declared,
    "eager": eager,
    "gradient and vmap": gradient_and_vmap,
    "bfloat16": bfloat16,
    "extreme": extreme,
    "mask": mask,
    "masked is absent": masked_is_absent,
    "empty mask": empty_mask,
    "permutation": permutation,
    "independence": independence,
    "accumulation": accumulation,
    "statistics": statistics,
    "scope": scope,
    "weights": weights,
    "state": state,
    "stop-gradient": stop_gradient,
    "sharded": sharded,
    "errors": errors,
    "invariants": invariants,
}


def failures(probe: Any, checks: Mapping[str, Callable[[Any], Findings | None]] = CHECKS) -> list[str]:
    """Everything that is wrong, each finding after the name of its check."""
    found: list[str] = []
    for name, check in checks.items():
        try:
            found += [f"{name}: {finding}" for finding in check(probe) or ()]
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            found.append(f"{name}: raised {type(error).__name__}: {text}")
            if name == "jit":
                break
    return found
