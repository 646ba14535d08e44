"""Memory of what a model has predicted for each example, as a target beside the label: ELR, PS-KD and their like.

A table has a row of probabilities for each example of the data set. Networks fit what is easy and shared long before
they fit a wrong label, so that the predictions of early epochs know better than some labels do.
"""

from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reweight import _checks
from reweight._tables import table_gather, table_init, table_scatter
from reweight.losses.base import BatchLoss
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits
from reweight.losses.classification.softmax import named_cross_entropy
from reweight.schedules import Schedule

__all__ = [
    "RememberedTargets",
    "TargetMemory",
    "early_learning_penalty",
    "elr",
    "elr_plus",
    "progressive_targets",
    "ps_kd",
    "target_memory",
]

Probabilities = Float[Array, "*batch classes"]
Strength = float | Schedule
Read = Literal["before", "after"]
SIGNALS = ("logits", "labels", "indices")


class TargetMemory(NamedTuple):
    """The memory of every example, zeros for one that was never seen, and how many batches there were."""

    targets: Float[Array, "examples classes"]
    step: Int[Array, ""]


class RememberedTargets(NamedTuple):
    """The memory of the examples of a batch, and the strength with which it counts."""

    targets: Float[Array, "batch classes"]
    strength: Float[Array, ""]


class TargetLoss(Protocol):
    """Losses of examples from their logits, labels and remembered targets, at some strength."""

    def __call__(
        self, logits: Array, labels: Array, targets: Array, strength: Float[Array, ""]
    ) -> Float[Array, " batch"]: ...


def target_memory(
    loss: TargetLoss,
    num_examples: int,
    num_classes: int,
    *,
    decay: float = 0.0,
    strength: Strength = 1.0,
    read: Read = "after",
    floor: float = 0.0,
    dtype: Any = float,
) -> BatchLoss:
    r"""A loss that knows what the model has predicted for the example before: :math:`\ell(z_i, y_i, t_i, s)`.

    .. math:: t_i \leftarrow \beta\, t_i + (1 - \beta)\, p_i, \quad t_i = 0 \text{ at first}

    with the model's probabilities :math:`p_i`. After n visits a row sums to :math:`1 - \beta^n`, and what it
    lacks to one is not known yet. The memory carries no gradient.

    Where the inputs are mixtures :math:`\lambda x_i + (1 - \lambda) x_j` (mixup), the optional signals `mix_indices`
    (the ids of the j) and `mix_share` (:math:`\lambda`) mix the targets alike. Where another model is to be remembered
    than the one that learns (a moving average, a peer, on inputs before the mixing), its logits are the optional signal
    `memory_logits`.

    Args:
      loss: `(logits [B, C], labels, targets [B, C], strength []) -> [B]`, of each example by itself, finite for zeros.
      num_examples: how many examples the data set has.
      num_classes: how many classes, C.
      decay: :math:`\beta`, in [0, 1]: 0 remembers the last prediction alone.
      strength: s, in [0, inf), or a schedule from the number of batches seen so far to it.
      read: whether the loss gets the memory `"before"` or `"after"` this batch's prediction has entered it.
      floor: the probabilities are clipped to [floor, 1 - floor], and sum to one again, before they enter; in [0, 1/2).
      dtype: of the table: a narrow float halves it.

    Returns:
      A `BatchLoss` with state `TargetMemory`, of the signals `logits` `[B, C]`, `labels` `[B]` (integers; -1 and the
      like cost 0) or `[B, C]` (probabilities), and `indices` `[B]`: example ids, unique among the unmasked of a batch.
      An index outside [0, num_examples) is not stored, and its example counts as new.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.
    """
    return _memory(
        "losses.classification.target_memory", loss, num_examples, num_classes, decay, strength, read, floor, dtype
    )


