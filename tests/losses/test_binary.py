import functools
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight.losses import binary
from reweight.train import LossOutput, init_state, make_step

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "ensloss.json").read_text())
DRAWN, FIXED = GOLDEN["cases"][:4], GOLDEN["cases"][4]
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-11}
SCORES = np.random.default_rng(0).normal(size=12).astype(np.float32) * 2
LABELS = np.arange(12) % 3 == 0
MARGINS = np.where(LABELS, SCORES, -SCORES)
BASELINES = {
    "Hinge": binary.hinge,
    "EXP": binary.exponential,
    "sqrt_Hinge": functools.partial(binary.hinge, tail="sqrt"),
    "Inv_Log_Hinge": functools.partial(binary.hinge, tail="inverse_log"),
    "Log_Hinge": functools.partial(binary.hinge, tail="log"),
    "Exp_Hinge": functools.partial(binary.hinge, tail="exp"),
    "Inv_Hinge": functools.partial(binary.hinge, tail="inverse"),
    "BinFocal": functools.partial(binary.binary_focal, gamma=FIXED["params"]["focal_gamma"]),
    "BCELoss": binary.logistic,
}

slopes = jax.jit(jax.grad(lambda scores, g, mask=None: jnp.sum(binary.rank_matched_loss(scores, LABELS, g, mask=mask))))


@pytest.mark.parametrize("case", DRAWN, ids=range(len(DRAWN)))
def test_random_derivatives_agree_with_the_golden_numbers(case, x64):
    scores, labels, noise = (np.array(case["inputs"][name]) for name in ("scores", "labels01", "normal_noise"))
    derivatives = -binary.inverse_box_cox(noise, lam=case["params"]["lam"])
    losses = binary.rank_matched_loss(scores, labels, derivatives)
    np.testing.assert_allclose(losses, case["expected"]["loss_per_example"], **CLOSE)
    mean = lambda scores: jnp.mean(binary.rank_matched_loss(scores, labels, derivatives))  # noqa: E731
    np.testing.assert_allclose(mean(scores), case["expected"]["loss_mean"], **CLOSE)
    np.testing.assert_allclose(jax.grad(mean)(scores), case["expected"]["grad_scores"], **CLOSE)


@pytest.mark.parametrize("name", BASELINES)
def test_margin_losses_agree_with_the_golden_numbers(name, x64):
    scores, labels = np.array(FIXED["inputs"]["scores"]), np.array(FIXED["inputs"]["labels01"])
    np.testing.assert_allclose(BASELINES[name](scores, labels), FIXED["expected"][name], **CLOSE)
    grad = jax.grad(lambda scores: jnp.sum(BASELINES[name](scores, labels)))(scores)
    np.testing.assert_allclose(grad, FIXED["expected"][f"grad_scores_{name}"], **CLOSE)


@pytest.mark.parametrize("tail", ["zero", "sqrt", "log", "exp", "inverse", "inverse_log"])
def test_hinges_are_the_same_up_to_a_margin_of_one_and_finite_everywhere(tail):
    scores = np.float32([-1e4, -1, -0.5, 0, 0.5, 1, np.nextafter(np.float32(1), 2), 1e4])
    losses = binary.hinge(scores, np.ones(8, int), tail=tail)
    np.testing.assert_array_equal(losses[:6], 1 - scores[:6])
    grad = jax.grad(lambda x: jnp.sum(binary.hinge(x, np.ones(8, int), tail=tail)))(scores)
    assert np.all(np.isfinite(losses))
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(grad[:6], -1)


def test_focal_without_focus_is_logistic():
    np.testing.assert_allclose(
        binary.binary_focal(SCORES, LABELS, gamma=0.0), binary.logistic(SCORES, LABELS), rtol=1e-6
    )


def test_sorted_derivatives_of_the_hinge_and_of_the_logistic_loss_give_these():
    for derivatives, slope in (
        (-(MARGINS < 1).astype(np.float32), lambda m: -1.0 * (m < 1)),
        (-1 / (1 + np.exp(MARGINS)), lambda m: -1 / (1 + np.exp(m)) / np.where(m > 1, m, 1)),
    ):
        found = slopes(SCORES, np.random.default_rng(1).permutation(derivatives))
        np.testing.assert_allclose(found * np.where(LABELS, 1, -1), slope(MARGINS), rtol=1e-5, atol=2e-6)


