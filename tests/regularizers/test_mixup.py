import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from reweight import parallel
from reweight.losses.classification import cross_entropy
from reweight.regularizers.mixup import Mixture, d_mixup, draw_mixture, mix, mixup
from reweight.train import LossOutput, init_state, jit_step, make_step

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "temperature_overlap.json").read_text())
KEY = jax.random.key(0)


def batch(seed=0, n=12, classes=3):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(n, 2, 2))), np.eye(classes, dtype=np.float32)[rng.integers(0, classes, n)]


@pytest.mark.parametrize("case", GOLDEN["cases"][3:], ids=["two", "three"])
def test_mixtures_and_their_loss_agree_with_the_golden_numbers(case, x64):
    inputs, expected = {name: np.array(value) for name, value in case["inputs"].items()}, case["expected"]
    size = len(inputs["x"])
    partners = np.stack([np.arange(size), *inputs["permutations"]], axis=1)
    mixture = Mixture(partners, np.broadcast_to(inputs["weights"], partners.shape))
    x, targets = mix(inputs["x"], mixture), mix(np.eye(len(inputs["W"]))[inputs["labels"]], mixture)
    np.testing.assert_allclose(x, expected["x_mix"], rtol=GOLDEN["rtol"])
    np.testing.assert_allclose(targets, expected["targets_mix"], rtol=GOLDEN["rtol"])
    loss = jnp.mean(cross_entropy(x @ inputs["W"].T, targets))
    np.testing.assert_allclose(loss, expected["loss_mean"], rtol=GOLDEN["rtol"])
    # The cross-entropy of mixed targets is the mixture of cross-entropies.
    apart = [cross_entropy(x @ inputs["W"].T, inputs["labels"][rows]) for rows in partners.T]
    np.testing.assert_allclose(loss, inputs["weights"] @ jnp.mean(jnp.stack(apart), axis=1), rtol=1e-12)


@pytest.mark.parametrize("per_example", [False, True])
def test_weights_are_shares_and_partners_are_permutations(per_example):
    mixture = draw_mixture(KEY, 50, d=4, per_example=per_example)
    np.testing.assert_allclose(np.sum(mixture.weights, axis=1), 1, rtol=1e-6)
    assert np.min(mixture.weights) >= 0
    assert len(np.unique(mixture.weights, axis=0)) == (50 if per_example else 1)
    np.testing.assert_array_equal(mixture.partners[:, 0], np.arange(50))
    np.testing.assert_array_equal(np.sort(mixture.partners, axis=0), np.arange(50)[:, None].repeat(4, axis=1))
    assert len(np.unique(mixture.partners, axis=1).T) == 4