def _memory(
    function: str,
    loss: TargetLoss,
    num_examples: int,
    num_classes: int,
    decay: float,
    strength: Strength,
    read: Read,
    floor: float,
    dtype: Any,
) -> BatchLoss:
    _checks.number(function, "num_examples", num_examples, low=1, integer=True)
    _checks.number(function, "num_classes", num_classes, low=1, integer=True)
    _checks.number(function, "decay", decay, low=0, high=1)
    if not callable(strength):
        _checks.number(function, "strength", strength, low=0, open_high=True)
    _checks.choice(function, "read", read, get_args(Read))
    _checks.number(function, "floor", floor, low=0, high=0.5, open_high=True)

    def rows(name: str, signals: dict[str, Any]) -> tuple[Array, Bool[Array, " batch"]]:
        """Logits in float32 at least, zeros where masked, and the mask as booleans."""
        logits = signals[name]
        _checks.array(function, name, logits, shape=(None, num_classes), kind="float")
        size = jnp.shape(logits)[:1]
        mask = signals.get("mask")
        _checks.mask(function, "mask", mask, jnp.zeros(size), like_name=f"the first axis of {name}")
        kept = _checks.kept(mask, size)
        return jnp.where(kept[:, None], logits, 0).astype(_checks.accumulation_dtype(logits)), kept

    def init(key: PRNGKeyArray | None = None) -> TargetMemory:
        del key
        return TargetMemory(table_init(num_examples, (num_classes,), dtype=dtype), jnp.zeros((), jnp.int32))

    def statistics(state: TargetMemory, **signals: Any) -> tuple[RememberedTargets, TargetMemory]:
        _checks.require(function, signals, SIGNALS)
        seen, kept = rows("memory_logits" if signals.get("memory_logits") is not None else "logits", signals)
        indices = signals["indices"]
        _checks.array(function, "indices", indices, shape=kept.shape, kind="integer")
        predicted = jnp.clip(jax.nn.softmax(seen, axis=-1), floor, 1 - floor)
        predicted = predicted / jnp.sum(predicted, axis=-1, keepdims=True)
        before = table_gather(state.targets, indices).astype(seen.dtype)
        after = decay * before + (1 - decay) * predicted
        table = table_scatter(state.targets, indices, after, mask=kept)
        targets = before if read == "before" else after
        if signals.get("mix_indices") is not None or signals.get("mix_share") is not None:
            targets = _mixed(function, targets, state.targets if read == "before" else table, kept, signals)
        targets = jnp.where(kept[:, None], targets, 0)
        counts = strength(state.step) if callable(strength) else strength
        new = TargetMemory(table, state.step + jnp.any(kept).astype(state.step.dtype))
        return RememberedTargets(targets, jnp.asarray(counts, seen.dtype)), new

    def losses(statistics: RememberedTargets, **signals: Any) -> Float[Array, " batch"]:
        _checks.require(function, signals, SIGNALS)
        logits, kept = rows("logits", signals)
        labels = jnp.asarray(signals["labels"])
        if jnp.issubdtype(labels.dtype, jnp.integer):
            _checks.array(function, "labels", labels, shape=kept.shape)
            kept &= (labels >= 0) & (labels < num_classes)
            labels = jnp.where(kept, labels, 0)
        else:
            _checks.array(function, "labels", labels, shape=logits.shape, kind="float")
            labels = jnp.where(kept[:, None], labels, 0)
        return jnp.where(kept, loss(logits, labels, *statistics), 0)

    return BatchLoss(init, statistics, losses, SIGNALS)


def _mixed(function: str, targets: Array, table: Array, kept: Array, signals: dict[str, Any]) -> Array:
    """The targets of mixtures of the examples of a batch with others."""
    _checks.require(function, signals, ("mix_indices", "mix_share"))
    indices, share = signals["mix_indices"], signals["mix_share"]
    _checks.array(function, "mix_indices", indices, shape=targets.shape[:1], kind="integer")
    _checks.array(function, "mix_share", share, shape=targets.shape[:1], kind="float")
    share = jnp.where(kept, share, 0)[:, None].astype(targets.dtype)
    return share * targets + (1 - share) * table_gather(table, indices).astype(targets.dtype)


