"""Two processes of four devices give the numbers of one process, on eight devices and on one."""

import pathlib
import signal

import jax
import numpy as np
import pytest

from reweight import parallel
from tests.multihost import program
from tests.multihost.launch import free_port, launch, start

PROGRAM = pathlib.Path(program.__file__)
SPECS = ["data=8", "data=2,model=4", "model=2,data=4"]


@pytest.fixture(scope="module")
def one_device():
    return program.run(parallel.make_mesh("data=1", devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def preferences():
    return program.preferences(parallel.make_mesh("data=1", devices=jax.devices()[:1]))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_eight_devices_give_the_numbers_of_one(one_device):
    assert_same(program.run(parallel.make_mesh("data=8")), one_device)


def test_the_data_comes_in_the_order_of_the_seed_and_without_repetition(one_device):
    order = np.concatenate([value for name, value in one_device.items() if "order" in name])
    assert len(set(order)) == len(order) == program.STEPS * program.BATCH
    assert any(order != np.sort(order))


def test_two_processes_give_the_numbers_and_the_data_order_of_one(tmp_path, one_device, preferences):
    outputs = launch([PROGRAM, tmp_path, *SPECS], processes=2, devices=4, timeout=120)
    first, second = slice(0, 8), slice(8, 16)
    for process, (output, own) in enumerate(zip(outputs, (first, second), strict=True)):
        # In the first two meshes each process has rows of its own; in the last both hold all rows and half a model.
        assert f"data=8 {own} {own}\n" in output
        assert f"data=2,model=4 {own} {own}\n" in output
        assert f"model=2,data=4 {slice(0, 16)} {own}\n" in output
        assert f"process {process} of 2 sees {2 * len(SPECS) + 2} files" in output
        for spec in SPECS:
            assert_same(dict(np.load(tmp_path / f"{spec}.{process}.npz")), one_device)
        assert_same(dict(np.load(tmp_path / f"preferences.{process}.npz")), preferences)


def test_a_process_that_cannot_reach_its_coordinator_ends_instead_of_running_alone(tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(
        "from reweight import parallel\nprint('starts')\nparallel.initialize(timeout=1)\nprint('runs alone')\n"
    )
    variables = {"REWEIGHT_COORDINATOR": f"127.0.0.1:{free_port()}"}
    variables |= {"REWEIGHT_NUM_PROCESSES": "2", "REWEIGHT_PROCESS_ID": "1"}
    with start([script], processes=1, env=variables) as job:
        assert job.codes(timeout=60) != [0]
        assert "starts" in job.outputs()[0]
        assert "runs alone" not in job.outputs()[0]


def test_a_process_that_fails_takes_the_others_with_it_and_shows_what_it_said(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, time\n"
        "assert os.environ['REWEIGHT_PROCESS_ID'] == '0', 'planted'\n"
        "print('waits', flush=True); time.sleep(600)\n"
    )
    with pytest.raises(AssertionError, match="planted") as error:
        launch([script], processes=2, timeout=30)
    assert "exit codes [None, 1]" in str(error.value)


def test_a_job_can_be_watched_and_killed(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text("import time\nprint('started')\ntime.sleep(600)\n")
    with start([script], processes=2) as job:
        job.wait_for("started", timeout=30)
        job.kill(signal.SIGTERM, only=1)
        job.kill(signal.SIGKILL, only=0)
        assert job.codes(timeout=30) == [-signal.SIGKILL, -signal.SIGTERM]
        assert job.outputs() == ["started\n", "started\n"]


def test_a_job_that_hangs_is_an_error(tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(AssertionError, match=r"did not end within 0\.2 seconds"):
        launch([script], processes=1, timeout=0.2)
