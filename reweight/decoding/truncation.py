"""Which tokens a sampler may choose: the most probable ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reweight import _checks

__all__ = ["top_k_mask", "top_p_mask"]

Logits = Float[Array, "*batch vocabulary"]


def _check_logits(function: str, logits: Logits) -> None:
    _checks.array(function, "logits", logits, kind="float")
    if jnp.ndim(logits) < 1 or jnp.shape(logits)[-1] < 1:
        _checks.fail(function, "logits", f"of shape {jnp.shape(logits)}", "an array whose last axis is the vocabulary")


def _largest(
    logits: Logits, descending: Float[Array, "*batch vocabulary"], count: Int[Array, "*#batch 1"]
) -> Bool[Array, "*batch vocabulary"]:
    """The `count` largest, of equal ones those of lower id, given the same logits in descending order."""
    last = jnp.clip(count - 1, 0, logits.shape[-1] - 1)
    least = jnp.take_along_axis(descending, jnp.broadcast_to(last, (*logits.shape[:-1], 1)), axis=-1)
    above, tied = logits > least, logits == least
    left = count - jnp.sum(above, axis=-1, keepdims=True)
    return above | (tied & (jnp.cumsum(tied, axis=-1) <= left))


def top_k_mask(logits: Logits, *, k: int | Int[Array, ""]) -> Bool[Array, "*batch vocabulary"]:
    """The `k` most probable tokens; of equally probable ones those of lower id, so that they are never more.

    Args:
      logits: `[..., V]`, any scale; -inf for tokens that are ruled out already.
      k: how many, in [1, inf), may be traced; `V` and above keep all.

    Returns:
      Booleans `[..., V]`.

    Raises:
      ValueError: if the shape does not fit, or `k` is out of range.

    References:
      Fan, Lewis, Dauphin, *Hierarchical Neural Story Generation*, 2018, arXiv 1805.04833.
    """
    function = "decoding.top_k_mask"
    _check_logits(function, logits)
    _checks.number(function, "k", k, low=1, integer=True)
    logits = jnp.asarray(logits)
    count = jnp.clip(jnp.asarray(k, jnp.int32), 1, logits.shape[-1])
    descending = jnp.sort(logits, axis=-1, descending=True)
    return _largest(logits, descending, jnp.reshape(count, (1,) * logits.ndim))


def top_p_mask(logits: Logits, *, p: float | Float[Array, ""]) -> Bool[Array, "*batch vocabulary"]:
    """The fewest tokens, the most probable first, whose probabilities sum to `p` or more (the nucleus).

    Of equally probable tokens those of lower id come first. The most probable token is always kept.

    Args:
      logits: `[..., V]`, any scale; -inf for tokens that are ruled out already.
      p: the mass, in (0, 1], may be traced; 1 keeps all.

    Returns:
      Booleans `[..., V]`.

    Raises:
      ValueError: if the shape does not fit, or `p` is out of range.

    References:
      Holtzman et al., *The Curious Case of Neural Text Degeneration*, 2020, arXiv 1904.09751.
    """
    function = "decoding.top_p_mask"
    _check_logits(function, logits)
    _checks.number(function, "p", p, low=0, open_low=True, high=1)
    logits = jnp.asarray(logits)
    descending = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending.astype(_checks.accumulation_dtype(logits)), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    count = jnp.maximum(jnp.sum(before < p, axis=-1, keepdims=True), 1)
    # A sum that rounds to 1 early must not drop the rest.
    return _largest(logits, descending, jnp.where(jnp.asarray(p) >= 1, logits.shape[-1], count))
