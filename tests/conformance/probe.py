"""A case made to answer: its inputs, and the few executables from which all checks read their numbers."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from conformance.case import Arrays, BatchLossCase, Case, StatefulCase, WeightingCase
from reweight import parallel

N = 16  # two examples a device
DEVICES = 8


class Outcome(NamedTuple):
    """What one call gave, in NumPy: the value, its contraction with a fixed cotangent, that one's gradients."""

    value: Any
    loss: float
    grads: Arrays
    state: Any


@functools.cache
def mesh() -> jax.sharding.Mesh:
    """Eight devices along `data`."""
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def numpy(tree: Any) -> Any:
    """A tree of NumPy arrays; random keys as their data."""

    def leaf(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x)

    return jax.tree.map(leaf, tree)


def is_float(array: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(array), jnp.floating)


def cast(tree: Any, dtype: Any) -> Any:
    """Floats as `dtype`, integers as int32, booleans as they are."""

    def leaf(x: Any) -> np.ndarray:
        x = np.asarray(x)
        if is_float(x):
            return x.astype(dtype)
        return x.astype(np.int32) if np.issubdtype(x.dtype, np.integer) else x

    return jax.tree.map(leaf, tree)


def contract(value: Any, examples: Any, per_example: bool) -> Any:
    """A scalar that weighs every number of `value` differently, so that its gradient misses none."""
    total: Any = 0.0
    for index, leaf in enumerate(jax.tree.leaves(value)):
        if not is_float(leaf):
            continue
        leaf = jnp.asarray(leaf)
        inner = leaf.shape[1:] if per_example else leaf.shape
        size = int(np.prod(inner))
        pattern = (1.0 + 0.5 * np.cos(1.0 + 0.7 * index + np.arange(size))).reshape(inner)
        weight = jnp.asarray(pattern, leaf.dtype)
        if per_example:
            weight = weight * examples.astype(leaf.dtype).reshape((-1,) + (1,) * len(inner))
        total = total + jnp.sum(weight * leaf)
    return total


