"""Losses that fit wrong labels less eagerly than cross-entropy: bounded, symmetric or asymmetric in the labels."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reweight import _checks
from reweight.losses._exponential import power_of_log
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = [
    "asymmetric_generalized_cross_entropy",
    "asymmetric_unhinged",
    "brier_loss",
    "generalized_cross_entropy",
    "jensen_shannon",
    "mean_absolute_error",
    "nce_agce",
    "nce_aul",
    "nce_rce",
    "normalized_cross_entropy",
    "reverse_cross_entropy",
    "robust_log_loss",
    "symmetric_cross_entropy",
    "truncation_mask",
]

RobustLogForm = Literal["released", "published"]


def _missing(negative_log_probs: Array) -> Array:
    """1 - p, with the digits of a small difference."""
    return -jnp.expm1(-negative_log_probs)


def _floor(k: float, dtype: jnp.dtype) -> Array:
    """-log k, infinite at 0."""
    return -jnp.log(jnp.asarray(k, dtype))


def generalized_cross_entropy(
    logits: Logits, labels: Labels, *, q: float = 0.7, k: float = 0.0
) -> Float[Array, "*batch"]:
    r"""Generalised cross-entropy :math:`(1 - p_y^q)/q`, per example, truncated where :math:`p_y \le k`.

    `comp_sum_loss` with `tau = 1 + q`, cut off at its value at :math:`p_y = k`.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      q: in [0, 1]: 0 is cross-entropy, 1 is half the mean absolute error.
      k: in [0, 1): an example whose label has a probability below it costs :math:`(1 - k^q)/q` with zero gradient.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Zhang and Sabuncu, *Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels*, 2018,
      arXiv 1805.07836.
    """
    function = "losses.classification.generalized_cross_entropy"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "q", q, low=0, high=1)
    _checks.number(function, "k", k, low=0, high=1, open_high=True)
    whole = given.negative_log_probs()
    return given.losses(power_of_log(jnp.minimum(whole, _floor(k, whole.dtype)), -q))


def truncation_mask(logits: Logits, labels: Labels, *, k: float = 0.3) -> Bool[Array, "*batch"]:
    r"""Which examples truncated `generalized_cross_entropy` keeps: those with :math:`p_y > k`, per example.

    The authors refresh it every ten epochs in the second half of the training and keep it in between, as the mask of
    the untruncated loss.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      k: in [0, 1).

    Returns:
      Booleans `[...]`, without gradient; False where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Zhang and Sabuncu, *Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels*, 2018,
      arXiv 1805.07836.
    """
    function = "losses.classification.truncation_mask"
    given = _rows.rows(function, jax.lax.stop_gradient(logits), labels)
    _checks.number(function, "k", k, low=0, high=1, open_high=True)
    whole = given.negative_log_probs()
    return given.known & (whole < _floor(k, whole.dtype))


def mean_absolute_error(logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""Absolute error of the probabilities, :math:`\sum_c |t_c - p_c| = 2(1 - p_y)` for one-hot :math:`t`, per example.

    Symmetric: over all labels of one example it sums to a constant, so that uniform noise does not move its minimum.
    Twice `comp_sum_loss` with `tau = 2`.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.

    Returns:
      Losses `[...]`, float32 or wider in [0, 2]; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Ghosh, Kumar and Sastry, *Robust Loss Functions under Label Noise for Deep Neural Networks*, 2017, arXiv
      1712.09482.
    """
    function = "losses.classification.mean_absolute_error"
    given = _rows.rows(function, logits, labels)
    return given.losses(2 * _missing(given.negative_log_probs()))


