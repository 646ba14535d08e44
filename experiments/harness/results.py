"""What an experiment found: numbers by method, metric and seed; the table and the verdicts made of them; their file."""

import dataclasses
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jaxlib
import numpy as np
import optax
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

import reweight
from experiments.harness import claims as claims_module
from experiments.harness import folder
from experiments.harness.claims import Claim, Interval, Verdict
from experiments.harness.config import Config

__all__ = ["Metric", "Results"]


class Metric(NamedTuple):
    """A column of the table.

    Attributes:
      name: its key in the values.
      label: its heading.
      better: which way is better, `"higher"` or `"lower"`; None where a number only describes. The best is in bold.
      percent: show as percent.
      digits: digits after the point.
      table: the heading of the table it stands in; methods without any metric of a table are left out of it.
    """

    name: str
    label: str
    better: claims_module.Direction | None = "higher"
    percent: bool = False
    digits: int = 2
    table: str = ""

    def text(self, value: float, *, signed: bool = False) -> str:
        """A value as it stands in the table, without the unit."""
        return f"{100 * value if self.percent else value:{'+' if signed else ''}.{self.digits}f}"


@dataclasses.dataclass(frozen=True)
class Results:
    """The numbers of an experiment.

    Attributes:
      experiment: its name.
      question: what it asks.
      config: what it was told.
      metrics: the columns.
      values: method -> metric -> one number a seed, in the order of the seeds.
      claims: the claims to judge; those whose methods were not run have no verdict.
      curves: arrays for the figures, by name.
      labels: how the methods are called in figures, by name; default their names.
    """

    experiment: str
    question: str
    config: Mapping[str, Any]
    metrics: Sequence[Metric]
    values: Mapping[str, Mapping[str, np.ndarray]]
    claims: Sequence[Claim] = ()
    curves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Config,
        values: Mapping[str, Mapping[str, np.ndarray]],
        curves: Mapping[str, np.ndarray],
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """The results of the module that `config` comes from, with its name, question, metrics and claims.

        The methods are called by their labels in the module's `METHODS`, where they have labels or are such, unless
        others are given.
        """
        module = sys.modules[type(config).__module__]
        if labels is None:
            labels = {name: getattr(method, "label", method) for name, method in module.METHODS.items()}
        return cls(
            experiment=pathlib.Path(str(module.__file__)).stem,
            question=(module.__doc__ or "").splitlines()[0],
            config=dataclasses.asdict(config),
            metrics=module.METRICS,
            values=values,
            claims=module.CLAIMS,
            curves=curves,
            labels=labels,
        )

    def label(self, method: str) -> str:
        """What figures call a method."""
        return self.labels.get(method, method)

    def interval(self, method: str, metric: str) -> Interval:
        """Mean and 95% interval over the seeds."""
        return claims_module.mean_interval(self.values[method][metric])

    def difference(self, method: str, baseline: str, metric: str) -> Interval:
        """Mean and 95% interval of the difference to a baseline, paired over the seeds."""
        return claims_module.mean_interval(self.values[method][metric] - self.values[baseline][metric])

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on every claim whose two methods were run."""
        judged = (claims_module.judge(claim, self.values) for claim in self.claims)
        return [verdict for verdict in judged if verdict is not None]

    def _metric(self, name: str) -> Metric:
        return next(metric for metric in self.metrics if metric.name == name)

    def _tables(self) -> Iterator[Group]:
        for heading in dict.fromkeys(metric.table for metric in self.metrics):
            columns = [metric for metric in self.metrics if metric.table == heading]
            rows = [m for m, values in self.values.items() if any(column.name in values for column in columns)]
            if not rows:
                continue
            seeds = {len(self.values[m][c.name]) for m in rows for c in columns if c.name in self.values[m]}
            counts = " or ".join(map(str, sorted(seeds)))
            plural = "" if seeds == {1} else "s"
            title = f"{heading + ': ' if heading else ''}mean ± 95% interval over {counts} seed{plural}"
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column("method", no_wrap=True)
            best = {}
            for column in columns:
                table.add_column(column.label + (" %" if column.percent else ""), justify="right")
                means = {m: self.interval(m, column.name).mean for m in rows if column.name in self.values[m]}
                if column.better is not None and len(means) > 1:
                    best[column.name] = (max if column.better == "higher" else min)(means.values())
            for method in rows:
                cells = []
                for column in columns:
                    if column.name not in self.values[method]:
                        cells.append(Text(""))
                        continue
                    interval = self.interval(method, column.name)
                    cell = column.text(interval.mean)
                    if np.isfinite(interval.half_width):
                        cell += f" ± {column.text(interval.half_width)}"
                    cells.append(Text(cell, style="bold" if interval.mean == best.get(column.name) else ""))
                table.add_row(method, *cells)
            yield Group(Text(title, style="italic"), table)

    def _claims(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("verdict", "claim", "difference", "paper"):
            table.add_column(
                heading, no_wrap=heading == "verdict", justify="right" if heading == "difference" else "left"
            )
        for verdict in self.verdicts:
            claim, metric = verdict.claim, self._metric(verdict.claim.metric)
            difference = metric.text(verdict.difference.mean, signed=True)
            if np.isfinite(verdict.difference.half_width):
                low, high = (metric.text(end, signed=True) for end in verdict.difference[1:])
                difference += f" [{low}, {high}]"
            sign = ">" if claim.direction == "higher" else "<"
            where = metric.label + (f" ({metric.table})" if metric.table else "")
            table.add_row(
                Text("shown", style="green") if verdict.shown else Text("not shown", style="yellow"),
                f"{claim.better} {sign} {claim.than}: {where}",
                difference,
                claim.paper,
            )
        return Group(Text("claims: paired difference over the seeds [95% interval]", style="italic"), table)

    def print(self, console: Console) -> None:
        """Prints question, tables and verdicts."""
        parts: list[Any] = [Text(self.question, style="bold"), "", *self._tables()]
        if self.verdicts:
            parts.append(self._claims())
        console.print(Group(*parts))

    def as_dict(self) -> dict[str, Any]:
        """Everything but the curves, for JSON."""
        methods: dict[str, Any] = {}
        for method, values in self.values.items():
            methods[method] = {}
            for name, numbers in values.items():
                mean, low, high = claims_module.mean_interval(numbers)
                methods[method][name] = {"mean": mean, "interval": [low, high], "values": numbers}
        return {
            "experiment": self.experiment,
            "question": self.question,
            "config": self.config,
            "methods": methods,
            "claims": [verdict.as_dict() for verdict in self.verdicts],
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "versions": {
                "reweight": reweight.__version__,
                "jax": jax.__version__,
                "jaxlib": jaxlib.__version__,
                "optax": optax.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def save(self, path: pathlib.Path) -> None:
        """Writes results.json and curves.npz into the folder of a run."""
        if self.curves:
            np.savez_compressed(path / "curves.npz", allow_pickle=False, **dict(self.curves))
        folder.write_json(path / "results.json", self.as_dict())
