"""StableMax: a softmax whose exponential is a line above 0, so that confident examples keep their gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reweight import _checks
from reweight.losses.classification import _rows
from reweight.losses.classification._rows import Labels, Logits

__all__ = ["log_stablemax", "stablemax", "stablemax_cross_entropy"]


def _log_mass(scores: Array) -> Array:
    """log(1 + z) above 0 and -log(1 - z) below, with slope 1 at 0."""
    above = scores >= 0
    return jnp.where(above, jnp.log1p(jnp.where(above, scores, 0)), -jnp.log1p(jnp.where(above, 0, -scores)))


def log_stablemax(logits: Float[Array, "..."], *, axis: int = -1) -> Float[Array, "..."]:
    r"""Logarithm of `stablemax`, entry by entry.

    Args:
      logits: any shape and scale.
      axis: of the classes.

    Returns:
      Log-probabilities of the same shape, float32 or wider.

    Raises:
      ValueError: if the logits are no array of floats, or `axis` is not one of theirs.

    References:
      Prieto et al., *Grokking at the Edge of Numerical Stability*, 2025, arXiv 2501.04697.
    """
    return _log_stablemax("losses.classification.log_stablemax", logits, axis)


def _log_stablemax(function: str, logits: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    _checks.array(function, "logits", logits, kind="float")
    if not isinstance(axis, int):
        _checks.fail(function, "axis", repr(axis), "an integer")
    _checks.axis(function, "axis", axis, logits)
    mass = _log_mass(jnp.asarray(logits).astype(_checks.accumulation_dtype(logits)))
    return mass - jax.nn.logsumexp(mass, axis=axis, keepdims=True)


def stablemax(logits: Float[Array, "..."], *, axis: int = -1) -> Float[Array, "..."]:
    r"""Probabilities :math:`s(z_c)/\sum_k s(z_k)` with :math:`s(z) = z + 1` above 0 and :math:`1/(1-z)` below.

    The order of the logits is kept; unlike the softmax, a constant added to all of them changes the probabilities.

    Args:
      logits: any shape and scale.
      axis: of the classes.

    Returns:
      Probabilities of the same shape, float32 or wider.

    Raises:
      ValueError: if the logits are no array of floats, or `axis` is not one of theirs.

    References:
      Prieto et al., *Grokking at the Edge of Numerical Stability*, 2025, arXiv 2501.04697.
    """
    return jnp.exp(_log_stablemax("losses.classification.stablemax", logits, axis))


def stablemax_cross_entropy(logits: Logits, labels: Labels) -> Float[Array, "*batch"]:
    r"""Cross-entropy :math:`-\log` `stablemax` of the label's class, per example.

    The gradient falls with a power of the logits and not exponentially, so that float32 does not round it to 0 when
    the training set is fitted.

    Args:
      logits: `[..., C]`, any scale.
      labels: integer class ids `[...]`.

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class.

    Raises:
      ValueError: if the shapes do not fit, or the labels are not integers.

    References:
      Prieto et al., *Grokking at the Edge of Numerical Stability*, 2025, arXiv 2501.04697. The released code takes the
      logarithm in float64; here it is taken of the numerator and the sum apart, which float32 can hold.
    """
    given = _rows.rows("losses.classification.stablemax_cross_entropy", logits, labels, centre=False)
    mass = _log_mass(given.scores)
    return given.losses(jax.nn.logsumexp(mass, axis=-1) - given.of_label(mass))