def test_the_distributions_are_those_of_dirichlet_and_of_uniform_permutations():
    draw = jax.jit(jax.vmap(lambda key: draw_mixture(key, 4, d=3, alpha=0.5)))
    mixture = draw(jax.random.split(KEY, 4000))
    first = np.asarray(mixture.weights[:, 0])
    np.testing.assert_allclose(first.mean(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(first.var(axis=0), (1 / 3) * (2 / 3) / (3 * 0.5 + 1), rtol=0.06)
    orders, counts = np.unique(mixture.partners[:, :, 1], axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.sum((counts - 4000 / 24) ** 2 / (4000 / 24)) < 50  # chi-squared, 23 degrees of freedom


def test_one_row_alone_is_no_mixture():
    x, targets = batch()
    same, same_targets = d_mixup(KEY, x, targets, d=1)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(same_targets, targets)


def test_mixup_is_d_mixup_of_two_by_one_weight_for_the_batch():
    x, targets = batch()
    for options in ({}, {"alpha": 0.3}, {"per_example": True}, {"largest_first": True}):
        for came, wanted in zip(
            mixup(KEY, x, targets, **options), d_mixup(KEY, x, targets, d=2, **options), strict=True
        ):
            np.testing.assert_array_equal(came, wanted)
    weight = draw_mixture(KEY, 12).weights[0, 0]
    partner = draw_mixture(KEY, 12).partners[:, 1]
    np.testing.assert_allclose(mixup(KEY, x, targets)[0], weight * x + (1 - weight) * x[partner], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_example", [False, True])
def test_with_the_largest_weight_first_an_example_is_nearest_to_itself(per_example):
    keys = jax.random.split(KEY, 20)
    weights = jax.vmap(lambda key: draw_mixture(key, 6, d=3, per_example=per_example, largest_first=True).weights)(keys)
    assert np.all(weights[..., :1] >= weights)
    plain = jax.vmap(lambda key: draw_mixture(key, 6, d=3, per_example=per_example).weights)(keys)
    np.testing.assert_array_equal(np.sort(plain, axis=-1), np.sort(weights, axis=-1))


@pytest.mark.parametrize("per_example", [False, True])
def test_masked_rows_change_nothing_and_become_zeros(per_example):
    x, targets = batch()
    keep = np.array([1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1], bool)
    dirty, dirty_targets = x.copy(), targets.copy()
    dirty[~keep], dirty_targets[~keep] = np.nan, np.inf
    came = d_mixup(KEY, dirty, dirty_targets, d=3, per_example=per_example, mask=keep)
    wanted = d_mixup(KEY, x[keep], targets[keep], d=3, per_example=per_example)
    for whole, short in zip(came, wanted, strict=True):
        np.testing.assert_array_equal(whole[keep], short)
        assert not np.any(whole[~keep])


def test_the_gradient_flows_to_inputs_and_weights_and_not_behind_the_mask():
    x, _ = batch()
    mixture = draw_mixture(KEY, 12, per_example=True, mask=np.arange(12) < 9)
    grad = jax.grad(lambda values: jnp.sum(mix(values, mixture)))(x)
    assert np.all(grad[9:] == 0)
    np.testing.assert_allclose(np.sum(grad), 9 * 4, rtol=1e-6)
    slopes = jax.grad(lambda w: jnp.sum(mix(x, mixture._replace(weights=w))))(mixture.weights)
    np.testing.assert_allclose(slopes[:9], x.sum(axis=(1, 2))[mixture.partners[:9]], rtol=1e-4, atol=1e-6)


def test_values_keep_their_dtype_and_are_summed_in_float32():
    x, targets = batch()
    mixed, mixed_targets = mixup(KEY, jnp.asarray(x, jnp.bfloat16), targets)
    assert mixed.dtype == jnp.bfloat16
    assert mixed_targets.dtype == jnp.float32
    wide = mixup(KEY, np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), targets)[0]
    np.testing.assert_array_equal(mixed, wide.astype(jnp.bfloat16))


def test_over_eight_devices_partners_come_from_the_whole_batch():
    x, targets = batch(n=16)
    wanted = mixup(KEY, x, targets)
    mesh = parallel.make_mesh("data=8")
    rows = NamedSharding(mesh, PartitionSpec("data"))
    came = jax.jit(functools.partial(mixup, KEY))(*jax.device_put((x, targets), rows))
    mixing = parallel.over_axis(functools.partial(mixup, KEY), "data")
    spec = PartitionSpec("data")
    mapped = jax.jit(jax.shard_map(mixing, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec)))(x, targets)
    for found in (came, mapped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, wanted)
    assert np.any(np.asarray(draw_mixture(KEY, 16).partners)[:, 1] // 2 != np.arange(16) // 2)


def test_a_step_on_a_batch_mixed_before_it_is_the_same_in_microbatches():
    x, targets = batch()
    mixed = dict(zip(("inputs", "targets"), mixup(KEY, x, targets), strict=True))
    params = {"kernel": jax.random.normal(KEY, (4, 3))}

    def loss_fn(params, extra, batch, key):
        return LossOutput(cross_entropy(batch["inputs"].reshape(-1, 4) @ params["kernel"], batch["targets"]))

    optimizer = optax.sgd(0.1)
    found = []
    for microbatches in (1, 3):
        state = init_state(params, None, optimizer, None, KEY)
        found.append(jit_step(make_step(loss_fn, optimizer, microbatches=microbatches))(state, mixed)[0].params)
    np.testing.assert_allclose(found[0]["kernel"], found[1]["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, t: d_mixup(KEY, x, t, d=0), "d"),
        (lambda x, t: mixup(KEY, x, t, alpha=0.0), "alpha"),
        (lambda x, t: mixup(KEY, x, t[:5]), "targets"),
        (lambda x, t: mixup(KEY, x, t.argmax(1)), "targets"),
        (lambda x, t: mixup(KEY, x.astype(int), t), "x"),
        (lambda x, t: mixup(KEY, x, t, mask=np.ones(3)), "mask"),
        (lambda x, t: draw_mixture(KEY, -1), "size"),
        (lambda x, t: mix(x, draw_mixture(KEY, 5)), "mixture.partners"),
        (lambda x, t: mix(np.float32(1), draw_mixture(KEY, 5)), "values"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(*batch())
