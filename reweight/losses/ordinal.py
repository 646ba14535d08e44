"""Losses for ordered classes: cumulative logits of the boundaries between them, and distributions over rated levels."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks

__all__ = [
    "LevelScores",
    "cumulative_logit_nll",
    "cumulative_probs",
    "level_kl",
    "level_scores",
    "soft_level_labels",
]

Boundaries = Float[Array, "*batch boundaries"]


def _boundaries(function: str, logits: Boundaries) -> Boundaries:
    _checks.array(function, "boundary_logits", logits, kind="float")
    shape = jnp.shape(logits)
    if not shape or shape[-1] < 1:
        _checks.fail(function, "boundary_logits", f"of shape {shape}", "an array whose last axis is the boundaries")
    return jnp.asarray(logits).astype(_checks.accumulation_dtype(logits))


def cumulative_logit_nll(
    boundary_logits: Boundaries, labels: Int[Array, "*batch"], *, min_gap: float = 1e-8
) -> Float[Array, "*batch"]:
    r"""Negative log-likelihood of ordered classes with :math:`P(y \le k) = \sigma(\eta_k)`, per example.

    .. math:: -\log(\sigma(\eta_y) - \sigma(\eta_{y-1}))

    with :math:`\sigma(\eta_{-1}) = 0` and :math:`\sigma(\eta_{K-1}) = 1`. The difference is taken in logarithms, so
    that no probability is too small.

    The boundaries of a row may cross, :math:`\eta_y < \eta_{y-1}`, and the likelihood does not exist there. From a gap
    of `min_gap` downwards the logarithm of the gap goes on by its tangent: the loss is finite, and its gradient, of
    size 1 / `min_gap`, moves the boundaries apart. A network whose boundaries cross when training starts needs a
    `min_gap` of about 0.01.

    Args:
      boundary_logits: :math:`\eta`, of the K-1 boundaries from low to high `[..., K-1]`, any scale.
      labels: classes in 0..K-1 `[...]`.
      min_gap: between the logits of neighbouring boundaries, in (0, inf).

    Returns:
      Losses `[...]`, float32 or wider; 0 with zero gradient where the label is no class, whatever the logits there.

    Raises:
      ValueError: if the shapes do not fit, labels are not integers, or `min_gap` is out of range.

    References:
      McCullagh, *Regression Models for Ordinal Data*, 1980. Faletto and Bien, *Predicting Rare Events by Shrinking
      Towards Proportional Odds*, 2023, which reports minus infinity where boundaries cross.
    """
    function = "losses.ordinal.cumulative_logit_nll"
    logits = _boundaries(function, boundary_logits)
    _checks.array(function, "labels", labels, shape=logits.shape[:-1], kind="integer")
    _checks.number(function, "min_gap", min_gap, low=0, open_low=True, open_high=True)
    last = logits.shape[-1]
    labels = jnp.asarray(labels)
    known = (labels >= 0) & (labels <= last)
    label, logits = jnp.where(known, labels, 0), jnp.where(known[..., None], logits, 0)
    has_upper, has_lower = label < last, label > 0
    upper = jnp.take_along_axis(logits, jnp.minimum(label, last - 1)[..., None], axis=-1)[..., 0]
    lower = jnp.take_along_axis(logits, jnp.maximum(label - 1, 0)[..., None], axis=-1)[..., 0]
    inside = has_upper & has_lower
    gap = jnp.where(inside, upper - lower, 1)
    wide = gap > min_gap
    log_gap = jnp.where(
        wide,
        jnp.log(-jnp.expm1(-jnp.where(wide, gap, 1))),
        jnp.log(-jnp.expm1(-jnp.asarray(min_gap, gap.dtype))) + (gap - min_gap) / jnp.expm1(min_gap),
    )
    log_likelihood = (
        jnp.where(has_upper, jax.nn.log_sigmoid(upper), 0)
        + jnp.where(has_lower, jax.nn.log_sigmoid(-lower), 0)
        + jnp.where(inside, log_gap, 0)
    )
    return jnp.where(known, -log_likelihood, 0)


def cumulative_probs(boundary_logits: Boundaries) -> tuple[Float[Array, "*batch classes"], Bool[Array, "*batch"]]:
    r"""Probabilities of ordered classes, :math:`\sigma(\eta_k) - \sigma(\eta_{k-1})`, and whether boundaries cross.

    Args:
      boundary_logits: :math:`\eta`, of the K-1 boundaries from low to high `[..., K-1]`, any scale.

    Returns:
      Probabilities `[..., K]`, float32 or wider, small ones exact in every digit; and booleans `[...]`. Where
      boundaries cross, a negative difference counts as 0 and the others are scaled to sum to 1.

    Raises:
      ValueError: if the logits are no float array with a last axis.

    References:
      Faletto and Bien, *Predicting Rare Events by Shrinking Towards Proportional Odds*, 2023.
    """
    logits = _boundaries("losses.ordinal.cumulative_probs", boundary_logits)
    gaps = jnp.diff(logits, axis=-1)
    # The difference of two sigmoids without a subtraction.
    inner = jax.nn.sigmoid(logits[..., 1:]) * jax.nn.sigmoid(-logits[..., :-1]) * -jnp.expm1(-jnp.maximum(gaps, 0))
    probs = jnp.concatenate([jax.nn.sigmoid(logits[..., :1]), inner, jax.nn.sigmoid(-logits[..., -1:])], axis=-1)
    return probs / jnp.sum(probs, axis=-1, keepdims=True), jnp.any(gaps < 0, axis=-1)


Density = Literal["pdf", "cdf"]
LevelIds = Int[Array, " levels"] | Sequence[int]


def soft_level_labels(
    means: Float[Array, "*batch"],
    stds: Float[Array, "*batch"],
    *,
    low: float,
    high: float,
    num_levels: int = 5,
    density: Density = "pdf",
    min_std: float = 0.2,
    max_error: float = 0.1,
    renormalize: bool = False,
) -> Float[Array, "*batch levels"]:
    r"""Distributions over levels with the mean and spread of human ratings, the best level first.

    Ratings are mapped to levels 1..n, :math:`\mu = (n-1)(m - low)/(high - low) + 1`, and so is their spread. The raw
    weights of the levels, of a normal distribution, are scaled and shifted, :math:`\alpha r_x + \beta`, so that they
    sum to 1 and have mean :math:`\mu`, and what is negative then becomes 0. Where the spread is below `min_std`, or the
    cut moved the mean by more than `max_error`, the two neighbouring levels share the weight.

    Args:
      means: of the ratings `[...]`, in [low, high]; those outside count as at the end. No gradient flows.
      stds: of the ratings `[...]`, non-negative; without gradient too.
      low: the least mean rating of the data set.
      high: the greatest, above `low`.
      num_levels: n, at least 2.
      density: raw weights, `"pdf"`: the density at the level; `"cdf"`: the mass within half a level of it.
      min_std: on the scale of levels, in [0, inf).
      max_error: on the scale of levels, in [0, inf).
      renormalize: make labels whose negative weights were cut sum to 1; the released code leaves them above.

    Returns:
      Labels `[..., n]` from level n to level 1, float32 or wider.

    Raises:
      ValueError: if the shapes do not fit, or a hyperparameter is out of range.

    References:
      You et al., *Teaching Large Language Models to Regress Accurate Image Quality Scores using Score Distribution*,
      2025, arXiv 2501.11561.
    """
    function = "losses.ordinal.soft_level_labels"
    _checks.array(function, "means", means, kind="float")
    _checks.array(function, "stds", stds, shape=jnp.shape(means), kind="float")
    _checks.number(function, "low", low, open_low=True, open_high=True)
    _checks.number(function, "high", high, open_low=True, open_high=True)
    if not isinstance(low, jax.Array) and not isinstance(high, jax.Array) and low >= high:
        _checks.fail(function, "high", repr(high), f"a number above `low`, {low!r}")
    _checks.number(function, "num_levels", num_levels, low=2, open_high=True, integer=True)
    _checks.choice(function, "density", density, get_args(Density))
    _checks.number(function, "min_std", min_std, low=0, open_high=True)
    _checks.number(function, "max_error", max_error, low=0, open_high=True)
    dtype = _checks.accumulation_dtype(means, stds)
    per_level = (num_levels - 1) / (high - low)
    means, stds = (jax.lax.stop_gradient(jnp.asarray(x)).astype(dtype)[..., None] for x in (means, stds))
    mu = jnp.clip((means - low) * per_level + 1, 1, num_levels)
    spread = stds * per_level
    levels = jnp.arange(num_levels, 0, -1, dtype=dtype)
    distance, width = levels - mu, jnp.maximum(spread, 1e-3)
    if density == "pdf":
        raw = jnp.exp(-((distance / width) ** 2) / 2) / (width * jnp.sqrt(2 * jnp.pi).astype(dtype))
    else:
        raw = jax.scipy.stats.norm.cdf((distance + 0.5) / width) - jax.scipy.stats.norm.cdf((distance - 0.5) / width)
    centre = (num_levels + 1) / 2
    total = jnp.sum(raw, axis=-1, keepdims=True)
    scale = (mu - centre) / (jnp.sum((levels - centre) * raw, axis=-1, keepdims=True) + 1e-9)
    found = jnp.maximum(scale * raw + (1 - scale * total) / num_levels, 0)
    error = jnp.abs(jnp.sum(found * levels, axis=-1, keepdims=True) - mu)
    if renormalize:
        found = found / jnp.sum(found, axis=-1, keepdims=True)
    return jnp.where((spread < min_std) | (error > max_error), _two_levels(mu, levels), found)


def _two_levels(mu: Float[Array, "*batch one"], levels: Float[Array, " levels"]) -> Float[Array, "*batch levels"]:
    """The weight of a mean on its two neighbouring levels; at a level a trace goes to the one below."""
    edge = 1e-8
    lower = jnp.clip(jnp.ceil(mu - edge) - 1, 1, levels.size - 1)
    share = (lower + 1 + edge - mu) / (1 + 2 * edge)
    return jnp.where(levels == lower, share, 0) + jnp.where(levels == lower + 1, 1 - share, 0)


def _level_logits(function: str, logits: Float[Array, "*batch classes"], level_ids: LevelIds | None) -> Array | None:
    _checks.array(function, "logits", logits, kind="float")
    if jnp.ndim(logits) < 1:
        _checks.fail(function, "logits", "a scalar", "an array whose last axis is the classes")
    if level_ids is None:
        return None
    ids = jnp.asarray(level_ids)
    _checks.array(function, "level_ids", ids, ndim=1, kind="integer")
    return ids


def level_kl(
    logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch levels"],
    *,
    level_ids: LevelIds | None = None,
) -> Float[Array, "*batch"]:
    r"""Divergence of a distribution over levels from that of a softmax, :math:`\sum_x t_x (\log t_x - \log p_x)`.

    The softmax runs over all classes, such as a vocabulary in which five tokens name the levels: what is not a level
    has target 0.

    Args:
      logits: `[..., V]`, any scale.
      targets: weights of the levels `[..., n]`, non-negative, such as those of `soft_level_labels`. They need not sum
        to 1.
      level_ids: which class each level is `[n]`, in the order of the targets. Default: all classes, as they come.

    Returns:
      Divergences `[...]`, float32 or wider. Where the targets sum to more than 1 they may be negative.

    Raises:
      ValueError: if the shapes do not fit, or ids are not integers.

    References:
      You et al., *Teaching Large Language Models to Regress Accurate Image Quality Scores using Score Distribution*,
      2025, arXiv 2501.11561.
    """
    function = "losses.ordinal.level_kl"
    ids = _level_logits(function, logits, level_ids)
    levels = jnp.shape(logits)[-1] if ids is None else ids.size
    _checks.array(function, "targets", targets, shape=(*jnp.shape(logits)[:-1], levels), kind="float")
    dtype = _checks.accumulation_dtype(logits, targets)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits).astype(dtype))
    log_probs = log_probs if ids is None else log_probs[..., ids]
    weights = jnp.asarray(targets).astype(dtype)
    positive = weights > 0
    entropies = jnp.where(positive, weights * jnp.log(jnp.where(positive, weights, 1)), 0)
    return jnp.sum(entropies - weights * log_probs, axis=-1)


class LevelScores(NamedTuple):
    """Mean and standard deviation of the level that a model predicts."""

    scores: Float[Array, "*batch"]
    stds: Float[Array, "*batch"]


def level_scores(
    logits: Float[Array, "*batch classes"],
    *,
    level_ids: LevelIds | None = None,
    levels: Num[Array, " levels"] | Sequence[float] | None = None,
    closed_set: bool = True,
) -> LevelScores:
    r"""Mean :math:`s = \sum_x x p_x` of the predicted level, and its deviation :math:`\sqrt{\sum_x p_x (x - s)^2}`.

    Args:
      logits: `[..., V]`, any scale.
      level_ids: which class each level is `[n]`, the best first. Default: all classes, as they come.
      levels: their values `[n]`. Default: n, ..., 1.
      closed_set: take p from a softmax over the levels only; else over all classes, so that what is predicted beside
        the levels counts as a level of 0 in the mean and as nothing in the standard deviation.

    Returns:
      `LevelScores(scores, stds)`, each `[...]`, float32 or wider. Where all is on one level the standard deviation is 0
      with zero gradient.

    Raises:
      ValueError: if the shapes do not fit, or ids are not integers.

    References:
      You et al., *Teaching Large Language Models to Regress Accurate Image Quality Scores using Score Distribution*,
      2025, arXiv 2501.11561.
    """
    function = "losses.ordinal.level_scores"
    ids = _level_logits(function, logits, level_ids)
    wide = jnp.asarray(logits).astype(_checks.accumulation_dtype(logits))
    if ids is None:
        probs = jax.nn.softmax(wide)
    elif closed_set:
        probs = jax.nn.softmax(wide[..., ids])
    else:
        probs = jax.nn.softmax(wide)[..., ids]
    size = probs.shape[-1]
    values = jnp.arange(size, 0, -1) if levels is None else jnp.asarray(levels)
    _checks.array(function, "levels", values, shape=(size,), kind="number")
    values = values.astype(probs.dtype)
    scores = jnp.sum(probs * values, axis=-1)
    variances = jnp.sum(probs * (values - scores[..., None]) ** 2, axis=-1)
    spread = variances > 0
    return LevelScores(scores, jnp.where(spread, jnp.sqrt(jnp.where(spread, variances, 1)), 0))
