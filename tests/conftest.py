"""Eight virtual CPU devices, a persistent compilation cache and one hypothesis profile for the whole suite."""

import itertools
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import pytest

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
