"""Rescaling of losses by a small network that reads how sure the model is of an example, learned while it trains.

An example goes through the model several times, with other dropout each time. Losses and confidences of these passes,
beside those of other examples with the same label, are what the network knows of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.weights import base
from reweight.weights.learned import LearnedWeighting

__all__ = ["PassMemory", "RescalingParams", "storm", "storm_features", "storm_weights"]

Mask = Bool[Array, " batch"] | Num[Array, " batch"]

FEATURES = 19
_INIT_SCALE = 0.02
_BATCH_NORM_EPS = 1e-5
# The standard deviation of a group of one, and the least one of a Gaussian whose overlap is asked for.
_LEAST_STD = 1e-8


class PassMemory(NamedTuple):
    """What is remembered of each label's last examples, the newest last.

    Attributes:
      values: of an example the mean and standard deviation of its losses over the passes, and of its confidences.
      agrees: whether the passes agreed with its label.
      filled: whether there has been an example for this place.
    """

    values: Float[Array, "classes window 4"]
    agrees: Bool[Array, "classes window"]
    filled: Bool[Array, "classes window"]

    @classmethod
    def empty(cls, num_classes: int, window: int) -> "PassMemory":
        """A memory of `window` examples of each label, none of which has come."""
        _checks.number("weights.PassMemory.empty", "num_classes", num_classes, low=1, integer=True)
        _checks.number("weights.PassMemory.empty", "window", window, low=1, integer=True)
        places = (num_classes, window)
        return cls(jnp.zeros((*places, 4)), jnp.zeros(places, bool), jnp.zeros(places, bool))


class RescalingParams(NamedTuple):
    """A network of two layers for each label.

    Attributes:
      hidden: kernels of the first layer.
      hidden_bias: its biases.
      output: kernels of the second layer.
      output_bias: its biases.
    """

    hidden: Float[Array, "classes features hidden"]
    hidden_bias: Float[Array, "classes hidden"]
    output: Float[Array, "classes hidden 2"]
    output_bias: Float[Array, "classes 2"]

    @classmethod
    def draw(cls, key: PRNGKeyArray, num_classes: int, *, hidden: int = FEATURES) -> "RescalingParams":
        """Kernels from a normal distribution of scale 0.02, biases 0."""
        first, second = jax.random.split(key)
        return cls(
            _INIT_SCALE * jax.random.normal(first, (num_classes, FEATURES, hidden)),
            jnp.zeros((num_classes, hidden)),
            _INIT_SCALE * jax.random.normal(second, (num_classes, hidden, 2)),
            jnp.zeros((num_classes, 2)),
        )


class _Passes(NamedTuple):
    values: Float[Array, "batch 4"]
    agrees: Bool[Array, " batch"]
    labels: Int[Array, " batch"]
    kept: Bool[Array, " batch"]


def _mean_std(values: Array, kept: Array, axis: int) -> tuple[Array, Array, Array]:
    """Mean and sample standard deviation of what is kept along an axis, and how many that are.

    Equal numbers deviate by 0, not by what their mean is rounded by: divergences are ratios of standard deviations.
    """
    count = jnp.sum(kept, axis=axis, dtype=values.dtype)
    at_least = jnp.maximum(count, 1)
    mean = jnp.sum(jnp.where(kept, values, 0), axis=axis) / at_least
    deviations = jnp.where(kept, values - jnp.expand_dims(mean, axis), 0)
    std = jnp.sqrt(jnp.sum(deviations**2, axis=axis) / jnp.maximum(count - 1, 1))
    low = jnp.min(values, axis=axis, where=kept, initial=jnp.inf)
    high = jnp.max(values, axis=axis, where=kept, initial=-jnp.inf)
    return mean, jnp.where(high > low, std, 0), count


def _passes(function: str, losses: Array, logits: Array, labels: Array, mask: Mask | None, num_classes: int) -> _Passes:
    _checks.array(function, "losses", losses, ndim=2, kind="float")
    size, count = jnp.shape(losses)
    if count == 0:
        _checks.fail(function, "losses", f"of shape {jnp.shape(losses)}", "an array with at least one pass")
    _checks.array(function, "logits", logits, shape=(size, count, num_classes), kind="float")
    _checks.array(function, "labels", labels, shape=(size,), kind="integer")
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    kept = (labels >= 0) & (labels < num_classes) & _checks.kept(mask, size)
    dtype = _checks.accumulation_dtype(losses, logits)
    losses = jnp.where(kept[:, None], losses, 0).astype(dtype)
    logits = jnp.where(kept[:, None, None], logits, 0).astype(dtype)
    labels = jnp.where(kept, labels, 0)
    confidences = jnp.exp(jnp.max(jax.nn.log_softmax(logits), axis=-1))
    values = jnp.stack([x for of in (losses, confidences) for x in _mean_std(of, jnp.ones(of.shape, bool), 1)[:2]], 1)
    right = jnp.argmax(logits, axis=-1) == labels[:, None]
    votes = 2 * jnp.sum(right, axis=1)
    return _Passes(values, jnp.where(votes == count, right[:, 0], votes > count), labels, kept)


def _remember(memory: PassMemory, passes: _Passes) -> PassMemory:
    """The last of each label, those of the batch in its order behind those that were there."""
    window = memory.filled.shape[1]

    def of_label(label: Array, values: Array, agrees: Array, filled: Array) -> PassMemory:
        come = jnp.concatenate([filled, passes.kept & (passes.labels == label)])
        place = window - jnp.cumsum(come[::-1])[::-1]
        place = jnp.where(come & (place >= 0), place, window)

        def put(old: Array, new: Array) -> Array:
            return jnp.zeros_like(old).at[place].set(jnp.concatenate([old, new.astype(old.dtype)]), mode="drop")

        return PassMemory(put(values, passes.values), put(agrees, passes.agrees), put(filled, passes.kept))

    return jax.vmap(of_label)(jnp.arange(memory.filled.shape[0]), *memory)


def _largest_ratio(dtype: jnp.dtype) -> float:
    """What ratios to standard deviations are cut at, 1e8 in float32, so that squares of divergences are in range."""
    return 10.0 ** (jnp.finfo(dtype).maxexp // 16)


def _divergence(mean: Array, std: Array, other_mean: Array, other_std: Array) -> Array:
    """KL divergence between Gaussians; 0 where one has no width."""
    wide = (std > 0) & (other_std > 0)
    std, other_std = jnp.where(wide, std, 1), jnp.where(wide, other_std, 1)
    largest = _largest_ratio(mean.dtype)
    ratio = jnp.minimum(std / other_std, largest)
    distance = jnp.clip((mean - other_mean) / other_std, -largest, largest)
    found = jnp.log(other_std) - jnp.log(std) + (ratio**2 + distance**2 - 1) / 2
    return jnp.where(wide, found, 0)


def _overlap(mean: Array, std: Array, other_mean: Array, other_std: Array) -> Array:
    """The area under both of two Gaussian densities, which cross at two points, or at one if they are as wide."""
    std, other_std = jnp.maximum(std, _LEAST_STD), jnp.maximum(other_std, _LEAST_STD)
    narrow, wide = jnp.minimum(std, other_std), jnp.maximum(std, other_std)
    # In units of the narrow one, which stands at 0; the wide one stands at d and is 1 + e wide.
    largest = _largest_ratio(mean.dtype)
    e = jnp.minimum((wide - narrow) / narrow, largest)
    d = jnp.minimum(jnp.abs(mean - other_mean) / narrow, largest)
    r, log_r, square = 1 + e, jnp.log1p(e), e * (2 + e)
    root = d + r * jnp.sqrt(d**2 + 2 * square * log_r)
    right = (d**2 + 2 * r**2 * log_r) / jnp.where(root > 0, root, 1)
    left = -root / jnp.where(square > 0, square, 1)
    below = jnp.where(square > 0, jax.scipy.stats.norm.cdf(left), 0)
    below_wide = jnp.where(square > 0, jax.scipy.stats.norm.cdf((left - d) / r), 0)
    inside = jax.scipy.stats.norm.cdf(right) - below
    inside_wide = jax.scipy.stats.norm.cdf((right - d) / r) - below_wide
    return jnp.clip(1 - (inside - inside_wide), 0, 1)


def storm_features(
    memory: PassMemory,
    losses: Float[Array, "batch passes"],
    logits: Float[Array, "batch passes classes"],
    labels: Int[Array, " batch"],
    *,
    mask: Mask | None = None,
) -> tuple[Float[Array, "batch 19"], PassMemory]:
    """What STORM knows of an example, beside its group: the examples in memory with its label and its agreement.

    An example agrees if most passes predict its label; of a tie the first pass decides. There are six numbers: mean and
    standard deviation over the passes of the loss and of the confidence (the largest probability), and of the Gaussian
    of the losses, the KL divergence from its group's, whose moments are the means of the group's moments, and the
    overlap with it. Each is followed by mean and standard deviation over the group, and agreement closes the row.
    Standard deviations are those of samples; of a single pass it is 0, of a group of one 1e-8.

    Args:
      memory: of earlier batches, with a row a class.
      losses: of each pass `[B, G]`, finite.
      logits: of each pass `[B, G, C]`.
      labels: the given labels `[B]`.
      mask: boolean or 0/1 `[B]`; what it hides is not remembered and never read. Default: all.

    Returns:
      Features `[B, 19]`, float32 or wider, 0 where masked or where the label is no class, and the memory with the
      batch in it, which the features have been computed with. Nothing has a gradient.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers.

    References:
      Heck et al., *Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss Rescaling*, 2024, arXiv 2412.12955.
    """
    function = "weights.storm_features"
    losses, logits = jax.lax.stop_gradient((losses, logits))
    passes = _passes(function, losses, logits, labels, mask, memory.filled.shape[0])
    memory = _remember(memory, passes)
    dtype = passes.values.dtype
    groups = memory.filled[:, :, None] & (memory.agrees[:, :, None] == jnp.array([False, True]))
    own = (passes.labels, passes.agrees.astype(jnp.int32))

    def moments(values: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of each group `[C, 2]`."""
        mean, std, count = _mean_std(values.astype(dtype)[:, :, None], groups, axis=1)
        return mean, jnp.where(count > 1, std, _LEAST_STD)

    columns = []
    stored = [memory.values[..., i].astype(dtype) for i in range(4)]
    for i, values in enumerate(stored):
        mean, std = moments(values)
        columns += [passes.values[:, i], mean[own], std[own]]
    centre, width = moments(stored[0])[0], moments(stored[1])[0]
    place = memory.agrees.astype(jnp.int32)
    beside = [jnp.take_along_axis(x, place, axis=1) for x in (centre, width)]
    for compared in (_divergence, _overlap):
        mean, std = moments(compared(stored[0], stored[1], *beside))
        columns += [compared(passes.values[:, 0], passes.values[:, 1], centre[own], width[own]), mean[own], std[own]]
    features = jnp.stack([*columns, passes.agrees.astype(dtype)], axis=1)
    return jax.lax.stop_gradient(jnp.where(passes.kept[:, None], features, 0)), memory


