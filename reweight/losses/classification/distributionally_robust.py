"""LDR-KL: the worst case over distributions of the label at a price in KL divergence, with one or many temperatures."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reweight import _checks
from reweight._tables import table_gather, table_init, table_scatter
from reweight.losses.base import BatchLoss
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = ["aldr_kl", "ldr_kl"]

Normalize = Literal["none", "softplus_mean", "l1_mean"]
SIGNALS = ("logits", "labels", "indices")


def _normalized(scores: Float[Array, "*batch classes"], normalize: Normalize) -> Float[Array, "*batch classes"]:
    if normalize == "none":
        return scores
    positive = jax.nn.softplus(scores) if normalize == "softplus_mean" else scores
    return positive / jnp.maximum(jnp.mean(jnp.abs(positive), axis=-1, keepdims=True), 1e-12)


def _worst_case(given: _rows.Rows, lam: Array, margin: float) -> Float[Array, "*batch"]:
    """Lam log mean exp(d / lam), in which neither a small nor a large lam costs digits."""
    ahead = given.ahead(margin)
    top = jax.lax.stop_gradient(jnp.max(ahead, axis=-1))
    return top + lam * jnp.log1p(jnp.mean(jnp.expm1((ahead - top[..., None]) / lam[..., None]), axis=-1))


def _hyperparameters(function: str, margin: float, normalize: Normalize) -> None:
    _checks.number(function, "margin", margin, low=0, open_high=True)
    _checks.choice(function, "normalize", normalize, get_args(Normalize))


def ldr_kl(
    logits: Logits, labels: Labels, *, lam: float = 1.0, margin: float = 0.0, normalize: Normalize = "none"
) -> Float[Array, "*batch"]:
    r"""LDR-KL :math:`\lambda \log \frac{1}{C} \sum_c e^{d_c/\lambda}`, :math:`d_c = f_c - f_y + m [c \ne y]`, a label.

    It is :math:`\max_p \sum_c p_c d_c - \lambda KL(p \,\|\, 1/C)`: the worst distribution of the label, at a price.
    With `lam=1` and no margin it is cross-entropy less log C; for `lam` to 0 it is the largest :math:`d_c`, the loss of
    Crammer and Singer, and to infinity the mean of :math:`d_c`, which is symmetric in the labels.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.
      lam: :math:`\lambda`, in (0, inf). Normalised scores are about 1 in size, so that they need about 10.
      margin: :math:`m`, in [0, inf).
      normalize: which scores :math:`f` are taken: `"none"`: the logits. `"softplus_mean"`: their softplus over its mean
        over the classes, as in the paper's experiments (with `lam=10`, `margin=0.1`). `"l1_mean"`: the logits over the
        mean of their absolute values. The gradient flows through the divisor, which is at least 1e-12.

    Returns:
      Losses `[...]`, float32 or wider, which may be negative; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Zhu, Ying and Yang, *Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness
      and Adaptivity*, 2023, arXiv 2112.14869.
    """
    function = "losses.classification.ldr_kl"
    given = _rows.rows(function, logits, labels, centre=False)
    _checks.number(function, "lam", lam, low=0, open_low=True, open_high=True)
    _hyperparameters(function, margin, normalize)
    given = given._replace(scores=_normalized(given.scores, normalize))
    return given.losses(_worst_case(given, jnp.asarray(lam, given.scores.dtype), margin))


def aldr_kl(
    num_examples: int,
    *,
    lam: float = 10.0,
    alpha: float = 2.0,
    margin: float = 0.1,
    normalize: Normalize = "l1_mean",
) -> BatchLoss:
    r"""LDR-KL with a temperature :math:`\lambda_i` for each example of the data set, lower where the model is sure.

    .. math:: \lambda_i \leftarrow \lambda_0 - \frac{\lambda_0}{\alpha \log C} KL(p_i \,\|\, 1/C), \quad
              p_i \propto \mathrm{softmax}(f_i/\lambda_i) + 10^{-5}

    comes first, without gradient; the loss is `ldr_kl` at the new :math:`\lambda_i`, less the constant
    :math:`\frac{\alpha \log C}{2 \lambda_0} (\lambda_i - \lambda_0)^2`. An example that stays uncertain, as one with a
    wrong label does, keeps a high temperature, at which the loss is nearly symmetric.

    Args:
      num_examples: how many examples the data set has.
      lam: :math:`\lambda_0`, where all temperatures start, in (0, inf).
      alpha: how slowly they fall, in (1, inf): they stay above :math:`\lambda_0 (1 - 1/\alpha)`.
      margin: as for `ldr_kl`.
      normalize: as for `ldr_kl`. The paper takes `"l1_mean"`, and `"softplus_mean"` for CIFAR-100.

    Returns:
      A `BatchLoss` whose state is the table of temperatures `[num_examples]`, of the signals `logits` `[B, C]`,
      `labels` `[B]` and `indices` `[B]`: example ids, unique among the unmasked of a batch. An index outside
      [0, num_examples) is not stored, and its example counts as new.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Zhu, Ying and Yang, *Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness
      and Adaptivity*, 2023, arXiv 2112.14869.
    """
    function = "losses.classification.aldr_kl"
    _checks.number(function, "num_examples", num_examples, low=1, integer=True)
    _checks.number(function, "lam", lam, low=0, open_low=True, open_high=True)
    _checks.number(function, "alpha", alpha, low=1, open_low=True, open_high=True)
    _hyperparameters(function, margin, normalize)

    def given(signals: dict[str, Any]) -> tuple[_rows.Rows, Array]:
        """Normalised scores with their labels, zeros where masked, and the mask as booleans."""
        _checks.require(function, signals, SIGNALS)
        _checks.array(function, "logits", signals["logits"], ndim=2, kind="float")
        rows, kept = _rows.masked(function, signals["logits"], signals["labels"], signals.get("mask"))
        return rows._replace(scores=_normalized(rows.scores, normalize)), kept

    def slowness(rows: _rows.Rows) -> float:
        # One class has no entropy to compare with, and any number will do.
        return alpha * math.log(max(rows.classes, 2))

    def init(key: PRNGKeyArray | None = None) -> Float[Array, " examples"]:
        del key
        return table_init(num_examples, dtype=float) + lam

    def statistics(
        state: Float[Array, " examples"], **signals: Any
    ) -> tuple[Float[Array, " batch"], Float[Array, " examples"]]:
        rows, kept = given(signals)
        indices = signals["indices"]
        _checks.array(function, "indices", indices, shape=kept.shape, kind="integer")
        before = table_gather(state, indices).astype(rows.scores.dtype)
        before = jnp.where(before > 0, before, lam)  # no temperature is 0: this index is not in the table
        probs = jax.nn.softmax(rows.scores / before[:, None], axis=-1) + 1e-5
        probs = probs / jnp.sum(probs, axis=-1, keepdims=True)
        divergence = jnp.sum(probs * jnp.log(rows.classes * probs), axis=-1)
        now = lam - lam * divergence / slowness(rows)
        return now, table_scatter(state, indices, now, mask=kept)

    def losses(statistics: Float[Array, " batch"], **signals: Any) -> Float[Array, " batch"]:
        rows, kept = given(signals)
        constant = slowness(rows) / (2 * lam) * (statistics - lam) ** 2
        return jnp.where(kept, rows.losses(_worst_case(rows, statistics, margin) - constant), 0)

    return BatchLoss(init, statistics, losses, SIGNALS)
