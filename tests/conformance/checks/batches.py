"""Checks of what a batch is: masks, order, pieces of it, and eight devices."""

import jax
import jax.numpy as jnp
import numpy as np

from conformance.checks.comparing import EXACT, Findings, compare, compare_outcomes, same
from conformance.probe import N, Outcome, Probe, is_float
from reweight import reduce

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
        if not same(outcome.state, state if probe.has_state else ()):
            yield f"{what}: the state changes"


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


def sharded(probe: Probe) -> Findings:
    """Eight devices give the numbers of one, in plain code under jit and in `over_axis` on the shards."""
    if not probe.batched:
        return
    state = probe.warm()
    wanted = probe.run(probe.arrays(), state)
    jitted, mapped = probe.run_sharded(probe.arrays(), state)
    yield from compare_outcomes("eight devices against one", jitted, wanted, 5 * EXACT)
    yield from compare_outcomes("over_axis on eight shards against one device", mapped, wanted, 5 * EXACT)
