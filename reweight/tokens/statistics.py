"""The public functions: statistics of tokens from hidden states and a kernel, or from logits."""

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

from reweight import _checks
from reweight.tokens import chunks, placement
from reweight.tokens.chunks import Layout
from reweight.tokens.rows import OF_A_REFERENCE, OF_THE_TOP, STATISTICS, Asked, Statistic, TokenStatistics

__all__ = ["TokenStatistics", "token_statistics", "token_statistics_from_logits"]

Mask = Bool[Array, "..."] | Num[Array, "..."]


def _asked(function: str, statistics: Sequence[Statistic], top_k: int | None, vocabulary: int) -> Asked:
    if isinstance(statistics, str) or not isinstance(statistics, Sequence) or not statistics:
        _checks.fail(function, "statistics", repr(statistics), "a sequence of some of " + ", ".join(STATISTICS))
    for name in statistics:
        _checks.choice(function, "statistics", name, STATISTICS)
    names = frozenset(statistics)
    if names.isdisjoint(OF_THE_TOP):
        if top_k is not None:
            _checks.fail(function, "top_k", repr(top_k), f"None unless one of {', '.join(OF_THE_TOP)} is asked for")
        return Asked(names, 0)
    allowed = f"an integer in [1, {vocabulary}] for {', '.join(OF_THE_TOP)}"
    if top_k is None:
        _checks.fail(function, "top_k", "missing", allowed)
    if isinstance(top_k, jax.Array):
        _checks.fail(function, "top_k", "an array", allowed)
    _checks.number(function, "top_k", top_k, low=1, high=vocabulary, integer=True)
    return Asked(names, int(top_k))


def _reference_if_asked(function: str, argument: str, value: Any, asked: Asked) -> None:
    names = ", ".join(OF_A_REFERENCE)
    wanted = asked.any(*OF_A_REFERENCE)
    if wanted and value is None:
        _checks.fail(function, argument, "missing", f"an array for {names}")
    if not wanted and value is not None:
        _checks.fail(function, argument, "given", f"None unless one of {names} is asked for")


def _squash(function: str, temperature: Any, logit_cap: Any, dtype: jnp.dtype) -> chunks.Squash:
    for name, value in (("temperature", temperature), ("logit_cap", logit_cap)):
        if value is not None or name == "temperature":
            _checks.number(function, name, value, low=0, open_low=True, open_high=True)
            if jnp.ndim(value):
                _checks.fail(function, name, f"of shape {jnp.shape(value)}", "a number or a scalar")
    held = jax.lax.stop_gradient
    return chunks.Squash(
        held(jnp.asarray(temperature, dtype)), None if logit_cap is None else held(jnp.asarray(logit_cap, dtype))
    )


def _kept(mask: Mask | None, shape: tuple[int, ...]) -> Array | None:
    return None if mask is None else jnp.broadcast_to(jnp.asarray(mask) != 0, shape)


def _hide(array: Array, keep: Array | None) -> Array:
    """Zeros in the rows that are masked: what stands there is not read."""
    return array if keep is None else jnp.where(keep[..., None], array, 0)


def _known(targets: Array, keep: Array | None, vocabulary: int) -> tuple[Array, Array]:
    """Which targets are tokens that count, and the ids; -1 for the others."""
    known = (targets >= 0) & (targets < vocabulary)
    known = known if keep is None else known & keep
    return known, jnp.where(known, targets, -1).astype(jnp.int32)


def _presented(found: TokenStatistics, keep: Array | None, known: Array) -> TokenStatistics:
    """0 in the rows that are masked, and for a target that is no token; no token is among the top of a masked row."""
    if found.log_probs is not None:
        found = found._replace(log_probs=jnp.where(known, found.log_probs, 0))
    if keep is None:
        return found

    def masked(name: str, value: Array) -> Array:
        rows = jnp.reshape(keep, keep.shape + (1,) * (value.ndim - keep.ndim))
        return jnp.where(rows, value, -1 if name == "top_ids" else 0)

    values = {name: masked(name, value) for name, value in found._asdict().items() if value is not None}
    return found._replace(**values)


