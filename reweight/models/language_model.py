"""The functional form of a decoder: plain parameters, and pure functions of them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reweight import _checks, tokens
from reweight.models import decoder
from reweight.models.decoder import Cache, Decoder, DecoderConfig, Mask
from reweight.models.functional import Tree, plain

__all__ = ["KernelLayout", "LanguageModel", "decoder_sharding_rules", "language_model"]

KernelLayout = Literal["VD", "DV"]


@functools.lru_cache(maxsize=64)
def _graphdef(config: DecoderConfig) -> nnx.GraphDef:
    return nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config"])
@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Parameters, and pure functions of parameters of this shape: `params` itself is read by none of them.

    It is a pytree with `params` as its only child, so that it comes back from `jax.vmap`, `jax.jit` and
    `jax.eval_shape`.

    Attributes:
      params: nested dicts of float32 arrays, with paths like `layers/attention/query/kernel`; parameters below `layers`
        have the layer as leading axis.
      config: the shape of the model.
    """

    params: Tree
    config: DecoderConfig

    def apply(
        self,
        params: Tree,
        tokens: Int[Array, "batch length"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "batch length"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "batch length d_model"], Cache | None]:
        """Hidden states: what the output kernel makes logits of.

        A token sees itself and the real tokens before it in its row, with a cache also those that the cache holds.

        Args:
          params: parameters of this shape.
          tokens: token ids `[B, T]` in [0, vocab_size). Those of padding are never read.
          mask: boolean or 0/1 `[B, T]`, 0 for padding, which can be anywhere in a row. Default: all tokens are real.
          positions: the positions that the rotary embeddings encode `[B, T]`; only their differences matter. Default:
            the number of real tokens before each, in the cache and in the row.
          cache: the tokens before these: from `init_cache`, or from the last call.

        Returns:
          The hidden states `[B, T, d_model]` after the last norm, in `config.dtype`, 0 for padding, and the cache with
          these tokens added, or None without one.

        Raises:
          ValueError: if shapes do not fit, or `T` exceeds `max_length` or the slots of the cache. Whether the slots
            that are left suffice cannot be seen at trace time: it is the caller who counts them.
        """
        model = nnx.merge(_graphdef(self.config), nnx.restore_int_paths(params))
        return model(tokens, mask=mask, positions=positions, cache=cache)

    def kernel(self, params: Tree) -> tuple[Float[Array, "rows columns"], KernelLayout]:
        """The output kernel and its layout, for `tokens.token_statistics`: `"VD"` if it is the embedding, or `"DV"`."""
        if self.config.tie_embeddings:
            return params["embed"]["embedding"], "VD"
        return params["head"]["kernel"], "DV"

    def logits(self, params: Tree, hidden: Float[Array, "*batch d_model"]) -> Float[Array, "*batch vocabulary"]:
        """Logits of hidden states, float32, capped by `config.logit_cap`.

        Training a large vocabulary does not want them: `tokens.token_statistics` needs the hidden states only.

        Args:
          params: parameters of this shape.
          hidden: hidden states `[..., d_model]`.

        Returns:
          `[..., vocab_size]`.
        """
        _checks.array("LanguageModel.logits", "hidden", hidden, kind="float")
        kernel, layout = self.kernel(params)
        dtype = _checks.accumulation_dtype(hidden)
        product = "...d,vd->...v" if layout == "VD" else "...d,dv->...v"
        logits = jnp.einsum(product, hidden, kernel.astype(hidden.dtype), preferred_element_type=dtype)
        cap = self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def token_statistics(
        self,
        params: Tree,
        hidden: Float[Array, "*batch d_model"],
        targets: Int[Array, "*batch"],
        *,
        statistics: Sequence[tokens.Statistic] = ("log_probs",),
        **options: Any,
    ) -> tokens.TokenStatistics:
        """`tokens.token_statistics` with this model's kernel, its layout and its soft-cap.

            hidden, _ = model.apply(params, batch.tokens[:, :-1], mask=batch.mask[:, :-1])
            log_probs = model.token_statistics(params, hidden, batch.tokens[:, 1:]).log_probs

        Args:
          params: parameters of this shape.
          hidden: hidden states `[..., d_model]`.
          targets: token ids `[...]`: of each hidden state the token that follows.
          statistics: what is wanted, see `tokens.token_statistics`.
          **options: the other options of it: `mask`, `temperature`, `top_k`, `reference_hidden` and so on.

        Returns:
          The statistics that were asked for, `[...]`.

        Raises:
          ValueError: as `tokens.token_statistics` does.
        """
        kernel, layout = self.kernel(params)
        return tokens.token_statistics(
            hidden,
            kernel,
            targets,
            statistics=statistics,
            kernel_layout=layout,
            logit_cap=self.config.logit_cap,
            **options,
        )

    def init_cache(self, batch_size: int, length: int | None = None) -> Cache:
        """An empty cache.

        Args:
          batch_size: the number of rows.
          length: the number of tokens for which it has room, padding included, in [1, max_length]; default
            `max_length`.

        Returns:
          The cache, for `apply`.

        Raises:
          ValueError: if a size is out of range.
        """
        return decoder.init_cache(self.config, batch_size, length)


