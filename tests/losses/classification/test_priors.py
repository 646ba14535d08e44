import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled import arrays, assert_matches, drawn, golden, softmax, with_gradient

from reweight.losses import classification
from reweight.losses.classification import cross_entropy, estimate_label_prior, lade, ldam, logit_adjusted_cross_entropy

ADJUSTED = golden("logit_adjustment")
TUNED, CARRIED, _ = golden("parameter_imbalance")
LABELS = np.array([2, 0, 1, 2])
COUNTS = np.float32([100, 20, 7, 0, 1])


def through(loss, logits, labels, **signals):
    """The mean of the losses of a batch, and its gradient."""
    kept = signals.get("mask", np.ones(len(labels), bool))

    def mean(x):
        return jnp.sum(loss.update(loss.init(), logits=x, labels=labels, **signals)[0]) / np.sum(kept)

    return jax.value_and_grad(mean)(jnp.asarray(logits))


def test_margins_agree_with_the_official_code(x64):
    logits, labels = arrays(TUNED)
    found = with_gradient(ldam, logits, labels, class_counts=jnp.array(TUNED["params"]["class_counts"]))
    expected = TUNED["expected"]
    assert_matches(
        (found[0], found[1] / 4), expected["ldam_s30_m0.5_per_example"], expected["grad_logits_ldam_s30_m0.5_mean"]
    )


def test_lade_agrees_with_the_official_code(x64):
    value, grad = through(lade(class_counts=jnp.array(TUNED["params"]["class_counts"])), *arrays(TUNED))
    np.testing.assert_allclose(value, TUNED["expected"]["lade_mean"], rtol=1e-9)
    np.testing.assert_allclose(grad, TUNED["expected"]["grad_logits_lade_mean"], rtol=1e-8, atol=1e-11)


def test_the_prior_of_a_model_is_added_to_that_of_the_data(x64):
    came = logit_adjusted_cross_entropy(
        *arrays(TUNED),
        class_counts=jnp.array(TUNED["params"]["class_counts"]),
        model_prior=jnp.array(TUNED["params"]["pretrained_prior"]),
    )
    # The stored numbers lack the 1e-9 that the code adds to the frequencies of the data.
    np.testing.assert_allclose(came, TUNED["expected"]["generalised_adjustment_per_example"], rtol=1e-7)


def test_the_prior_that_a_model_carries_is_found(x64):
    logits, labels = jnp.array(CARRIED["inputs"]["zero_shot_logits"]), jnp.array(CARRIED["inputs"]["labels"])
    prior = jax.jit(estimate_label_prior)(logits, labels)
    np.testing.assert_allclose(prior, CARRIED["expected"]["label_prior"], atol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits - jnp.log(prior), labels).mean(), CARRIED["expected"]["mean_ce"])


# -- logit adjustment


@pytest.mark.parametrize("case", ADJUSTED, ids=range(len(ADJUSTED)))
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_logit_adjustment_agrees_with_the_golden_numbers(case, tau, x64):
    logits, labels = jnp.array(case["inputs"]["logits"]), jnp.array(case["inputs"]["labels"])
    counts = jnp.array(case["params"]["class_counts"])

    def losses(x):
        return logit_adjusted_cross_entropy(x, labels, class_counts=counts, tau=tau)

    name, expected = f"logit_adjusted_tau{tau}", case["expected"]
    values, pullback = jax.vjp(jax.jit(losses), logits)
    np.testing.assert_allclose(values, expected[f"{name}_per_example"], rtol=1e-9)
    (grad,) = pullback(jnp.full_like(values, 1 / len(labels)))
    np.testing.assert_allclose(grad, expected[f"grad_logits_{name}_mean"], rtol=1e-8)


def test_without_strength_and_with_equal_counts_logit_adjustment_is_cross_entropy():
    logits = drawn(7, 4, 3)[0]
    plain = cross_entropy(logits, LABELS)
    for counts, tau in ((np.float32([90, 9, 1]), 0.0), (np.full(3, 7), 1.0)):
        adjusted = logit_adjusted_cross_entropy(logits, LABELS, class_counts=counts, tau=tau)
        np.testing.assert_allclose(adjusted, plain, rtol=1e-5)


def test_the_scale_of_the_counts_does_not_matter():
    logits = drawn(8, 4, 3)[0]
    counts = np.float32([90, 9, 1])
    np.testing.assert_allclose(
        logit_adjusted_cross_entropy(logits, LABELS, class_counts=counts),
        logit_adjusted_cross_entropy(logits, LABELS, class_counts=1000 * counts),
        rtol=1e-5,
    )


def test_no_counts_at_all_are_equal_counts():
    logits = drawn(9, 4, 3)[0]
    adjusted = logit_adjusted_cross_entropy(logits, LABELS, class_counts=np.zeros(3))
    np.testing.assert_allclose(adjusted, cross_entropy(logits, LABELS), rtol=1e-5)


def test_the_best_adjusted_scores_are_those_of_balanced_classes():
    # One feature value with class frequencies 8 : 1 : 1; a loss minimiser under adjustment has equal scores.
    labels = jnp.array([0] * 8 + [1, 2])
    counts = jnp.array([8.0, 1.0, 1.0])

    def loss(scores):
        logits = jnp.broadcast_to(scores, (10, 3))
        return jnp.mean(logit_adjusted_cross_entropy(logits, labels, class_counts=counts))

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.zeros(3)), 0, atol=1e-6)


# -- margins


