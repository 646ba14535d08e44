"""Groups as integer ids: means over them, weights looked up by them, and Group DRO."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from reweight import _checks
from reweight._segments import segment_means
from reweight.weights import base

__all__ = ["GroupDROState", "GroupMeans", "group_dro", "group_dro_weights", "group_means", "lookup"]

Mask = Bool[Array, "..."] | Num[Array, "..."]


def lookup(table: Float[Array, " groups"], ids: Int[Array, "..."]) -> Float[Array, "..."]:
    """The entry of `table` at each id, and 0 at an id that is none of its indices (a negative one included).

    Args:
      table: `[G]`.
      ids: integers, any shape.

    Returns:
      The shape of `ids`, float32 or wider.

    Raises:
      ValueError: if the table is not of rank 1, or the ids are not integers.
    """
    _checks.array("weights.lookup", "table", table, ndim=1, kind="number")
    _checks.array("weights.lookup", "ids", ids, kind="integer")
    table = jnp.asarray(table).astype(_checks.accumulation_dtype(table))
    known = (ids >= 0) & (ids < table.shape[0])
    return jnp.where(known, table[jnp.where(known, ids, 0)], 0)


class GroupMeans(NamedTuple):
    """Means by group, and how many unmasked examples each group has."""

    means: Float[Array, " groups"]
    counts: Float[Array, " groups"]


def group_means(
    values: Float[Array, "..."], groups: Int[Array, "..."], *, num_groups: int, mask: Mask | None = None
) -> GroupMeans:
    """Mean of the unmasked values of each group, over the whole batch.

    Args:
      values: any shape; all axes count as examples. What stands where the mask is off is never read.
      groups: integer ids in [0, num_groups), broadcast to the values. Entries with another id belong to no group.
      num_groups: how many groups there are, in the batch or not.
      mask: boolean or 0/1, broadcast to the values.

    Returns:
      `GroupMeans(means, counts)`, each `[num_groups]`, float32 or wider. An empty group has mean 0 with zero gradient.

    Raises:
      ValueError: if groups or mask do not broadcast to the values, or `num_groups` is not a positive integer.
    """
    function = "weights.group_means"
    kept = base.keep(values, mask, function, "values")
    _checks.number(function, "num_groups", num_groups, low=1, integer=True)
    ids = base.integer_ids(function, "groups", groups, values, "values")
    return GroupMeans(*segment_means(jnp.ravel(values), ids.ravel(), num_groups, kept.ravel()))


def group_dro_weights(
    groups: Int[Array, "..."], group_probs: Float[Array, " groups"], *, mask: Mask | None = None
) -> Float[Array, "..."]:
    r"""Weights under which the mean loss is a mixture of group means: :math:`w_i = n\, q_{g_i} / n_{g_i}`.

    The weighted mean is :math:`\sum_g q_g \bar\ell_g`; :math:`n` counts the unmasked examples of the batch and
    :math:`n_g` those of group :math:`g`.

    Args:
      groups: integer ids in [0, G), any shape; all axes count as examples.
      group_probs: :math:`q` `[G]`, non-negative, sum one.
      mask: boolean or 0/1, broadcast to the groups.

    Returns:
      Weights of the groups' shape, float32 or wider, without gradient. Their mean is the probability of the groups that
      the batch holds: one if it holds them all. 0 where masked and for an id that is no group.

    Raises:
      ValueError: if the groups are not integers, `group_probs` is not of rank 1, or the mask does not broadcast.

    References:
      Sagawa et al., *Distributionally Robust Neural Networks for Group Shifts*, 2019, arXiv 1911.08731.
    """
    function = "weights.group_dro_weights"
    _checks.array(function, "groups", groups, kind="integer")
    _checks.array(function, "group_probs", group_probs, ndim=1, kind="float")
    zeros = jnp.zeros(jnp.shape(groups), _checks.accumulation_dtype(group_probs))
    kept = base.keep(zeros, mask, function, "groups")
    counts = group_means(zeros, groups, num_groups=group_probs.shape[0], mask=mask).counts
    per_group = group_probs.astype(zeros.dtype) / jnp.maximum(counts, 1)
    return jax.lax.stop_gradient(jnp.where(kept, lookup(per_group, groups), 0) * jnp.sum(kept))


class GroupDROState(NamedTuple):
    """The logarithm of the adversary's distribution over groups."""

    log_probs: Float[Array, " groups"]


def group_dro(
    num_groups: int,
    *,
    step_size: float = 0.01,
    adjustment: float = 0.0,
    group_counts: Num[Array, " groups"] | None = None,
    signal: str = "groups",
) -> base.Weighting:
    r"""Group DRO: exponentiated gradient ascent on the group losses of the global batch.

    .. math::
        q_g \leftarrow q_g \exp\big(\eta\, (\bar\ell_g + C / \sqrt{N_g})\big) / Z, \qquad w_i = n\, q_{g_i} / n_{g_i}

    The weights use the :math:`q` just updated, as in the paper. A group that the batch does not hold has
    :math:`\bar\ell_g = 0` there: it keeps its :math:`q` up to the normaliser. The weights' mean is then the probability
    of the groups that are there, see `group_dro_weights`. Probabilities start equal.

    Args:
      num_groups: how many groups there are.
      step_size: :math:`\eta`, in [0, inf).
      adjustment: :math:`C`, in [0, inf): how much more a small group is feared to lose on unseen examples.
      group_counts: :math:`N_g`, positive, examples of each group in the training set; needed with an adjustment.
      signal: the name of the signal that holds the ids, for example `"labels"` for classes as groups.

    Returns:
      A `Weighting` with state `GroupDROState`. An id outside [0, num_groups) has weight 0 and moves nothing.

    Raises:
      ValueError: if a hyperparameter is out of range, or `group_counts` is missing or has no meaning.

    References:
      Sagawa et al., *Distributionally Robust Neural Networks for Group Shifts*, 2019, arXiv 1911.08731.
    """
    function = "weights.group_dro"
    _checks.number(function, "num_groups", num_groups, low=1, integer=True)
    _checks.number(function, "step_size", step_size, low=0, open_high=True)
    _checks.number(function, "adjustment", adjustment, low=0, open_high=True)
    if group_counts is not None:
        _checks.array(function, "group_counts", group_counts, shape=(num_groups,), kind="number")
    elif isinstance(adjustment, jax.Array) or adjustment != 0:
        _checks.fail(function, "group_counts", "missing", "an array of group sizes, for the adjustment")

    def init(key: PRNGKeyArray | None = None) -> GroupDROState:
        del key
        return GroupDROState(jnp.full((num_groups,), -jnp.log(num_groups)))

    def update(
        state: GroupDROState, losses: Float[Array, "..."], **signals: Any
    ) -> tuple[Float[Array, "..."], GroupDROState]:
        _checks.require(function, signals, (signal,))
        mask = signals.get("mask")
        kept = base.keep(losses, mask, function)
        groups = base.integer_ids(function, signal, signals[signal], losses)
        means = group_means(jax.lax.stop_gradient(losses), groups, num_groups=num_groups, mask=mask).means
        if group_counts is not None:
            means += adjustment / jnp.sqrt(jnp.asarray(group_counts, means.dtype))
        moved = jax.nn.log_softmax(state.log_probs + step_size * means).astype(state.log_probs.dtype)
        new = GroupDROState(jnp.where(jnp.any(kept), moved, state.log_probs))
        return group_dro_weights(groups, jnp.exp(new.log_probs), mask=mask), new

    return base.Weighting(init, update, "batch", (signal,))
