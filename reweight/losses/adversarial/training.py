"""Losses of adversarial training: what an example costs at its own place and under attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.losses import contrastive
from reweight.losses.adversarial import attacks
from reweight.losses.adversarial._examples import Inputs
from reweight.losses.adversarial.attacks import Init, LogitsFn, Norm
from reweight.losses.base import BatchLoss
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits
from reweight.losses.classification.composition import comp_sum_loss
from reweight.losses.classification.softmax import cross_entropy, named_cross_entropy

__all__ = [
    "SratState",
    "SratStatistics",
    "adversarial_cross_entropy",
    "batch_srat",
    "margin_shift",
    "smooth_comp_sum_loss",
    "srat_loss",
]

Mask = Bool[Array, " batch"] | Num[Array, " batch"]
BaseLoss = Callable[[Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, " batch"]]
ClassWeights = Float[Array, " classes"]


def adversarial_cross_entropy(
    key: PRNGKeyArray | None,
    logits_fn: LogitsFn,
    x: Inputs,
    labels: Int[Array, " batch"],
    *,
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    norm: Norm = "linf",
    init: Init = "uniform",
    clip: tuple[float, float] | None = (0.0, 1.0),
) -> Float[Array, " batch"]:
    r"""Cross-entropy at the attacked inputs, per example: plain adversarial training.

    The gradient flows through `logits_fn` (the parameters in its closure) at the attacked inputs, which are held fixed,
    and none flows to `x`.

    Args:
      key: for the random start; may be None with `init="none"`.
      logits_fn: as for `attack_classifier`.
      x: as for `attack_classifier`.
      labels: integer class ids `[B]`.
      eps: radius of the ball, in [0, inf); 0 is ordinary training.
      step_size: in [0, inf).
      steps: how many, at least 0.
      norm: as for `pgd_attack`.
      init: as for `pgd_attack`.
      clip: range of the data, or None.

    Returns:
      Losses `[B]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, 2017, arXiv 1706.06083. Jeddi et
      al., *A Simple Fine-tuning Is All You Need: Towards Robust Deep Learning Via Adversarial Fine-tuning*, 2020, arXiv
      2012.13628.
    """
    function = "losses.adversarial.adversarial_cross_entropy"
    options: dict[str, Any] = {"eps": eps, "step_size": step_size, "steps": steps, "norm": norm, "init": init}
    attacked = attacks.classified(function, key, logits_fn, x, labels, clip=clip, **options)
    return named_cross_entropy(function, logits_fn(attacked.inputs), labels, None)


def margin_shift(logits: Logits, attacked_logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""By how far an attack moves the margins :math:`\Delta_c = z_y - z_c` of a label, in Euclidean norm, per example.

    It is :math:`\sqrt{\|\Delta(x') - \Delta(x)\|^2 + 10^{-12}}`. An attack that maximises it starts away from x, where
    its slope is 0:

        still = jax.lax.stop_gradient(apply(params, x))
        attacked = pgd_attack(key, lambda x: margin_shift(still, apply(params, x), labels), x, eps=eps, ...)
        losses = smooth_comp_sum_loss(apply(params, x), apply(params, attacked), labels)

    Args:
      logits: of the examples `[..., C]`.
      attacked_logits: of the attacked examples `[..., C]`.
      labels: integer class ids `[...]`.

    Returns:
      Norms `[...]`, float32 or wider; 0 with zero gradient where the label is no class. The gradient flows to both
      arrays of logits.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Mao, Mohri and Zhong, *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, 2023, arXiv
      2304.07288.
    """
    return _margin_shift("losses.adversarial.margin_shift", logits, attacked_logits, labels)


def _margin_shift(function: str, logits: Logits, attacked_logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    clean = _rows.rows(function, logits, labels)
    _checks.array(function, "attacked_logits", attacked_logits, shape=jnp.shape(logits), kind="float")
    moved = _rows.rows(function, attacked_logits, labels).ahead() - clean.ahead()
    return clean.losses(jnp.sqrt(jnp.sum(moved**2, axis=-1) + 1e-12))


def smooth_comp_sum_loss(
    logits: Logits, attacked_logits: Logits, labels: Labels, *, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0
) -> Float[Array, "*batch"]:
    r"""Smooth adversarial comp-sum loss: `comp_sum_loss` of the clean logits plus :math:`\nu` times `margin_shift`.

    With the attack that shifts the margins most, it bounds the comp-sum loss of the example under every attack, if
    `tau` is 1 or more and `nu` is `1/rho` or more.

    Args:
      logits: of the examples `[..., C]`.
      attacked_logits: of the attacked examples `[..., C]`, see `margin_shift` for the attack.
      labels: integer class ids `[...]`.
      tau: of `comp_sum_loss`, in [0, inf).
      rho: of `comp_sum_loss`, in (0, inf).
      nu: :math:`\nu`, weight of the shift, in [0, inf); 0 is the clean loss.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class. The gradient flows to both
      arrays of logits.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Mao, Mohri and Zhong, *Cross-Entropy Loss Functions: Theoretical Analysis and Applications*, 2023, arXiv
      2304.07288.
    """
    function = "losses.adversarial.smooth_comp_sum_loss"
    _checks.number(function, "nu", nu, low=0, open_high=True)
    shift = _margin_shift(function, logits, attacked_logits, labels)
    return comp_sum_loss(logits, labels, tau=tau, rho=rho) + nu * shift


def srat_loss(
    attacked_logits: Float[Array, "batch classes"],
    attacked_features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    class_weights: ClassWeights | None = None,
    *,
    base_loss: BaseLoss = cross_entropy,
    sep_weight: float = 2.0,
    temperature: float = 0.1,
    normalize: bool = True,
    mask: Mask | None = None,
) -> Float[Array, " batch"]:
    r"""Separable reweighted adversarial training: a class-weighted loss and a separation of classes, both under attack.

    .. math:: w_{y_i}\, L(x'_i, y_i) + \lambda\, L_{sep}(x'_i)

    with :math:`L_{sep}` the loss `supcon` of the features of the attacked examples, without its factor of temperatures.
    The better classes are separated, the less a weight for the rare ones costs the others.

    The separation compares all examples of the batch; use `batch_srat` under gradient accumulation.

    Args:
      attacked_logits: of the attacked examples `[B, C]`.
      attacked_features: their features before the last layer `[B, D]`, any scale.
      labels: integer class ids `[B]`.
      class_weights: :math:`w` `[C]`, non-negative, such as `weights.deferred_class_weights`. Default: ones.
      base_loss: :math:`L`, `(logits, labels) -> [B]`: `cross_entropy`, or `focal_loss` or `ldam` with their options
        bound by `functools.partial`.
      sep_weight: :math:`\lambda`, in [0, inf); 0 is class-weighted adversarial training.
      temperature: of the separation, in (0, inf).
      normalize: whether features are divided by their Euclidean norm.
      mask: boolean or 0/1 `[B]`; what is masked is never read, and compared with nobody.

    Returns:
      Losses `[B]`, float32 or wider; 0 with zero gradient where the label is no class. Gradients flow to logits and
      features, not to the weights.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Wang et al., *Imbalanced Adversarial Training with Reweighting*, 2021, arXiv 2107.13639. The weight and the
      temperature of the separation are our choice, and so is the normalisation of the features.
    """
    function = "losses.adversarial.srat_loss"
    _check_srat(function, sep_weight, temperature, class_weights)
    given = _srat_inputs(function, attacked_logits, attacked_features, labels, mask)
    separation = contrastive.supcon(
        given.features, given.labels, temperature=temperature, base_temperature=temperature, normalize=normalize,
        mask=given.kept,
    )  # fmt: skip
    return _srat(function, given, _of_labels(function, given, class_weights), separation, base_loss, sep_weight)


def _check_srat(function: str, sep_weight: float, temperature: float, class_weights: Any) -> None:
    _checks.number(function, "sep_weight", sep_weight, low=0, open_high=True)
    _checks.number(function, "temperature", temperature, low=0, open_low=True, open_high=True)
    if class_weights is not None and not callable(class_weights):
        _checks.array(function, "class_weights", class_weights, ndim=1, kind="number")


class _SratInputs(NamedTuple):
    """Checked inputs, with zeros where masked or where the label is no class."""

    logits: Array
    features: Array
    labels: Array
    kept: Array


def _srat_inputs(function: str, attacked_logits: Any, attacked_features: Any, labels: Any, mask: Any) -> _SratInputs:
    _checks.array(function, "attacked_logits", attacked_logits, ndim=2, kind="float")
    size, classes = jnp.shape(attacked_logits)
    _checks.array(function, "attacked_features", attacked_features, shape=(size, None), kind="float")
    _checks.array(function, "labels", labels, shape=(size,), kind="integer")
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    kept = (labels >= 0) & (labels < classes) & _checks.kept(mask, size)
    rows = kept[:, None]
    return _SratInputs(
        jnp.where(rows, attacked_logits, 0), jnp.where(rows, attacked_features, 0), jnp.where(kept, labels, 0), kept
    )


def _of_labels(function: str, given: _SratInputs, class_weights: ClassWeights | None) -> Float[Array, " batch"]:
    """The weight of each example's class, constant."""
    dtype = _checks.accumulation_dtype(given.logits)
    if class_weights is None:
        return jnp.ones(given.labels.shape, dtype)
    _checks.array(function, "class_weights", class_weights, shape=given.logits.shape[1:], kind="number")
    return jax.lax.stop_gradient(jnp.asarray(class_weights).astype(dtype)[given.labels])


def _srat(
    function: str, given: _SratInputs, weights: Array, separation: Array, base_loss: BaseLoss, sep_weight: float
) -> Float[Array, " batch"]:
    losses = base_loss(given.logits, given.labels)
    _checks.array(function, "base_loss(logits, labels)", losses, shape=given.labels.shape, kind="float")
    return jnp.where(given.kept, weights * losses + sep_weight * separation, 0)


class SratState(NamedTuple):
    """How many batches `batch_srat` has seen: what a schedule of class weights is a function of."""

    step: Int[Array, ""]


class SratStatistics(NamedTuple):
    """The class weight of each example, and the separation of the batch."""

    weights: Float[Array, " batch"]
    separation: Any


def batch_srat(
    class_weights: ClassWeights | Callable[[Int[Array, ""]], ClassWeights] | None = None,
    *,
    base_loss: BaseLoss = cross_entropy,
    sep_weight: float = 2.0,
    temperature: float = 0.1,
    normalize: bool = True,
) -> BatchLoss:
    """`srat_loss` over the global batch as a `BatchLoss`, with class weights that may set in late.

        late = functools.partial(weights.deferred_class_weights, counts, start_step=1000)
        loss = batch_srat(late, base_loss=functools.partial(classification.ldam, class_counts=counts))

    Args:
      class_weights: `[C]`, or a function from the number of batches seen so far to `[C]`. Default: ones.
      base_loss: as for `srat_loss`.
      sep_weight: as for `srat_loss`.
      temperature: as for `srat_loss`.
      normalize: as for `srat_loss`.

    Returns:
      A `BatchLoss` with state `SratState`, of the signals `attacked_logits`, `attacked_features` and `labels`. The
      losses have the values of `srat_loss`; their gradient is that of its sum, see `of_batch`. A batch that is masked
      altogether is not counted.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Wang et al., *Imbalanced Adversarial Training with Reweighting*, 2021, arXiv 2107.13639.
    """
    function = "losses.adversarial.batch_srat"
    _check_srat(function, sep_weight, temperature, class_weights)
    names = ("attacked_logits", "attacked_features", "labels")
    separation = contrastive.batch_supcon(temperature=temperature, base_temperature=temperature, normalize=normalize)

    def inputs(signals: dict[str, Any]) -> _SratInputs:
        _checks.require(function, signals, names)
        logits, features, labels = (signals[name] for name in names)
        return _srat_inputs(function, logits, features, labels, signals.get("mask"))

    def init(key: PRNGKeyArray | None = None) -> SratState:
        del key
        return SratState(jnp.zeros((), jnp.int32))

    def statistics(state: SratState, **signals: Any) -> tuple[SratStatistics, SratState]:
        given = inputs(signals)
        table = class_weights(state.step) if callable(class_weights) else class_weights
        apart, _ = separation.statistics((), features=given.features, labels=given.labels, mask=given.kept)
        seen = SratState(state.step + jnp.any(given.kept).astype(jnp.int32))
        return SratStatistics(_of_labels(function, given, table), apart), seen

    def losses(statistics: SratStatistics, **signals: Any) -> Float[Array, " batch"]:
        given = inputs(signals)
        apart = separation.losses(statistics.separation, features=given.features, labels=given.labels, mask=given.kept)
        return _srat(function, given, statistics.weights, apart, base_loss, sep_weight)

    return BatchLoss(init, statistics, losses, names)
