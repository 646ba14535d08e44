"""What every experiment can be told: a typed config, read from the command line."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, ClassVar, Generic, Self, TypeVar

import numpy as np
import tyro

from experiments.harness import folder
from reweight import _checks

__all__ = ["FUNCTION", "Config", "Options", "parse"]

FUNCTION = "experiments.Config"  # what error messages call a config


@dataclasses.dataclass(frozen=True)
class Config:
    """What decides the numbers of a run. An experiment adds its own fields."""

    seeds: int = 10
    """How many seeds: numbers in a row, the same ones for every method."""
    first_seed: int = 0
    """The first of them."""
    methods: tuple[str, ...] = ()
    """The methods to run, by name. Default: all."""
    mesh: str | None = None
    """Device mesh, such as data=4 or data=-1 for all devices. Default: one device for small runs."""

    table: ClassVar[Sequence[str]] = ()
    """The names of all methods, in the order of the experiment's table."""
    spreads: ClassVar[bool] = True
    """Whether the seeds can be divided among devices. What only solves or evaluates runs where it is."""

    def __post_init__(self) -> None:
        self.check_counts("seeds")
        self.check_counts("first_seed", low=0)
        for name in self.methods:
            _checks.choice(FUNCTION, "methods", name, tuple(self.table))
        if self.mesh is not None and not self.spreads:
            _checks.fail(FUNCTION, "mesh", repr(self.mesh), "none, as this experiment trains nothing on devices")

    def check_counts(self, *names: str, low: int = 1) -> None:
        """Checks that the fields of these names are whole numbers from `low` on."""
        for name in names:
            _checks.number(FUNCTION, name, getattr(self, name), low=low, integer=True)

    def check_positive(self, *names: str) -> None:
        """Checks that the fields of these names are numbers above 0."""
        for name in names:
            _checks.number(FUNCTION, name, getattr(self, name), low=0, open_low=True, open_high=True)

    @property
    def seed_numbers(self) -> np.ndarray:
        """The seeds `[seeds]`."""
        return np.arange(self.first_seed, self.first_seed + self.seeds)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods to run, in the order of the table."""
        return tuple(name for name in self.table if not self.methods or name in self.methods)

    @classmethod
    def smoke(cls) -> Self:
        """The smallest config that goes through everything, in seconds."""
        return cls(seeds=2)


C = TypeVar("C", bound=Config)
# A resumed run may sit on other devices; all else it keeps.
_CHANGEABLE = ("mesh",)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is done with a run; none of it changes the numbers."""

    smoke: bool = False
    """Run everything once at the smallest size, in seconds. Other options still apply."""
    resume: str | None = None
    """Go on with an interrupted run: its folder, or `last` for the newest one of this experiment."""
    out: pathlib.Path = pathlib.Path("runs")
    """Runs go to `<out>/<experiment>/<stamp>/`."""
    store: pathlib.Path | None = None
    """Also keep the results and the figures in this folder, as `<experiment>.json` and `<experiment>.png`."""


@dataclasses.dataclass(frozen=True)
class _Command(Generic[C]):
    config: C
    output: Options


def parse(
    experiment: str, config: type[C], description: str, argv: Sequence[str] | None = None
) -> tuple[C, Options, pathlib.Path | None]:
    """Reads the command line.

    The defaults are those of the config; with `--smoke` those of `config.smoke()`; with `--resume` those of the run to
    go on with, and then nothing may be said that would change its numbers.

    Args:
      experiment: its name, for the usage line and the folder of runs.
      config: the class of its config.
      description: what `--help` says first.
      argv: the words after the program's name. Default: those of the process.

    Returns:
      The config, the options, and the folder of the run to resume, if any.

    Raises:
      ValueError: if there is nothing to resume, or an option contradicts the run to resume.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--smoke", action="store_true")
    first.add_argument("--resume")
    first.add_argument("--out", type=pathlib.Path, default=Options.out)
    early, _ = first.parse_known_args(argv)
    path = None if early.resume is None else folder.find(early.out, experiment, early.resume)
    saved = None if path is None else folder.read_config(path, config)
    default = saved if saved is not None else config.smoke() if early.smoke else config()
    command = tyro.cli(
        _Command[Annotated[config, tyro.conf.arg(name="")]],  # type: ignore[valid-type]
        prog=f"python -m experiments.{experiment}",
        description=f"{description.strip()}\n\nMethods: {', '.join(config.table)}",
        default=_Command(default, Options()),
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    if saved is not None:
        for field in dataclasses.fields(saved):
            old, new = getattr(saved, field.name), getattr(command.config, field.name)
            if old != new and field.name not in _CHANGEABLE:
                _checks.fail(f"experiments.{experiment}", field.name, repr(new), f"{old!r}, as in the run to resume")
    return command.config, command.output, path
