"""Comp-sum losses: a concave or convex function of the sum of exponentiated score differences, and their guarantees."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses._exponential import power_of_log
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = ["comp_sum_bound", "comp_sum_calibration", "comp_sum_loss"]

# Points between 0 and 1 and their weights, for the mean of a smooth function.
_BETWEEN = [((1 + at) / 2, weight / 2) for at, weight in zip(*np.polynomial.legendre.leggauss(4), strict=True)]


def comp_sum_loss(logits: Logits, labels: Labels, *, tau: float = 1.0, rho: float = 1.0) -> Float[Array, "*batch"]:
    r"""Comp-sum loss :math:`((1+u)^{1-\tau} - 1)/(1-\tau)` of :math:`u = \sum_{c \ne y} e^{(z_c - z_y)/\rho}`.

    In the probability of the label, :math:`p = 1/(1+u)`:

    | tau | loss | |
    |---|---|---|
    | 0 | :math:`1/p - 1` | sum-exponential |
    | 1 | :math:`-\log p` | cross-entropy |
    | in (1, 2) | :math:`(1 - p^{\tau-1})/(\tau-1)` | generalised cross-entropy with q = tau - 1 |
    | 2 | :math:`1 - p` | half the mean absolute error |

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      tau: in [0, inf). The larger, the less a hopeless example counts: the slope in the logits of the loss is that of
        cross-entropy times :math:`p^{\tau-1}`. Below 1 the power goes on along its tangent where float32 would end.
      rho: temperature of the score differences, in (0, inf); the loss is not multiplied by it.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Mao, Mohri and Zhong, *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, 2023, arXiv
      2304.07288.
    """
    function = "losses.classification.comp_sum_loss"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "tau", tau, low=0, open_high=True)
    _checks.number(function, "rho", rho, low=0, open_low=True, open_high=True)
    return given.losses(power_of_log(given.negative_log_probs(rho), 1 - tau))


def comp_sum_calibration(beta: Float[Array, "..."], *, tau: float = 1.0, num_classes: int) -> Float[Array, "..."]:
    r"""The excess comp-sum loss :math:`T_\tau(\beta)` that an excess zero-one error of :math:`\beta` costs at least.

    With :math:`M = [((1+\beta)^{1/s} + (1-\beta)^{1/s})/2]^s` and :math:`s = 2 - \tau` it is

    .. math:: 2^{1-\tau} \frac{1 - M}{1 - \tau} \; (\tau < 1), \quad
              n^{1-\tau} \frac{M - 1}{\tau - 1} \; (1 < \tau < 2), \quad
              n^{1-\tau} \frac{\beta}{\tau - 1} \; (\tau \ge 2),

    and at 1 the limit of both, :math:`\frac12 [(1+\beta)\log(1+\beta) + (1-\beta)\log(1-\beta)]`. It holds for
    complete sets of hypotheses, and is 0 at 0, convex and increasing.

    Args:
      beta: excess zero-one errors, any shape, in [0, 1]; what lies outside counts as the nearest end.
      tau: of the loss, in [0, inf).
      num_classes: :math:`n`, at least 2.

    Returns:
      Values of the same shape, float32 or wider, to be used without gradient: at `beta=1` the slope is infinite for
      some `tau`.

    Raises:
      ValueError: if `beta` is no array of floats, or another argument is out of range.

    References:
      Mao, Mohri and Zhong, *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, 2023, arXiv
      2304.07288.
    """
    function = "losses.classification.comp_sum_calibration"
    _checks.array(function, "beta", beta, kind="float")
    _checks.number(function, "tau", tau, low=0, open_high=True)
    _checks.number(function, "num_classes", num_classes, low=2, integer=True)
    dtype = _checks.accumulation_dtype(beta)
    error = jnp.clip(jnp.asarray(beta).astype(dtype), 0, 1)
    past = jnp.asarray(tau - 1, dtype)  # how far beyond cross-entropy
    scale = jnp.where(past < 0, 2.0, num_classes) ** -past
    power = jnp.where(past < 1, 1 - past, 1)  # s, where it is used
    # With x = artanh(beta), log M = s f(x / s) - f(x) where f = log cosh. At beta = 1 any x is large enough.
    x = jnp.where(error < 1, jnp.arctanh(jnp.where(error < 1, error, 0)), 1e3)
    small = power * _log_cosh(x / power) - _log_cosh(x)
    large = power * _log_cosh(x / power, less=True) - _log_cosh(x, less=True)  # the linear parts cancel
    far = jnp.where(x < 1, small, large)
    # The slope of log M in s is -h(x / s), h(u) = u tanh u - f(u), and its mean between s and 1 is log M / (tau - 1),
    # which keeps its digits where s is near 1.
    near = jnp.abs(past) < 0.05
    gaps = [weight * _log_cosh_gap(x / (1 - past * at)) for at, weight in _BETWEEN]
    mean = jnp.where(near, sum(gaps), far / jnp.where(near, 1, past))
    return scale * jnp.where(past < 1, power_of_log(mean, past), error / jnp.where(past < 1, 1, past))


def _log_cosh(u: Float[Array, "..."], *, less: bool = False) -> Float[Array, "..."]:
    """Of numbers from 0 on; `less` the number itself."""
    beyond = jnp.log1p(jnp.exp(-2 * u)) - jnp.log(jnp.asarray(2, u.dtype))
    if less:
        return beyond
    return jnp.where(u < 1, jnp.log1p(2 * jnp.sinh(jnp.minimum(u, 1) / 2) ** 2), u + beyond)


def _log_cosh_gap(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far the tangent of log cosh at u from 0 on is below 0 at 0: u tanh u - log cosh u."""
    odds = jnp.exp(-2 * u)
    return jnp.where(u < 1, u * jnp.tanh(u) - _log_cosh(u), -_log_cosh(u, less=True) - 2 * u * odds / (1 + odds))


