"""Training of few entries of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from reweight import _checks

__all__ = ["subnet_mask"]

Tree = Any  # a pytree of arrays


def subnet_mask(params: Tree, grads: Tree, *, fraction: float = 0.1) -> Tree:
    r"""The entries that matter most, those with the largest :math:`|g_j\, \theta_j|` over all parameters together.

    To first order that is by how much the loss changes when the entry is set to 0. Where few examples must not undo
    what many have taught, only these entries move:

        mask = optim.subnet_mask(params, grads, fraction=0.1)
        updates, state = optimizer.update(grads, state, params)
        updates = jax.tree.map(lambda update, on: jnp.where(on, update, 0), updates, mask)

    Args:
      params: the parameters to choose among, such as those of the last block.
      grads: their gradients, or the sums of the gradients' absolute values over batches.
      fraction: how many of all entries are chosen, in [0, 1], rounded to a whole number.

    Returns:
      A tree like `params` of booleans, exactly so many of them true; of equal entries those that come first.

    Raises:
      ValueError: if the trees differ in structure or shapes, or `fraction` is out of range.

    References:
      Roy et al., *A Bag of Tricks for Few-Shot Class-Incremental Learning*, 2024, arXiv 2403.14392. Which entries the
      paper chooses is not known from a released code; this is the measure of Lee, Ajanthan and Torr, *SNIP: Single-Shot
      Network Pruning Based on Connection Sensitivity*, 2019, arXiv 1810.02340.
    """
    function = "optim.subnet_mask"
    _checks.same_structure(function, "grads", grads, params, like_name="params")
    _checks.number(function, "fraction", fraction, low=0, high=1)
    scores = jax.tree.map(lambda p, g: jnp.abs(jnp.asarray(p, _checks.accumulation_dtype(p, g)) * g), params, grads)
    flat, unflatten = ravel_pytree(scores)
    order = jnp.argsort(-flat, stable=True)
    chosen = jnp.zeros(flat.size, bool).at[order].set(jnp.arange(flat.size) < jnp.round(fraction * flat.size))
    return jax.tree.map(lambda leaf: leaf != 0, unflatten(chosen.astype(flat.dtype)))
