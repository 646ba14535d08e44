import jax
import numpy as np
import pytest
from labelled import arrays, assert_matches, drawn, golden, with_gradient

from reweight.losses import classification

CASE = golden("ldr_losses")[5]


@pytest.mark.parametrize("name", ["crammer_singer", "weston_watkins"])
def test_hinges_agree_with_the_official_code(name, x64):
    found = with_gradient(jax.jit(getattr(classification, name)), *arrays(CASE), margin=0.8)
    assert_matches(found, CASE["expected"][f"{name}_m0.8"], CASE["expected"][f"grad_logits_{name}_m0.8"])


def test_two_classes_have_one_hinge():
    logits, labels = drawn(classes=2)
    lead = logits[np.arange(6), labels] - logits[np.arange(6), 1 - labels]
    np.testing.assert_allclose(classification.crammer_singer(logits, labels), np.maximum(0, 1 - lead), rtol=1e-6)
    np.testing.assert_allclose(classification.weston_watkins(logits, labels), np.maximum(0, 1 - lead) / 2, rtol=1e-6)


def test_a_lead_of_the_margin_over_all_rivals_costs_nothing():
    logits, labels = np.float32([[3, 1, 2]]), np.array([0])
    for loss in (classification.crammer_singer, classification.weston_watkins):
        values, grad = with_gradient(loss, logits, labels)
        assert values[0] == 0
        assert np.all(np.asarray(grad) == 0)
        assert loss(logits, labels, margin=1.5)[0] > 0


def test_the_strongest_rival_alone_and_all_of_them():
    logits, labels = np.float32([[1, 3, 2, -9]]), np.array([0])
    _, strongest = with_gradient(classification.crammer_singer, logits, labels)
    _, every = with_gradient(classification.weston_watkins, logits, labels)
    np.testing.assert_allclose(strongest, [[-1, 1, 0, 0]])
    np.testing.assert_allclose(every, [[-0.5, 0.25, 0.25, 0]])


def test_without_a_margin_a_right_prediction_costs_nothing():
    logits, labels = drawn(1, n=40)
    wrong = np.argmax(logits, -1) != labels
    for loss in (classification.crammer_singer, classification.weston_watkins):
        assert np.array_equal(np.asarray(loss(logits, labels, margin=0.0)) > 0, wrong)
