import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses import classification
from reweight.losses.self_supervised import transformation_prediction
from reweight.regularizers import pseudo_classes

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "rotation_prediction.json").read_text())
LOGITS = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_prediction_of_turns_agrees_with_the_code_of_few_shot_learning(case, x64):
    logits, expected = jnp.array(case["inputs"]["logits"]), case["expected"]
    value, grad = jax.value_and_grad(lambda z: transformation_prediction(z).mean())(logits)
    np.testing.assert_allclose(value, expected["loss_mean"], rtol=GOLDEN["rtol"])
    np.testing.assert_allclose(grad, expected["grad_logits_mean"], rtol=1e-10, atol=1e-14)


def test_it_is_cross_entropy_of_the_turn_that_pseudo_classes_name():
    # Of a single class, the pseudo-classes are the turns.
    images = np.zeros((5, 2, 2, 1), np.float32)
    labels = pseudo_classes.rotated_classes(images, np.zeros(5, int), num_classes=1).labels
    wanted = classification.cross_entropy(LOGITS, labels).mean(axis=1)
    np.testing.assert_allclose(transformation_prediction(LOGITS), wanted, rtol=1e-6)


def test_who_cannot_tell_pays_the_entropy_and_who_can_pays_nothing():
    np.testing.assert_allclose(transformation_prediction(np.zeros((3, 4, 4))), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(transformation_prediction(100 * np.eye(4)), 0, atol=1e-6)
    np.testing.assert_array_equal(transformation_prediction(np.ones((2, 1, 1))), 0)


def test_the_order_of_the_transformations_means_nothing():
    order = np.array([2, 0, 3, 1])
    again = transformation_prediction(LOGITS[:, order][:, :, order])
    np.testing.assert_allclose(again, transformation_prediction(LOGITS), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4), (2, 0, 0)])
def test_a_static_mistake_is_named(shape):
    with pytest.raises(ValueError, match=r"losses\.self_supervised\.transformation_prediction: argument `logits`"):
        transformation_prediction(np.zeros(shape))
