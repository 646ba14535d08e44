"""What every scheme promises, over one table of schemes."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import weights

B, C, N = 12, 3, 40
COUNTS = np.array([100.0, 30.0, 4.0], np.float32)

SCHEMES = {
    "uniform": weights.uniform(),
    "class_weighted": weights.class_weighted(jnp.array([1.0, 0.5, 2.0])),
    "class_balanced": weights.class_balanced(COUNTS, beta=0.99),
    "inverse_frequency": weights.inverse_frequency(COUNTS, scale="examples", signal="groups"),
    "focal": weights.focal(gamma=1.5),
    "focal of log_probs": weights.focal(source="log_probs"),
    "kl_dro": weights.kl_dro(temperature=0.7),
    "compositional_kl_dro": weights.compositional_kl_dro(temperature=0.7, step_size=0.3),
    "cvar_dro": weights.cvar_dro(alpha=0.3),
    "chi2_dro": weights.chi2_dro(radius=0.8),
    "group_dro": weights.group_dro(C, step_size=0.5, adjustment=1.0, group_counts=COUNTS),
    "small_loss": weights.small_loss(0.6),
    "small_loss on a schedule": weights.small_loss(optax.linear_schedule(1.0, 0.2, 4)),
    "importance": weights.importance(high=3.0),
    "self-normalised importance": weights.importance(self_normalize=True),
    "gairat": weights.gairat(),
    "smoothed small_loss": weights.smoothed(weights.small_loss(0.6), N),
    "smoothed uniform": weights.smoothed(weights.uniform(), N),
    "deferred kl_dro": weights.deferred(weights.kl_dro(temperature=0.7), start_step=0),
    "chain": weights.chain(weights.class_balanced(COUNTS), weights.group_dro(C)),
}
MEAN_ONE = {
    "uniform",
    "deferred kl_dro",
    "kl_dro",
    "cvar_dro",
    "chi2_dro",
    "small_loss",
    "small_loss on a schedule",
    "self-normalised importance",
    "gairat",
    "smoothed small_loss",
    "smoothed uniform",
}


def batch(seed=0, size=B, dtype=np.float32):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(size, C))
    labels = rng.integers(0, C, size)
    log_probs = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(size), labels]
    signals = {
        "logits": logits.astype(dtype),
        "labels": labels,
        "log_probs": log_probs.astype(dtype),
        "groups": rng.integers(0, C, size),
        "indices": rng.permutation(N)[:size],
        "log_ratios": rng.normal(size=size).astype(dtype),
        "attack_steps": rng.integers(0, 11, size),
        "mask": np.ones(size, bool),
    }
    return rng.exponential(size=size).astype(dtype), signals


@functools.cache
def jitted(name):
    scheme = SCHEMES[name]
    return jax.jit(lambda state, losses, signals: scheme.update(state, losses, **signals))


@functools.cache
def started(name):
    """A state that has seen a batch, so that no state is at its trivial start."""
    scheme = SCHEMES[name]
    losses, signals = batch(99)
    return jitted(name)(scheme.init(), losses, signals)[1]


def rows(signals, index):
    return {key: value[index] for key, value in signals.items()}


def assert_trees_equal(left, right, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


every = pytest.mark.parametrize("name", SCHEMES)


@every
@hypothesis.given(seed=st.integers(0, 10**6), masked=st.integers(0, B - 1))
@hypothesis.settings(max_examples=10)
def test_weights_are_non_negative_and_of_mean_one_over_the_unmasked(name, seed, masked):
    losses, signals = batch(seed)
    signals["mask"][:masked] = False
    w, _ = jitted(name)(started(name), losses, signals)
    assert w.shape == losses.shape
    assert w.dtype == jnp.float32
    assert np.all(np.isfinite(w))
    assert np.all(np.asarray(w) >= 0)
    assert np.all(np.asarray(w[:masked]) == 0)
    if name in MEAN_ONE:
        np.testing.assert_allclose(np.mean(w[masked:]), 1, rtol=1e-5)


@every
def test_a_batch_that_is_masked_altogether_has_weights_zero_and_leaves_the_state(name):
    losses, signals = batch(1)
    signals["mask"][:] = False
    for state in (SCHEMES[name].init(), started(name)):
        w, new = jitted(name)(state, losses, signals)
        assert np.all(np.asarray(w) == 0)
        jax.tree.map(np.testing.assert_array_equal, new, state)


@every
def test_what_stands_behind_the_mask_is_never_read(name):
    losses, signals = batch(2)
    signals["mask"][::3] = False
    clean = jitted(name)(started(name), losses, signals)
    hidden = ~signals["mask"]
    for key in ("logits", "log_probs", "log_ratios"):
        signals[key] = signals[key].copy()
        signals[key][hidden] = np.nan
    for key in ("labels", "groups", "indices", "attack_steps"):
        signals[key][hidden] = -7
    dirty = jitted(name)(started(name), np.where(hidden, np.nan, losses), signals)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@every
def test_weights_and_state_carry_no_gradient(name):
    losses, signals = batch(3)
    floats = {key: value for key, value in signals.items() if value.dtype == np.float32}

    def total(losses, floats):
        outputs = SCHEMES[name].update(started(name), losses, **{**signals, **floats})
        leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(jnp.sum(leaf * leaf) for leaf in leaves)

    for grad in jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1)))(losses, floats)):
        assert np.all(np.asarray(grad) == 0)


FUNCTIONS = {
    "kl_dro_weights": weights.kl_dro_weights,
    "cvar_weights": weights.cvar_weights,
    "chi2_dro_weights": weights.chi2_dro_weights,
    "small_loss_weights": functools.partial(weights.small_loss_weights, keep_rate=0.5),
    "importance_weights": weights.importance_weights,
    "self-normalised importance_weights": functools.partial(weights.importance_weights, self_normalize=True),
    "focal_weights": lambda x: weights.focal_weights(-x),
    "gairat_weights": weights.gairat_weights,
    "group_dro_weights": lambda x: weights.group_dro_weights(np.arange(B), x),
    "effective_number_weights": weights.effective_number_weights,
    "inverse_frequency_weights": weights.inverse_frequency_weights,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_pure_functions_give_weights_without_gradient_too(name):
    values, _ = batch(3)
    squares, grad = jax.jit(jax.value_and_grad(lambda x: jnp.sum(FUNCTIONS[name](x) ** 2)))(values)
    assert squares > 0
    np.testing.assert_array_equal(grad, 0)


@every
def test_permuting_the_batch_permutes_the_weights(name):
    losses, signals = batch(4)
    order = np.random.default_rng(0).permutation(B)
    w, state = jitted(name)(started(name), losses, signals)
    moved, moved_state = jitted(name)(started(name), losses[order], rows(signals, order))
    np.testing.assert_allclose(moved, w[order], rtol=1e-5, atol=1e-6)
    assert_trees_equal(moved_state, state, rtol=1e-5)


@every
def test_padding_with_masked_rows_changes_nothing(name):
    losses, signals = batch(5)
    padded = {key: np.concatenate([value, value[:4]]) for key, value in signals.items()}
    padded["mask"][B:] = False
    w, state = jitted(name)(started(name), losses, signals)
    padded_w, padded_state = jitted(name)(started(name), np.concatenate([losses, losses[:4]]), padded)
    np.testing.assert_allclose(padded_w[:B], w, rtol=1e-5)
    assert_trees_equal(padded_state, state, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.scope == "example"])
def test_scope_example_means_that_pieces_one_after_the_other_are_the_whole(name):
    losses, signals = batch(6)
    w, state = jitted(name)(started(name), losses, signals)
    pieces, piece_state = [], started(name)
    for part in (slice(0, 5), slice(5, 5), slice(5, B)):
        piece, piece_state = jitted(name)(piece_state, losses[part], rows(signals, part))
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces), w, rtol=1e-5, atol=1e-6)
    assert_trees_equal(piece_state, state, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.scope == "batch"])
def test_scope_batch_is_declared_only_where_pieces_differ_from_the_whole(name):
    losses, signals = batch(6)
    w, _ = jitted(name)(started(name), losses, signals)
    half, _ = jitted(name)(started(name), losses[:5], rows(signals, slice(0, 5)))
    assert np.max(np.abs(np.asarray(half) - np.asarray(w[:5]))) > 1e-3


@every
def test_the_declared_signals_are_the_ones_needed(name):
    losses, signals = batch(7)
    scheme = SCHEMES[name]
    needed = {key: signals[key] for key in scheme.signals}
    assert_trees_equal(
        jitted(name)(started(name), losses, needed),
        jitted(name)(started(name), losses, signals),
        rtol=1e-5,
        atol=1e-6,
    )
    for key in scheme.signals:
        with pytest.raises(ValueError, match=f"argument `{key}` is missing"):
            scheme.update(started(name), losses, **{k: v for k, v in needed.items() if k != key})


@every
def test_bfloat16_losses_give_float32_weights_close_to_those_of_float32(name):
    losses, signals = batch(8)
    floats = ("logits", "log_probs", "log_ratios")
    low = {key: jnp.asarray(value, jnp.bfloat16) if key in floats else value for key, value in signals.items()}
    high = {key: np.asarray(value, np.float32) if key in floats else value for key, value in low.items()}
    short = jnp.asarray(losses, jnp.bfloat16)
    w, _ = jitted(name)(started(name), short, low)
    reference, _ = jitted(name)(started(name), np.asarray(short, np.float32), high)
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(w, reference, rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_losses_and_signals_give_finite_weights(name, size):
    losses, signals = batch(9)
    sign = np.where(np.arange(B) % 2 == 0, 1, -1).astype(np.float32)
    losses[0], losses[1] = size, -size
    signals["logits"] = np.float32(size) * sign[:, None] * np.array([1, -1, 0], np.float32)
    signals["log_probs"] = -np.abs(np.float32(size)) * np.ones(B, np.float32)
    signals["log_ratios"] = np.float32(size) * sign
    w, state = jitted(name)(started(name), losses, signals)
    assert np.all(np.isfinite(w))
    again, _ = jitted(name)(state, losses, signals)
    assert np.all(np.isfinite(again))


@every
def test_losses_of_any_shape_are_examples_alike(name):
    losses, signals = batch(10)
    grid = {key: value.reshape(4, 3, *value.shape[1:]) for key, value in signals.items()}
    w, state = jitted(name)(started(name), losses.reshape(4, 3), grid)
    flat, flat_state = jitted(name)(started(name), losses, signals)
    np.testing.assert_allclose(w, flat.reshape(4, 3), rtol=1e-5, atol=1e-6)
    assert_trees_equal(state, flat_state, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, s in SCHEMES.items() if {"labels", "groups"} & set(s.signals)])
@pytest.mark.parametrize("bad", [-1, -100, C, 10**6])
def test_an_id_that_does_not_exist_weighs_nothing(name, bad):
    losses, signals = batch(11)
    signals["labels"][0] = signals["groups"][0] = bad
    w, _ = jitted(name)(started(name), losses, signals)
    assert w[0] == 0
    assert np.sum(np.asarray(w[1:])) > 0


@every
def test_a_batch_sharded_over_devices_has_the_same_weights(name):
    losses, signals = batch(12, size=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    spread = jax.tree.map(lambda x: jax.device_put(x, sharding), (losses, signals))
    w, state = jitted(name)(started(name), *spread)
    reference, reference_state = jitted(name)(started(name), losses, signals)
    np.testing.assert_allclose(w, reference, rtol=1e-5, atol=1e-6)
    assert_trees_equal(state, reference_state, rtol=1e-5)


@every
def test_vmap_over_runs_is_the_loop(name):
    runs = [batch(seed) for seed in (13, 14)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *runs)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), started(name))
    scheme = SCHEMES[name]
    w, _ = jax.jit(jax.vmap(lambda state, run: scheme.update(state, run[0], **run[1])))(states, stacked)
    for row, (losses, signals) in zip(w, runs, strict=True):
        np.testing.assert_allclose(row, jitted(name)(started(name), losses, signals)[0], rtol=1e-5, atol=1e-6)


@every
def test_a_mask_of_the_wrong_shape_is_named(name):
    losses, signals = batch(15)
    signals["mask"] = np.ones(B + 1)
    with pytest.raises(ValueError, match="argument `mask`"):
        SCHEMES[name].update(started(name), losses, **signals)
