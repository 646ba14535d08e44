"""Class frequencies in the loss: of the training set, of the batch, and of what a model was trained on before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray

from reweight import _checks
from reweight.losses.base import BatchLoss
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits
from reweight.losses.classification.softmax import named_cross_entropy

__all__ = ["LadeStatistics", "estimate_label_prior", "lade", "logit_adjusted_cross_entropy"]

Counts = Num[Array, " classes"]
Mask = Bool[Array, "..."] | Num[Array, "..."]
SIGNALS = ("logits", "labels")


def _prior(function: str, class_counts: Counts, classes: int) -> Float[Array, " classes"]:
    _checks.array(function, "class_counts", class_counts, shape=(classes,), kind="number")
    counts = jnp.asarray(class_counts).astype(_checks.accumulation_dtype(class_counts))
    total = jnp.sum(counts)
    return counts / jnp.where(total > 0, total, 1)


def _log_prior(function: str, class_counts: Counts, classes: int) -> Float[Array, " classes"]:
    return jnp.log(_prior(function, class_counts, classes) + 1e-9)


def logit_adjusted_cross_entropy(
    logits: Logits,
    labels: Labels | Float[Array, "*batch classes"],
    *,
    class_counts: Counts,
    tau: float = 1.0,
    model_prior: Float[Array, " classes"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of :math:`z_c + \tau \log(\pi_c + 10^{-9})` with the class frequencies :math:`\pi`, per example.

    A model trained so gives logits for balanced classes: frequent classes no longer gain from being frequent. `tau=1`
    is the balanced softmax, `tau=0` and equal counts are plain cross-entropy.

    Args:
      logits: `[..., C]`, any scale; unadjusted, as used at test time.
      labels: integer class ids `[...]` or target probabilities `[..., C]`, as for `cross_entropy`.
      class_counts: examples of each class in the training set `[C]`, non-negative, on any scale. A class without an
        example has frequency 0, which the floor of 1e-9 keeps finite.
      tau: strength of the adjustment, in [0, inf).
      model_prior: :math:`q` `[C]`, class frequencies that a pre-trained model carries from data that are not at hand
        (see `estimate_label_prior`), at least 1e-9 each; :math:`\log q_c` is added too. Default: none.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, or `tau` is out of range.

    References:
      Menon et al., *Long-tail learning via logit adjustment*, 2021, arXiv 2007.07314. Ren et al., *Balanced
      Meta-Softmax for Long-Tailed Visual Recognition*, 2020, arXiv 2007.10740. The floor is that of the released code
      of Chen et al., *Rethinking the Bias of Foundation Model under Long-tailed Distribution*, 2025, arXiv 2501.15955.
    """
    function = "losses.classification.logit_adjusted_cross_entropy"
    _rows.allowed(function, logits)
    log_prior = _log_prior(function, class_counts, jnp.shape(logits)[-1])
    _checks.number(function, "tau", tau, low=0, open_high=True)
    scores = jnp.asarray(logits).astype(_checks.accumulation_dtype(logits)) + tau * log_prior
    if model_prior is not None:
        _checks.array(function, "model_prior", model_prior, shape=jnp.shape(logits)[-1:], kind="float")
        scores = scores + jnp.log(jnp.maximum(jnp.asarray(model_prior).astype(log_prior.dtype), 1e-9))
    return named_cross_entropy(function, scores, labels, None)


class LadeStatistics(NamedTuple):
    """What `lade` knows of the batch: a factor of the label's own score, a value of the batch, slopes of the scores."""

    own: Float[Array, " batch"]
    value: Float[Array, ""]
    slopes: Float[Array, "batch classes"]


