r"""Distributionally robust weights: the worst distribution over the examples of a batch.

Each scheme maximises :math:`\sum_i q_i \ell_i` over distributions :math:`q` near the uniform one, in closed form or by
an exact threshold, and gives the weights :math:`w_i = n q_i`. The value of the maximum is a loss of its own, whose
gradient with respect to the losses is :math:`q` (Danskin's theorem), so that training on the value and training on the
weighted mean are the same thing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray

from reweight import _checks
from reweight.weights import base

__all__ = [
    "CompositionalState",
    "chi2_dro",
    "chi2_dro_value",
    "chi2_dro_weights",
    "compositional_kl_dro",
    "cvar_dro",
    "cvar_value",
    "cvar_weights",
    "kl_dro",
    "kl_dro_value",
    "kl_dro_weights",
]

Losses = Float[Array, "..."]
Mask = Bool[Array, "..."] | Num[Array, "..."]


def _batch(function: str, losses: Losses, mask: Mask | None) -> tuple[Losses, Bool[Array, "..."]]:
    """Losses in the accumulation dtype with 0 where masked, and the mask."""
    kept = base.keep(losses, mask, function)
    return jnp.where(kept, losses, 0).astype(_checks.accumulation_dtype(losses)), kept


def _count(kept: Bool[Array, "..."], dtype: Any) -> Float[Array, ""]:
    return jnp.sum(kept, dtype=dtype)


def _largest(losses: Losses, kept: Bool[Array, "..."]) -> Float[Array, ""]:
    top = jnp.max(jnp.where(kept, losses, -jnp.inf), initial=-jnp.inf)
    return jnp.where(jnp.any(kept), top, 0)


def _tilted(losses: Losses, temperature: Float[Array, ""], kept: Bool[Array, "..."]) -> Losses:
    """The distribution proportional to exp(losses / temperature): shared by the largest at 0, uniform at infinity."""
    below = losses - jax.lax.stop_gradient(_largest(losses, kept))
    positive = temperature > 0
    exponent = jnp.where(positive, below / jnp.where(positive, temperature, 1), jnp.where(below < 0, -jnp.inf, 0))
    mass = jnp.where(kept, jnp.exp(exponent), 0)
    total = jnp.sum(mass)
    return mass / jnp.where(total > 0, total, 1)


@jax.custom_jvp
def _kl_value(losses: Losses, temperature: Float[Array, ""], kept: Bool[Array, "..."]) -> Float[Array, ""]:
    count = jnp.maximum(_count(kept, losses.dtype), 1)
    mean = jnp.sum(losses) / count
    top = _largest(losses, kept)
    # About the mean where the exponents are small, so that no digit is lost up to infinite temperature; else about the
    # largest, so that nothing overflows.
    centre = jnp.where(top - mean < temperature, mean, top)
    safe = jnp.where((temperature > 0) & (temperature < jnp.inf), temperature, 1)
    excess = jnp.sum(jnp.where(kept, jnp.expm1((losses - centre) / safe), 0)) / count
    value = centre + safe * jnp.log1p(excess)
    value = jnp.where(temperature > 0, jnp.where(temperature < jnp.inf, value, mean), top)
    return jnp.where(jnp.any(kept), value, 0)


@_kl_value.defjvp
def _kl_value_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    losses, temperature, kept = primals
    probs = _tilted(losses, temperature, kept)
    positive = probs > 0
    relative = jnp.where(positive, probs, 1) * jnp.maximum(_count(kept, losses.dtype), 1)
    divergence = jnp.sum(jnp.where(positive, probs * jnp.log(relative), 0))
    return _kl_value(*primals), jnp.sum(probs * tangents[0]) - divergence * tangents[1]


def kl_dro_weights(losses: Losses, *, temperature: float = 1.0, mask: Mask | None = None) -> Losses:
    r"""Weights of the worst distribution under a price on its KL divergence: :math:`w = n\,\mathrm{softmax}(\ell / r)`.

    The closed form of :math:`\mathrm{argmax}_q \sum_i q_i \ell_i - r\,\mathrm{KL}(q \,\|\, \mathrm{uniform})`.

    Args:
      losses: any shape; all axes count as examples. What stands where the mask is off is never read.
      temperature: :math:`r`, in [0, inf], in the unit of the losses. Infinity is uniform; 0 is the largest loss alone,
        shared where several are largest.
      mask: boolean or 0/1, broadcast to the losses.

    Returns:
      Weights of the losses' shape, float32 or wider, without gradient; mean one over the unmasked, 0 where masked.

    Raises:
      ValueError: if the mask does not broadcast to the losses, or the temperature is out of range.

    References:
      Hu and Hong, *Kullback-Leibler Divergence Constrained Distributionally Robust Optimization*, 2013. The instance
      weights of Sow et al., *Doubly Robust Instance-Reweighted Adversarial Training*, 2023, arXiv 2308.00311.
    """
    function = "weights.kl_dro_weights"
    value, kept = _batch(function, losses, mask)
    _checks.number(function, "temperature", temperature, low=0)
    probs = _tilted(value, jnp.asarray(temperature, value.dtype), kept)
    return jax.lax.stop_gradient(probs * _count(kept, value.dtype))


def kl_dro_value(losses: Losses, *, temperature: float = 1.0, mask: Mask | None = None) -> Float[Array, ""]:
    r"""The worst mean loss less the price of its KL divergence, a scalar: :math:`r \log \frac1n \sum_i e^{\ell_i / r}`.

    Tilted empirical risk with tilt :math:`1/r`. Between the mean (infinite temperature) and the maximum (0).

    Args:
      losses: any shape; all axes count as examples. What stands where the mask is off is never read.
      temperature: :math:`r`, in [0, inf], in the unit of the losses.
      mask: boolean or 0/1, broadcast to the losses.

    Returns:
      A scalar, float32 or wider; 0 with zero gradient if all is masked. Its gradient with respect to the losses is the
      worst distribution, `kl_dro_weights` / n, and with respect to the temperature minus the distribution's divergence.

    Raises:
      ValueError: if the mask does not broadcast to the losses, or the temperature is out of range.

    References:
      Li et al., *Tilted Empirical Risk Minimization*, 2020, arXiv 2007.01162; and those of `kl_dro_weights`.
    """
    function = "weights.kl_dro_value"
    value, kept = _batch(function, losses, mask)
    _checks.number(function, "temperature", temperature, low=0)
    return _kl_value(value, jnp.asarray(temperature, value.dtype), kept)


def kl_dro(*, temperature: float = 1.0) -> base.Weighting:
    """KL-DRO over the global batch, see `kl_dro_weights`.

    Args:
      temperature: in [0, inf], in the unit of the losses.

    Returns:
      A `Weighting` of scope `"batch"`.

    Raises:
      ValueError: if the temperature is out of range.
    """
    _checks.number("weights.kl_dro", "temperature", temperature, low=0)
    return base.stateless(functools.partial(kl_dro_weights, temperature=temperature), name="weights.kl_dro")


class CompositionalState(NamedTuple):
    """The running normaliser of `compositional_kl_dro`."""

    log_normalizer: Float[Array, ""]
    started: Bool[Array, ""]


def compositional_kl_dro(*, temperature: float = 1.0, step_size: float = 0.1) -> base.Weighting:
    r"""KL-DRO whose normaliser runs over batches: :math:`w_i = e^{\ell_i / r} / u`.

    .. math::
        u \leftarrow (1 - \eta)\, u + \eta\, \frac1B \sum_{i \in B} e^{\ell_i / r}

    The softmax of a small batch is a biased estimate of the softmax over the data; a running :math:`u` is what takes
    the bias out. It starts at the first batch's value, and the weights use the :math:`u` just updated. It is kept as a
    logarithm.

    Args:
      temperature: :math:`r`, in (0, inf], in the unit of the losses.
      step_size: :math:`\eta`, in (0, 1]; 1 gives the weights of `kl_dro`.

    Returns:
      A `Weighting` of scope `"batch"` with state `CompositionalState`. Weights have mean one over the stream, not in
      each batch: a batch of large losses weighs more. None exceeds the batch size over :math:`\eta`.

    Raises:
      ValueError: if a hyperparameter is out of range.

    References:
      Sow et al., *Doubly Robust Instance-Reweighted Adversarial Training*, 2023, arXiv 2308.00311.
    """
    function = "weights.compositional_kl_dro"
    _checks.number(function, "temperature", temperature, low=0, open_low=True)
    _checks.number(function, "step_size", step_size, low=0, high=1, open_low=True)

    def init(key: PRNGKeyArray | None = None) -> CompositionalState:
        del key
        return CompositionalState(jnp.zeros(()), jnp.zeros((), bool))

    def update(
        state: CompositionalState, losses: Losses, **signals: Any
    ) -> tuple[Float[Array, "..."], CompositionalState]:
        value, kept = _batch(function, jax.lax.stop_gradient(losses), signals.get("mask"))
        exponents = value / temperature
        some = jnp.any(kept)
        total = jax.nn.logsumexp(jnp.where(kept, exponents, 0), where=kept)
        batch = jnp.where(some, total, 0) - jnp.log(jnp.maximum(_count(kept, value.dtype), 1))
        running = jnp.logaddexp(jnp.log1p(-step_size) + state.log_normalizer, jnp.log(step_size) + batch)
        running = jnp.where(some, jnp.where(state.started, running, batch), state.log_normalizer)
        weights = jnp.where(kept, jnp.exp(exponents - running), 0)
        return weights, CompositionalState(running.astype(state.log_normalizer.dtype), state.started | some)

    return base.Weighting(init, update, "batch")


def cvar_weights(losses: Losses, *, alpha: float = 0.5, mask: Mask | None = None) -> Losses:
    r"""Weights of the mean of the worst :math:`\alpha` of the losses: :math:`w_i = 1/\alpha` above the quantile.

    The worst distribution with :math:`q_i \le 1 / (\alpha n)`. The example on the quantile gets the fraction that is
    left, shared where several losses equal it, so that the total is exact for any :math:`\alpha n`.

    Args:
      losses: any shape; all axes count as examples. What stands where the mask is off is never read.
      alpha: the fraction of examples that counts, in (0, 1]. 1 is the plain mean; up to 1/n it is the maximum.
      mask: boolean or 0/1, broadcast to the losses.

    Returns:
      Weights of the losses' shape, float32 or wider, without gradient; mean one over the unmasked, 0 where masked.

    Raises:
      ValueError: if the mask does not broadcast to the losses, or `alpha` is out of range.

    References:
      Rockafellar and Uryasev, *Optimization of Conditional Value-at-Risk*, 2000. Levy et al., *Large-Scale Methods for
      Distributionally Robust Optimization*, 2020, arXiv 2010.05893.
    """
    function = "weights.cvar_weights"
    value, kept = _batch(function, jax.lax.stop_gradient(losses), mask)
    _checks.number(function, "alpha", alpha, low=0, high=1, open_low=True)
    fraction = jnp.asarray(alpha, value.dtype)
    count = _count(kept, value.dtype)
    descending = -jnp.sort(jnp.where(kept, -value, jnp.inf).reshape(-1))
    rank = jnp.clip(jnp.ceil(fraction * count).astype(int) - 1, 0, max(descending.size - 1, 0))
    quantile = jnp.take(descending, rank, mode="clip") if descending.size else jnp.zeros((), value.dtype)
    above = kept & (value > quantile)
    tied = kept & (value == quantile)
    rest = (count - _count(above, value.dtype) / fraction) / jnp.maximum(_count(tied, value.dtype), 1)
    return jnp.where(above, 1 / fraction, jnp.where(tied, jnp.clip(rest, 0, 1 / fraction), 0))


def cvar_value(losses: Losses, *, alpha: float = 0.5, mask: Mask | None = None) -> Float[Array, ""]:
    r"""Conditional value at risk, a scalar: the mean of the worst :math:`\alpha` of the losses.

    Args:
      losses: any shape; all axes count as examples. What stands where the mask is off is never read.
      alpha: in (0, 1], see `cvar_weights`.
      mask: boolean or 0/1, broadcast to the losses.

    Returns:
      A scalar, float32 or wider; 0 with zero gradient if all is masked. Its gradient is `cvar_weights` / n.

    Raises:
      ValueError: if the mask does not broadcast to the losses, or `alpha` is out of range.

    References:
      Those of `cvar_weights`.
    """
    function = "weights.cvar_value"
    value, kept = _batch(function, losses, mask)
    _checks.number(function, "alpha", alpha, low=0, high=1, open_low=True)
    weights = cvar_weights(value, alpha=alpha, mask=kept)
    return jnp.sum(weights * value) / jnp.maximum(_count(kept, value.dtype), 1)


def cvar_dro(*, alpha: float = 0.5) -> base.Weighting:
    """CVaR-DRO over the global batch, see `cvar_weights`.

    Args:
      alpha: the fraction of examples that counts, in (0, 1].

    Returns:
      A `Weighting` of scope `"batch"`.

    Raises:
      ValueError: if `alpha` is out of range.
    """
    _checks.number("weights.cvar_dro", "alpha", alpha, low=0, high=1, open_low=True)
    return base.stateless(functools.partial(cvar_weights, alpha=alpha), name="weights.cvar_dro")


def chi2_dro_weights(losses: Losses, *, radius: float = 1.0, mask: Mask | None = None) -> Losses:
    r"""Weights of the worst distribution in a chi-square ball: :math:`\frac1n \sum_i (w_i - 1)^2 \le \rho`.

    The ball bounds Pearson's divergence :math:`\chi^2(q \,\|\, \mathrm{uniform})`, which is the variance of the
    weights: the effective sample size is at least :math:`n / (1 + \rho)`. The maximiser is :math:`w_i \propto (\ell_i -
    \eta)_+`; the threshold :math:`\eta` comes exactly from one sort. (Duchi and Namkoong's divergence is half of this
    one.)

    Args:
      losses: any shape; all axes count as examples. What stands where the mask is off is never read.
      radius: :math:`\rho`, in [0, inf]. 0 is uniform; from n - 1 on it is the largest loss alone, shared where several
        are largest.
      mask: boolean or 0/1, broadcast to the losses.

    Returns:
      Weights of the losses' shape, float32 or wider, without gradient; mean one over the unmasked, 0 where masked.
      Equal losses have equal weights.

    Raises:
      ValueError: if the mask does not broadcast to the losses, or the radius is out of range.

    References:
      Duchi and Namkoong, *Variance-based Regularization with Convex Objectives*, 2016, arXiv 1610.02581. Hashimoto et
      al., *Fairness Without Demographics in Repeated Loss Minimization*, 2018, arXiv 1806.08010.
    """
    function = "weights.chi2_dro_weights"
    value, kept = _batch(function, jax.lax.stop_gradient(losses), mask)
    _checks.number(function, "radius", radius, low=0)
    spread = 1 + jnp.asarray(radius, value.dtype)
    count = _count(kept, value.dtype)
    # Gaps to the largest loss, as shares of the largest gap: the weights depend on nothing else.
    gaps = jnp.where(kept, _largest(value, kept) - value, 0)
    widest = jnp.max(gaps, initial=0)
    gaps = gaps / jnp.where(widest > 0, widest, 1)
    gaps = jnp.where(gaps < jnp.finfo(gaps.dtype).eps ** 2, 0, gaps)  # their squares could vanish
    ordered = jnp.sort(jnp.where(kept, gaps, jnp.inf).reshape(-1))
    real = ordered < jnp.inf
    ordered = jnp.where(real, ordered, 0)
    # With the threshold at the k-th largest loss, the weights' second moment is count * second / first**2. It falls
    # with k, and an example has weight if it is larger there than the ball allows.
    ranks = jnp.arange(1, ordered.size + 1, dtype=value.dtype)
    sums, squares = jnp.cumsum(ordered), jnp.cumsum(ordered**2)
    first = ranks * ordered - sums
    second = ranks * ordered**2 - 2 * ordered * sums + squares
    active = real & ((ordered == 0) | (count * second > spread * first**2))
    last = jnp.max(jnp.where(active, ordered, 0), initial=0)
    holds = kept & (gaps <= last)
    held = jnp.maximum(_count(holds, value.dtype), 1)
    mean = jnp.sum(jnp.where(holds, gaps, 0)) / held
    variance = jnp.sum(jnp.where(holds, (gaps - mean) ** 2, 0)) / held
    varies = variance > 0
    slack = jnp.maximum(spread * held - count, 0)
    slope = jnp.where(varies, jnp.sqrt(slack / (count * jnp.where(varies, variance, 1))), 0)
    weights = jnp.where(holds, jnp.maximum(1 + (mean - gaps) * slope, 0), 0)
    return base.normalize(weights, mask=kept)


def chi2_dro_value(losses: Losses, *, radius: float = 1.0, mask: Mask | None = None) -> Float[Array, ""]:
    r"""The worst mean loss in a chi-square ball, a scalar: :math:`\max_w \frac1n \sum_i w_i \ell_i`.

    Without clipped weights this is the mean plus :math:`\sqrt{\rho}` standard deviations of the losses.

    Args:
      losses: any shape; all axes count as examples. What stands where the mask is off is never read.
      radius: :math:`\rho`, in [0, inf], see `chi2_dro_weights`.
      mask: boolean or 0/1, broadcast to the losses.

    Returns:
      A scalar, float32 or wider; 0 with zero gradient if all is masked. Its gradient is `chi2_dro_weights` / n; second
      derivatives take the weights as constants.

    Raises:
      ValueError: if the mask does not broadcast to the losses, or the radius is out of range.

    References:
      Those of `chi2_dro_weights`.
    """
    function = "weights.chi2_dro_value"
    value, kept = _batch(function, losses, mask)
    _checks.number(function, "radius", radius, low=0)
    weights = chi2_dro_weights(value, radius=radius, mask=kept)
    return jnp.sum(weights * value) / jnp.maximum(_count(kept, value.dtype), 1)


def chi2_dro(*, radius: float = 1.0) -> base.Weighting:
    """Chi-square DRO over the global batch, see `chi2_dro_weights`.

    Args:
      radius: bound on the variance of the weights, in [0, inf].

    Returns:
      A `Weighting` of scope `"batch"`.

    Raises:
      ValueError: if the radius is out of range.
    """
    _checks.number("weights.chi2_dro", "radius", radius, low=0)
    return base.stateless(functools.partial(chi2_dro_weights, radius=radius), name="weights.chi2_dro")
