import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.regularizers import nested

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "nested_co_teaching.json").read_text())
PROBS, *_, PREFIX = GOLDEN["cases"]
FEATURES = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)

dropped = jax.jit(nested.nested_dropout)


@pytest.mark.parametrize("row", range(4))
def test_probabilities_agree_with_the_golden_numbers(row, x64):
    sigma, mu = PROBS["inputs"]["sigma_mu"][row]
    found = nested.nested_probs(PROBS["params"]["n_features"], sigma=sigma, mu=mu)
    np.testing.assert_allclose(found, PROBS["expected"]["probs"][row], rtol=GOLDEN["rtol"], atol=1e-300)


def test_prefix_accuracies_and_the_best_width_agree_with_the_golden_numbers(x64):
    given = {name: np.array(x) for name, x in PREFIX["inputs"].items()}
    accuracies = jnp.mean(nested.prefix_hits(given["features"], given["W"].T, given["labels"]), axis=0)
    np.testing.assert_allclose(accuracies, PREFIX["expected"]["prefix_accuracy"], rtol=GOLDEN["rtol"])
    width = nested.best_width(accuracies, penalty=PREFIX["params"]["penalty"])
    assert width == PREFIX["expected"]["best_index_from_0"] + 1


@hypothesis.given(sigma=st.floats(1e-30, 1e30), mu=st.floats(-1e4, 1e4), size=st.integers(1, 20))
def test_probabilities_are_some_for_every_width_of_the_gaussian(sigma, mu, size):
    found = nested.nested_probs(size, sigma=sigma, mu=mu)
    assert np.all(found >= 0)
    np.testing.assert_allclose(np.sum(found), 1, rtol=1e-5)


def test_a_wide_gaussian_is_uniform_and_a_narrow_one_leaves_the_nearest_width():
    np.testing.assert_allclose(nested.nested_probs(5, sigma=1e6), 0.2, rtol=1e-5)
    np.testing.assert_array_equal(nested.nested_probs(5, sigma=np.inf), np.float32(0.2))
    np.testing.assert_array_equal(nested.nested_probs(5, sigma=1e-3), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(nested.nested_probs(5, sigma=1e-3, mu=3.2), [0, 0, 1, 0, 0])


def test_one_width_is_drawn_for_the_batch_with_its_probability():
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(lambda key: dropped(key, FEATURES, sigma=3.0))(keys)
    widths = np.sum(np.asarray(found) != 0, axis=-1)
    assert np.all(widths == widths[:, :1])
    shares = np.bincount(widths[:, 0], minlength=9)[1:] / len(keys)
    np.testing.assert_allclose(shares, nested.nested_probs(8, sigma=3.0), atol=0.03)
    for width, row in zip(widths[:, 0], found, strict=True):
        np.testing.assert_array_equal(row[:, :width], FEATURES[:, :width])


def test_the_width_does_not_depend_on_the_batch_or_its_dtype():
    key = jax.random.key(7)
    whole = dropped(key, FEATURES, sigma=4.0)
    np.testing.assert_array_equal(dropped(key, FEATURES[:11], sigma=4.0), whole[:11])
    narrow = dropped(key, FEATURES.astype(jnp.bfloat16), sigma=4.0)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow != 0, whole != 0)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(dropped(key, FEATURES.astype(np.float64), sigma=4.0), whole)


def test_what_is_left_out_is_not_read_and_has_no_gradient():
    dirty = FEATURES.copy()
    dirty[:, 1:] = np.nan
    found, grad = jax.value_and_grad(lambda x: jnp.sum(nested.nested_dropout(jax.random.key(0), x, sigma=0.1)))(dirty)
    np.testing.assert_allclose(found, FEATURES[:, 0].sum(), rtol=1e-5)
    np.testing.assert_array_equal(grad, np.eye(1, 8).repeat(30, axis=0))


def test_all_features_are_the_whole_model():
    rng = np.random.default_rng(1)
    kernel, labels = rng.normal(size=(8, 3)).astype(np.float32), rng.integers(0, 3, 30)
    hits = nested.prefix_hits(FEATURES, kernel, labels)
    np.testing.assert_array_equal(hits[:, -1], np.argmax(FEATURES @ kernel, axis=1) == labels)
    np.testing.assert_array_equal(hits[:, 0], np.argmax(FEATURES[:, :1] @ kernel[:1], axis=1) == labels)


def test_of_equal_accuracies_the_fewest_features_win():
    assert nested.best_width(np.float32([0.5, 0.9, 0.9, 0.9])) == 2
    assert nested.best_width(np.float32([0.5, 0.8, 0.9]), penalty=0.5) == 1
    assert nested.best_width(np.float32([0.5, 0.8, 0.9]), penalty=0.0) == 3


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: nested.nested_probs(0, sigma=1.0), "num_features"),
        (lambda: nested.nested_probs(3, sigma=0.0), "sigma"),
        (lambda: nested.nested_dropout(jax.random.key(0), FEATURES, sigma=1.0, mu=float("inf")), "mu"),
        (lambda: nested.nested_dropout(jax.random.key(0), np.float32(1), sigma=1.0), "features"),
        (lambda: nested.prefix_hits(FEATURES, FEATURES, np.zeros(30, int)), "kernel"),
        (lambda: nested.best_width(np.zeros(0, np.float32)), "accuracies"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
