"""Checks, dtypes and constants that all preference losses share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from reweight import _checks

PerAnswer = Float[Array, "*batch"]
Lengths = Num[Array, "*batch"]


def positive(function: str, **values: Any) -> None:
    """Checks hyperparameters that scale something: numbers in (0, inf)."""
    for name, value in values.items():
        _checks.number(function, name, value, low=0, open_low=True, open_high=True)


def non_negative(function: str, **values: Any) -> None:
    """Checks coefficients of terms that may be left out: numbers in [0, inf)."""
    for name, value in values.items():
        _checks.number(function, name, value, low=0, open_high=True)


def finite(function: str, **values: Any) -> None:
    """Checks shifts and exponents of either sign."""
    for name, value in values.items():
        _checks.number(function, name, value, open_low=True, open_high=True)


def smoothing(function: str, label_smoothing: Any, *, open_low: bool = False) -> None:
    """Checks a share of flipped labels: at one half they would say nothing."""
    _checks.number(function, "label_smoothing", label_smoothing, low=0, high=0.5, open_low=open_low, open_high=True)


def answers(function: str, **arrays: Any) -> tuple[Array, ...]:
    """Float arrays of one shape, in a common dtype of at least float32."""
    first = next(iter(arrays))
    for name, value in arrays.items():
        _checks.array(function, name, value, kind="float")
        if jnp.shape(value) != jnp.shape(arrays[first]):
            _checks.fail(function, name, f"of shape {jnp.shape(value)}", f"{first}'s shape {jnp.shape(arrays[first])}")
    dtype = _checks.accumulation_dtype(*arrays.values())
    return tuple(jnp.asarray(value).astype(dtype) for value in arrays.values())


def per_answer(function: str, like: Array, **arrays: Any) -> tuple[Array, ...]:
    """Numbers that broadcast to the log-probs, in their dtype and without gradient."""
    for name, value in arrays.items():
        _checks.array(function, name, value, kind="number")
        _checks.broadcasts(function, name, value, like, like_name="policy_chosen")
    return tuple(jax.lax.stop_gradient(jnp.asarray(value)).astype(like.dtype) for value in arrays.values())


def log_ratios(
    function: str,
    policy_chosen: PerAnswer,
    policy_rejected: PerAnswer,
    reference_chosen: PerAnswer,
    reference_rejected: PerAnswer,
) -> tuple[Array, Array]:
    """Log-probs under the policy less those under the reference, a constant, for chosen and rejected."""
    chosen, rejected, *reference = answers(
        function,
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    held_chosen, held_rejected = jax.lax.stop_gradient(reference)
    return chosen - held_chosen, rejected - held_rejected


def counts(function: str, like: Array, chosen_lengths: Lengths, rejected_lengths: Lengths) -> tuple[Array, Array]:
    """Response lengths as constants in the dtype of the log-probs, as they came."""
    named = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    for name, value in named.items():
        _checks.array(function, name, value, shape=like.shape, kind="number")
    chosen, rejected = (jax.lax.stop_gradient(jnp.asarray(value)).astype(like.dtype) for value in named.values())
    return chosen, rejected


def means(
    function: str, chosen: Array, rejected: Array, chosen_lengths: Lengths, rejected_lengths: Lengths
) -> tuple[Array, Array]:
    """Sums over answers divided by their lengths; an empty answer has length 1, so that its mean is its sum, 0."""
    chosen_counts, rejected_counts = counts(function, chosen, chosen_lengths, rejected_lengths)
    return chosen / jnp.maximum(chosen_counts, 1), rejected / jnp.maximum(rejected_counts, 1)


def response(function: str, name: str, log_probs: Any, mask_name: str, mask: Any) -> Array:
    """The mask of the response tokens of sequences as booleans, of the shape of their log-probs."""
    _checks.array(function, name, log_probs, kind="float")
    if jnp.ndim(log_probs) < 1:
        _checks.fail(function, name, "a scalar", "an array whose last axis is time")
    _checks.mask(function, mask_name, mask, log_probs, like_name=name)
    return jnp.broadcast_to(jnp.asarray(mask) != 0, jnp.shape(log_probs))
