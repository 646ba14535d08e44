r"""Convex mixtures of examples with others of the batch.

Partners come from the whole batch. Under `jax.jit` with sharded arrays that is the global one; on the shards of
`shard_map` and `pmap`, `parallel.over_axis(partial(mixup, key), axis)` with one key for all shards mixes as one device
does. A step that accumulates gradients sees a microbatch at a time: mix the batch in front of it, with a key of the
step, and the targets become those of a cross-entropy:

    inputs, targets = mixup(jax.random.fold_in(key, state.step), batch["inputs"], jax.nn.one_hot(batch["labels"], C))
    state, metrics = step(state, {"inputs": inputs, "targets": targets})

What else belongs to the examples, such as targets out of a memory, is mixed alike by `draw_mixture` and `mix`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks

__all__ = ["Mixture", "d_mixup", "draw_mixture", "mix", "mixup"]

Mask = Bool[Array, " batch"] | Num[Array, " batch"]
Rows = Float[Array, "batch *features"]


class Mixture(NamedTuple):
    """Of each example, the rows of the batch that it becomes a mixture of, and their weights.

    Attributes:
      partners: row numbers `[B, d]`, the example's own first; a number outside the batch stands for a row of zeros.
      weights: those of the rows `[B, d]`.
    """

    partners: Int[Array, "batch d"]
    weights: Float[Array, "batch d"]


def mix(values: Rows, mixture: Mixture) -> Rows:
    r"""Mixtures of rows: :math:`\sum_j w_{ij} v_{p_{ij}}` for example :math:`i` with partners :math:`p_{ij}`.

    Args:
      values: a row an example `[B, ...]`.
      mixture: partners and weights.

    Returns:
      Mixtures of the shape and dtype of `values`, summed in float32 or wider. The gradient flows to values and weights.

    Raises:
      ValueError: if values are not floats, or partners and weights do not have a row an example.
    """
    return _mix("regularizers.mixup.mix", "values", values, mixture)


def _mix(function: str, name: str, values: Any, mixture: Mixture) -> Array:
    _checks.array(function, name, values, kind="float")
    if jnp.ndim(values) < 1:
        _checks.fail(function, name, "a scalar", "an array whose first axis is the batch")
    rows = jnp.shape(values)[0]
    _checks.array(function, "mixture.partners", mixture.partners, shape=(rows, None), kind="integer")
    _checks.array(function, "mixture.weights", mixture.weights, shape=jnp.shape(mixture.partners), kind="float")
    dtype = _checks.accumulation_dtype(values, mixture.weights)
    values = jnp.asarray(values)
    total = jnp.zeros(values.shape, dtype)
    for partner, weight in zip(mixture.partners.T, jnp.asarray(mixture.weights).astype(dtype).T, strict=True):
        taken = jnp.take(values, partner, axis=0, mode="fill", fill_value=0)
        total += weight.reshape(-1, *(1,) * (values.ndim - 1)) * taken.astype(dtype)
    return total.astype(values.dtype)


def draw_mixture(
    key: PRNGKeyArray,
    size: int,
    *,
    d: int = 2,
    alpha: float = 1.0,
    per_example: bool = False,
    largest_first: bool = False,
    mask: Mask | None = None,
) -> Mixture:
    r"""A `Mixture` of d rows of the batch: :math:`w \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha)` and permutations.

    Args:
      key: of the step, the same on every shard.
      size: B, the examples of the whole batch.
      d: how many rows make one, at least 1; 1 leaves all as they are.
      alpha: of the Dirichlet distribution, in (0, inf). With two rows the first weight has the distribution
        :math:`\mathrm{Beta}(\alpha, \alpha)`: uniform for 1, nearly 0 or 1 for small ones.
      per_example: draw weights for each example, not once for the batch.
      largest_first: give each example the largest of its weights, so that it stays nearer to itself than to any other.
      mask: boolean or 0/1 `[B]`. Masked rows are nobody's partners and have none, so that they become zeros; the
        others are mixed as if the masked ones were not there. Default: all.

    Returns:
      Partners and float32 weights. A permutation may leave a row in its place.

    Raises:
      ValueError: if a hyperparameter is out of range, or the mask does not fit.

    References:
      See `d_mixup`.
    """
    return _draw("regularizers.mixup.draw_mixture", key, size, d, alpha, per_example, largest_first, mask)


def _draw(
    function: str,
    key: PRNGKeyArray,
    size: int,
    d: int,
    alpha: float,
    per_example: bool,
    largest_first: bool,
    mask: Mask | None,
) -> Mixture:
    _checks.number(function, "size", size, low=0, integer=True)
    _checks.number(function, "d", d, low=1, open_high=True, integer=True)
    _checks.number(function, "alpha", alpha, low=0, open_low=True, open_high=True)
    if mask is not None:
        _checks.array(function, "mask", mask, shape=(size,))
    kept = _checks.kept(mask, size)
    # A kept row goes by its rank among the kept ones, in what is drawn for it and in the permutation.
    rank = jnp.cumsum(kept) - 1
    row_of_rank = jnp.argsort(~kept, stable=True)
    weights_key, *keys = jax.random.split(key, d)
    partners = [jnp.arange(size)]
    for one in keys:
        draws = jax.random.bits(one, (size,), jnp.uint32)
        permuted = jnp.lexsort((draws, jnp.arange(size) > rank[-1:]))
        partners.append(row_of_rank[permuted[rank]])
    # Always drawn in float32, so that the precision of the run does not change what is mixed.
    concentration = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), (d,))
    weights = jax.random.dirichlet(weights_key, concentration, (size if per_example else 1,), jnp.float32)
    if largest_first:
        weights = -jnp.sort(-weights, axis=1)
    weights = weights[rank] if per_example else jnp.broadcast_to(weights, (size, d))
    return Mixture(jnp.where(kept[:, None], jnp.stack(partners, axis=1), size), weights)


def d_mixup(
    key: PRNGKeyArray,
    x: Rows,
    targets: Float[Array, "batch *classes"],
    *,
    d: int = 2,
    alpha: float = 1.0,
    per_example: bool = False,
    largest_first: bool = False,
    mask: Mask | None = None,
) -> tuple[Rows, Float[Array, "batch *classes"]]:
    r"""Examples and targets mixed with d - 1 others alike: :math:`\sum_j w_j x_{p_j}` and :math:`\sum_j w_j t_{p_j}`.

    Training on these by `losses.classification.cross_entropy` is the weighted sum of the cross-entropies against the
    targets of the d rows.

    Args:
      key: of the step, the same on every shard.
      x: inputs `[B, ...]`.
      targets: probabilities of the classes `[B, C]`, or any other targets that may be mixed `[B, ...]`.
      d: as for `draw_mixture`.
      alpha: as for `draw_mixture`.
      per_example: as for `draw_mixture`.
      largest_first: as for `draw_mixture`.
      mask: boolean or 0/1 `[B]`; masked rows become zeros and are never read. Default: all.

    Returns:
      Mixed inputs and targets, of the shapes and dtypes of those given. The gradient flows to both.

    Raises:
      ValueError: if the shapes do not fit, inputs or targets are not floats, or a hyperparameter is out of range.

    References:
      Chidambaram and Ge, *On the Limitations of Temperature Scaling for Distributions with Overlaps*, 2023, arXiv
      2306.00740.
    """
    return _mixed("regularizers.mixup.d_mixup", key, x, targets, d, alpha, per_example, largest_first, mask)


def _mixed(
    function: str,
    key: PRNGKeyArray,
    x: Rows,
    targets: Array,
    d: int,
    alpha: float,
    per_example: bool,
    largest_first: bool,
    mask: Mask | None,
) -> tuple[Array, Array]:
    _checks.array(function, "x", x, kind="float")
    if jnp.ndim(x) < 1:
        _checks.fail(function, "x", "a scalar", "an array whose first axis is the batch")
    _checks.array(function, "targets", targets, shape=(jnp.shape(x)[0], *jnp.shape(targets)[1:]), kind="float")
    mixture = _draw(function, key, jnp.shape(x)[0], d, alpha, per_example, largest_first, mask)
    return _mix(function, "x", x, mixture), _mix(function, "targets", targets, mixture)


def mixup(
    key: PRNGKeyArray,
    x: Rows,
    targets: Float[Array, "batch *classes"],
    *,
    alpha: float = 1.0,
    per_example: bool = False,
    largest_first: bool = False,
    mask: Mask | None = None,
) -> tuple[Rows, Float[Array, "batch *classes"]]:
    r"""Examples and targets mixed in pairs: :math:`\lambda x + (1 - \lambda) x_p`, and targets alike.

    This is `d_mixup` of two: :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`, one for the batch, and a permutation
    :math:`p` of it.

    Args:
      key: of the step, the same on every shard.
      x: inputs `[B, ...]`.
      targets: probabilities of the classes `[B, C]`, or any other targets that may be mixed `[B, ...]`.
      alpha: as for `draw_mixture`.
      per_example: as for `draw_mixture`.
      largest_first: as for `draw_mixture`: :math:`\max(\lambda, 1 - \lambda)` in place of :math:`\lambda`.
      mask: boolean or 0/1 `[B]`; masked rows become zeros and are never read. Default: all.

    Returns:
      Mixed inputs and targets, of the shapes and dtypes of those given. The gradient flows to both.

    Raises:
      ValueError: if the shapes do not fit, inputs or targets are not floats, or a hyperparameter is out of range.

    References:
      Zhang et al., *mixup: Beyond Empirical Risk Minimization*, 2017, arXiv 1710.09412.
    """
    return _mixed("regularizers.mixup.mixup", key, x, targets, 2, alpha, per_example, largest_first, mask)