def _batch_norm(values: Float[Array, "classes batch width"], kept: Bool[Array, " batch"]) -> Array:
    """Zero mean and unit variance over the unmasked batch, without parameters."""
    rows = kept[:, None]
    count = jnp.maximum(jnp.sum(kept), 1).astype(values.dtype)
    mean = jnp.sum(jnp.where(rows, values, 0), axis=1, keepdims=True) / count
    centred = jnp.where(rows, values - mean, 0)
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / count
    return centred / jnp.sqrt(variance + _BATCH_NORM_EPS)


def storm_weights(
    params: RescalingParams,
    features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    *,
    mask: Mask | None = None,
) -> Float[Array, " batch"]:
    """Weights in (0, 1) from the network of each example's label, which sees the whole batch.

    Linear layer, batch normalisation, ReLU, linear layer, batch normalisation, softmax over two outputs, the second of
    which is the weight. Neither normalisation has parameters, and the last one centres the outputs over the batch: the
    weights cannot all go to 0. A batch of one has weight 1/2.

    Args:
      params: of the networks, one a class.
      features: `[B, F]`, finite; constant.
      labels: the given labels `[B]`, which choose the network.
      mask: boolean or 0/1 `[B]`; what it hides is never read. Default: all.

    Returns:
      Weights `[B]`, float32 or wider, 0 where masked or where the label is no class. The gradient flows to `params`.

    Raises:
      ValueError: if the shapes do not fit, or labels are not integers.

    References:
      Heck et al., *Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss Rescaling*, 2024, arXiv 2412.12955.
    """
    function = "weights.storm_weights"
    num_classes, width, _ = jnp.shape(params.hidden)
    _checks.array(function, "features", features, shape=(None, width), kind="float")
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    _checks.mask(function, "mask", mask, labels, like_name="labels")
    kept = (labels >= 0) & (labels < num_classes) & _checks.kept(mask, jnp.shape(labels))
    dtype = _checks.accumulation_dtype(features, *params)
    rows = jnp.where(kept[:, None], jax.lax.stop_gradient(features), 0).astype(dtype)
    hidden = jnp.einsum("bf,cfh->cbh", rows, params.hidden) + params.hidden_bias[:, None]
    hidden = jax.nn.relu(_batch_norm(hidden, kept))
    outputs = jnp.einsum("cbh,cho->cbo", hidden, params.output) + params.output_bias[:, None]
    shares = jax.nn.softmax(_batch_norm(outputs, kept), axis=-1)[..., 1]
    own = shares[jnp.where(kept, labels, 0), jnp.arange(labels.shape[0])]
    return jnp.where(kept, own, 0)


