"""All cases, and the public functions that must have one."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np

from conformance import cases
from conformance.case import Case, TransformCase
from reweight.catalog import public_functions

# Public functions that no case can describe, each with the reason.
EXEMPT: dict[str, str] = {
    "reweight.decoding.sample": "takes a model; what it promises of it is in tests/decoding",
    "reweight.optim.default_layout": "a rule on names and shapes, without arrays",
    "reweight.optim.flax_layout": "a rule on names and shapes, without arrays",
    "reweight.optim.layout_rules": "makes a rule on names and shapes, without arrays",
    "reweight.optim.param_layouts": "applies a rule on names and shapes, without arrays",
    "reweight.optim.path_name": "the name of a path, without arrays",
    "reweight.optim.stacked": "makes a rule on names and shapes, without arrays",
}


def all_cases() -> list[Case | TransformCase]:
    """The `CASES` of every module of `cases`, in the order of the modules' names."""
    found: list[Case | TransformCase] = []
    for module in sorted(pkgutil.iter_modules(cases.__path__), key=lambda module: module.name):
        found += importlib.import_module(f"{cases.__name__}.{module.name}").CASES
    return found


def names() -> dict[Callable[..., Any], str]:
    """Every public function of the method packages, with its shortest import path."""
    return {function: path for path, function in public_functions().items()}


def identity(case: Case | TransformCase) -> str:
    """How a case is called in the report of the tests."""
    name = names().get(case.function, case.function.__name__).removeprefix("reweight.")
    return f"{name}-{case.variant}" if case.variant else name


def covered() -> set[str]:
    """The import paths of the functions that have a case."""
    paths = names()
    return {paths[case.function] for case in all_cases() if case.function in paths}


def rng() -> np.random.Generator:
    """For looking at what a case draws."""
    return np.random.default_rng(0)