def _rows_placed(asked: Asked) -> Callable[[PartitionSpec], TokenStatistics]:
    """The sharding of the statistics, from that of the rows."""

    def placed(rows: PartitionSpec) -> Any:
        specs = {
            name: PartitionSpec(*rows, None) if name in ("top_ids", "top_log_probs") else rows
            for name in asked.statistics
        }
        return TokenStatistics(**specs)  # type: ignore[arg-type]

    return placed


def token_statistics(
    hidden: Float[Array, "*tokens features"],
    kernel: Float[Array, "features vocabulary"] | Float[Array, "vocabulary features"],
    targets: Int[Array, "*tokens"],
    *,
    statistics: Sequence[Statistic] = ("log_probs",),
    mask: Mask | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    logit_cap: float | Float[Array, ""] | None = None,
    top_k: int | None = None,
    reference_hidden: Float[Array, "*tokens other_features"] | None = None,
    reference_kernel: Float[Array, "..."] | None = None,
    kernel_layout: Layout = "DV",
    reference_kernel_layout: Layout | None = None,
    vocab_chunk: int | None = None,
    vocab_shards: int | None = None,
) -> TokenStatistics:
    r"""Statistics of each token's distribution, from hidden states and the output kernel and without logits.

    With logits :math:`z = h W`, `cap` and `temperature` applied, the model's :math:`p = \mathrm{softmax}(z)` and
    the reference's :math:`q`, each of these is one number a token:

    | statistic | value | gradient |
    |---|---|---|
    | log_probs | :math:`\log p_y` of the target :math:`y` | yes |
    | entropy | :math:`-\sum_v p_v \log p_v`, in nats | yes |
    | logsumexp | :math:`\log \sum_v e^{z_v}` | yes |
    | sum_squares | :math:`\sum_v p_v^2` | yes |
    | top_ids | the `top_k` most probable tokens `[..., k]`, of equals the smaller id first | no |
    | top_log_probs | their :math:`\log p` `[..., k]` | with the ids held |
    | top_mass | the sum of their :math:`p` | with the ids held |
    | forward_kl | :math:`\mathrm{KL}(q \Vert p) = \sum_v q_v \log (q_v / p_v)` | to the model |
    | reverse_kl | :math:`\mathrm{KL}(p \Vert q) = \sum_v p_v \log (p_v / q_v)` | to the model |
    | jensen_shannon | half the KL of :math:`p` and of :math:`q` from their mean, at most log 2 | to the model |

    All that is asked for comes from one sweep over the vocabulary, a chunk of columns at a time, and so does the
    gradient, which computes the logits of each chunk again (a problem of a single chunk keeps them). Neither logits nor
    a copy of the kernel in another dtype are ever whole in memory: a call holds `tokens x chunk` logits, and a
    gradient the hidden states once in float32. `jensen_shannon` needs the normalisers first: one more sweep forward.

    **Sharded arrays.** Under `jax.jit` with the batch sharded over some mesh axes and the vocabulary over others, the
    kernel stays where it is, and what is exchanged are numbers a row and the gradients' sums. This needs no argument:
    by default a chunk takes columns of as many pieces of the vocabulary as there could be shards. Say `vocab_shards`,
    the number of devices that share the vocabulary (1 if each has the whole kernel), and chunks are of fewer, wider
    pieces, and the gradient to the hidden states is summed over those devices once and not at every chunk. No value
    depends on it. Inside `shard_map` a kernel is whole: there the vocabulary must not be cut.

    Args:
      hidden: `[..., D]`, float32, bfloat16 or any float.
      kernel: `[D, V]`, or `[V, D]` with `kernel_layout="VD"`, as tied embeddings are. It is never transposed.
      targets: integer token ids `[...]`.
      statistics: names from the table.
      mask: boolean or 0/1, broadcast to `[...]`. What stands in the other rows is never read.
      temperature: in (0, inf); divides the logits. A constant to the gradient, like `logit_cap`.
      logit_cap: in (0, inf); bounds the logits by :math:`c \tanh(z / c)`, before the temperature. Default: none.
      top_k: tokens among the top, in [1, V]; for the statistics of the top, and needed there. Meant to be small.
      reference_hidden: `[..., D']` of the second model, for the divergences, and needed there. No gradient flows to
        the reference: for one, exchange the two models, which turns forward into reverse.
      reference_kernel: its kernel over the same vocabulary. Cap and temperature are those of the model.
      kernel_layout: `"DV"` or `"VD"`.
      reference_kernel_layout: the same of `reference_kernel`. Default: `kernel_layout`.
      vocab_chunk: columns at a time, in [1, inf). Default: as many as make 2^25 logits a device.
      vocab_shards: see above; a divisor of V. Default: found from the mesh in the context (`jax.set_mesh`), or else
        the devices.

    Returns:
      A `TokenStatistics` with None for what was not asked for; float32 or wider, however narrow the inputs. A masked
      row has 0 everywhere, with zero gradient, and -1 for `top_ids`. A target that is no token (-100, or V) has
      `log_probs` 0 with zero gradient; the row's other statistics do not depend on the target.

    Raises:
      ValueError: if shapes or dtypes do not fit, a statistic is unknown, what it needs is missing or given in vain, or
        a hyperparameter is out of range.

    References:
      Chunks of the vocabulary with the logits computed again: Wijmans et al., *Cut Your Losses in Large-Vocabulary
      Language Models*, 2024, arXiv 2411.09009. Sums relative to a running maximum: Milakov and Gimelshein, *Online
      normalizer calculation for softmax*, 2018, arXiv 1805.02867.
    """
    function = "tokens.token_statistics"
    _checks.array(function, "hidden", hidden, kind="float")
    if jnp.ndim(hidden) < 1:
        _checks.fail(function, "hidden", "a scalar", "an array whose last axis is the features")
    shape = jnp.shape(hidden)[:-1]
    _checks.choice(function, "kernel_layout", kernel_layout, get_args(Layout))
    other_layout = kernel_layout if reference_kernel_layout is None else reference_kernel_layout
    _checks.choice(function, "reference_kernel_layout", other_layout, get_args(Layout))
    features = jnp.shape(hidden)[-1]
    kernel_shape = (features, None) if kernel_layout == "DV" else (None, features)
    _checks.array(function, "kernel", kernel, shape=kernel_shape, kind="float")
    vocabulary = jnp.shape(kernel)[1 if kernel_layout == "DV" else 0]
    _checks.array(function, "targets", targets, shape=shape, kind="integer")
    _checks.mask(function, "mask", mask, targets, like_name="targets")
    asked = _asked(function, statistics, top_k, vocabulary)
    for name, array in (("reference_hidden", reference_hidden), ("reference_kernel", reference_kernel)):
        _reference_if_asked(function, name, array, asked)
    if reference_hidden is not None and reference_kernel is not None:
        _checks.array(function, "reference_hidden", reference_hidden, shape=(*shape, None), kind="float")
        others = jnp.shape(reference_hidden)[-1]
        other_shape = (others, vocabulary) if other_layout == "DV" else (vocabulary, others)
        _checks.array(function, "reference_kernel", reference_kernel, shape=other_shape, kind="float")
    for name, value in (("vocab_chunk", vocab_chunk), ("vocab_shards", vocab_shards)):
        if value is not None:
            _checks.number(function, name, value, low=1, integer=True)
    if vocab_shards is not None and vocabulary % vocab_shards:
        _checks.fail(function, "vocab_shards", repr(vocab_shards), f"a divisor of the vocabulary of {vocabulary}")

    pieces = placement.pieces(kernel, 1 if kernel_layout == "DV" else 0, vocab_shards)
    length = vocabulary // pieces.number
    columns = placement.columns(math.prod(shape), length, pieces, vocab_chunk)
    plan = chunks.Plan(asked, kernel_layout, other_layout, pieces.number, pieces.one_each, columns)

    def cut(kernel: Array, layout: Layout) -> Array:
        if pieces.number == 1:
            return kernel
        left, right = kernel.shape
        return kernel.reshape((left, pieces.number, length) if layout == "DV" else (pieces.number, length, right))

    def compute(
        hidden: Array, kernel: Array, targets: Array, mask: Array | None, reference: Any, squash: chunks.Squash
    ) -> TokenStatistics:
        keep = _kept(mask, shape)
        known, ids = _known(targets, keep, vocabulary)
        other_hidden, other_kernel = reference
        if reference_kernel is not None:
            other_hidden, other_kernel = _hide(other_hidden, keep), cut(other_kernel, other_layout)
        operands = chunks.Operands(
            _hide(hidden, keep), cut(kernel, kernel_layout), other_hidden, other_kernel, ids, squash
        )
        return _presented(chunks.chunked(plan, placement.alike(operands)), keep, known)

    squash = _squash(function, temperature, logit_cap, _checks.accumulation_dtype(hidden, kernel))
    reference = jax.lax.stop_gradient((reference_hidden, reference_kernel))
    arrays = jax.tree.map(jnp.asarray, (hidden, kernel, targets, mask, reference, squash))
    return placement.automatic(compute, arrays[0], _rows_placed(asked))(*arrays)


