"""A decoder-only transformer: token ids in, hidden states out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num
from numpy.typing import DTypeLike

from reweight import _checks

__all__ = ["DECODERS", "Cache", "Decoder", "DecoderConfig"]

Mask = Bool[Array, "batch length"] | Num[Array, "batch length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    r"""The shape of a decoder. `DECODERS` holds some by name; `dataclasses.replace` changes one.

    Attributes:
      vocab_size: the number of token ids, at least 1.
      d_model: the width of the residual stream.
      num_layers: the number of blocks.
      num_heads: the number of query heads.
      num_kv_heads: the number of key and value heads, a divisor of `num_heads`: each serves as many query heads as go
        into it.
      head_dim: the width of a head; even, as rotary embeddings turn pairs.
      d_ff: the hidden width of the gated feed-forward layer.
      max_length: the longest sequence, with what is sampled; the length of a cache where no other is asked for.
      rope_theta: the base of the wavelengths of the rotary embeddings, in (0, inf).
      norm_eps: what is added to the mean square before its root, in (0, inf).
      qk_norm: whether queries and keys are normalised, each head on its own, before they are rotated.
      tie_embeddings: whether the embedding is the output kernel too.
      logit_cap: `c` makes logits :math:`c \tanh(z / c)`, in (0, inf); None leaves them as they are.
      remat: whether the backward pass computes the inside of each block again instead of keeping it: about a third more
        time, for memory that grows with depth by the residual stream only.
      dtype: the dtype of the computation and of the hidden states; parameters are float32, and norms, rotations and
        softmax are computed in it.

    Raises:
      ValueError: if a value is out of range, or the heads do not divide.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_length: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False
    tie_embeddings: bool = True
    logit_cap: float | None = None
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        function = "models.DecoderConfig"
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_length")
        for name in sizes:
            _checks.number(function, name, getattr(self, name), low=1, integer=True)
        for name in ("rope_theta", "norm_eps", "logit_cap"):
            if name != "logit_cap" or self.logit_cap is not None:
                _checks.number(function, name, getattr(self, name), low=0, open_low=True, open_high=True)
        for name in ("qk_norm", "tie_embeddings", "remat"):
            _checks.choice(function, name, getattr(self, name), (True, False))
        if self.num_heads % self.num_kv_heads:
            _checks.fail(function, "num_kv_heads", repr(self.num_kv_heads), f"a divisor of num_heads={self.num_heads}")
        if self.head_dim % 2:
            _checks.fail(function, "head_dim", repr(self.head_dim), "an even number")
        if not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            _checks.fail(function, "dtype", repr(self.dtype), "a floating dtype")
        # One spelling of each dtype, so that equal configurations are equal and hash alike.
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))


DECODERS: dict[str, DecoderConfig] = {
    "0.2M": DecoderConfig(
        vocab_size=32, d_model=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24, d_ff=256, qk_norm=True
    ),
    "1M": DecoderConfig(
        vocab_size=32, d_model=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=512, qk_norm=True
    ),
    "10M": DecoderConfig(
        vocab_size=1024, d_model=384, num_layers=6, num_heads=6, num_kv_heads=2, head_dim=64, d_ff=1024, qk_norm=True
    ),
    # The shapes of SmolLM-135M, Qwen3-0.6B and Llama-3.2-1B, the last without its rescaled wavelengths.
    "135M": DecoderConfig(
        vocab_size=49_152,
        d_model=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        d_ff=1536,
        max_length=2048,
        norm_eps=1e-5,
        dtype=jnp.bfloat16,
    ),
    "0.6B": DecoderConfig(
        vocab_size=151_936,
        d_model=1024,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        d_ff=3072,
        max_length=8192,
        rope_theta=1e6,
        qk_norm=True,
        remat=True,
        dtype=jnp.bfloat16,
    ),
    "1B": DecoderConfig(
        vocab_size=128_256,
        d_model=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        d_ff=8192,
        max_length=8192,
        rope_theta=5e5,
        norm_eps=1e-5,
        remat=True,
        dtype=jnp.bfloat16,
    ),
}


class Cache(NamedTuple):
    """Keys and values of the tokens so far; every array with axes has the batch as its leading one.

    All rows write to the same slot: padding takes slots too, and the mask keeps it from being read.

    Attributes:
      keys: rotated keys `[batch, layers, slots, kv_heads, head_dim]`.
      values: `[batch, layers, slots, kv_heads, head_dim]`.
      mask: which slots hold a real token `[batch, slots]`.
      length: the number of real tokens so far, which is the position of the next `[batch]`.
      next_slot: the slot that is written next, a scalar.
    """

    keys: Float[Array, "batch layers slots kv_heads head_dim"]
    values: Float[Array, "batch layers slots kv_heads head_dim"]
    mask: Bool[Array, "batch slots"]
    length: Int[Array, " batch"]
    next_slot: Int[Array, ""]


