"""Metrics of times until an event, under censoring."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.reduce import Parts

__all__ = ["concordance_index", "concordance_pairs"]

ROWS_AT_ONCE = 256


def concordance_pairs(
    risks: Num[Array, " n"],
    times: Num[Array, " n"],
    events: Bool[Array, " n"] | Int[Array, " n"],
    weights: Num[Array, " n"] | None = None,
    *,
    mask: Bool[Array, " n"] | Num[Array, " n"] | None = None,
    censored_ties: bool = False,
) -> Parts:
    r"""Pairs in the right order, and comparable pairs: the sums of which the concordance index is the ratio.

    A pair is comparable if one has an event and the other lives longer. It is in the right order if the first has the
    higher risk, and half so if the risks are equal. The sums of strata that are not to be compared with each other add
    up; those of pieces of one set do not make that of the set, since pairs lie across the pieces.

    Args:
      risks: `[n]`, the higher the earlier the event; minus an expected life, for instance. No gradient flows.
      times: until the event or the last look `[n]`.
      events: boolean or 0/1 `[n]`; else the example was censored at that time.
      weights: of the examples, non-negative `[n]`; a pair counts as the product. Default: ones.
      mask: boolean or 0/1 `[n]`; what it hides is never read. Default: all.
      censored_ties: compare an event also with an example that was censored at the same time, as one that lives
        longer.

    Returns:
      `Parts(total, denominator)`: the pairs in the right order, and the comparable pairs, float32 or wider. Memory is
      linear in n, time is quadratic.

    Raises:
      ValueError: if the shapes do not fit, or events are not integers or booleans.

    References:
      Harrell et al., *Evaluating the Yield of Medical Tests*, 1982.
    """
    return _pairs("metrics.survival.concordance_pairs", risks, times, events, weights, mask, censored_ties)


def _pairs(
    function: str,
    risks: Array,
    times: Array,
    events: Array,
    weights: Array | None,
    mask: Array | None,
    censored_ties: bool,
) -> Parts:
    _checks.array(function, "risks", risks, ndim=1, kind="number")
    size = jnp.shape(risks)
    _checks.array(function, "times", times, shape=size, kind="number")
    _checks.array(function, "events", events, shape=size)
    if not jnp.issubdtype(jnp.result_type(events), jnp.bool_):
        _checks.array(function, "events", events, kind="integer")
    _checks.mask(function, "mask", mask, risks, like_name="risks")
    if weights is not None:
        _checks.array(function, "weights", weights, shape=size, kind="number")
    kept = _checks.kept(mask, size)
    risk, time = (jax.lax.stop_gradient(jnp.asarray(x)) for x in (risks, times))
    came = jnp.asarray(events) != 0
    dtype = _checks.accumulation_dtype(risk, *(() if weights is None else (weights,)))
    weight = jnp.where(kept, 1 if weights is None else jax.lax.stop_gradient(weights), 0).astype(dtype)

    def against_all(row: tuple[Array, ...]) -> tuple[Array, Array]:
        own_risk, own_time, own_event, own_weight = row
        longer = own_time < time
        if censored_ties:
            longer |= (own_time == time) & ~came
        comparable = jnp.where(longer & own_event, own_weight * weight, 0)
        right = jnp.where(own_risk > risk, 1.0, 0.0) + jnp.where(own_risk == risk, 0.5, 0.0)
        return jnp.sum(comparable * right), jnp.sum(comparable)

    rows = jax.lax.map(against_all, (risk, time, came, weight), batch_size=ROWS_AT_ONCE)
    return Parts(*(jnp.sum(part) for part in rows))


def concordance_index(
    risks: Num[Array, " n"],
    times: Num[Array, " n"],
    events: Bool[Array, " n"] | Int[Array, " n"],
    weights: Num[Array, " n"] | None = None,
    *,
    mask: Bool[Array, " n"] | Num[Array, " n"] | None = None,
    censored_ties: bool = False,
    undefined: float = 0.0,
) -> Float[Array, ""]:
    """Harrell's concordance index: the share of comparable pairs whose risks are in the right order; a scalar.

    Args:
      risks: as for `concordance_pairs`.
      times: as for `concordance_pairs`.
      events: as for `concordance_pairs`.
      weights: as for `concordance_pairs`.
      mask: as for `concordance_pairs`.
      censored_ties: as for `concordance_pairs`.
      undefined: what comes back where no pair is comparable.

    Returns:
      The index, in [0, 1]: 1/2 for risks that say nothing, 1 for the right order.

    Raises:
      ValueError: if the shapes do not fit, or events are not integers or booleans.

    References:
      Harrell et al., *Evaluating the Yield of Medical Tests*, 1982.
    """
    right, comparable = _pairs("metrics.survival.concordance_index", risks, times, events, weights, mask, censored_ties)
    some = comparable > 0
    return jnp.where(some, right / jnp.where(some, comparable, 1), undefined)
