"""For the whole suite: eight virtual CPU devices, quick compiles, a persistent cache of them, one hypothesis profile.

The suite compiles thousands of small programs and runs each a few times: programs that are compiled fast and run a
little slower halve its time.
"""

import itertools
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import pytest

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)


def add_flags(*flags):
    """Adds to what XLA reads when the first array is made."""
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def understood(flags):
    """Whether this version of XLA knows the flags: a process with an unknown one is stopped."""
    starts = [sys.executable, "-c", "import jax; jax.devices()"]
    env = os.environ | {"XLA_FLAGS": " ".join(flags)}
    return subprocess.run(starts, env=env, capture_output=True, check=False).returncode == 0


if EIGHT_DEVICES not in os.environ.get("XLA_FLAGS", ""):  # workers inherit it
    add_flags(EIGHT_DEVICES, *(QUICK if understood(QUICK) else ()))

CACHE = pathlib.Path(__file__).parent.parent / ".cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
os.environ.setdefault("REWEIGHT_CACHE", str(CACHE / "data"))

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("suite")


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 20_000  # of 65 530, with which Linux stops a process
tests_run = itertools.count(1)


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Every compiled program holds memory maps: those of earlier tests go before a worker has too many."""
    yield
    if next(tests_run) % 50 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """float64 for the duration of a test."""
    with jax.enable_x64(True):
        yield