@hypothesis.given(seed=st.integers(0, 1000), lam=st.sampled_from([0.0, 0.5, -0.8, 1.0]))
def test_derivatives_rise_are_negative_and_bounded(seed, lam):
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=12).astype(np.float32)
    derivatives = -binary.inverse_box_cox(rng.normal(size=12).astype(np.float32), lam=lam)
    margins = np.where(LABELS, scores, -scores)
    own = (slopes(scores, derivatives) * np.where(LABELS, 1, -1))[np.argsort(margins)]
    assert np.all(own < 0)
    assert np.all(own >= -1 - 2e-6)
    assert np.all(np.diff(own[np.sort(margins) <= 1]) >= 0)


def test_box_cox_goes_back():
    z = np.float32([-0.9, -0.1, 0.0, 0.3, 1.4])
    for lam in (-0.7, 0.3, 1.0):
        x = binary.inverse_box_cox(z, lam=lam)
        np.testing.assert_allclose((x**lam - 1) / lam, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(binary.inverse_box_cox(z, lam=1e-6), np.exp(z), rtol=1e-5)
    np.testing.assert_array_equal(binary.inverse_box_cox(np.float32([-5.0]), lam=0.5), 0)
    assert np.isfinite(binary.inverse_box_cox(np.float32([5.0, 1e4]), lam=-0.5)).all()
    assert np.isfinite(binary.inverse_box_cox(np.float32([1e4])))


def test_one_example_has_the_one_derivative():
    loss = binary.rank_matched_loss(np.float32([0.5]), np.array([1]), np.float32([-0.3]))
    np.testing.assert_allclose(loss, [(-0.3 - 1e-6) * 0.5], rtol=1e-6)


def test_masked_examples_leave_the_ranks_of_the_others():
    mask = np.arange(12) % 4 != 1
    derivatives = -np.random.default_rng(2).exponential(size=12).astype(np.float32)
    losses = binary.rank_matched_loss(np.where(mask, SCORES, np.nan), LABELS, derivatives, mask=mask)
    wanted = binary.rank_matched_loss(SCORES[mask], LABELS[mask], derivatives[mask])
    np.testing.assert_allclose(losses[mask], wanted, rtol=1e-6)
    np.testing.assert_array_equal(losses[~mask], 0)
    key = jax.random.key(3)
    np.testing.assert_allclose(
        binary.ensloss(key, SCORES, LABELS, mask=mask)[mask],
        binary.ensloss(key, SCORES[mask], LABELS[mask]),
        rtol=1e-6,
    )


def test_no_gradient_flows_through_derivatives():
    derivatives = -np.random.default_rng(2).exponential(size=12).astype(np.float32)
    grad = jax.grad(lambda g: jnp.sum(binary.rank_matched_loss(SCORES, LABELS, g)))(derivatives)
    np.testing.assert_array_equal(grad, 0)


def test_the_stream_draws_anew_every_batch_and_lam_when_it_is_time():
    loss = binary.stream_ensloss()
    state = loss.init(jax.random.key(0))
    first, state = loss.update(state, scores=SCORES, labels=LABELS)
    second, state = loss.update(state, scores=SCORES, labels=LABELS)
    assert not np.allclose(first, second)
    assert state.batches == 2
    redrawn = binary.stream_ensloss(redraw=2)
    state = redrawn.init(jax.random.key(0))
    values = [redrawn.update(state._replace(batches=jnp.int32(i)), scores=SCORES, labels=LABELS)[0] for i in range(3)]
    assert not np.allclose(values[0], first)
    assert all(np.all(np.isfinite(value)) for value in values)


def test_a_step_in_microbatches_matches_ranks_over_the_batch():
    loss, optimizer = binary.stream_ensloss(), optax.sgd(0.1)
    inputs = np.random.default_rng(4).normal(size=(12, 3)).astype(np.float32)
    batch = {"inputs": inputs, "labels": LABELS.astype(np.int32), "mask": np.arange(12) != 7}

    def signals(params, extra, batch, key):
        return LossOutput(signals={"scores": batch["inputs"] @ params})

    ends = []
    for microbatches in (1, 4):
        state = init_state(jnp.ones(3), None, optimizer, key=jax.random.key(0), loss=loss)
        state, _ = make_step(signals, optimizer, loss=loss, microbatches=microbatches)(state, batch)
        ends.append(np.asarray(state.params))
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-5)
    assert not np.allclose(ends[0], 1)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: binary.hinge(SCORES, LABELS, tail="flat"), "tail"),
        (lambda: binary.logistic(SCORES, SCORES), "labels"),
        (lambda: binary.binary_focal(SCORES, LABELS, gamma=-1.0), "gamma"),
        (lambda: binary.rank_matched_loss(SCORES, LABELS, SCORES[:3]), "derivatives"),
        (lambda: binary.stream_ensloss(redraw=0), "redraw"),
        (lambda: binary.stream_ensloss().init(), "key"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
