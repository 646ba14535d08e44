"""Which device holds what: batches by rows, parameters by rules on their paths."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reweight import _checks

__all__ = ["batch_sharding", "replicated", "shard_batch", "tree_shardings"]

Rule = tuple[str, PartitionSpec]
Indivisible = Literal["error", "replicate"]


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes named by one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _check_axes(function: str, argument: str, names: Sequence[str], mesh: Mesh) -> None:
    for name in names:
        if name not in mesh.axis_names:
            _checks.fail(
                function,
                argument,
                f"the axis {name!r}",
                f"an axis of the mesh ({', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())}); "
                "an axis that is not to be used can be given the size 1",
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: str | Sequence[str] = "data") -> NamedSharding:
    """The sharding of arrays whose leading axis is the batch.

    Args:
      mesh: any mesh.
      axis: the mesh axis that cuts the batch, or several, the first of them in the largest pieces.

    Returns:
      A sharding for arrays of any rank but 0; what is not the leading axis is not cut.

    Raises:
      ValueError: if the mesh has no such axis.
    """
    names = _axes(axis)
    _check_axes("parallel.batch_sharding", "axis", names, mesh)
    return NamedSharding(mesh, PartitionSpec(names))


def shards_by_process(mesh: Mesh, axis: str | Sequence[str]) -> dict[int, tuple[int, ...]]:
    """For each process, which shards of a batch its devices hold: processes hold the same ones, or none in common."""
    sharding = batch_sharding(mesh, axis)
    shards = math.prod(mesh.shape[name] for name in _axes(axis))
    held: dict[int, set[int]] = {}
    indices: Mapping[Any, Any] = sharding.devices_indices_map((shards,))
    for device, (rows,) in indices.items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    different = {frozenset(rows) for rows in held.values()}
    if sum(map(len, different)) != shards or len({len(rows) for rows in different}) != 1:
        came = "one over which hosts hold partly the same rows of a batch"
        _checks.fail("parallel", "mesh", came, "hosts with the same rows, or with different ones of the same number")
    return {process: tuple(sorted(rows)) for process, rows in held.items()}


def shard_batch(batch: Any, mesh: Mesh, *, axis: str | Sequence[str] = "data") -> Any:
    """The global batch, sharded over the mesh, from the rows that this host has read.

    On one host these are all rows. On several, each host brings its own rows, those of `process_slice(n, mesh)`, and
    they become one global array without being copied between hosts.

    Args:
      batch: a tree of arrays with the same number of rows, on several hosts NumPy arrays.
      mesh: any mesh.
      axis: the mesh axis that cuts the batch, or several.

    Returns:
      The tree of global arrays, with `batch_sharding(mesh, axis)`.

    Raises:
      ValueError: if the mesh has no such axis, a leaf has no leading axis, two leaves differ in their number of rows,
        or the rows do not divide among the shards that this host holds; if the mesh has no device of this host, or
        hosts hold partly the same rows.
    """
    function = "parallel.shard_batch"
    sharding = batch_sharding(mesh, axis)
    held = len(shards_by_process(mesh, axis).get(jax.process_index(), ()))
    if not held:
        _checks.fail(function, "mesh", f"without a device of host {jax.process_index()}", "a mesh over all hosts")
    rows: int | None = None
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = f"batch{jax.tree_util.keystr(path)}"
        if np.ndim(leaf) < 1:
            _checks.fail(function, name, "a scalar", "an array whose leading axis is the batch")
        if rows is None:
            rows = np.shape(leaf)[0]
        if np.shape(leaf)[0] != rows:
            _checks.fail(function, name, f"of {np.shape(leaf)[0]} rows", f"the {rows} rows of the first leaf")
        if rows % held:
            _checks.fail(
                function,
                name,
                f"of {rows} rows for {held} shards on this host",
                f"a number of rows that is a multiple of {held}; pad the batch and mask the padding",
            )
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def _name(path: tuple[Any, ...]) -> str:
    # flax nnx wraps every parameter in a Variable, whose array is its attribute `value`.
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(tree: Any, rules: Sequence[Rule], mesh: Mesh, *, indivisible: Indivisible = "error") -> Any:
    r"""A sharding for every array of a tree, by the first rule that matches its path.

        rules = [
            (r"embedding", P("model", None)),
            (r"attention/.*/kernel", P(None, "model")),
            (r"mlp/(up|gate)/kernel", P(None, "model")),
            (r"mlp/down/kernel", P("model", None)),
        ]
        state = jax.eval_shape(make_state)
        shardings = tree_shardings(state, rules, mesh)
        state = jax.jit(make_state, out_shardings=shardings)()

    The path of an array is the names that lead to it, joined by `/`: `encoder/3/mlp/up/kernel`. A rule is a regular
    expression that must match the end of the path, in whole names: `kernel` matches this path, `up/kernel` and
    `encoder/.*` do, `nel` and `mlp` do not. So one list of rules serves a whole training state: Adam's moments have the
    paths of their parameters behind a prefix (`opt_state/0/mu/encoder/3/mlp/up/kernel`) and get the same shardings.
    What no rule matches is replicated, and so is a scalar, such as a step count.

    Statistics of another shape than their parameter (the factors of Adafactor) need a rule of their own before the
    parameter's, e.g. `(r"v_row/.*", P())`.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s in any containers: dicts, flax nnx states, optax states.
      rules: pairs of a regular expression and a `PartitionSpec`. The first that matches counts.
      mesh: any mesh.
      indivisible: what happens where a dimension is not a multiple of the shards that its rule wants: `"error"`, or
        `"replicate"`, which leaves this dimension of this array whole.

    Returns:
      The tree with a `NamedSharding` in the place of every array.

    Raises:
      ValueError: if a rule is no such pair or no regular expression, names an axis that the mesh has not, or names one
        twice; if a matching rule has more entries than the array has dimensions; if a dimension does not divide and
        `indivisible` is `"error"`.
    """
    function = "parallel.tree_shardings"
    _checks.choice(function, "indivisible", indivisible, get_args(Indivisible))
    compiled: list[tuple[re.Pattern[str], str, PartitionSpec]] = []
    for i, rule in enumerate(rules):
        if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], PartitionSpec)):
            _checks.fail(function, f"rules[{i}]", repr(rule), "a pair (regular expression, PartitionSpec)")
        pattern, spec = rule
        names = [name for entry in spec for name in _axes(entry)]
        _check_axes(function, f"rules[{i}], {pattern!r},", names, mesh)
        if len(set(names)) != len(names):
            _checks.fail(function, f"rules[{i}], {pattern!r},", repr(spec), "each axis of the mesh once")
        try:
            compiled.append((re.compile(f"(?:.*/)?(?:{pattern})"), pattern, spec))
        except re.error as error:
            _checks.fail(function, f"rules[{i}]", f"{pattern!r} ({error})", "a regular expression")

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name, shape = _name(path), jnp.shape(leaf)
        matching = next(((pattern, spec) for regex, pattern, spec in compiled if regex.fullmatch(name)), None)
        if matching is None or not shape:
            return replicated(mesh)
        pattern, spec = matching
        if len(spec) > len(shape):
            _checks.fail(
                function,
                "rules",
                f"{spec} by {pattern!r} for {name!r} of shape {shape}",
                "at most one entry for each dimension; an earlier rule can make an exception of this array",
            )
        entries: list[Any] = []
        for dimension, (size, entry) in enumerate(zip(shape, spec, strict=False)):
            shards = math.prod(mesh.shape[axis] for axis in _axes(entry))
            if size % shards and indivisible == "error":
                _checks.fail(
                    function,
                    "rules",
                    f"{spec} by {pattern!r} for {name!r} of shape {shape}, whose dimension {dimension} does not divide "
                    f"into {shards}",
                    'multiples of the number of shards, or indivisible="replicate"',
                )
            entries.append(None if size % shards else entry)
        return NamedSharding(mesh, PartitionSpec(*entries))

    return jax.tree_util.tree_map_with_path(place, tree)