def token_statistics_from_logits(
    logits: Float[Array, "*tokens vocabulary"],
    targets: Int[Array, "*tokens"],
    *,
    statistics: Sequence[Statistic] = ("log_probs",),
    mask: Mask | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    logit_cap: float | Float[Array, ""] | None = None,
    top_k: int | None = None,
    reference_logits: Float[Array, "*tokens vocabulary"] | None = None,
) -> TokenStatistics:
    r"""The statistics of `token_statistics` where the logits are at hand.

    The same names, conventions and numbers, with a gradient of its own that keeps nothing but the logits.

    Args:
      logits: `[..., V]`, any scale. A token that is ruled out may have minus infinity.
      targets: integer token ids `[...]`.
      statistics: names from the table of `token_statistics`.
      mask: boolean or 0/1, broadcast to `[...]`. What stands in the other rows is never read.
      temperature: in (0, inf); divides the logits. A constant to the gradient, like `logit_cap`.
      logit_cap: in (0, inf); bounds the logits by :math:`c \tanh(z / c)`, before the temperature. Default: none.
      top_k: tokens among the top, in [1, V]; for the statistics of the top, and needed there.
      reference_logits: `[..., V]` of the second model, for the divergences, and needed there. No gradient flows to it.

    Returns:
      A `TokenStatistics`, as `token_statistics` gives it.

    Raises:
      ValueError: as `token_statistics` does.
    """
    function = "tokens.token_statistics_from_logits"
    _checks.array(function, "logits", logits, kind="float")
    if jnp.ndim(logits) < 1:
        _checks.fail(function, "logits", "a scalar", "an array whose last axis is the vocabulary")
    *leading, vocabulary = jnp.shape(logits)
    shape = tuple(leading)
    _checks.array(function, "targets", targets, shape=shape, kind="integer")
    _checks.mask(function, "mask", mask, targets, like_name="targets")
    asked = _asked(function, statistics, top_k, vocabulary)
    _reference_if_asked(function, "reference_logits", reference_logits, asked)
    if reference_logits is not None:
        _checks.array(function, "reference_logits", reference_logits, shape=(*shape, vocabulary), kind="float")

    def compute(
        logits: Array, targets: Array, mask: Array | None, reference: Array | None, squash: chunks.Squash
    ) -> TokenStatistics:
        keep = _kept(mask, shape)
        known, ids = _known(targets, keep, vocabulary)
        other = None if reference is None else _hide(reference, keep)
        arguments = placement.alike((_hide(logits, keep), other, ids, squash))
        return _presented(chunks.whole(asked, *arguments), keep, known)

    squash = _squash(function, temperature, logit_cap, _checks.accumulation_dtype(logits))
    reference = jax.lax.stop_gradient(reference_logits)
    arrays = jax.tree.map(jnp.asarray, (logits, targets, mask, reference, squash))
    return placement.automatic(compute, arrays[0], _rows_placed(asked))(*arrays)
