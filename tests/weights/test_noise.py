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

from reweight import weights
from reweight.losses.classification import cross_entropy
from reweight.train import LossOutput, init_state, make_step

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "nested_co_teaching.json").read_text())
losses_with_ties = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=10, max_size=10)


@hypothesis.given(losses=losses_with_ties, keep=st.integers(0, 10), masked=st.integers(0, 9))
def test_exactly_the_floor_of_the_rate_is_kept_and_it_is_the_smallest(losses, keep, masked):
    losses = np.float32(losses)
    mask = np.arange(10) >= masked
    count = 10 - masked
    w = np.asarray(weights.small_loss_weights(losses, keep_rate=keep / 10, mask=mask))
    size = max(1, keep * count // 10)
    assert np.sum(w > 0) == size
    np.testing.assert_allclose(w[w > 0], count / size, rtol=1e-6)
    if size < count:
        assert losses[w > 0].max() <= losses[mask & (w == 0)].min()


def test_ties_on_the_edge_go_to_those_that_come_first():
    w = weights.small_loss_weights(np.float32([1, 0, 1, 1]), keep_rate=0.5)
    np.testing.assert_array_equal(w, [2, 2, 0, 0])


def test_a_rate_of_one_keeps_all_and_of_zero_the_smallest():
    losses = np.float32([3, 1, 2])
    np.testing.assert_array_equal(weights.small_loss_weights(losses, keep_rate=1.0), 1)
    np.testing.assert_array_equal(weights.small_loss_weights(losses, keep_rate=0.0), [0, 3, 0])


@pytest.mark.parametrize("hundredths", [10, 53, 59, 70, 100])
def test_no_example_is_lost_to_the_rounding_of_a_decimal_rate(hundredths):
    w = weights.small_loss_weights(jnp.arange(100, dtype=jnp.float32), keep_rate=hundredths / 100)
    assert np.sum(np.asarray(w) > 0) == hundredths


def test_a_rate_in_float32_loses_no_example_of_float64_losses(x64):
    w = weights.small_loss_weights(jnp.arange(10.0), keep_rate=jnp.float32(0.7))
    assert np.sum(np.asarray(w) > 0) == 7


def test_infinite_losses_come_last_but_before_masked_ones():
    losses = np.float32([0, np.inf, 1, 0])
    w = weights.small_loss_weights(losses, keep_rate=1.0, mask=np.array([0, 1, 1, 1]))
    np.testing.assert_array_equal(w, [0, 1, 1, 1])


def test_a_schedule_moves_with_the_batches_and_not_with_empty_ones():
    scheme = weights.small_loss(optax.linear_schedule(1.0, 0.2, 4))
    losses, state, kept = np.arange(10, dtype=np.float32), scheme.init(), []
    for step in range(6):
        _, state = scheme.update(state, losses, mask=np.zeros(10))
        w, state = scheme.update(state, losses)
        kept.append(int(np.sum(np.asarray(w) > 0)))
        assert state.step == step + 1
    assert kept == [10, 8, 6, 4, 2, 2]


def test_a_schedule_that_leaves_the_unit_interval_is_clipped():
    scheme = weights.small_loss(lambda step: 2.0 - 3.0 * step)
    losses = np.arange(4, dtype=np.float32)
    first, state = scheme.update(scheme.init(), losses)
    second, _ = scheme.update(state, losses)
    np.testing.assert_array_equal(first, 1)
    np.testing.assert_array_equal(second, [4, 0, 0, 0])


@pytest.mark.parametrize("rate", [-0.1, 1.1, "0.5", float("nan")])
def test_a_rate_outside_the_unit_interval_is_named(rate):
    with pytest.raises(ValueError, match="argument `keep_rate`"):
        weights.small_loss(rate)
    with pytest.raises(ValueError, match="argument `keep_rate`"):
        weights.small_loss_weights(jnp.ones(3), keep_rate=rate)


@pytest.mark.parametrize("case", GOLDEN["cases"][1:4], ids=range(3))
def test_co_teaching_agrees_with_the_golden_numbers(case, x64):
    given, expected = case["inputs"], case["expected"]
    logits, labels = np.stack([given["logits_a"], given["logits_b"]], axis=1), np.array(given["labels"])
    keep_rate = 1 - case["params"]["forget_rate"]

    def losses_of(logits):
        return cross_entropy(logits, jnp.broadcast_to(labels[:, None], logits.shape[:2]))

    def means(logits):
        losses = losses_of(logits)
        return jnp.mean(weights.co_teaching_weights(losses, keep_rate=keep_rate) * losses, axis=0)

    chosen = np.asarray(weights.co_teaching_weights(losses_of(logits), keep_rate=keep_rate)) > 0
    assert np.all(np.sum(chosen, axis=0) == expected["n_kept"])
    np.testing.assert_array_equal(chosen[:, 0], expected["selected_by_b"])
    np.testing.assert_array_equal(chosen[:, 1], expected["selected_by_a"])
    close = functools.partial(np.testing.assert_allclose, rtol=GOLDEN["rtol"], atol=1e-12)
    close(means(logits), [expected["loss_a"], expected["loss_b"]])
    close(jax.grad(lambda z: means(z)[0])(logits)[:, 0], expected["grad_logits_a"])
    close(jax.grad(lambda z: means(z)[1])(logits)[:, 1], expected["grad_logits_b"])


def test_the_schedule_of_co_teaching_agrees_with_the_golden_numbers():
    case = GOLDEN["cases"][4]
    schedule = weights.keep_schedule(
        case["params"]["rate"], steps_per_epoch=7, gradual_epochs=case["params"]["n_gradual"]
    )
    epochs = np.arange(case["params"]["epochs"])
    for within in (0, 6):  # the rate is that of the epoch
        np.testing.assert_allclose(1 - schedule(7 * epochs + within), case["expected"]["forget_rate"], atol=1e-7)
    at_once = weights.keep_schedule(0.2, steps_per_epoch=7, gradual_epochs=1)
    np.testing.assert_allclose(at_once(7 * epochs[:3]), [1, 0.8, 0.8], rtol=1e-6)


TWO = np.random.default_rng(0).exponential(size=(10, 2)).astype(np.float32)


def test_each_network_has_what_the_other_chose():
    found = weights.co_teaching_weights(TWO, keep_rate=0.6)
    np.testing.assert_array_equal(found[:, 0], weights.small_loss_weights(TWO[:, 1], keep_rate=0.6))
    np.testing.assert_array_equal(found[:, 1], weights.small_loss_weights(TWO[:, 0], keep_rate=0.6))


def test_networks_that_agree_and_a_network_alone_choose_for_themselves():
    own = weights.small_loss_weights(TWO[:, 0], keep_rate=0.6)
    alike = weights.co_teaching_weights(np.stack([TWO[:, 0]] * 2, axis=1), keep_rate=0.6)
    alone = weights.co_teaching_weights(TWO[:, :1], keep_rate=0.6)
    np.testing.assert_array_equal(alike, np.stack([own, own], axis=1))
    np.testing.assert_array_equal(alone[:, 0], own)
    np.testing.assert_array_equal(weights.co_teaching_weights(TWO, keep_rate=1.0), 1)


def test_an_example_that_is_masked_for_one_network_is_so_for_all():
    mask = np.ones((10, 2), bool)
    mask[3, 0] = False
    found = weights.co_teaching_weights(np.where(mask, TWO, np.nan), keep_rate=0.5, mask=mask)
    np.testing.assert_array_equal(found[3], 0)
    rest = np.arange(10) != 3
    np.testing.assert_array_equal(found[rest], weights.co_teaching_weights(TWO[rest], keep_rate=0.5))


def test_two_networks_teach_each_other_in_one_step():
    rng = np.random.default_rng(1)
    batch = {"inputs": rng.normal(size=(20, 3)).astype(np.float32), "labels": rng.integers(0, 2, 20)}
    params, optimizer = rng.normal(size=(2, 3, 2)).astype(np.float32), optax.sgd(0.1)

    def losses_of(params, batch):
        logits = jnp.einsum("bi,pic->bpc", batch["inputs"], params)
        return cross_entropy(logits, jnp.broadcast_to(batch["labels"][:, None], logits.shape[:2]))

    scheme = weights.co_teaching(weights.keep_schedule(0.5, steps_per_epoch=1, gradual_epochs=2))
    step = jax.jit(make_step(lambda p, _, b, key: LossOutput(losses_of(p, b)), optimizer, weighting=scheme))
    state = init_state(params, None, optimizer, scheme)
    for rate in (1.0, 0.5):
        before = state.params
        state, _ = step(state, batch)
        own = np.asarray(losses_of(before, batch))
        for network, peer in ((0, 1), (1, 0)):
            picks = np.argsort(own[:, peer])[: int(20 * rate)]
            chosen = {name: x[picks] for name, x in batch.items()}
            grads = jax.grad(lambda p, n=network, c=chosen: jnp.mean(losses_of(p, c)[:, n]) / 2)(before)
            np.testing.assert_allclose(state.params[network], (before - 0.1 * grads)[network], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: weights.co_teaching(1.5), "keep_rate"),
        (lambda: weights.co_teaching_weights(np.zeros((4, 0), np.float32), keep_rate=0.5), "losses"),
        (lambda: weights.keep_schedule(1.5, steps_per_epoch=3), "forget_rate"),
        (lambda: weights.keep_schedule(steps_per_epoch=0), "steps_per_epoch"),
        (lambda: weights.keep_schedule(steps_per_epoch=3, gradual_epochs=0), "gradual_epochs"),
    ],
)
def test_a_static_mistake_of_co_teaching_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
