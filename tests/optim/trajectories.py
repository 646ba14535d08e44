"""Runs of an optimizer along given gradients, and the golden files they are compared with."""

import json
import pathlib

import jax
import numpy as np
import optax

from reweight import optim

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
VIEWS = {"none": optim.NONE, "channel": optim.CHANNEL, "layer": optim.LAYER, "skip": optim.SKIPPED}


def cases(name):
    """The cases of a golden file, with lists of numbers as float64 arrays and views as codes."""
    found = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return [jax.tree.map(_array, case, is_leaf=lambda node: isinstance(node, list)) for case in found]


def _array(node):
    if not isinstance(node, list):
        return node
    array = np.asarray(node)
    return np.vectorize(VIEWS.get)(array) if array.dtype.kind == "U" else array.astype(np.float64)


def run(transform, params, grads, layout=None):
    """Parameters and state after every step, and the views of every step by name; grads have the steps in front."""

    def step(carry, grad):
        params, state = carry
        updates, state = transform.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    # Compiled as a whole: the state must keep its structure and dtypes to be carried.
    _, (history, states) = jax.jit(lambda p, g: jax.lax.scan(step, (p, transform.init(p)), g))(params, grads)
    views = optax.tree.get(states, "views")
    named = None if views is None else jax.vmap(lambda v: optim.named_views(v, params, layout=layout))(views)
    return history, states, named
