"""Cross-entropy of the softmax, focal loss, and entropy of the prediction."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import ClassMask, Labels, Logits

__all__ = ["cross_entropy", "focal_loss", "prediction_entropy"]


def cross_entropy(
    logits: Logits,
    labels: Labels | Float[Array, "*batch classes"],
    *,
    class_mask: ClassMask | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of labels or target probabilities: :math:`-\sum_c t_c \log \mathrm{softmax}(z)_c`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`, or target probabilities `[..., C]` of a float dtype.
      class_mask: boolean or 0/1, broadcast to the logits: the classes among which the softmax runs. Logits and
        target probabilities of the others are never read. Default: all.

    Returns:
      Losses `[...]`, float32 or wider. A label that is not one of the classes, or not an unmasked one, costs 0 with
      zero gradient; so does a row with no class at all.

    Raises:
      ValueError: if the shape of the labels is neither that of class ids nor that of probabilities, or their dtype does
        not go with their shape.
    """
    return named_cross_entropy("losses.classification.cross_entropy", logits, labels, class_mask)


def named_cross_entropy(
    function: str, logits: Logits, labels: Labels | Float[Array, "*batch classes"], class_mask: ClassMask | None
) -> Float[Array, "*batch"]:
    """`cross_entropy`, whose errors name another function that is made of it."""
    allowed = _rows.allowed(function, logits, class_mask)
    shape = jnp.shape(logits)
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        _checks.array(function, "labels", labels, shape=shape, kind="float")
        scores = _rows.centred(logits, allowed)
        targets = jnp.where(allowed, labels, 0).astype(scores.dtype)
        return optax.losses.softmax_cross_entropy(scores, targets, where=allowed)
    _checks.array(function, "labels", labels, shape=shape[:-1])
    known = (labels >= 0) & (labels < shape[-1])
    safe = jnp.where(known, labels, 0)
    known &= jnp.take_along_axis(allowed, safe[..., None], axis=-1)[..., 0]
    scores = _rows.centred(jnp.where(known[..., None], logits, 0), allowed)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(scores, safe, where=allowed)
    return jnp.where(known, losses, 0)


def focal_loss(
    logits: Logits,
    labels: Labels,
    *,
    gamma: float = 2.0,
    class_mask: ClassMask | None = None,
) -> Float[Array, "*batch"]:
    r"""Focal loss :math:`-(1 - p_y)^\gamma \log p_y` of the label's probability, per example.

    The gradient flows through the factor too, as in the paper. `weights.focal` gives the same values with the factor
    held constant.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      gamma: focusing exponent, in [0, inf); 0 is cross-entropy.
      class_mask: as for `cross_entropy`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where cross-entropy's is.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or `gamma` is out of range.

    References:
      Lin et al., *Focal Loss for Dense Object Detection*, 2017, arXiv 1708.02002.
    """
    function = "losses.classification.focal_loss"
    _checks.array(function, "labels", labels, kind="integer")
    _checks.number(function, "gamma", gamma, low=0, open_high=True)
    loss = named_cross_entropy(function, logits, labels, class_mask)
    missing = -jnp.expm1(-loss)
    positive = missing > 0
    # At p = 1 the power has no derivative for gamma < 1, and the loss is 0 with slope 0 for every gamma > 0.
    factor = jnp.where(positive, jnp.where(positive, missing, 1) ** gamma, jnp.asarray(gamma == 0, loss.dtype))
    return factor * loss


def prediction_entropy(logits: Logits, *, class_mask: ClassMask | None = None) -> Float[Array, "*batch"]:
    r"""Entropy of the prediction, :math:`-\sum_c p_c \log p_c` with :math:`p = \mathrm{softmax}(z)`, per example.

    As a loss it needs no labels: minimising it on inputs from a shifted distribution is test-time adaptation (Tent).

    Args:
      logits: `[..., C]`, any scale.
      class_mask: as for `cross_entropy`.

    Returns:
      Entropies `[...]` in nats, between 0 and :math:`\log C`, float32 or wider; 0 with zero gradient for a row
      with no class.

    Raises:
      ValueError: if the logits are not floats, or the mask does not broadcast to them.

    References:
      Wang et al., *Tent: Fully Test-time Adaptation by Entropy Minimization*, 2021, arXiv 2006.10726.
    """
    allowed = _rows.allowed("losses.classification.prediction_entropy", logits, class_mask)
    scores = _rows.centred(logits, allowed)
    some = jnp.any(allowed, axis=-1, keepdims=True)
    log_mass = jax.nn.logsumexp(scores, axis=-1, where=allowed | ~some, keepdims=True)
    log_probs = jnp.where(allowed, scores - log_mass, 0)
    return -jnp.sum(jnp.where(allowed, jnp.exp(log_probs) * log_probs, 0), axis=-1)