def test_rarer_classes_have_larger_margins_and_the_largest_is_as_given():
    logits, counts = np.zeros((4, 4), np.float32), np.float32([160, 10, 0, 1e3])
    lost = np.log(np.expm1(np.asarray(ldam(logits, np.arange(4), class_counts=counts, scale=2.0))) / 3) / 2
    np.testing.assert_allclose(lost, 0.5 * np.array([0.5, 1, 1, 0.01**0.25]), rtol=1e-5)


def test_without_margins_it_is_cross_entropy_of_the_logits_or_of_scaled_ones():
    logits, labels = drawn()
    plain = functools.partial(ldam, logits, labels, class_counts=COUNTS, max_margin=0.0, scale=3.0)
    np.testing.assert_allclose(plain(), cross_entropy(logits, labels), rtol=1e-5)
    np.testing.assert_allclose(plain(scale_logits=True), cross_entropy(3 * logits, labels), rtol=1e-5, atol=1e-6)


# -- LADE


def test_without_weight_lade_is_the_balanced_softmax():
    logits, labels = drawn(1)
    counts = COUNTS + 1
    value, grad = through(lade(class_counts=counts, weight=0.0), logits, labels)
    values, wanted = with_gradient(logit_adjusted_cross_entropy, logits, labels, class_counts=counts)
    np.testing.assert_allclose(value, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(grad, wanted / 6, rtol=1e-4, atol=1e-6)


def test_the_losses_of_lade_have_value_and_gradient_of_the_batch(x64):
    logits, labels = drawn(2, n=12)
    mask = np.arange(12) % 4 != 1
    prior = (COUNTS + 1) / (COUNTS + 1).sum()

    def whole(x):
        x, y = x[mask], labels[mask]
        losses = cross_entropy(x + jnp.log(prior), y)
        own = jax.nn.one_hot(y, 5)
        mean = jnp.sum(own * x, 0) / (own.sum(0) + 1e-8)
        partition = jax.nn.logsumexp(x, axis=0) - jnp.log(9) + jnp.log(0.2 + 1e-9) - jnp.log(prior + 1e-9)
        return losses.mean() - 0.3 * jnp.sum(prior * (mean - partition - 0.2 * partition**2))

    loss = lade(class_counts=jnp.asarray(COUNTS + 1, float), weight=0.3, penalty=0.2)
    found = through(loss, np.float64(logits), labels, mask=mask)
    wanted = jax.value_and_grad(whole)(jnp.asarray(logits, float))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-7)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6, atol=1e-9)


def test_a_label_that_is_no_class_is_not_in_the_batch():
    logits, labels = drawn(3)
    loss = lade(class_counts=COUNTS)
    left, _ = loss.update((), logits=logits, labels=np.where(np.arange(6) == 2, -1, labels))
    right, _ = loss.update((), logits=logits, labels=labels, mask=np.arange(6) != 2)
    np.testing.assert_allclose(left, right, rtol=1e-6)
    assert left[2] == 0


# -- what a model carries


def test_a_prior_that_was_put_in_comes_out():
    # Labels are drawn from the probabilities of balanced classes, expectations taken by one copy a label.
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=(4000, 4)))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits)])
    carried = np.float32([0.6, 0.25, 0.1, 0.05])
    found = estimate_label_prior(logits + np.log(carried), labels)
    np.testing.assert_allclose(found, carried, rtol=0.15)
    probs = softmax(logits + np.log(carried) - np.log(np.asarray(found)))
    np.testing.assert_allclose(probs.mean(0), np.bincount(labels) / 4000, rtol=1e-4)


def test_a_shift_of_the_logits_changes_nothing_and_an_absent_class_is_left_out():
    logits, _ = drawn(4, n=40, classes=4, scale=1.0)
    labels = np.arange(40) % 3
    prior = estimate_label_prior(logits, labels)
    assert prior[3] == 0
    np.testing.assert_allclose(prior[:3], estimate_label_prior(logits[:, :3] + 5, labels), rtol=1e-3)
    np.testing.assert_allclose(np.sum(prior), 1, rtol=1e-5)
    np.testing.assert_allclose(estimate_label_prior(logits, np.full(40, -1)), 0.25)


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_decided_logits_give_a_finite_prior(size):
    logits = size * np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    prior = estimate_label_prior(logits, np.array([0, 1, 2, 1]))
    assert np.all(np.isfinite(prior))
    np.testing.assert_allclose(np.sum(prior), 1, rtol=1e-5)


def test_a_model_prior_of_equal_classes_changes_nothing():
    logits, labels = drawn(5)
    plain, more = (
        classification.logit_adjusted_cross_entropy(logits, labels, class_counts=COUNTS, model_prior=prior)
        for prior in (None, np.full(5, 0.2, np.float32))
    )
    np.testing.assert_allclose(more, plain, rtol=1e-5)


def test_a_static_mistake_is_named():
    logits, labels = drawn()
    adjusted = functools.partial(logit_adjusted_cross_entropy, logits, labels, class_counts=COUNTS)
    for call, named in (
        (lambda: ldam(logits, labels, class_counts=np.ones(3)), "class_counts"),
        (lambda: lade(class_counts=np.ones((2, 2))), "class_counts"),
        (lambda: lade(class_counts=COUNTS[:3]).update((), logits=logits, labels=labels), "class_counts"),
        (lambda: adjusted(model_prior=COUNTS[:3]), "model_prior"),
        (lambda: estimate_label_prior(logits, labels, num_steps=0), "num_steps"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
