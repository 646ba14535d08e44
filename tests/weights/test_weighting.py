"""The contract itself: lifting, chaining, normalising, diagnosing."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import weights

positive = st.lists(st.floats(np.float32(1e-3), 1e3, width=32), min_size=6, max_size=6)


def scaled(losses, *, labels, factor=2.0, mask=None):
    kept = 1.0 if mask is None else mask
    return kept * factor * labels * losses


def test_stateless_reads_its_keyword_arguments_as_signals():
    scheme = weights.stateless(scaled, scope="example")
    assert scheme.signals == ("labels",)
    assert scheme.scope == "example"
    w, state = scheme.update(scheme.init(), jnp.ones(2), labels=jnp.array([1, 3]), unknown=jnp.zeros(5))
    np.testing.assert_array_equal(w, [2, 6])
    assert state == ()


def test_what_partial_has_bound_is_no_signal():
    scheme = weights.stateless(functools.partial(scaled, factor=3.0), name="scaled")
    w, _ = scheme.update((), jnp.ones(2), labels=jnp.array([1, 1]), factor=100.0)
    np.testing.assert_array_equal(w, [3, 3])


def test_stateless_weights_carry_no_gradient():
    scheme = weights.stateless(scaled)
    grad = jax.grad(lambda x: jnp.sum(scheme.update((), x, labels=jnp.array([1, 3]))[0]))(jnp.ones(2))
    np.testing.assert_array_equal(grad, 0)


def test_a_missing_signal_is_named_with_those_that_came():
    with pytest.raises(ValueError, match=r"scaled: argument `labels` is missing.*came: groups, mask"):
        weights.stateless(scaled).update((), jnp.ones(2), groups=jnp.ones(2), mask=jnp.ones(2))


def test_an_unknown_scope_is_named():
    with pytest.raises(ValueError, match="argument `scope` is 'global'"):
        weights.stateless(scaled, scope="global")


def test_chain_multiplies_and_keeps_each_state():
    a, b = weights.kl_dro(temperature=2.0), weights.group_dro(2, step_size=1.0)
    chained = weights.chain(a, b)
    losses, groups = jnp.array([1.0, 2.0, 0.5]), jnp.array([0, 1, 1])
    state = chained.init()
    for _ in range(2):
        expected_b, next_b = b.update(state[1], losses, groups=groups)
        w, state = chained.update(state, losses, groups=groups)
        np.testing.assert_allclose(w, a.update((), losses)[0] * expected_b)
        np.testing.assert_array_equal(state[1].log_probs, next_b.log_probs)


def test_a_chain_needs_what_its_members_need_and_looks_as_far_as_they_do():
    example = weights.class_weighted(jnp.ones(2))
    both = weights.chain(example, weights.inverse_frequency(jnp.ones(2), signal="groups"), example)
    assert both.signals == ("labels", "groups")
    assert both.scope == "example"
    assert weights.chain(example, weights.kl_dro()).scope == "batch"


def test_a_chain_of_one_is_that_one():
    losses = jnp.array([1.0, 3.0])
    w, _ = weights.chain(weights.kl_dro()).update(((),), losses)
    np.testing.assert_array_equal(w, weights.kl_dro_weights(losses))


def test_a_chain_gives_each_member_its_own_key():
    drawn = weights.Weighting(lambda key=None: jax.random.uniform(key), lambda state, losses, **_: (losses, state))
    a, b = weights.chain(drawn, drawn).init(jax.random.key(0))
    assert a != b


def test_a_chain_refuses_what_is_no_weighting():
    with pytest.raises(ValueError, match=r"weights\.chain: argument `weightings\[1\]` is of type function"):
        weights.chain(weights.uniform(), weights.kl_dro_weights)


def test_an_empty_chain_is_refused():
    with pytest.raises(ValueError, match="argument `weightings` is empty"):
        weights.chain()


@hypothesis.given(w=positive, masked=st.sets(st.integers(0, 5), max_size=6))
def test_normalize_gives_mean_one_over_the_unmasked_in_the_same_proportions(w, masked):
    w, mask = np.float32(w), np.array([i not in masked for i in range(6)])
    scaled = np.asarray(weights.normalize(np.where(mask, w, np.nan), mask=mask))
    expected = np.where(mask, w, 0) / (w[mask].mean() if mask.any() else 1)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-36, 1e30, 1e37])
def test_normalize_holds_at_the_ends_of_float32(size):
    np.testing.assert_allclose(weights.normalize(jnp.float32(size) * jnp.array([1.0, 0.5, 0.0])), [2, 1, 0], rtol=1e-6)


@pytest.mark.parametrize("function", ["effective_sample_size", "max_weight_share", "weight_entropy"])
def test_diagnostics_of_nothing_are_zero(function):
    diagnose = getattr(weights, function)
    assert diagnose(jnp.zeros(3)) == 0
    assert diagnose(jnp.full(3, jnp.nan), mask=jnp.zeros(3)) == 0


@hypothesis.given(w=positive, scale=st.floats(1e-3, 1e3))
def test_diagnostics_are_their_formulas_on_any_scale(w, scale):
    w = np.float32(w) * np.float32(scale)
    p = w.astype(np.float64) / w.astype(np.float64).sum()
    np.testing.assert_allclose(weights.effective_sample_size(w), 1 / np.sum(p**2), rtol=1e-5)
    np.testing.assert_allclose(weights.max_weight_share(w), p.max(), rtol=1e-5)
    np.testing.assert_allclose(weights.weight_entropy(w), -np.sum(p * np.log(p)), rtol=1e-4, atol=1e-5)


def test_diagnostics_of_equal_weights_and_of_one_weight():
    equal, mask, single = jnp.full(5, 3.0), jnp.array([1, 1, 1, 1, 0]), jnp.array([0.0, 2.0, 0.0])
    assert weights.effective_sample_size(equal, mask=mask) == 4
    assert weights.max_weight_share(equal, mask=mask) == 0.25
    np.testing.assert_allclose(weights.weight_entropy(equal, mask=mask), np.log(4), rtol=1e-6)
    assert weights.effective_sample_size(single) == 1
    assert weights.max_weight_share(single) == 1
    assert weights.weight_entropy(single) == 0


def test_deferred_weights_are_ones_until_they_set_in():
    late = weights.deferred(weights.kl_dro(temperature=0.5), start_step=2)
    losses, mask = jnp.array([0.3, 2.0, 1.0]), jnp.array([1, 1, 0])
    state = late.init()
    for step in range(4):
        w, state = late.update(state, losses, mask=mask)
        wanted = mask if step < 2 else weights.kl_dro_weights(losses, temperature=0.5, mask=mask)
        np.testing.assert_allclose(w, wanted, rtol=1e-6)
    at_once = weights.deferred(weights.kl_dro(temperature=0.5), start_step=0)
    np.testing.assert_allclose(at_once.update(at_once.init(), losses, mask=mask)[0], w, rtol=1e-6)


def test_a_deferred_scheme_is_warm_when_it_sets_in():
    inner = weights.group_dro(3, step_size=0.5, signal="labels")
    late, state, inner_state = weights.deferred(inner, start_step=2), None, inner.init()
    state = late.init()
    for _ in range(3):
        w, state = late.update(state, jnp.array([0.1, 1.0, 2.0]), labels=jnp.arange(3))
        wanted, inner_state = inner.update(inner_state, jnp.array([0.1, 1.0, 2.0]), labels=jnp.arange(3))
    np.testing.assert_allclose(w, wanted, rtol=1e-6)
    assert late.signals == inner.signals


def test_what_is_deferred_must_be_a_weighting_and_start_somewhere():
    with pytest.raises(ValueError, match=r"weights.deferred: argument `inner` is of type function"):
        weights.deferred(weights.kl_dro_weights, start_step=1)
    with pytest.raises(ValueError, match=r"weights.deferred: argument `start_step` is -1"):
        weights.deferred(weights.uniform(), start_step=-1)
