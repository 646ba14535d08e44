"""Predictions of several models as one."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.merge import backdoor_adjustment

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "parameter_imbalance.json").read_text())["cases"]
ENSEMBLE = next(case for case in GOLDEN if "model_logits" in case["inputs"])
MODES = ("logits", "probs")


def drawn(seed=0, models=3, n=4, classes=5):
    return jnp.asarray(2 * np.random.default_rng(seed).normal(size=(models, n, classes)), jnp.float32)


def test_predictions_agree_with_the_official_code(x64):
    logits = jnp.array(ENSEMBLE["inputs"]["model_logits"])
    # There the logits are added.
    np.testing.assert_allclose(
        len(logits) * backdoor_adjustment(logits), ENSEMBLE["expected"]["logits_mode"], rtol=1e-9
    )
    probs = jnp.exp(backdoor_adjustment(logits, mode="probs"))
    np.testing.assert_allclose(probs, ENSEMBLE["expected"]["probs_mode"], rtol=1e-9)


def test_the_gradient_of_a_sum_of_logits_is_that_of_each_model(x64):
    logits = jnp.array(ENSEMBLE["inputs"]["model_logits"])
    grad = jax.grad(lambda x: jnp.sum(len(x) * backdoor_adjustment(x) * jnp.arange(4.0)))(logits)
    np.testing.assert_allclose(grad, np.broadcast_to(np.arange(4.0), logits.shape), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_single_model_and_models_that_agree_give_their_own_prediction(mode):
    logits = drawn(models=1)
    for several in (logits, jnp.repeat(logits, 4, axis=0)):
        came = jax.nn.softmax(backdoor_adjustment(several, mode=mode))
        np.testing.assert_allclose(came, jax.nn.softmax(logits[0]), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_weight_is_not_there_and_the_scale_of_weights_does_not_matter(mode):
    logits = drawn(1)
    came = backdoor_adjustment(logits, model_weights=np.array([2.0, 0.0, 6.0]), mode=mode)
    wanted = backdoor_adjustment(logits[::2], model_weights=np.array([0.25, 0.75]), mode=mode)
    np.testing.assert_allclose(came, wanted, rtol=1e-5)
    assert not np.any(backdoor_adjustment(logits, model_weights=np.zeros(3), mode=mode))


def test_mean_probabilities_sum_to_one_and_a_model_that_is_sure_counts_more_among_logits():
    logits = jnp.array([[[20.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]]])
    mixed = backdoor_adjustment(logits, mode="probs")
    np.testing.assert_allclose(jnp.exp(mixed).sum(-1), 1, rtol=1e-6)
    assert jnp.argmax(mixed) == 1
    assert jnp.argmax(backdoor_adjustment(logits)) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_shift_of_the_logits_of_one_model_changes_no_prediction(mode):
    logits = drawn(2)
    came, wanted = (jax.nn.softmax(backdoor_adjustment(x, mode=mode)) for x in (logits.at[1].add(9.0), logits))
    np.testing.assert_allclose(came, wanted, rtol=1e-4)


def test_a_static_mistake_is_named():
    logits = drawn()
    for call, named in (
        (lambda: backdoor_adjustment(logits[0, 0]), "logits"),
        (lambda: backdoor_adjustment(logits[:0]), "logits"),
        (lambda: backdoor_adjustment(logits, model_weights=np.ones(2)), "model_weights"),
        (lambda: backdoor_adjustment(logits, mode="sum"), "mode"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
