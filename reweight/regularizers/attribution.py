r"""Which features a model uses, drawn towards what is known about them.

    phi = metrics.attribution.integrated_gradients(model, features, baseline)
    loss = task_loss + lam * factor_consistency(knowledge, importance(phi))

The importance of a feature is a mean over the batch, of which the divergence is no mean over examples: in microbatches
`batch_factor_consistency` is exact.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks
from reweight.losses.base import BatchLoss, of_sums

__all__ = ["Direction", "batch_factor_consistency", "factor_consistency", "importance"]

Direction = Literal["knowledge_to_model", "model_to_knowledge"]
Distribution = Float[Array, " features"]

_SMOOTHING = 1e-12


def _sizes(attributions: Array) -> Array:
    r"""The absolute value, smooth at 0: :math:`\sqrt{\phi^2 + 10^{-12}}`."""
    wide = jnp.asarray(attributions).astype(_checks.accumulation_dtype(attributions))
    return jnp.hypot(wide, jnp.asarray(_SMOOTHING**0.5, wide.dtype))


def _normalised(sums: Array) -> Array:
    total = jnp.sum(sums)
    return jnp.where(total > 0, sums / jnp.where(total > 0, total, 1), 1 / sums.shape[0])


def importance(
    attributions: Float[Array, "batch features"], *, mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None
) -> Distribution:
    r"""Shares of the features in what a model says: :math:`p_j \propto \sum_i |\phi_{ij}|`.

    The absolute value is smoothed, :math:`\sqrt{\phi^2 + 10^{-12}}`, so that a model that says the same of all examples
    has equal shares, and a gradient.

    Args:
      attributions: :math:`\phi`, what each feature adds to the output for each example `[B, F]`, any scale.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Shares `[F]`, which sum to 1, float32 or wider. If all is masked they are equal.

    Raises:
      ValueError: if the attributions are no float array of two axes, or the mask does not fit.

    References:
      Wu et al., *Primary and Secondary Factor Consistency as Domain Knowledge to Guide Happiness Computing in Online
      Assessment*, 2024, arXiv 2402.12398.
    """
    function = "regularizers.attribution.importance"
    _checks.array(function, "attributions", attributions, ndim=2, kind="float")
    _checks.mask(function, "mask", mask, attributions[:, 0], like_name="the first axis of attributions")
    kept = _checks.kept(mask, attributions.shape[0])[:, None]
    sizes = jnp.where(kept, _sizes(jnp.where(kept, attributions, 0)), 0)
    # Scaled by the largest, so that no sum overflows.
    top = jax.lax.stop_gradient(jnp.max(sizes, initial=0))
    return _normalised(jnp.sum(sizes / jnp.where(top > 0, top, 1), axis=0))


def _floored(shares: Array, floor: float) -> Array:
    shares = jnp.maximum(shares, floor)
    return shares / jnp.sum(shares)


def _divergence(knowledge: Array, model: Array, direction: Direction, floor: float) -> Array:
    known, found = _floored(knowledge, floor), _floored(model, floor)
    first, second = (known, found) if direction == "knowledge_to_model" else (found, known)
    return jnp.sum(first * (jnp.log(first) - jnp.log(second)))


def _checked(function: str, knowledge: Array, direction: str, floor: float) -> None:
    _checks.array(function, "knowledge", knowledge, ndim=1, kind="number")
    _checks.choice(function, "direction", direction, get_args(Direction))
    _checks.number(function, "floor", floor, low=0, high=1, open_low=True, open_high=True)


def factor_consistency(
    knowledge: Distribution,
    model: Distribution,
    *,
    direction: Direction = "knowledge_to_model",
    floor: float = 1e-8,
) -> Float[Array, ""]:
    r"""Divergence of the features' importance in a model from what is known of it: :math:`\sum_j p_j \log(p_j / q_j)`.

    Args:
      knowledge: :math:`p`, non-negative shares `[F]`: of experts, or the mean importance in several strong models.
      model: :math:`q`, the importance in the model `[F]`, non-negative; gradients flow.
      direction: `"knowledge_to_model"` is :math:`KL(p \| q)`, `"model_to_knowledge"` is :math:`KL(q \| p)`.
      floor: smaller shares count as this much, after which all are scaled to sum to 1; in (0, 1).

    Returns:
      The divergence, at least 0, float32 or wider.

    Raises:
      ValueError: if the shapes differ, or a hyperparameter is out of range.

    References:
      Wu et al., *Primary and Secondary Factor Consistency as Domain Knowledge to Guide Happiness Computing in Online
      Assessment*, 2024, arXiv 2402.12398.
    """
    function = "regularizers.attribution.factor_consistency"
    _checked(function, knowledge, direction, floor)
    _checks.array(function, "model", model, shape=jnp.shape(knowledge), kind="float")
    dtype = _checks.accumulation_dtype(knowledge, model)
    return _divergence(jnp.asarray(knowledge).astype(dtype), jnp.asarray(model).astype(dtype), direction, floor)


def batch_factor_consistency(
    knowledge: Distribution, *, direction: Direction = "knowledge_to_model", floor: float = 1e-8
) -> BatchLoss:
    """`factor_consistency` with the importance over the batch, as a `BatchLoss` that is exact in microbatches.

    Args:
      knowledge: as for `factor_consistency`.
      direction: as for `factor_consistency`.
      floor: as for `factor_consistency`.

    Returns:
      A `BatchLoss` without state, of the signal `attributions` `[B, F]`. The mean of its losses over the batch is the
      divergence.

    Raises:
      ValueError: if the knowledge is no array of one axis, or a hyperparameter is out of range.

    References:
      Wu et al., *Primary and Secondary Factor Consistency as Domain Knowledge to Guide Happiness Computing in Online
      Assessment*, 2024, arXiv 2402.12398.
    """
    function = "regularizers.attribution.batch_factor_consistency"
    _checked(function, knowledge, direction, floor)

    def terms(attributions: Array) -> Array:
        _checks.array(function, "attributions", attributions, ndim=2, kind="float")
        if attributions.shape[1] != jnp.shape(knowledge)[0]:
            _checks.fail(
                function, "attributions", f"of shape {attributions.shape}", f"{jnp.shape(knowledge)[0]} features"
            )
        return _sizes(attributions)

    def value(sums: Array) -> Array:
        return _divergence(jnp.asarray(knowledge).astype(sums.dtype), _normalised(sums), direction, floor)

    return of_sums(terms, value, signals=("attributions",), name=function)
