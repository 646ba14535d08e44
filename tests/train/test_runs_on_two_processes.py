"""A run on two processes of four devices is the run on one device, through a SIGTERM to one of them and back."""

import json
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest

from tests.multihost.launch import ROOT, launch, start

JOB = pathlib.Path(__file__).parent / "train_job.py"
ENV = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
STEPS = 24


def lines(directory):
    path = directory / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def assert_same_run(directory, reference):
    with np.load(directory / "end.npz") as end, np.load(reference / "end.npz") as other:
        assert end.keys() == other.keys()
        for name in end:
            np.testing.assert_allclose(end[name], other[name], rtol=2e-3, atol=1e-4)
    records, expected = ([json.loads(line) for line in lines(path)] for path in (directory, reference))
    assert [list(record) for record in records] == [list(record) for record in expected]
    for record, other in zip(records, expected, strict=True):
        np.testing.assert_allclose([*record.values()], [*other.values()], rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_run_of_one_through_a_preemption(tmp_path):
    alone, pair, back = tmp_path / "alone", tmp_path / "pair", tmp_path / "back"
    launch([JOB, alone, STEPS], processes=1, devices=1, env=ENV, timeout=120)

    with start([JOB, pair, STEPS, "data=8"], processes=2, devices=4, env=ENV) as job:
        deadline = time.monotonic() + 120
        while len(lines(pair)) < 5:
            assert time.monotonic() < deadline, job.outputs()
            assert all(process.poll() is None for process in job.processes), job.outputs()
            time.sleep(0.005)
        job.kill(signal.SIGTERM, only=1)
        job.wait(timeout=60)
    stopped = max(int(path.name) for path in (pair / "checkpoints").glob("[0-9]*"))
    assert 5 <= stopped == len(lines(pair)) < STEPS

    shutil.copytree(pair, back)
    launch([JOB, back, STEPS, "data=8"], processes=1, devices=8, env=ENV, timeout=120)
    assert_same_run(back, alone)
    launch([JOB, pair, STEPS, "data=8"], processes=2, devices=4, env=ENV, timeout=120)
    assert_same_run(pair, alone)
