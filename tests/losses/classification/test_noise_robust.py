import functools

import jax
import numpy as np
import pytest
from labelled import arrays, assert_matches, drawn, golden, softmax, with_gradient

from reweight.losses import classification
from reweight.losses.classification import (
    asymmetric_generalized_cross_entropy,
    asymmetric_unhinged,
    brier_loss,
    generalized_cross_entropy,
    jensen_shannon,
    mean_absolute_error,
    nce_agce,
    nce_aul,
    nce_rce,
    normalized_cross_entropy,
    reverse_cross_entropy,
    robust_log_loss,
    symmetric_cross_entropy,
    truncation_mask,
)

CASE = golden("ldr_losses")[5]
WEIGHTS = {"active_weight": 0.4, "passive_weight": 2.0}
OFFICIAL = {
    "gce_q0.5_k0": functools.partial(generalized_cross_entropy, q=0.5),
    "gce_q0.5_k0.3": functools.partial(generalized_cross_entropy, q=0.5, k=0.3),
    "sce_b0.3_A4": functools.partial(symmetric_cross_entropy, balance=0.3),
    "aul_a2_q1.3": functools.partial(asymmetric_unhinged, a=2.0, q=1.3),
    "agce_a0.6_q0.6": functools.partial(asymmetric_generalized_cross_entropy, a=0.6, q=0.6),
    "nce": normalized_cross_entropy,
    "rce": reverse_cross_entropy,
    "mse": brier_loss,
    "nce_agce_a3_q1.5_w0.4_2": functools.partial(nce_agce, **WEIGHTS),
    "nce_aul_a6_q1.5_w0.4_2": functools.partial(nce_aul, **WEIGHTS),
    "nce_rce_w0.4_2": functools.partial(nce_rce, **WEIGHTS),
    "jsc_0.3": functools.partial(jensen_shannon, weight=0.3),
    "rll_theta0.1": functools.partial(robust_log_loss, theta=0.1),
}
SYMMETRIC = {
    "mean_absolute_error": (mean_absolute_error, 2 * 4),
    "normalized_cross_entropy": (normalized_cross_entropy, 1),
    "robust_log_loss": (functools.partial(robust_log_loss, theta=0.3, form="published"), 5 * np.log(1.3 / 0.3)),
    "gce": (functools.partial(generalized_cross_entropy, q=1.0), 4),
}


def of_labels(logits, labels):
    return softmax(logits)[np.arange(len(labels)), labels]


@pytest.mark.parametrize("name", OFFICIAL)
def test_losses_agree_with_the_official_code(name, x64):
    found = with_gradient(jax.jit(OFFICIAL[name]), *arrays(CASE))
    assert_matches(found, CASE["expected"][name], CASE["expected"][f"grad_logits_{name}"])


def test_the_mask_of_the_truncation_agrees_with_the_official_code():
    kept = truncation_mask(*arrays(CASE), k=0.3)
    assert np.array_equal(kept, np.array(CASE["expected"]["tgce_mask_k0.3"]) == 1)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_losses_sum_to_a_constant_over_the_labels(name):
    loss, constant = SYMMETRIC[name]
    logits, _ = drawn(1)
    total = sum(loss(logits, np.full(6, label)) for label in range(5))
    np.testing.assert_allclose(total, constant, rtol=1e-5)


def test_generalised_cross_entropy_runs_from_cross_entropy_to_half_the_absolute_error():
    logits, labels = drawn(2)
    for q, wanted in ((0.0, classification.cross_entropy), (1.0, lambda x, y: mean_absolute_error(x, y) / 2)):
        pairs = zip(
            with_gradient(generalized_cross_entropy, logits, labels, q=q),
            with_gradient(wanted, logits, labels),
            strict=True,
        )
        for came, expected in pairs:
            np.testing.assert_allclose(came, expected, rtol=1e-5, atol=1e-7)
    for q in (0.3, 0.7):
        np.testing.assert_allclose(
            generalized_cross_entropy(logits, labels, q=q),
            classification.comp_sum_loss(logits, labels, tau=1 + q),
            rtol=1e-6,
        )


def test_truncated_examples_have_the_same_loss_and_no_gradient():
    logits, labels = drawn(3, n=30)
    values, grad = with_gradient(generalized_cross_entropy, logits, labels, q=0.6, k=0.2)
    kept = np.asarray(truncation_mask(logits, labels, k=0.2))
    assert 0 < kept.sum() < 30
    assert np.array_equal(kept, of_labels(logits, labels) > 0.2)
    np.testing.assert_allclose(values[~kept], (1 - 0.2**0.6) / 0.6, rtol=1e-6)
    assert np.array_equal(np.any(np.asarray(grad) != 0, -1), kept)


