"""Runs that are killed and started again end like a run that was not."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
STEPS = 80


def start(directory):
    env = os.environ | {
        "PYTHONPATH": f"{HERE.parent.parent}",
        "JAX_COMPILATION_CACHE_DIR": f"{HERE.parent.parent / '.cache' / 'jax'}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "XLA_FLAGS": "",
    }
    command = [sys.executable, f"{HERE / 'train_job.py'}", f"{directory}", f"{STEPS}"]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def finish(directory):
    process = start(directory)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    with np.load(directory / "end.npz") as end:
        return (directory / "metrics.jsonl").read_bytes(), {name: x.tobytes() for name, x in end.items()}


def lines(directory):
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def writing(directory):
    return any("tmp" in path.name for path in (directory / "checkpoints").glob("*"))


def wait_for(process, reached):
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("undisturbed"))


def test_the_metrics_of_an_undisturbed_run_have_every_step_once(undisturbed):
    records = [json.loads(line) for line in undisturbed[0].splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert all(("eval/loss" in record) == (record["step"] % 2 == 0) for record in records)


@pytest.mark.slow
def test_a_run_killed_at_any_point_ends_with_the_same_bits(undisturbed, tmp_path):
    points = [
        (lambda: writing(tmp_path), 0),  # the very first checkpoint
        (lambda: lines(tmp_path) >= 3, random.random() * 0.02),
        (lambda: lines(tmp_path) >= 20 and writing(tmp_path), 0),
        (lambda: lines(tmp_path) >= 45, random.random() * 0.02),
    ]
    for reached, later in points:
        process = start(tmp_path)
        wait_for(process, reached)
        time.sleep(later)
        process.kill()
        process.communicate()
    assert finish(tmp_path) == undisturbed


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for(process, lambda: lines(tmp_path) >= 10)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    stopped = max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert 10 <= stopped == lines(tmp_path) < STEPS
    assert finish(tmp_path) == undisturbed
