"""What is known of a row of logits: sums over parts of the vocabulary, the statistics they make, and their gradient.

Every function takes a chunk of logits with the vocabulary, or a part of it, as last axis, and does not ask which part
it is. Sums of parts add up to the sums of the vocabulary, however it is cut.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Statistic = Literal[
    "log_probs",
    "entropy",
    "logsumexp",
    "sum_squares",
    "top_ids",
    "top_log_probs",
    "top_mass",
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
OF_THE_TOP: tuple[Statistic, ...] = ("top_ids", "top_log_probs", "top_mass")
OF_A_REFERENCE: tuple[Statistic, ...] = ("forward_kl", "reverse_kl", "jensen_shannon")

LOWEST = -1e30  # stands for the logarithm of 0: its exponential is 0, and 0 times it is 0
LOG_2 = math.log(2)
NOBODY = jnp.iinfo(jnp.int32).max  # the id of a place among the top that no token has taken


class TokenStatistics(NamedTuple):
    """A number a token for each statistic that was asked for; None for the others. See `token_statistics`."""

    log_probs: Float[Array, "*tokens"] | None = None
    entropy: Float[Array, "*tokens"] | None = None
    logsumexp: Float[Array, "*tokens"] | None = None
    sum_squares: Float[Array, "*tokens"] | None = None
    top_ids: Int[Array, "*tokens k"] | None = None
    top_log_probs: Float[Array, "*tokens k"] | None = None
    top_mass: Float[Array, "*tokens"] | None = None
    forward_kl: Float[Array, "*tokens"] | None = None
    reverse_kl: Float[Array, "*tokens"] | None = None
    jensen_shannon: Float[Array, "*tokens"] | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """The statistics that are wanted."""

    statistics: frozenset[str]
    top_k: int

    def any(self, *names: str) -> bool:
        """Whether one of these is."""
        return not self.statistics.isdisjoint(names)


class Sums(NamedTuple):
    """Sums over a part of the vocabulary, `[...]`. Exponentials are relative to the largest logit of the part."""

    maximum: Array  # m
    total: Array  # the sum of e^(z - m)
    weighted: Array | None  # the sum of (z - m) e^(z - m)
    squares: Array | None  # the sum of e^(2 (z - m))
    target: Array | None  # the logit of the target; 0 where it is not in this part
    top: tuple[Array, Array] | None  # logits and ids [..., k], largest first
    reference_maximum: Array | None  # n, of the logits y of the reference
    reference_total: Array | None  # the sum of e^(y - n)
    forward: Array | None  # the sum of e^(y - n) ((y - n) - (z - m))
    reverse: Array | None  # the sum of e^(z - m) ((z - m) - (y - n))


class Rows(NamedTuple):
    """The statistics of the whole vocabulary, with what their gradient needs besides."""

    maximum: Array
    log_total: Array
    reference_maximum: Array | None
    reference_log_total: Array | None
    model_to_mixture: Array | None  # KL(model || mixture), one half of Jensen-Shannon
    top: tuple[Array, Array] | None  # ids and log-probabilities
    statistics: TokenStatistics


def _beside(row: Array, logits: Array) -> Array:
    """A value a row, with axes of size one for those that `logits` has more."""
    return jnp.reshape(row, row.shape + (1,) * (logits.ndim - row.ndim))


def _exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """The largest logit, the logits less it, and their exponentials."""
    maximum = jnp.maximum(jnp.max(logits, axis=-1), LOWEST)
    centred = jnp.maximum(logits - maximum[..., None], LOWEST)
    return maximum, centred, jnp.exp(centred)


def sums(asked: Asked, logits: Array, reference: Array | None, ids: Array, targets: Array) -> Sums:
    """The sums over the last axis, of which `ids` are the tokens."""
    maximum, centred, weight = _exponentials(logits)
    found: dict[str, Any] = dict.fromkeys(Sums._fields) | {"maximum": maximum, "total": jnp.sum(weight, axis=-1)}
    if asked.any("entropy"):
        found["weighted"] = jnp.sum(weight * centred, axis=-1)
    if asked.any("sum_squares"):
        found["squares"] = jnp.sum(weight * weight, axis=-1)
    if asked.any("log_probs"):
        found["target"] = jnp.sum(jnp.where(ids == _beside(targets, logits), logits, 0), axis=-1)
    if asked.any(*OF_THE_TOP):
        found["top"] = _largest(logits, ids, asked.top_k)
    if reference is not None:
        maximum, others, other_weight = _exponentials(reference)
        found |= {"reference_maximum": maximum, "reference_total": jnp.sum(other_weight, axis=-1)}
        if asked.any("forward_kl"):
            found["forward"] = jnp.sum(other_weight * (others - centred), axis=-1)
        if asked.any("reverse_kl"):
            found["reverse"] = jnp.sum(weight * (centred - others), axis=-1)
    return Sums(**found)


def _largest(logits: Array, ids: Array, k: int) -> tuple[Array, Array]:
    """The k largest logits of a part of the vocabulary and their ids; places that it leaves empty belong to nobody.

    The k largest are in the k blocks with the largest maxima. So what is sorted is short, and a sort, unlike
    `jax.lax.top_k`, leaves rows on the devices where they are.
    """
    *leading, size = logits.shape
    block = 2 ** int(math.log2(max(1.0, math.sqrt(size / k))))
    missing = -size % block
    blocks = jnp.pad(logits, [(0, 0)] * len(leading) + [(0, missing)], constant_values=-jnp.inf)
    blocks = blocks.reshape(*leading, (size + missing) // block, block)
    maxima = jnp.max(blocks, axis=-1)
    _, chosen = _ranked(maxima, jax.lax.broadcasted_iota(jnp.int32, maxima.shape, maxima.ndim - 1), k)
    values = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)
    places = chosen[..., None] * block + jnp.arange(block, dtype=jnp.int32)
    flat = (*leading, chosen.shape[-1] * block)
    values, places = _ranked(values.reshape(flat), places.reshape(flat), k)
    empty = [(0, 0)] * len(leading) + [(0, k - values.shape[-1])]
    places = jnp.pad(places, empty, constant_values=size)
    values = jnp.pad(values, empty, constant_values=-jnp.inf)
    return values, jnp.where(places < size, ids[..., :1] + places, NOBODY)


def _ranked(values: Array, ids: Array, k: int) -> tuple[Array, Array]:
    """The k best of candidates: larger logits first, among equals the smaller id, whatever order they come in."""
    negative, ids = jax.lax.sort((-values, ids), dimension=-1, num_keys=2)
    return -negative[..., :k], ids[..., :k]


def _relative_to(sums: Sums, maximum: Array, reference_maximum: Array | None) -> Sums:
    """The same sums with exponentials relative to other, larger logits."""
    step = sums.maximum - maximum
    scale = jnp.exp(step)
    changed: dict[str, Any] = {"maximum": maximum, "total": sums.total * scale}
    if sums.weighted is not None:
        changed["weighted"] = (sums.weighted + step * sums.total) * scale
    if sums.squares is not None:
        changed["squares"] = sums.squares * scale * scale
    if reference_maximum is not None:
        assert sums.reference_maximum is not None
        assert sums.reference_total is not None
        other_step = sums.reference_maximum - reference_maximum
        other_scale = jnp.exp(other_step)
        changed |= {"reference_maximum": reference_maximum, "reference_total": sums.reference_total * other_scale}
        if sums.forward is not None:
            changed["forward"] = (sums.forward + (other_step - step) * sums.reference_total) * other_scale
        if sums.reverse is not None:
            changed["reverse"] = (sums.reverse + (step - other_step) * sums.total) * scale
    return sums._replace(**changed)


def total(parts: Sums, top_k: int) -> Sums:
    """The sums of parts of the vocabulary that lie along the last axis `[..., parts]`, added up."""
    maximum = jnp.max(parts.maximum, axis=-1, keepdims=True)
    other = parts.reference_maximum
    other = None if other is None else jnp.max(other, axis=-1, keepdims=True)
    parts = _relative_to(parts, maximum, other)
    top = parts.top
    if top is not None:
        logits, ids = (x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]) for x in top)
        top = _ranked(logits, ids, top_k)
    summed = jax.tree.map(lambda x: jnp.sum(x, axis=-1), parts._replace(top=None))
    return summed._replace(maximum=maximum[..., 0], reference_maximum=None if other is None else other[..., 0], top=top)


def add(left: Sums, right: Sums, top_k: int) -> Sums:
    """The sums of two disjoint parts of the vocabulary."""
    plain, tops = [sums._replace(top=None) for sums in (left, right)], [left.top, right.top]
    parts = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=-1), *plain)
    top = None if left.top is None else jax.tree.map(lambda a, b: jnp.stack([a, b], axis=-2), *tops)
    return total(parts._replace(top=top), top_k)


def finish(asked: Asked, sums: Sums) -> Rows:
    """The statistics, from the sums over the whole vocabulary; without Jensen-Shannon, which no such sums give."""
    log_total = jnp.log(sums.total)
    mean = None if sums.weighted is None else sums.weighted / sums.total
    found: dict[str, Array] = {}
    if sums.target is not None:
        found["log_probs"] = sums.target - sums.maximum - log_total
    if mean is not None:
        found["entropy"] = log_total - mean
    if asked.any("logsumexp"):
        found["logsumexp"] = sums.maximum + log_total
    if sums.squares is not None:
        found["sum_squares"] = sums.squares / (sums.total * sums.total)
    top = None
    if sums.top is not None:
        logits, ids = sums.top
        log_probs = logits - sums.maximum[..., None] - log_total[..., None]
        top = ids, log_probs
        found |= {"top_ids": ids, "top_log_probs": log_probs, "top_mass": jnp.sum(jnp.exp(log_probs), axis=-1)}
    other_log_total = None
    if sums.reference_total is not None:
        other_log_total = jnp.log(sums.reference_total)
        if sums.forward is not None:
            found["forward_kl"] = jnp.maximum(sums.forward / sums.reference_total + (log_total - other_log_total), 0)
        if sums.reverse is not None:
            found["reverse_kl"] = jnp.maximum(sums.reverse / sums.total + (other_log_total - log_total), 0)
    wanted = TokenStatistics(**{name: value for name, value in found.items() if name in asked.statistics})
    return Rows(sums.maximum, log_total, sums.reference_maximum, other_log_total, None, top, wanted)


def log_probabilities(rows: Rows, logits: Array) -> Array:
    """Logarithms of the probabilities of a chunk."""
    return jnp.maximum(logits - _beside(rows.maximum, logits) - _beside(rows.log_total, logits), LOWEST)


def reference_log_probabilities(rows: Rows, reference: Array) -> Array:
    """The same of the reference."""
    assert rows.reference_maximum is not None
    assert rows.reference_log_total is not None
    centred = reference - _beside(rows.reference_maximum, reference)
    return jnp.maximum(centred - _beside(rows.reference_log_total, reference), LOWEST)


def mixture_sums(rows: Rows, logits: Array, reference: Array) -> tuple[Array, Array]:
    """A chunk's part of the divergences of model and of reference from their mixture, over the last axis."""
    model, other = log_probabilities(rows, logits), reference_log_probabilities(rows, reference)
    model_part = jnp.exp(model) * (LOG_2 - jax.nn.softplus(other - model))
    other_part = jnp.exp(other) * (LOG_2 - jax.nn.softplus(model - other))
    return jnp.sum(model_part, axis=-1), jnp.sum(other_part, axis=-1)


