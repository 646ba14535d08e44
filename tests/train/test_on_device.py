import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_problem import EXAMPLES, accuracy, assert_close, assert_equal, batch, loss_fn, params

from reweight import weights
from reweight.train import epoch_order, init_state, make_step, run_on_device

DATA = {name: jnp.asarray(x) for name, x in batch(EXAMPLES, masked=False).items() if name != "indices"}
BATCH, STEPS = 10, 13  # four batches an epoch, eight examples left out
OPTIMIZER = optax.adam(0.05)


def softmax(losses, *, mask=None):
    return weights.normalize(jnp.exp(losses), mask=mask)


WEIGHTING = weights.stateless(softmax)
STEP = make_step(loss_fn, OPTIMIZER, weighting=WEIGHTING, metrics=accuracy)


def start(seed=0):
    return init_state(params(seed), None, OPTIMIZER, WEIGHTING, jax.random.key(seed))


def mean_loss(state):
    return {"all": jnp.mean(loss_fn(state.params, None, DATA, None).losses)}


def run(state, key, **options):
    options = {"batch_size": BATCH, "num_steps": STEPS, "eval_fn": mean_loss, "eval_every": 3} | options
    return run_on_device(STEP, state, DATA, key, **options)


def test_a_run_on_the_device_is_the_loop_over_its_batches():
    key = jax.random.key(7)
    state, step, losses, evals = start(), jax.jit(STEP), [], []
    for number in range(STEPS):
        epoch, position = divmod(number, EXAMPLES // BATCH)
        indices = epoch_order(key, epoch, EXAMPLES)[position * BATCH : (position + 1) * BATCH]
        state, metrics = step(state, {name: x[indices] for name, x in DATA.items()} | {"indices": indices})
        losses.append(metrics["loss"])
        if (number + 1) % 3 == 0:
            evals.append(mean_loss(state)["all"])
    done = run(start(), key)
    assert_close(done.state, state)
    assert_close(done.metrics["loss"], jnp.stack(losses))
    assert_close(done.evals["all"], jnp.stack(evals))


@pytest.mark.parametrize("chunk_size", [1, 4, 5])
def test_chunks_do_not_change_a_bit(chunk_size):
    key, seen = jax.random.key(7), []
    chunked = run(start(), key, chunk_size=chunk_size, on_chunk=lambda part: seen.append(int(part.state.step)))
    assert_equal(chunked, run(start(), key))
    assert seen == [*range(chunk_size, STEPS, chunk_size), STEPS]


def test_a_run_goes_on_from_where_it_stopped():
    key = jax.random.key(7)
    first = run(start(), key, num_steps=6)
    second = run(first.state, key)
    whole = run(start(), key)
    assert_equal(second.state, whole.state)
    assert_equal(jnp.concatenate([first.evals["all"], second.evals["all"]]), whole.evals["all"])


@pytest.mark.parametrize("one_order", [True, False])
def test_stacked_seeds_are_separate_runs(one_order):
    seeds = jnp.arange(3)
    keys = jax.random.split(jax.random.key(7), 3)
    stacked = run(jax.vmap(start)(seeds), keys[0] if one_order else keys, chunk_size=6)
    for seed in seeds:
        alone = run(start(seed), keys[0 if one_order else seed])
        assert_close(jax.tree.map(lambda x, i=seed: x[i], stacked), alone, rtol=1e-4, atol=1e-5)


def test_every_seed_may_have_its_own_data():
    seeds, keys = jnp.arange(3), jax.random.split(jax.random.key(7), 3)
    own = {name: jnp.stack([jnp.roll(x, seed, axis=0) * (seed < 2) for seed in range(3)]) for name, x in DATA.items()}
    options = {"batch_size": BATCH, "num_steps": STEPS}
    stacked = run_on_device(STEP, jax.vmap(start)(seeds), own, keys, stacked_arrays=True, **options)
    for seed in seeds:
        alone = run_on_device(STEP, start(seed), {name: x[seed] for name, x in own.items()}, keys[seed], **options)
        assert_close(jax.tree.map(lambda x, i=seed: x[i], stacked), alone, rtol=1e-4, atol=1e-5)


def test_stacked_data_must_fit_the_stacked_state():
    options = {"batch_size": BATCH, "num_steps": STEPS, "stacked_arrays": True}
    keys = jax.random.split(jax.random.key(7), 3)
    own = {name: jnp.stack([x, x]) for name, x in DATA.items()}
    with pytest.raises(ValueError, match="`arrays` is of 2 seeds"):
        run_on_device(STEP, jax.vmap(start)(jnp.arange(3)), own, keys, **options)
    with pytest.raises(ValueError, match="`stacked_arrays`"):
        run_on_device(STEP, start(), own, keys[0], **options)


def test_every_epoch_is_another_permutation():
    orders = [np.asarray(epoch_order(jax.random.key(0), epoch, 20)) for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": EXAMPLES + 1}, "batch_size"),
        ({"num_steps": 0}, "num_steps"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"eval_every": None}, "eval_every"),
        ({"eval_fn": None}, "eval_fn"),
    ],
)
def test_what_cannot_be_run_is_named(options, named):
    with pytest.raises(ValueError, match=f"train.run_on_device: argument `{named}`"):
        run(start(), jax.random.key(0), **options)