def init_cache(config: DecoderConfig, batch_size: int, length: int | None = None) -> Cache:
    """An empty cache with `length` slots, `config.max_length` if None."""
    function = "LanguageModel.init_cache"
    slots = config.max_length if length is None else length
    _checks.number(function, "batch_size", batch_size, low=0, integer=True)
    _checks.number(function, "length", slots, low=1, high=config.max_length, integer=True)
    shape = (batch_size, config.num_layers, slots, config.num_kv_heads, config.head_dim)
    return Cache(
        keys=jnp.zeros(shape, jnp.dtype(config.dtype)),
        values=jnp.zeros(shape, jnp.dtype(config.dtype)),
        mask=jnp.zeros((batch_size, slots), bool),
        length=jnp.zeros(batch_size, jnp.int32),
        next_slot=jnp.zeros((), jnp.int32),
    )


def _write(buffer: Array, update: Array, layer: Array, index: Array) -> Array:
    """`buffer [batch, layers, slots, ...]` with `update [batch, slots, ...]` from slot `index` on in one layer."""
    zero = jnp.int32(0)
    start = (zero, layer, index, *(zero,) * (buffer.ndim - 3))
    return jax.lax.dynamic_update_slice(buffer, update[:, None].astype(buffer.dtype), start)


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which queries and keys are turned, `[batch, length, head_dim / 2]`."""

    cos: Float[Array, "batch length half"]
    sin: Float[Array, "batch length half"]


def _rotation(positions: Int[Array, "batch length"], config: DecoderConfig) -> Rotation:
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def _rotate(
    heads: Float[Array, "batch length heads head_dim"], rotation: Rotation
) -> Float[Array, "batch length heads head_dim"]:
    """Turns dimension i of each head with dimension i + head_dim / 2."""
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(heads.dtype)


def _norm(features: int, config: DecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(features, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs)


def _linear(
    inputs: int | tuple[int, ...],
    outputs: int | tuple[int, ...],
    config: DecoderConfig,
    rngs: nnx.Rngs,
    *,
    variance: float = 1.0,
) -> nnx.LinearGeneral:
    """A linear layer without bias, over as many of the last axes as there are inputs."""
    axes = range(-(1 if isinstance(inputs, int) else len(inputs)), 0)
    return nnx.LinearGeneral(
        inputs,
        outputs,
        axis=tuple(axes),
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(variance, "fan_in", "truncated_normal"),
        dtype=config.dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Causal self-attention with rotary embeddings; several query heads share a head of keys and values."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        heads, kv_heads = (config.num_heads, config.head_dim), (config.num_kv_heads, config.head_dim)
        self.query = _linear(config.d_model, heads, config, rngs)
        self.key = _linear(config.d_model, kv_heads, config, rngs)
        self.value = _linear(config.d_model, kv_heads, config, rngs)
        self.out = _linear(heads, config.d_model, config, rngs, variance=0.5 / config.num_layers)
        self.dtype = jnp.dtype(config.dtype)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.query_norm = _norm(config.head_dim, config, rngs)
            self.key_norm = _norm(config.head_dim, config, rngs)

    def __call__(
        self,
        inputs: Float[Array, "batch length d_model"],
        rotation: Rotation,
        allowed: Bool[Array, "batch length slots"],
        layer: Int[Array, ""],
        cache: Cache | None,
    ) -> tuple[Float[Array, "batch length d_model"], Cache | None]:
        """What each token reads from those that it is allowed to, and the cache with this layer's part written."""
        query, key, value = self.query(inputs), self.key(inputs), self.value(inputs)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = _rotate(query, rotation).astype(self.dtype), _rotate(key, rotation).astype(self.dtype)
        if cache is not None:
            cache = cache._replace(
                keys=_write(cache.keys, key, layer, cache.next_slot),
                values=_write(cache.values, value, layer, cache.next_slot),
            )
            key, value = (jax.lax.dynamic_index_in_dim(x, layer, 1, keepdims=False) for x in (cache.keys, cache.values))
        read = jax.nn.dot_product_attention(query, key, value, mask=allowed[:, None])
        return self.out(read), cache


class FeedForward(nnx.Module):
    r"""A gated layer: :math:`W_{down}(\mathrm{silu}(W_{gate} x) \cdot W_{up} x)`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.gate = _linear(config.d_model, config.d_ff, config, rngs)
        self.up = _linear(config.d_model, config.d_ff, config, rngs)
        self.down = _linear(config.d_ff, config.d_model, config, rngs, variance=0.5 / config.num_layers)

    def __call__(self, inputs: Float[Array, "batch length d_model"]) -> Float[Array, "batch length d_model"]:
        """The layer's output, to be added to the residual stream."""
        return self.down(jax.nn.silu(self.gate(inputs)) * self.up(inputs))


