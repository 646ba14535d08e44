"""What each feature adds to the output of a model, and whether models agree on what matters more."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from reweight import _checks

__all__ = ["integrated_gradients", "order_agreement", "shapley_sampling"]

Rows = Float[Array, "batch features"]
Model = Callable[[Rows], Float[Array, " batch"]]


def _rows(function: str, features: Array, baseline: Array) -> tuple[Array, Array]:
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.array(function, "baseline", baseline, shape=jnp.shape(features)[1:], kind="number")
    return jnp.asarray(features), jnp.asarray(baseline).astype(jnp.result_type(features))


def _outputs(function: str, model: Model, features: Array) -> Array:
    out = model(features)
    _checks.array(function, "model(features)", out, shape=features.shape[:1], kind="float")
    return out


def integrated_gradients(model: Model, features: Rows, baseline: Float[Array, " features"], *, steps: int = 16) -> Rows:
    r"""Attributions by the mean gradient on the way from a baseline.

    .. math:: \phi_j = (x_j - b_j) \frac1m \sum_{k=1}^m \partial_j f\big(b + \tfrac{k - 1/2}{m} (x - b)\big)

    For a linear model one step is exact. With more steps the sum over the features goes to the difference of the
    outputs, :math:`f(x) - f(b)`.

    Args:
      model: from features `[B, F]` to outputs `[B]`, each of its own example only.
      features: `[B, F]`.
      baseline: :math:`b`, such as the mean of the features `[F]`.
      steps: m, at least 1.

    Returns:
      Attributions `[B, F]`, of the dtype of the features. Gradients flow through them to what `model` depends on.

    Raises:
      ValueError: if the shapes do not fit, the outputs are not one per example, or `steps` is out of range.

    References:
      Sundararajan et al., *Axiomatic Attribution for Deep Networks*, 2017, arXiv 1703.01365.
    """
    function = "metrics.attribution.integrated_gradients"
    x, start = _rows(function, features, baseline)
    _checks.number(function, "steps", steps, low=1, open_high=True, integer=True)
    shares = (jnp.arange(steps, dtype=x.dtype) + 0.5) / steps
    slope = jax.grad(lambda at: jnp.sum(_outputs(function, model, at)))
    slopes = jax.lax.map(lambda share: slope(start + share * (x - start)), shares)
    return (x - start) * jnp.mean(slopes, axis=0)


def shapley_sampling(
    key: PRNGKeyArray, model: Model, features: Rows, baseline: Float[Array, " features"], *, permutations: int = 16
) -> Rows:
    r"""Shapley values by sampling: what a feature adds to those before it, over random orders of the features.

    Features that have not had their turn stand at the baseline. An order and its reverse are drawn together. The sum
    over the features is :math:`f(x) - f(b)` for every order, up to rounding.

    Args:
      key: for the orders, which are the same for all examples.
      model: from features `[B, F]` to outputs `[B]`, each of its own example only.
      features: `[B, F]`.
      baseline: :math:`b`, such as the mean of the features `[F]`.
      permutations: how many orders, with their reverses, at least 1.

    Returns:
      Attributions `[B, F]`, of the dtype of the outputs. Gradients flow through them to what `model` depends on.

    Raises:
      ValueError: if the shapes do not fit, the outputs are not one per example, or `permutations` is out of range.

    References:
      Strumbelj and Kononenko, *Explaining prediction models and individual predictions with feature contributions*,
      2014. Lundberg and Lee, *A Unified Approach to Interpreting Model Predictions*, 2017, arXiv 1705.07874.
    """
    function = "metrics.attribution.shapley_sampling"
    x, start = _rows(function, features, baseline)
    _checks.number(function, "permutations", permutations, low=1, open_high=True, integer=True)
    size = x.shape[1]

    def added(order: Array) -> Array:
        place = jnp.argsort(order)

        def before(turn: Array) -> Array:
            return _outputs(function, model, jnp.where(place < turn, x, start))

        outputs = jax.lax.map(before, jnp.arange(size + 1))
        return jnp.diff(outputs, axis=0)[place].T

    orders = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, permutations))
    orders = jnp.concatenate([orders, orders[:, ::-1]])
    return jnp.mean(jax.lax.map(added, orders), axis=0)


def order_agreement(importances: Num[Array, "models features"]) -> Float[Array, ""]:
    r"""The share of pairs of features of which all models say the same one is more important.

    Of two models without ties this is :math:`(1 + \tau)/2` with Kendall's :math:`\tau`.

    Args:
      importances: of the features in each model `[M, F]`, any scale.

    Returns:
      A share in [0, 1], float32 or wider. A pair on which a model has a tie is not agreed on; with fewer than two
      features it is 1.

    Raises:
      ValueError: if the importances are no array of two axes.

    References:
      Wu et al., *Primary and Secondary Factor Consistency as Domain Knowledge to Guide Happiness Computing in Online
      Assessment*, 2024, arXiv 2402.12398.
    """
    function = "metrics.attribution.order_agreement"
    _checks.array(function, "importances", importances, ndim=2, kind="number")
    shares = jnp.asarray(importances)
    above = jnp.all(shares[:, :, None] > shares[:, None, :], axis=0)
    size = shares.shape[1]
    agreed = jnp.sum(above).astype(_checks.accumulation_dtype(jnp.zeros(())))
    return agreed / (size * (size - 1) / 2) if size > 1 else jnp.ones_like(agreed)
