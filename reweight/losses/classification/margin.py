"""Multi-class hinge losses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = ["crammer_singer", "weston_watkins"]


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
    given, hinges = _hinges("losses.crammer_singer", logits, labels, margin)
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
    given, hinges = _hinges("losses.weston_watkins", logits, labels, margin)
    return given.losses(jnp.mean(hinges, axis=-1))
