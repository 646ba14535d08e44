"""Runs the benchmarks that are named on the command line, or all."""

import argparse

from benchmarks import import_time, many_classes, optimizers, token_statistics

BENCHMARKS = {
    "import_time": import_time.main,
    "many_classes": many_classes.main,
    "optimizers": optimizers.main,
    "token_statistics": token_statistics.main,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help=f"any of {', '.join(BENCHMARKS)}")
    for name in parser.parse_args().names or BENCHMARKS:
        print(f"== {name}", flush=True)
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
