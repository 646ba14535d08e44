"""The vocabulary a chunk at a time: hidden states and a kernel in, rows out, and the gradient by computing again.

A chunk takes the same columns of every one of `shards` equal pieces of the vocabulary. Where the kernel lies on that
many devices by its vocabulary, each works on what it has, and nothing but numbers a row is exchanged: chunks that
followed each other would lie on one device each, and had to be sent to all others.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from reweight.tokens import rows as rows_
from reweight.tokens.rows import Asked, Rows, TokenStatistics

Layout = Literal["DV", "VD"]
C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is known when the program is made.

    Attributes:
      asked: the statistics.
      layout: of the kernel.
      reference_layout: of the kernel of the reference.
      shards: pieces of the vocabulary that may lie on different devices.
      one_each: there are as many pieces as devices that share the vocabulary, not more.
      columns: of one piece that are taken at a time.
    """

    asked: Asked
    layout: Layout
    reference_layout: Layout
    shards: int
    one_each: bool
    columns: int


class Squash(NamedTuple):
    """What happens to a product before it is a logit: a soft cap, then a temperature."""

    temperature: Array
    cap: Array | None

    def __call__(self, raw: Array) -> tuple[Array, Array]:
        """Logits, and their slope with respect to `raw`."""
        if self.cap is None:
            return raw / self.temperature, 1 / self.temperature
        bent = jnp.tanh(raw / self.cap)
        return bent * (self.cap / self.temperature), (1 - bent * bent) / self.temperature


class Operands(NamedTuple):
    """The arrays of a call. Kernels are `[D, V]` or `[V, D]`; with shards, `[D, shards, V / shards]` and likewise."""

    hidden: Array
    kernel: Array
    reference_hidden: Array | None
    reference_kernel: Array | None
    targets: Array
    squash: Squash


def _cut_axis(kernel: Array, layout: Layout) -> int:
    """The axis along which a kernel is cut into chunks."""
    return kernel.ndim - 1 if layout == "DV" else kernel.ndim - 2


def _vocabulary_axes(kernel: Array, layout: Layout) -> tuple[int, ...]:
    return tuple(range(1, kernel.ndim)) if layout == "DV" else tuple(range(kernel.ndim - 1))


def _cut(kernel: Array, layout: Layout, start: int | Array, size: int, dtype: jnp.dtype) -> Array:
    cut = jax.lax.dynamic_slice_in_dim(_bits(kernel), start, size, axis=_cut_axis(kernel, layout))
    return _bits(cut, kernel.dtype).astype(dtype)


