"""Losses of examples without a label, whose own prediction in one view is the target in another.

A weakly augmented view gives the pseudo-label, probabilities without gradient, on which a strongly augmented one is
trained:

    pseudo = jax.nn.softmax(weak_logits)
    losses = losses.semi_supervised.pseudo_label_loss(strong_logits, pseudo, threshold=0.95)

`fixmatch` and `shrinkmatch` are whole objectives, of labelled and unlabelled examples in one batch, for
`train.make_step(..., loss=...)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reweight import _checks
from reweight.losses.base import BatchLoss
from reweight.losses.classification import _rows
from reweight.losses.classification.softmax import named_cross_entropy

__all__ = [
    "Alignment",
    "MatchStatistics",
    "ShrinkMatchState",
    "ShrunkClasses",
    "distribution_alignment",
    "fixmatch",
    "pseudo_label_loss",
    "shrink_classes",
    "shrink_loss",
    "shrinkmatch",
]

Logits = Float[Array, "*batch classes"]
Probs = Float[Array, "*batch classes"]
Means = Float[Array, "window classes"]


def _pseudo(function: str, logits: Logits, pseudo: Probs, threshold: float) -> Probs:
    """The checked pseudo-labels, constant and in float32 at least."""
    _rows.allowed(function, logits)
    return _probs(function, pseudo, threshold, jnp.shape(logits))


def _probs(function: str, pseudo: Probs, threshold: float, shape: tuple[int, ...] | None = None) -> Probs:
    _checks.array(function, "pseudo", pseudo, shape=shape, kind="float")
    if jnp.ndim(pseudo) < 1 or jnp.shape(pseudo)[-1] == 0:
        _checks.fail(function, "pseudo", f"of shape {jnp.shape(pseudo)}", "an array whose last axis is the classes")
    _checks.number(function, "threshold", threshold, low=0, high=1)
    return jax.lax.stop_gradient(jnp.asarray(pseudo).astype(_checks.accumulation_dtype(pseudo)))


def pseudo_label_loss(
    logits: Logits, pseudo: Probs, *, threshold: float = 0.95, hard: bool = True
) -> Float[Array, "*batch"]:
    r"""Cross-entropy towards predictions that are certain: :math:`1[\max q \ge \tau]\, (-\sum_c t_c \log p_c)`.

    The target :math:`t` is the most likely class of the pseudo-label :math:`q`, or :math:`q` itself. Without a
    threshold, and with `logits` that belong to the same view, this is Lee's pseudo-label.

    Args:
      logits: of the view that is trained `[..., C]`.
      pseudo: :math:`q` `[..., C]`, probabilities of the other view. No gradient flows through them.
      threshold: :math:`\tau`, in [0, 1]: 0 takes all.
      hard: whether the target is one class, of equal ones the first.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the pseudo-label is uncertain. In the papers' means
      over a batch these zeros count.

    Raises:
      ValueError: if the shapes do not fit, or `threshold` is out of range.

    References:
      Sohn et al., *FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence*, 2020, arXiv
      2001.07685. Lee, *Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
      Networks*, 2013.
    """
    function = "losses.semi_supervised.pseudo_label_loss"
    target = _pseudo(function, logits, pseudo, threshold)
    certain = jnp.max(target, axis=-1) >= threshold
    losses = named_cross_entropy(function, logits, jnp.argmax(target, axis=-1) if hard else target, None)
    return jnp.where(certain, losses, 0)


class ShrunkClasses(NamedTuple):
    """The classes that are left, and the probability of the most likely one among them."""

    class_mask: Bool[Array, "*batch classes"]
    confidence: Float[Array, "*batch"]


def shrink_classes(pseudo: Probs, *, threshold: float = 0.95) -> ShrunkClasses:
    r"""Removes the rivals of the most likely class, from the strongest on, until it is certain among what is left.

    With the probabilities in order, :math:`q_{(0)} \ge q_{(1)} \ge \dots`, the ranks 1 to c - 1 go, for the least c
    with

    .. math:: \frac{q_{(0)}}{q_{(0)} + \sum_{j \ge c} q_{(j)}} \ge \tau

    or, where there is none, for the largest, C - 1: the most and the least likely class stay. Where the prediction is
    certain as it is nothing goes.

    Args:
      pseudo: :math:`q` `[..., C]`, probabilities. Of equal ones the first is taken to be the more likely.
      threshold: :math:`\tau`, in [0, 1].

    Returns:
      `ShrunkClasses`: `class_mask` `[..., C]`, as for `losses.classification.cross_entropy`, and `confidence` `[...]`,
      the left-hand side, float32 or wider, which is below the threshold where it could not be reached. No gradient.

    Raises:
      ValueError: if `pseudo` is no array of probabilities, or `threshold` is out of range.

    References:
      Yang et al., *Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning*, 2023, arXiv 2308.06777.
    """
    probs = _probs("losses.semi_supervised.shrink_classes", pseudo, threshold)
    last = max(probs.shape[-1] - 1, 1)
    order = jnp.argsort(-probs, axis=-1, stable=True)
    falling = jnp.take_along_axis(probs, order, axis=-1)
    top = falling[..., :1]
    rest = jnp.flip(jnp.cumsum(jnp.flip(falling, -1), axis=-1), -1)[..., 1 : last + 1]  # of the ranks from c on
    total = top + rest
    confidence = jnp.where(total > 0, top / jnp.where(total > 0, total, 1), 0)
    # Nothing has gone yet: this is the number that `pseudo_label_loss` compares, and a sum would round it.
    confidence = jnp.concatenate([top, confidence[..., 1:]], axis=-1)
    reached = (confidence >= threshold).at[..., -1].set(True)
    first = jnp.argmax(reached, axis=-1)[..., None]
    ranks = jnp.argsort(order, axis=-1)
    found = jnp.take_along_axis(confidence, first, axis=-1)[..., 0]
    return ShrunkClasses((ranks == 0) | (ranks > first), found)


def shrink_loss(logits: Logits, pseudo: Probs, *, threshold: float = 0.95) -> Float[Array, "*batch"]:
    r"""Cross-entropy :math:`-q_{(0)} \log p_{(0)}` of what is uncertain, in the classes that `shrink_classes` leaves.

    The target is the most likely class, and :math:`p` the softmax over the classes that are left. What is certain
    without shrinking costs 0 (`pseudo_label_loss` is for that), and so does what no shrinking makes certain.

    Args:
      logits: of the view that is trained `[..., C]`; in the paper those of an auxiliary head, so that the classifier
        does not learn to ignore the classes that are removed.
      pseudo: :math:`q` `[..., C]`, probabilities of the other view. No gradient flows through them.
      threshold: :math:`\tau`, in [0, 1].

    Returns:
      Losses `[...]`, float32 or wider. With two classes there is none to remove, and all are 0.

    Raises:
      ValueError: if the shapes do not fit, or `threshold` is out of range.

    References:
      Yang et al., *Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning*, 2023, arXiv 2308.06777.
    """
    function = "losses.semi_supervised.shrink_loss"
    probs = _pseudo(function, logits, pseudo, threshold)
    shrunk = shrink_classes(probs, threshold=threshold)
    top = jnp.max(probs, axis=-1)
    made_certain = (top < threshold) & (shrunk.confidence >= threshold)
    losses = named_cross_entropy(function, logits, jnp.argmax(probs, axis=-1), shrunk.class_mask)
    return jnp.where(made_certain, top * losses, 0)


class AlignFn(Protocol):
    """Aligned probabilities, and the next state."""

    def __call__(self, state: Means, probs: Probs, **signals: Any) -> tuple[Probs, Means]: ...


class Alignment(NamedTuple):
    """A pair of pure functions: `init() -> state` and `update(state, probs, **signals) -> (aligned, state)`."""

    init: Callable[..., Means]
    update: AlignFn


def distribution_alignment(
    num_classes: int, *, window: int = 32, target: Float[Array, " classes"] | None = None
) -> Alignment:
    r"""Distribution alignment: predictions are moved until classes are predicted as often as they should be.

    .. math:: \tilde q_c \propto q_c\, \frac{t_c}{\bar q_c}

    with the mean :math:`\bar q` of the means of the last batches, the one at hand among them. Pseudo-labels that favour
    a class make a model that favours it more; aligned ones do not.

    Args:
      num_classes: C.
      window: how many batches :math:`\bar q` is over, at least 1.
      target: :math:`t` `[C]`, class frequencies on any scale, such as those of the labels. Default: equal ones.

    Returns:
      An `Alignment`. `update` takes probabilities `[B, C]` of the global batch and the signal `mask` (boolean or 0/1,
      `[B]`); it gives aligned ones `[B, C]`, without gradient and 0 where masked, and the means of the last batches
      `[window, C]`, which stay as they were where all is masked.

    Raises:
      ValueError: if a hyperparameter is out of range or does not fit; at update, if the shapes do not.

    References:
      Berthelot et al., *ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring*,
      2019, arXiv 1911.09785. With equal frequencies and 32 batches as in the code of Yang et al., *Shrinking Class
      Space for Enhanced Certainty in Semi-Supervised Learning*, 2023, arXiv 2308.06777.
    """
    function = "losses.semi_supervised.distribution_alignment"
    _checks.number(function, "num_classes", num_classes, low=1, integer=True)
    _checks.number(function, "window", window, low=1, integer=True)
    if target is not None:
        _checks.array(function, "target", target, shape=(num_classes,), kind="number")

    def init(key: PRNGKeyArray | None = None) -> Means:
        del key
        # Rows that are still 0 change the scale of the mean only, which the last step takes out.
        return jnp.zeros((window, num_classes))

    def update(state: Means, probs: Probs, **signals: Any) -> tuple[Probs, Means]:
        mask = signals.get("mask")
        _checks.array(function, "probs", probs, shape=(None, num_classes), kind="float")
        _checks.mask(function, "mask", mask, jnp.zeros(jnp.shape(probs)[:1]), like_name="the first axis of probs")
        size = jnp.shape(probs)[:1]
        kept = _checks.kept(mask, size)
        values = jax.lax.stop_gradient(jnp.where(kept[:, None], probs, 0).astype(_checks.accumulation_dtype(probs)))
        count = jnp.sum(kept, dtype=values.dtype)
        mean = (jnp.sum(values, axis=0) / jnp.maximum(count, 1)).astype(state.dtype)
        state = jnp.where(count > 0, jnp.concatenate([state[1:], mean[None]]), state)
        often = jnp.sum(state, axis=0).astype(values.dtype)
        predicted = often > jnp.finfo(often.dtype).tiny
        aligned = jnp.where(predicted, values / jnp.where(predicted, often, 1), 0)
        if target is not None:
            wanted = jnp.asarray(target).astype(values.dtype)
            largest = jnp.max(wanted)
            aligned *= wanted / jnp.where(largest > 0, largest, 1)
        total = jnp.sum(aligned, axis=-1, keepdims=True)
        return aligned / jnp.where(total > 0, total, 1), state

    return Alignment(init, update)


class MatchStatistics(NamedTuple):
    """Of a batch: the pseudo-labels, what a labelled and an unlabelled example count, the share that is certain."""

    pseudo: Float[Array, "batch classes"]
    labelled: Float[Array, ""]
    unlabelled: Float[Array, ""]
    certain: Float[Array, ""]


class _Views(NamedTuple):
    """The logits of the views in float32 at least, 0 where they do not count, and who has a label."""

    rows: _rows.Rows
    others: dict[str, Array]
    labelled: Bool[Array, " batch"]
    unlabelled: Bool[Array, " batch"]


def _views(function: str, signals: dict[str, Any], names: tuple[str, ...]) -> _Views:
    _checks.require(function, signals, ("logits", "labels", *names))
    logits = signals["logits"]
    _checks.array(function, "logits", logits, ndim=2, kind="float")
    rows, kept = _rows.masked(function, logits, signals["labels"], signals.get("mask"))
    unlabelled = kept & ~rows.known
    others = {}
    for name in names:
        _checks.array(function, name, signals[name], shape=jnp.shape(logits), kind="float")
        others[name] = jnp.where(unlabelled[:, None], signals[name], 0).astype(rows.scores.dtype)
    return _Views(rows, others, kept & rows.known, unlabelled)


def _statistics(
    views: _Views, alignment: Alignment | None, state: Any, threshold: float, weight: float
) -> tuple[MatchStatistics, Any]:
    pseudo = jax.nn.softmax(views.rows.scores, axis=-1)
    if alignment is not None:
        pseudo, state = alignment.update(state, pseudo, mask=views.unlabelled)
    labelled, unlabelled = (jnp.sum(kept, dtype=pseudo.dtype) for kept in (views.labelled, views.unlabelled))
    certain = jnp.sum(views.unlabelled & (jnp.max(pseudo, axis=-1) >= threshold), dtype=pseudo.dtype)
    number, some = labelled + unlabelled, jnp.maximum(unlabelled, 1)
    return MatchStatistics(pseudo, number / jnp.maximum(labelled, 1), weight * number / some, certain / some), state


def _check_match(function: str, alignment: Any, threshold: float, unlabelled_weight: float) -> None:
    if alignment is not None and not isinstance(alignment, Alignment):
        allowed = "None or an Alignment, such as distribution_alignment(num_classes)"
        _checks.fail(function, "alignment", f"of type {type(alignment).__name__}", allowed)
    _checks.number(function, "threshold", threshold, low=0, high=1)
    _checks.number(function, "unlabelled_weight", unlabelled_weight, low=0, open_high=True)


def _costs(function: str, views: _Views, statistics: MatchStatistics, unlabelled: Array) -> Float[Array, " batch"]:
    """The losses of a batch whose mean is that of the labelled plus that of the unlabelled."""
    supervised = named_cross_entropy(function, views.rows.scores, views.rows.labels, None)
    losses = jnp.where(views.labelled, statistics.labelled * supervised, 0)
    return losses + jnp.where(views.unlabelled, statistics.unlabelled * unlabelled, 0)


def fixmatch(
    alignment: Alignment | None = None, *, threshold: float = 0.95, hard: bool = True, unlabelled_weight: float = 1.0
) -> BatchLoss:
    r"""FixMatch: cross-entropy of what has a label, `pseudo_label_loss` of what has none.

    .. math:: \frac{1}{n_x} \sum_{labelled} -\log p_y(x) + \lambda \frac{1}{n_u} \sum_{unlabelled} \ell_\tau(x)

    is the mean of the losses over the batch: a labelled example counts :math:`n / n_x`, an unlabelled one
    :math:`\lambda n / n_u`, with the numbers of the global batch.

    Args:
      alignment: of the pseudo-labels, such as `distribution_alignment(num_classes)`. Default: none.
      threshold: :math:`\tau`, in [0, 1].
      hard: as for `pseudo_label_loss`.
      unlabelled_weight: :math:`\lambda`, in [0, inf).

    Returns:
      A `BatchLoss` with the state of the alignment. Signals: `logits` `[B, C]` of the weak view, which the labels are
      for and the pseudo-labels come from, those without gradient; `labels` `[B]`, where -1, or any other number that is
      no class, says that there is none; `strong_logits` `[B, C]` of the strong view, never read where there is a label.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Sohn et al., *FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence*, 2020, arXiv
      2001.07685.
    """
    function = "losses.semi_supervised.fixmatch"
    _check_match(function, alignment, threshold, unlabelled_weight)
    names = ("strong_logits",)

    def init(key: PRNGKeyArray | None = None) -> Any:
        del key
        return () if alignment is None else alignment.init()

    def statistics(state: Any, **signals: Any) -> tuple[MatchStatistics, Any]:
        return _statistics(_views(function, signals, names), alignment, state, threshold, unlabelled_weight)

    def losses(statistics: MatchStatistics, **signals: Any) -> Float[Array, " batch"]:
        views = _views(function, signals, names)
        strong = views.others["strong_logits"]
        unlabelled = pseudo_label_loss(strong, statistics.pseudo, threshold=threshold, hard=hard)
        return _costs(function, views, statistics, unlabelled)

    return BatchLoss(init, statistics, losses, ("logits", "labels", *names))


class ShrinkMatchState(NamedTuple):
    """The state of the alignment, the running share of examples that are certain, and whether there is one yet."""

    alignment: Any
    certain: Float[Array, ""]
    started: Bool[Array, ""]


def shrinkmatch(
    alignment: Alignment | None,
    *,
    threshold: float = 0.95,
    hard: bool = False,
    unlabelled_weight: float = 1.0,
    decay: float = 0.999,
) -> BatchLoss:
    r"""ShrinkMatch: `fixmatch`, and `shrink_loss` for the examples that it leaves out.

    An unlabelled example costs :math:`\lambda (\ell_\tau + \kappa\, \ell_{shrink})`. The weight :math:`\kappa` is a
    running mean of the share of unlabelled examples that are certain, :math:`\kappa \leftarrow d \kappa + (1 - d) r`,
    which starts at the share of the first batch: uncertain examples count more as the model gets better.

    Args:
      alignment: of the pseudo-labels: `distribution_alignment(num_classes)` in the paper, or None.
      threshold: :math:`\tau`, in [0, 1].
      hard: as for `pseudo_label_loss`; pseudo-labels of certain examples are soft in the code for CIFAR.
      unlabelled_weight: :math:`\lambda`, in [0, inf).
      decay: :math:`d`, in [0, 1]. The code for CIFAR starts anew every 1024 steps, this does not.

    Returns:
      A `BatchLoss` with state `ShrinkMatchState`, of the signals of `fixmatch` and `aux_logits` `[B, C]`: the strong
      view through an auxiliary head, never read where there is a label.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Yang et al., *Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning*, 2023, arXiv 2308.06777.
    """
    function = "losses.semi_supervised.shrinkmatch"
    _check_match(function, alignment, threshold, unlabelled_weight)
    _checks.number(function, "decay", decay, low=0, high=1)
    names = ("strong_logits", "aux_logits")

    def init(key: PRNGKeyArray | None = None) -> ShrinkMatchState:
        del key
        return ShrinkMatchState(() if alignment is None else alignment.init(), jnp.zeros(()), jnp.zeros((), bool))

    def statistics(state: ShrinkMatchState, **signals: Any) -> tuple[MatchStatistics, ShrinkMatchState]:
        views = _views(function, signals, names)
        found, aligned = _statistics(views, alignment, state.alignment, threshold, unlabelled_weight)
        certain = jnp.where(state.started, decay * state.certain + (1 - decay) * found.certain, found.certain)
        some = jnp.any(views.unlabelled)
        certain = jnp.where(some, certain, state.certain).astype(state.certain.dtype)
        return found._replace(certain=certain), ShrinkMatchState(aligned, certain, state.started | some)

    def losses(statistics: MatchStatistics, **signals: Any) -> Float[Array, " batch"]:
        views = _views(function, signals, names)
        strong, aux = (views.others[name] for name in names)
        unlabelled = pseudo_label_loss(strong, statistics.pseudo, threshold=threshold, hard=hard)
        unlabelled += statistics.certain * shrink_loss(aux, statistics.pseudo, threshold=threshold)
        return _costs(function, views, statistics, unlabelled)

    return BatchLoss(init, statistics, losses, ("logits", "labels", *names))
