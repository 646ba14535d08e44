"""Device meshes from strings such as `data=4,model=2`."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from reweight import _checks

__all__ = ["make_mesh"]

ALLOWED = "axes as name=size, separated by commas, e.g. 'data=4,model=2' or 'data=-1,model=2'"


def _parse(spec: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier():
            _checks.fail("parallel.make_mesh", "spec", f"{spec!r}, where {part.strip()!r} is not name=size", ALLOWED)
        if name in sizes:
            _checks.fail("parallel.make_mesh", "spec", f"{spec!r}, which names the axis {name!r} twice", ALLOWED)
        try:
            sizes[name] = int(size)
        except ValueError:
            _checks.fail("parallel.make_mesh", "spec", f"{spec!r}, where {size!r} is not an integer", ALLOWED)
        if sizes[name] < 1 and sizes[name] != -1:
            came = f"{spec!r}, where {name!r} has size {size}"
            _checks.fail("parallel.make_mesh", "spec", came, "sizes in [1, inf), or -1 once")
    return sizes


def make_mesh(spec: str | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all hosts, its axes named and sized by a string.

        make_mesh()                   # one axis, data, over all devices
        make_mesh("data=4,model=2")   # 8 devices: 4 shards of the batch, parameters in 2
        make_mesh("data=-1,model=2")  # data takes what is left

    The order of the axes matters for speed alone: the devices of the last axis are the closest neighbours, so the axis
    with the most communication comes last. The axes are of type `Auto`: `jax.jit` places the collectives.

    Several TPU slices need an order of devices that only their user knows: make their mesh with
    `jax.experimental.mesh_utils.create_hybrid_device_mesh`. Everything in `parallel` takes any mesh.

    Args:
      spec: axes as `name=size`, separated by commas. One size may be -1: the devices left over by the others. Default:
        `data=-1`.
      devices: the devices to use, all of them. Default: those of all hosts, `jax.devices()`.

    Returns:
      A mesh whose sizes multiply to the number of devices.

    Raises:
      ValueError: if `spec` is not of this form, names an axis twice, gives a size that is no positive integer (or more
        than one -1), or its sizes do not multiply to the number of devices.
    """
    function = "parallel.make_mesh"
    sizes = _parse("data=-1" if spec is None else spec)
    chosen = jax.devices() if devices is None else list(devices)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        _checks.fail(function, "spec", f"{spec!r}, where {len(open_axes)} axes have size -1", "one -1 at most")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        if len(chosen) % known or not chosen:
            _checks.fail(
                function,
                "spec",
                f"{spec!r} for {len(chosen)} devices",
                f"sizes beside {open_axes[0]}=-1 whose product, here {known}, divides the number of devices",
            )
        sizes[open_axes[0]] = len(chosen) // known
    elif known != len(chosen):
        _checks.fail(
            function,
            "spec",
            f"{spec!r}, a mesh of {known}, for {len(chosen)} devices",
            "sizes that multiply to the number of devices, or a size of -1 for what is left",
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=chosen)