def early_learning_penalty(logits: Logits, targets: Probabilities, *, floor: float = 1e-4) -> Float[Array, "*batch"]:
    r"""Early-learning regularisation :math:`\log(1 - \sum_c t_c p_c)`, per example, for targets from early predictions.

    It is negative, and the lower the better the prediction agrees with the target. Beside cross-entropy its gradient
    keeps that of clean examples from vanishing and takes that of wrong labels back.

    Args:
      logits: `[..., C]`, any scale.
      targets: `[..., C]`, non-negative, of sum at most 1. No gradient flows through them.
      floor: the probabilities p are clipped to [floor, 1 - floor], where no gradient flows; in (0, 1/2).

    Returns:
      Values `[...]`, float32 or wider, in [log floor, 0]; 0 with zero gradient where the targets are 0.

    Raises:
      ValueError: if the shapes do not fit, or `floor` is out of range.

    References:
      Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, 2020, arXiv 2007.00151.
    """
    function = "losses.classification.early_learning_penalty"
    scores = _rows.centred(logits, _rows.allowed(function, logits))
    _checks.array(function, "targets", targets, shape=jnp.shape(logits), kind="float")
    _checks.number(function, "floor", floor, low=0, high=0.5, open_low=True, open_high=True)
    targets = jax.lax.stop_gradient(jnp.asarray(targets)).astype(scores.dtype)
    # The rest of each probability, not the probability: one that is almost 1 has no digits left.
    rest = jnp.clip(-jnp.expm1(jax.nn.log_softmax(scores, axis=-1)), floor, 1 - floor)
    left = (1 - jnp.sum(targets, axis=-1)) + jnp.sum(targets * rest, axis=-1)
    return jnp.log(jnp.maximum(left, floor / 2))  # below the floor only where targets sum to more than 1


def elr(
    num_examples: int,
    num_classes: int,
    *,
    decay: float = 0.7,
    weight: Strength = 3.0,
    floor: float = 1e-4,
    dtype: Any = float,
) -> BatchLoss:
    r"""ELR: cross-entropy and `early_learning_penalty` of a moving average of the model's own predictions.

    .. math:: -\log p_y + \lambda \log(1 - \sum_c t_c p_c), \quad t \leftarrow \beta t + (1 - \beta) p

    with the average :math:`t`, from zero, updated first. With `decay=1` or `weight=0` it is cross-entropy.

    Args:
      num_examples: how many examples the data set has.
      num_classes: how many classes.
      decay: :math:`\beta`, in [0, 1]; the paper takes 0.7, and 0.9 for noise that follows the class and for CIFAR-100.
      weight: :math:`\lambda`, in [0, inf), or a schedule from the number of batches seen so far to it; the paper takes
        3, 1 for noise that follows the class, and 7 for CIFAR-100.
      floor: as for `early_learning_penalty`; what is remembered is clipped likewise.
      dtype: of the table.

    Returns:
      A `BatchLoss` with state `TargetMemory`, of the signals `logits`, `labels` and `indices`, see `target_memory`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, 2020, arXiv 2007.00151.
    """
    function = "losses.classification.elr"
    _penalised(function, weight, floor)

    def loss(logits: Array, labels: Array, targets: Array, strength: Array) -> Float[Array, " batch"]:
        fit = named_cross_entropy(function, logits, labels, None)
        return fit + strength * early_learning_penalty(logits, targets, floor=floor)

    return _memory(function, loss, num_examples, num_classes, decay, weight, "after", floor, dtype)


def elr_plus(
    num_examples: int,
    num_classes: int,
    *,
    decay: float = 0.7,
    weight: Strength = 3.0,
    floor: float = 1e-4,
    filter_labels: bool = False,
    dtype: Any = float,
) -> BatchLoss:
    r"""ELR+: `elr` of one of two networks, which learns mixtures and remembers the moving average of the other.

    A step gives as signals the `logits` of the network on mixed inputs, their mixed `labels` `[B, C]`, `indices`, the
    `memory_logits` of the other network's moving average on the inputs as they are, and how they were mixed:
    `mix_indices` and `mix_share`. The mixture of the memories is the target of the penalty. Unlike in `elr` what is
    remembered is not clipped.

    Args:
      num_examples: how many examples the data set has.
      num_classes: how many classes.
      decay: as for `elr`.
      weight: as for `elr`; the paper takes 3 times `schedules.sigmoid_rampup(length)`, with 7 and 40 000 batches for
        CIFAR-100.
      floor: as for `early_learning_penalty`.
      filter_labels: multiply the labels with the targets, and let them sum to one again, as the paper does for
        CIFAR-100. Of two mixed labels the more probable one then counts more. Labels whose targets are all 0 count
        for nothing.
      dtype: of the table.

    Returns:
      A `BatchLoss` with state `TargetMemory`, see `target_memory`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, 2020, arXiv 2007.00151.
    """
    function = "losses.classification.elr_plus"
    _penalised(function, weight, floor)

    def loss(logits: Array, labels: Array, targets: Array, strength: Array) -> Float[Array, " batch"]:
        if jnp.ndim(labels) == 1:
            labels = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
        if filter_labels:
            labels = labels * targets
            # In units of the largest first: a sum of products may be too small to divide by.
            largest = jnp.max(labels, axis=-1, keepdims=True)
            labels = labels / jnp.where(largest > 0, largest, 1)
            labels = labels / jnp.maximum(jnp.sum(labels, axis=-1, keepdims=True), 1)
        fit = named_cross_entropy(function, logits, labels, None)
        return fit + strength * early_learning_penalty(logits, targets, floor=floor)

    return _memory(function, loss, num_examples, num_classes, decay, weight, "after", 0.0, dtype)