def lade(class_counts: Counts, *, weight: float = 0.1, penalty: float = 0.1) -> BatchLoss:
    r"""LADE: cross-entropy adjusted by the class frequencies, with an estimate of each class's log-density ratio.

    Over the N unmasked examples of the batch, of which :math:`n_c` are of class c,

    .. math:: \frac{1}{N} \sum_i \ell_i - \alpha \sum_c \pi_c (A_c - S_c - \rho S_c^2), \quad
              A_c = \frac{1}{n_c} \sum_{y_i = c} o_{ic}, \quad
              S_c = \log \frac{1}{N} \sum_i e^{o_{ic}} - \log C \pi_c

    with the logits :math:`o` and the cross-entropy :math:`\ell` of :math:`o_c + \log \pi_c`. The mean of the losses of
    a batch has this value and its whole gradient: that of :math:`S_c`, which is of all examples, is attached to each
    example's own logits.

    Args:
      class_counts: examples of each class in the training set `[C]`, on any scale. As in the code, 1e-9 is added to the
        frequencies in :math:`S_c`, and 1e-8 to :math:`n_c`; in :math:`\ell` a frequency is 1e-9 at least.
      weight: :math:`\alpha`, in [0, inf).
      penalty: :math:`\rho`, in [0, inf), that keeps the log-partition sums near 0.

    Returns:
      A `BatchLoss` without state, of the signals `logits` `[B, C]` and `labels` `[B]`. A label that is no class counts
      as masked.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Hong et al., *Disentangling Label Distribution for Long-tailed Visual Recognition*, 2021, arXiv 2012.00321. The
      numbers are those of the code of Chen et al., *Rethinking the Bias of Foundation Model under Long-tailed
      Distribution*, 2025, arXiv 2501.15955.
    """
    function = "losses.classification.lade"
    _checks.array(function, "class_counts", class_counts, ndim=1, kind="number")
    _checks.number(function, "weight", weight, low=0, open_high=True)
    _checks.number(function, "penalty", penalty, low=0, open_high=True)

    def given(signals: dict[str, Any]) -> tuple[_rows.Rows, Array, Array]:
        _checks.require(function, signals, SIGNALS)
        _checks.array(function, "logits", signals["logits"], ndim=2, kind="float")
        rows, kept = _rows.masked(function, signals["logits"], signals["labels"], signals.get("mask"))
        return rows, kept & rows.known, _prior(function, class_counts, rows.classes)

    def init(key: PRNGKeyArray | None = None) -> tuple[()]:
        del key
        return ()

    def statistics(state: tuple[()], **signals: Any) -> tuple[LadeStatistics, tuple[()]]:
        rows, kept, prior = given(signals)
        prior = prior.astype(rows.scores.dtype)
        number = jnp.sum(kept, dtype=prior.dtype)
        members = jnp.sum(rows.own & kept[:, None], axis=0, dtype=prior.dtype)
        sums = jax.nn.logsumexp(rows.scores, axis=0, where=kept[:, None])
        sums = jnp.where(number > 0, sums, 0)
        ratio = jnp.log(1 / jnp.asarray(rows.classes, prior.dtype) + 1e-9) - jnp.log(prior + 1e-9)
        partition = jnp.where(number > 0, sums + ratio - jnp.log(jnp.maximum(number, 1)), 0)
        shares = jnp.where(kept[:, None], jnp.exp(rows.scores - sums), 0)
        return LadeStatistics(
            number * (prior / (members + 1e-8))[rows.labels],
            jnp.sum(prior * (partition + penalty * partition**2)),
            number * prior * (1 + 2 * penalty * partition) * shares,
        ), state

    def losses(statistics: LadeStatistics, **signals: Any) -> Float[Array, " batch"]:
        rows, kept, prior = given(signals)
        adjusted = named_cross_entropy(function, rows.scores + jnp.log(jnp.maximum(prior, 1e-9)), rows.labels, None)
        slopes = jnp.sum(statistics.slopes * (rows.scores - jax.lax.stop_gradient(rows.scores)), axis=-1)
        estimate = statistics.own * rows.of_label(rows.scores) - statistics.value - slopes
        return jnp.where(kept, adjusted - weight * estimate, 0)

    return BatchLoss(init, statistics, losses, SIGNALS)


def estimate_label_prior(
    logits: Float[Array, "batch classes"], labels: Labels, *, num_steps: int = 50, mask: Mask | None = None
) -> Float[Array, " classes"]:
    r"""The class frequencies `[C]` that a model carries: :math:`q` of the least cross-entropy of :math:`z - \log q`.

    On examples that are balanced over the classes this is what a pre-trained model took classes to be worth; it can be
    taken off its logits, or given to `logit_adjusted_cross_entropy`. Under :math:`q` the mean probability of each class
    is its share of the labels. The problem is convex, and solved by Newton steps of limited length.

    Args:
      logits: of the model as it is `[B, C]`.
      labels: integer class ids `[B]`. A label that is no class counts as masked.
      num_steps: at least 1; each solves a system of C equations.
      mask: boolean or 0/1, broadcast to the labels.

    Returns:
      :math:`q` `[C]`, sums to one, float32 or wider, without gradient. A class without an example is left out and has
      0; if there is no example at all, q is uniform.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or `num_steps` is out of range.

    References:
      Zhu et al., *Generalized Logit Adjustment: Calibrating Fine-tuned Models by Removing Label Bias in Foundation
      Models*, 2023, arXiv 2310.08106.
    """
    function = "losses.classification.estimate_label_prior"
    _checks.number(function, "num_steps", num_steps, low=1, integer=True)
    _checks.array(function, "logits", logits, ndim=2, kind="float")
    rows, kept = _rows.masked(function, jax.lax.stop_gradient(logits), labels, mask)
    kept &= rows.known
    members = jnp.sum(rows.own & kept[:, None], axis=0, dtype=rows.scores.dtype)
    present, number = members > 0, jnp.maximum(jnp.sum(members), 1)
    # The system is singular along a shift of all, and nearly so where every example is decided.
    ridge = jnp.diag(jnp.where(present, 1e-6, 1.0)) + jnp.outer(present, present) / rows.classes

    def step(_: Any, shift: Array) -> Array:
        probs = jax.nn.softmax(rows.scores + shift, axis=-1, where=present & kept[:, None])
        probs = jnp.where(present & kept[:, None], probs, 0)
        expected = jnp.sum(probs, axis=0)
        curvature = (jnp.diag(expected) - jnp.matmul(probs.T, probs, precision="highest")) / number
        move = jnp.linalg.solve(curvature + ridge, (members - expected) / number)
        return shift + move / jnp.maximum(jnp.max(jnp.abs(move)), 1)

    shift = jax.lax.fori_loop(0, num_steps, step, jnp.zeros_like(members))
    found = jax.nn.softmax(-shift, where=present)
    return jnp.where(jnp.any(present), jnp.where(present, found, 0), 1 / rows.classes)
