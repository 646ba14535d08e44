"""What decides whether a program runs on several hosts. How it runs on them is tested in tests/multihost."""

import jax
import pytest

from reweight import parallel
from reweight.parallel import hosts

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
CLUSTERS = {
    "a SLURM step of 2 tasks": SLURM,
    "an Open MPI job of 3 processes": {"OMPI_COMM_WORLD_SIZE": "3"},
    "an indexed job of Kubernetes": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
    "a TPU pod": {"TPU_WORKER_HOSTNAMES": "host-0,host-1"},
}
ALONE = {
    "nothing": {},
    "a SLURM step of one task": SLURM | {"SLURM_NTASKS": "1"},
    "the script of a SLURM batch job": {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"},
    "mpirun of one process": {"OMPI_COMM_WORLD_SIZE": "1"},
    "a pod of Kubernetes outside of an indexed job": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    "a TPU host": {"TPU_WORKER_HOSTNAMES": "localhost"},
}


class Start:
    """Stands for `jax.distributed.initialize`, which needs a process of its own."""

    def __init__(self):
        self.calls = []
        self.error = None

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if self.error is not None:
            raise self.error


@pytest.fixture
def started(monkeypatch):
    for variables in CLUSTERS.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)
    for name in (hosts.COORDINATOR, hosts.NUM_PROCESSES, hosts.PROCESS_ID, "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    start = Start()
    monkeypatch.setattr(jax.distributed, "initialize", start)
    return start


def set_env(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("where", ALONE)
def test_on_one_host_there_is_nothing_to_do(started, monkeypatch, where):
    set_env(monkeypatch, ALONE[where])
    parallel.initialize()
    parallel.initialize()
    assert started.calls == []


@pytest.mark.parametrize("where", CLUSTERS)
def test_a_cluster_is_left_to_jax(started, monkeypatch, where):
    set_env(monkeypatch, CLUSTERS[where])
    parallel.initialize(timeout=20)
    assert started.calls == [((), {"initialization_timeout": 20})]


@pytest.mark.parametrize("where", CLUSTERS)
def test_a_cluster_that_cannot_be_connected_is_an_error_not_one_host(started, monkeypatch, where):
    set_env(monkeypatch, CLUSTERS[where])
    started.error = ValueError("coordinator_address should be defined.")
    with pytest.raises(RuntimeError, match=where) as error:
        parallel.initialize()
    assert "coordinator_address should be defined" in str(error.value)
    assert "num_processes=1" in str(error.value)


@pytest.mark.parametrize("where", CLUSTERS)
def test_one_process_said_in_so_many_words_is_on_its_own_in_any_cluster(started, monkeypatch, where):
    set_env(monkeypatch, CLUSTERS[where])
    parallel.initialize(num_processes=1)
    monkeypatch.setenv(hosts.NUM_PROCESSES, "1")
    parallel.initialize()
    assert started.calls == []


def test_arguments_come_before_variables_and_variables_before_the_cluster(started, monkeypatch):
    def called_with():
        (args, kwargs) = started.calls.pop()
        assert kwargs == {"cluster_detection_method": "deactivate", "initialization_timeout": 300}
        return args

    set_env(monkeypatch, SLURM)
    set_env(monkeypatch, {hosts.COORDINATOR: "a:1", hosts.NUM_PROCESSES: "4", hosts.PROCESS_ID: "3"})
    parallel.initialize()
    assert called_with() == ("a:1", 4, 3)
    parallel.initialize("b:2", 3, 0)
    assert called_with() == ("b:2", 3, 0)


def test_a_tpu_without_a_pod_is_one_host_but_trouble_with_a_pod_is_an_error(started, monkeypatch):
    monkeypatch.setattr(hosts, "_has_tpu", lambda: True)
    started.error = ValueError("coordinator_address should be defined.")
    parallel.initialize()
    assert len(started.calls) == 1
    for error in (RuntimeError("no answer"), ValueError("something else")):
        started.error = error
        with pytest.raises(type(error), match=str(error)):
            parallel.initialize()


def test_this_machine_without_a_tpu_has_none():
    assert not hosts._has_tpu()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"coordinator_address": "a:1"}, "argument `num_processes` is missing"),
        ({"num_processes": 2}, "argument `coordinator_address` is missing"),
        ({"coordinator_address": "a:1", "num_processes": 2}, "argument `process_id` is missing"),
        (
            {"coordinator_address": "a", "num_processes": 2, "process_id": 0},
            "`coordinator_address` is 'a'; allowed: host",
        ),
        ({"coordinator_address": ":1", "num_processes": 2, "process_id": 0}, "`coordinator_address` is ':1'"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "`process_id` is 2; allowed"),
        ({"coordinator_address": "a:1", "num_processes": 0, "process_id": 0}, "`num_processes` is 0; allowed"),
        ({"coordinator_address": "a:1", "num_processes": 2.0, "process_id": 0}, "`num_processes` is 2.0"),
    ],
)
def test_what_is_missing_or_out_of_range_is_named(started, given, says):
    with pytest.raises(ValueError, match=r"parallel\.initialize") as error:
        parallel.initialize(**given)
    assert says in str(error.value)
    assert started.calls == []


