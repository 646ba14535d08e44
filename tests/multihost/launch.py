"""Starts a program as several processes on this machine that find each other, each with its own virtual CPU devices.

    outputs = launch([program, "--steps", "3"], processes=2, devices=4)

or, to do something to the processes in between,

    with start([program], processes=2, devices=4) as job:
        job.wait_for("step 3")
        job.kill(signal.SIGKILL)

The program is started in the root of the repository and calls `parallel.initialize()`. Nothing outlives the test: on a
failure or a timeout of any process all are killed, and the error shows what each of them has printed.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

__all__ = ["Job", "free_port", "launch", "start"]

ROOT = pathlib.Path(__file__).parent.parent.parent
CLUSTER = ("REWEIGHT_COORDINATOR", "REWEIGHT_NUM_PROCESSES", "REWEIGHT_PROCESS_ID", "SLURM_", "OMPI_", "TPU_")


class Job:
    """Running processes; `outputs()` is what each has printed so far, standard output and errors together."""

    def __init__(self, processes: list[subprocess.Popen], logs: list[pathlib.Path]) -> None:
        self.processes = processes
        self.logs = logs

    def outputs(self) -> list[str]:
        return [log.read_text(errors="replace") for log in self.logs]

    def kill(self, sig: int = signal.SIGKILL, only: int | None = None) -> None:
        """Sends a signal to all processes, or to one of them."""
        for i, process in enumerate(self.processes):
            if process.poll() is None and only in (None, i):
                process.send_signal(sig)

    def codes(self, timeout: float) -> list[int]:
        """Waits for all to end, however they end; their exit codes."""
        self._until(lambda: all(process.poll() is not None for process in self.processes), timeout, "end")
        return [process.returncode for process in self.processes]

    def wait(self, timeout: float) -> list[str]:
        """Waits for all to end well; their outputs. The first that fails ends the wait."""

        def over() -> bool:
            codes = [process.poll() for process in self.processes]
            if any(code not in (None, 0) for code in codes):
                self._fail(f"exit codes {codes}")
            return None not in codes

        self._until(over, timeout, "end")
        return self.outputs()

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Waits until every process has printed `text`."""

        def printed() -> bool:
            if all(text in output for output in self.outputs()):
                return True
            if any(process.poll() is not None for process in self.processes):
                self._fail(f"a process ended before it printed {text!r}")
            return False

        self._until(printed, timeout, f"print {text!r}")

    def _until(self, condition, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                self._fail(f"did not {what} within {timeout} seconds")
            time.sleep(0.02)

    def _fail(self, what: str) -> None:
        self.kill()
        shown = "".join(f"\n--- process {i}\n{output[-8000:]}" for i, output in enumerate(self.outputs()))
        raise AssertionError(f"{what}{shown}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def start(
    command: Sequence[str | os.PathLike],
    *,
    processes: int = 2,
    devices: int = 4,
    env: dict[str, str] | None = None,
) -> Iterator[Job]:
    """Runs `python *command` as `processes` processes of `devices` devices each, and kills what is left at the end.

    With one process nothing of a cluster is in its environment. `command` may be `["-m", module, ...]`.
    """
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running, logs = [], []
        for i in range(processes):
            variables = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTER)}
            variables |= {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
            }
            if processes > 1:
                variables |= {
                    "REWEIGHT_COORDINATOR": address,
                    "REWEIGHT_NUM_PROCESSES": str(processes),
                    "REWEIGHT_PROCESS_ID": str(i),
                }
            logs.append(pathlib.Path(folder) / f"{i}.log")
            log = stack.enter_context(logs[-1].open("w"))
            arguments = [sys.executable, *map(str, command)]
            process = subprocess.Popen(
                arguments, cwd=ROOT, env=variables | (env or {}), stdout=log, stderr=subprocess.STDOUT
            )
            running.append(process)
        job = Job(running, logs)
        try:
            yield job
        finally:
            job.kill()
            for process in running:
                process.wait()


def launch(
    command: Sequence[str | os.PathLike],
    *,
    processes: int = 2,
    devices: int = 4,
    env: dict[str, str] | None = None,
    timeout: float = 60,
) -> list[str]:
    """Runs a program as `start` does until all processes have ended well; what each has printed."""
    with start(command, processes=processes, devices=devices, env=env) as job:
        return job.wait(timeout)
