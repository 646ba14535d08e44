"""Seeds side by side, on one device and divided among several."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import harness
from reweight.train import LossOutput, init_state, make_step, on_device

SEEDS = 3  # which 8 devices do not divide


class Killed(BaseException):
    pass


def train(path, mesh, stacked):
    optimizer = optax.adam(0.1)
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    step = make_step(lambda params, extra, batch, key: LossOutput((params - batch["x"]) ** 2), optimizer)
    state = jax.vmap(lambda key: init_state(jax.random.normal(key), None, optimizer, key=key))(keys)
    arrays = {"x": jnp.arange(SEEDS * 6.0).reshape(SEEDS, 6) if stacked else jnp.arange(6.0)}
    options = {"batch_size": 2, "num_steps": 7, "eval_fn": lambda state: {"at": state.params}, "eval_every": 2}
    context = harness.Context(path)
    return harness.train_seeds(
        "m", step, state, arrays, keys, context=context, stacked_arrays=stacked, mesh=mesh, **options
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_a_mesh_does_not_change_the_numbers(stacked, tmp_path):
    state, found = train(None, None, stacked)
    spread, numbers = train(tmp_path, "data=8", stacked)
    assert spread.params.shape == (SEEDS,)
    np.testing.assert_allclose(spread.params, state.params, rtol=1e-6)
    assert numbers["at"].shape == (SEEDS, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), numbers, found)


def test_a_run_goes_on_on_another_mesh(tmp_path, monkeypatch):
    whole, _ = train(None, None, stacked=True)
    chunk, done = on_device._chunk, []

    def killed(*args):
        done.append(True)
        if len(done) == 2:
            raise Killed
        return chunk(*args)

    with monkeypatch.context() as patched:
        patched.setattr(on_device, "_chunk", killed)
        with pytest.raises(Killed):
            train(tmp_path, "data=8", stacked=True)
    state, found = train(tmp_path, None, stacked=True)
    np.testing.assert_allclose(state.params, whole.params, rtol=1e-6)
    assert found["loss"].shape == (SEEDS, 7)


def test_seeds_are_numbers_in_a_row():
    assert harness.Config(seeds=3, first_seed=5).seed_numbers.tolist() == [5, 6, 7]


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="`first_seed` is -1"):
        harness.Config(first_seed=-1)
