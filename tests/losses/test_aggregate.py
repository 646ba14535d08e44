import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import reduce
from reweight.losses import aggregate
from reweight.train import LossOutput, init_state, make_step

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "aggregate_responses.json").read_text())
CASES, RIDGE = GOLDEN["cases"][:3], GOLDEN["cases"][3]
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-11}
RNG = np.random.default_rng(0)
PREDICTIONS = RNG.normal(size=9).astype(np.float32)
IDS = np.array([2, 0, 0, 1, 2, 2, 0, 2, 1])
MEANS = np.float32([0.2, 0.9, 0.6])
LOSSES = ("squared", "logistic")

interpolated = jax.jit(aggregate.interpolated_loss, static_argnames="loss")


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_losses_agree_with_the_golden_numbers(case, x64):
    expected, rho = case["expected"], case["params"]["rho"]
    preds, ids, means = (np.array(case["inputs"][name]) for name in ("preds", "bag_ids", "bag_means"))
    loss = {"squared": "squared", "bce": "logistic"}[case["params"]["loss"]]
    # The numbers of the cross-entropy are for probabilities, and their gradients too.
    predictions, slope = (preds, 1.0) if loss == "squared" else (np.log(preds / (1 - preds)), preds * (1 - preds))

    def check(function, name, mean, grad):
        np.testing.assert_allclose(function(predictions), expected[name], **CLOSE)
        value, came = jax.value_and_grad(lambda x: jnp.mean(function(x)))(predictions)
        np.testing.assert_allclose(value, expected[mean], **CLOSE)
        np.testing.assert_allclose(came, slope * np.array(expected[grad]), **CLOSE)

    check(lambda x: aggregate.bag_loss(x, ids, means, loss=loss), "bag_loss", "bag_loss_mean", "grad_preds_bag_mean")
    check(
        lambda x: aggregate.instance_loss(x, ids, means, loss=loss),
        "instance_loss",
        "instance_loss_mean",
        "grad_preds_instance_mean",
    )
    if "interpolated_mean" in expected:
        check(
            lambda x: aggregate.interpolated_loss(x, ids, means, rho=rho, loss=loss),
            "interpolated_per_bag",
            "interpolated_mean",
            "grad_preds_interpolated_mean",
        )
    if "R_within_bag_variance" in expected:
        gap = expected["instance_loss_mean"] - expected["bag_loss_mean"]
        np.testing.assert_allclose(gap, expected["R_within_bag_variance"], **CLOSE)


@pytest.mark.parametrize("rho", [0.0, 0.25, 1.0])
def test_the_closed_form_agrees_with_the_golden_numbers(rho, x64):
    features, ids, means = (np.array(RIDGE["inputs"][name]) for name in ("X", "bag_ids", "bag_means"))
    theta = aggregate.interpolated_ridge(features, ids, means, rho=rho)
    np.testing.assert_allclose(theta, RIDGE["expected"][f"theta_rho{rho}"], rtol=GOLDEN["rtol"])


