"""What the benchmarks share: interleaved timing, the machine in words, results on screen and on file."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "optax", "numpy", "torch")


def interleaved(functions: Mapping[str, Callable[[], Any]], *, rounds: int = 15, warmup: int = 2) -> dict[str, float]:
    """Median wall-clock seconds of each function, called in turns.

    Turns let a disturbance of the machine fall on all of them, so that their ratios hold where their times do not.

    Args:
      functions: by name; each call must not return before its work is done.
      rounds: timed calls of each.
      warmup: calls of each that are not counted.

    Returns:
      The median by name.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """The machine as far as it matters for a ratio: processor, cores, accelerator, versions; nothing that names it."""
    described: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            package: importlib.metadata.version(package)
            for package in PACKAGES
            if importlib.util.find_spec(package) is not None
        },
    }
    import jax

    described["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    return described


def _processor() -> str:
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def save(name: str, results: Any) -> pathlib.Path:
    """Writes results and the description of the machine to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    return path
