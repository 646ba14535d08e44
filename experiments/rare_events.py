"""What helps to predict events that few examples show?

Ordered outcomes whose last one is rare: its probability is fitted by logistic regression on "rare or not", by
proportional odds, which take one slope for all boundaries, and by PRESTO, which draws the slopes of neighbouring
boundaries together as far as its cross-validation asks for. And lives of which some end within days and others after
weeks: a network predicts them with Cox's partial likelihood, with hazards on one grid of intervals, or on two grids of
which one is fine where lives are short. Overall that one leads Cox by 0.3 to 0.8 points in three blocks of twenty
seeds, each give or take 0.4: a row of the table, and too close to call for a claim. A seed draws the truth, the
examples and the initial parameters. Where it draws a single example of the rarest class, logistic regression separates
it from all others, and errs by far the most.
"""

import dataclasses
import functools
import itertools
from concurrent import futures
from typing import ClassVar, Self

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import creatives, funnels
from experiments.harness import figures

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

PRESTO = "Faletto and Bien 2023, Predicting Rare Events by Shrinking Towards Proportional Odds"
CREATIVES = "Kitada et al. 2022, arXiv 2204.11588"

METHODS: dict[str, str] = {
    "logistic": "logistic regression",
    "proportional_odds": "proportional odds",
    "presto": "PRESTO",
    "cox": "Cox",
    "one_grid": "hazards, one grid",
    "two_terms": "hazards, two grids",
    "two_terms_by_clicks": "two grids, by clicks",
}

# Intercepts of the boundaries: the paper's three settings.
RARITIES = {"mild": (0.0, 3.0, 5.0), "rare": (0.0, 3.5, 5.5), "rarer": (0.0, 4.0, 6.0)}
SHARES = {"mild": "1.2 %", "rare": "0.7 %", "rarer": "0.5 %"}
FIT_COLORS = dict(zip(funnels.FITS, figures.PALETTE, strict=False))

METRICS = (
    *(
        harness.Metric(
            f"error_{name}", f"rare class {share}", better="lower", digits=2, table="error over spread of P(rare)"
        )
        for name, share in SHARES.items()
    ),
    harness.Metric("short", "short lives", percent=True, digits=1, table="concordance index"),
    harness.Metric("long", "long lives", percent=True, digits=1, table="concordance index"),
    harness.Metric("overall", "overall", percent=True, digits=1, table="concordance index"),
    harness.Metric("by_clicks", "by clicks", percent=True, digits=1, table="concordance index"),
)

