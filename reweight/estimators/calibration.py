"""Calibration of a trained classifier on held-out examples."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks, reduce
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = ["fit_temperature"]

Solver = Literal["newton", "released"]
MAX_ITERATIONS = 100


class _Search(NamedTuple):
    """A root between two ends, and the last step towards it."""

    at: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    step: Float[Array, ""]
    iterations: Int[Array, ""]


def fit_temperature(
    logits: Logits,
    labels: Labels,
    weights: Num[Array, "..."] | None = None,
    *,
    init: float = 1.0,
    max_log: float = 5.0,
    solver: Solver = "newton",
    mask: Bool[Array, "..."] | Num[Array, "..."] | None = None,
) -> Float[Array, ""]:
    r"""The temperature that minimises the mean cross-entropy of :math:`\mathrm{softmax}(z / T)`; a scalar.

    A temperature changes confidences and no prediction. The cross-entropy is convex in :math:`1/T`, so that the slope
    has one zero, which Newton's steps on :math:`\log T`, kept between two ends, find to the precision of the dtype.

    Args:
      logits: of held-out examples `[..., C]`. Those that the classifier was trained on make it look too good.
      labels: integer class ids `[...]`; examples whose label is no class do not count.
      weights: of the examples, non-negative, broadcast to the labels. Default: ones.
      init: the first temperature, in (0, inf); it comes back where every temperature is as good.
      max_log: the ends, :math:`-L \le \log T \le L`, in (0, inf). Where every label has the largest logit the best
        temperature is 0, and the lower end comes back; where logits say less than nothing, the upper one.
      solver: `"newton"`, or `"released"`: the single call of L-BFGS of the paper's code, 20 steps at rate 0.01, which
        stops well short of the minimum. Not for use.
      mask: boolean or 0/1, broadcast to the labels; what it hides is never read. Default: all.

    Returns:
      The temperature, float32 or wider, without gradient.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or a hyperparameter is out of range.

    References:
      Guo et al., *On Calibration of Modern Neural Networks*, 2017, arXiv 1706.04599. The released run: Chidambaram and
      Ge, *On the Limitations of Temperature Scaling for Distributions with Overlaps*, 2023, arXiv 2306.00740.
    """
    function = "estimators.calibration.fit_temperature"
    _checks.number(function, "init", init, low=0, open_low=True, open_high=True)
    _checks.number(function, "max_log", max_log, low=0, open_low=True, open_high=True)
    _checks.choice(function, "solver", solver, get_args(Solver))
    given, kept = _rows.masked(function, logits, labels, mask)
    if weights is not None:
        _checks.array(function, "weights", weights, kind="number")
        _checks.broadcasts(function, "weights", weights, labels, like_name="labels")
        weights = jax.lax.stop_gradient(weights)
    kept &= given.known
    # Differences to the label's score: the cross-entropy is their log-sum-exp, and 0 behind the mask.
    ahead = jax.lax.stop_gradient(given.ahead())
    start = jnp.asarray(init, ahead.dtype)

    def moments(inverse: Array) -> tuple[Array, Array]:
        """First and second derivative of the mean cross-entropy in 1/T."""
        probs = jax.nn.softmax(inverse * ahead, axis=-1)
        mean = jnp.sum(probs * ahead, axis=-1)
        variance = jnp.sum(probs * (ahead - mean[..., None]) ** 2, axis=-1)
        return reduce.weighted_mean(mean, weights, where=kept), reduce.weighted_mean(variance, weights, where=kept)

    if solver == "released":
        return _released(lambda temperature: -moments(1 / temperature)[0] / temperature**2, start)
    found = jnp.exp(_root(moments, jnp.log(start), jnp.asarray(max_log, ahead.dtype)))
    counting = kept if weights is None else kept & (jnp.asarray(weights) > 0)
    behind = jnp.where(counting[..., None], ahead, 0)
    # Far above their rivals, labels leave a slope that rounds to 0; its sign is known without it.
    separated = jnp.all(behind <= 0) & jnp.any(behind < 0)
    return jnp.where(separated, jnp.exp(-jnp.asarray(max_log, ahead.dtype)), found)


def _root(moments: Callable[[Array], tuple[Array, Array]], start: Array, end: Array) -> Array:
    """The log T at which the slope is 0: by Newton's step where it is short and stays inside, else to the middle."""

    def body(now: _Search) -> _Search:
        inverse = jnp.exp(-now.at)
        slope, curvature = moments(inverse)
        # The slope in 1/T falls as log T rises.
        low, high = jnp.where(slope > 0, now.at, now.low), jnp.where(slope < 0, now.at, now.high)
        change = slope / jnp.where(curvature > 0, inverse * curvature, 1)
        inside = (now.at + change > low) & (now.at + change < high) & (curvature > 0)
        short = inside & (2 * jnp.abs(change) < jnp.abs(now.step))
        change = jnp.where(slope == 0, 0, jnp.where(short, change, (low + high) / 2 - now.at))
        return _Search(now.at + change, low, high, change, now.iterations + 1)

    def unfinished(now: _Search) -> Array:
        return (jnp.abs(now.step) > 4 * jnp.finfo(now.at.dtype).eps) & (now.iterations < MAX_ITERATIONS)

    first = jnp.clip(start, -end, end)
    begin = _Search(first, -end, end, 2 * end + jnp.zeros_like(first), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, body, begin).at


def _released(slope: Callable[[Array], Array], start: Array) -> Array:
    """20 steps of L-BFGS at rate 0.01, which on a line are steps along the secant, the first along the slope."""

    def body(_: int, now: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        at, slope_before, step, inverse_curvature = now
        here = slope(at)
        rise = here - slope_before
        inverse_curvature = jnp.where(rise * step > 1e-10, step / jnp.where(rise == 0, 1, rise), inverse_curvature)
        step = -0.01 * inverse_curvature * here
        return at + step, here, step, inverse_curvature

    first = slope(start)
    step = -0.01 * jnp.minimum(1, 1 / jnp.where(first == 0, 1, jnp.abs(first))) * first
    begin = (start + step, first, step, jnp.ones_like(start))
    return jax.lax.fori_loop(1, 20, body, begin)[0]