class Probe:
    """One case. Executables are made on first use and kept: what is slow is compiling, not running."""

    def __init__(self, case: Case):
        self.case = case
        self.is_weighting = isinstance(case, WeightingCase)
        self.is_batch_loss = isinstance(case, BatchLossCase)
        self.has_state = isinstance(case, StatefulCase)
        self._compiled: dict[Any, Any] = {}
        self._drawn: dict[int, Arrays] = {}
        self._bases: dict[int, Outcome] = {}
        self.examples = 1.0 + 0.5 * np.sin(1.0 + np.arange(N))

    # -- inputs

    def _draw(self, seed: int) -> Arrays:
        if seed in self._drawn:
            return self._drawn[seed]
        rng = np.random.default_rng(seed)
        arrays = {name: np.asarray(array) for name, array in self.case.inputs(rng, N).items()}
        mask = self.case.mask
        if mask is not None and mask not in arrays:
            keep = rng.random(N) > 0.3
            keep[:2], keep[-2:] = True, [False, True]
            arrays[mask] = keep
        self._drawn[seed] = arrays
        return arrays

    def arrays(self, seed: int = 0, **changes: Any) -> Arrays:
        """Inputs for a batch, float64; the same for the same seed."""
        return {**{name: array.copy() for name, array in self._draw(seed).items()}, **changes}

    @property
    def batched(self) -> tuple[str, ...]:
        """The arrays with the batch as leading axis, the mask included."""
        return tuple(name for name in self._draw(0) if name not in self.case.fixed)

    @property
    def watched(self) -> tuple[str, ...]:
        """The arrays with respect to which gradients are taken."""
        if not self.is_weighting:
            return (*self.case.differentiable, *self.case.stopped)
        return tuple(n for n, a in self._draw(0).items() if is_float(a) and n != self.case.mask)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The arrays that have entries behind the mask."""
        if self.case.mask is None:
            return ()
        if self.case.hidden is not None:
            return self.case.hidden
        return tuple(name for name in self.batched if name != self.case.mask)

    # -- the function

    def made(self, hyper: Mapping[str, Any] | None = None) -> Any:
        """The weighting or the loss of a case with a state."""
        make = self.case.call or self.case.function
        return make(**(self.case.hyper if hyper is None else hyper))

    def initial(self, hyper: Mapping[str, Any] | None = None) -> Any:
        """The first state of a weighting or a loss; of a function, none."""
        return self.made(hyper).init(jax.random.key(0)) if self.has_state else ()

    def _with_keys(self, state: Any) -> Any:
        """A state in NumPy with its random keys as keys again."""

        def leaf(first: Any, x: Any) -> Any:
            if not jnp.issubdtype(jnp.result_type(first), jax.dtypes.prng_key) or isinstance(x, jax.Array):
                return x
            return jax.random.wrap_key_data(x, impl=jax.random.key_impl(first))

        return jax.tree.map(leaf, self.initial(), state)

    def call(self, arrays: Mapping[str, Any], state: Any = (), hyper: Mapping[str, Any] | None = None) -> Any:
        """Value and next state, in whatever mode of jax this is called."""
        if self.is_weighting:
            signals = dict(arrays)
            return self.made(hyper).update(state, signals.pop("losses"), **signals)
        if self.has_state:
            return self.made(hyper).update(state, **arrays)
        function = self.case.call or self.case.function
        return function(**arrays, **(self.case.hyper if hyper is None else hyper)), state

    @property
    def traced(self) -> dict[str, float]:
        """The hyperparameters that are arguments of the executables of `run`, so that one serves all their values."""
        hyper, static = self.case.hyper, self.case.static
        return {name: value for name, value in hyper.items() if isinstance(value, float) and name not in static}

    def value(self, arrays: Arrays, **hyper: Any) -> Any:
        """The value, or the weights of a first step, in float32; for invariants."""
        if set(hyper) <= set(self.traced):
            return self.run(arrays, **hyper).value
        merged = {**self.case.hyper, **hyper}
        given = {name: jnp.asarray(array) for name, array in cast(arrays, np.float32).items()}
        return numpy(self.call(given, self.initial(merged), merged)[0])

    @property
    def per_example(self) -> bool:
        return self.case.returns == "example"

    def _evaluate(self, arrays: Any, state: Any, examples: Any, call: Any = None) -> Any:
        call = self.call if call is None else call

        def loss(watched: Any) -> Any:
            value, new = call({**arrays, **watched}, state)
            return contract(value, examples, self.per_example), (value, new)

        watched = {name: arrays[name] for name in self.watched if name in arrays}
        if not watched:
            total, (value, new) = loss({})
            return value, total, {}, new
        (total, (value, new)), grads = jax.value_and_grad(loss, has_aux=True)(watched)
        return value, total, grads, new

    def compile(self, key: Any, function: Any, *arguments: Any) -> Any:
        """The executable of `function` at the shapes of these arguments, made once for each key."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function).lower(*arguments).compile()
        return self._compiled[key]

    def _evaluate_with(self, arrays: Any, state: Any, examples: Any, traced: Any) -> Any:
        hyper = {**self.case.hyper, **traced}
        return self._evaluate(arrays, state, examples, lambda arrays, state: self.call(arrays, state, hyper))

    def run(
        self, arrays: Arrays, state: Any = None, *, dtype: Any = np.float32, examples: Any = None, **hyper: float
    ) -> Outcome:
        """One jitted call on one device; the same executable for all inputs of one shape and dtype."""
        arrays = cast(arrays, dtype)
        state = self.initial() if state is None else self._with_keys(state)
        examples = (self.examples if examples is None else examples).astype(np.float32)
        arguments = (arrays, state, examples, {**self.traced, **hyper})
        key = ("run", np.dtype(dtype).name, len(examples), tuple(sorted(arrays)))
        with jax.default_matmul_precision("highest"):
            value, loss, grads, new = self.compile(key, self._evaluate_with, *arguments)(*arguments)
        return Outcome(numpy(value), float(loss), numpy(grads), numpy(new) if self.has_state else ())

    def base(self, seed: int = 0) -> Outcome:
        """The outcome on the inputs of a seed, float32."""
        if seed not in self._bases:
            self._bases[seed] = self.run(self.arrays(seed))
        return self._bases[seed]

    def warm(self) -> Any:
        """A state that has seen two batches; () for a function."""
        state = self.initial()
        if self.has_state:
            for seed in (11, 12):
                state = self.run(self.arrays(seed), state).state
        return state

    # -- float64, vmapped

    def _given(self, statistics: Any) -> Any:
        """The call of a `BatchLoss` when the statistics are known."""
        return lambda arrays, state: (self.made().losses(statistics, **arrays), state)

    def run_given(self, arrays: Arrays, state: Any, rows: np.ndarray) -> Outcome:
        """The losses of some rows of the batch, given the statistics of all of it."""

        def some(arrays: Any, state: Any, rows: Any, examples: Any) -> Any:
            statistics, _ = self.made().statistics(state, **arrays)
            statistics = jax.tree.map(lambda leaf: leaf[rows] if jnp.ndim(leaf) else leaf, statistics)
            part = {name: array if name in self.case.fixed else array[rows] for name, array in arrays.items()}
            return self._evaluate(part, (), examples[rows], self._given(statistics))

        arguments = (cast(arrays, np.float32), self._with_keys(state), rows, self.examples.astype(np.float32))
        value, loss, grads, _ = numpy(self.compile(("given", len(rows)), some, *arguments)(*arguments))
        return Outcome(value, float(loss), grads, ())

    def rows64(self, rows: list[Arrays]) -> list[Outcome]:
        """A vmapped float64 call over several inputs at once; of a `BatchLoss`, given the statistics of the first."""
        rows = [cast(row, np.float64) for row in rows]
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):

            def call(arrays: Any, state: Any, examples: Any) -> Any:
                statistics, _ = self.made().statistics(state, **rows[0]) if self.is_batch_loss else ((), ())
                return self._evaluate(arrays, (), examples, self._given(statistics) if self.is_batch_loss else None)

            function = jax.vmap(call, in_axes=(0, None, None))
            arguments = (stacked, self.initial(), self.examples)
            value, loss, grads, _ = numpy(self.compile(("vmap", len(rows)), function, *arguments)(*arguments))
        pick = [jax.tree.map(lambda leaf, i=i: leaf[i], (value, loss, grads)) for i in range(len(rows))]
        return [Outcome(v, float(total), g, ()) for v, total, g in pick]

    def scan64(self, sequences: list[list[Arrays]]) -> tuple[np.ndarray, Any]:
        """Values `[sequence, step, n]` and last states: a scan over steps in a vmap over sequences, in float64."""
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[
            jax.tree.map(lambda *leaves: np.stack(leaves), *[cast(step, np.float64) for step in steps])
            for steps in sequences
        ])  # fmt: skip
        with jax.enable_x64(True):

            def whole(steps: Any, state: Any) -> Any:
                def body(state: Any, arrays: Any) -> Any:
                    values, state = self.call(arrays, state)
                    return state, values

                state, values = jax.lax.scan(body, state, steps)
                return values, state

            arguments = (stacked, self.initial())
            executable = self.compile("scan", jax.vmap(whole, in_axes=(0, None)), *arguments)
            return numpy(executable(*arguments))

    # -- eight devices

    def _mapped(self, arrays: Any, state: Any) -> Any:
        """The call as code on shards writes it: `over_axis` inside of `shard_map`."""
        batched = dict.fromkeys(self.batched, True) | dict.fromkeys(self.case.fixed, False)
        specs = {name: PartitionSpec("data") if batched[name] else PartitionSpec() for name in arrays}
        out = PartitionSpec("data") if self.per_example else PartitionSpec()

        def on_shard(arrays: Any, state: Any) -> Any:
            if self.is_weighting:
                signals = dict(arrays)
                flags = {name: batched[name] for name in signals if name != "losses"}
                weighting = parallel.over_axis_weighting(self.made(), "data", batched_in=flags)
                return weighting.update(state, signals.pop("losses"), **signals)
            if self.has_state:
                flags = {name: batched[name] for name in arrays} | {"state": False}
                update = parallel.over_axis(self.made().update, "data", batched_in=flags, batched_out=(True, False))
                return update(state, **arrays)
            flags = {name: batched[name] for name in arrays}
            whole = parallel.over_axis(
                lambda **given: self.call(given)[0], "data", batched_in=flags, batched_out=self.per_example
            )
            return whole(**arrays), state

        specs_out = (out, PartitionSpec())
        mapped = jax.shard_map(on_shard, mesh=mesh(), in_specs=(specs, PartitionSpec()), out_specs=specs_out)
        return mapped(arrays, state)

    def run_sharded(self, arrays: Arrays, state: Any) -> tuple[Outcome, Outcome]:
        """With the batch over eight devices: the jitted call, and `over_axis` in `shard_map`, in one executable."""

        def both(arrays: Any, state: Any, examples: Any) -> Any:
            return self._evaluate(arrays, state, examples), self._evaluate(arrays, state, examples, self._mapped)

        with jax.set_mesh(mesh()), jax.default_matmul_precision("highest"):
            batch, everywhere = (NamedSharding(mesh(), spec) for spec in (PartitionSpec("data"), PartitionSpec()))
            placed = {
                name: jax.device_put(array, everywhere if name in self.case.fixed else batch)
                for name, array in cast(arrays, np.float32).items()
            }
            examples = jax.device_put(self.examples.astype(np.float32), batch)
            arguments = (placed, jax.device_put(self._with_keys(state), everywhere), examples)
            outcomes = numpy(self.compile("mesh", both, *arguments)(*arguments))
        return tuple(Outcome(v, float(l), g, n if self.has_state else ()) for v, l, g, n in outcomes)


def difference(came: Any, wanted: Any, tolerance: float) -> str | None:
    """What tells two trees apart, or None: entries may differ by `tolerance` of the leaf's largest number (or 0.01)."""
    left, right = jax.tree.leaves(numpy(came)), jax.tree.leaves(numpy(wanted))
    if len(left) != len(right):
        return f"{len(left)} arrays instead of {len(right)}"
    for a, b in zip(left, right, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            return f"shape {a.shape} instead of {b.shape}"
        if a.dtype == bool or np.issubdtype(a.dtype, np.integer):
            if not np.array_equal(a, b):
                return f"{a.tolist()} instead of {b.tolist()}"
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        if np.array_equal(a, b):
            continue
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return f"not finite: {a.ravel()[:8]} and {b.ravel()[:8]}"
        far = np.abs(a - b) - tolerance * np.max(np.abs(b), initial=0.01)
        if (far > 0).any():
            worst = np.unravel_index(np.argmax(far), far.shape)
            return f"{a[worst]:.8g} instead of {b[worst]:.8g} at {tuple(map(int, worst))}"
    return None
