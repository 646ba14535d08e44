import json
import pathlib

import jax
import numpy as np
import optax
import pytest

from reweight import schedules

SLOW_START = json.loads((pathlib.Path(__file__).parent / "golden" / "slow_start_fast_decay.json").read_text())
RAMP = json.loads((pathlib.Path(__file__).parent / "golden" / "elr.json").read_text())["cases"][-1]


def test_the_sigmoid_rampup_agrees_with_the_official_code(x64):
    inputs = RAMP["inputs"]
    came = [
        schedules.sigmoid_rampup(length)(step) for step, length in zip(inputs["step"], inputs["length"], strict=True)
    ]
    np.testing.assert_allclose(came, RAMP["expected"]["ramp"], rtol=1e-10)


def test_an_epoch_ramp_is_a_staircase_that_ends_at_its_end():
    ramp = jax.jit(schedules.epoch_ramp(0.8, 4, 3))
    values = [float(ramp(step)) for step in range(15)]
    np.testing.assert_allclose(values, np.repeat([0.2, 0.4, 0.6, 0.8, 0.8], 3), rtol=1e-6)


@pytest.mark.parametrize("case", SLOW_START["cases"][:3], ids=range(3))
def test_slow_start_and_fast_decay_agree_with_the_golden_numbers(case, x64):
    schedule = jax.jit(schedules.slow_start_fast_decay(**case["params"]))
    came = [schedule(step) for step in case["inputs"]["step"]]
    np.testing.assert_allclose(came, case["expected"]["learning_rate"], rtol=SLOW_START["rtol"])


def slow_start(steps=40, **changes):
    options = {"peak": 0.1, "final": 1e-3, "total_steps": steps} | changes
    return np.array(jax.vmap(schedules.slow_start_fast_decay(**options))(np.arange(steps + 1)))


def test_a_slow_start_rises_to_the_peak_and_a_fast_decay_falls_to_the_end():
    values = slow_start(rise_frac=0.4)
    assert values.argmax() == 16
    np.testing.assert_allclose(values[[0, 16, 40]], [1e-3, 0.1, 1e-3], rtol=1e-5)
    assert (np.diff(values[:17]) > 0).all()
    assert (np.diff(values[16:]) < 0).all()
    assert np.all(slow_start(rise_frac=0.4, power=3.0)[1:16] < values[1:16])
    held = schedules.slow_start_fast_decay(0.1, 40, final=1e-3)(10**6)
    np.testing.assert_allclose(held, 1e-3, rtol=1e-6)


def test_limits_of_a_slow_start_and_a_fast_decay():
    np.testing.assert_allclose(slow_start(start_frac=1.0, final=0.1), 0.1, rtol=1e-6)
    decay = optax.exponential_decay(0.1, 40, 0.01)(np.arange(41))
    np.testing.assert_allclose(slow_start(rise_frac=0.0), decay, rtol=1e-5)
    warm_up = optax.linear_schedule(0.001, 0.1, 40)(np.arange(41))
    np.testing.assert_allclose(slow_start(rise_frac=1.0), warm_up, rtol=1e-5)


def test_a_slow_start_is_a_learning_rate_of_optax():
    optimizer = optax.inject_hyperparams(optax.sgd)(schedules.slow_start_fast_decay(0.1, 4, final=0.01))
    state = optimizer.init({"w": np.ones(2, np.float32)})
    updates, state = optimizer.update({"w": np.ones(2, np.float32)}, state)
    np.testing.assert_allclose(updates["w"], -0.001, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: schedules.sigmoid_rampup(-1), "length"),
        (lambda: schedules.epoch_ramp(float("nan"), 4, 3), "end"),
        (lambda: schedules.epoch_ramp(0.8, 0, 3), "num_epochs"),
        (lambda: schedules.epoch_ramp(0.8, 4, 0.5), "steps_per_epoch"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
