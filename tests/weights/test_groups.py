import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import reduce, weights

LOSSES = np.float32([1.0, 3.0, 0.5, 2.0, 4.0])
GROUPS = np.array([0, 0, 1, 2, 2])


def reference_step(log_probs, losses, groups, step_size, adjustment=0.0, counts=None):
    """One step in float64, group by group."""
    size = len(log_probs)
    means = np.array([np.mean(losses[groups == g]) if np.any(groups == g) else 0.0 for g in range(size)])
    if counts is not None:
        means = means + adjustment / np.sqrt(counts)
    q = np.exp(log_probs) * np.exp(step_size * means)
    q /= q.sum()
    w = np.array([len(losses) * q[g] / np.sum(groups == g) for g in groups])
    return w, q


def test_group_means_are_those_of_each_group():
    result = weights.group_means(LOSSES, GROUPS, num_groups=4, mask=np.array([1, 0, 1, 1, 1]))
    np.testing.assert_allclose(result.means, [1.0, 0.5, 3.0, 0.0])
    np.testing.assert_array_equal(result.counts, [1, 1, 2, 0])


def test_a_group_mean_has_the_gradient_of_a_mean_and_none_where_empty():
    jacobian = jax.jacobian(lambda x: weights.group_means(x, GROUPS, num_groups=4).means)(LOSSES)
    np.testing.assert_allclose(jacobian, [[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0.5, 0.5], [0, 0, 0, 0, 0]])


def test_ids_outside_belong_to_no_group():
    result = weights.group_means(LOSSES, np.array([0, -1, 1, 2, 0]), num_groups=2)
    np.testing.assert_allclose(result.means, [2.5, 0.5])
    np.testing.assert_array_equal(result.counts, [2, 1])


def test_steps_are_exponentiated_gradient_ascent_on_the_group_means():
    counts = np.float32([50, 5, 20])
    scheme = weights.group_dro(3, step_size=0.4, adjustment=2.0, group_counts=counts)
    state, q = scheme.init(), np.full(3, 1 / 3)
    np.testing.assert_allclose(np.exp(state.log_probs), q, rtol=1e-6)
    for shift in range(4):
        losses = LOSSES + shift
        w, state = scheme.update(state, losses, groups=GROUPS)
        expected, q = reference_step(np.log(q), losses, GROUPS, 0.4, 2.0, counts)
        np.testing.assert_allclose(w, expected, rtol=1e-5)
        np.testing.assert_allclose(np.exp(state.log_probs), q, rtol=1e-5)


def test_the_weighted_mean_is_the_mixture_of_group_means():
    w = weights.group_dro_weights(GROUPS, jnp.array([0.2, 0.5, 0.3]))
    np.testing.assert_allclose(np.mean(w), 1, rtol=1e-6)
    mixture = 0.2 * 2.0 + 0.5 * 0.5 + 0.3 * 3.0
    np.testing.assert_allclose(reduce.weighted_mean(LOSSES, w, normalizer="count"), mixture, rtol=1e-6)


def test_a_group_that_is_not_there_keeps_its_share_up_to_the_normaliser_and_its_mass_is_missing():
    scheme = weights.group_dro(4, step_size=0.4)
    w, state = scheme.update(scheme.init(), LOSSES, groups=GROUPS)
    expected, q = reference_step(np.log(np.full(4, 0.25)), LOSSES, GROUPS, 0.4)
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    np.testing.assert_allclose(np.mean(w), 1 - q[3], rtol=1e-5)
    np.testing.assert_allclose(np.exp(state.log_probs), q, rtol=1e-5)


def test_without_steps_every_group_counts_equally():
    w, _ = weights.group_dro(3, step_size=0.0).update(weights.group_dro(3).init(), LOSSES, groups=GROUPS)
    np.testing.assert_allclose(w, 5 / 3 / np.array([2, 2, 1, 2, 2]), rtol=1e-6)


def test_one_group_is_the_plain_mean():
    scheme = weights.group_dro(1, step_size=3.0)
    w, _ = scheme.update(scheme.init(), LOSSES, groups=np.zeros(5, int))
    np.testing.assert_allclose(w, 1, rtol=1e-6)


def test_the_worst_group_takes_all_in_the_end():
    scheme = weights.group_dro(3, step_size=1.0)
    state = scheme.init()
    for _ in range(40):
        w, state = scheme.update(state, LOSSES, groups=GROUPS)
    np.testing.assert_allclose(w, [0, 0, 0, 2.5, 2.5], atol=1e-5)


def test_classes_can_be_the_groups():
    by_label, _ = weights.group_dro(3, signal="labels").update(weights.group_dro(3).init(), LOSSES, labels=GROUPS)
    by_group, _ = weights.group_dro(3).update(weights.group_dro(3).init(), LOSSES, groups=GROUPS)
    np.testing.assert_array_equal(by_label, by_group)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: weights.group_dro(0), "num_groups"),
        (lambda: weights.group_dro(2, step_size=-1), "step_size"),
        (lambda: weights.group_dro(2, adjustment=1.0), "group_counts"),
        (lambda: weights.group_dro(2, adjustment=1.0, group_counts=np.ones(3)), "group_counts"),
        (lambda: weights.group_means(LOSSES, GROUPS[:2], num_groups=3), "groups"),
        (lambda: weights.group_means(LOSSES, GROUPS * 1.0, num_groups=3), "groups"),
        (lambda: weights.group_means(LOSSES, GROUPS, num_groups=2.5), "num_groups"),
        (lambda: weights.group_dro_weights(GROUPS, jnp.ones((2, 2))), "group_probs"),
        (lambda: weights.group_dro_weights(GROUPS * 1.0, jnp.ones(2)), "groups"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