def brier_loss(logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""Squared error of the probabilities :math:`\sum_c (t_c - p_c)^2` for a one-hot :math:`t`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.

    Returns:
      Losses `[...]`, float32 or wider in [0, 2]; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Brier, *Verification of Forecasts Expressed in Terms of Probability*, 1950.
    """
    function = "losses.classification.brier_loss"
    given = _rows.rows(function, logits, labels)
    others = jnp.where(given.own, 0, jax.nn.softmax(given.scores, axis=-1))
    return given.losses(_missing(given.negative_log_probs()) ** 2 + jnp.sum(others**2, axis=-1))


def reverse_cross_entropy(logits: Logits, labels: Labels, *, floor: float = 1e-4) -> Float[Array, "*batch"]:
    r"""Reverse cross-entropy :math:`-\sum_c p_c \log t_c = -\log\epsilon \sum_{c \ne y} p_c`, per example.

    The zeros of the one-hot label :math:`t` count as :math:`\epsilon`, and probabilities as 1e-7 at least.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      floor: :math:`\epsilon`, in (0, 1).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Wang et al., *Symmetric Cross Entropy for Robust Learning with Noisy Labels*, 2019, arXiv 1908.06112. The numbers
      are those of the released code of Ma et al., *Normalized Loss Functions for Deep Learning with Noisy Labels*,
      2020, arXiv 2006.13554.
    """
    function = "losses.classification.reverse_cross_entropy"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "floor", floor, low=0, high=1, open_low=True, open_high=True)
    others = jnp.where(given.own, 0, jnp.maximum(jax.nn.softmax(given.scores, axis=-1), 1e-7))
    return given.losses(_floor(floor, others.dtype) * jnp.sum(others, axis=-1))


def symmetric_cross_entropy(
    logits: Logits, labels: Labels, *, balance: float = 0.5, scale: float = 4.0
) -> Float[Array, "*batch"]:
    r"""Symmetric cross-entropy :math:`-(1-b) \log p_y + b A (1 - p_y)`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      balance: :math:`b`, in [0, 1], from cross-entropy to the robust term.
      scale: :math:`A`, in [0, inf): minus what stands for the logarithm of 0 in the reverse cross-entropy.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Wang et al., *Symmetric Cross Entropy for Robust Learning with Noisy Labels*, 2019, arXiv 1908.06112.
    """
    function = "losses.classification.symmetric_cross_entropy"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "balance", balance, low=0, high=1)
    _checks.number(function, "scale", scale, low=0, open_high=True)
    whole = given.negative_log_probs()
    return given.losses((1 - balance) * whole + balance * scale * _missing(whole))


def normalized_cross_entropy(logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""Normalised cross-entropy :math:`\log p_y / \sum_c \log p_c` in [0, 1], per example.

    Symmetric: over all labels of one example it sums to 1.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Ma et al., *Normalized Loss Functions for Deep Learning with Noisy Labels*, 2020, arXiv 2006.13554.
    """
    function = "losses.classification.normalized_cross_entropy"
    given = _rows.rows(function, logits, labels)
    log_probs = jax.nn.log_softmax(given.scores, axis=-1)
    total = -jnp.sum(log_probs, axis=-1)
    # A class alone costs nothing under any label.
    return given.losses(given.negative_log_probs() / jnp.where(total > 0, total, 1))


def asymmetric_generalized_cross_entropy(
    logits: Logits, labels: Labels, *, a: float = 1.0, q: float = 2.0
) -> Float[Array, "*batch"]:
    r"""Asymmetric generalised cross-entropy (AGCE) :math:`[(a+1)^q - (a + p_y)^q]/q`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      a: in (0, inf).
      q: in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Zhou et al., *Asymmetric Loss Functions for Learning with Noisy Labels*, 2021, arXiv 2106.03110.
    """
    function = "losses.classification.asymmetric_generalized_cross_entropy"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "a", a, low=0, open_low=True, open_high=True)
    _checks.number(function, "q", q, low=0, open_low=True, open_high=True)
    missing = _missing(given.negative_log_probs())
    return given.losses(-((a + 1) ** q) * power_of_log(jnp.log1p(-missing / (a + 1)), q))


def asymmetric_unhinged(logits: Logits, labels: Labels, *, a: float = 1.5, q: float = 0.9) -> Float[Array, "*batch"]:
    r"""Asymmetric unhinged loss (AUL) :math:`[(a - p_y)^q - (a-1)^q]/q`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      a: in (1, inf).
      q: in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Zhou et al., *Asymmetric Loss Functions for Learning with Noisy Labels*, 2021, arXiv 2106.03110.
    """
    function = "losses.classification.asymmetric_unhinged"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "a", a, low=1, open_low=True, open_high=True)
    _checks.number(function, "q", q, low=0, open_low=True, open_high=True)
    missing = _missing(given.negative_log_probs())
    return given.losses((a - 1) ** q * power_of_log(jnp.log1p(missing / (a - 1)), q))


def jensen_shannon(logits: Logits, labels: Labels, *, weight: float = 0.5) -> Float[Array, "*batch"]:
    r"""Generalised Jensen-Shannon divergence of one-hot label and prediction, scaled to run from 0 to 1, per example.

    .. math:: \frac{\pi\, KL(t \,\|\, m) + (1-\pi)\, KL(p \,\|\, m)}{-(1-\pi) \log(1-\pi)}, \quad
              m = \pi t + (1-\pi) p

    Close to cross-entropy for :math:`\pi` near 0, to half the mean absolute error near 1.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      weight: :math:`\pi` of the label, in (0, 1).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Englesson and Azizpour, *Generalized Jensen-Shannon Divergence Loss for Learning with Noisy Labels*, 2021, arXiv
      2105.04522.
    """
    function = "losses.classification.jensen_shannon"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "weight", weight, low=0, high=1, open_low=True, open_high=True)
    whole = given.negative_log_probs()
    pi, missing = jnp.asarray(weight, whole.dtype), _missing(whole)
    rest, log_mixed = jnp.log1p(-pi), jnp.log1p(-(1 - pi) * missing)
    divergence = -pi * log_mixed - (1 - pi) * (jnp.exp(-whole) * (whole + log_mixed) + missing * rest)
    return given.losses(-divergence / ((1 - pi) * rest))


