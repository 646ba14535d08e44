"""What a weighting scheme is, and what all of them share.

A `Weighting` is a pair of pure functions, like an `optax.GradientTransformation`: `init` makes the state, `update`
turns the losses of a batch (and whatever else the scheme looks at, by name) into weights and the next state.

    weighting = weights.chain(weights.class_balanced(counts), weights.kl_dro(temperature=2.0))
    state = weighting.init()
    w, state = weighting.update(state, losses, labels=labels, mask=mask)
    loss = reduce.weighted_mean(losses, w, where=mask, normalizer="count")

Losses have any shape, and each of their entries is an example; ids such as labels broadcast to that shape. Unless a
scheme says otherwise its weights are non-negative, have mean one over the unmasked examples, are 0 where masked, and
carry no gradient. A batch that is masked altogether has weights 0 and leaves the state as it was.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks

__all__ = [
    "DeferredState",
    "Weighting",
    "chain",
    "deferred",
    "effective_sample_size",
    "max_weight_share",
    "normalize",
    "stateless",
    "uniform",
    "weight_entropy",
]

State = Any  # a pytree of arrays
Scope = Literal["example", "batch"]
Mask = Bool[Array, "..."] | Num[Array, "..."]


class InitFn(Protocol):
    """Makes the state of a weighting; `key` only where the state is drawn at random."""

    def __call__(self, key: PRNGKeyArray | None = None) -> State: ...


class UpdateFn(Protocol):
    """Weights for a batch, and the next state."""

    def __call__(
        self, state: State, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], State]: ...


class Weighting(NamedTuple):
    """A weighting scheme: `init(key=None) -> state` and `update(state, losses, **signals) -> (weights, state)`.

    Attributes:
      init: makes the state, a pytree of arrays.
      update: a pure function; it reads the signals it needs and ignores the others, so that one call serves a chain.
        The signal `mask` (boolean or 0/1, broadcast to the losses) is known to every scheme.
      scope: what a weight depends on. `"example"`: on the state and on this example's own loss and signals, and
        updating with the pieces of a batch one after the other ends in the state of updating with the batch. `"batch"`:
        on other examples of the batch too (a rank, a mean, a softmax), so that under gradient accumulation the weights
        are computed for the whole batch before the first gradient.
      signals: the names that `update` cannot do without.
    """

    init: InitFn
    update: UpdateFn
    scope: Scope = "batch"
    signals: tuple[str, ...] = ()


def stateless(
    function: Callable[..., Float[Array, "..."]], *, scope: Scope = "batch", name: str | None = None
) -> Weighting:
    """Lifts a pure weight function `function(losses, *, mask=None, **signals) -> weights` to a `Weighting`.

    The signals are the function's keyword-only parameters, and those without a default are required. Hyperparameters
    are bound beforehand, with `functools.partial` or a closure; what `partial` has bound is no signal.

    Args:
      function: from losses and named signals to weights of the losses' shape.
      scope: `"example"` if a weight depends on its own example alone, else `"batch"`; see `Weighting`.
      name: the name for error messages; default the function's.

    Returns:
      A `Weighting` with an empty state, whose weights carry no gradient.

    Raises:
      ValueError: if `scope` is unknown; at update, if a required signal is missing.
    """
    _checks.choice("weights.stateless", "scope", scope, get_args(Scope))
    bound = function.keywords if isinstance(function, functools.partial) else {}
    parameters = tuple(
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in bound
    )
    names = tuple(parameter.name for parameter in parameters)
    required = tuple(parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty)
    label = name if name is not None else str(getattr(function, "__name__", "weights.stateless"))

    def init(key: PRNGKeyArray | None = None) -> State:
        del key
        return ()

    def update(state: State, losses: Float[Array, "..."], **signals: Any) -> tuple[Float[Array, "..."], State]:
        _checks.require(label, signals, required)
        chosen = {key: value for key, value in signals.items() if key in names and value is not None}
        return jax.lax.stop_gradient(function(losses, **chosen)), state

    return Weighting(init, update, scope, required)


def chain(*weightings: Weighting) -> Weighting:
    r"""The product of several weightings: :math:`w_i = \prod_k w^{(k)}_i`, each on the same losses and signals.

    The product is not normalised again: where a mean of one is wanted of it, `normalize` the result.

    Args:
      *weightings: at least one.

    Returns:
      A `Weighting` whose state is the tuple of theirs; its scope is `"example"` if theirs all are.

    Raises:
      ValueError: if there is none, or one is no `Weighting` (a pure function becomes one by `stateless`).
    """
    if not weightings:
        _checks.fail("weights.chain", "weightings", "empty", "at least one Weighting")
    for index, weighting in enumerate(weightings):
        if not isinstance(weighting, Weighting):
            came = f"of type {type(weighting).__name__}"
            _checks.fail("weights.chain", f"weightings[{index}]", came, "a Weighting; `stateless` lifts a function")

    def init(key: PRNGKeyArray | None = None) -> State:
        keys = [None] * len(weightings) if key is None else jax.random.split(key, len(weightings))
        return tuple(weighting.init(k) for weighting, k in zip(weightings, keys, strict=True))

    def update(state: State, losses: Float[Array, "..."], **signals: Any) -> tuple[Float[Array, "..."], State]:
        product: Float[Array, "..."] | None = None
        states = []
        for weighting, part in zip(weightings, state, strict=True):
            weights, new = weighting.update(part, losses, **signals)
            product = weights if product is None else product * weights
            states.append(new)
        assert product is not None
        return product, tuple(states)

    scope: Scope = "example" if all(weighting.scope == "example" for weighting in weightings) else "batch"
    signals = tuple(dict.fromkeys(name for weighting in weightings for name in weighting.signals))
    return Weighting(init, update, scope, signals)


class DeferredState(NamedTuple):
    """How many batches `deferred` has seen, and the state of the scheme that sets in."""

    step: Int[Array, ""]
    inner: State


def deferred(inner: Weighting, *, start_step: int) -> Weighting:
    r"""A weighting that sets in late: weights of one for the first :math:`t_0` batches, then those of another scheme.

    Networks learn better features from equal weights, and need others only in the end: deferred class weights, or
    geometry-aware ones. The other scheme sees all batches, so that a state of it is warm when it sets in.

    Args:
      inner: the scheme that sets in; it gets all signals.
      start_step: :math:`t_0`, the number of the first batch with its weights, counted from 0; at least 0.

    Returns:
      A `Weighting` of scope `"batch"` with state `DeferredState`, whose weights are on the scale of the inner scheme
      once that has set in. A batch that is masked altogether is not counted.

    Raises:
      ValueError: if `inner` is no `Weighting`, or `start_step` is out of range.

    References:
      Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, 2019, arXiv 1906.07413.
    """
    function = "weights.deferred"
    if not isinstance(inner, Weighting):
        _checks.fail(function, "inner", f"of type {type(inner).__name__}", "a Weighting; `stateless` lifts a function")
    _checks.number(function, "start_step", start_step, low=0, integer=True)

    def init(key: PRNGKeyArray | None = None) -> DeferredState:
        return DeferredState(jnp.zeros((), jnp.int32), inner.init(key))

    def update(
        state: DeferredState, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], DeferredState]:
        weights, after = inner.update(state.inner, losses, **signals)
        kept = keep(losses, signals.get("mask"), function)
        step = state.step + jnp.any(kept).astype(jnp.int32)
        return jnp.where(state.step < start_step, kept.astype(weights.dtype), weights), DeferredState(step, after)

    return Weighting(init, update, "batch", inner.signals)


def keep(losses: Float[Array, "..."], mask: Mask | None, function: str, name: str = "losses") -> Bool[Array, "..."]:
    """The mask as booleans of the shape of `losses`, which `name` is what errors call."""
    _checks.array(function, name, losses, kind="float")
    _checks.mask(function, "mask", mask, losses, like_name=name)
    return _checks.kept(mask, jnp.shape(losses))


def integer_ids(function: str, name: str, ids: Any, like: Any, like_name: str = "losses") -> Int[Array, "..."]:
    """Integer ids (labels, groups, indices) broadcast to the shape of `like`."""
    _checks.array(function, name, ids, kind="integer")
    _checks.broadcasts(function, name, ids, like, like_name=like_name)
    return jnp.broadcast_to(ids, jnp.shape(like))


def uniform() -> Weighting:
    """Weight one for every unmasked example: empirical risk minimisation."""

    def ones(losses: Float[Array, "..."], *, mask: Mask | None = None) -> Float[Array, "..."]:
        return keep(losses, mask, "weights.uniform").astype(_checks.accumulation_dtype(losses))

    return stateless(ones, scope="example", name="weights.uniform")


def normalize(weights: Float[Array, "..."], *, mask: Mask | None = None) -> Float[Array, "..."]:
    r"""Scales weights to mean one over the unmasked entries: :math:`w_i \cdot n / \sum_j m_j w_j`, 0 where masked.

    Args:
      weights: non-negative, any shape; all axes count as examples. What stands where the mask is off is never read.
      mask: boolean or 0/1, broadcast to the weights.

    Returns:
      Weights of the same shape, float32 or wider. If all unmasked weights are 0 they stay 0.

    Raises:
      ValueError: if the mask does not broadcast to the weights.
    """
    kept = keep(weights, mask, "weights.normalize", "weights")
    value = jnp.where(kept, weights, 0).astype(_checks.accumulation_dtype(weights))
    # Dividing by the largest weight first keeps the sum of very large or very small weights in range.
    top = jnp.max(value, initial=0)
    value = value / jnp.where(top > 0, top, 1)
    total = jnp.sum(value)
    return value * (jnp.sum(kept) / jnp.where(total > 0, total, 1))


def effective_sample_size(weights: Float[Array, "..."], *, mask: Mask | None = None) -> Float[Array, ""]:
    r"""Kish's effective sample size of a batch, a scalar in [0, n]: :math:`(\sum_i w_i)^2 / \sum_i w_i^2`.

    Args:
      weights: non-negative, any shape, on any scale.
      mask: boolean or 0/1, broadcast to the weights; what is masked does not count.

    Returns:
      n for equal weights, 1 for a single non-zero weight, 0 if all are 0 or masked.

    Raises:
      ValueError: if the mask does not broadcast to the weights.

    References:
      Leslie Kish, *Survey Sampling*, 1965.
    """
    keep(weights, mask, "weights.effective_sample_size", "weights")
    scaled = normalize(weights, mask=mask)
    squares = jnp.sum(scaled**2)
    return jnp.sum(scaled) ** 2 / jnp.where(squares > 0, squares, 1)


def max_weight_share(weights: Float[Array, "..."], *, mask: Mask | None = None) -> Float[Array, ""]:
    r"""The share of the heaviest entry of a batch, a scalar: :math:`\max_i w_i / \sum_j w_j`.

    Args:
      weights: non-negative, any shape, on any scale.
      mask: boolean or 0/1, broadcast to the weights; what is masked does not count.

    Returns:
      Between 1/n (equal weights) and 1 (one example decides); 0 if all are 0 or masked.

    Raises:
      ValueError: if the mask does not broadcast to the weights.
    """
    keep(weights, mask, "weights.max_weight_share", "weights")
    scaled = normalize(weights, mask=mask)
    total = jnp.sum(scaled)
    return jnp.max(scaled, initial=0) / jnp.where(total > 0, total, 1)


def weight_entropy(weights: Float[Array, "..."], *, mask: Mask | None = None) -> Float[Array, ""]:
    r"""Entropy of the weights of a batch, a scalar in nats: :math:`-\sum_i p_i \log p_i` with :math:`p = w / \sum w`.

    Args:
      weights: non-negative, any shape, on any scale.
      mask: boolean or 0/1, broadcast to the weights; what is masked does not count.

    Returns:
      log n for equal weights, 0 for a single non-zero weight or none.

    Raises:
      ValueError: if the mask does not broadcast to the weights.
    """
    keep(weights, mask, "weights.weight_entropy", "weights")
    scaled = normalize(weights, mask=mask)
    total = jnp.sum(scaled)
    share = scaled / jnp.where(total > 0, total, 1)
    return -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
