"""Checks of what a function promises: weights, states, stopped gradients, refusals, and its own invariants."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conformance.case import Arrays
from conformance.checks.comparing import Findings, are_weights
from conformance.probe import N, Probe, cast
from conformance.refusals import refused


def weights(probe: Probe) -> Findings:
    """Weights are non-negative, have the mean that the method promises over the unmasked, and are 0 where masked."""
    if not probe.case.weights:
        return
    state = probe.initial()
    for seed in (0, 1, 2, 3):
        arrays = probe.arrays(seed)
        outcome = probe.run(arrays, state)
        yield from are_weights(f"draw {seed}", probe, arrays, outcome)
        state = outcome.state if probe.has_state else state
    if probe.case.mask is not None:
        arrays = probe.arrays(0)
        arrays[probe.case.mask] = np.ones_like(arrays[probe.case.mask])
        yield from are_weights("nothing masked", probe, arrays, probe.run(arrays, state))


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


def _refused(probe: Probe, arrays: Arrays, hyper: Mapping[str, Any], accepted: tuple[str, ...], what: str) -> Findings:
    def trace(arrays: Any) -> Any:
        return probe.call(arrays, probe.initial(hyper), hyper)[0]

    name = probe.case.function.__name__
    of_pure = (f"{name}_weights",) if probe.is_weighting else ()  # the function of arrays that a weighting lifts
    names = (name, *of_pure, *probe.case.blames)
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
