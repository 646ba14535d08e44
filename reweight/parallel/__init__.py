r"""Devices and hosts: meshes, sharded batches and parameters, batch functions inside `shard_map`, multi-host start.

Under `jax.jit` with sharded arrays the whole library is global as it stands, and a training program needs four lines
more than on one device. They are the same lines on a laptop, on eight GPUs and on a pod:

    parallel.initialize()                                   # several hosts: find each other; one: nothing to do
    mesh = parallel.make_mesh("data=-1,model=2")
    shardings = parallel.tree_shardings(state, [(r"dense\d+/kernel", P(None, "model"))], mesh)
    state = jax.jit(make_state, out_shardings=shardings)()
    rows = parallel.process_slice(batch_size, mesh)         # of every global batch, the rows that this host reads
    batch = parallel.shard_batch({"image": images[rows], "label": labels[rows]}, mesh)

Inside `shard_map` or `pmap`, where a function sees its shard only, `over_axis` makes it see the global batch.
"""

from reweight.parallel.axis import over_axis, over_axis_weighting
from reweight.parallel.hosts import barrier, initialize, is_main_process, process_slice
from reweight.parallel.mesh import make_mesh
from reweight.parallel.sharding import batch_sharding, replicated, shard_batch, tree_shardings

__all__ = [
    "barrier",
    "batch_sharding",
    "initialize",
    "is_main_process",
    "make_mesh",
    "over_axis",
    "over_axis_weighting",
    "process_slice",
    "replicated",
    "shard_batch",
    "tree_shardings",
]
