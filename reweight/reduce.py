"""Weighted, masked reductions that add up exactly.

A training signal is `reduce(w · l)`. Every reduction here is a quotient `total / denominator`, and every one can return
the two as `Parts` instead of the quotient. The parts of the microbatches, shards or hosts of a batch add up to the
parts of the batch, so that a loss taken in pieces is the loss of the whole, in value and in gradient, however unequal
the pieces are. Sums run in float32 at least. Where a mask leaves nothing, the value is 0 and so is its gradient.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from reweight import _checks

__all__ = ["TOKEN_MODES", "Parts", "combine", "finish", "tokens", "weighted_mean", "weighted_sum"]

Axis = int | Sequence[int] | None
Values = Num[Array, "..."]
Mask = Bool[Array, "..."] | Num[Array, "..."]
Normalizer = Literal["weights", "count"]
TokenMode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum-fixed-length"]
TOKEN_MODES: tuple[TokenMode, ...] = get_args(TokenMode)


class Parts(NamedTuple):
    """A reduction before its division: the value is `total / denominator`, and the parts of disjoint pieces add up.

    A sum divides by nothing: its denominator is 0, in every piece and in the whole.
    """

    total: Float[Array, "..."]
    denominator: Float[Array, "..."]


def finish(parts: Parts) -> Float[Array, "..."]:
    """The value of `parts`: `total / denominator`, or `total` where the denominator is 0.

    A denominator is 0 for a plain sum, and for a mean of nothing, whose total is 0 with zero gradient.
    """
    total, denominator = parts
    return total / jnp.where(denominator == 0, 1, denominator)


def combine(parts: Iterable[Parts]) -> Float[Array, "..."]:
    r"""The value of a whole from the parts of its pieces: :math:`\sum_k T_k / \sum_k D_k`.

    Args:
      parts: one `Parts` a piece, all of one shape. The pieces may be of unequal sizes, and some of them empty.

    Returns:
      What the reduction of the undivided values gives, in value and in gradient; 0 if every piece is empty.

    Raises:
      ValueError: if there is no piece.
    """
    pieces = list(parts)
    if not pieces:
        _checks.fail("reduce.combine", "parts", "empty", "at least one Parts")
    return finish(jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *pieces))


class _Masked(NamedTuple):
    values: Array  # 0 where the mask is off
    weights: Array  # 0 where the mask is off
    keep: Array  # the mask as 0 and 1


def _masked(function: str, values: Values, weights: Values | None, mask: Mask | None, mask_name: str) -> _Masked:
    _checks.array(function, "values", values, kind="number")
    _checks.mask(function, mask_name, mask, values, like_name="values")
    shape = jnp.shape(values)
    if weights is None:
        dtype = _checks.accumulation_dtype(values)
        weights = jnp.ones((), dtype)
    else:
        _checks.array(function, "weights", weights, kind="number")
        _checks.broadcasts(function, "weights", weights, values, like_name="values")
        dtype = _checks.accumulation_dtype(values, weights)
    keep = _checks.kept(mask, shape)
    return _Masked(
        jnp.where(keep, values, 0).astype(dtype),
        jnp.where(keep, weights, 0).astype(dtype),
        keep.astype(dtype),
    )


@overload
def weighted_mean(
    values: Values, weights: Values | None = ..., *,
    where: Mask | None = ..., axis: Axis = ..., normalizer: Normalizer = ..., parts: Literal[False] = ...,
) -> Float[Array, "..."]: ...  # fmt: skip
@overload
def weighted_mean(
    values: Values, weights: Values | None = ..., *,
    where: Mask | None = ..., axis: Axis = ..., normalizer: Normalizer = ..., parts: Literal[True],
) -> Parts: ...  # fmt: skip
def weighted_mean(
    values: Values,
    weights: Values | None = None,
    *,
    where: Mask | None = None,
    axis: Axis = None,
    normalizer: Normalizer = "weights",
    parts: bool = False,
) -> Float[Array, "..."] | Parts:
    r"""Mean of the unmasked values under weights: :math:`\sum_i m_i w_i x_i / D`.

    The denominator is :math:`D = \sum_i m_i w_i` (`normalizer="weights"`, the weighted average) or the number of
    unmasked values :math:`D = \sum_i m_i` (`normalizer="count"`: the mean of :math:`w_i x_i`, in which the scale of the
    weights counts). For weights of mean one over the batch the two agree on the batch, not on its pieces; the `Parts`
    of either add up.

    Args:
      values: any shape. What stands where the mask is off is never read, not even NaN or infinity.
      weights: non-negative, broadcast to the shape of `values`. Default: ones.
      where: boolean or 0/1 mask, broadcast to the shape of `values`; any non-zero entry counts once. Default: all.
      axis: the axes to reduce; default all.
      normalizer: what the denominator sums, `"weights"` or `"count"`.
      parts: return `(total, denominator)` instead of the quotient.

    Returns:
      The mean over `axis`, float32 or wider; 0 with zero gradient where the mask leaves nothing.

    Raises:
      ValueError: if weights or mask do not broadcast to the values, an axis is not one of theirs, or `normalizer` is
        unknown.
    """
    function = "reduce.weighted_mean"
    _checks.choice(function, "normalizer", normalizer, get_args(Normalizer))
    _checks.axis(function, "axis", axis, values)
    value, weight, keep = _masked(function, values, weights, where, "where")
    denominator = jnp.broadcast_to(weight, value.shape) if normalizer == "weights" else keep
    result = Parts(jnp.sum(weight * value, axis=axis), jnp.sum(denominator, axis=axis))
    return result if parts else finish(result)


@overload
def weighted_sum(
    values: Values, weights: Values | None = ..., *,
    where: Mask | None = ..., axis: Axis = ..., parts: Literal[False] = ...,
) -> Float[Array, "..."]: ...  # fmt: skip
@overload
def weighted_sum(
    values: Values, weights: Values | None = ..., *,
    where: Mask | None = ..., axis: Axis = ..., parts: Literal[True],
) -> Parts: ...  # fmt: skip
def weighted_sum(
    values: Values,
    weights: Values | None = None,
    *,
    where: Mask | None = None,
    axis: Axis = None,
    parts: bool = False,
) -> Float[Array, "..."] | Parts:
    r"""Sum of the unmasked values under weights: :math:`\sum_i m_i w_i x_i`.

    Args:
      values: any shape. What stands where the mask is off is never read.
      weights: broadcast to the shape of `values`. Default: ones.
      where: boolean or 0/1 mask, broadcast to the shape of `values`. Default: all.
      axis: the axes to reduce; default all.
      parts: return `(total, 0)`: a sum divides by nothing, so the sums of pieces add up like every other reduction.

    Returns:
      The sum over `axis`, float32 or wider; 0 with zero gradient where the mask leaves nothing.

    Raises:
      ValueError: if weights or mask do not broadcast to the values, or an axis is not one of theirs.
    """
    function = "reduce.weighted_sum"
    _checks.axis(function, "axis", axis, values)
    value, weight, _ = _masked(function, values, weights, where, "where")
    total = jnp.sum(weight * value, axis=axis)
    return Parts(total, jnp.zeros_like(total)) if parts else total


@overload
def tokens(
    values: Float[Array, "*batch time"], mask: Mask, weights: Values | None = ..., *,
    mode: TokenMode = ..., length: int | None = ..., parts: Literal[False] = ...,
) -> Float[Array, ""]: ...  # fmt: skip
@overload
def tokens(
    values: Float[Array, "*batch time"], mask: Mask, weights: Values | None = ..., *,
    mode: TokenMode = ..., length: int | None = ..., parts: Literal[True],
) -> Parts: ...  # fmt: skip
def tokens(
    values: Float[Array, "*batch time"],
    mask: Mask,
    weights: Values | None = None,
    *,
    mode: TokenMode = "token-mean",
    length: int | None = None,
    parts: bool = False,
) -> Float[Array, ""] | Parts:
    r"""One number from token losses, in one of the field's four ways of counting.

    With :math:`s_b = \sum_t m_{bt} w_{bt} x_{bt}`, :math:`n_b = \sum_t m_{bt}` tokens in sequence :math:`b`, and
    :math:`S` sequences that have a token at all:

    | mode | value | counts equally |
    |---|---|---|
    | token-mean | :math:`\sum_b s_b / \sum_b n_b` | tokens: long sequences weigh more |
    | seq-mean-token-mean | :math:`\frac1S \sum_b s_b / n_b` | sequences: tokens of long ones weigh less |
    | seq-mean-token-sum | :math:`\frac1S \sum_b s_b` | sequences, each by the sum of its tokens |
    | token-sum-fixed-length | :math:`\frac{1}{S L} \sum_b s_b` | tokens, over a length that no batch changes |

    A sequence without a token counts nowhere, so that padding a batch with empty rows changes nothing. The `Parts` of
    pieces add up if no sequence is cut: split over sequences, not over time (`token-mean` may be split either way).

    Args:
      values: token losses `[..., T]`; the last axis is time. What stands where the mask is off is never read.
      mask: boolean or 0/1, broadcast to the shape of `values`.
      weights: a weight a token `[..., T]`, or a weight a sequence `[...]`. They multiply; they are not counted.
      mode: see the table.
      length: the fixed length :math:`L` of `token-sum-fixed-length`, in tokens; only there, and needed there.
      parts: return `(total, denominator)` instead of the quotient.

    Returns:
      A scalar, float32 or wider; 0 with zero gradient if the mask is empty.

    Raises:
      ValueError: if the values have no axis, mask or weights do not broadcast to them, the mode is unknown, or `length`
        is missing or given where it has no meaning.

    References:
      The counting of GRPO, DAPO and Dr. GRPO: Liu et al., *Understanding R1-Zero-Like Training: A Critical
      Perspective*, 2025, arXiv 2503.20783; Yu et al., *DAPO: An Open-Source LLM Reinforcement Learning System at
      Scale*, 2025, arXiv 2503.14476.
    """
    function = "reduce.tokens"
    _checks.choice(function, "mode", mode, TOKEN_MODES)
    if jnp.ndim(values) < 1:
        _checks.fail(function, "values", "a scalar", "an array whose last axis is time")
    if mode == "token-sum-fixed-length":
        if length is None:
            _checks.fail(function, "length", "missing", f"an integer in [1, inf) for mode {mode!r}")
        _checks.number(function, "length", length, low=1, integer=True)
    elif length is not None:
        _checks.fail(function, "length", repr(length), f"None for mode {mode!r}")
    if weights is not None and jnp.shape(weights) == jnp.shape(values)[:-1] != jnp.shape(values):
        weights = jnp.expand_dims(weights, -1)
    value, weight, keep = _masked(function, values, weights, mask, "mask")
    sums = jnp.sum(weight * value, axis=-1)
    counts = jnp.sum(keep, axis=-1)
    sequences = jnp.sum(jnp.asarray(counts > 0, counts.dtype))
    match mode:
        case "token-mean":
            result = Parts(jnp.sum(sums), jnp.sum(counts))
        case "seq-mean-token-mean":
            result = Parts(jnp.sum(finish(Parts(sums, counts))), sequences)
        case "seq-mean-token-sum":
            result = Parts(jnp.sum(sums), sequences)
        case "token-sum-fixed-length":
            assert length is not None
            result = Parts(jnp.sum(sums), sequences * length)
    return result if parts else finish(result)
