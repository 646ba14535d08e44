import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import weights

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "doubly_robust_at.json").read_text())["cases"][6]


def test_geometry_aware_weights_agree_with_the_golden_numbers(x64):
    params = GOLDEN["params"]
    w = weights.gairat_weights(
        jnp.array(GOLDEN["inputs"]["kappa"], jnp.float64), num_steps=params["num_steps"], offset=params["Lambda"]
    )
    np.testing.assert_allclose(w, GOLDEN["expected"]["gairat_weights"], rtol=1e-9)


@hypothesis.given(steps=st.lists(st.integers(0, 7), min_size=5, max_size=5), offset=st.floats(-3, 3))
def test_geometry_aware_weights_are_the_formula(steps, offset):
    raw = (np.tanh(offset + 5 * (3 - np.array(steps, np.float64)) / 3) + 1) / 2
    w = weights.gairat_weights(np.array(steps), num_steps=7, offset=offset)
    np.testing.assert_allclose(w, raw / raw.mean(), rtol=1e-4, atol=1e-6)


def test_examples_near_the_boundary_weigh_more():
    w = weights.gairat_weights(np.arange(11))
    assert np.all(np.diff(w) < 0)


def test_a_large_offset_weighs_all_alike():
    np.testing.assert_allclose(weights.gairat_weights(np.arange(11), offset=50.0), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: weights.gairat(num_steps=1), "num_steps"),
        (lambda: weights.gairat_weights(np.arange(3), num_steps=4.5), "num_steps"),
        (lambda: weights.gairat_weights(np.arange(3), offset="x"), "offset"),
        (lambda: weights.gairat_weights(np.arange(3), mask=np.ones(2)), "mask"),
        (lambda: weights.gairat().update((), jnp.ones(3), attack_steps=jnp.ones(2)), "attack_steps"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
