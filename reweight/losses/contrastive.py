"""Contrastive losses: every example of a batch against all others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight._vectors import unit
from reweight.losses.base import BatchLoss, of_batch

__all__ = ["batch_supcon", "supcon"]

Features = Float[Array, "batch features"] | Float[Array, "batch views features"]
Mask = Bool[Array, " batch"] | Num[Array, " batch"]


def supcon(
    features: Features,
    labels: Int[Array, " batch"],
    *,
    temperature: float = 0.07,
    base_temperature: float = 0.07,
    normalize: bool = True,
    mask: Mask | None = None,
) -> Float[Array, " batch"]:
    r"""Supervised contrastive loss: pulls features of one label together and all others apart, per example.

    .. math:: -\frac{T}{T_0} \frac{1}{|P(i)|} \sum_{p \in P(i)} \log \frac{\exp(z_i \cdot z_p / T)}{\sum_{a \ne i}
        \exp(z_i \cdot z_a / T)}

    over all vectors a of the batch but i itself, with the positives :math:`P(i)` those of the same label. Where an
    example has several views (augmentations), each view is such a vector, and the loss of the example is the mean over
    its views. With a label of its own for each example (`jnp.arange`), this is the self-supervised loss of SimCLR.

    The gradient flows through both sides of every pair, so that the batch can't be cut: use `batch_supcon` under
    gradient accumulation.

    Args:
      features: `[B, D]`, or `[B, V, D]` with V views of each example, any scale. A vector shorter than 1e-12 has no
        direction and counts as 0.
      labels: integers `[B]`, of which only equality counts.
      temperature: :math:`T`, in (0, inf).
      base_temperature: :math:`T_0`, in (0, inf). With the temperature itself there is no factor.
      normalize: whether features are divided by their Euclidean norm first.
      mask: boolean or 0/1 `[B]`. A masked example is neither anchor nor compared with, and is never read.

    Returns:
      Losses `[B]`, float32 or wider. A vector without a positive costs 0 with zero gradient, and counts in the mean
      over views.

    Raises:
      ValueError: if the shapes do not fit, the labels are not integers, or a hyperparameter is out of range.

    References:
      Khosla et al., *Supervised Contrastive Learning*, 2020, arXiv 2004.11362. Chen et al., *A Simple Framework for
      Contrastive Learning of Visual Representations*, 2020, arXiv 2002.05709.
    """
    return _supcon("losses.contrastive.supcon", features, labels, temperature, base_temperature, normalize, mask)


def _check_temperatures(function: str, temperature: float, base_temperature: float) -> None:
    _checks.number(function, "temperature", temperature, low=0, open_low=True, open_high=True)
    _checks.number(function, "base_temperature", base_temperature, low=0, open_low=True, open_high=True)


def _supcon(
    function: str,
    features: Features,
    labels: Int[Array, " batch"],
    temperature: float,
    base_temperature: float,
    normalize: bool,
    mask: Mask | None,
) -> Float[Array, " batch"]:
    _check_temperatures(function, temperature, base_temperature)
    _checks.array(function, "features", features, ndim=(2, 3), kind="float")
    size = jnp.shape(features)[:1]
    _checks.array(function, "labels", labels, shape=size, kind="integer")
    _checks.mask(function, "mask", mask, jnp.zeros(size), like_name="labels")
    kept = _checks.kept(mask, size)
    views = 1 if jnp.ndim(features) == 2 else jnp.shape(features)[1]
    vectors = jnp.asarray(features).reshape(size[0] * views, jnp.shape(features)[-1])
    there, ids = jnp.repeat(kept, views), jnp.repeat(jnp.asarray(labels), views)
    vectors = jnp.where(there[:, None], vectors, 0).astype(_checks.accumulation_dtype(vectors))
    vectors = unit(vectors) if normalize else vectors
    compared = there[:, None] & there & ~jnp.eye(len(ids), dtype=bool)
    positive = compared & (ids[:, None] == ids)
    count = jnp.sum(positive, axis=1)
    some = count > 0
    scores = jnp.where(compared, jnp.matmul(vectors, vectors.T, precision="highest") / temperature, 0)
    # An anchor without positives may have nobody to be compared with; what it gets here is not used.
    everyone = jax.nn.logsumexp(scores, axis=1, where=compared | ~some[:, None])
    pulls = jnp.sum(jnp.where(positive, scores, 0), axis=1) / jnp.maximum(count, 1)
    losses = jnp.where(some, (everyone - pulls) * (temperature / base_temperature), 0)
    return jnp.sum(losses.reshape(size[0], views), axis=1) / max(views, 1)


def batch_supcon(*, temperature: float = 0.07, base_temperature: float = 0.07, normalize: bool = True) -> BatchLoss:
    """`supcon` over the global batch as a `BatchLoss`, exact in microbatches: see `of_batch`.

    Args:
      temperature: as for `supcon`.
      base_temperature: as for `supcon`.
      normalize: as for `supcon`.

    Returns:
      A `BatchLoss` without state, of the signals `features` and `labels`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the call, if a signal is missing or does not fit.

    References:
      Khosla et al., *Supervised Contrastive Learning*, 2020, arXiv 2004.11362.
    """
    function = "losses.contrastive.batch_supcon"
    _check_temperatures(function, temperature, base_temperature)

    def of_all(features: Features, labels: Int[Array, " batch"], mask: Mask) -> Float[Array, " batch"]:
        return _supcon(function, features, labels, temperature, base_temperature, normalize, mask)

    return of_batch(of_all, signals=("features", "labels"), name=function)
