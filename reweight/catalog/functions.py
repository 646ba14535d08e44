"""The public functions of the method packages, found by walking them."""

import functools
import importlib
import pkgutil
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import reweight

__all__ = ["INFRASTRUCTURE_PACKAGES", "public_functions", "resolve"]

# Packages without methods. What is public in the others belongs to a paper, or to a short list of infrastructure.
INFRASTRUCTURE_PACKAGES = ("catalog", "data", "models", "parallel", "train")


def _modules() -> list[ModuleType]:
    found = []
    for top in pkgutil.iter_modules(reweight.__path__, "reweight."):
        name = top.name.rpartition(".")[2]
        if name.startswith("_") or name in INFRASTRUCTURE_PACKAGES:
            continue
        module = importlib.import_module(top.name)
        found.append(module)
        if top.ispkg:
            for part in pkgutil.walk_packages(module.__path__, f"{top.name}."):
                if not any(piece.startswith("_") for piece in part.name.split(".")):
                    found.append(importlib.import_module(part.name))
    return found


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type) and typing.get_origin(value) is None


@functools.cache
def public_functions() -> Mapping[str, Callable[..., Any]]:
    """Every public function of the method packages under its shortest import path, such as `reweight.weights.kl_dro`.

    Public is what a module lists in `__all__`. Classes, constants and types are left out, and so are the packages of
    infrastructure.
    """
    paths: dict[int, tuple[str, Callable[..., Any]]] = {}
    for module in _modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            path = f"{module.__name__}.{name}"
            if _is_function(value) and len(path) < len(paths.get(id(value), (path + " ",))[0]):
                paths[id(value)] = (path, value)
    return MappingProxyType(dict(sorted(paths.values())))


def resolve(path: str) -> Any:
    """The object at a dotted import path.

    Raises:
      LookupError: if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise LookupError(f"no such object: {path}") from error