def comp_sum_bound(excess: Float[Array, "..."], *, tau: float = 1.0, num_classes: int) -> Float[Array, "..."]:
    r"""An upper bound of the excess zero-one error, from the excess comp-sum loss :math:`t` (gap included).

    It is :math:`\sqrt{2^\tau (2-\tau)\, t}` for :math:`\tau < 1`, :math:`\sqrt{2 n^{\tau-1} t}` for
    :math:`1 \le \tau < 2` and :math:`(\tau-1)\, n^{\tau-1} t` beyond, which is no less than the inverse of
    `comp_sum_calibration`.

    Args:
      excess: expected loss less the best one, plus the minimisability gap of the hypotheses, any shape; negative
        numbers count as 0.
      tau: of the loss, in [0, inf).
      num_classes: :math:`n`, at least 2.

    Returns:
      Bounds of the same shape, float32 or wider, not cut off at 1, to be used without gradient: at 0 the slope may be
      infinite.

    Raises:
      ValueError: if `excess` is no array of floats, or another argument is out of range.

    References:
      Mao, Mohri and Zhong, *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, 2023, arXiv
      2304.07288.
    """
    function = "losses.classification.comp_sum_bound"
    _checks.array(function, "excess", excess, kind="float")
    _checks.number(function, "tau", tau, low=0, open_high=True)
    _checks.number(function, "num_classes", num_classes, low=2, integer=True)
    dtype = _checks.accumulation_dtype(excess)
    loss = jnp.maximum(jnp.asarray(excess).astype(dtype), 0)
    order = jnp.asarray(tau, dtype)
    power = jnp.asarray(num_classes, dtype) ** (order - 1)
    root = jnp.where(order < 1, 2**order * (2 - order), 2 * power)
    return jnp.where(order < 2, jnp.sqrt(jnp.maximum(root, 0) * loss), (order - 1) * power * loss)