class Block(nnx.Module):
    """Attention and a feed-forward layer, each of the normalised residual stream and added to it."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = _norm(config.d_model, config, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = _norm(config.d_model, config, rngs)
        self.mlp = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        inputs: Float[Array, "batch length d_model"],
        rotation: Rotation,
        allowed: Bool[Array, "batch length slots"],
        layer: Int[Array, ""],
        cache: Cache | None,
    ) -> tuple[Float[Array, "batch length d_model"], Cache | None]:
        """The residual stream after the block, and the cache."""
        read, cache = self.attention(self.attention_norm(inputs), rotation, allowed, layer, cache)
        x = inputs + read
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    """A decoder-only transformer: pre-norm blocks of rotary, grouped-query attention and gated feed-forward layers.

    The blocks are one module whose parameters have the layer as leading axis, run by a scan: a deep model compiles as
    fast as a shallow one. Initial kernels have variance 1 / fan-in, those that add to the residual stream
    :math:`1 / (2 L)` of it, and the embedding 1 / `d_model`. Rotary embeddings turn dimension i of a head with
    dimension i + `head_dim` / 2, as the checkpoints of Llama and Qwen in Hugging Face's format do.

    Args:
      config: the shape.
      rngs: draws the initial parameters.

    References:
      Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, 2023, arXiv 2302.13971. Su et al.,
      *RoFormer*, 2021, arXiv 2104.09864. Ainslie et al., *GQA*, 2023, arXiv 2305.13245. Zhang, Sennrich, *Root Mean
      Square Layer Normalization*, 2019, arXiv 1910.07467. Shazeer, *GLU Variants Improve Transformer*, 2020, arXiv
      2002.05202. Henry et al., *Query-Key Normalization for Transformers*, 2020, arXiv 2010.04245.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = nnx.Embed(config.vocab_size, config.d_model, dtype=config.dtype, rngs=rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.layers = stack(rngs)
        self.norm = _norm(config.d_model, config, rngs)
        if not config.tie_embeddings:
            self.head = _linear(config.d_model, config.vocab_size, config, rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "batch length"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "batch length d_model"], Cache | None]:
        """Hidden states after the last norm, and the cache; see `LanguageModel.apply`."""
        function, config = "models.Decoder", self.config
        _checks.array(function, "tokens", tokens, ndim=2, kind="integer")
        shape = jnp.shape(tokens)
        for name, value in (("mask", mask), ("positions", positions)):
            if value is not None:
                _checks.array(function, name, value, shape=shape)
        real = _checks.kept(mask, shape)
        counted = jnp.cumsum(real, axis=1, dtype=jnp.int32)
        if cache is None:
            _length(function, shape[1], config.max_length, "max_length")
            past = jnp.int32(0)
            allowed = jnp.tril(jnp.ones((shape[1], shape[1]), bool)) & real[:, None, :]
        else:
            slots = cache.mask.shape[1]
            _length(function, shape[1], slots, "the slots of the cache")
            if cache.mask.shape[0] != shape[0]:
                _checks.fail(function, "cache", f"one of {cache.mask.shape[0]} rows", f"the {shape[0]} rows of tokens")
            past = cache.length[:, None]
            cache = cache._replace(
                mask=jax.lax.dynamic_update_slice_in_dim(cache.mask, real, cache.next_slot, axis=1),
                length=cache.length + counted[:, -1],
            )
            own = cache.next_slot + jnp.arange(shape[1], dtype=jnp.int32)
            allowed = (jnp.arange(slots, dtype=jnp.int32) <= own[:, None]) & cache.mask[:, None, :]
        if positions is None:
            positions = jnp.maximum(past + counted - 1, 0)
        x = self.embed(jnp.where(real, tokens, 0))
        x, cache = self._run_layers(x, _rotation(positions, config), allowed, cache)
        if cache is not None:
            cache = cache._replace(next_slot=cache.next_slot + shape[1])
        # Zeros where there is no token, so that nothing can be learnt there.
        return jnp.where(real[..., None], self.norm(x), 0).astype(jnp.dtype(config.dtype)), cache

    def _run_layers(self, x: Array, rotation: Rotation, allowed: Array, cache: Cache | None) -> tuple[Array, Any]:
        graphdef, layers = nnx.split(self.layers)

        # The cache is carried, not scanned over, so that one token is written in place and the rest isn't copied.
        def body(carry: tuple[Array, Any], layer: tuple[Any, Array]) -> tuple[tuple[Array, Any], None]:
            parameters, i = layer
            return nnx.merge(graphdef, parameters)(carry[0], rotation, allowed, i, carry[1]), None

        if self.config.remat:
            # A scan keeps its iterations apart, which is what the costly prevention of merging is for.
            body = jax.checkpoint(body, prevent_cse=False)
        indices = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        return jax.lax.scan(body, (x, cache), (layers, indices))[0]


def _length(function: str, length: int, limit: int, name: str) -> None:
    if not 1 <= length <= limit:
        _checks.fail(function, "tokens", f"of length {length}", f"lengths in [1, {limit}], {name}")