def finish_mixture(rows: Rows, parts: tuple[Array, Array]) -> Rows:
    """The rows with Jensen-Shannon, from the sums of `mixture_sums` over the vocabulary."""
    model, other = parts
    return rows._replace(
        model_to_mixture=model,
        statistics=rows.statistics._replace(jensen_shannon=jnp.maximum(0.5 * (model + other), 0)),
    )


class Slopes(NamedTuple):
    """What the gradient to a row of logits is made of: numbers a row, by what they multiply."""

    constant: Array  # p
    model: Array | None = None  # p log p
    squares: Array | None = None  # p^2
    reverse: Array | None = None  # p log q
    mixture: Array | None = None  # p log(p / m)
    forward: Array | None = None  # q
    target: Array | None = None  # 1 at the target
    top: tuple[tuple[Array, Array], ...] = ()  # 1 at the id that stands beside it


def slopes(asked: Asked, rows: Rows, cotangents: TokenStatistics) -> Slopes:
    """The numbers a row, from the cotangents of the statistics."""
    values = rows.statistics
    constant = jnp.zeros_like(rows.maximum)
    found: dict[str, Array] = {}
    if cotangents.log_probs is not None:
        constant -= cotangents.log_probs
        found["target"] = cotangents.log_probs
    if cotangents.logsumexp is not None:
        constant += cotangents.logsumexp
    if cotangents.entropy is not None and values.entropy is not None:
        constant -= cotangents.entropy * values.entropy
        found["model"] = -cotangents.entropy
    if cotangents.sum_squares is not None and values.sum_squares is not None:
        found["squares"] = 2 * cotangents.sum_squares
        constant -= found["squares"] * values.sum_squares
    if cotangents.forward_kl is not None:
        constant += cotangents.forward_kl
        found["forward"] = -cotangents.forward_kl
    if cotangents.reverse_kl is not None and values.reverse_kl is not None:
        constant -= cotangents.reverse_kl * values.reverse_kl
        found["reverse"] = -cotangents.reverse_kl
        found["model"] = found.get("model", jnp.zeros_like(constant)) + cotangents.reverse_kl
    if cotangents.jensen_shannon is not None and rows.model_to_mixture is not None:
        found["mixture"] = 0.5 * cotangents.jensen_shannon
        constant -= found["mixture"] * rows.model_to_mixture
    top: tuple[tuple[Array, Array], ...] = ()
    if asked.any("top_log_probs", "top_mass"):
        assert rows.top is not None
        ids, log_probs = rows.top
        each = jnp.zeros_like(log_probs)
        if cotangents.top_log_probs is not None:
            each += cotangents.top_log_probs
        if cotangents.top_mass is not None:
            each += cotangents.top_mass[..., None] * jnp.exp(log_probs)
        constant -= jnp.sum(each, axis=-1)
        top = tuple((ids[..., place], each[..., place]) for place in range(asked.top_k))
    return Slopes(constant, top=top, **found)


