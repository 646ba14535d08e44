"""One training step as a pure function: losses, weights, reduction, gradient, update.

    step = make_step(loss_fn, optax.adamw(1e-3), weighting=weights.kl_dro(temperature=2.0), microbatches=4)
    state = init_state(params, None, optimizer, weighting, jax.random.key(0))
    state, metrics = jit_step(step)(state, {"inputs": x, "labels": y, "mask": m})

The gradient is that of `reduce(w · l)` with the weights held fixed. A step in microbatches is the step on the whole
batch, up to rounding, for every weighting: totals and denominators add up over the microbatches and are divided once.
Where a weight depends on its own example alone one pass does; where it depends on others (`Weighting.scope` is
`"batch"`) a first pass collects the losses and signals of all microbatches without gradients, the weights are computed
for the whole batch, and a second pass takes the gradients with the weights fixed.

A loss with a statistic of the batch or of the stream is a `BatchLoss`. The loss function then gives its signals in
place of losses, and the step asks the loss for the statistic of the whole batch, which is constant, and for the losses
given the statistic, which have the gradient:

    step = make_step(signals_fn, optimizer, loss=losses.preference.stream_bco(), microbatches=4)

In microbatches this takes the same two passes: signals of all, statistic, losses, weights; then the gradients of the
losses given what the first pass found.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray

from reweight import _checks, parallel, reduce
from reweight.losses import BatchLoss
from reweight.train.state import TrainState
from reweight.weights import Weighting, effective_sample_size, uniform

__all__ = ["LossOutput", "jit_step", "make_step", "mean_over_count", "token_reduction", "whole_batch"]

Tree = Any  # a pytree of arrays
Batch = Mapping[str, Any]
Mask = Bool[Array, "..."] | Num[Array, "..."]
Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Reduction = Callable[[Float[Array, "..."], Float[Array, "..."], Mask | None], reduce.Parts]
MetricFn = Callable[[Mapping[str, Any]], Mapping[str, reduce.Parts]]
F = TypeVar("F", bound=Callable[..., Any])

OWN_METRICS = ("loss", "unweighted_loss", "grad_norm", "effective_sample_size")


class LossOutput(NamedTuple):
    """What a loss function returns.

    Attributes:
      losses: a loss an example `[B]` or a token `[B, T]`; None where a `BatchLoss` computes them from the signals.
      signals: named arrays `[B, ...]` for the loss, the weighting and the metrics (`logits`, `features`, …). They stand
        beside the arrays of the batch, and in front of one of the same name.
      extra: the new `extra` of the state; None if it stays as it was.
    """

    losses: Float[Array, "batch *rest"] | None = None
    signals: Mapping[str, Array] = {}
    extra: Tree = None


LossFn = Callable[[Tree, Tree, Batch, PRNGKeyArray], LossOutput]


def mean_over_count(
    losses: Float[Array, "..."], weights: Float[Array, "..."], mask: Mask | None = None
) -> reduce.Parts:
    r"""The usual reduction: :math:`\sum_i m_i w_i l_i / \sum_i m_i`, the mean of the weighted losses, as parts."""
    return reduce.weighted_mean(losses, weights, where=mask, normalizer="count", parts=True)


def token_reduction(mode: reduce.TokenMode = "token-mean", *, length: int | None = None) -> Reduction:
    """A reduction of token losses `[B, T]`, in the modes of `reduce.tokens`; without a mask every token counts.

    Args:
      mode: see `reduce.tokens`.
      length: the length that `"token-sum-fixed-length"` divides by.

    Returns:
      A reduction for `make_step`.
    """

    def tokens(losses: Float[Array, "..."], weights: Float[Array, "..."], mask: Mask | None = None) -> reduce.Parts:
        mask = jnp.ones(losses.shape, bool) if mask is None else mask
        return reduce.tokens(losses, mask, weights, mode=mode, length=length, parts=True)

    return tokens


def whole_batch(function: F) -> F:
    """Marks a loss function or a reduction as one that no split of the batch can give exactly.

    For instance a loss whose gradient needs the activations of the whole batch. `make_step` refuses to accumulate it
    rather than approximate it. A loss with in-batch negatives, or of sums over the batch, can be taken apart exactly:
    see `losses.of_batch` and `losses.of_sums`.

    Args:
      function: a loss function or a reduction.

    Returns:
      The same function with a mark, which `functools.partial` and `functools.wraps` keep.
    """

    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    marked.whole_batch = True  # type: ignore[attr-defined]
    return marked  # type: ignore[return-value]


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    loss: BatchLoss | None = None,
    weighting: Weighting | None = None,
    reduction: Reduction = mean_over_count,
    microbatches: int = 1,
    metrics: MetricFn | None = None,
) -> Step:
    r"""A pure step `(state, batch) -> (state, metrics)`: :math:`g = \nabla_\theta\, R(\bar w, l_\theta)`, then update.

    Weights :math:`w` come from the losses and signals of the whole batch, the bar is a stop-gradient, and :math:`R` is
    the reduction. The statistic of a `BatchLoss` comes from the signals of the whole batch, and is held fixed too. The
    step can be jitted (`jit_step`), scanned, vmapped over states, and run on sharded arrays, where "the whole batch" is
    the global one.

    With :math:`M` microbatches, the one numbered :math:`k` holds the examples :math:`k, k + M, k + 2M, \dots`: an axis
    sharded over devices stays so. Three things belong to a microbatch and not to the whole batch: its key (for dropout;
    the same one in both passes), the statistics of batch normalisation, and `extra`, which passes from one to the next
    (the first of two passes throws its `extra` away).

    Args:
      loss_fn: `loss_fn(params, extra, batch, key) -> LossOutput`.
      optimizer: an optax transformation; one that takes extra arguments gets the loss as `value`.
      loss: a `BatchLoss`, which computes the losses from the arrays of the batch and the signals of the `LossOutput`.
        The state must have been made with it too (`init_state(..., loss=loss)`). Default: `loss_fn` gives the losses.
      weighting: default `weights.uniform()`. It gets as signals the arrays of the batch and those of the `LossOutput`.
      reduction: `(losses, weights, mask) -> reduce.Parts`, scalars; `mask` is the signal of that name or None. It may
        have a gradient through its denominator (a ratio of sums); accumulating it then takes two passes.
      microbatches: into how many pieces the batch is cut; it must divide the batch.
      metrics: `metrics(signals) -> {name: reduce.Parts}`, from the signals and besides them `losses` and `weights`; the
        parts of microbatches are added before they are divided.

    Returns:
      The step. Its batch is a dict of arrays `[B, ...]`; its metrics are scalars: `loss` (the reduced value),
      `unweighted_loss` (the same with all weights 1), `grad_norm`, `effective_sample_size` (of the weights) and those
      of `metrics`.

    Raises:
      ValueError: if `microbatches` is below 1, or above 1 for a loss or reduction that is marked `whole_batch`; at
        trace time, if it does not divide the batch, the arrays of the batch differ in their first axis, the loss
        function or the reduction returns something else than it should, the state was made without the `loss`, or a
        metric has the name of one of the step's.
    """
    _checks.number("train.make_step", "microbatches", microbatches, low=1, integer=True)
    for argument, function in (("loss_fn", loss_fn), ("reduction", reduction)):
        if microbatches > 1 and _marked_whole_batch(function):
            _checks.fail(
                "train.make_step",
                "microbatches",
                f"{microbatches}",
                f"1, because `{argument}` is marked `whole_batch`: it can't be taken in pieces",
            )
    weighting = uniform() if weighting is None else weighting
    optimizer = optax.with_extra_args_support(optimizer)

    def forward(
        params: Tree, extra: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array | None, Tree, dict[str, Array]]:
        output = loss_fn(params, extra, batch, key)
        if not isinstance(output, LossOutput):
            _checks.fail("train.make_step", "loss_fn", f"returning {type(output).__name__}", "a function to LossOutput")
        if (output.losses is None) != (loss is not None):
            came, allowed = ("without", "with losses, or a `loss`") if loss is None else ("with", "with signals only")
            _checks.fail("train.make_step", "loss_fn", f"returning a LossOutput {came} losses", f"one {allowed}")
        return output.losses, extra if output.extra is None else output.extra, dict(output.signals)

    def losses_given(statistics: Tree, losses: Array | None, signals: Mapping[str, Any]) -> Array:
        losses = losses if loss is None else loss.losses(statistics, **signals)
        assert losses is not None
        return losses

    def look_at(memory: _Memory, losses: Array | None, signals: Mapping[str, Any]) -> tuple[_Fixed, _Memory]:
        """What is computed of a whole batch, and has no gradient: the statistics of the loss, then the weights."""
        held = jax.lax.stop_gradient({name: value for name, value in signals.items() if name != "losses"})
        statistics, loss_state = (None, memory.loss) if loss is None else loss.statistics(memory.loss, **held)
        losses = jax.lax.stop_gradient(losses_given(statistics, losses, held))
        weights, weighting_state = weighting.update(memory.weighting, losses, **held)
        return jax.lax.stop_gradient((_Fixed(statistics, weights), _Memory(weighting_state, loss_state)))

    def objective(
        params: Tree,
        extra: Tree,
        memory: _Memory,
        batch: Batch,
        key: PRNGKeyArray,
        fixed: _Fixed | None,
        value: Array | None,
    ) -> tuple[Array, _Piece]:
        """What is differentiated: the value of a whole batch, or a microbatch's share of the undivided gradient.

        The gradient of T / D is (∇T - (T / D) ∇D) / D, and `value` is T / D of the whole batch. `fixed` is what an
        earlier pass has found; without one this is the first.
        """
        losses, extra, own = forward(params, extra, batch, key)
        signals = {**batch, **own}
        if fixed is None:
            fixed, memory = look_at(memory, losses, signals)
        losses, weights = losses_given(fixed.statistics, losses, signals), fixed.weights
        mask = signals.get("mask")
        parts = {"loss": _scalar_parts(reduction(losses, weights, mask))}
        total, denominator = parts["loss"]
        target = reduce.finish(parts["loss"]) if value is None else total - value * denominator
        ones = jnp.ones(losses.shape, weights.dtype)
        parts["unweighted_loss"] = _scalar_parts(reduction(losses, ones, mask))
        if metrics is not None:
            parts |= _named("train.make_step", metrics({**signals, "losses": losses, "weights": weights}))
        return target, _Piece(extra, memory, weights, _weight_mask(weights, losses, mask), parts)

    gradient = jax.grad(objective, has_aux=True)

    def whole(state: TrainState, batch: Batch, keys: PRNGKeyArray) -> tuple[Tree, _Piece]:
        memory = _Memory(state.weighting_state, state.loss_state)
        return gradient(state.params, state.extra, memory, batch, keys[0], None, None)

    def accumulated(state: TrainState, batch: Batch, keys: PRNGKeyArray) -> tuple[Tree, _Piece]:
        pieces = jax.tree.map(lambda x: _split(x, microbatches), dict(batch))
        first = jax.tree.map(lambda x: x[0], pieces)
        shapes = jax.eval_shape(forward, state.params, state.extra, first, keys[0])
        _check_pieces({"losses": shapes[0], **shapes[2]}, jax.tree.leaves(first)[0].shape[0])

        fixed, value, memory = None, jnp.zeros(()), _Memory(state.weighting_state, state.loss_state)
        if (
            loss is not None
            or weighting.scope == "batch"
            or _denominator_reads_losses(reduction, shapes[0], {**first, **shapes[2]})
        ):

            def look(
                extra: Tree, piece: tuple[Batch, PRNGKeyArray]
            ) -> tuple[Tree, tuple[Array | None, dict[str, Array]]]:
                losses, extra, own = forward(state.params, extra, *piece)
                return extra, (losses, own)

            _, looked = jax.lax.scan(look, state.extra, (pieces, keys))
            losses, own = jax.tree.map(_merge, looked)
            signals = {**batch, **own}
            found, memory = look_at(memory, losses, signals)
            losses = losses_given(found.statistics, losses, signals)
            value = reduce.finish(_scalar_parts(reduction(losses, found.weights, signals.get("mask"))))
            rows = [x for x in jax.tree.leaves(found.statistics) if x.ndim]
            _check_pieces({"losses": losses, "statistics": rows, "weights": found.weights}, losses.shape[0])
            fixed = jax.tree.map(lambda x: _split(x, microbatches) if x.ndim else _repeat(x, microbatches), found)

        def add(carry: tuple[Tree, Tree, Tree], piece: tuple[Batch, PRNGKeyArray, _Fixed | None]) -> tuple[Any, Any]:
            sums, extra, running = carry
            grads, out = gradient(state.params, extra, running, *piece, value)
            sums = jax.tree.map(lambda total, grad: total + grad, sums, grads)
            return (sums, out.extra, out.memory), (out.weights, out.mask, out.parts)

        zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _checks.accumulation_dtype(p)), state.params)
        carry = (zeros, state.extra, memory)
        (sums, extra, memory), (weights, mask, parts) = jax.lax.scan(add, carry, (pieces, keys, fixed))
        parts = jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)
        denominator = parts["loss"].denominator
        scale = 1 / jnp.where(denominator == 0, 1, denominator)
        grads = jax.tree.map(lambda total, p: (total * scale).astype(jnp.result_type(p)), sums, state.params)
        weights, mask = jax.tree.map(_merge, (weights, mask))
        return grads, _Piece(extra, memory, weights, mask, parts)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_batch(batch, microbatches)
        if loss is not None:
            _check_loss_state(loss, state)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), microbatches)
        grads, out = (whole if microbatches == 1 else accumulated)(state, batch, keys)
        measured = {name: reduce.finish(parts) for name, parts in out.parts.items()}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=measured["loss"])
        measured["grad_norm"] = optax.tree.norm(jax.tree.map(lambda g: g.astype(_checks.accumulation_dtype(g)), grads))
        measured["effective_sample_size"] = effective_sample_size(out.weights, mask=out.mask)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            extra=out.extra,
            opt_state=opt_state,
            weighting_state=out.memory.weighting,
            loss_state=out.memory.loss,
        )
        return new, measured

    return step


def jit_step(step: Step, *, mesh: Mesh | None = None, state_shardings: Tree = None) -> Step:
    """Compiles a step whose state is donated: the new state takes the memory of the old one, which is gone.

    Args:
      step: from `make_step`.
      mesh: the devices of the run; the batch is spread over its axis `data`. Default: where the arrays are.
      state_shardings: a `TrainState` of shardings, or a prefix of one; only with a mesh. Default: replicated.

    Returns:
      The compiled step. The state that it is given must lie as `state_shardings` say (`jax.device_put`), and lies so
      when it comes back.

    Raises:
      ValueError: if there are shardings without a mesh.
    """
    if mesh is None:
        if state_shardings is not None:
            _checks.fail("train.jit_step", "mesh", "None", "a Mesh where `state_shardings` are given")
        return jax.jit(step, donate_argnums=0)
    everywhere = parallel.replicated(mesh)
    state_shardings = everywhere if state_shardings is None else state_shardings
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_shardings, parallel.batch_sharding(mesh)),
        out_shardings=(state_shardings, everywhere),
    )


class _Memory(NamedTuple):
    """The states that a step carries from batch to batch without a gradient."""

    weighting: Tree
    loss: Tree


class _Fixed(NamedTuple):
    """What is constant in the gradient of a batch."""

    statistics: Tree
    weights: Array


class _Piece(NamedTuple):
    """What a batch or a microbatch gives besides its gradient."""

    extra: Tree
    memory: _Memory
    weights: Array
    mask: Array | None  # of the weights' shape
    parts: dict[str, reduce.Parts]


def _split(x: Array, count: int) -> Array:
    """`[B, ...]` to `[M, B / M, ...]`, strided: of a sharded first axis every piece has a part on every device."""
    return jnp.swapaxes(jnp.reshape(x, (x.shape[0] // count, count, *x.shape[1:])), 0, 1)


def _merge(x: Array) -> Array:
    """The inverse of `_split`."""
    return jnp.reshape(jnp.swapaxes(x, 0, 1), (-1, *x.shape[2:]))


def _repeat(x: Array, count: int) -> Array:
    """The same scalar for every piece."""
    return jnp.broadcast_to(x, (count,))


def _marked_whole_batch(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "whole_batch", False)


def _denominator_reads_losses(reduction: Reduction, losses: Any, signals: Mapping[str, Any]) -> bool:
    """Whether the denominator of a reduction depends on the losses, as far as its program tells."""
    weights = jax.ShapeDtypeStruct(losses.shape, _checks.accumulation_dtype(losses))
    mask = signals.get("mask")
    program = jax.make_jaxpr(lambda l, w, m: _scalar_parts(reduction(l, w, m)).denominator)(losses, weights, mask).jaxpr
    touched = {program.invars[0]}
    for equation in program.eqns:
        if not touched.isdisjoint(v for v in equation.invars if not hasattr(v, "val")):
            touched.update(equation.outvars)
    return not touched.isdisjoint(v for v in program.outvars if not hasattr(v, "val"))


def _scalar_parts(parts: reduce.Parts) -> reduce.Parts:
    shapes = [jnp.shape(x) for x in parts] if isinstance(parts, reduce.Parts) else None
    if shapes != [(), ()]:
        came = type(parts).__name__ if shapes is None else f"Parts of shapes {shapes[0]} and {shapes[1]}"
        _checks.fail("train.make_step", "reduction", f"returning {came}", "a function to Parts of two scalars")
    return parts


def _named(
    function: str, parts: Mapping[str, reduce.Parts], own: tuple[str, ...] = OWN_METRICS
) -> dict[str, reduce.Parts]:
    for name, value in parts.items():
        if name in own:
            _checks.fail(function, "metrics", f"naming one {name!r}", "names other than " + ", ".join(own))
        if not isinstance(value, reduce.Parts):
            _checks.fail(function, f"metrics[{name!r}]", f"of type {type(value).__name__}", "reduce.Parts")
    return dict(parts)


def _weight_mask(weights: Array, losses: Array, mask: Mask | None) -> Array | None:
    """The mask of the losses, for weights that may be one a row: a row counts if anything in it does."""
    if mask is None:
        return None
    kept = jnp.broadcast_to(jnp.asarray(mask) != 0, losses.shape)
    return jnp.any(kept, axis=tuple(range(weights.ndim, losses.ndim)))


def _check_batch(batch: Batch, microbatches: int) -> None:
    sizes = {
        jax.tree_util.keystr(path): jnp.shape(x)[:1] for path, x in jax.tree_util.tree_leaves_with_path(dict(batch))
    }
    if len(set(sizes.values())) != 1 or () in sizes.values():
        came = ", ".join(f"{name} {size[0] if size else 'a scalar'}" for name, size in sizes.items()) or "empty"
        _checks.fail("train.step", "batch", f"of sizes: {came}", "arrays with one common first axis")
    (size,) = set(sizes.values()).pop()
    if size % microbatches:
        _checks.fail("train.step", "microbatches", f"{microbatches}", f"a divisor of the batch size {size}")


def _check_loss_state(loss: BatchLoss, state: TrainState) -> None:
    came, wanted = (str(jax.tree.structure(x)) for x in (state.loss_state, jax.eval_shape(loss.init, state.key)))
    if came != wanted:
        _checks.fail(
            "train.step", "state", f"with a loss_state {came}", f"{wanted}, as from init_state(..., loss=loss)"
        )


def _check_pieces(arrays: Mapping[str, Any], size: int) -> None:
    for name, value in arrays.items():
        for leaf in jax.tree.leaves(value):
            if leaf.shape[:1] != (size,):
                came = f"above 1 with `{name}` of shape {leaf.shape} for {size} examples"
                _checks.fail("train.step", "microbatches", came, "1, or one entry an example on the first axis")