def language_model(config: DecoderConfig, *, key: PRNGKeyArray) -> LanguageModel:
    """A decoder in functional form, with its initial parameters.

        model = models.language_model(models.DECODERS["0.2M"], key=jax.random.key(0))
        hidden, _ = model.apply(model.params, ids[:, :-1])
        log_probs = model.token_statistics(model.params, hidden, ids[:, 1:]).log_probs

    Initial parameters for many seeds are `jax.vmap(lambda key: models.language_model(config, key=key))(keys).params`.
    Large ones are made where they belong:

        init = functools.partial(models.language_model, config)
        shapes = jax.eval_shape(lambda key: init(key=key), key)
        shardings = parallel.tree_shardings(shapes, models.decoder_sharding_rules(), mesh)
        model = jax.jit(lambda key: init(key=key), out_shardings=shardings)(key)

    Args:
      config: the shape, such as `models.DECODERS["0.2M"]`.
      key: draws the initial parameters; may be traced.

    Returns:
      The parameters and the functions `apply`, `token_statistics`, `kernel`, `logits` and `init_cache`.

    Raises:
      ValueError: if `config` is no `DecoderConfig`.
    """
    if not isinstance(config, DecoderConfig):
        _checks.fail("models.language_model", "config", repr(config), "a DecoderConfig, such as DECODERS['0.2M']")
    return LanguageModel(plain(nnx.state(Decoder(config, rngs=nnx.Rngs(key)))), config)


def decoder_sharding_rules(*, model: str | None = "model", data: str | None = None) -> list[tuple[str, PartitionSpec]]:
    """Rules for `parallel.tree_shardings` that cut a decoder's parameters, and what an optimizer keeps of them.

    Heads, the feed-forward width and the vocabulary are cut over the axis `model`; norm scales are replicated. Where
    there are fewer heads of keys than devices along it, `indivisible="replicate"` leaves these whole.

    Args:
      model: the mesh axis for these. None does not cut them.
      data: the mesh axis that cuts the batch, to cut `d_model` over it too: each device then holds its share of all
        parameters and gathers a layer when it needs it. None does not.

    Returns:
      Pairs of a regular expression on the parameter's path and its `PartitionSpec`.

    Raises:
      ValueError: if both axes are the same.
    """
    if model is not None and model == data:
        _checks.fail(
            "models.decoder_sharding_rules", "data", repr(data), f"an axis that is not model={model!r}, or None"
        )
    P = PartitionSpec
    return [
        (r"embed/embedding", P(model, data)),
        (r"attention/(query|key|value)/kernel", P(None, data, model)),
        (r"attention/out/kernel", P(None, model, None, data)),
        (r"mlp/(gate|up)/kernel", P(None, data, model)),
        (r"mlp/down/kernel", P(None, model, data)),
        (r"head/kernel", P(data, model)),
    ]
