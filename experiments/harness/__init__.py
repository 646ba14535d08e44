"""What every experiment shares: command line, progress, tables with intervals, verdicts on claims, the folder of a run.

An experiment module is a docstring whose first line is its question, and

    METHODS = {...}                      the methods, by name, each with a label for figures
    METRICS = (Metric(...), ...)         what is measured of them
    CLAIMS = (Claim(...), ...)           what papers say of them
    class Config(harness.Config): ...    a frozen dataclass; its fields are the options of the command line
    def run(config, context=Context()) -> Results.of(config, values, curves)
    def draw(results) -> Figure
    harness.main("<module>", config=Config, run=run, draw=draw)
"""

from experiments.harness.claims import Claim, Interval, Verdict, judge, mean_interval
from experiments.harness.classifier import ClassifierConfig, Outcome, Problem, Training
from experiments.harness.command import Context, main
from experiments.harness.config import Config
from experiments.harness.results import Metric, Results
from experiments.harness.seeds import train_seeds

__all__ = [
    "Claim",
    "ClassifierConfig",
    "Config",
    "Context",
    "Interval",
    "Metric",
    "Outcome",
    "Problem",
    "Results",
    "Training",
    "Verdict",
    "judge",
    "main",
    "mean_interval",
    "train_seeds",
]
