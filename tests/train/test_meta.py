import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import reduce, weights
from reweight.losses.classification import cross_entropy
from reweight.train import LossOutput, init_state, make_meta_step, make_step, run_on_device

CLASSES, PASSES, SIZE = 2, 3, 24
MODEL = optax.adam(0.02)


def data(seed=0, size=256):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, size)
    inputs = (rng.normal(size=(size, 4)) + 2.0 * (2 * labels[:, None] - 1) * [1, 1, 0, 0]).astype(np.float32)
    flipped = rng.random(size) < 0.3
    return {"inputs": inputs, "labels": np.where(flipped, 1 - labels, labels).astype(np.int32), "flipped": flipped}


def loss_fn(params, extra, batch, key):
    """Passes through a linear model with dropout on the inputs; the first is the one that is trained on."""

    def logits(key):
        kept = jax.random.bernoulli(key, 0.8, batch["inputs"].shape)
        return (batch["inputs"] * kept) @ params["kernel"] + params["bias"]

    passes = jax.vmap(logits, out_axes=1)(jax.random.split(key, PASSES))
    labels = jnp.broadcast_to(batch["labels"][:, None], passes.shape[:2])
    losses = cross_entropy(passes, labels)
    return LossOutput(losses[:, 0], {"pass_losses": losses, "pass_logits": passes}, None)


def start(weighting, key=0):
    params = {"kernel": jnp.zeros((4, CLASSES)), "bias": jnp.zeros(CLASSES)}
    return init_state(params, None, MODEL, weighting, jax.random.key(key))


def of_flips(signals):
    flipped = signals["flipped"]
    return {
        "clean_weight": reduce.weighted_mean(signals["weights"], where=~flipped, parts=True),
        "flipped_weight": reduce.weighted_mean(signals["weights"], where=flipped, parts=True),
    }


STORM = weights.storm(CLASSES, window=SIZE // 2)


def test_a_step_is_that_of_the_meta_gradient():
    # Not Adam: biases in front of a batch normalisation have a gradient of rounding alone.
    storm = weights.storm(CLASSES, window=SIZE // 2, optimizer=optax.sgd(1.0))
    batch = {name: x[:SIZE] for name, x in data().items()}
    state = start(storm)
    new, metrics = jax.jit(make_meta_step(loss_fn, MODEL, storm))(state, batch)
    keys = jax.random.split(jax.random.fold_in(state.key, 0))

    def on(rows, memory, key):
        def objective(params, meta):
            out = loss_fn(params, None, rows, key)
            held = jax.lax.stop_gradient(out.signals)
            weight, memory_after = storm.apply(
                meta, memory, jax.lax.stop_gradient(out.losses), labels=rows["labels"], **held
            )
            return jnp.mean(weight * out.losses), memory_after

        return objective

    learned = state.weighting_state
    inner, outer = ({name: x[i::2] for name, x in batch.items()} for i in (0, 1))
    found = weights.meta_gradient(
        state.params, learned.params, state.opt_state, optimizer=MODEL,
        inner=on(inner, learned.memory, keys[0]), outer=on(outer, learned.outer_memory, keys[1]),
    )  # fmt: skip
    updates, _ = storm.optimizer.update(found.grads, learned.opt_state, learned.params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, new.params, found.params)
    jax.tree.map(close, new.weighting_state.params, optax.apply_updates(learned.params, updates))
    jax.tree.map(close, new.weighting_state.memory, found.inner[1])
    jax.tree.map(close, new.weighting_state.outer_memory, found.outer[1])
    close(metrics["loss"], found.inner[0])
    close(metrics["outer_loss"], found.outer[0])
    assert new.step == 1


def constant(value):
    def apply(params, memory, losses, **signals):
        return jnp.full(losses.shape, value) + 0 * params, memory

    return weights.LearnedWeighting(lambda key: jnp.zeros(()), lambda: (), apply, optax.sgd(0.1))


def test_with_constant_weights_it_is_ordinary_training():
    batch = {name: x[:SIZE] for name, x in data().items()}
    steady = constant(1.0)
    new, _ = jax.jit(make_meta_step(loss_fn, MODEL, steady))(start(steady), batch)

    def fixed_key(params, extra, batch, key):
        state_key = start(None).key
        return loss_fn(params, extra, batch, jax.random.split(jax.random.fold_in(state_key, 0))[0])

    wanted, _ = jax.jit(make_step(fixed_key, MODEL))(start(None), {name: x[::2] for name, x in batch.items()})
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), new.params, wanted.params)