CLAIMS = (
    *(
        harness.Claim(PRESTO, "presto", baseline, f"error_{name}", "lower")
        for name in RARITIES
        for baseline in ("logistic", "proportional_odds")
    ),
    harness.Claim(CREATIVES, "two_terms", "one_grid", "short"),
    harness.Claim(CREATIVES, "two_terms", "one_grid", "long"),
    harness.Claim(CREATIVES, "two_terms", "one_grid", "overall"),
    harness.Claim(CREATIVES, "two_terms_by_clicks", "two_terms", "by_clicks"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The sizes of the problems."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 20
    examples: int = 2500
    """Examples of an ordered outcome."""
    features: int = 10
    """Features behind an ordered outcome."""
    lives: int = 600
    """Lives in the training set."""
    steps: int = 150
    """Training steps of the networks."""
    batch_size: int = 128
    """Lives a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("examples", "features", "lives", "steps", "batch_size")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, small problems."""
        return cls(
            seeds=2, methods=("proportional_odds", "one_grid"), examples=400, features=2, lives=40, steps=8,
            batch_size=16,
        )  # fmt: skip


def _errors(config: Config, names: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Errors of the rare probability over its spread.

    Both are root mean squares, so that a fit of one number for all examples has the error 1.
    """
    drawn = {
        rarity: funnels.draw_funnels(
            config.seed_numbers, examples=config.examples, features=config.features, intercepts=intercepts
        )
        for rarity, intercepts in RARITIES.items()
    }

    def error(name: str, rarity: str, index: int) -> float:
        features, labels, rare = (arrays[index] for arrays in drawn[rarity])
        key = jax.random.key(config.seed_numbers[index])
        fitted = np.asarray(funnels.rare_probabilities(name, key, features, labels, len(RARITIES[rarity]) + 1))
        return float(np.sqrt(np.mean(((fitted.astype(np.float64) - rare) / np.std(rare)) ** 2)))

    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    with futures.ThreadPoolExecutor() as pool:  # a fit keeps one core busy
        for name, rarity in itertools.product(names, RARITIES):
            of_seed = functools.partial(error, name, rarity)
            values[name][f"error_{rarity}"] = np.array(list(pool.map(of_seed, range(config.seeds))))
    return values


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Fits the ordered outcomes and trains the networks."""
    context = harness.Context() if context is None else context
    fitted = [name for name in config.chosen if name in funnels.FITS]
    values = _errors(config, fitted)
    trained = [name for name in config.chosen if name in creatives.HEADS]
    with context.bar(len(trained) * config.steps) as inner:
        for name in trained:
            values[name] = creatives.learn_lifetimes(
                name,
                config.seed_numbers,
                examples=config.lives,
                steps=config.steps,
                batch_size=config.batch_size,
                context=inner,
                mesh=config.mesh,
            )
    return harness.Results.of(
        config, values, {f"{metric}/{name}": x for name, found in values.items() for metric, x in found.items()}
    )


def _draw_pairs(axes: Axes, results: harness.Results) -> None:
    """PRESTO's error on every seed against that of the other fits on the same seed."""
    metric = "error_rarer"
    if "presto" in results.values:
        ours = results.values["presto"][metric]
        lows, highs = [ours.min()], [ours.max()]
        for i, (name, color) in enumerate(FIT_COLORS.items()):
            if name in results.values and name != "presto":
                theirs = results.values[name][metric]
                axes.scatter(
                    theirs, ours, s=16, color=color, marker=figures.MARKERS[i], label=results.label(name), alpha=0.8
                )
                lows.append(theirs.min())
                highs.append(theirs.max())
        ends = [min(lows), max(highs)]
        axes.plot(ends, ends, color="#444444", linewidth=1, linestyle="--")
        axes.legend(loc="upper left")
    axes.set(xscale="log", yscale="log", xlabel="error over spread, another fit", ylabel="error over spread, PRESTO")
    axes.set_title(f"A point a seed, rare class {SHARES['rarer']}:\nPRESTO is better below the line")


def _draw_errors(axes: Axes, results: harness.Results) -> None:
    names = [name for name in funnels.FITS if name in results.values]
    for i, name in enumerate(names):
        for j, rarity in enumerate(RARITIES):
            figures.interval(
                axes, results.interval(name, f"error_{rarity}"), j + 0.16 * (i - (len(names) - 1) / 2),
                color=FIT_COLORS[name], marker=figures.MARKERS[i],
            )  # fmt: skip
    figures.name_rows(axes, list(SHARES.values()), ["#000000"] * len(SHARES))
    axes.set_xscale("log")
    axes.set_xticks([0.6, 1, 2], ["0.6", "1", "2"])
    axes.minorticks_off()
    axes.set_xlabel("error over spread (1: a constant)")
    axes.set_ylabel("share of the rare class")
    axes.set_title("Error of P(rare)")
    for name in names:
        axes.plot([], [], color=FIT_COLORS[name], marker=figures.MARKERS[names.index(name)], label=results.label(name))
    if names:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _draw_indices(axes: Axes, results: harness.Results) -> None:
    names = [name for name in creatives.HEADS if name in results.values]
    indices = [metric for metric in METRICS if metric.table == "concordance index"]
    for i, name in enumerate(names):
        for j, metric in enumerate(indices):
            figures.interval(
                axes, results.interval(name, metric.name), j + 0.16 * (i - (len(names) - 1) / 2), scale=100,
                color=figures.PALETTE[i], marker=figures.MARKERS[i], linestyle="none",
                label=results.label(name) if j == 0 else None,
            )  # fmt: skip
    figures.name_rows(axes, [metric.label for metric in indices], ["#000000"] * len(indices))
    axes.set_xlabel("concordance index, %")
    axes.set_title("A fine grid ranks short lives")
    if names:
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)


def draw(results: harness.Results) -> Figure:
    """Left: errors of the rare class's probability, seed by seed and over the seeds. Right: the ranks of the lives."""
    with figures.figure(10.2, 3.9) as drawn:
        left, middle, right = drawn.subplots(1, 3, width_ratios=[1.1, 1, 1.3])
        _draw_pairs(left, results)
        _draw_errors(middle, results)
        _draw_indices(right, results)
    return drawn


if __name__ == "__main__":
    harness.main("rare_events", config=Config, run=run, draw=draw)
