"""The checks of optimizers: any `optax.GradientTransformation` on a small tree, over a few steps."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from conformance.case import TransformCase
from conformance.checks.comparing import EXACT, REFERENCE, Findings, compare, invariants
from conformance.probe import cast, is_float, mesh, numpy
from conformance.refusals import refused

STEPS = 3
SHAPES = {"dense": {"kernel": (16, 8), "bias": (8,)}, "conv": {"kernel": (3, 2, 8)}}


def _drawn(rng: np.random.Generator, scale: float = 1.0) -> Any:
    return jax.tree.map(lambda shape: scale * rng.normal(size=shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


class TransformProbe:
    """One case: its transform, a tree of parameters, a few gradients, and the executable of a step."""

    def __init__(self, case: TransformCase):
        self.case = case
        self._compiled: dict[Any, Any] = {}

    def params(self, seed: int = 0) -> Any:
        return _drawn(np.random.default_rng(seed))

    def grads(self, seed: int = 0) -> list[Any]:
        rng = np.random.default_rng(100 + seed)
        return [_drawn(rng, scale) for scale in (1.0, 0.1, 10.0)[:STEPS]]

    def transform(self, **hyper: Any) -> Any:
        make = self.case.call or self.case.function
        return make(**{**self.case.hyper, **hyper})

    def step(self, params: Any, state: Any, grads: Any, transform: Any = None) -> Any:
        """Updates, next state, next parameters."""
        transform = self.transform() if transform is None else transform
        updates, state = transform.update(grads, state, params)
        return updates, state, optax.apply_updates(params, updates)

    def compile(self, key: Any, function: Any, *arguments: Any) -> Any:
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function).lower(*arguments).compile()
        return self._compiled[key]

    def run(self, params: Any, grads: list[Any], dtype: Any = np.float32) -> list[Any]:
        """`(updates, state, params)` after each of the steps, jitted on one device."""
        params, found = cast(params, dtype), []
        state = self.transform().init(params)
        for gradient in grads:
            arguments = (params, state, cast(gradient, dtype))
            updates, state, params = self.compile(np.dtype(dtype).name, self.step, *arguments)(*arguments)
            found.append(numpy((updates, state, params)))
        return found


def _finite(what: str, tree: Any) -> Findings:
    for leaf in jax.tree.leaves(tree):
        if is_float(leaf) and not np.isfinite(np.asarray(leaf, np.float64)).all():
            yield f"{what}: not finite"
            return


def jit(probe: TransformProbe) -> Findings:
    """It runs under jit, and its steps are finite."""
    for count, (updates, state, _) in enumerate(probe.run(probe.params(), probe.grads())):
        yield from _finite(f"step {count}", (updates, state))


def eager(probe: TransformProbe) -> Findings:
    """Eager and jitted agree."""
    params, grads = cast(probe.params(), np.float32), cast(probe.grads()[0], np.float32)
    params, grads = jax.tree.map(jnp.asarray, (params, grads))
    came = probe.step(params, probe.transform().init(params), grads)
    yield from compare("eager against jit", numpy(came), probe.run(probe.params(), probe.grads()[:1])[0], EXACT)


def state(probe: TransformProbe) -> Findings:
    """The state keeps structure, shapes and dtypes, so that steps can be scanned; updates are as the parameters."""
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.tree.map(lambda leaf, d=dtype: jax.ShapeDtypeStruct(leaf.shape, d), probe.params())
        first = jax.eval_shape(lambda p: probe.transform().init(p), params)
        updates, new, _ = jax.eval_shape(probe.step, params, first, params)
        spec = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
        if jax.tree.structure(first) != jax.tree.structure(new) or spec(first) != spec(new):
            yield f"update changes the state from {spec(first)} to {spec(new)}"
        if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
            yield "updates do not have the shapes of the parameters"


def vmap_and_float64(probe: TransformProbe) -> Findings:
    """vmap over seeds in float64 = a float32 loop; the reference, if there is one."""
    seeds = (0, 1)
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # noqa: E731
    params = stack([cast(probe.params(seed), np.float64) for seed in seeds])
    grads = stack([stack([cast(g, np.float64) for g in probe.grads(seed)]) for seed in seeds])
    with jax.enable_x64(True):

        def whole(params: Any, grads: Any) -> Any:
            def body(carry: Any, gradient: Any) -> Any:
                _, state, new = probe.step(*carry, gradient)
                return (new, state), new

            return jax.lax.scan(body, (params, probe.transform().init(params)), grads)[1]

        found = numpy(probe.compile("float64", jax.vmap(whole), params, grads)(params, grads))
    for row, seed in enumerate(seeds):
        trajectory = jax.tree.map(lambda leaf, r=row: leaf[r], found)
        loop = stack([params for _, _, params in probe.run(probe.params(seed), probe.grads(seed))])
        yield from compare(f"vmap of a scan in float64 against a float32 loop, seed {seed}", loop, trajectory, 1e-4)
        if probe.case.reference is not None:
            wanted = probe.case.reference(probe.params(seed), probe.grads(seed), **probe.case.hyper)
            last = jax.tree.map(lambda leaf: leaf[-1], trajectory)
            yield from compare(f"reference, seed {seed}", last, wanted, REFERENCE)


def bfloat16(probe: TransformProbe) -> Findings:
    """bfloat16 parameters and gradients take about the steps of float32 ones, and stay finite."""
    round_trip = lambda tree: cast(cast(tree, jnp.bfloat16), np.float32)  # noqa: E731
    params, grads = round_trip(probe.params()), [round_trip(gradient) for gradient in probe.grads()]
    narrow = probe.run(params, grads, jnp.bfloat16)
    for count, (updates, state, _) in enumerate(narrow):
        yield from _finite(f"step {count}", (updates, state))
    wide = probe.run(params, grads[:1])
    yield from compare("the first step in bfloat16 against float32", narrow[0][0], wide[0][0], 2e-2)


def extreme(probe: TransformProbe) -> Findings:
    """Gradients that are huge, tiny, zero, or one of each, give finite steps, then and afterwards."""
    ordinary = probe.grads()[0]
    for scale in (1e4, 1e-4, 1e-20, 0.0):
        loud = jax.tree.map(lambda leaf, s=scale: np.full(leaf.shape, s), ordinary)
        for updates, state, _ in probe.run(probe.params(), [loud, ordinary]):
            yield from list(_finite(f"gradients of {scale:g}", (updates, state)))[:1]
    still = jax.tree.map(np.zeros_like, probe.params())
    for updates, state, _ in probe.run(still, [ordinary, ordinary]):
        yield from list(_finite("parameters of zero", (updates, state)))[:1]


def sharded(probe: TransformProbe) -> Findings:
    """Parameters sharded over eight devices take the steps of parameters on one."""
    wanted = probe.run(probe.params(), probe.grads())
    specs = {
        "dense": {"kernel": PartitionSpec("data"), "bias": PartitionSpec("data")},
        "conv": {"kernel": PartitionSpec(None, None, "data")},
    }
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh(), spec), specs)
    with jax.set_mesh(mesh()):
        params = jax.device_put(cast(probe.params(), np.float32), shardings)
        grads = [jax.device_put(cast(gradient, np.float32), shardings) for gradient in probe.grads()[:2]]

        def steps(params: Any, grads: Any) -> Any:
            state, found = probe.transform().init(params), []
            for gradient in grads:
                updates, state, params = probe.step(params, state, gradient)
                found.append(updates)
            return found

        came = numpy(probe.compile("sharded", steps, params, grads)(params, grads))
    for count, updates in enumerate(came):
        yield from compare(f"step {count} on eight devices against one", updates, wanted[count][0], 5e-6)


def composes(probe: TransformProbe) -> Findings:
    """`chain`, `masked`, `multi_transform` and `inject_hyperparams` change nothing that they should not."""
    params, grads = cast(probe.params(), np.float32), cast(probe.grads()[0], np.float32)
    wanted = probe.run(probe.params(), probe.grads()[:1])[0][0]
    # Where steps depend on each other, those of a part are not a part of those of the whole.
    chosen = {"dense": {"kernel": True, "bias": True}, "conv": {"kernel": probe.case.couples}}
    labels = jax.tree.map(lambda on: "on" if on else "off", chosen)
    plain = probe.transform()
    wrapped = {
        "chain": optax.chain(optax.identity(), plain, optax.identity()),
        "masked": optax.masked(plain, chosen),
        "multi_transform": optax.multi_transform({"on": plain, "off": optax.set_to_zero()}, labels),
    }
    if probe.case.injectable:
        static = tuple(name for name in probe.case.hyper if name not in probe.case.injectable)
        make = probe.case.call or probe.case.function
        wrapped["inject_hyperparams"] = optax.inject_hyperparams(make, static_args=static)(**probe.case.hyper)

    def all_of_them(params: Any, grads: Any) -> Any:
        return {name: t.update(grads, t.init(params), params)[0] for name, t in wrapped.items()}

    came = numpy(probe.compile("composes", all_of_them, params, grads)(params, grads))
    yield from compare("in a chain", came["chain"], wanted, EXACT)
    yield from compare("masked, where on", came["masked"]["dense"], wanted["dense"], EXACT)
    off = wanted if probe.case.couples else grads
    yield from compare("masked, where off", came["masked"]["conv"], off["conv"], EXACT)
    yield from compare("in multi_transform", came["multi_transform"]["dense"], wanted["dense"], EXACT)
    if "inject_hyperparams" in came:
        yield from compare("with injected hyperparameters", came["inject_hyperparams"], wanted, EXACT)


def layers(probe: TransformProbe) -> Findings:
    """A stack of layers takes the steps that its layers take one by one."""
    if not probe.case.layered:
        return
    rng = np.random.default_rng(9)
    params, grads = (
        {"kernel": rng.normal(size=(2, 16, 8)), "bias": rng.normal(size=(2, 8))} for _ in range(2)
    )  # fmt: skip
    # The first layer's gradient is orthogonal to its kernel, the second's is not: the layers must decide apart.
    overlap = np.sum(grads["kernel"][0] * params["kernel"][0], 0) / np.sum(params["kernel"][0] ** 2, 0)
    grads["kernel"][0] -= overlap * params["kernel"][0]
    grads["kernel"][1] += params["kernel"][1]
    params, grads = cast((params, grads), np.float32)

    def both(params: Any, grads: Any) -> Any:
        transform = probe.transform()

        def one(path: Callable[[Any], Any], params: Any, grads: Any) -> Any:
            tree = path(params)
            return transform.update(path(grads), transform.init(tree), tree)[0]

        stack = one(lambda tree: {"layers": tree}, params, grads)["layers"]
        singles = [
            one(lambda tree, i=i: {"layer": jax.tree.map(lambda leaf: leaf[i], tree)}, params, grads)["layer"]
            for i in range(2)
        ]
        return stack, jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)

    stack, singles = numpy(probe.compile("layers", both, params, grads)(params, grads))
    yield from compare("a stack against its layers", stack, singles, EXACT)


def errors(probe: TransformProbe) -> Findings:
    """Missing parameters, gradients of another structure and bad hyperparameters are refused by name."""
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), probe.params())

    def trace(grads: Any = params, given: Any = params, **hyper: Any) -> Callable[[], Any]:
        def run() -> Any:
            transform = probe.transform(**hyper)
            return jax.eval_shape(lambda g, p, i: transform.update(g, transform.init(i), p), grads, given, params)

        return run

    names = (probe.case.function.__name__,)
    for argument, values in probe.case.bad.items():
        numeric = any(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        for value in (*values, *((float("nan"), "one") if numeric else ())):
            yield from refused(f"{argument} = {value!r}", trace(**{argument: value}), names, (argument,))
    if probe.case.needs_params:
        yield from refused("without params", trace(given=None), names, ("params",))
        other = {**params, "conv": {"kernel": jax.ShapeDtypeStruct((3, 2, 9), jnp.float32)}}
        yield from refused("gradients of another shape", trace(grads=other), names, ("updates",))


CHECKS: Mapping[str, Callable[[TransformProbe], Iterator[str]]] = {
    "jit": jit,
    "eager": eager,
    "state": state,
    "vmap and float64": vmap_and_float64,
    "bfloat16": bfloat16,
    "extreme": extreme,
    "sharded": sharded,
    "composes": composes,
    "layers": layers,
    "errors": errors,
    "invariants": invariants,
}
