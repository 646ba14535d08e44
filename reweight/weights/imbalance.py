"""Weights by class (or group) frequency, and focal weights."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.losses.classification import cross_entropy
from reweight.weights import base
from reweight.weights.groups import lookup

__all__ = [
    "class_balanced",
    "class_weighted",
    "deferred_class_weights",
    "effective_number_weights",
    "focal",
    "focal_weights",
    "inverse_frequency",
    "inverse_frequency_weights",
]

Mask = Bool[Array, "..."] | Num[Array, "..."]
Counts = Num[Array, " classes"]
Scale = Literal["classes", "examples"]


def _scaled(weights: Float[Array, " classes"], counts: Float[Array, " classes"], scale: Scale) -> Array:
    """Mean one over the classes that have examples, or over their examples."""
    largest = jnp.max(counts, initial=0)
    shares = (
        jnp.asarray(counts > 0, weights.dtype) if scale == "classes" else counts / jnp.where(largest > 0, largest, 1)
    )
    total = jnp.sum(weights * shares)
    return jax.lax.stop_gradient(weights * (jnp.sum(shares) / jnp.where(total > 0, total, 1)))


def _counts(function: str, counts: Counts, scale: Scale) -> Float[Array, " classes"]:
    _checks.array(function, "counts", counts, ndim=1, kind="number")
    _checks.choice(function, "scale", scale, get_args(Scale))
    return jnp.asarray(counts).astype(_checks.accumulation_dtype(counts))


def inverse_frequency_weights(
    counts: Counts, *, power: float = 1.0, scale: Scale = "classes"
) -> Float[Array, " classes"]:
    r"""A weight per class that falls with its number of examples: :math:`w_c \propto n_c^{-p}`.

    Args:
      counts: examples of each class `[C]`, non-negative.
      power: :math:`p`, in [0, inf): 0 weighs classes equally, 1/2 is the square-root rule, 1 inverse frequency.
      scale: `"classes"`: the weights of the classes that have examples have mean one, so that they sum to C.
        `"examples"`: mean one over the training examples, so that the average loss keeps its scale; with `power=1`
        this is :math:`w_c = N / (C n_c)`.

    Returns:
      Weights `[C]`, float32 or wider. A class without examples has weight 0 and counts in no mean.

    Raises:
      ValueError: if `counts` is not of rank 1, or a hyperparameter is out of range.
    """
    function = "weights.inverse_frequency_weights"
    number = _counts(function, counts, scale)
    _checks.number(function, "power", power, low=0, open_high=True)
    present = number > 0
    smallest = jnp.min(jnp.where(present, number, jnp.inf), initial=jnp.inf)
    weights = jnp.where(present, (jnp.where(present, number, 1) / jnp.where(present, smallest, 1)) ** -power, 0)
    return _scaled(weights, number, scale)


def effective_number_weights(
    counts: Counts, *, beta: float = 0.9999, scale: Scale = "classes"
) -> Float[Array, " classes"]:
    r"""A weight per class by its effective number of examples: :math:`w_c \propto (1 - \beta) / (1 - \beta^{n_c})`.

    `beta=0` weighs classes equally, and `beta=1`, the limit, by inverse frequency.

    Args:
      counts: examples of each class `[C]`, non-negative.
      beta: in [0, 1]; about 1 - 1/N for N distinct examples to a class.
      scale: `"classes"`: the weights of the classes that have examples have mean one, so that they sum to C.
        `"examples"`: mean one over the training examples, so that the average loss keeps its scale.

    Returns:
      Weights `[C]`, float32 or wider. A class without examples has weight 0 and counts in no mean.

    Raises:
      ValueError: if `counts` is not of rank 1, or a hyperparameter is out of range.

    References:
      Cui et al., *Class-Balanced Loss Based on Effective Number of Samples*, 2019, arXiv 1901.05555.
    """
    function = "weights.effective_number_weights"
    number = _counts(function, counts, scale)
    _checks.number(function, "beta", beta, low=0, high=1)
    # The logarithm of a Python number is taken in double precision: in float32, 0.9999999 is already another beta.
    if isinstance(beta, jax.Array):
        log_beta = jnp.log(beta)
    else:
        log_beta = jnp.asarray(math.log(beta) if beta > 0 else -math.inf, number.dtype)
    present = number > 0
    filled = jnp.where(present, number, 1)
    decaying = log_beta < 0
    effective = jnp.where(decaying, -jnp.expm1(filled * jnp.where(decaying, log_beta, -1)), filled)
    smallest = jnp.min(jnp.where(present, effective, jnp.inf), initial=jnp.inf)
    weights = jnp.where(present, jnp.where(present, smallest, 0) / effective, 0)
    return _scaled(weights, number, scale)


def deferred_class_weights(
    counts: Counts,
    step: int | Int[Array, ""],
    *,
    start_step: int | Int[Array, ""],
    beta: float = 0.9999,
    scale: Scale = "classes",
) -> Float[Array, " classes"]:
    r"""Class weights that set in late: ones before the step :math:`t_0`, then `effective_number_weights`.

    Deferred reweighting, on the first decay of the learning rate as a rule. As a weighting of examples it is
    `deferred(class_balanced(counts), start_step=...)`.

    Args:
      counts: examples of each class `[C]`, non-negative.
      step: the number of the step, from 0; it may be traced.
      start_step: :math:`t_0`, the first step with weights, at least 0.
      beta: as for `effective_number_weights`.
      scale: as for `effective_number_weights`.

    Returns:
      Weights `[C]`, float32 or wider.

    Raises:
      ValueError: if `counts` is not of rank 1, or a hyperparameter is out of range.

    References:
      Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, 2019, arXiv 1906.07413. Wang
      et al., *Imbalanced Adversarial Training with Reweighting*, 2021, arXiv 2107.13639.
    """
    function = "weights.deferred_class_weights"
    _checks.number(function, "step", step, integer=True)
    _checks.number(function, "start_step", start_step, low=0, integer=True)
    _counts(function, counts, scale)
    _checks.number(function, "beta", beta, low=0, high=1)
    late = effective_number_weights(counts, beta=beta, scale=scale)
    return jnp.where(jnp.asarray(step) < start_step, jnp.ones_like(late), late)


def class_weighted(class_weights: Float[Array, " classes"], *, signal: str = "labels") -> base.Weighting:
    r"""The weight of each example's class: :math:`w_i = v_{y_i}`, on the scale of the given weights.

    Args:
      class_weights: :math:`v` `[C]`, non-negative.
      signal: the name of the signal with the ids; `"groups"` weighs groups the same way.

    Returns:
      A `Weighting` of scope `"example"`. An id outside [0, C) has weight 0.

    Raises:
      ValueError: if `class_weights` is not of rank 1; at update, if the signal is missing or does not fit the losses.
    """
    return _by_class("weights.class_weighted", class_weights, signal)


def _by_class(function: str, class_weights: Float[Array, " classes"], signal: str) -> base.Weighting:
    _checks.array(function, "class_weights", class_weights, ndim=1, kind="number")

    def init(key: Any = None) -> tuple[()]:
        del key
        return ()

    def update(state: tuple[()], losses: Float[Array, "..."], **signals: Any) -> tuple[Float[Array, "..."], tuple[()]]:
        _checks.require(function, signals, (signal,))
        kept = base.keep(losses, signals.get("mask"), function)
        ids = base.integer_ids(function, signal, signals[signal], losses)
        return jax.lax.stop_gradient(jnp.where(kept, lookup(class_weights, ids), 0)), state

    return base.Weighting(init, update, "example", (signal,))


def class_balanced(
    counts: Counts, *, beta: float = 0.9999, scale: Scale = "classes", signal: str = "labels"
) -> base.Weighting:
    """The `effective_number_weights` of each example's class, from the counts of the training set.

    Args:
      counts: examples of each class (or group) `[C]`.
      beta: see `effective_number_weights`.
      scale: see `effective_number_weights`; under `"classes"` the mean weight of a batch with the training set's
        frequencies is below one, the further the more they differ.
      signal: the name of the signal with the ids; `"groups"` balances groups.

    Returns:
      A `Weighting` of scope `"example"`. An id outside [0, C) has weight 0.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if the signal is missing or does not fit the losses.
    """
    weights = effective_number_weights(counts, beta=beta, scale=scale)
    return _by_class("weights.class_balanced", weights, signal)


def inverse_frequency(
    counts: Counts, *, power: float = 1.0, scale: Scale = "classes", signal: str = "labels"
) -> base.Weighting:
    """The `inverse_frequency_weights` of each example's class, from the counts of the training set.

    Args:
      counts: examples of each class (or group) `[C]`.
      power: see `inverse_frequency_weights`.
      scale: see `inverse_frequency_weights`.
      signal: the name of the signal with the ids; `"groups"` balances groups.

    Returns:
      A `Weighting` of scope `"example"`. An id outside [0, C) has weight 0.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if the signal is missing or does not fit the losses.
    """
    weights = inverse_frequency_weights(counts, power=power, scale=scale)
    return _by_class("weights.inverse_frequency", weights, signal)


def focal_weights(
    log_probs: Float[Array, "..."], *, gamma: float = 2.0, mask: Mask | None = None
) -> Float[Array, "..."]:
    r"""Focal weights :math:`(1 - p_i)^\gamma` of the target's probability, in [0, 1] and not normalised.

    Args:
      log_probs: :math:`\log p_i` of each target, at most 0, any shape. A larger one, which rounding can produce, counts
        as 0. What stands where the mask is off is never read.
      gamma: focusing exponent, in [0, inf); 0 weighs all alike.
      mask: boolean or 0/1, broadcast to the log-probabilities.

    Returns:
      Weights of the same shape, float32 or wider, without gradient: `losses.focal_loss` differentiates the factor too.

    Raises:
      ValueError: if the mask does not broadcast to the log-probabilities, or `gamma` is out of range.

    References:
      Lin et al., *Focal Loss for Dense Object Detection*, 2017, arXiv 1708.02002.
    """
    function = "weights.focal_weights"
    kept = base.keep(log_probs, mask, function, "log_probs")
    _checks.number(function, "gamma", gamma, low=0, open_high=True)
    value = jnp.where(kept, log_probs, 0).astype(_checks.accumulation_dtype(log_probs))
    missing = -jnp.expm1(jnp.minimum(jax.lax.stop_gradient(value), 0))
    return jnp.where(kept, missing**gamma, 0)


def focal(*, gamma: float = 2.0, source: Literal["logits", "log_probs"] = "logits") -> base.Weighting:
    """The `focal_weights` of each example, in [0, 1] and not normalised.

    Args:
      gamma: focusing exponent, in [0, inf).
      source: the signals to read: `"logits"` (`logits [..., C]` and integer `labels [...]`), or `"log_probs"`
        (log-probabilities of the targets, of the losses' shape).

    Returns:
      A `Weighting` of scope `"example"`. With logits, a label that is not a class has weight 0.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if a signal is missing or does not fit the losses.
    """
    function = "weights.focal"
    _checks.number(function, "gamma", gamma, low=0, open_high=True)
    _checks.choice(function, "source", source, ("logits", "log_probs"))

    def from_log_probs(
        losses: Float[Array, "..."], *, log_probs: Float[Array, "..."], mask: Mask | None = None
    ) -> Float[Array, "..."]:
        _checks.array(function, "log_probs", log_probs, shape=jnp.shape(losses))
        return focal_weights(log_probs, gamma=gamma, mask=mask)

    def from_logits(
        losses: Float[Array, "..."],
        *,
        logits: Float[Array, "... classes"],
        labels: Int[Array, "..."],
        mask: Mask | None = None,
    ) -> Float[Array, "..."]:
        _checks.array(function, "logits", logits, shape=(*jnp.shape(losses), None))
        labels = base.integer_ids(function, "labels", labels, losses)
        kept = base.keep(losses, mask, function) & (labels >= 0) & (labels < logits.shape[-1])
        return focal_weights(-cross_entropy(logits, labels), gamma=gamma, mask=kept)

    if source == "logits":
        return base.stateless(from_logits, scope="example", name=function)
    return base.stateless(from_log_probs, scope="example", name=function)
