"""Checks of arguments at trace time.

Every public function says what is wrong with its input in one sentence that names the function, the argument, what came
and what is allowed. The checks read shapes, dtypes and Python numbers only, so they cost nothing in a compiled program.
A hyperparameter that is itself traced (a schedule, a `vmap` over hyperparameters) has no value to check and passes.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np


def fail(function: str, argument: str, came: str, allowed: str) -> NoReturn:
    """Raises the `ValueError` that every check of the package raises."""
    raise ValueError(f"{function}: argument `{argument}` is {came}; allowed: {allowed}.")


def number(
    function: str,
    argument: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> None:
    """Checks that a hyperparameter is a number in an interval; infinite ends are allowed values unless the end is open.

    Arrays of any rank pass unchecked by value (they may be traced or live on a device), with a check of their dtype.
    """
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    allowed = f"{'an integer' if integer else 'a number'} in {left}{low:g}, {high:g}{right}"
    if isinstance(value, jax.Array):
        kind = jnp.integer if integer else jnp.number
        if not jnp.issubdtype(value.dtype, kind) or jnp.issubdtype(value.dtype, jnp.complexfloating):
            fail(function, argument, f"an array of dtype {value.dtype}", allowed)
        return
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | np.number):
        fail(function, argument, f"{value!r} of type {type(value).__name__}", allowed)
    if integer and not isinstance(value, numbers.Integral):
        fail(function, argument, repr(value), allowed)
    value = value if integer else float(value)
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not inside:
        fail(function, argument, repr(value), allowed)


def choice(function: str, argument: str, value: Any, options: Sequence[Any]) -> None:
    """Checks that a value is one of a few options."""
    if value not in options:
        fail(function, argument, repr(value), "one of " + ", ".join(repr(option) for option in options))


def array(
    function: str,
    argument: str,
    value: Any,
    *,
    ndim: int | Sequence[int] | None = None,
    shape: Sequence[int | None] | None = None,
    kind: str | None = None,
) -> None:
    """Checks rank, shape (`None` matches any size) and dtype kind (float, integer, bool, number) of an array."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float):
        fail(function, argument, f"of type {type(value).__name__}", "an array")
    came = jnp.shape(value)
    if ndim is not None:
        ranks = (ndim,) if isinstance(ndim, int) else tuple(ndim)
        if len(came) not in ranks:
            fail(function, argument, f"of shape {came}", "an array of rank " + " or ".join(map(str, ranks)))
    if shape is not None:
        matches = len(came) == len(shape) and all(
            want is None or want == got for want, got in zip(shape, came, strict=True)
        )
        if not matches:
            wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
            fail(function, argument, f"of shape {came}", f"shape {wanted}")
    if kind is not None:
        kinds = {"float": jnp.floating, "integer": jnp.integer, "bool": jnp.bool_, "number": jnp.number}
        dtype = jnp.result_type(value)
        if not jnp.issubdtype(dtype, kinds[kind]):
            fail(function, argument, f"of dtype {dtype}", f"a dtype of kind {kind}")


def mask(function: str, argument: str, value: Any, like: Any, *, like_name: str = "losses") -> None:
    """Checks that a mask is absent, or boolean or numeric and broadcasts to the shape of `like`."""
    if value is None:
        return
    array(function, argument, value)
    broadcasts(function, argument, value, like, like_name=like_name)


def broadcasts(function: str, argument: str, value: Any, like: Any, *, like_name: str) -> None:
    """Checks that `value` broadcasts to exactly the shape of `like`."""
    target = jnp.shape(like)
    try:
        fits = np.broadcast_shapes(jnp.shape(value), target) == target
    except ValueError:
        fits = False
    if not fits:
        fail(
            function,
            argument,
            f"of shape {jnp.shape(value)}",
            f"a shape that broadcasts to the shape {target} of {like_name}",
        )


def axis(function: str, argument: str, value: int | Sequence[int] | None, like: Any) -> None:
    """Checks that `value` names axes of `like`, each once."""
    rank = jnp.ndim(like)
    axes = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    whole = all(isinstance(a, int | np.integer) and not isinstance(a, bool) for a in axes)
    if not whole or any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        fail(function, argument, repr(value), f"None or distinct axes in [{-rank}, {rank - 1}]")


def same_structure(function: str, argument: str, value: Any, like: Any, *, like_name: str) -> None:
    """Checks that two trees have the same structure and the same leaf shapes."""
    left, right = str(jax.tree.structure(value)), str(jax.tree.structure(like))
    if left != right:
        fail(function, argument, f"a tree {left}", f"the structure of {like_name}, {right}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(value), jax.tree.leaves(like), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            where = jax.tree_util.keystr(path)
            fail(
                function,
                f"{argument}{where}",
                f"of shape {jnp.shape(a)}",
                f"{like_name}'s shape {jnp.shape(b)}",
            )


def require(function: str, signals: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raises a `ValueError` that names the first signal missing from `signals`."""
    for name in names:
        if signals.get(name) is None:
            came = ", ".join(sorted(key for key, value in signals.items() if value is not None)) or "none"
            fail(
                function,
                name,
                "missing",
                f"an array passed as a signal by this name (signals that came: {came})",
            )


def accumulation_dtype(*values: Any) -> jnp.dtype:
    """The dtype in which sums over `values` are taken: their common float dtype, at least float32.

    Integers alone are no reason for float32 where float64 is enabled.
    """
    common = jnp.result_type(*values)
    return jnp.promote_types(common if jnp.issubdtype(common, jnp.inexact) else jnp.result_type(float), jnp.float32)


def kept(mask: Any, shape: int | tuple[int, ...]) -> jax.Array:
    """Which entries a mask (boolean or 0/1, broadcast to `shape`) keeps, as booleans: all, where there is none."""
    return jnp.broadcast_to(True if mask is None else jnp.asarray(mask) != 0, shape)
