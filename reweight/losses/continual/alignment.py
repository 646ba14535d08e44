"""New classes beside old ones: what the old model knew as target, weights of one size, and examples to keep.

A head that learns new classes from many examples and old ones from few gives the new ones longer weights, and with them
larger logits. Distillation keeps what the old model said of the old classes; aligning evens the lengths out afterwards.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight._vectors import unit
from reweight.losses import distillation
from reweight.losses.classification import softmax

__all__ = ["align_weights", "distilled_cross_entropy", "herding", "old_class_distillation"]

Logits = Float[Array, "*batch classes"]
OldLogits = Float[Array, "*batch old"]
Mask = Bool[Array, "..."] | Num[Array, "..."]


def old_class_distillation(
    logits: Logits, old_logits: OldLogits, *, temperature: float = 2.0, old_mask: Mask | None = None
) -> Float[Array, "*batch"]:
    r"""Learning without forgetting: the old model's probabilities of the old classes as targets, per example.

    .. math:: -\sum_{c < K} \mathrm{softmax}(z' / T)_c \log \mathrm{softmax}(z_{<K} / T)_c

    Both softmaxes run over the old classes alone, so that the new ones cost nothing here. There is no factor
    :math:`T^2`, as in the released code. No gradient flows to the old model.

    Args:
      logits: :math:`z`, of the model in training `[..., C]`; its first K classes are those of the old model.
      old_logits: :math:`z'`, of the model before the new classes came `[..., K]`, with K at most C. The old logits of a
        model whose head has room for all classes have K = C and an `old_mask`.
      temperature: :math:`T`, in (0, inf).
      old_mask: boolean or 0/1, broadcast to `old_logits`: which of the K classes the old model knows; the logits of the
        others are never read. Default: all.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where there is no old class.

    Raises:
      ValueError: if the shapes do not fit, or `temperature` is out of range.

    References:
      Li and Hoiem, *Learning without Forgetting*, 2016, arXiv 1606.09282. Zhao et al., *Maintaining Discrimination and
      Fairness in Class Incremental Learning*, 2019, arXiv 1911.07053.
    """
    function = "losses.continual.old_class_distillation"
    return _distillation(function, logits, old_logits, temperature, old_mask)


def _distillation(
    function: str, logits: Logits, old_logits: OldLogits, temperature: float, old_mask: Mask | None
) -> Float[Array, "*batch"]:
    _checks.array(function, "logits", logits, kind="float")
    if jnp.ndim(logits) < 1:
        _checks.fail(function, "logits", "a scalar", "an array whose last axis is the classes")
    _checks.array(function, "old_logits", old_logits, shape=(*jnp.shape(logits)[:-1], None), kind="float")
    old, classes = jnp.shape(old_logits)[-1], jnp.shape(logits)[-1]
    if old > classes:
        _checks.fail(function, "old_logits", f"of {old} classes", f"at most the {classes} classes of logits")
    _checks.number(function, "temperature", temperature, low=0, open_low=True, open_high=True)
    _checks.mask(function, "old_mask", old_mask, old_logits, like_name="old_logits")
    if old == 0:
        return jnp.zeros(jnp.shape(logits)[:-1], _checks.accumulation_dtype(logits))
    return distillation.soft_cross_entropy(
        jnp.asarray(logits)[..., :old], old_logits, temperature=temperature, class_mask=old_mask
    )


def distilled_cross_entropy(
    logits: Logits,
    labels: Int[Array, "*batch"],
    old_logits: OldLogits,
    *,
    temperature: float = 2.0,
    distillation_weight: float | Float[Array, ""] | None = None,
    class_mask: Mask | None = None,
    old_mask: Mask | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of all classes and distillation of the old ones, :math:`(1-\kappa) \ell + \kappa d`, per example.

    :math:`\kappa` is the share of old classes among all, :math:`K / C`: the more is known, the more is kept. Without
    old classes it is cross-entropy.

    Args:
      logits: of the model in training `[..., C]`; its first K classes are those of the old model.
      labels: integer class ids `[...]`.
      old_logits: of the model before the new classes came `[..., K]`, as for `old_class_distillation`.
      temperature: of the distillation, in (0, inf).
      distillation_weight: :math:`\kappa`, in [0, 1], possibly traced. Default: the share of old classes.
      class_mask: boolean or 0/1 `[C]`: the classes known by now, among which the softmax of the labels runs, for a head
        with room for more. Default: all.
      old_mask: boolean or 0/1 `[K]`: the classes that the old model knew. Default: all K.

    Returns:
      Losses `[...]`, float32 or wider. A label that is not one of the classes costs only the distillation.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Zhao et al., *Maintaining Discrimination and Fairness in Class Incremental Learning*, 2019, arXiv 1911.07053.
    """
    function = "losses.continual.distilled_cross_entropy"
    kept = _distillation(function, logits, old_logits, temperature, old_mask)
    _checks.array(function, "labels", labels, shape=jnp.shape(logits)[:-1], kind="integer")
    known = _classes(function, "class_mask", class_mask, jnp.shape(logits)[-1])
    old = _classes(function, "old_mask", old_mask, jnp.shape(old_logits)[-1])
    if distillation_weight is None:
        share = jnp.sum(old) / jnp.maximum(jnp.sum(known), 1).astype(kept.dtype)
    else:
        _checks.number(function, "distillation_weight", distillation_weight, low=0, high=1)
        share = jnp.asarray(distillation_weight, kept.dtype)
    learned = softmax.named_cross_entropy(function, logits, labels, class_mask)
    return (1 - share) * learned + share * kept


def _classes(function: str, argument: str, mask: Mask | None, size: int) -> Bool[Array, " classes"]:
    if mask is not None:
        _checks.array(function, argument, mask, shape=(size,))
    return _checks.kept(mask, size)


def align_weights(
    kernel: Float[Array, "features classes"],
    new_classes: Bool[Array, " classes"] | Num[Array, " classes"],
    *,
    class_mask: Mask | None = None,
    per_class: bool = False,
    class_axis: int = -1,
) -> Float[Array, "features classes"]:
    r"""The weights of a head with those of new classes scaled to the mean length of the old: :math:`\gamma w_c`.

    .. math:: \gamma = \frac{\mathrm{mean}_{c\ \mathrm{old}} \|w_c\|}{\mathrm{mean}_{c\ \mathrm{new}} \|w_c\|}

    Nothing is trained and nothing else is known. The order among the logits of new classes stays as it is. Apply it
    after training on the new classes, and before the model becomes the next teacher; biases are left as they are, and
    the head of the paper has none. The paper also holds the weights non-negative in training, so that their length
    stands for the size of the logits of features that come out of a ReLU: `optax.keep_params_nonnegative`.

    Args:
      kernel: `[D, C]`, as flax stores it.
      new_classes: boolean or 0/1 `[C]`: the classes that came last.
      class_mask: boolean or 0/1 `[C]`: the classes known by now; the others count nowhere and keep their weights.
        Default: all.
      per_class: scale each new class to the mean length of the old ones by itself.
      class_axis: the axis of the classes: 0 for a `[C, D]` kernel.

    Returns:
      The kernel in its shape, float32 or wider; unchanged where there is no old or no new class, and where the new
      weights are 0.

    Raises:
      ValueError: if the shapes do not fit, or `class_axis` is not an axis.

    References:
      Zhao et al., *Maintaining Discrimination and Fairness in Class Incremental Learning*, 2019, arXiv 1911.07053.
    """
    function = "losses.continual.align_weights"
    _checks.array(function, "kernel", kernel, ndim=2, kind="float")
    _checks.axis(function, "class_axis", class_axis, kernel)
    size = jnp.shape(kernel)[class_axis]
    newest = _classes(function, "new_classes", new_classes, size)
    known = _classes(function, "class_mask", class_mask, size)
    rows = jnp.moveaxis(jnp.asarray(kernel).astype(_checks.accumulation_dtype(kernel)), class_axis, 0)
    squares = jnp.sum(rows**2, axis=1)
    long = squares > 0
    lengths = jnp.where(long, jnp.sqrt(jnp.where(long, squares, 1)), 0)
    old, new = known & ~newest, known & newest
    wanted = jnp.sum(jnp.where(old, lengths, 0)) / jnp.maximum(jnp.sum(old), 1)
    mean = jnp.sum(jnp.where(new, lengths, 0)) / jnp.maximum(jnp.sum(new), 1)
    found = lengths if per_class else jnp.broadcast_to(mean, lengths.shape)
    scaled = new & (found > 0) & jnp.any(old)
    gamma = jnp.where(scaled, wanted / jnp.where(scaled, found, 1), 1)
    return jnp.moveaxis(gamma[:, None] * rows, 0, class_axis)


def herding(
    features: Float[Array, "examples features"],
    num_selected: int,
    *,
    normalize: bool = True,
    mask: Mask | None = None,
) -> Int[Array, " selected"]:
    r"""Which examples to keep of a class: those whose mean stays closest to the mean of all, picked one by one.

    The k-th minimises :math:`\|\mu - \frac{1}{k} (f_i + \sum_{j<k} f_{p_j})\|` over i, each example at most once. The
    first m picks of a longer list are the list for m, so that a memory is cut short from the end. Of several classes:

        jax.vmap(lambda c: herding(features, 20, mask=labels == c))(jnp.arange(num_classes))

    Args:
      features: `[N, D]`, any scale.
      num_selected: how many to pick, at least 1.
      normalize: whether features are divided by their length first.
      mask: boolean or 0/1 `[N]`: the examples of the class. Others are never read or picked. Default: all.

    Returns:
      Indices `[num_selected]`, int32, in the order of choice; -1 after the last example.

    Raises:
      ValueError: if the shapes do not fit, or `num_selected` is not a positive integer.

    References:
      Rebuffi et al., *iCaRL: Incremental Classifier and Representation Learning*, 2016, arXiv 1611.07725.
    """
    function = "losses.continual.herding"
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.number(function, "num_selected", num_selected, low=1, integer=True)
    size = jnp.shape(features)[:1]
    _checks.mask(function, "mask", mask, jnp.zeros(size), like_name="the first axis of features")
    if size == (0,):
        return jnp.full(num_selected, -1, jnp.int32)
    kept = _checks.kept(mask, size)
    vectors = jnp.where(kept[:, None], features, 0).astype(_checks.accumulation_dtype(features))
    vectors = unit(vectors) if normalize else vectors
    mean = jnp.sum(vectors, axis=0) / jnp.maximum(jnp.sum(kept), 1)

    def pick(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], Array]:
        free, total = carry
        distances = jnp.sum((mean - (total + vectors) / k) ** 2, axis=1)
        best = jnp.argmin(jnp.where(free, distances, jnp.inf))
        chosen = jnp.where(jnp.any(free), best, -1).astype(jnp.int32)
        return (free.at[best].set(False), total + vectors[best]), chosen

    _, picked = jax.lax.scan(pick, (kept, jnp.zeros_like(mean)), jnp.arange(1, num_selected + 1))
    return picked
