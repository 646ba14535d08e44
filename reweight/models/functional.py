"""The functional form of a flax module: plain parameters, and a pure function of them."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray

from reweight import _checks

__all__ = ["ApplyFn", "Functional", "functional"]

Tree = dict[str, Any]  # nested dicts of arrays with string keys


class ApplyFn(Protocol):
    """Logits, and the next state of what is not trained; a pure function."""

    def __call__(
        self,
        params: Tree,
        extra: Tree,
        inputs: Num[Array, "batch ..."],
        *,
        train: bool = False,
        key: PRNGKeyArray | None = None,
        mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch classes"], Tree]:
        """`(logits, extra)`; see `functional`."""
        ...


class Functional(NamedTuple):
    """A model as data and a function.

    Attributes:
      params: what is trained: nested dicts of float32 arrays, with paths like `layers/0/kernel`.
      extra: what is not: the running statistics of batch normalisation; empty without it.
      apply: `apply(params, extra, inputs, *, train=False, key=None, mask=None) -> (logits, extra)`.
    """

    params: Tree
    extra: Tree
    apply: ApplyFn


def _with_string_keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _with_string_keys(value) for key, value in tree.items()}
    return tree


def plain(state: nnx.State) -> Tree:
    """A module's state as nested dicts of arrays with string keys."""
    return _with_string_keys(nnx.to_pure_dict(state))


def functional(model: nnx.Module) -> Functional:
    """Splits a model into parameters, the rest of its state, and a pure function of both.

    The module is taken apart once; `apply` puts it together while it is traced, which costs nothing in the compiled
    program. Everything in `params` and `extra` is an array in nested dicts with string keys: ready for optax, for a
    checkpoint, for sharding rules on paths. Initial parameters for many seeds come from `jax.vmap`:

        def init(key):
            params, extra, _ = models.functional(models.build("mlp", (64,), 10, key=key))
            return params, extra

        params, extra = jax.vmap(init)(jax.random.split(key, 5))

    In training, `apply` normalises by the statistics of the batch and returns the moved running statistics; otherwise
    it normalises by the running statistics and returns `extra` unchanged. Under `jax.jit` with inputs sharded over a
    mesh the batch is the global batch, and so are its statistics. Where gradients are accumulated over microbatches
    each microbatch is normalised by its own.

    Args:
      model: called as `model(inputs, train=..., rngs=..., mask=...)`.

    Returns:
      `(params, extra, apply)`. Of `apply`'s arguments, `key` draws the dropout and is needed in training by models that
      have it; `mask` (boolean or 0/1, `[B]`) leaves padded examples out of batch statistics. A batch that is masked
      altogether leaves `extra` as it was.
    """
    graphdef, state = nnx.split(model)
    params_state, extra_state = nnx.split_state(state, nnx.Param, ...)

    def apply(
        params: Tree,
        extra: Tree,
        inputs: Num[Array, "batch ..."],
        *,
        train: bool = False,
        key: PRNGKeyArray | None = None,
        mask: Bool[Array, " batch"] | Num[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch classes"], Tree]:
        rngs = None if key is None else nnx.Rngs(key)
        kept, some = None, None
        if mask is not None:
            _checks.array("models.functional", "mask", mask, shape=(jnp.shape(inputs)[0],))
            kept = jnp.asarray(mask) != 0
            some = jnp.any(kept)
            # Statistics of no example would be NaN: of a batch masked altogether they are taken, and not kept.
            kept = kept | ~some
        merged = nnx.merge(graphdef, nnx.restore_int_paths(params), nnx.restore_int_paths(extra))
        logits = merged(inputs, train=train, rngs=rngs, mask=kept)
        if not train:
            return logits, extra
        moved = plain(nnx.state(merged, nnx.Not(nnx.Param)))
        if some is not None:
            moved = jax.tree.map(lambda new, old: jnp.where(some, new, old), moved, extra)
        return logits, moved

    return Functional(plain(params_state), plain(extra_state), apply)
