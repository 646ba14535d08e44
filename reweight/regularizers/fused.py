"""Fused penalties: neighbours along an ordered axis are drawn to each other, and the first of them to 0."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks, reduce
from reweight.losses.ordinal import cumulative_logit_nll, cumulative_probs

__all__ = ["PrestoChoice", "PrestoPath", "presto_cross_validation", "presto_path", "presto_penalty"]

# A ridge shrinks to 0 at no strength; the default path starts where an elastic net with this share of a lasso does.
LEAST_ALPHA = 0.01


def presto_penalty(coefficients: Float[Array, "features boundaries"], *, alpha: float = 1.0) -> Float[Array, ""]:
    r"""Elastic net of the increments of coefficients along boundaries: a scalar.

    .. math:: \sum_{jk} \alpha |\psi_{jk}| + \frac{1 - \alpha}{2} \psi_{jk}^2

    with :math:`\psi_{j1} = \beta_{j1}` and :math:`\psi_{jk} = \beta_{jk} - \beta_{j,k-1}`. Where all but the first
    are 0 the boundaries are parallel: proportional odds.

    Args:
      coefficients: :math:`\beta`, of each feature at each boundary `[p, K-1]`, boundaries in order.
      alpha: :math:`\alpha`, in [0, 1]; 1 is the fused lasso, 0 the ridge.

    Returns:
      The penalty, float32 or wider. The slope of an increment of 0 is taken as 0.

    Raises:
      ValueError: if the shape does not fit, or `alpha` is out of range.

    References:
      Faletto and Bien, *Predicting Rare Events by Shrinking Towards Proportional Odds*, 2023.
    """
    function = "regularizers.fused.presto_penalty"
    _checks.array(function, "coefficients", coefficients, ndim=2, kind="float")
    _checks.number(function, "alpha", alpha, low=0, high=1)
    increments = jnp.diff(jnp.asarray(coefficients).astype(_checks.accumulation_dtype(coefficients)), prepend=0)
    return jnp.sum(alpha * jnp.abs(increments) + (1 - alpha) / 2 * increments**2)


class PrestoPath(NamedTuple):
    """Fits along a path of penalties, from the strongest.

    Attributes:
      lambdas: the penalties' strengths `[L]`.
      intercepts: of the boundaries `[L, K-1]`.
      coefficients: of each feature at each boundary `[L, p, K-1]`: boundary logits are `x @ coefficients + intercepts`.
      increments: from boundary to boundary, of coefficients of standardised features `[L, p, K-1]`; those that the
        penalty sets to 0 are 0.
      residuals: by how much the conditions of an optimum are missed `[L]`.
    """

    lambdas: Float[Array, " lambdas"]
    intercepts: Float[Array, "lambdas boundaries"]
    coefficients: Float[Array, "lambdas features boundaries"]
    increments: Float[Array, "lambdas features boundaries"]
    residuals: Float[Array, " lambdas"]


class _Point(NamedTuple):
    intercepts: Float[Array, " boundaries"]
    increments: Float[Array, "features boundaries"]


class _Descent(NamedTuple):
    point: _Point
    ahead: _Point  # with momentum
    momentum: Float[Array, ""]
    step: Float[Array, ""]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]


def presto_path(
    features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    *,
    num_classes: int,
    alpha: float = 1.0,
    lambdas: Num[Array, " lambdas"] | None = None,
    num_lambdas: int = 20,
    lambda_min_ratio: float = 0.01,
    mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 2000,
) -> PrestoPath:
    r"""PRESTO: cumulative logit models whose boundaries are drawn to be parallel, for a path of penalties.

    Minimises the mean of `losses.ordinal.cumulative_logit_nll` plus :math:`\lambda` times `presto_penalty` of the
    coefficients of standardised features; intercepts go free. A rare class at the end of the order borrows strength
    from the common boundaries, as far as the data do not contradict. In increments the problem is a lasso, which is
    solved by proximal gradient steps with momentum, restarts and a search for the step, each fit starting from the one
    before.

    Fits of the folds of a cross-validation are a `vmap` over masks, with common `lambdas`.

    Args:
      features: `[n, p]`; they are centred and scaled by their standard deviation for the fit.
      labels: classes in 0..K-1 `[n]`, in order.
      num_classes: K, static, at least 2; with 2 this is logistic regression.
      alpha: as for `presto_penalty`.
      lambdas: strengths of the penalty `[L]`, best from large to small. Default: `num_lambdas` values, even in the
        logarithm, from the smallest at which all increments are 0; for an `alpha` below 0.01 from that of 0.01, since
        a ridge has none.
      num_lambdas: how many, where `lambdas` are not given.
      lambda_min_ratio: the last of them as a share of the first, in (0, 1).
      mask: boolean or 0/1 `[n]`; what it hides is never read. Default: all.
      tolerance: of the conditions of an optimum, in (0, inf).
      max_iterations: of a fit, at least 1.

    Returns:
      A `PrestoPath` on the scale of the features as given. If nothing is left of the data, zeros.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or a hyperparameter is out of range.

    References:
      Faletto and Bien, *Predicting Rare Events by Shrinking Towards Proportional Odds*, 2023. The released code brings
      the intercepts back to the scale of the features with the increment in place of the coefficient, which changes
      predictions where features have a mean; here it is the coefficient.
    """
    return _path(
        "regularizers.fused.presto_path",
        features,
        labels,
        num_classes=num_classes,
        alpha=alpha,
        lambdas=lambdas,
        num_lambdas=num_lambdas,
        lambda_min_ratio=lambda_min_ratio,
        mask=mask,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )


def _path(
    function: str,
    features: Array,
    labels: Array,
    *,
    num_classes: int,
    alpha: float,
    lambdas: Array | None,
    num_lambdas: int,
    lambda_min_ratio: float,
    mask: Array | None,
    tolerance: float,
    max_iterations: int,
) -> PrestoPath:
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    _checks.number(function, "num_classes", num_classes, low=2, open_high=True, integer=True)
    _checks.number(function, "alpha", alpha, low=0, high=1)
    _checks.number(function, "num_lambdas", num_lambdas, low=1, open_high=True, integer=True)
    _checks.number(function, "lambda_min_ratio", lambda_min_ratio, low=0, high=1, open_low=True, open_high=True)
    _checks.number(function, "tolerance", tolerance, low=0, open_low=True, open_high=True)
    _checks.number(function, "max_iterations", max_iterations, low=1, open_high=True, integer=True)
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    if lambdas is not None:
        _checks.array(function, "lambdas", lambdas, ndim=1, kind="number")
    dtype = _checks.accumulation_dtype(features)
    kept = (labels >= 0) & (labels < num_classes) & _checks.kept(mask, jnp.shape(labels))
    rows = jnp.where(kept[:, None], features, 0).astype(dtype)
    known = jnp.where(kept, labels, 0)
    count = jnp.maximum(jnp.sum(kept), 1).astype(dtype)
    mean = jnp.sum(rows, axis=0) / count
    centred = jnp.where(kept[:, None], rows - mean, 0)
    deviation = jnp.sqrt(jnp.sum(centred**2, axis=0) / count)
    scale = jnp.where(deviation > 0, deviation, 1)
    standard = centred / scale

    def nll(point: _Point) -> Float[Array, ""]:
        logits = point.intercepts + standard @ jnp.cumsum(point.increments, axis=1)
        return reduce.weighted_mean(cumulative_logit_nll(logits, known), where=kept)

    start = _null(known, kept, count, num_classes, standard.shape[1])
    if lambdas is None:
        top = jnp.max(jnp.abs(jax.grad(nll)(start).increments), initial=0) / jnp.maximum(alpha, LEAST_ALPHA)
        lambdas = top * lambda_min_ratio ** jnp.linspace(0, 1, num_lambdas, dtype=dtype)
    lambdas = jnp.asarray(lambdas).astype(dtype)

    def fit(carry: tuple[_Point, Array], strength: Array) -> tuple[tuple[_Point, Array], tuple[_Point, Array]]:
        point, step = carry
        found = _minimise(nll, point, step, strength * alpha, strength * (1 - alpha), tolerance, max_iterations)
        return (found.point, found.step), (found.point, found.residual)

    _, (points, residuals) = jax.lax.scan(fit, (start, jnp.ones((), dtype)), lambdas)
    coefficients = jnp.cumsum(points.increments, axis=2) / scale[:, None]
    intercepts = points.intercepts - jnp.einsum("p,lpk->lk", mean, coefficients)
    return PrestoPath(lambdas, intercepts, coefficients, points.increments, residuals)


class PrestoChoice(NamedTuple):
    """Fits on all data with the penalty that does best on what a fit has not seen.

    Attributes:
      path: the fits on all data.
      scores: mean Brier score of the held-out folds at each penalty `[L]`.
      best: index of the penalty with the least score, the largest one of several, an integer scalar.
    """

    path: PrestoPath
    scores: Float[Array, " lambdas"]
    best: Int[Array, ""]

    @property
    def intercepts(self) -> Float[Array, " boundaries"]:
        """Of the boundaries, at the best penalty `[K-1]`."""
        return self.path.intercepts[self.best]

    @property
    def coefficients(self) -> Float[Array, "features boundaries"]:
        """Of each feature at each boundary, at the best penalty `[p, K-1]`."""
        return self.path.coefficients[self.best]


def presto_cross_validation(
    key: PRNGKeyArray,
    features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    *,
    num_classes: int,
    folds: int = 5,
    alpha: float = 1.0,
    num_lambdas: int = 20,
    lambda_min_ratio: float = 0.01,
    mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 2000,
) -> PrestoChoice:
    r"""PRESTO with its penalty chosen by the Brier score of examples that were held out.

    .. math:: \frac{1}{n} \sum_i \sum_k (1[y_i = k] - p_k(x_i))^2

    with the probabilities of the fit that has not seen the fold of example i. All fits go along the penalties of the
    fit on all data.

    Args:
      key: for the folds, which are of equal sizes up to one example.
      features: as for `presto_path`.
      labels: as for `presto_path`.
      num_classes: as for `presto_path`.
      folds: into how many pieces the data are cut, at least 2.
      alpha: as for `presto_penalty`.
      num_lambdas: as for `presto_path`.
      lambda_min_ratio: as for `presto_path`.
      mask: as for `presto_path`.
      tolerance: as for `presto_path`.
      max_iterations: as for `presto_path`.

    Returns:
      A `PrestoChoice`.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or a hyperparameter is out of range.

    References:
      Faletto and Bien, *Predicting Rare Events by Shrinking Towards Proportional Odds*, 2023.
    """
    function = "regularizers.fused.presto_cross_validation"
    _checks.number(function, "folds", folds, low=2, open_high=True, integer=True)
    fit = functools.partial(
        _path,
        function,
        features,
        labels,
        num_classes=num_classes,
        alpha=alpha,
        num_lambdas=num_lambdas,
        lambda_min_ratio=lambda_min_ratio,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    path = fit(lambdas=None, mask=mask)
    kept = (labels >= 0) & (labels < num_classes) & _checks.kept(mask, jnp.shape(labels))
    # What is hidden comes last, so that it fills up no fold.
    rank = jnp.argsort(jnp.argsort(jnp.where(kept, jax.random.uniform(key, kept.shape), 2)))
    rows = jnp.where(kept[:, None], features, 0).astype(path.coefficients.dtype)
    classes = jax.nn.one_hot(jnp.where(kept, labels, 0), num_classes, dtype=rows.dtype)

    def held_out(fold: Array) -> Float[Array, " lambdas"]:
        mine = rank % folds == fold
        found = fit(lambdas=path.lambdas, mask=kept & ~mine)
        logits = jnp.einsum("np,lpk->lnk", rows, found.coefficients) + found.intercepts[:, None]
        errors = jnp.sum((cumulative_probs(logits)[0] - classes) ** 2, axis=-1)
        return jnp.sum(jnp.where(kept & mine, errors, 0), axis=1)

    scores = jnp.sum(jax.lax.map(held_out, jnp.arange(folds)), axis=0) / jnp.maximum(jnp.sum(kept), 1)
    return PrestoChoice(path, scores, jnp.argmin(scores))


def _null(labels: Array, kept: Array, count: Array, num_classes: int, size: int) -> _Point:
    """The best fit without features: logits of the cumulative frequencies of the classes."""
    below = jnp.sum((labels[:, None] <= jnp.arange(num_classes - 1)) & kept[:, None], axis=0).astype(count.dtype)
    share = jnp.clip(below / count, 0.5 / count, 1 - 0.5 / count)
    intercepts = jnp.where(jnp.any(kept), jnp.log(share) - jnp.log1p(-share), 0)
    return _Point(intercepts, jnp.zeros((size, num_classes - 1), count.dtype))


def _minimise(
    smooth: Any, start: _Point, step: Array, lasso: Array, ridge: Array, tolerance: float, max_iterations: int
) -> _Descent:
    """Accelerated proximal gradient descent on `smooth` plus an elastic net of the increments."""

    def value(point: _Point) -> Array:
        return smooth(point) + ridge / 2 * jnp.sum(point.increments**2)

    def moved(point: _Point, slope: _Point, step: Array) -> _Point:
        free = point.increments - step * slope.increments
        shrunk = jnp.sign(free) * jnp.maximum(jnp.abs(free) - step * lasso, 0)
        return _Point(point.intercepts - step * slope.intercepts, shrunk)

    def body(now: _Descent) -> _Descent:
        at, slope = jax.value_and_grad(value)(now.ahead)
        noise = 4 * jnp.finfo(at.dtype).eps * jnp.abs(at)

        def too_long(step: Array) -> Array:
            difference = jax.tree.map(jnp.subtract, moved(now.ahead, slope, step), now.ahead)
            bound = at + _dot(slope, difference) + _dot(difference, difference) / (2 * step)
            above = value(moved(now.ahead, slope, step)) > bound + noise
            return above & (step > jnp.finfo(step.dtype).eps)

        step = jax.lax.while_loop(too_long, lambda step: step / 2, now.step)
        point = moved(now.ahead, slope, step)
        back, forth = (jax.tree.map(jnp.subtract, *pair) for pair in ((now.ahead, point), (point, now.point)))
        residual = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in back])) / step
        momentum = (1 + jnp.sqrt(1 + 4 * now.momentum**2)) / 2
        ahead = jax.tree.map(lambda new, change: new + (now.momentum - 1) / momentum * change, point, forth)
        # Momentum that points uphill, or out of the region in which boundaries do not cross, starts anew.
        wrong = (_dot(back, forth) > 0) | (value(ahead) > value(point) + 1)
        ahead = jax.tree.map(lambda far, near: jnp.where(wrong, near, far), ahead, point)
        return _Descent(point, ahead, jnp.where(wrong, 1, momentum), 1.1 * step, residual, now.iterations + 1)

    def unfinished(now: _Descent) -> Array:
        return (now.residual > tolerance) & (now.iterations < max_iterations)

    one = jnp.ones_like(step)
    begin = _Descent(start, start, one, step, jnp.inf * one, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, body, begin)


def _dot(left: _Point, right: _Point) -> Array:
    return jnp.sum(left.intercepts * right.intercepts) + jnp.sum(left.increments * right.increments)
