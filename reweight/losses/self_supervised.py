"""Losses of examples without labels, whose labels are what has been done to them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses.classification.softmax import named_cross_entropy

__all__ = ["transformation_prediction"]


def transformation_prediction(
    logits: Float[Array, "*batch transformations transformations"],
) -> Float[Array, "*batch"]:
    r"""Telling which of K transformations an example has gone through, :math:`-\frac{1}{K} \sum_k \log p_k(x^{(k)})`.

    With the four turns of an image this is rotation prediction, a task of its own for pre-training, and one beside the
    labels, which keeps more in the features than the labels ask for:

        turned, _ = rotated_classes(images, labels, num_classes=num_classes)  # [B, 4, S, S, ...]
        losses = cross_entropy(head(encode(images)), labels) + transformation_prediction(turns(encode(turned)))

    Args:
      logits: `[..., K, K]`: entry (k, c) is the score of transformation c for the example after transformation k, in
        the paper of a head of its own.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if the last two axes of `logits` are not of one size, at least 1.

    References:
      Gidaris, Singh and Komodakis, *Unsupervised Representation Learning by Predicting Image Rotations*, 2018, arXiv
      1803.07728. As a loss beside others: Gidaris et al., *Boosting Few-Shot Visual Learning with Self-Supervision*,
      2019, arXiv 1906.05186; Roy et al., *A Bag of Tricks for Few-Shot Class-Incremental Learning*, 2024, arXiv
      2403.14392.
    """
    function = "losses.self_supervised.transformation_prediction"
    _checks.array(function, "logits", logits, kind="float")
    shape = jnp.shape(logits)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        _checks.fail(function, "logits", f"of shape {shape}", "[..., K, K] with K at least 1")
    own = jnp.broadcast_to(jnp.arange(shape[-1]), shape[:-1])
    return jnp.mean(named_cross_entropy(function, logits, own, None), axis=-1)
