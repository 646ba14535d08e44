"""A label that is no class costs nothing, whatever its logits are: every loss of logits and labels."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from labelled import drawn, with_gradient

from reweight.losses import classification

NO_LOSSES = {"estimate_label_prior", "truncation_mask"}
REQUIRED = {"class_counts": np.array([50, 20, 10, 5, 1])}


def of_logits_and_labels(name):
    function = getattr(classification, name)
    return inspect.isfunction(function) and [*inspect.signature(function).parameters][:2] == ["logits", "labels"]


@pytest.mark.parametrize("name", [n for n in classification.__all__ if of_logits_and_labels(n) and n not in NO_LOSSES])
def test_logits_of_an_unknown_label_are_not_read(name):
    loss = getattr(classification, name)
    hyper = {key: value for key, value in REQUIRED.items() if key in inspect.signature(loss).parameters}
    logits, labels = drawn()
    unknown = np.array([False, True, False, True, True, False])
    labels[unknown] = [-1, 5, np.iinfo(np.int32).min]
    garbage = np.where(unknown[:, None], np.array([np.nan, np.inf, -np.inf, 1e30, 0], np.float32), logits)
    values, gradient = with_gradient(loss, garbage, jnp.asarray(labels, jnp.int32), **hyper)
    assert np.all(values[unknown] == 0)
    assert np.all(gradient[unknown] == 0)
    alone = with_gradient(loss, logits[~unknown], jnp.asarray(labels[~unknown], jnp.int32), **hyper)
    np.testing.assert_allclose(values[~unknown], alone[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient[~unknown], alone[1], rtol=1e-5, atol=1e-7)
    assert np.any(alone[1])
