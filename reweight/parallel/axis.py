"""Functions of the global batch inside `shard_map`, `pmap` and `vmap(axis_name=...)`."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from reweight import _checks
from reweight.weights.base import Weighting

__all__ = ["over_axis", "over_axis_weighting"]

P = ParamSpec("P")
R = TypeVar("R")
Prefix = Any  # a tree of bools, or the beginning of one: a bool stands for all that is below
Flag = bool | Literal["default"]
FUNCTION = "parallel.over_axis"


class _Axis:
    """The mapped axes, seen from one shard."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        try:
            self.size = math.prod(jax.lax.axis_size(name) for name in names)
            self.index = jax.lax.axis_index(names)
        except NameError as error:
            allowed = "axes of the shard_map, pmap or vmap(axis_name=...) around the call"
            _checks.fail(FUNCTION, "axis_name", f"{names}, not all of which are bound ({error})", allowed)
        # shard_map with check_vma tracks which values differ between shards. The index does, if anything is tracked.
        self.tracked = not self.constant(self.index)

    def constant(self, value: Any) -> list[str]:
        """The axes along which a value is the same on all shards, as far as is known."""
        return [name for name in self.names if name not in jax.typeof(value).mat.varying]

    def gather(self, leaf: Any) -> jax.Array:
        """The rows of all shards. Its transpose sums the cotangents of all shards, whichever way that is written."""
        if self.tracked:
            # What is known to be the same on all shards needs no sum; where a shard goes on with its own part of it,
            # shard_map inserts one.
            return jax.lax.all_gather(leaf, self.names, tiled=True, to="invarying")
        # One axis after the other, the last first: vmap gathers over one at a time.
        for name in reversed(self.names):
            leaf = jax.lax.all_gather(leaf, name, tiled=True)
        return leaf

    def cut(self, leaf: Any) -> jax.Array:
        """This shard's rows."""
        size = leaf.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(leaf, self.index * size, size)


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and leaf.ndim > 0


def _flags(argument: str, prefix: Prefix | None, tree: Any) -> Any:
    """The prefix broadcast to a tree of bools over `tree`; where there is none, a tree of "default"."""
    if prefix is None:
        return jax.tree.map(lambda _: "default", tree)
    if not all(isinstance(flag, bool) for flag in jax.tree.leaves(prefix)):
        _checks.fail(FUNCTION, argument, repr(prefix), "a bool, or a tree of bools")
    try:
        return jax.tree.broadcast(prefix, tree)
    except ValueError as error:
        allowed = f"a prefix of the structure {jax.tree.structure(tree)} ({error})"
        _checks.fail(FUNCTION, argument, repr(prefix), allowed)


