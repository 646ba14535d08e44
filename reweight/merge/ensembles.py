"""Predictions of several models as one."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from reweight import _checks

__all__ = ["backdoor_adjustment"]

Mode = Literal["logits", "probs"]


def backdoor_adjustment(
    logits: Float[Array, "models *batch classes"],
    *,
    model_weights: Num[Array, " models"] | None = None,
    mode: Mode = "logits",
) -> Float[Array, "*batch classes"]:
    r"""The prediction :math:`P(y \mid do(x)) = \sum_m P(m)\, P(y \mid x, m)` of M models, as logits.

    What one pre-trained model has not learned of a class another may have: the model is taken as a confounder and
    averaged out. In the mode `"probs"` that is the formula, a mixture of the models' probabilities. In the mode
    `"logits"` their logits are averaged instead, a product of the models, in which one that is sure counts more.

    Args:
      logits: `[M, ..., C]`, one row a model, on any scale.
      model_weights: :math:`P(m)` `[M]`, non-negative, on any scale. Default: equal ones. All 0 give 0.
      mode: what is averaged, `"logits"` or `"probs"`.

    Returns:
      Logits `[..., C]`, float32 or wider; in the mode `"probs"` the logarithms of the mean probabilities. Models that
      agree give their own prediction, and so does a single one.

    Raises:
      ValueError: if there is no model, the shapes do not fit, or the mode is unknown.

    References:
      Chen et al., *Rethinking the Bias of Foundation Model under Long-tailed Distribution*, 2025, arXiv 2501.15955. The
      released code adds the logits, which are M times these and have the same classes on top.
    """
    function = "merge.backdoor_adjustment"
    _checks.array(function, "logits", logits, kind="float")
    shape = jnp.shape(logits)
    if len(shape) < 2 or shape[0] == 0:
        _checks.fail(function, "logits", f"of shape {shape}", "an array (models, ..., classes) of at least one model")
    _checks.choice(function, "mode", mode, get_args(Mode))
    values = jnp.asarray(logits).astype(_checks.accumulation_dtype(logits))
    if model_weights is None:
        shares = jnp.full(shape[:1], 1 / shape[0], values.dtype)
    else:
        _checks.array(function, "model_weights", model_weights, shape=shape[:1], kind="number")
        shares = jnp.asarray(model_weights).astype(values.dtype)
        total = jnp.sum(shares)
        shares = shares / jnp.where(total > 0, total, 1)
    shares = shares.reshape(-1, *(1,) * (values.ndim - 1))
    if mode == "logits":
        return jnp.sum(shares * values, axis=0)
    mixed = jax.nn.logsumexp(jax.nn.log_softmax(values, axis=-1), axis=0, b=shares)
    return jnp.where(jnp.any(shares > 0), mixed, 0)