def logit_gradient(
    slopes: Slopes, rows: Rows, logits: Array, reference: Array | None, ids: Array, targets: Array
) -> Array:
    r"""The gradient to a chunk of logits: :math:`p_v (a + b_v)` and what falls on single tokens, and on the reference.

    What does not change along the vocabulary is in :math:`a`, so that a statistic costs an operation or two a logit.
    """

    def row(value: Array) -> Array:
        return _beside(value, logits)

    model = log_probabilities(rows, logits)
    probability = jnp.exp(model)
    factor, besides = row(slopes.constant), jnp.zeros_like(logits)
    if slopes.model is not None:
        factor += row(slopes.model) * model
    if slopes.squares is not None:
        factor += row(slopes.squares) * probability
    if reference is not None:
        other = reference_log_probabilities(rows, reference)
        if slopes.reverse is not None:
            factor += row(slopes.reverse) * other
        if slopes.mixture is not None:
            factor += row(slopes.mixture) * (LOG_2 - jax.nn.softplus(other - model))
        if slopes.forward is not None:
            besides += row(slopes.forward) * jnp.exp(other)
    if slopes.target is not None:
        besides += jnp.where(ids == row(targets), row(slopes.target), 0)
    for chosen, slope in slopes.top:
        besides += jnp.where(ids == row(chosen), row(slope), 0)
    return probability * factor + besides
