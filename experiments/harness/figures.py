"""How figures look: colours that colour-blind readers tell apart, readable sizes, bands and bars of intervals."""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from experiments.harness.claims import Interval, mean_interval
from experiments.harness.results import Metric, Results

__all__ = ["MARKERS", "PALETTE", "band", "changes", "figure", "interval", "label_ends", "name_rows", "points", "save"]

# Okabe and Ito's palette without its yellow (too light on white), the baseline's black first.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#7F7F7F", "#44AA99")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the style of the experiments, sizes in inches; drawn on inside the `with`."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def band(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    *,
    label: str,
    color: str,
    log: bool = False,
    lowest: float = 1e-6,
) -> Line2D:
    """Draws the mean over the seeds of `values` `[seeds, points]` with its 95% interval as a band.

    With `log` mean and interval are those of the logarithms, for a log axis; values below `lowest` count as that.
    Returns the line, for a legend.
    """
    values = np.log(np.maximum(values, lowest)) if log else np.asarray(values)
    curves = np.array([mean_interval(column) for column in values.T]).T
    mean, low, high = np.exp(curves) if log else curves
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    (line,) = axes.plot(x, mean, label=label, color=color)
    return line


def interval(
    axes: Axes, found: Interval, row: float, *, color: str, marker: str = "o", scale: float = 1, **options: Any
) -> None:
    """Draws a mean and its interval, times `scale`, as a dot with a bar in a row of the axes."""
    mean, low, high = (scale * x for x in found)
    style = {"capsize": 2.5, "linewidth": 1.4} | options
    axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], color=color, marker=marker, **style)


def points(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    found: Sequence[Interval] | np.ndarray,
    *,
    color: str,
    marker: str = "o",
    scale: float = 1,
    **options: Any,
) -> None:
    """Draws means and their intervals, times `scale`, over `x`, joined by a line."""
    mean, low, high = scale * np.asarray(found).T
    style = {"capsize": 2.5} | options
    axes.errorbar(x, mean, yerr=[mean - low, high - mean], color=color, marker=marker, **style)


def name_rows(axes: Axes, labels: Sequence[str], colors: Sequence[str] = PALETTE, *, named: bool = True) -> None:
    """Rows from the top on, with their names at the left in the colours of what is in them; or without names."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for text, color in zip(axes.get_yticklabels(), colors, strict=False):
        text.set_color(color)
    if not named:
        axes.tick_params(axis="y", labelleft=False, length=0)


def changes(
    axes: Axes,
    results: Results,
    metric: Metric,
    methods: Sequence[str] | None = None,
    *,
    title: str = "",
    named: bool = True,
) -> None:
    """Draws what methods change of a metric against the first of them, paired over the seeds, with 95% intervals.

    Args:
      axes: where to draw; a row a method.
      results: of an experiment.
      metric: one of its metrics.
      methods: their names. Default: all, in the order of the results.
      title: what stands above the level of the first method. Default: the label of the metric.
      named: whether the methods are named at the left; not in a second panel of the same rows.
    """
    methods = list(results.values) if methods is None else methods
    baseline = methods[0]
    scale, unit = (100, "%") if metric.percent else (1, "")
    for row, name in enumerate(methods):
        change = results.difference(name, baseline, metric.name)
        interval(axes, change, row, color=PALETTE[row], marker=MARKERS[row], scale=scale)
    axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
    level = metric.text(results.interval(baseline, metric.name).mean)
    axes.set_title(f"{title or metric.label}\n{results.label(baseline)}: {level}{unit}")
    axes.set_xlabel("change, points" if metric.percent else "change")
    name_rows(axes, [results.label(name) for name in methods], named=named)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names lines at their ends, `(x, y, colour)`, in a column at the right that keeps the names apart."""
    if not ends:
        return
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    apart = 0.075 * (high - low)
    names = sorted(ends, key=lambda name: ends[name][1])
    heights = np.array([ends[name][1] for name in names])
    for _ in range(100):  # neighbours that are too close move away from each other
        push = np.maximum(apart - np.diff(heights), 0) / 2
        heights[1:] += push
        heights[:-1] -= push
    column = right + 0.04 * (right - left)
    for name, height in zip(names, heights, strict=True):
        x, y, color = ends[name]
        axes.plot([x, column], [y, height], color=color, linewidth=0.5, alpha=0.5, clip_on=False)
        axes.text(column, height, f" {name}", color=color, va="center", fontsize=7.5)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)


def save(drawn: Figure, path: pathlib.Path, *, dpi: int = 150) -> None:
    """Writes a PNG of 256 colours, whole or not at all."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.open(buffer).convert("RGB").quantize(256).save(temporary, format="png", optimize=True)
    temporary.replace(path)