def test_a_variable_that_is_no_integer_is_named(started, monkeypatch):
    set_env(monkeypatch, {hosts.COORDINATOR: "a:1", hosts.NUM_PROCESSES: "two", hosts.PROCESS_ID: "0"})
    with pytest.raises(ValueError, match="argument `REWEIGHT_NUM_PROCESSES` is 'two'"):
        parallel.initialize()


def test_a_second_call_does_nothing_but_must_not_contradict_the_first(started, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    parallel.initialize()
    parallel.initialize("a:1", 1, 0)
    with pytest.raises(ValueError, match="`num_processes` is 2, after 1 have been connected"):
        parallel.initialize("a:1", 2, 0)
    assert started.calls == []


def test_after_the_first_use_of_a_device_it_is_too_late():
    jax.devices()
    with pytest.raises(RuntimeError, match="must be called before"):
        parallel.initialize("127.0.0.1:1", 2, 0, timeout=1)


def test_one_host_reads_all_rows_is_the_main_process_and_waits_for_nobody():
    assert parallel.process_slice(24) == slice(0, 24)
    assert parallel.process_slice(24, parallel.make_mesh("data=4,model=2")) == slice(0, 24)
    assert parallel.is_main_process()
    parallel.barrier("alone")


def test_rows_that_do_not_divide_are_named():
    mesh = parallel.make_mesh("data=4,model=2")
    with pytest.raises(ValueError, match=r"process_slice: argument `n` is 6 for 4 shards; allowed: a multiple of 4"):
        parallel.process_slice(6, mesh)
    with pytest.raises(ValueError, match="argument `n` is 0"):
        parallel.process_slice(0)
    with pytest.raises(ValueError, match="the axis 'rows'"):
        parallel.process_slice(8, mesh, axis="rows")


def grid(processes):
    """Stands for the sharding of a batch over devices of several processes: (shard, process) of every device."""

    class Device:
        def __init__(self, process):
            self.process_index = process

    class Sharding:
        def devices_indices_map(self, shape):
            return {Device(process): (slice(i, i + 1),) for i, process in processes}

    return Sharding()


@pytest.mark.parametrize(
    ("held", "slices"),
    [
        ([0, 0, 1, 1], [slice(0, 4), slice(4, 8)]),
        ([1, 1, 0, 0], [slice(4, 8), slice(0, 4)]),
        ([0, 1, 0, 1], [slice(0, 4), slice(4, 8)]),  # a torus may be walked so that the hosts alternate
    ],
)
def test_each_host_has_a_slice_of_its_own_however_the_devices_are_ordered(monkeypatch, held, slices):
    mesh = parallel.make_mesh("data=4,model=2")
    sharding = grid(list(enumerate(held)))
    monkeypatch.setattr("reweight.parallel.sharding.batch_sharding", lambda mesh, axis: sharding)
    for process, expected in enumerate(slices):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert parallel.process_slice(8, mesh) == expected


def test_hosts_that_hold_partly_the_same_rows_are_refused(monkeypatch):
    mesh = parallel.make_mesh("data=4,model=2")
    sharding = grid([(0, 0), (1, 0), (1, 1), (2, 1), (3, 2), (0, 2)])
    monkeypatch.setattr("reweight.parallel.sharding.batch_sharding", lambda mesh, axis: sharding)
    with pytest.raises(ValueError, match="hosts hold partly the same rows"):
        parallel.process_slice(8, mesh)