def storm(
    num_classes: int,
    *,
    window: int,
    hidden: int = FEATURES,
    optimizer: optax.GradientTransformation | None = None,
) -> LearnedWeighting:
    r"""STORM: weights from `storm_features` by `storm_weights`, learned on the noisy data themselves.

    Weights :math:`\Omega_\omega` scale the losses of the step, and of the batch that judges the step:

    .. math::
        \omega \leftarrow \omega - \eta\, \nabla_\omega \sum_{j} \Omega_\omega(f_j)\, \ell_j(\theta'(\omega)),
        \qquad \theta'(\omega) = U\big(\theta, \sum_i \Omega_\omega(f_i)\, \ell_i(\theta)\big)

    so that no clean examples are needed: what the weights cannot get down with the others, they put less weight on.
    `train.make_meta_step` makes such a step.

    Args:
      num_classes: C.
      window: how many examples of each label are remembered; in the paper the size of a batch.
      hidden: width of the networks.
      optimizer: of the networks. Default: Adam with a learning rate of 0.01.

    Returns:
      A `LearnedWeighting`, which needs the signals `pass_losses` `[B, G]`, `pass_logits` `[B, G, C]` (several passes
      of the batch through the model with dropout, three in the paper, the first that of `losses`) and `labels` `[B]`.
      Weights are in (0, 1), and 0 where masked; they are not normalised.

    Raises:
      ValueError: if a hyperparameter is out of range; at update, if a signal is missing or does not fit.

    References:
      Heck et al., *Learning from Noisy Labels via Self-Taught On-the-Fly Meta Loss Rescaling*, 2024, arXiv 2412.12955.
      The released code starts the model's Adam anew in every step, which makes the part of the gradient through
      :math:`\theta'` nearly 0; here the optimizer keeps its moments.
    """
    function = "weights.storm"
    _checks.number(function, "num_classes", num_classes, low=2, integer=True)
    _checks.number(function, "window", window, low=1, integer=True)
    _checks.number(function, "hidden", hidden, low=1, integer=True)
    required = ("pass_losses", "pass_logits", "labels")

    def apply(
        params: RescalingParams, memory: PassMemory, losses: Float[Array, " batch"], **signals: Any
    ) -> tuple[Float[Array, " batch"], PassMemory]:
        _checks.require(function, signals, required)
        kept = base.keep(losses, signals.get("mask"), function)
        pass_losses, pass_logits, labels = (signals[name] for name in required)
        _checks.array(function, "pass_losses", pass_losses, shape=(*jnp.shape(losses), None))
        _checks.array(function, "pass_logits", pass_logits, shape=(*jnp.shape(pass_losses), num_classes))
        features, memory = storm_features(memory, pass_losses, pass_logits, labels, mask=kept)
        return storm_weights(params, features, labels, mask=kept), memory

    return LearnedWeighting(
        init_params=lambda key: RescalingParams.draw(key, num_classes, hidden=hidden),
        init_memory=lambda: PassMemory.empty(num_classes, window),
        apply=apply,
        optimizer=optax.adam(1e-2) if optimizer is None else optimizer,
        signals=required,
    )
