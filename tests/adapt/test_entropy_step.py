import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import adapt, optim, reduce
from reweight.losses import classification

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "csfa.json").read_text())["cases"][2:]
*STEPS, NOBODY = GOLDEN
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(8, 3))
PARAMS = {"W": RNG.normal(size=(4, 3)), "b": RNG.normal(size=4)}
SGD = optax.sgd(1.0)


def through(params, inputs=INPUTS):
    return inputs @ params["W"].T + params["b"]


def adapted(optimizer, params=PARAMS, inputs=INPUTS, **options):
    def one(params, inputs):
        return adapt.entropy_step(lambda p: through(p, inputs), params, optimizer.init(params), optimizer, **options)

    return jax.jit(one)(jax.tree.map(jnp.asarray, params), jnp.asarray(inputs))


def of(case):
    return {name: np.array(case["inputs"][name]) for name in ("W", "b")}, np.array(case["inputs"]["x"])


@pytest.mark.parametrize("case", STEPS, ids=range(len(STEPS)))
def test_a_step_agrees_with_the_official_code(case, x64):
    (params, inputs), options = of(case), case["params"]
    optimizer = optim.sharpness_aware(
        SGD, rho=options["rho"], gap_weight=options["alpha_gap"], eps=options["perturb_eps"]
    )
    came = adapted(optimizer, params, inputs, fraction=options["fraction"])
    expected = case["expected"]
    np.testing.assert_array_equal(came.kept, expected["kept_first"])
    np.testing.assert_allclose(classification.prediction_entropy(came.logits), expected["entropy"], rtol=1e-8)
    for name, before in params.items():
        wanted = before - np.array(expected[f"direction_{name}"])
        np.testing.assert_allclose(came.params[name], wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("case", STEPS, ids=range(len(STEPS)))
def test_the_gradients_agree_with_the_official_code(case, x64):
    (params, inputs), expected = of(case), case["expected"]
    plain = adapted(SGD, params, inputs, fraction=case["params"]["fraction"])
    for name, before in params.items():
        wanted = np.array(expected[f"grad_at_theta_{name}"])
        np.testing.assert_allclose(before - plain.params[name], wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1, weight_decay=0.5), optim.sharpness_aware(optax.adam(0.1))])
def test_if_nobody_is_sure_nothing_changes(optimizer, x64):
    params, inputs = of(NOBODY)
    came = adapted(optimizer, params, inputs)
    np.testing.assert_array_equal(came.kept, NOBODY["expected"]["kept_first"])
    jax.tree.map(np.testing.assert_array_equal, came.params, params)
    jax.tree.map(np.testing.assert_array_equal, came.opt_state, optimizer.init(jax.tree.map(jnp.asarray, params)))


def test_a_step_that_keeps_all_is_down_the_mean_entropy(x64):
    came = adapted(SGD, fraction=1.1)
    wanted = jax.grad(lambda p: jnp.mean(classification.prediction_entropy(through(p))))(PARAMS)
    np.testing.assert_array_equal(came.kept, 1)
    for name, before in PARAMS.items():
        np.testing.assert_allclose(before - came.params[name], wanted[name], rtol=1e-9)


def test_without_radius_a_step_is_that_of_the_inner_optimizer(x64):
    plain, aware = adapted(SGD, fraction=0.7), adapted(optim.sharpness_aware(SGD, rho=0.0), fraction=0.7)
    assert 0 < plain.kept.sum() < 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), aware.params, plain.params)


def test_those_who_are_sure_only_here_do_not_count_there(x64):
    # A radius at which some predictions are no longer sure: the perturbed gradient is of the others.
    optimizer = optim.sharpness_aware(SGD, rho=2.0, gap_weight=0.0)
    came = adapted(optimizer, fraction=0.7)

    def mean(params, kept):
        return reduce.weighted_mean(classification.prediction_entropy(through(params)), kept)

    moved = jax.tree.map(jnp.add, PARAMS, optim.ascent_step(jax.grad(mean)(PARAMS, came.kept), rho=2.0))
    still = came.kept * (classification.prediction_entropy(through(moved)) < 0.7 * np.log(4))
    assert 0 < still.sum() < came.kept.sum()
    wanted = jax.grad(mean)(moved, still)
    for name, before in PARAMS.items():
        np.testing.assert_allclose(before - came.params[name], wanted[name], rtol=1e-8)


def test_what_is_masked_is_never_read():
    optimizer, mask = optim.sharpness_aware(SGD), np.arange(8) < 5
    masked = adapted(optimizer, inputs=np.where(mask[:, None], INPUTS, 1e6), fraction=0.8, mask=mask)
    shorter = adapted(optimizer, inputs=INPUTS[:5], fraction=0.8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked.params, shorter.params)
    np.testing.assert_array_equal(masked.kept[5:], 0)


def test_a_static_mistake_is_named():
    with pytest.raises(ValueError, match="argument `fraction`"):
        adapted(SGD, fraction=-0.1)
    with pytest.raises(ValueError, match="argument `mask`"):
        adapted(SGD, mask=np.ones(3))
    with pytest.raises(ValueError, match="argument `logits_fn`"):
        adapt.entropy_step(lambda p: p["b"], PARAMS, SGD.init(PARAMS), SGD)