def _product(
    left: Array, right: Array, left_axes: tuple[int, ...], right_axes: tuple[int, ...],
    batch: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> Array:  # fmt: skip
    """A product whose sums are taken in float32 at least."""
    dtype = jnp.promote_types(left.dtype, jnp.float32)
    return jax.lax.dot_general(left, right, ((left_axes, right_axes), batch), preferred_element_type=dtype)


def _raw(hidden: Array, cut: Array, layout: Layout) -> Array:
    """Hidden states `[..., D]` times a cut of the kernel: `[..., columns]`, or `[..., shards, columns]`."""
    return _product(hidden, cut, (hidden.ndim - 1,), (0 if layout == "DV" else cut.ndim - 1,))


def _ids(plan: Plan, length: int, start: int | Array, size: int) -> Array:
    ids = start + jnp.arange(size, dtype=jnp.int32)
    return ids if plan.shards == 1 else jnp.arange(plan.shards, dtype=jnp.int32)[:, None] * length + ids


def _fold(step: Callable[[C, int | Array, int], C], initial: C, length: int, columns: int) -> C:
    """Carries a value through the parts of `length` columns, the odd one at the end first."""
    first = length % columns or columns
    carry = step(initial, length - first, first)
    if first == length:
        return carry
    return jax.lax.fori_loop(
        0, (length - first) // columns, lambda index, carry: step(carry, index * columns, columns), carry
    )


def _length(plan: Plan, operands: Operands) -> int:
    return operands.kernel.shape[_cut_axis(operands.kernel, plan.layout)]


def _single(plan: Plan, operands: Operands) -> bool:
    return plan.columns >= _length(plan, operands)


def _reference_logits(plan: Plan, operands: Operands, start: int | Array, size: int) -> Array | None:
    hidden, kernel = operands.reference_hidden, operands.reference_kernel
    if hidden is None or kernel is None:
        return None
    dtype = jnp.promote_types(hidden.dtype, kernel.dtype)
    cut = _cut(kernel, plan.reference_layout, start, size, dtype)
    return operands.squash(_raw(hidden.astype(dtype), cut, plan.reference_layout))[0]


def _bits(array: Array, dtype: jnp.dtype | None = None) -> Array:
    """An array of 16-bit floats as integers, and back.

    XLA on CPU cannot cut or update an array of such floats, and would keep all of it in float32 besides.
    """
    if array.dtype.itemsize != 2:
        return array
    return jax.lax.bitcast_convert_type(array, jnp.uint16 if dtype is None else dtype)


def rows_of(plan: Plan, operands: Operands) -> Rows:
    """The statistics of every row, in one sweep over the vocabulary; in two if Jensen-Shannon is among them."""
    length = _length(plan, operands)
    dtype = jnp.promote_types(operands.hidden.dtype, operands.kernel.dtype)
    hidden = operands.hidden.astype(dtype)

    def logits(start: int | Array, size: int) -> tuple[Array, Array | None]:
        cut = _cut(operands.kernel, plan.layout, start, size, dtype)
        own, _ = operands.squash(_raw(hidden, cut, plan.layout))
        return own, _reference_logits(plan, operands, start, size)

    def gather(carry: rows_.Sums | None, start: int | Array, size: int) -> rows_.Sums | None:
        ids = _ids(plan, length, start, size)
        found = rows_.sums(plan.asked, *logits(start, size), ids, operands.targets)
        return found if carry is None else rows_.add(carry, found, plan.asked.top_k)

    sums = _fold(gather, None, length, plan.columns)
    assert sums is not None
    rows = rows_.finish(plan.asked, sums if plan.shards == 1 else rows_.total(sums, plan.asked.top_k))
    if not plan.asked.any("jensen_shannon"):
        return rows

    def mix(carry: tuple[Array, Array] | None, start: int | Array, size: int) -> tuple[Array, Array] | None:
        own, reference = logits(start, size)
        assert reference is not None
        found = rows_.mixture_sums(rows, own, reference)
        return found if carry is None else (carry[0] + found[0], carry[1] + found[1])

    mixed = _fold(mix, None, length, plan.columns)
    assert mixed is not None
    if plan.shards > 1:
        mixed = jnp.sum(mixed[0], axis=-1), jnp.sum(mixed[1], axis=-1)
    return rows_.finish_mixture(rows, mixed)


def gradients_of(
    plan: Plan, operands: Operands, rows: Rows, kept: Array | None, cotangents: TokenStatistics
) -> tuple[Array, Array]:
    """The gradients to hidden states and kernel, in one sweep that computes the products again where none are kept."""
    length, axis = _length(plan, operands), _cut_axis(operands.kernel, plan.layout)
    dtype = jnp.promote_types(operands.hidden.dtype, operands.kernel.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    hidden = operands.hidden.astype(dtype)
    slopes = rows_.slopes(plan.asked, rows, cotangents)
    leading = tuple(range(hidden.ndim - 1))
    vocabulary = _vocabulary_axes(operands.kernel, plan.layout)
    of_logits = tuple(range(hidden.ndim - 1, hidden.ndim - 1 + len(vocabulary)))

    def back(carry: tuple[Array, Array], start: int | Array, size: int) -> tuple[Array, Array]:
        to_hidden, to_kernel = carry
        cut = _cut(operands.kernel, plan.layout, start, size, dtype)
        own, slope = operands.squash(_raw(hidden, cut, plan.layout) if kept is None else kept)
        reference = _reference_logits(plan, operands, start, size)
        ids = _ids(plan, length, start, size)
        logit_gradient = rows_.logit_gradient(slopes, rows, own, reference, ids, operands.targets)
        # In the dtype of the operands: their product would otherwise be taken in float32 altogether.
        gradient = (logit_gradient * slope).astype(dtype)
        # One axis for the vocabulary: XLA on CPU has no product of 16-bit floats with the other shape.
        flat = gradient.reshape(*hidden.shape[:-1], plan.shards * size)
        left, right = (hidden, flat) if plan.layout == "DV" else (flat, hidden)
        part = _product(left, right, leading, leading).reshape(cut.shape)
        part = _bits(part.astype(operands.kernel.dtype))
        to_kernel = jax.lax.dynamic_update_slice_in_dim(to_kernel, part, start, axis)
        if plan.one_each:
            # A sum a piece [shards, ..., D], so that devices add up theirs once and not at every chunk.
            shard = (of_logits[:1], vocabulary[:1])
            return to_hidden + _product(gradient, cut, of_logits[1:], vocabulary[1:], shard), to_kernel
        return to_hidden + _product(gradient, cut, of_logits, vocabulary), to_kernel

    shape = (plan.shards, *hidden.shape) if plan.one_each else hidden.shape
    start = (jnp.zeros(shape, wide), _bits(jnp.zeros_like(operands.kernel)))
    to_hidden, to_kernel = _fold(back, start, length, plan.columns)
    to_hidden = jnp.sum(to_hidden, axis=0) if plan.one_each else to_hidden
    return to_hidden.astype(operands.hidden.dtype), _bits(to_kernel, operands.kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(plan: Plan, operands: Operands) -> TokenStatistics:
    """The statistics of every row of hidden states."""
    return rows_of(plan, operands).statistics


def _forward(plan: Plan, operands: Operands) -> tuple[TokenStatistics, tuple[Operands, Rows, Array | None]]:
    rows = rows_of(plan, operands)
    kept = None
    if _single(plan, operands):  # One chunk is what may be held: nothing is gained by computing it again.
        dtype = jnp.promote_types(operands.hidden.dtype, operands.kernel.dtype)
        cut = _cut(operands.kernel, plan.layout, 0, plan.columns, dtype)
        kept = _raw(operands.hidden.astype(dtype), cut, plan.layout)
    return rows.statistics, (operands, rows, kept)


def _backward(plan: Plan, saved: tuple[Operands, Rows, Array | None], cotangents: TokenStatistics) -> tuple[Operands]:
    operands, rows, kept = saved
    to_hidden, to_kernel = gradients_of(plan, operands, rows, kept, cotangents)
    return (Operands(to_hidden, to_kernel, None, None, None, None),)  # type: ignore[arg-type]


_chunked.defvjp(_forward, _backward)
chunked = jax.jit(_chunked, static_argnums=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole(asked: Asked, raw: Array, reference: Array | None, targets: Array, squash: Squash) -> TokenStatistics:
    """The statistics of every row of `[..., V]` products that are neither capped nor tempered yet."""
    return _whole_forward(asked, raw, reference, targets, squash)[0]


Whole = tuple[Array, Array | None, Array, Squash]


def _wide(raw: Array) -> Array:
    return raw.astype(jnp.promote_types(raw.dtype, jnp.float32))


def _whole_forward(
    asked: Asked, raw: Array, reference: Array | None, targets: Array, squash: Squash
) -> tuple[TokenStatistics, tuple[Whole, Rows]]:
    own, _ = squash(_wide(raw))
    other = None if reference is None else squash(_wide(reference))[0]
    ids = jnp.arange(raw.shape[-1], dtype=jnp.int32)
    rows = rows_.finish(asked, rows_.sums(asked, own, other, ids, targets))
    if asked.any("jensen_shannon"):
        assert other is not None
        rows = rows_.finish_mixture(rows, rows_.mixture_sums(rows, own, other))
    return rows.statistics, ((raw, reference, targets, squash), rows)


def _whole_backward(
    asked: Asked, saved: tuple[Whole, Rows], cotangents: TokenStatistics
) -> tuple[Array, None, None, None]:
    (raw, reference, targets, squash), rows = saved
    own, slope = squash(_wide(raw))
    other = None if reference is None else squash(_wide(reference))[0]
    ids = jnp.arange(raw.shape[-1], dtype=jnp.int32)
    slopes = rows_.slopes(asked, rows, cotangents)
    gradient = rows_.logit_gradient(slopes, rows, own, other, ids, targets)
    return (gradient * slope).astype(raw.dtype), None, None, None


_whole.defvjp(_whole_forward, _whole_backward)
whole = jax.jit(_whole, static_argnums=0)
