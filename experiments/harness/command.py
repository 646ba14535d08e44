"""From the command line to the folder of a run: parse, run under a progress bar, print, save."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from experiments.harness import config as configs
from experiments.harness import figures, folder
from experiments.harness.results import Results
from reweight import parallel

__all__ = ["Context", "main"]

C = TypeVar("C", bound=configs.Config)


@dataclasses.dataclass(frozen=True)
class Context:
    """Where a run writes and who watches it. The default writes nothing and shows nothing.

    Attributes:
      path: the folder of the run: metrics and checkpoints go there, and what stands there is gone on with.
      tick: told after each piece of work what it belonged to and how many units it was.
      console: where the progress bar is shown.
    """

    path: pathlib.Path | None = None
    tick: Callable[[str, int], None] = lambda description, units: None
    console: Console | None = None

    @contextlib.contextmanager
    def bar(self, units: int) -> Iterator["Context"]:
        """Inside the `with`, a context whose `tick` moves a progress bar of that many units."""
        if self.console is None:
            yield self
            return
        columns = (TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("compiling", total=units)

            def tick(description: str, units: int) -> None:
                progress.update(task, advance=units, description=description)

            yield dataclasses.replace(self, tick=tick)


def main(
    experiment: str,
    *,
    config: type[C],
    run: Callable[[C, Context], Results],
    draw: Callable[[Results], Figure],
    argv: Sequence[str] | None = None,
) -> Results:
    """The command `python -m experiments.<experiment>`.

    Args:
      experiment: the name of the module.
      config: the class of its config; the module's docstring is what `--help` says.
      run: from a config to results.
      draw: from results to the figure.
      argv: the words of the command line. Default: those of the process.

    Returns:
      The results. They stand in `<out>/<experiment>/<stamp>/`, and in the `--store` folder if one is named.

    Raises:
      SystemExit: with code 2 and one line that says what is wrong, if an option is.
    """
    description = sys.modules[config.__module__].__doc__ or ""
    try:
        chosen, options, path = configs.parse(experiment, config, description, argv)
    except ValueError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from error
    parallel.initialize()
    # A file or a pipe has no width of its own, and the tables are wider than the 80 columns that rich assumes there.
    width = None if sys.stdout.isatty() else 160
    console = Console(highlight=False, width=width, quiet=not parallel.is_main_process())
    start = time.perf_counter()
    if path is None:
        path = folder.create(options.out, experiment, chosen)
    results = run(chosen, Context(path, console=console))
    if parallel.is_main_process():
        results.save(path)
        figures.save(draw(results), path / f"{experiment}.png")
        if options.store is not None:
            options.store.mkdir(parents=True, exist_ok=True)
            folder.write_json(options.store / f"{experiment}.json", results.as_dict())
            figures.save(draw(results), options.store / f"{experiment}.png")
    results.print(console)
    console.print(f"\n{time.perf_counter() - start:.0f} s; everything is in {path}", soft_wrap=True)
    return results