def test_without_a_truncation_everything_is_kept_but_labels_that_are_no_class():
    kept = truncation_mask(np.float32([[1e4, 0, -1e4]] * 3), np.array([2, 3, -1]), k=0.0)
    assert kept.tolist() == [True, False, False]


def test_errors_of_probabilities_are_their_sums():
    logits, labels = drawn(4)
    apart = np.eye(5)[labels] - softmax(logits)
    np.testing.assert_allclose(mean_absolute_error(logits, labels), np.abs(apart).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(brier_loss(logits, labels), (apart**2).sum(-1), rtol=1e-5)


def test_symmetric_cross_entropy_is_between_cross_entropy_and_the_reverse_one():
    logits, labels = drawn(5)
    ends = [symmetric_cross_entropy(logits, labels, balance=b, scale=-np.log(1e-4)) for b in (0.0, 1.0)]
    np.testing.assert_allclose(ends[0], classification.cross_entropy(logits, labels), rtol=1e-5)
    np.testing.assert_allclose(ends[1], reverse_cross_entropy(logits, labels), rtol=1e-5)


def test_asymmetric_losses_are_their_formulas_and_bounded():
    logits, labels = drawn(6)
    p = of_labels(logits, labels)
    np.testing.assert_allclose(
        asymmetric_generalized_cross_entropy(logits, labels, a=0.5, q=0.7),
        (1.5**0.7 - (0.5 + p) ** 0.7) / 0.7,
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        asymmetric_unhinged(logits, labels, a=1.2, q=3.0), ((1.2 - p) ** 3 - 0.2**3) / 3, rtol=1e-4
    )
    hopeless = (np.float32([[0, 1e4]]), np.array([0]))
    np.testing.assert_allclose(asymmetric_generalized_cross_entropy(*hopeless, a=1.0, q=2.0), 1.5, rtol=1e-5)
    np.testing.assert_allclose(asymmetric_unhinged(*hopeless, a=2.0, q=2.0), 1.5, rtol=1e-5)


def test_jensen_shannon_runs_from_cross_entropy_to_half_the_absolute_error():
    logits, labels = drawn(7)
    np.testing.assert_allclose(
        jensen_shannon(logits, labels, weight=1e-4), classification.cross_entropy(logits, labels), rtol=5e-3
    )
    np.testing.assert_allclose(
        jensen_shannon(logits, labels, weight=1 - 1e-6), mean_absolute_error(logits, labels) / 2, atol=0.1
    )
    hopeless = jensen_shannon(np.float32([[0, 1e4]]), np.array([0]), weight=0.3)
    np.testing.assert_allclose(hopeless, (0.3 * np.log(0.3) + 0.7 * np.log(0.7)) / (0.7 * np.log(0.7)), rtol=1e-5)


def test_sums_are_the_sums_of_their_parts():
    logits, labels = drawn(8)
    active = 0.4 * normalized_cross_entropy(logits, labels)
    for came, passive in (
        (nce_rce, reverse_cross_entropy(logits, labels)),
        (nce_agce, asymmetric_generalized_cross_entropy(logits, labels, a=3.0, q=1.5)),
        (nce_aul, asymmetric_unhinged(logits, labels, a=6.0, q=1.5)),
    ):
        np.testing.assert_allclose(came(logits, labels, **WEIGHTS), active + 2 * passive, rtol=1e-5)


@pytest.mark.parametrize("name", OFFICIAL)
def test_sure_and_right_and_sure_and_wrong_are_finite(name):
    values, grad = with_gradient(OFFICIAL[name], np.float32([[1e4, -1e4, 0], [-1e4, 1e4, 0]]), np.array([0, 0]))
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(grad))


def test_sure_and_right_keeps_its_digits():
    # The probability of the other class is e^-25, which one minus a probability in float32 has no digits for.
    sure = (np.float32([[25, 0]]), np.array([0]))
    for loss, slope in (
        (generalized_cross_entropy, 1.0),
        (mean_absolute_error, 2.0),
        (jensen_shannon, 1.0),
        (functools.partial(asymmetric_unhinged, a=1.5, q=0.9), 0.5**-0.1),
        (functools.partial(asymmetric_generalized_cross_entropy, a=1.0, q=2.0), 2.0),
    ):
        np.testing.assert_allclose(loss(*sure), slope * np.exp(-25), rtol=1e-5)
