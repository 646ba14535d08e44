r"""Mixup whose mixing weights are learned, so that mixtures stay out of where other classes live.

A policy network says between which weights a pair may be mixed; a discriminator that tells mixtures from examples
teaches it. All three networks take one step together:

    mixed = adaptive_mixup(key, lambda pairs: policy(params, pairs), x, targets)
    fit = cross_entropy(classify(params, mixed.x), mixed.targets).mean() + ...  # and that of x
    told = intrusion_loss(discriminate(params, mixed.x), real=jnp.zeros(len(x))).mean() + ...  # and of examples
    total = fit + told
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight.losses.classification import cross_entropy
from reweight.regularizers.mixup import Mask, Mixture, draw_mixture, mix

__all__ = ["AdaptiveMixup", "adaptive_mixup", "gate", "interval_mixture", "intrusion_loss"]

Rows = Float[Array, "batch *features"]


class AdaptiveMixup(NamedTuple):
    """Mixed examples, and what they are mixtures of.

    Attributes:
      x: inputs, of the shape of those given.
      targets: likewise.
      mixture: partners and weights, of which the first is the example's own.
    """

    x: Rows
    targets: Float[Array, "batch *classes"]
    mixture: Mixture


def interval_mixture(
    policy_logits: Float[Array, "batch 3"], u: Float[Array, " batch"], partners: Int[Array, " batch"]
) -> Mixture:
    r"""A `Mixture` in pairs with weights from learned intervals: :math:`\lambda = a + u \Delta`.

    Softmax of three logits gives the interval's low end :math:`a`, its width :math:`\Delta`, and what is left of 1, so
    that :math:`\lambda` lies in (0, 1). A width of 1 with even u is `mixup` with :math:`\alpha = 1`; a width of 0 has
    one weight; at a low end of 1, or with all of it left, nothing is mixed.

    Args:
      policy_logits: `[B, 3]`, any scale.
      u: where in the interval, in [0, 1] `[B]`.
      partners: the row that an example is mixed with `[B]`.

    Returns:
      A `Mixture` of each row, with weight :math:`\lambda`, and its partner, with :math:`1 - \lambda`; float32 or wider.
      The gradient flows to the logits and to u.

    Raises:
      ValueError: if the shapes do not fit, or partners are not integers.

    References:
      Guo, Mao and Zhang, *MixUp as Locally Linear Out-Of-Manifold Regularization*, 2018, arXiv 1809.02499.
    """
    function = "regularizers.adaptive_mixup.interval_mixture"
    _checks.array(function, "policy_logits", policy_logits, shape=(None, 3), kind="float")
    size = jnp.shape(policy_logits)[:1]
    _checks.array(function, "u", u, shape=size, kind="float")
    _checks.array(function, "partners", partners, shape=size, kind="integer")
    dtype = _checks.accumulation_dtype(policy_logits, u)
    low, width, rest = jax.nn.softmax(jnp.asarray(policy_logits).astype(dtype), axis=-1).T
    u = jnp.asarray(u).astype(dtype)
    # 1 - λ, without its cancellation
    weights = jnp.stack([low + u * width, rest + (1 - u) * width], axis=1)
    return Mixture(jnp.stack([jnp.arange(size[0]), partners], axis=1), weights)


def gate(key: PRNGKeyArray, x: Rows, partners: Int[Array, " batch"], *, mask: Mask | None = None) -> Rows:
    r"""What a policy sees of a pair: :math:`(m \odot x + m' \odot x_p) / 2` with noise in place of weights.

    Args:
      key: for the noise, whose entries are normal, cut at two standard deviations.
      x: inputs `[B, ...]`.
      partners: of each row the other one of the pair `[B]`; a number outside the batch stands for a row of zeros.
      mask: boolean or 0/1 `[B]`; masked rows are never read and come out as zeros, and the others get the noise that
        they would without them. Default: all.

    Returns:
      An array of the shape and dtype of `x`.

    Raises:
      ValueError: if the shapes do not fit, or partners are not integers.

    References:
      Guo, Mao and Zhang, *MixUp as Locally Linear Out-Of-Manifold Regularization*, 2018, arXiv 1809.02499.
    """
    function = "regularizers.adaptive_mixup.gate"
    _checks.array(function, "x", x, kind="float")
    _checks.array(function, "partners", partners, ndim=1, kind="integer")
    _checks.array(function, "x", x, shape=(*jnp.shape(partners), *jnp.shape(x)[1:]))
    if mask is not None:
        _checks.array(function, "mask", mask, shape=jnp.shape(partners))
    dtype = _checks.accumulation_dtype(x)
    size, *features = jnp.shape(x)
    kept = _checks.kept(mask, size)
    row = kept.reshape(-1, *(1,) * len(features))
    x = jnp.where(row, x, 0)
    # Examples lead, so that a row's noise depends on its rank among the kept ones alone.
    noise = jax.random.truncated_normal(key, -2, 2, (size, 2, *features), jnp.float32)[_rank(kept)].astype(dtype)
    others = jnp.take(x, partners, axis=0, mode="fill", fill_value=0)
    return jnp.where(row, (noise[:, 0] * x + noise[:, 1] * others) / 2, 0).astype(x.dtype)


def _rank(kept: Bool[Array, " batch"]) -> Int[Array, " batch"]:
    """By what number a kept row goes in what is drawn for the batch."""
    return jnp.cumsum(kept) - 1


def adaptive_mixup(
    key: PRNGKeyArray,
    policy: Callable[[Rows], Float[Array, "batch 3"]],
    x: Rows,
    targets: Float[Array, "batch *classes"],
    *,
    mask: Mask | None = None,
) -> AdaptiveMixup:
    """AdaMixUp: pairs of the batch, mixed within the intervals that a policy network allows.

    The classifier is trained by the cross-entropy of mixtures and of the examples themselves, the discriminator by
    `intrusion_loss`, and the policy by both: its intervals move to where mixtures can be told from examples, and are
    fitted. Without the second loss it ends in not mixing at all.

    Args:
      key: of the step, for pairs, `gate` and u; the same on every shard.
      policy: from what `gate` makes of the pairs `[B, ...]`, each by itself, to logits `[B, 3]`.
      x: inputs `[B, ...]`.
      targets: probabilities of the classes `[B, C]`, or any other targets that may be mixed `[B, ...]`.
      mask: boolean or 0/1 `[B]`. Masked rows become zeros, are nobody's partners and are never read; the others are
        mixed as if the masked ones were not there. `intrusion_loss` of them has to be masked too. Default: all.

    Returns:
      Mixed inputs and targets, and the `Mixture`. The gradient flows to inputs, targets and the policy's parameters.

    Raises:
      ValueError: if the shapes do not fit, inputs or targets are not floats, or the policy does not give three logits a
        pair.

    References:
      Guo, Mao and Zhang, *MixUp as Locally Linear Out-Of-Manifold Regularization*, 2018, arXiv 1809.02499.
    """
    function = "regularizers.adaptive_mixup.adaptive_mixup"
    _checks.array(function, "x", x, kind="float")
    if jnp.ndim(x) < 1:
        _checks.fail(function, "x", "a scalar", "an array whose first axis is the batch")
    size = jnp.shape(x)[0]
    _checks.array(function, "targets", targets, shape=(size, *jnp.shape(targets)[1:]), kind="float")
    if mask is not None:
        _checks.array(function, "mask", mask, shape=(size,))
    kept = _checks.kept(mask, size)
    pair_key, gate_key, u_key = jax.random.split(key, 3)
    partners = draw_mixture(pair_key, size, mask=kept).partners
    policy_logits = policy(gate(gate_key, x, partners[:, 1], mask=kept))
    _checks.array(function, "policy", policy_logits, shape=(size, 3), kind="float")
    u = jax.random.uniform(u_key, (size,), jnp.float32)[_rank(kept)]
    mixture = Mixture(partners, interval_mixture(policy_logits, u, partners[:, 1]).weights)
    return AdaptiveMixup(mix(x, mixture), mix(targets, mixture), mixture)


def intrusion_loss(
    logits: Float[Array, "*batch 2"], real: Bool[Array, "*batch"] | Num[Array, "*batch"]
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of a discriminator between examples (class 1) and mixtures (class 0), per row.

    Args:
      logits: of the discriminator `[..., 2]`.
      real: boolean or 0/1 `[...]`, whether the row is an example.

    Returns:
      Losses `[...]`, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit.

    References:
      Guo, Mao and Zhang, *MixUp as Locally Linear Out-Of-Manifold Regularization*, 2018, arXiv 1809.02499.
    """
    function = "regularizers.adaptive_mixup.intrusion_loss"
    _checks.array(function, "logits", logits, kind="float")
    if jnp.shape(logits)[-1:] != (2,):
        _checks.fail(function, "logits", f"of shape {jnp.shape(logits)}", "an array with two logits on its last axis")
    _checks.array(function, "real", real, shape=jnp.shape(logits)[:-1])
    return cross_entropy(logits, (jnp.asarray(real) != 0).astype(jnp.int32))
