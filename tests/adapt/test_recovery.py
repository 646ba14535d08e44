import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import adapt, optim

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "sar_recovery.json").read_text())
START, MOVED = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
SOURCE = OPTIMIZER.init(START)


def after(loss, kept=(1.0, 0.0)):
    """A step that has led from the start to ones, in parameters and momentum."""
    state = jax.tree.map(jnp.ones_like, SOURCE)
    return adapt.Adapted(MOVED, state, jnp.zeros((2, 3)), jnp.asarray(kept), jnp.asarray(loss))


def run(losses, kept=None, **options):
    """Of every step the parameters and the momentum that are left, and the running mean."""
    recover = adapt.recovery(**options)
    kept = jnp.ones(len(losses)) if kept is None else jnp.asarray(kept)

    def step(state, now):
        came, state = recover.update(state, after(now[0], now[1][None]))
        return state, (came.params["w"][0], jax.tree.leaves(came.opt_state)[0][0], state.average)

    return jax.lax.scan(step, recover.init(START, SOURCE), (jnp.asarray(losses), kept))[1]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_a_run_agrees_with_the_official_code(case, x64):
    params, momentum, average = run(case["inputs"]["losses"], **case["params"])
    np.testing.assert_allclose(average, case["expected"]["average"], rtol=GOLDEN["rtol"])
    recovered = np.array(case["expected"]["recovered"])
    assert 0 < recovered.sum() < len(recovered)
    np.testing.assert_array_equal(params, ~recovered)
    np.testing.assert_array_equal(momentum, ~recovered)


def test_above_the_threshold_nothing_changes():
    params, momentum, average = run([0.9, 0.3, 0.21])
    np.testing.assert_array_equal(params, 1)
    np.testing.assert_array_equal(momentum, 1)
    np.testing.assert_allclose(average[:2], [0.9, 0.84], rtol=1e-6)
    np.testing.assert_array_equal(run([0.0, 0.0], threshold=0.0)[0], 1)


def test_the_first_loss_is_the_first_mean_and_may_be_too_small():
    params, _, average = run([0.1, 0.1])
    np.testing.assert_allclose(average, 0.1, rtol=1e-6)
    np.testing.assert_array_equal(params, 0)


def test_without_memory_the_last_loss_decides_and_with_nothing_else_the_first():
    losses = [0.5, 0.1, 0.5]
    np.testing.assert_array_equal(run(losses, decay=0.0)[0], [1, 0, 1])
    np.testing.assert_array_equal(run(losses, decay=1.0)[0], 1)


def test_a_step_of_nobody_does_not_count():
    losses, kept = [0.0, 0.5, 0.0, 0.4], [0, 1, 0, 1]
    params, _, average = run(losses, kept)
    np.testing.assert_allclose(average, [0, 0.5, 0.5, 0.49], rtol=1e-6)
    np.testing.assert_array_equal(params, 1)


def test_a_stream_that_collapses_is_brought_back_under_jit():
    # Predictions that the steps make sure of one class: without a way back they stay so.
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    params, optimizer, recover = {"b": jnp.zeros(3)}, optim.sharpness_aware(optax.sgd(1.0)), adapt.recovery()

    def step(carry, _):
        params, opt_state, memory = carry
        came = adapt.entropy_step(lambda p: inputs + p["b"], params, opt_state, optimizer, fraction=1.1)
        came, memory = recover.update(memory, came)
        return (came.params, came.opt_state, memory), (came.loss, jnp.all(came.params["b"] == 0))

    state = optimizer.init(params)
    carry = (params, state, recover.init(params, state))
    losses, back = jax.jit(lambda c: jax.lax.scan(step, c, length=200))(carry)[1]
    assert 0 < back.sum() < 20
    first = int(jnp.argmax(back))
    assert losses[first] < 0.2 < losses[0]
    np.testing.assert_allclose(losses[first + 1], losses[0], rtol=1e-5)


def test_the_loss_of_a_step_is_the_mean_entropy_of_those_who_are_sure():
    logits = jnp.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    came = adapt.entropy_step(lambda p: logits + p, jnp.zeros(3), OPTIMIZER.init(jnp.zeros(3)), OPTIMIZER)
    p = jax.nn.softmax(logits[0])
    np.testing.assert_allclose(came.loss, -jnp.sum(p * jnp.log(p)), rtol=1e-5)
    np.testing.assert_array_equal(came.kept, [1, 0])


def test_a_static_mistake_is_named():
    for bad in ({"threshold": -0.1}, {"decay": 1.1}):
        with pytest.raises(ValueError, match=rf"adapt\.recovery: argument `{next(iter(bad))}`"):
            adapt.recovery(**bad)
    recover = adapt.recovery()
    with pytest.raises(ValueError, match=r"adapt\.recovery: argument `params"):
        recover.update(recover.init({"w": jnp.zeros(3)}, SOURCE), after(0.1))