def test_storm_puts_less_weight_on_flipped_labels_without_being_told():
    seeds = 3
    step = make_meta_step(loss_fn, MODEL, STORM, metrics=of_flips)
    states = jax.vmap(lambda i: start(STORM, 0).replace(key=jax.random.key(i)))(jnp.arange(seeds))
    keys = jax.random.split(jax.random.key(5), seeds)
    arrays = {name: jnp.asarray(x) for name, x in data().items()}
    metrics = run_on_device(step, states, arrays, keys, batch_size=SIZE, num_steps=300).metrics
    gap = np.asarray(metrics["clean_weight"] - metrics["flipped_weight"])
    assert np.all(np.isfinite(gap))
    assert np.all(gap[:, -50:].mean(axis=1) > 0.2)
    assert np.all(gap[:, -50:].mean(axis=1) > gap[:, :10].mean(axis=1))


def test_a_masked_row_is_not_there():
    batch = {name: x[:SIZE] for name, x in data().items()}
    mask = np.ones(SIZE, bool)
    mask[[2, 3, 8, 11]] = False
    dirty = batch | {"inputs": np.where(mask[:, None], batch["inputs"], np.nan), "mask": mask}
    clean = batch | {"inputs": np.where(mask[:, None], batch["inputs"], 0), "mask": mask}
    step = jax.jit(make_meta_step(masked_loss, MODEL, STORM))
    (one, measured), (other, _) = step(start(STORM), dirty), step(start(STORM), clean)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, one.weighting_state.params, other.weighting_state.params)
    assert np.sum(one.weighting_state.memory.filled) == np.sum(mask[::2])
    assert all(np.isfinite(x) for x in measured.values())


def masked_loss(params, extra, batch, key):
    rows = batch | {"inputs": jnp.where(batch["mask"][:, None], batch["inputs"], 0)}
    return loss_fn(params, extra, rows, key)


def test_the_outer_part_may_be_other_examples_with_weights_of_one():
    batch = {name: x[:SIZE] for name, x in data().items()}
    batch |= {f"clean_{name}": x[:SIZE] for name, x in data(seed=1).items()}

    def split(batch):
        clean = {name.removeprefix("clean_"): x for name, x in batch.items() if name.startswith("clean_")}
        return {name: batch[name] for name in clean}, clean

    step = make_meta_step(loss_fn, MODEL, STORM, outer_weights=False, split=split)
    new, metrics = jax.jit(step)(start(STORM), batch)
    key = jax.random.split(jax.random.fold_in(start(STORM).key, 0))[1]
    plain = jnp.mean(loss_fn(new.params, None, split(batch)[1], key).losses)
    np.testing.assert_allclose(metrics["outer_loss"], plain, rtol=1e-5)
    assert not np.any(new.weighting_state.outer_memory.filled)


def test_a_loss_function_without_losses_is_refused():
    step = make_meta_step(lambda *_: LossOutput(signals={}), MODEL, STORM)
    with pytest.raises(ValueError, match="argument `loss_fn`"):
        step(start(STORM), {name: x[:SIZE] for name, x in data().items()})


def test_a_metric_named_like_one_of_the_step_is_refused():
    def metrics(signals):
        return {"outer_loss": reduce.weighted_mean(signals["losses"], parts=True)}

    step = make_meta_step(loss_fn, MODEL, STORM, metrics=metrics)
    with pytest.raises(ValueError, match=r"train.make_meta_step: argument `metrics` is naming one 'outer_loss'"):
        step(start(STORM), {name: x[:SIZE] for name, x in data().items()})
