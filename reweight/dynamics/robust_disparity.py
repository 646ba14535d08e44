r"""What robustness costs each of two classes, in closed form for Gaussian classes and linear rules.

The label is +1 with probability :math:`R / (1 + R)`, else -1, and :math:`x \mid y \sim N(y \theta, \Sigma)`. A rule
predicts the sign of :math:`w \cdot x + b`; an attack moves x by at most :math:`\epsilon` in a norm. Under attack the
distance of a class mean from the boundary falls from :math:`w \cdot \theta` to the margin
:math:`m = w \cdot \theta - \epsilon \|w\|_*` in the dual norm, while the spread :math:`s = \sqrt{w^\top \Sigma w}`
along w stays. Two things follow. The direction that has most margin for its spread turns, which costs both classes
alike; and the prior odds move the boundary by :math:`s^2 \log R / (2 m)`, more so the less margin is left, which takes
from the rare class and gives to the frequent one.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks, _vectors

__all__ = [
    "ClassAccuracies",
    "DisparityGap",
    "LinearRule",
    "class_accuracies",
    "disparity_gap",
    "robust_gaussian_classifier",
]

Norm = Literal["linf", "l2"]
Covariance = float | Float[Array, ""] | Float[Array, " d"] | Float[Array, "d d"]
Number = float | Float[Array, ""]

_STEPS, _CORRECTIONS = 50, 10  # of the search for the entries that a sparse rule uses


class LinearRule(NamedTuple):
    """The rule that predicts the sign of `weights · x + bias`; the weights have Euclidean norm one, or are all 0."""

    weights: Float[Array, " d"]
    bias: Float[Array, ""]


class ClassAccuracies(NamedTuple):
    """The share of each class that is classified rightly."""

    positive: Float[Array, ""]
    negative: Float[Array, ""]

    @property
    def balanced(self) -> Float[Array, ""]:
        """The mean of the two."""
        return (self.positive + self.negative) / 2

    @property
    def disparity(self) -> Float[Array, ""]:
        """How far the positive class is ahead."""
        return self.positive - self.negative


class DisparityGap(NamedTuple):
    """What the robust rule costs in natural accuracy, and what it adds to the disparity of the classes."""

    accuracy: Float[Array, ""]
    disparity: Float[Array, ""]


def _moments(function: str, theta: Float[Array, " d"], covariance: Covariance) -> tuple[Array, Array]:
    """Mean and covariance in float32 at least; the covariance is a matrix, or else a vector of variances."""
    _checks.array(function, "theta", theta, ndim=1, kind="float")
    size = jnp.shape(theta)[0]
    _checks.array(function, "covariance", covariance, ndim=(0, 1, 2), kind="float")
    if jnp.shape(covariance) not in ((), (size,), (size, size)):
        allowed = f"a variance, or an array of shape ({size},) or ({size}, {size})"
        _checks.fail(function, "covariance", f"of shape {jnp.shape(covariance)}", allowed)
    dtype = _checks.accumulation_dtype(theta, covariance)
    wide = jnp.asarray(covariance).astype(dtype)
    return jnp.asarray(theta).astype(dtype), jnp.broadcast_to(wide, (size,)) if wide.ndim < 2 else wide


def _check_attack(function: str, eps: Number, norm: Norm) -> None:
    _checks.number(function, "eps", eps, low=0, open_high=True)
    _checks.choice(function, "norm", norm, get_args(Norm))


def _margin(weights: Array, theta: Array, eps: Number, norm: Norm) -> Float[Array, ""]:
    dual = jnp.sum(jnp.abs(weights)) if norm == "linf" else _vectors.length(weights)
    return jnp.dot(weights, theta) - eps * dual


def _spread(weights: Array, covariance: Array) -> Float[Array, ""]:
    square = jnp.sum(weights**2 * covariance) if covariance.ndim == 1 else weights @ covariance @ weights
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _sparse(theta: Array, covariance: Array, eps: Array) -> Float[Array, " d"]:
    """The minimum of half the variance less the mean plus eps times the sum of absolute weights."""
    if covariance.ndim == 1:
        return jnp.sign(theta) * jnp.maximum(jnp.abs(theta) - eps, 0) / covariance

    def solved(sides: Array) -> Array:
        """The weights, given on which side of 0 they are, or that they are 0."""
        used = sides != 0
        system = jnp.where(used[:, None] & used, covariance, jnp.diag(jnp.diagonal(covariance)))
        return jax.scipy.linalg.solve(system, jnp.where(used, theta - eps * sides, 0), assume_a="pos")

    def corrected(_: Any, sides: Array) -> Array:
        weights = solved(sides)
        attack = theta - covariance @ weights  # within eps where the weight is 0, as far as it reaches elsewhere
        return jnp.where(sides != 0, sides * (sides * weights > 0), jnp.sign(attack) * (jnp.abs(attack) > eps))

    sides = jax.lax.fori_loop(0, _CORRECTIONS, corrected, _sides(theta, covariance, eps))
    return solved(jax.lax.stop_gradient(sides))


def _sides(theta: Array, covariance: Array, eps: Array) -> Float[Array, " d"]:
    r"""On which side of 0 the weights of `_sparse` are, up to those that are almost 0, by an interior point method.

    The attack z and the weights w solve :math:`\Sigma w + z = \theta`, :math:`|z_i| \le \epsilon` and :math:`w = a - b`
    with :math:`a_i (\epsilon - z_i) = b_i (\epsilon + z_i) = 0`. The method lets the products fall to 0 together, in a
    number of steps that hardly depends on the covariance.
    """
    scale = jnp.sqrt(jnp.diagonal(covariance))
    theta, covariance, reach = theta / scale, covariance / scale / scale[:, None], eps / scale
    largest = jnp.max(jnp.abs(theta), initial=0)
    largest = jnp.where(largest > 0, largest, 1)
    attacked = eps > 0
    theta, reach = theta / largest, jnp.where(attacked, reach / largest, 1)
    least = jnp.finfo(theta.dtype).eps * jnp.mean(reach)

    def step(_: Any, point: Array) -> Array:
        up, down, above, below = point  # a and b, and how far z is from either end
        product = (jnp.sum(up * above) + jnp.sum(down * below)) / (2 * theta.size)
        wanted = 0.1 * product
        missing = theta - covariance @ (up - down) - (below - above) / 2
        slope = up / above + down / below
        free = wanted / above - up - wanted / below + down
        turned = jax.scipy.linalg.solve(covariance + jnp.diag(1 / slope), free / slope + missing, assume_a="pos")
        z = missing - covariance @ turned
        change = jnp.stack([wanted / above - up + up / above * z, wanted / below - down - down / below * z, -z, z])
        falls = change < 0
        room = jnp.min(jnp.where(falls, -point / jnp.where(falls, change, 1), jnp.inf))
        return jnp.where(product < least, point, point + jnp.minimum(1, 0.99 * room) * change)

    one = jnp.ones_like(theta)
    up, down, above, below = jax.lax.fori_loop(0, _STEPS, step, jnp.stack([one, one, reach, reach]))
    used = jnp.maximum(up, down) > jnp.minimum(above, below)
    without = jax.scipy.linalg.solve(covariance, theta, assume_a="pos")
    return jnp.where(attacked, used * jnp.sign(up - down), jnp.sign(without))


def _shrunk(theta: Array, covariance: Array, eps: Array) -> Float[Array, " d"]:
    """The solution of (covariance + mu) w = theta for the mu at which the attack along w has length eps."""
    if covariance.ndim == 1:
        variances, axes = covariance, None
    else:
        variances, axes = jnp.linalg.eigh(covariance)
        theta = axes.T @ theta
    length = _vectors.length(theta)
    share = jnp.where(length > eps, eps / jnp.where(length > eps, length - eps, 1), 0)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        short = _vectors.length(middle / (middle + variances) * theta) < eps
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    ends = (share * jnp.min(variances), share * jnp.max(variances))
    low, high = jax.lax.fori_loop(0, 64, halve, ends)
    weights = jnp.where(length > eps, theta / (variances + (low + high) / 2), 0)
    return weights if axes is None else axes @ weights


def robust_gaussian_classifier(
    theta: Float[Array, " d"],
    covariance: Covariance,
    *,
    ratio: Number,
    eps: Number,
    norm: Norm = "linf",
) -> LinearRule:
    r"""The linear rule with the highest accuracy under attack, for two Gaussian classes.

    .. math::
        w \propto \mathrm{argmin}_v \tfrac12 v^\top \Sigma v - \theta \cdot v + \epsilon \|v\|_*, \qquad
        b = \frac{s^2 \log R}{2 m}

    For an attack in the largest entry this is the lasso of linear discriminant analysis: entries with a small mean are
    not used. With equal variances it is :math:`\mathrm{sign}(\theta) (|\theta| - \epsilon)_+`; for an attack in
    Euclidean norm it is then :math:`\theta`, as without attack. The direction does not depend on the ratio.

    Args:
      theta: :math:`\theta` `[d]`, the mean of the positive class; that of the negative one is its opposite.
      covariance: :math:`\Sigma` of both classes, positive definite: a variance, variances `[d]`, or a matrix `[d, d]`.
      ratio: :math:`R`, in (0, inf), how many times as frequent the positive class is.
      eps: :math:`\epsilon`, in [0, inf), in the unit of x; 0 is linear discriminant analysis.
      norm: `"linf"` (largest entry, dual norm the sum of absolute values) or `"l2"`.

    Returns:
      `LinearRule(weights, bias)`, float32 or wider. An attack that reaches from one mean to the other leaves no margin:
      the weights are 0, and the sign of the bias :math:`\log R` is the frequent class.

    Raises:
      ValueError: if the shapes do not fit, the norm is unknown, or a hyperparameter is out of range.

    References:
      Hu et al., *Understanding the Impact of Adversarial Robustness on Accuracy Disparity*, 2023, arXiv 2211.15762.
    """
    function = "dynamics.robust_gaussian_classifier"
    theta, covariance = _moments(function, theta, covariance)
    _checks.number(function, "ratio", ratio, low=0, open_low=True, open_high=True)
    _check_attack(function, eps, norm)
    reach = jnp.asarray(eps, theta.dtype)
    weights = _sparse(theta, covariance, reach) if norm == "linf" else _shrunk(theta, covariance, reach)
    length = _vectors.length(weights)
    weights = jnp.where(length > 0, weights / jnp.where(length > 0, length, 1), 0)
    odds = jnp.log(jnp.asarray(ratio, theta.dtype))
    margin, spread = _margin(weights, theta, reach, norm), _spread(weights, covariance)
    some = margin > 0
    limit = jnp.finfo(theta.dtype).max / 4
    moved = jnp.clip(spread * (spread / jnp.where(some, margin, 1)) * odds / 2, -limit, limit)
    return LinearRule(jnp.where(some, weights, 0), jnp.where(some, moved, odds))


def class_accuracies(
    weights: Float[Array, " d"],
    bias: Float[Array, ""],
    theta: Float[Array, " d"],
    covariance: Covariance,
    *,
    eps: Number = 0.0,
    norm: Norm = "linf",
) -> ClassAccuracies:
    r"""Accuracies of a linear rule on two Gaussian classes, :math:`\Phi((m \pm b) / s)`, as they are or under attack.

    Args:
      weights: :math:`w` `[d]`, on any scale.
      bias: :math:`b`, on the scale of the weights.
      theta: as for `robust_gaussian_classifier`.
      covariance: as for `robust_gaussian_classifier`.
      eps: size of the attack, in [0, inf); 0 is natural accuracy.
      norm: of the attack, `"linf"` or `"l2"`.

    Returns:
      `ClassAccuracies(positive, negative)`, float32 or wider. Weights of 0 give all to the sign of the bias, and half
      to each class if that is 0 too.

    Raises:
      ValueError: if the shapes do not fit, the norm is unknown, or `eps` is out of range.

    References:
      Hu et al., *Understanding the Impact of Adversarial Robustness on Accuracy Disparity*, 2023, arXiv 2211.15762.
    """
    function = "dynamics.class_accuracies"
    theta, covariance = _moments(function, theta, covariance)
    _checks.array(function, "weights", weights, shape=theta.shape, kind="float")
    _checks.array(function, "bias", bias, shape=(), kind="float")
    _check_attack(function, eps, norm)
    # On a scale of one, whatever that of the weights is.
    length = _vectors.length(jnp.asarray(weights).astype(theta.dtype))
    some = length > 0
    scale = jnp.where(some, length, 1)
    unit = jnp.asarray(weights).astype(theta.dtype) / scale
    moved = jnp.asarray(bias).astype(theta.dtype) / scale
    margin, spread = _margin(unit, theta, eps, norm), _spread(unit, covariance)
    there = some & (spread > 0)

    def share(distance: Array) -> Array:
        certain = (jnp.sign(distance) + 1) / 2
        return jnp.where(there, jax.scipy.special.ndtr(distance / jnp.where(there, spread, 1)), certain)

    return ClassAccuracies(share(margin + moved), share(margin - moved))


def disparity_gap(
    theta: Float[Array, " d"],
    covariance: Covariance,
    *,
    ratio: Number,
    eps: Number,
    norm: Norm = "linf",
) -> DisparityGap:
    """What robustness costs on natural data: the rule that is best under attack against the one that is best without.

    Args:
      theta: as for `robust_gaussian_classifier`.
      covariance: as for `robust_gaussian_classifier`.
      ratio: as for `robust_gaussian_classifier`.
      eps: as for `robust_gaussian_classifier`.
      norm: as for `robust_gaussian_classifier`.

    Returns:
      `DisparityGap(accuracy, disparity)`: balanced accuracy of the standard rule less that of the robust one, and
      disparity of the robust rule less that of the standard one.

    Raises:
      ValueError: if the shapes do not fit, the norm is unknown, or a hyperparameter is out of range.

    References:
      Hu et al., *Understanding the Impact of Adversarial Robustness on Accuracy Disparity*, 2023, arXiv 2211.15762.
    """
    function = "dynamics.disparity_gap"
    _moments(function, theta, covariance)
    _checks.number(function, "ratio", ratio, low=0, open_low=True, open_high=True)
    _check_attack(function, eps, norm)

    def of(eps: Number) -> ClassAccuracies:
        rule = robust_gaussian_classifier(theta, covariance, ratio=ratio, eps=eps, norm=norm)
        return class_accuracies(*rule, theta, covariance)

    standard, robust = of(0.0), of(eps)
    return DisparityGap(standard.balanced - robust.balanced, robust.disparity - standard.disparity)
