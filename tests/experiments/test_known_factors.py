"""Pieces of the experiment on known factors."""

import jax.numpy as jnp
import numpy as np

from experiments import known_factors


def test_the_parts_of_a_split_share_no_patient_and_decoys_say_nothing():
    split = known_factors._split(0, 60, 10)
    parts = (split.knowing, split.train, split.test)
    assert [len(part.response) for part in parts] == [180, 60, 202]
    rows = np.concatenate([part.inputs[:, :10] for part in parts])
    assert len(np.unique(rows, axis=0)) == len(rows)
    np.testing.assert_allclose(split.train.inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(split.train.response.std(), 1, rtol=1e-5)
    everyone = np.concatenate([part.inputs for part in parts])
    responses = np.concatenate([part.response for part in parts])
    correlations = np.abs(np.corrcoef(everyone.T, responses)[-1, :-1])
    assert correlations[:10].max() > 0.5
    assert correlations[10:].max() < 0.2


def test_without_each_of_a_linear_model_is_its_terms():
    rng = np.random.default_rng(0)
    inputs, slopes = rng.normal(size=(20, 3)), np.array([2.0, 0.0, -1.0])
    found = known_factors._without_each(lambda x: x @ slopes + 4, inputs)
    np.testing.assert_allclose(found, (inputs - inputs.mean(axis=0)) * slopes, atol=1e-12)


def test_strong_models_know_a_factor_that_decides():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 4)).astype(np.float32)
    part = known_factors.Part(inputs, (3 * inputs[:, 2] + inputs[:, 0]).astype(np.float32))
    shares = known_factors._strong(0, part)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.argsort(-shares, axis=1)[:, :2], [[2, 0]] * 3)


def test_only_pairs_on_which_the_strong_models_agree_count():
    strong = jnp.array([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])  # the first is above both; the others are not agreed on
    np.testing.assert_allclose(known_factors._ordered(strong, jnp.array([0.4, 0.5, 0.1])), 0.5)
    np.testing.assert_allclose(known_factors._ordered(strong, jnp.array([0.9, 0.0, 0.1])), 1.0)