def robust_log_loss(
    logits: Logits, labels: Labels, *, theta: float = 1.0, form: RobustLogForm = "released"
) -> Float[Array, "*batch"]:
    r"""Robust log loss (RLL), per example, as the authors of LDR released it or as it was published.

    It is :math:`-\log(\theta + p_y)` and

    | form | plus |
    |---|---|
    | released | :math:`\frac{1}{C-1} \log \sum_c (\theta + e^{z_c [c \ne y] - \sum_k z_k})` |
    | published | :math:`\log\frac{1+\theta}{\theta} + \frac{1}{C-1} \sum_{c \ne y} \log(\theta + p_c)` |

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      theta: :math:`\theta`, in (0, inf); the larger, the closer to the mean absolute error.
      form: `"released"` gives the numbers of the code; a constant added to the logits changes them. `"published"` is
        symmetric: over all labels of one example it sums to a constant.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Patel and Sastry, *Memorization in Deep Neural Networks: Does the Loss Function matter?*, 2021, arXiv 2107.09957.
      Zhu, Ying and Yang, *Label Distributionally Robust Losses for Multi-class Classification*, 2023, arXiv
      2112.14869.
    """
    function = "losses.classification.robust_log_loss"
    given = _rows.rows(function, logits, labels)
    _checks.number(function, "theta", theta, low=0, open_low=True, open_high=True)
    _checks.choice(function, "form", form, get_args(RobustLogForm))
    probs = jax.nn.softmax(given.scores, axis=-1)
    others = max(given.classes - 1, 1)
    if form == "published":
        logs = jnp.log(theta + probs)
        sums = jnp.sum(jnp.where(given.own, 0, logs), axis=-1)
        return given.losses(jnp.log1p(1 / jnp.asarray(theta, logs.dtype)) - given.of_label(logs) + sums / others)
    raw = jnp.where(given.known[..., None], jnp.asarray(logits).astype(probs.dtype), 0)
    exponents = jnp.where(given.own, 0, raw) - jnp.sum(raw, axis=-1, keepdims=True)
    constant = jnp.log(given.classes * jnp.asarray(theta, probs.dtype))
    sums = jnp.logaddexp(jax.nn.logsumexp(exponents, axis=-1), constant)
    return given.losses(sums / others - jnp.log(theta + given.of_label(probs)))


def _active_passive(
    function: str, logits: Logits, labels: Labels, passive: Array, active_weight: float, passive_weight: float
) -> Float[Array, "*batch"]:
    """An active loss, which only raises the label's probability, plus a passive one, which lowers the others too."""
    _checks.number(function, "active_weight", active_weight, low=0, open_high=True)
    _checks.number(function, "passive_weight", passive_weight, low=0, open_high=True)
    return active_weight * normalized_cross_entropy(logits, labels) + passive_weight * passive


def nce_rce(
    logits: Logits, labels: Labels, *, active_weight: float = 1.0, passive_weight: float = 1.0
) -> Float[Array, "*batch"]:
    r"""Weighted sum of `normalized_cross_entropy` and `reverse_cross_entropy`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      active_weight: of the normalised cross-entropy, in [0, inf).
      passive_weight: of the other loss, in [0, inf).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Ma et al., *Normalized Loss Functions for Deep Learning with Noisy Labels*, 2020, arXiv 2006.13554.
    """
    passive = reverse_cross_entropy(logits, labels)
    return _active_passive("losses.classification.nce_rce", logits, labels, passive, active_weight, passive_weight)


def nce_agce(
    logits: Logits,
    labels: Labels,
    *,
    active_weight: float = 1.0,
    passive_weight: float = 1.0,
    a: float = 3.0,
    q: float = 1.5,
) -> Float[Array, "*batch"]:
    r"""Weighted sum of `normalized_cross_entropy` and `asymmetric_generalized_cross_entropy`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      active_weight: of the normalised cross-entropy, in [0, inf).
      passive_weight: of the other loss, in [0, inf).
      a: as for `asymmetric_generalized_cross_entropy`.
      q: as for `asymmetric_generalized_cross_entropy`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Zhou et al., *Asymmetric Loss Functions for Learning with Noisy Labels*, 2021, arXiv 2106.03110.
    """
    passive = asymmetric_generalized_cross_entropy(logits, labels, a=a, q=q)
    return _active_passive("losses.classification.nce_agce", logits, labels, passive, active_weight, passive_weight)


def nce_aul(
    logits: Logits,
    labels: Labels,
    *,
    active_weight: float = 1.0,
    passive_weight: float = 1.0,
    a: float = 6.0,
    q: float = 1.5,
) -> Float[Array, "*batch"]:
    r"""Weighted sum of `normalized_cross_entropy` and `asymmetric_unhinged`, per example.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      active_weight: of the normalised cross-entropy, in [0, inf).
      passive_weight: of the other loss, in [0, inf).
      a: as for `asymmetric_unhinged`.
      q: as for `asymmetric_unhinged`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, a hyperparameter is out of range, or the labels are not integers.

    References:
      Zhou et al., *Asymmetric Loss Functions for Learning with Noisy Labels*, 2021, arXiv 2106.03110.
    """
    passive = asymmetric_unhinged(logits, labels, a=a, q=q)
    return _active_passive("losses.classification.nce_aul", logits, labels, passive, active_weight, passive_weight)
