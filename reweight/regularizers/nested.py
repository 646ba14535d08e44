"""Nested dropout: features in an order of importance, so that any first few of them are a compressed model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from reweight import _checks

__all__ = ["best_width", "nested_dropout", "nested_probs", "prefix_hits"]


def _log_odds(function: str, num_features: int, sigma: float, mu: float) -> Float[Array, " features"]:
    """Logarithms of the probabilities of each width, up to a constant."""
    _checks.number(function, "sigma", sigma, low=0, open_low=True)
    _checks.number(function, "mu", mu, open_low=True, open_high=True)
    squares = (jnp.arange(1, num_features + 1, dtype=float) - mu) ** 2
    # From the likeliest width on, so that a narrow Gaussian leaves that one and not nothing.
    return -(squares - jnp.min(squares)) / sigma / sigma


def nested_probs(num_features: int, *, sigma: float, mu: float = 0.0) -> Float[Array, " features"]:
    r"""Probabilities of keeping the first k features, :math:`P(k) \propto e^{-((k - \mu)/\sigma)^2}` for k = 1 … D.

    Args:
      num_features: D.
      sigma: :math:`\sigma`, in (0, inf]; infinity makes all widths equally likely, and towards 0 only the one nearest
        to :math:`\mu` is left.
      mu: :math:`\mu`, any finite number.

    Returns:
      Probabilities `[D]`.

    Raises:
      ValueError: if a hyperparameter is out of range.

    References:
      Chen et al., *Compressing Features for Learning with Noisy Labels*, 2022, arXiv 2206.13140.
    """
    function = "regularizers.nested.nested_probs"
    _checks.number(function, "num_features", num_features, low=1, integer=True)
    return jax.nn.softmax(_log_odds(function, num_features, sigma, mu))


def nested_dropout(
    key: PRNGKeyArray, features: Float[Array, "*batch features"], *, sigma: float, mu: float = 0.0
) -> Float[Array, "*batch features"]:
    """The first k features as they are and 0 for the others, with one k from `nested_probs` for the whole batch.

    Nothing is rescaled. A linear layer without bias that follows sees the features in an order of importance, and works
    on any first few of them: see `best_width`.

    Args:
      key: for the width; on the shards of a batch the same key, for the same width.
      features: `[..., D]`.
      sigma: as for `nested_probs`. In the paper 10 for images with little noise, 100 to 200 for more of it.
      mu: as for `nested_probs`.

    Returns:
      Features of the same shape and dtype. No gradient flows to those that are left out.

    Raises:
      ValueError: if the features have no axis, or a hyperparameter is out of range.

    References:
      Rippel, Gelbart and Adams, *Learning Ordered Representations with Nested Dropout*, 2014, arXiv 1402.0915. Chen et
      al., *Compressing Features for Learning with Noisy Labels*, 2022, arXiv 2206.13140.
    """
    function = "regularizers.nested.nested_dropout"
    _checks.array(function, "features", features, kind="float")
    if jnp.ndim(features) < 1 or jnp.shape(features)[-1] == 0:
        _checks.fail(function, "features", f"of shape {jnp.shape(features)}", "an array with features on its last axis")
    size = jnp.shape(features)[-1]
    # Drawn in one dtype, whatever that of the features.
    last = jax.random.categorical(key, _log_odds(function, size, sigma, mu).astype(jnp.float32))
    return jnp.where(jnp.arange(size) <= last, features, jnp.zeros_like(features))


def prefix_hits(
    features: Float[Array, "batch features"], kernel: Float[Array, "features classes"], labels: Int[Array, " batch"]
) -> Float[Array, "batch features"]:
    """Whether a linear layer classifies an example rightly from its first 1, 2, …, D features: a row an example.

    The mean over a validation set is the accuracy of each width, and `reduce.weighted_mean` takes it in pieces.

    Args:
      features: `[B, D]`.
      kernel: of the linear layer, without bias `[D, C]`.
      labels: integer class ids `[B]`.

    Returns:
      1 or 0 `[B, D]`, float32 or wider, without gradient. Column k is that of k + 1 features; of equal logits the first
      counts.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Chen et al., *Compressing Features for Learning with Noisy Labels*, 2022, arXiv 2206.13140.
    """
    function = "regularizers.nested.prefix_hits"
    _checks.array(function, "features", features, ndim=2, kind="float")
    _checks.array(function, "kernel", kernel, shape=(jnp.shape(features)[1], None), kind="float")
    _checks.array(function, "labels", labels, shape=jnp.shape(features)[:1], kind="integer")
    dtype = _checks.accumulation_dtype(features, kernel)
    features, kernel = (jax.lax.stop_gradient(jnp.asarray(x)).astype(dtype) for x in (features, kernel))

    def widen(logits: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
        logits += part[0][:, None] * part[1]
        return logits, jnp.argmax(logits, axis=1) == labels

    start = jnp.zeros((features.shape[0], kernel.shape[1]), dtype)
    return jax.lax.scan(widen, start, (features.T, kernel))[1].T.astype(dtype)


def best_width(accuracies: Num[Array, " features"], *, penalty: float = 1e-5) -> Int[Array, ""]:
    r"""How many features to keep: the :math:`k` that maximises the accuracy of the first k less :math:`\lambda k`.

    Args:
      accuracies: of the first 1, 2, …, D features on a validation set `[D]`, such as the mean of `prefix_hits`.
      penalty: :math:`\lambda`, in [0, inf), which breaks ties in favour of fewer.

    Returns:
      A width in 1..D, int32.

    Raises:
      ValueError: if there is no accuracy, or `penalty` is out of range.

    References:
      Chen et al., *Compressing Features for Learning with Noisy Labels*, 2022, arXiv 2206.13140.
    """
    function = "regularizers.nested.best_width"
    _checks.array(function, "accuracies", accuracies, ndim=1, kind="float")
    _checks.number(function, "penalty", penalty, low=0, open_high=True)
    if jnp.shape(accuracies)[0] == 0:
        _checks.fail(function, "accuracies", "empty", "one a width")
    value = jnp.asarray(accuracies).astype(_checks.accumulation_dtype(accuracies))
    return (jnp.argmax(value - penalty * jnp.arange(value.size)) + 1).astype(jnp.int32)
