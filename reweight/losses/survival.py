"""Losses of times until an event, of which some are only known to be later than the last look.

Time is cut into intervals. The hazard of an interval is the probability that the event falls into it if it has not come
before, and a network gives one logit of a hazard an interval.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks

__all__ = ["Observed", "bucketize", "discrete_hazard_nll", "survival_from_hazard", "two_term_hazard_nll"]

Logits = Float[Array, "*batch intervals"]
Events = Bool[Array, "*batch"] | Int[Array, "*batch"]

DAYS_OF_CUT_OUT = (1.0, 3.0, 5.0, 7.0, 10.0)
DAYS_OF_WEAR_OUT = (1.0, 10.0, 30.0, 60.0, 90.0, 120.0)


class Observed(NamedTuple):
    """In which interval an example was last seen, T if it outlived the grid, and whether its event was seen there."""

    intervals: Int[Array, "*batch"]
    events: Bool[Array, "*batch"]


def _events(function: str, events: Events, like: Array) -> Bool[Array, "*batch"]:
    _checks.array(function, "events", events, shape=jnp.shape(like))
    if not jnp.issubdtype(jnp.result_type(events), jnp.bool_):
        _checks.array(function, "events", events, kind="integer")
    return jnp.asarray(events) != 0


def discrete_hazard_nll(
    hazard_logits: Logits,
    intervals: Int[Array, "*batch"],
    events: Events,
    *,
    censored_survived: bool = False,
) -> Float[Array, "*batch"]:
    r"""Negative log-likelihood of discrete hazards :math:`h_t = \sigma(z_t)` under censoring, per example.

    .. math:: -e \log h_j - \sum_{t<j} \log(1 - h_t)

    for an example last seen in interval :math:`j`, with an event there (:math:`e = 1`) or without. It is the binary
    cross-entropy of a logistic regression on the intervals that the example was alive in.

    To make the model better where it counts, weigh the losses: with click-through rates, for instance, by
    `weights.normalize(clicks / jnp.maximum(impressions, 1))`.

    Args:
      hazard_logits: `[..., T]`, any scale.
      intervals: `[...]`, in 0..T. T says that the whole grid was outlived: an event after that is not seen. Below 0 the
        example is unknown.
      events: boolean or 0/1 `[...]`: whether the event came in the interval; else the example was censored there.
      censored_survived: count a censored example as alive to the end of its interval, not only to its start.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient for an unknown example. Logits of intervals that an example
      was not alive in are never read.

    Raises:
      ValueError: if the shapes do not fit, or intervals or events are not integers.

    References:
      Kitada et al., *Ad Creative Discontinuation Prediction with Multi-Modal Multi-Task Neural Survival Networks*,
      2022, arXiv 2204.11588. Gensheimer and Narasimhan, *A scalable discrete-time survival model for neural networks*,
      2019, arXiv 1805.00917.
    """
    function = "losses.survival.discrete_hazard_nll"
    _checks.array(function, "intervals", intervals, kind="integer")
    return _hazard_nll(function, "hazard_logits", hazard_logits, intervals, events, censored_survived)


def _hazard_nll(
    function: str, name: str, hazard_logits: Array, intervals: Array, events: Array, censored_survived: bool = False
) -> Float[Array, "*batch"]:
    _checks.array(function, name, hazard_logits, kind="float")
    if jnp.ndim(hazard_logits) < 1 or jnp.shape(hazard_logits)[-1] < 1:
        _checks.fail(
            function, name, f"of shape {jnp.shape(hazard_logits)}", "an array whose last axis is the intervals"
        )
    _checks.array(function, "intervals", intervals, shape=jnp.shape(hazard_logits)[:-1])
    failed = _events(function, events, intervals)[..., None]
    logits = jnp.asarray(hazard_logits).astype(_checks.accumulation_dtype(hazard_logits))
    steps = jnp.arange(logits.shape[-1])
    last = jnp.asarray(intervals)[..., None]
    alive, here = steps < last, steps == last
    if censored_survived:
        alive |= here & ~failed
    ended = here & failed
    logits = jnp.where(alive | ended, logits, 0)
    costs = jnp.where(alive, jax.nn.softplus(logits), 0) + jnp.where(ended, jax.nn.softplus(-logits), 0)
    return jnp.sum(costs, axis=-1)


def survival_from_hazard(hazard_logits: Logits) -> Float[Array, "*batch intervals"]:
    r"""Probability of being alive after each interval: :math:`S_t = \prod_{s \le t} (1 - \sigma(z_s))`.

    The sum over the intervals is the expected number of intervals outlived; minus that is a risk.

    Args:
      hazard_logits: `[..., T]`, any scale.

    Returns:
      Probabilities `[..., T]` that do not rise, float32 or wider.

    Raises:
      ValueError: if the logits are no float array with a last axis.

    References:
      Gensheimer and Narasimhan, *A scalable discrete-time survival model for neural networks*, 2019, arXiv 1805.00917.
    """
    function = "losses.survival.survival_from_hazard"
    _checks.array(function, "hazard_logits", hazard_logits, kind="float")
    if jnp.ndim(hazard_logits) < 1:
        _checks.fail(function, "hazard_logits", "a scalar", "an array whose last axis is the intervals")
    logits = jnp.asarray(hazard_logits).astype(_checks.accumulation_dtype(hazard_logits))
    return jnp.exp(-jnp.cumsum(jax.nn.softplus(logits), axis=-1))


def bucketize(times: Num[Array, "*batch"], events: Events, *, edges: Sequence[float]) -> Observed:
    """The interval `(edges[t], edges[t + 1]]` of each time, and whether the event is seen in the grid.

    Args:
      times: until the event or the last look `[...]`, in the unit of the edges. Up to the second edge the interval is
        0, also before the first; past the last edge it is T, and the event is not seen.
      events: boolean or 0/1 `[...]`; else the example was censored at that time.
      edges: T + 1 rising numbers.

    Returns:
      `Observed(intervals, events)`, as `discrete_hazard_nll` takes them.

    Raises:
      ValueError: if the shapes do not fit, or the edges do not rise.

    References:
      Kitada et al., *Ad Creative Discontinuation Prediction with Multi-Modal Multi-Task Neural Survival Networks*,
      2022, arXiv 2204.11588.
    """
    return _bucketize("losses.survival.bucketize", "edges", times, events, edges)


def _bucketize(function: str, name: str, times: Array, events: Array, edges: Sequence[float]) -> Observed:
    _checks.array(function, "times", times, kind="number")
    came = _events(function, events, times)
    if isinstance(edges, str) or np.ndim(edges) != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0):
        _checks.fail(function, name, repr(edges), "at least two rising numbers")
    # Both in one dtype, so that a time at an edge is at the edge.
    times = jnp.asarray(times).astype(_checks.accumulation_dtype(times))
    intervals = jnp.searchsorted(jnp.asarray(edges[1:], times.dtype), times, side="left").astype(jnp.int32)
    return Observed(intervals, came & (intervals < len(edges) - 1))


def two_term_hazard_nll(
    short_logits: Float[Array, "*batch short"],
    long_logits: Float[Array, "*batch long"],
    times: Num[Array, "*batch"],
    events: Events,
    *,
    short_edges: Sequence[float] = DAYS_OF_CUT_OUT,
    long_edges: Sequence[float] = DAYS_OF_WEAR_OUT,
    lam: float = 0.5,
) -> Float[Array, "*batch"]:
    r"""Hazards on two grids at once, :math:`\lambda \ell_{short} + (1 - \lambda) \ell_{long}`, per example.

    One head learns what ends early and the other what lasts. Both learn from all examples: one that outlives the short
    grid is a survivor there.

    Args:
      short_logits: of the hazards on the short grid `[..., len(short_edges) - 1]`.
      long_logits: of those on the long grid `[..., len(long_edges) - 1]`.
      times: until the event or the last look `[...]`, in the unit of the edges.
      events: boolean or 0/1 `[...]`; else the example was censored at that time.
      short_edges: of the short grid, rising; the paper's, in days.
      long_edges: of the long grid, rising; the paper's, in days.
      lam: the share of the short grid, in [0, 1]. The paper gives no number.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, the edges do not rise, or `lam` is out of range.

    References:
      Kitada et al., *Ad Creative Discontinuation Prediction with Multi-Modal Multi-Task Neural Survival Networks*,
      2022, arXiv 2204.11588.
    """
    function = "losses.survival.two_term_hazard_nll"
    _checks.number(function, "lam", lam, low=0, high=1)
    grids = []
    for name, logits, edges in (("short", short_logits, short_edges), ("long", long_logits, long_edges)):
        seen = _bucketize(function, f"{name}_edges", times, events, edges)
        _checks.array(function, f"{name}_logits", logits, shape=(*jnp.shape(times), len(edges) - 1), kind="float")
        grids.append(_hazard_nll(function, f"{name}_logits", logits, seen.intervals, seen.events))
    short, long = grids
    return lam * short + (1 - lam) * long
