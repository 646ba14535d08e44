"""Several hosts: how they find each other, and which part of the data each of them reads."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from reweight import _checks
from reweight.parallel.sharding import shards_by_process

__all__ = ["barrier", "initialize", "is_main_process", "process_slice"]

COORDINATOR = "REWEIGHT_COORDINATOR"
NUM_PROCESSES = "REWEIGHT_NUM_PROCESSES"
PROCESS_ID = "REWEIGHT_PROCESS_ID"
SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
GIVEN = f"all of coordinator_address, num_processes and process_id (or {COORDINATOR}, {NUM_PROCESSES}, {PROCESS_ID})"


def _integer_from(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        _checks.fail("parallel.initialize", variable, repr(text), "an integer")


def _cluster() -> str | None:
    """What started this process as one of several, told from its environment; None if nothing did."""
    environ = os.environ
    if all(name in environ for name in SLURM_STEP) and int(environ["SLURM_NTASKS"]) > 1:
        return f"a SLURM step of {environ['SLURM_NTASKS']} tasks"
    if int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return f"an Open MPI job of {environ['OMPI_COMM_WORLD_SIZE']} processes"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "an indexed job of Kubernetes"
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return f"a TPU pod ({len(hosts)} hosts in this slice)"
    return None


def _has_tpu() -> bool:
    if "tpu" not in (os.environ.get("JAX_PLATFORMS") or "tpu").split(","):
        return False
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Makes the processes of a multi-host program find each other. On a single host it does nothing.

    Call it once, first thing in the program, before anything asks JAX for a device. Then `jax.devices()` are those of
    all hosts, and every host runs the same program. A second call does nothing.

    The first of these that applies decides:

    1. The arguments. `num_processes=1` alone says that this process is on its own, whatever the environment says (for
       the independent runs of a sweep inside one SLURM or Kubernetes job).
    2. The environment variables `REWEIGHT_COORDINATOR` (`host:port` of process 0), `REWEIGHT_NUM_PROCESSES` and
       `REWEIGHT_PROCESS_ID`, with the meaning of the arguments.
    3. The cluster, as `jax.distributed.initialize` detects it: a TPU pod, a SLURM step of several tasks, `mpirun` of
       Open MPI, an indexed job of Kubernetes (with the package `kubernetes`).
    4. Otherwise the program runs on one host.

    Signs of several processes that can't be connected are an error, never a run on one host. A process that does not
    reach the coordinator in time is ended by JAX.

        gcloud compute tpus tpu-vm ssh POD --worker=all --command="python train.py"           # a TPU pod
        srun --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 python train.py                  # SLURM: a task a GPU
        mpirun -n 4 python train.py                                                           # Open MPI
        REWEIGHT_COORDINATOR=10.0.0.1:1234 REWEIGHT_NUM_PROCESSES=2 REWEIGHT_PROCESS_ID=0 python train.py

    With SLURM and Open MPI JAX gives every process the one GPU of its local rank: start one task a GPU. A process that
    was given its address sees all GPUs of its machine, or those in `JAX_LOCAL_DEVICE_IDS`.

    Args:
      coordinator_address: `host:port` of process 0; the port must be free there and reachable from all hosts.
      num_processes: how many processes there are.
      process_id: which of them this is, in [0, num_processes).
      timeout: seconds to wait for the others.

    Raises:
      ValueError: if some of the three are given but not all, or one is out of its range; if a second call asks for
        another number of processes than the first has connected.
      RuntimeError: if the environment tells of several processes and they can't be connected; if JAX has used its
        devices already.
    """
    function = "parallel.initialize"
    if coordinator_address is None and num_processes is None and process_id is None:
        coordinator_address = os.environ.get(COORDINATOR)
        num_processes, process_id = _integer_from(NUM_PROCESSES), _integer_from(PROCESS_ID)
    given = [argument is not None for argument in (coordinator_address, num_processes, process_id)]
    if num_processes is not None:
        _checks.number(function, "num_processes", num_processes, low=1, integer=True)
    if jax.distributed.is_initialized():
        if num_processes is not None and num_processes != jax.process_count():
            came = f"{num_processes}, after {jax.process_count()} have been connected"
            _checks.fail(function, "num_processes", came, "the same as in the first call")
        return
    if num_processes == 1:
        return
    if any(given):
        for name, here in zip(("coordinator_address", "num_processes", "process_id"), given, strict=True):
            if not here:
                _checks.fail(function, name, "missing", GIVEN)
        assert coordinator_address is not None
        assert num_processes is not None
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdigit():
            _checks.fail(function, "coordinator_address", repr(coordinator_address), "host:port")
        _checks.number(function, "process_id", process_id, low=0, high=num_processes - 1, integer=True)
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
        )
        return
    cluster = _cluster()
    if cluster is not None:
        try:
            jax.distributed.initialize(initialization_timeout=timeout)
        except Exception as error:
            raise RuntimeError(
                f"{function}: this process belongs to {cluster}, but JAX could not connect it to the others: {error} "
                f"Give {GIVEN}, or num_processes=1 if it is to run on its own."
            ) from error
    elif _has_tpu():
        # Whether a TPU is part of a pod stands in the metadata of its virtual machine, which JAX asks. Where there is
        # no pod JAX knows of no address to connect to.
        try:
            jax.distributed.initialize(initialization_timeout=timeout)
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise


