"""Margins: multi-class hinge losses, and cross-entropy with a margin for each class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from reweight import _checks
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = ["crammer_singer", "ldam", "weston_watkins"]


def _hinges(function: str, logits: Logits, labels: Labels, margin: float) -> tuple[_rows.Rows, Array]:
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "margin", margin, low=0, open_high=True)
    return given, jax.nn.relu(given.ahead(margin))


def crammer_singer(logits: Logits, labels: Labels, *, margin: float = 1.0) -> Float[Array, "*batch"]:
    r"""Crammer-Singer hinge :math:`\max_{c \ne y} \max(0, m + z_c - z_y)`: only the strongest rival counts.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      margin: :math:`m`, in [0, inf), by which the label's score is to lead.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class. Rivals of equal score share
      the gradient.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or `margin` is out of range.

    References:
      Crammer and Singer, *On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines*, 2001.
    """
    given, hinges = _hinges("losses.classification.crammer_singer", logits, labels, margin)
    return given.losses(jnp.max(hinges, axis=-1))


def weston_watkins(logits: Logits, labels: Labels, *, margin: float = 1.0) -> Float[Array, "*batch"]:
    r"""Weston-Watkins hinge :math:`\frac{1}{C} \sum_{c \ne y} \max(0, m + z_c - z_y)`: all rivals count.

    The mean is over all C classes, the label's own 0 among them.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      margin: :math:`m`, in [0, inf), by which the label's score is to lead.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or `margin` is out of range.

    References:
      Weston and Watkins, *Multi-class Support Vector Machines*, 1998. The sum is divided by C, as in the released code
      of Zhu et al., *Label Distributionally Robust Losses for Multi-class Classification*, 2023, arXiv 2112.14869.
    """
    given, hinges = _hinges("losses.classification.weston_watkins", logits, labels, margin)
    return given.losses(jnp.mean(hinges, axis=-1))


def ldam(
    logits: Logits,
    labels: Labels,
    *,
    class_counts: Num[Array, " classes"],
    max_margin: float = 0.5,
    scale: float = 30.0,
    scale_logits: bool = False,
) -> Float[Array, "*batch"]:
    r"""LDAM: cross-entropy with :math:`s m_y` taken off the label's logit, :math:`m_c \propto n_c^{-1/4}`, per example.

    Rare classes are to lead by more. The largest margin is `max_margin`.

    Args:
      logits: `[..., C]`.
      labels: integer class ids `[...]`.
      class_counts: :math:`n` `[C]`, examples of each class in the training set, on any scale. A class without an
        example has the largest margin.
      max_margin: in [0, inf).
      scale: :math:`s`, in (0, inf).
      scale_logits: whether the logits are multiplied by `scale` too. That is the paper's form, for cosines between
        features and weights; without it the logits are used as they are, as in the code of Chen et al. (2025).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, 2019, arXiv 1906.07413. Chen
      et al., *Rethinking the Bias of Foundation Model under Long-tailed Distribution*, 2025, arXiv 2501.15955.
    """
    function = "losses.classification.ldam"
    given = _rows.rows(function, logits, labels)
    _checks.array(function, "class_counts", class_counts, shape=(given.classes,), kind="number")
    _checks.number(function, "max_margin", max_margin, low=0, open_high=True)
    _checks.number(function, "scale", scale, low=0, open_low=True, open_high=True)
    counts = jnp.asarray(class_counts).astype(given.scores.dtype)
    present = counts > 0
    rarest = jnp.min(jnp.where(present, counts, jnp.inf))
    margins = jnp.where(present, (jnp.where(present, rarest, 1) / jnp.where(present, counts, 1)) ** 0.25, 1)
    lost = scale * max_margin * margins[given.labels]
    scores = given.scores * scale if scale_logits else given.scores
    return given.losses(given._replace(scores=scores - jnp.where(given.own, lost[..., None], 0)).negative_log_probs())
