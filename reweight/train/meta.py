"""A step that trains a model on weighted losses, and the weights on what the step did.

    weighting = weights.storm(num_classes=10, window=32)
    step = make_meta_step(loss_fn, optax.adam(1e-3), weighting)
    state = init_state(params, None, optax.adam(1e-3), weighting, key)
    state, metrics = jit_step(step)(state, batch)

One half of the batch makes the step and the other half judges it, unless `split` says otherwise.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from reweight import _checks, reduce
from reweight.train.state import TrainState
from reweight.train.step import (
    OWN_METRICS,
    Batch,
    LossFn,
    LossOutput,
    MetricFn,
    Metrics,
    Reduction,
    Step,
    _check_batch,
    _named,
    _scalar_parts,
    _weight_mask,
    mean_over_count,
)
from reweight.weights import LearnedWeighting, effective_sample_size, meta_gradient

__all__ = ["alternate", "make_meta_step"]

Tree = Any  # a pytree of arrays
SplitFn = Callable[[Batch], tuple[Batch, Batch]]


def alternate(batch: Batch) -> tuple[Batch, Batch]:
    """The even rows and the odd rows of a batch, so that of a sharded batch every device has half of each part."""
    return {name: x[::2] for name, x in batch.items()}, {name: x[1::2] for name, x in batch.items()}


class _Seen(NamedTuple):
    """What a pass over a batch gives besides the value."""

    extra: Tree
    memory: Tree
    weights: Array
    mask: Array | None
    parts: dict[str, reduce.Parts]


def make_meta_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    weighting: LearnedWeighting,
    *,
    outer_weights: bool = True,
    reduction: Reduction = mean_over_count,
    split: SplitFn = alternate,
    metrics: MetricFn | None = None,
) -> Step:
    r"""A pure step `(state, batch) -> (state, metrics)` of a model and of the weights that it is trained with.

    The batch is split in two. The model takes a step on the weighted losses of the inner part; the losses of the outer
    part after that step are what the weights' parameters descend, by `weights.meta_gradient`. The state is from
    `init_state(..., weighting=weighting)`. Batch statistics of the model (`extra`) come from the inner part.

    Args:
      loss_fn: `loss_fn(params, extra, batch, key) -> LossOutput` with losses, and the signals of the weighting.
      optimizer: an optax transformation for the model. Differentiating through Adam needs no `eps_root`.
      weighting: the weighting to learn, with its own optimizer.
      outer_weights: whether the outer losses are weighted too, which the weights then learn from directly. False asks
        for the plain outer loss, for an outer part with clean labels.
      reduction: as for `make_step`. The weights have a gradient in it.
      split: `split(batch) -> (inner, outer)`; other examples than those of the training batch may come as further
        arrays of the batch.
      metrics: as for `make_step`, of the inner part.

    Returns:
      The step. Its metrics are `loss`, `unweighted_loss`, `effective_sample_size` and `grad_norm` of the inner part,
      `outer_loss` after the step, and those of `metrics`.

    Raises:
      ValueError: at trace time, if the arrays of the batch differ in their first axis, the loss function returns no
        losses, a signal is missing, or a metric has the name of one of the step's.
    """

    def objective(
        params: Tree,
        meta_params: Tree,
        *,
        extra: Tree,
        memory: Tree,
        batch: Mapping[str, Any],
        key: PRNGKeyArray,
        weighted: bool,
    ) -> tuple[Array, _Seen]:
        output = loss_fn(params, extra, batch, key)
        if not isinstance(output, LossOutput) or output.losses is None:
            came = type(output).__name__
            _checks.fail("train.make_meta_step", "loss_fn", f"returning a {came} without losses", "one with losses")
        losses, signals = output.losses, {**batch, **output.signals}
        held = jax.lax.stop_gradient({name: x for name, x in signals.items() if name != "losses"})
        ones = jnp.ones(losses.shape, _checks.accumulation_dtype(losses))
        weights = ones
        if weighted:
            weights, memory = weighting.apply(meta_params, memory, jax.lax.stop_gradient(losses), **held)
        mask = signals.get("mask")
        parts = {"loss": _scalar_parts(reduction(losses, weights, mask))}
        parts["unweighted_loss"] = _scalar_parts(reduction(losses, ones, mask))
        if metrics is not None:
            found = metrics({**signals, "losses": losses, "weights": weights})
            parts |= _named("train.make_meta_step", found, (*OWN_METRICS, "outer_loss"))
        extra = extra if output.extra is None else output.extra
        return reduce.finish(parts["loss"]), _Seen(extra, memory, weights, _weight_mask(weights, losses, mask), parts)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_batch(batch, 1)
        inner, outer = split(batch)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step))
        learned = state.weighting_state

        def on(batch: Batch, memory: Tree, key: PRNGKeyArray, weighted: bool) -> Callable[..., tuple[Array, _Seen]]:
            return lambda params, meta_params: objective(
                params, meta_params, extra=state.extra, memory=memory, batch=batch, key=key, weighted=weighted
            )

        found = meta_gradient(
            state.params,
            learned.params,
            state.opt_state,
            inner=on(inner, learned.memory, keys[0], True),
            outer=on(outer, learned.outer_memory, keys[1], outer_weights),
            optimizer=optimizer,
        )
        updates, meta_opt_state = weighting.optimizer.update(found.grads, learned.opt_state, learned.params)
        seen, judged = found.inner[1], found.outer[1]
        measured = {name: reduce.finish(parts) for name, parts in seen.parts.items()}
        measured["outer_loss"] = found.outer[0]
        measured["grad_norm"] = optax.tree.norm(
            jax.tree.map(lambda g: g.astype(_checks.accumulation_dtype(g)), found.slope)
        )
        measured["effective_sample_size"] = effective_sample_size(jax.lax.stop_gradient(seen.weights), mask=seen.mask)
        new = state.replace(
            step=state.step + 1,
            params=found.params,
            extra=seen.extra,
            opt_state=found.opt_state,
            weighting_state=learned._replace(
                params=optax.apply_updates(learned.params, updates),
                opt_state=meta_opt_state,
                memory=seen.memory,
                outer_memory=judged.memory,
            ),
        )
        return new, jax.lax.stop_gradient(measured)

    return step