def over_axis(
    fn: Callable[P, R],
    axis_name: str | Sequence[str],
    *,
    batched_in: Mapping[str, Prefix] | None = None,
    batched_out: Prefix | None = None,
) -> Callable[P, R]:
    r"""`fn` of the global batch, for use on the shards of a batch.

        kl_dro = over_axis(partial(weights.kl_dro_weights, temperature=1.0), "data")

        @partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        def weights_of_my_rows(losses):  # [B / shards]
            return kl_dro(losses)        # as if cut out of kl_dro_weights(all losses)

    Gathers the per-example arguments along their leading axis over the mesh axis, applies `fn` to the global batch on
    every shard, and cuts this shard's rows out of the per-example outputs. All else passes through: scalars, states,
    hyperparameters, and what `fn` has bound (`functools.partial`, a closure) must be the same on every shard. Meant for
    per-example scalars (losses, labels, ids) and short vectors: a shard holds the arguments of the whole batch for a
    moment. Under plain `jax.jit` on sharded arrays nothing of this is needed.

    Which arguments are per-example: by default every array that has an axis. All of them must have the same number of
    rows. Where `shard_map` tracks which values differ between shards (`check_vma`, its default), an array that is the
    same on all of them, such as a table of class counts, is an error until `batched_in` says what it is:

        over_axis(fn, "data", batched_in={"state": False, "class_counts": False})

    Which outputs are per-example: by default every array that has an axis, and that axis must be the global batch.
    `batched_out=(True, False)` says it of each: weights are cut, the next state comes back whole.

    Gradients follow the convention of the collectives around the call.

    - In `shard_map` with `check_vma`, gradients are those of the global program. `jax.grad` inside, of a loss that is
      the same on all shards (a batch-level output, or anything after `psum` or `pmean`), is the gradient on one device;
      of per-shard losses it is the gradient of their sum. Gradients of replicated parameters arrive summed: don't sum
      them again.
    - In `pmap`, `vmap` and `shard_map(check_vma=False)`, where the gradient of `psum` is a `psum`, `jax.grad` inside is
      the gradient of the sum over shards of what each returns, and of its own copy of the parameters only. So `pmean`
      the gradients: for a loss that is the same on all shards, and for the mean of a shard's equal share of examples,
      this gives the gradient on one device.
    - `jax.grad` outside of the mapped function is the gradient on one device, always.

    Args:
      fn: any function of arrays with the batch as their leading axis.
      axis_name: the mesh axis that cuts the batch, or several, in the order of the `PartitionSpec` of the batch.
      batched_in: for parameters of `fn`, by name, whether they are per-example: a bool, or a tree of bools that is a
        prefix of the argument. Parameters that are not named follow the default.
      batched_out: the same for the output, a bool or a prefix of its tree.

    Returns:
      A function with the parameters of `fn`.

    Raises:
      ValueError: if `batched_in` names what is no parameter of `fn`; at the call, if the axis is not bound there, a
        bool does not fit its argument, no argument or not every one has the rows of the shard, or a per-example output
        not those of the global batch.
    """
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        _checks.fail(FUNCTION, "axis_name", repr(axis_name), "the name of an axis, or several different ones")
    flags_in = dict(batched_in or {})
    signature = inspect.signature(fn)
    open_ended = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    for name in flags_in:
        if name not in signature.parameters and not open_ended:
            _checks.fail(FUNCTION, "batched_in", f"for {name!r}", "parameters: " + ", ".join(signature.parameters))

    @functools.wraps(fn)
    def mapped(*args: P.args, **kwargs: P.kwargs) -> R:
        axis = _Axis(names)
        rows: int | None = None

        def gather(argument: str, path: Any, leaf: Any, flag: Flag) -> Any:
            nonlocal rows
            label = f"{argument}{jax.tree_util.keystr(path)}"
            if flag is False or (flag == "default" and not _has_rows(leaf)):
                return leaf
            if not _has_rows(leaf):
                _checks.fail(FUNCTION, label, "without an axis", "an array with a row an example, or batched_in=False")
            if flag == "default" and axis.tracked and (constant := axis.constant(leaf)):
                _checks.fail(
                    FUNCTION,
                    label,
                    f"the same on every shard of {', '.join(constant)}",
                    f"rows of the batch; for what is whole, batched_in={{{argument!r}: False}} (True for rows)",
                )
            rows = leaf.shape[0] if rows is None else rows
            if leaf.shape[0] != rows:
                _checks.fail(
                    FUNCTION,
                    label,
                    f"of shape {leaf.shape}",
                    f"{rows} rows, as the arguments before it; for what is whole, batched_in={{{argument!r}: False}}",
                )
            return axis.gather(leaf)

        def cut(path: Any, leaf: Any, flag: Flag) -> Any:
            assert rows is not None
            if flag is False or (flag == "default" and not _has_rows(leaf)):
                return leaf
            if not _has_rows(leaf) or leaf.shape[0] != rows * axis.size:
                came = f"for an output{jax.tree_util.keystr(path)} of shape {jnp.shape(leaf)} taken to be per-example"
                allowed = f"{rows * axis.size} rows, those of the global batch, or batched_out=False for what is whole"
                _checks.fail(FUNCTION, "batched_out", came, allowed)
            return axis.cut(leaf)

        def gather_argument(name: str, value: Any) -> Any:
            flags = _flags("batched_in", flags_in.get(name), value)
            return jax.tree_util.tree_map_with_path(functools.partial(gather, name), value, flags)

        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in open_ended:
                bound.arguments[name] = {key: gather_argument(key, signal) for key, signal in value.items()}
            else:
                bound.arguments[name] = gather_argument(name, value)
        if rows is None:
            _checks.fail(FUNCTION, "fn", "called without a per-example argument", "at least one")
        output = fn(*bound.args, **bound.kwargs)
        return jax.tree_util.tree_map_with_path(cut, output, _flags("batched_out", batched_out, output))

    return mapped


def over_axis_weighting(
    weighting: Weighting, axis_name: str | Sequence[str], *, batched_in: Mapping[str, Prefix] | None = None
) -> Weighting:
    """A weighting of the global batch, for use on the shards of a batch.

        weighting = over_axis_weighting(weights.group_dro(num_groups=4, step_size=0.1), "data")

        @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=(P("data"), P()))
        def weigh(state, losses, groups):
            return weighting.update(state, losses, groups=groups)

    `update` takes this shard's losses and signals, and gives this shard's weights and the next state, which is the same
    on every shard. See `over_axis`.

    Args:
      weighting: any weighting, chained ones included.
      axis_name: the mesh axis that cuts the batch, or several.
      batched_in: for signals, by name, whether they are per-example, as for `over_axis`.

    Returns:
      A weighting with the same `init`, scope and required signals.

    Raises:
      ValueError: as `over_axis` does.
    """

    def update(state: Any, losses: Any, **signals: Any) -> tuple[Any, Any]:
        return weighting.update(state, losses, **signals)

    whole = {**(batched_in or {}), "state": False}
    return weighting._replace(update=over_axis(update, axis_name, batched_in=whole, batched_out=(True, False)))
