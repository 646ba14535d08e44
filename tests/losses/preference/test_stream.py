"""Losses of the batch and of the stream. The train step with them is tested in tests/train/test_batch_loss.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from pairs import assert_close, drawn, golden, with_gradients

from reweight import parallel
from reweight.losses import preference

BCO = golden("preference_bco_running")
BETA_DPO = golden("preference_beta_dpo")
PAIRED = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
SEED = jax.random.key(0)


def pairs(seed=0, n=8, scale=1.0, **more):
    return {name: scale * array for name, array in zip(PAIRED, drawn(seed, n)[:4], strict=True)} | more


def judged(seed=0, n=9, mask=False, mismatched=False):
    rng = np.random.default_rng(seed)
    names = ("policy", "reference") + (("policy_mismatched", "reference_mismatched") if mismatched else ())
    signals = {name: (-8 + 3 * rng.normal(size=n)).astype(np.float32) for name in names}
    return signals | {"desirable": rng.random(n) < 0.5} | ({"mask": rng.random(n) < 0.6} if mask else {})


def margins(signals):
    chosen = signals["policy_chosen"] - signals["reference_chosen"]
    return np.asarray(chosen - (signals["policy_rejected"] - signals["reference_rejected"]), np.float64)


def through(loss, signals, names, state=None):
    """Losses, their gradients by the names, the next state."""
    state = loss.init(SEED) if state is None else state
    run = lambda *values: loss.update(state, **{**signals, **dict(zip(names, values, strict=True))})  # noqa: E731
    losses, pullback, state = jax.vjp(run, *(jnp.asarray(signals[name]) for name in names), has_aux=True)
    return losses, pullback(jnp.ones_like(losses)), state


# -- KTO


def test_batch_kto_is_kto_at_the_reference_point_of_the_unmasked():
    loss, signals = preference.batch_kto(beta=0.3, desirable_weight=1.3), judged(mask=True, mismatched=True)
    signals["policy_mismatched"] += 3
    point = preference.kto_reference_point(
        signals["policy_mismatched"], signals["reference_mismatched"], mask=signals["mask"]
    )
    assert point > 0
    answers = (signals["policy"], signals["reference"], signals["desirable"])
    wanted = preference.kto(*answers, point, beta=0.3, desirable_weight=1.3)
    losses, state = loss.update(loss.init(), **signals)
    np.testing.assert_allclose(losses, np.where(signals["mask"], wanted, 0), rtol=1e-6)
    assert state == ()


def test_no_gradient_flows_through_the_reference_point_of_batch_kto():
    signals = judged(mismatched=True)
    signals["policy_mismatched"] += 3
    _, grads, _ = through(preference.batch_kto(), signals, ("policy_mismatched", "policy"))
    assert not np.any(grads[0])
    assert np.all(grads[1] != 0)


# -- BCO


def both(numbers, name):
    """Those of the good answers, then those of the bad ones."""
    return np.concatenate([numbers[f"{name}_{side}"] for side in ("desirable", "undesirable")])


@pytest.mark.parametrize("case", BCO, ids=lambda case: f"beta {case['params']['beta']}")
def test_stream_bco_agrees_with_trl_over_the_stream(case, x64):
    loss = preference.stream_bco(**case["params"])
    state = loss.init()
    for step, expected in zip(case["inputs"]["steps"], case["expected"]["steps"], strict=True):
        signals = {"policy": jnp.array(both(step, "pi")), "reference": jnp.array(both(step, "ref"))}
        signals["desirable"] = jnp.arange(len(signals["policy"])) < len(step["pi_desirable"])
        assert_close(loss.statistics(state, **signals)[0], expected["delta"])
        losses, (grad,), state = through(loss, signals, ("policy",), state)
        assert_close(losses, both(expected, "loss"))
        assert_close(grad, both(expected, "grad_pi"))


def test_pairs_of_bco_are_two_answers_each():
    signals = pairs()
    single = {
        "policy": np.concatenate([signals["policy_chosen"], signals["policy_rejected"]]),
        "reference": np.concatenate([signals["reference_chosen"], signals["reference_rejected"]]),
        "desirable": np.arange(16) < 8,
    }
    paired, state = preference.stream_bco(pairs=True).update(preference.stream_bco().init(), **signals)
    alone, wanted = preference.stream_bco().update(preference.stream_bco().init(), **single)
    np.testing.assert_allclose(paired, alone[:8] + alone[8:], rtol=1e-5)
    np.testing.assert_allclose(state.total[0], wanted.total[0], rtol=1e-6)
    assert state.seen[0] == 16


def test_the_shift_does_not_depend_on_how_the_stream_is_cut():
    loss, signals = preference.stream_bco(), judged(n=12, mask=True)
    _, whole = loss.update(loss.init(), **signals)
    state = loss.init()
    for rows in (slice(0, 1), slice(1, 7), slice(7, 12)):
        shift, state = loss.statistics(state, **{name: array[rows] for name, array in signals.items()})
    np.testing.assert_allclose(state.total[0], whole.total[0], rtol=1e-6)
    ratios = (signals["policy"] - signals["reference"])[signals["mask"]]
    np.testing.assert_allclose(shift, 0.1 * ratios.mean(), rtol=1e-5)


def test_a_batch_of_good_answers_only_and_no_answers_at_all():
    loss = preference.stream_bco()
    losses, state = loss.update(loss.init(), **judged() | {"desirable": np.ones(9, bool)})
    assert np.all(np.isfinite(losses))
    still, same = loss.update(state, **judged(1) | {"mask": np.zeros(9)})
    assert not np.any(still)
    np.testing.assert_array_equal(np.array(same), np.array(state))
    none, _ = loss.statistics(loss.init(), **judged() | {"mask": np.zeros(9)})
    assert none == 0


def test_the_running_mean_stays_exact_after_more_numbers_than_float32_can_count():
    rng = np.random.default_rng(0)
    loss, ratios = preference.stream_bco(beta=1.0), rng.normal(0.3, 1, (500, 4)).astype(np.float32)
    # Where 2 * 10^8 answers have been seen, four more do not change a float32 count, nor a float32 mean.
    before = 2e8
    state = preference.RunningMean(jnp.array([before, 0.0]), jnp.array([5.0 * before, 0.0]))

    def body(state, row):
        shift, state = loss.statistics(state, policy=row, reference=0 * row, desirable=row > 0)
        return state, shift

    state, shifts = jax.jit(lambda s: jax.lax.scan(body, s, jnp.tile(ratios, (200, 1))))(state)
    count, total = (np.float64(pair[0]) + np.float64(pair[1]) for pair in state)
    assert count == before + 4 * 100_000
    np.testing.assert_allclose(total - 5 * before, 200 * ratios.astype(float).sum(), rtol=1e-5)
    np.testing.assert_allclose(shifts[-1], total / count, rtol=2e-7)


# -- beta-DPO


def beta_dpo(case):
    names = {"beta": "beta", "a": "sensitivity", "rho": "keep_rate", "ema": "decay", "beta_min": "min_beta"}
    return preference.beta_dpo(**{names[name]: value for name, value in case["params"].items()})


@pytest.mark.parametrize("case", BETA_DPO, ids=lambda case: f"beta {case['params']['beta']}")
def test_beta_dpo_agrees_with_its_code_for_the_pairs_that_it_drew(case, x64):
    loss = beta_dpo(case)
    state = loss.init(SEED)
    for step, expected in zip(case["inputs"]["steps"], case["expected"]["steps"], strict=True):
        signals = dict(zip(PAIRED, (jnp.array(step[name]) for name in ("pi_w", "pi_l", "ref_w", "ref_l")), strict=True))
        drawn_here, _ = loss.statistics(state, **signals)
        assert np.sum(drawn_here.weights > 0) == expected["num_selected"]
        selected = jnp.array(step["selected"])
        statistics, _ = loss.statistics(state, **signals, selected=selected)
        assert_close(statistics.beta, expected["beta_used"])
        losses, grads, state = through(loss, {**signals, "selected": selected}, PAIRED[:2], state)
        assert_close(state.mean, expected["gap_mean"])
        assert_close(state.std, expected["gap_std"])
        assert_close(jnp.mean(losses), expected["loss_total"])
        assert_close(losses[selected != 0] * np.mean(selected), np.array(expected["loss"])[selected != 0])
        for grad, side in zip(grads, "wl", strict=True):
            assert_close(grad / len(losses), expected[f"grad_pi_{side}"])


def warm(signals):
    """A state whose moving averages are the mean and standard deviation of the margins."""
    margin = margins(signals)
    return preference.BetaDPOState(jnp.float32(margin.mean()), jnp.float32(margin.std(ddof=1)), SEED)


def test_pairs_are_drawn_one_after_the_other_with_weights_that_fall_with_the_distance():
    signals = pairs(3, n=4)
    loss, state = preference.beta_dpo(keep_rate=0.5), warm(signals)
    margin = margins(signals)
    weights = np.exp(-0.5 * ((margin - margin.mean()) / margin.std(ddof=1)) ** 2)
    share = weights / weights.sum()
    # Without replacement: the second is drawn in proportion to the weights that are left.
    wanted = [share[i] + sum(share[j] * share[i] / (1 - share[j]) for j in range(4) if j != i) for i in range(4)]
    keys = jax.random.split(jax.random.key(1), 4000)
    draw = jax.jit(jax.vmap(lambda key: loss.statistics(state._replace(key=key), **signals)[0].weights))
    counts = np.asarray(draw(keys))
    assert np.all((counts > 0).sum(1) == 2)
    np.testing.assert_allclose(np.mean(counts > 0, 0), wanted, atol=0.03)


def test_the_mean_over_the_batch_is_the_mean_over_the_selected():
    signals = pairs(n=12, mask=np.arange(12) % 4 != 0)
    loss = preference.beta_dpo(keep_rate=0.7)
    statistics, _ = loss.statistics(loss.init(SEED), **signals)
    selected = np.asarray(statistics.weights > 0)
    assert selected.sum() == 6  # of the nine unmasked
    assert not np.any(selected & ~signals["mask"])
    losses, _ = loss.update(loss.init(SEED), **signals)
    dpo = preference.dpo(*(signals[name] for name in PAIRED), beta=float(statistics.beta))
    np.testing.assert_allclose(np.sum(losses) / 9, np.mean(dpo[selected]), rtol=1e-5)


def test_a_beta_that_nothing_moves_and_a_selection_of_all_is_dpo():
    signals = pairs()
    loss = preference.beta_dpo(beta=0.3, sensitivity=0.0, keep_rate=1.0)
    losses, _ = loss.update(loss.init(SEED), **signals)
    np.testing.assert_allclose(losses, preference.dpo(*(signals[name] for name in PAIRED), beta=0.3), rtol=1e-5)


def test_wider_margins_hold_the_policy_closer_down_to_the_smallest_beta():
    loss, signals = preference.beta_dpo(beta=0.1, keep_rate=1.0), pairs()
    betas = []
    for shift in (20.0, 0.0, -20.0):
        moved = signals | {"policy_chosen": signals["policy_chosen"] + shift}
        betas.append(float(loss.statistics(warm(signals), **moved)[0].beta))
    assert betas[0] > 0.1
    assert betas[0] > betas[1] > betas[2]
    assert betas[2] == pytest.approx(1e-3)


def test_the_draw_depends_on_the_key_and_the_next_one_on_another_key():
    loss, signals = preference.beta_dpo(keep_rate=0.5), pairs(n=16)
    state = warm(signals)
    first, after = loss.statistics(state, **signals)
    again, _ = loss.statistics(state, **signals)
    second, _ = loss.statistics(state._replace(key=after.key), **signals)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, second.weights)


def test_masked_pairs_do_not_change_who_is_drawn():
    keep = np.array([True, False, True, True, False, True, True, True])
    loss, signals = preference.beta_dpo(keep_rate=0.5), pairs()
    whole, _ = loss.statistics(loss.init(SEED), **signals, mask=keep)
    short, _ = loss.statistics(loss.init(SEED), **{name: array[keep] for name, array in signals.items()})
    np.testing.assert_allclose(whole.weights[keep], short.weights, rtol=1e-6)


@pytest.mark.parametrize(
    "signals",
    [
        pairs(n=1),
        {name: np.full(6, 3.0, np.float32) for name in PAIRED},
        pairs(scale=1e4),
        pairs() | {"policy_chosen": np.full(8, 1e4, np.float32)},
        pairs(mask=np.zeros(8)),
        pairs(mask=np.arange(8) == 2),
        pairs(selected=np.zeros(8)),
    ],
    ids=["a single pair", "no spread", "large margins", "far ahead", "all masked", "one unmasked", "none selected"],
)
def test_beta_dpo_stays_finite(signals):
    loss = preference.beta_dpo()
    state = loss.init(SEED)
    for _ in range(2):
        losses, grads, state = through(loss, signals, PAIRED[:2], state)
        assert np.all(np.isfinite([losses, *grads]))
        assert np.all(np.isfinite([state.mean, state.std]))


def test_margins_without_a_spread_leave_every_selection_as_likely():
    signals = {name: np.full(4, 3.0, np.float32) for name in PAIRED}
    loss = preference.beta_dpo(keep_rate=0.5)
    draw = jax.jit(jax.vmap(lambda key: loss.statistics(loss.init(key), **signals)[0].weights))
    counts = np.asarray(draw(jax.random.split(jax.random.key(2), 2000)))
    np.testing.assert_allclose(np.mean(counts > 0, 0), 0.5, atol=0.05)


# -- AOT


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_batch_aot_has_values_and_summed_gradients_of_the_pure_function(name, masked, ties):
    signals = pairs() | ({"mask": np.arange(8) % 3 != 0} if masked else {})
    if ties:
        signals |= {field: np.round(signals[field] / 4) for field in PAIRED}
    pure = functools.partial(getattr(preference, name), beta=0.3, mask=signals.get("mask"))
    loss = getattr(preference, f"batch_{name}")(beta=0.3)
    losses, grads, _ = through(loss, signals, PAIRED)
    wanted, wanted_grads = with_gradients(pure, *(signals[field] for field in PAIRED))
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(grads, wanted_grads, rtol=1e-5, atol=1e-7)


def test_one_pair_is_dpo():
    signals = pairs(n=1)
    losses, _ = preference.batch_aot(beta=0.3, label_smoothing=0.1).update((), **signals)
    wanted = preference.dpo(*(signals[name] for name in PAIRED), beta=0.3, label_smoothing=0.1)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)


# -- all of them

LOSSES = {
    "batch_kto": (preference.batch_kto(), judged(n=16, mask=True, mismatched=True)),
    "stream_bco": (preference.stream_bco(), judged(n=16, mask=True)),
    "stream_bco of pairs": (preference.stream_bco(pairs=True), pairs(n=16, mask=np.arange(16) % 5 != 0)),
    "beta_dpo": (preference.beta_dpo(), pairs(n=16, mask=np.arange(16) % 5 != 0)),
    "batch_aot": (preference.batch_aot(), pairs(n=16, mask=np.arange(16) % 5 != 0)),
    "batch_aot_unpaired": (preference.batch_aot_unpaired(), pairs(n=16, mask=np.arange(16) % 5 != 0)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_may_be_taken_of_a_part_given_the_statistics_of_the_whole(name):
    loss, signals = LOSSES[name]
    statistics, _ = loss.statistics(loss.init(SEED), **signals)
    whole, _ = loss.update(loss.init(SEED), **signals)
    part = jax.tree.map(lambda x: x[3:9] if jnp.ndim(x) else x, (statistics, signals))
    np.testing.assert_allclose(loss.losses(part[0], **part[1]), whole[3:9], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_each_signal_is_needed(name):
    loss, signals = LOSSES[name]
    for missing in loss.signals:
        rest = {key: value for key, value in signals.items() if key != missing}
        with pytest.raises(ValueError, match=rf"{name.split()[0]}: argument `{missing}` is missing"):
            loss.update(loss.init(SEED), **rest)


@pytest.mark.parametrize("name", ["stream_bco", "beta_dpo"])
def test_a_loss_of_the_global_batch_on_the_shards(name):
    loss, signals = LOSSES[name]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    on_shards = parallel.over_axis(loss.update, "data", batched_in={"state": False}, batched_out=(True, False))
    specs = (PartitionSpec(), PartitionSpec("data"))
    mapped = jax.shard_map(
        lambda state, signals: on_shards(state, **signals), mesh=mesh, in_specs=specs, out_specs=specs[::-1]
    )
    losses, state = jax.jit(mapped)(loss.init(SEED), signals)
    wanted, after = loss.update(loss.init(SEED), **signals)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    np.testing.assert_allclose(state[1], after[1], rtol=1e-5)


def test_beta_dpo_needs_a_key():
    with pytest.raises(ValueError, match=r"losses\.preference\.beta_dpo: argument `key` is missing"):
        preference.beta_dpo().init()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: preference.batch_kto(beta=0), r"losses\.preference\.batch_kto: argument `beta` is 0"),
        (lambda: preference.batch_kto(desirable_weight=-1), "argument `desirable_weight` is -1"),
        (lambda: preference.stream_bco(beta=-1), "stream_bco: argument `beta` is -1"),
        (lambda: preference.beta_dpo(keep_rate=0), "beta_dpo: argument `keep_rate` is 0"),
        (lambda: preference.beta_dpo(decay=1.0), "argument `decay` is 1.0"),
        (lambda: preference.beta_dpo(sensitivity=-1), "argument `sensitivity` is -1"),
        (lambda: preference.beta_dpo(min_beta=0), "argument `min_beta` is 0"),
        (lambda: preference.batch_aot(label_smoothing=0.5), "batch_aot: argument `label_smoothing` is 0.5"),
        (lambda: preference.batch_aot_unpaired(beta=0), "batch_aot_unpaired: argument `beta` is 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused_when_the_loss_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_rejected": np.zeros(7)}, r"argument `policy_rejected` is of shape \(7,\)"),
        ({"policy_chosen": np.zeros((8, 2))}, r"argument `policy_chosen` is of shape \(8, 2\)"),
        ({"mask": np.zeros(7)}, "argument `mask` is of shape"),
        ({"selected": np.zeros(7)}, "beta_dpo: argument `selected` is of shape"),
    ],
)
def test_signals_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        preference.beta_dpo().update(preference.beta_dpo().init(SEED), **pairs() | change)
