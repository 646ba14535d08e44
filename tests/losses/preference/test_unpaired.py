import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import arrays, assert_close, drawn, golden, with_gradients

from reweight.losses import preference

GOLDEN = golden("preference_kto_unpaired")
RATIOS = st.floats(-50, 50)


def answers(seed=0, n=9):
    rng = np.random.default_rng(seed)
    return (*(jnp.array(-8 + 3 * rng.normal(size=n), jnp.float32) for _ in range(2)), jnp.array(rng.random(n) < 0.5))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['params']['kind']}, beta {case['params']['beta']}")
def test_losses_and_gradients_agree_with_trl(case, x64):
    hyper = {name: value for name, value in case["params"].items() if name != "kind"}
    policy, reference, *mismatched = arrays(case, "pi", "ref", "kl_pi", "kl_ref")
    desirable = jnp.array(case["inputs"]["desirable"])
    if case["params"]["kind"] == "kto":
        point = preference.kto_reference_point(*mismatched)
        assert_close(point, case["expected"]["kl"])
        losses = functools.partial(preference.kto, reference_point=point, **hyper)
    else:
        losses = functools.partial(preference.apo_zero_unpaired, **hyper)
    found, (grad,) = with_gradients(lambda policy: losses(policy, reference, desirable), policy)
    assert_close(found, case["expected"]["loss"])
    assert_close(grad, case["expected"]["grad_pi"])


@pytest.mark.parametrize("desirable", [True, False])
def test_kto_at_the_reference_point_is_half_its_weight(desirable):
    flags = jnp.full(3, desirable)
    losses = preference.kto(
        jnp.full(3, -4.0), jnp.full(3, -6.0), flags, 2.0, desirable_weight=1.2, undesirable_weight=3
    )
    np.testing.assert_allclose(losses, 0.6 if desirable else 1.5, rtol=1e-6)


def test_kto_raises_good_answers_and_lowers_bad_ones_and_saturates():
    policy, reference, desirable = answers()
    losses, (grad,) = with_gradients(lambda p: preference.kto(p, reference, desirable, 0.5), policy)
    np.testing.assert_array_equal(np.sign(grad), np.where(desirable, -1, 1))
    assert np.all((losses > 0) & (losses < 1))
    far = preference.kto(reference + 1e4, reference, desirable, 0.5)
    np.testing.assert_array_equal(far, np.where(desirable, 0, 1))


def test_kto_at_a_reference_point_of_zero_is_apo_zero():
    hyper = {"beta": 0.3, "desirable_weight": 1.1, "undesirable_weight": 0.7}
    np.testing.assert_array_equal(
        preference.kto(*answers(), 0.0, **hyper), preference.apo_zero_unpaired(*answers(), **hyper)
    )


@hypothesis.given(st.lists(st.tuples(RATIOS, RATIOS), min_size=1, max_size=6))
@hypothesis.settings(max_examples=30, deadline=None)
def test_the_reference_point_is_a_mean_that_is_never_negative(rows):
    policy, reference = np.array(rows, np.float32).T
    point = preference.kto_reference_point(policy, reference)
    np.testing.assert_allclose(point, max(0, np.mean(policy.astype(float) - reference)), rtol=1e-5, atol=1e-5)


def test_the_reference_point_reads_nothing_behind_the_mask():
    policy, reference, keep = answers()
    dirty = jnp.where(keep, policy, jnp.nan)
    wanted = preference.kto_reference_point(policy[keep] + 3, reference[keep])
    np.testing.assert_allclose(preference.kto_reference_point(dirty + 3, reference, mask=keep), wanted, rtol=1e-6)
    assert preference.kto_reference_point(dirty, reference, mask=jnp.zeros(9)) == 0


def test_a_pair_is_two_answers():
    pairs = drawn()
    policy, reference = (jnp.concatenate(sides) for sides in ((pairs[0], pairs[1]), (pairs[2], pairs[3])))
    desirable = jnp.arange(16) < 8
    for single, paired in (
        (preference.bco(policy, reference, desirable, 0.0), preference.bco_pair(*pairs[:4])),
        (preference.apo_zero_unpaired(policy, reference, desirable), preference.apo_zero(*pairs[:4])),
    ):
        np.testing.assert_allclose(single[:8] + single[8:], paired, rtol=1e-5)


def test_a_constant_on_all_log_ratios_changes_kto_and_bco_and_a_shift_of_bco_undoes_it():
    policy, reference, desirable = answers()
    for losses in (
        lambda p: preference.kto(p, reference, desirable, 0.5),
        lambda p: preference.apo_zero_unpaired(p, reference, desirable),
        lambda p: preference.bco(p, reference, desirable, 0.5),
    ):
        assert not np.any(np.isclose(losses(policy + 5), losses(policy)))
    shifted = preference.bco(policy + 5, reference, desirable, 1.0, beta=0.2)
    np.testing.assert_allclose(shifted, preference.bco(policy, reference, desirable, 0.0, beta=0.2), rtol=1e-5)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
def test_no_gradient_flows_through_the_reference_nor_through_the_statistic(name):
    policy, reference, desirable = answers()
    statistic = () if name == "apo_zero_unpaired" else (0.3,)

    def total(policy, reference, *statistic):
        return jnp.sum(getattr(preference, name)(policy, reference, desirable, *statistic))

    grads = jax.grad(total, argnums=tuple(range(2 + len(statistic))))(policy, reference, *statistic)
    assert np.all(grads[0] != 0)
    assert not any(np.any(grad) for grad in grads[1:])
    mismatched = jax.grad(lambda p: preference.kto_reference_point(p, reference))(reference + 3)
    assert not np.any(mismatched)


@pytest.mark.parametrize("ratio", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("desirable", [True, False])
def test_extreme_log_ratios_have_finite_losses_and_gradients(ratio, desirable):
    reference, flags = jnp.zeros(4), jnp.full(4, desirable)
    for losses in (
        lambda p: preference.kto(p, reference, flags, 3.0),
        lambda p: preference.bco(p, reference, flags, -3.0),
    ):
        found, (grad,) = with_gradients(losses, jnp.full(4, ratio))
        assert np.all(np.isfinite([found, grad]))


def test_an_empty_batch_gives_nothing_and_a_point_of_zero():
    none = jnp.zeros(0)
    assert preference.kto(none, none, jnp.zeros(0, bool), 0.0).shape == (0,)
    assert preference.kto_reference_point(none, none) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, r, d: preference.kto(p, r, d, 0.0, beta=0), r"losses\.preference\.kto: argument `beta` is 0"),
        (lambda p, r, d: preference.kto(p, r, d, 0.0, desirable_weight=-1), "argument `desirable_weight` is -1"),
        (lambda p, r, d: preference.kto(p, r, d, jnp.zeros(9)), r"argument `reference_point` is of shape \(9,\)"),
        (lambda p, r, d: preference.kto(p, r[1:], d, 0.0), r"argument `reference` is of shape \(8,\)"),
        (lambda p, r, d: preference.bco(p, r, d[1:], 0.0), r"preference\.bco: argument `desirable` is of shape \(8,\)"),
        (lambda p, r, d: preference.apo_zero_unpaired(p, r, d, beta=-1), "apo_zero_unpaired: argument `beta` is -1"),
        (lambda p, r, d: preference.kto_reference_point(p, r[1:]), "argument `reference_mismatched` is of shape"),
        (lambda p, r, d: preference.kto_reference_point(p, r, mask=d[1:]), "argument `mask` is of shape"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(*answers())
