"""Where the arrays of a call lie, as far as it is known when the program is made, and what follows for its chunks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

T = TypeVar("T")

LOGITS_AT_ONCE = 2**25  # a device: 128 MiB in float32
NARROWEST = 1024  # columns of a chunk: with fewer, a matrix unit waits for the memory
LANES = 128  # columns that memory and matrix units take together


class Pieces(NamedTuple):
    """How the vocabulary is cut.

    Attributes:
      number: of equal pieces, of which a device has one or several as a whole.
      one_each: a device has one, and there are several.
      devices: that share the work, as far as is known.
    """

    number: int
    one_each: bool
    devices: int


def _explicit_shards(kernel: Any, axis: int) -> int | None:
    """Into how many shards an axis is cut, where the type of the array says so."""
    sharding = jax.typeof(kernel).sharding
    mesh = sharding.mesh
    if mesh.empty or AxisType.Explicit not in mesh.axis_types:
        return None
    if AxisType.Auto in mesh.axis_types:
        return None
    names = sharding.spec[axis]
    names = () if names is None else (names,) if isinstance(names, str) else names
    return math.prod(mesh.shape[name] for name in names)


def pieces(kernel: Any, axis: int, said: int | None) -> Pieces:
    """The pieces of the vocabulary, the axis `axis` of a kernel.

    Whatever the sharding is, it cuts the vocabulary into a number of shards that divides both it and the devices. Their
    greatest common divisor is always enough, if more than needed.
    """
    vocabulary = kernel.shape[axis]
    mesh = jax.sharding.get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    in_mesh = math.prod(size for size, kind in sizes if kind != AxisType.Manual)
    count = _explicit_shards(kernel, axis) if said is None else said
    if count is not None:
        return Pieces(count, count > 1, max(count, in_mesh))
    return Pieces(math.gcd(vocabulary, jax.device_count() if mesh.empty else in_mesh), False, in_mesh)


def columns(rows: int, length: int, pieces: Pieces, chunk: int | None) -> int:
    """Columns of a piece of `length` that are taken at a time: as many as may be held, in even parts."""
    if chunk is not None:
        return min(length, -(-chunk // pieces.number))
    most = max(LOGITS_AT_ONCE * pieces.devices // max(rows, 1), NARROWEST) // pieces.number
    if most >= length:
        return length
    even = -(-length // -(-length // max(most, 1)))
    return min(length, -(-even // LANES) * LANES) if even > LANES else even


def alike(tree: T) -> T:
    """All arrays varying over the same axes of a `shard_map`: gradients to what shards share are then summed."""
    axes = frozenset[str]().union(*(jax.typeof(leaf).mat.varying for leaf in jax.tree.leaves(tree)))

    def align(leaf: Array) -> Array:
        missing = tuple(sorted(axes - jax.typeof(leaf).mat.varying))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(align, tree)


def automatic(function: Callable[..., T], like: Any, out: Callable[[PartitionSpec], T]) -> Callable[..., T]:
    """The function with the compiler placing what is inside, also where a mesh has axes of type `Explicit`.

    Args:
      function: of arrays.
      like: an array with the sharding of the rows in its leading axes, and one axis more.
      out: the sharding of the output, from that of the rows.
    """
    sharding = jax.typeof(like).sharding
    explicit = tuple(
        name
        for name, kind in zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    if not explicit:
        return function
    rows = PartitionSpec(*sharding.spec[: like.ndim - 1])
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out(rows))