def is_main_process() -> bool:
    """Whether this is process 0, the one that writes logs and results."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name; on a single host it does nothing.

    Args:
      name: which barrier; processes that wait at different ones raise an error instead of waiting for ever.
    """
    # Imported late: it costs every `import reweight` what only programs on several hosts need.
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def process_slice(n: int, mesh: Mesh | None = None, *, axis: str | Sequence[str] = "data") -> slice:
    """Of the `n` rows of a global batch, those that this host reads and gives to `shard_batch`.

    The order of the data is decided globally, from the seed, and then every host takes its rows of every batch. So the
    same seed gives the same batches on any number of hosts:

        order = np.random.default_rng(seed).permutation(len(images))
        for batch in order[: len(order) // n * n].reshape(-1, n):
            rows = batch[process_slice(n, mesh)]
            batch = shard_batch({"image": images[rows], "label": labels[rows]}, mesh)

    Hosts that hold the same rows (because they share a copy of the model) read the same slice. Where the devices of
    hosts alternate along the mesh axis, the rows of a batch stand in another order in the global array, in all its
    arrays alike.

    Args:
      n: rows of the global batch, a multiple of the number of shards (without a mesh: of the number of hosts).
      mesh: the mesh over which the batch is sharded. Default: one data axis over all devices.
      axis: the mesh axis that cuts the batch, or several.

    Returns:
      A slice of `range(n)`. The slices of all hosts cover it.

    Raises:
      ValueError: if `n` does not divide, or the mesh has no such axis, no device of this host, or hosts that hold
        partly the same rows.
    """
    function = "parallel.process_slice"
    _checks.number(function, "n", n, low=1, integer=True)
    if mesh is None:
        parts, mine = jax.process_count(), jax.process_index()
    else:
        held = shards_by_process(mesh, axis)
        shards = sum(len(rows) for rows in set(held.values()))
        if n % shards:
            _checks.fail(function, "n", f"{n} for {shards} shards", f"a multiple of {shards}")
        if jax.process_index() not in held:
            _checks.fail(function, "mesh", f"without a device of host {jax.process_index()}", "a mesh over all hosts")
        blocks = sorted(set(held.values()))
        parts, mine = len(blocks), blocks.index(held[jax.process_index()])
    if n % parts:
        _checks.fail(function, "n", f"{n} for {parts} hosts", f"a multiple of {parts}")
    size = n // parts
    return slice(mine * size, (mine + 1) * size)