def _penalised(function: str, weight: Strength, floor: float) -> None:
    if not callable(weight):
        _checks.number(function, "weight", weight, low=0, open_high=True)
    _checks.number(function, "floor", floor, low=0, high=0.5, open_low=True, open_high=True)


def progressive_targets(
    labels: Labels | Probabilities, predictions: Probabilities, *, share: float | Float[Array, ""]
) -> Probabilities:
    r"""Labels softened by earlier predictions, :math:`(1 - \alpha \sum_c P_c)\, y + \alpha P`, per example.

    For predictions that sum to one these are the targets of PS-KD; of an example without a prediction (a row of zeros)
    the label stays as it is. With a constant :math:`P = 1/C` it is label smoothing.

    Args:
      labels: integer class ids `[...]`, or probabilities `[..., C]`.
      predictions: :math:`P`, `[..., C]`, non-negative, of sum at most 1.
      share: :math:`\alpha`, in [0, 1].

    Returns:
      Targets `[..., C]`, float32 or wider; zeros where the label is no class. The gradient flows to predictions and to
      labels that are probabilities.

    Raises:
      ValueError: if the shapes do not fit, or `share` is out of range.

    References:
      Kim et al., *Self-Knowledge Distillation with Progressive Refinement of Targets*, 2021, arXiv 2006.12000.
    """
    function = "losses.classification.progressive_targets"
    _checks.array(function, "predictions", predictions, kind="float")
    _checks.number(function, "share", share, low=0, high=1)
    shape = jnp.shape(predictions)
    dtype = _checks.accumulation_dtype(predictions)
    predictions = jnp.asarray(predictions).astype(dtype)
    known: Array | bool = True
    if jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        _checks.array(function, "labels", labels, shape=shape[:-1])
        known = ((labels >= 0) & (labels < shape[-1]))[..., None]
        labels = jax.nn.one_hot(labels, shape[-1], dtype=dtype)
    _checks.array(function, "labels", labels, shape=shape, kind="float")
    known_share = share * jnp.sum(predictions, axis=-1, keepdims=True)
    return jnp.where(known, (1 - known_share) * labels + share * predictions, 0)


def ps_kd(num_examples: int, num_classes: int, *, share: Strength, dtype: Any = float) -> BatchLoss:
    r"""PS-KD: cross-entropy of `progressive_targets`, with what the model predicted for the example an epoch ago.

    No second forward pass: the prediction of the last visit, made while training, is remembered, and read before that
    of this batch takes its place. At the first visit the target is the label.

    Args:
      num_examples: how many examples the data set has.
      num_classes: how many classes.
      share: :math:`\alpha` of the earlier prediction in the target, in [0, 1], or a schedule from the number of batches
        seen so far to it. The paper lets it grow with the epochs to 0.8:
        `schedules.epoch_ramp(0.8, num_epochs, steps_per_epoch)`. What a schedule puts outside [0, 1] is clipped.
      dtype: of the table.

    Returns:
      A `BatchLoss` with state `TargetMemory`, of the signals `logits`, `labels` and `indices`, see `target_memory`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Kim et al., *Self-Knowledge Distillation with Progressive Refinement of Targets*, 2021, arXiv 2006.12000.
    """
    function = "losses.classification.ps_kd"
    if not callable(share):
        _checks.number(function, "share", share, low=0, high=1)

    def loss(logits: Array, labels: Array, targets: Array, strength: Array) -> Float[Array, " batch"]:
        refined = progressive_targets(labels, targets, share=jnp.clip(strength, 0, 1))
        return named_cross_entropy(function, logits, refined, None)

    return _memory(function, loss, num_examples, num_classes, 0.0, share, "before", 0.0, dtype)
