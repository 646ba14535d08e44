import json
import pathlib

import jax
import numpy as np
import pytest

from reweight import schedules

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
