"""The cost of `import reweight` over that of `import jax, optax`, in fresh interpreters. Goal: at most 1.2."""

import subprocess
import sys

from benchmarks import measure

GOAL = 1.2


def main() -> None:
    """Times the imports, prints a table and stores it."""

    def importing(what: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {what}"], check=True)

    seconds = measure.interleaved(
        {what: lambda what=what: importing(what) for what in ("jax, optax", "reweight")},  # type: ignore[misc]
        rounds=7,
        warmup=1,
    )
    ratio = seconds["reweight"] / seconds["jax, optax"]
    rows = [[f"import {what}", f"{value:.2f} s"] for what, value in seconds.items()]
    print(measure.table(("statement", "time"), [*rows, ["ratio", f"{ratio:.2f} (goal {GOAL})"]]))
    measure.save("import_time", {"seconds": seconds, "ratio": ratio, "goal": GOAL})


if __name__ == "__main__":
    main()