@hypothesis.given(seed=st.integers(0, 1000), rho=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_squared_loss_is_that_of_the_bag_and_rho_times_its_variance(seed, rho):
    rng = np.random.default_rng(seed)
    predictions, ids = rng.normal(size=9).astype(np.float32), rng.integers(0, 3, 9)
    own = [predictions[ids == bag] for bag in range(3)]
    wanted = [(x.mean() - m) ** 2 + rho * x.var() if len(x) else 0 for x, m in zip(own, MEANS, strict=True)]
    np.testing.assert_allclose(interpolated(predictions, ids, MEANS, rho=rho), wanted, rtol=1e-4, atol=1e-6)


@hypothesis.given(seed=st.integers(0, 1000), loss=st.sampled_from(LOSSES))
def test_instances_cost_no_less_than_their_bag(seed, loss):
    rng = np.random.default_rng(seed)
    predictions, ids = 3 * rng.normal(size=9).astype(np.float32), rng.integers(0, 3, 9)
    at_bag, at_instances = (interpolated(predictions, ids, MEANS, rho=rho, loss=loss) for rho in (0.0, 1.0))
    assert np.all(at_instances >= at_bag - 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_bags_of_one_are_ordinary_supervision_for_every_rho(loss):
    means = RNG.random(9).astype(np.float32)
    if loss == "squared":
        wanted = (PREDICTIONS - means) ** 2
    else:
        wanted = optax.losses.sigmoid_binary_cross_entropy(PREDICTIONS, means)
    for rho in (0.0, 0.4, 1.0):
        came = interpolated(PREDICTIONS, np.arange(9), means, rho=rho, loss=loss)
        np.testing.assert_allclose(came, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_order_in_a_bag_does_not_matter_and_an_empty_bag_costs_nothing(loss):
    order = RNG.permutation(9)
    wanted = interpolated(PREDICTIONS, IDS, MEANS, rho=0.3, loss=loss)
    came = interpolated(PREDICTIONS[order], IDS[order], MEANS, rho=0.3, loss=loss)
    np.testing.assert_allclose(came, wanted, rtol=1e-5)
    more = interpolated(PREDICTIONS, IDS, np.append(MEANS, np.float32(0.5)), rho=0.3, loss=loss)
    np.testing.assert_allclose(more, np.append(wanted, 0.0), rtol=1e-6)


def test_the_mean_probability_keeps_its_digits_where_all_probabilities_are_tiny():
    logits = np.float32([-200.0, -201.0, -300.0])
    loss = aggregate.bag_loss(logits, np.zeros(3, int), np.float32([1.0]), loss="logistic")
    wanted = -(np.logaddexp.reduce(np.float64([-200, -201, -300])) - np.log(3))
    np.testing.assert_allclose(loss, [wanted], rtol=1e-6)


def test_the_sums_of_pieces_give_the_means_of_the_bags():
    parts = [aggregate.bag_sums(PREDICTIONS[s], IDS[s], num_bags=4) for s in (slice(2), slice(2, 9))]
    means = reduce.combine(parts)
    np.testing.assert_allclose(means, [*(PREDICTIONS[bag == IDS].mean() for bag in range(3)), 0], rtol=1e-5)
    assert aggregate.bag_sums(np.ones((9, 2), np.float32), IDS, num_bags=4).total.shape == (4, 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_that_cuts_bags_into_microbatches_is_that_of_the_bags(loss, x64):
    inputs = RNG.normal(size=(12, 3))
    ids, means = np.arange(12) % 5, RNG.random(6)
    mask = np.arange(12) != 4
    batch = {"inputs": inputs, "bag_ids": ids, "responses": means[ids], "mask": mask}
    of_batch, optimizer = aggregate.batch_interpolated(num_bags=6, rho=0.3, loss=loss), optax.sgd(0.1)

    def signals(params, extra, batch, key):
        return LossOutput(signals={"predictions": batch["inputs"] @ params})

    def whole(params):
        losses = aggregate.interpolated_loss(inputs @ params, ids, means, rho=0.3, loss=loss, mask=mask)
        return jnp.sum(losses) / len(set(ids[mask]))

    value, grad = jax.value_and_grad(whole)(jnp.ones(3))
    for microbatches in (1, 4):
        state = init_state(jnp.ones(3), None, optimizer, key=jax.random.key(0), loss=of_batch)
        state, metrics = make_step(signals, optimizer, loss=of_batch, microbatches=microbatches)(state, batch)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-9)
        np.testing.assert_allclose(state.params, 1 - 0.1 * grad, rtol=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_the_closed_form_is_where_the_loss_has_no_slope_also_with_bags_of_unequal_size(rho, x64):
    features = RNG.normal(size=(9, 2))
    theta = aggregate.interpolated_ridge(features, IDS, MEANS, rho=rho)
    slope = jax.grad(lambda t: jnp.mean(aggregate.interpolated_loss(features @ t, IDS, MEANS, rho=rho)))(theta)
    np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_of_many_solutions_the_closed_form_is_the_shortest():
    features = RNG.normal(size=(9, 5)).astype(np.float32)
    theta = aggregate.interpolated_ridge(features, IDS, MEANS, rho=0.0)
    mean = np.stack([features[bag == IDS].mean(0) for bag in range(3)])
    np.testing.assert_allclose(theta, np.linalg.pinv(mean) @ MEANS, rtol=1e-4, atol=1e-5)


def test_published_means_are_clipped_and_have_the_noise_of_their_size():
    responses = np.float32([5.0, -5.0, 5.0, 0.1, 0.2, 5.0, 0.5, 0.0, 9.0])
    exact = aggregate.private_bag_means(jax.random.key(0), responses, IDS, num_bags=4, epsilon=np.inf, clip=1.0)
    np.testing.assert_allclose(exact, [(-1 + 1 + 0.5) / 3, (0.1 + 1) / 2, (1 + 0.2 + 1 + 0) / 4, 0], rtol=1e-5)
    publish = jax.vmap(lambda key: aggregate.private_bag_means(key, responses, IDS, num_bags=4, epsilon=0.5, clip=1.0))
    drawn = publish(jax.random.split(jax.random.key(1), 20_000)) - exact
    np.testing.assert_allclose(np.mean(np.abs(drawn), 0), 2 / (np.array([3, 2, 4, np.inf]) * 0.5), rtol=0.03)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: aggregate.bag_loss(PREDICTIONS, IDS, MEANS, loss="bce"), "loss"),
        (lambda: aggregate.bag_loss(PREDICTIONS, IDS + 0.5, MEANS), "bag_ids"),
        (lambda: aggregate.bag_loss(PREDICTIONS, IDS[:2], MEANS), "bag_ids"),
        (lambda: aggregate.interpolated_loss(PREDICTIONS, IDS, MEANS, rho=1.5), "rho"),
        (lambda: aggregate.interpolated_ridge(PREDICTIONS, IDS, MEANS, rho=0.5), "features"),
        (lambda: aggregate.batch_interpolated(num_bags=0, rho=0.5), "num_bags"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
