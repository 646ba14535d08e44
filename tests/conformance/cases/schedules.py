"""Schedules of learning rates."""

import numpy as np

from conformance.case import Case
from reweight import schedules


def slow_start_fast_decay(step, peak, total_steps, final, start_frac, rise_frac, power):
    top = rise_frac * total_steps
    rise = peak * (start_frac + (1 - start_frac) * (step / top) ** power)
    decay = peak * (final / peak) ** np.clip((step - top) / (total_steps - top), 0, 1)
    return np.where(step <= top, rise, decay)


CASES = [
    Case(
        function=schedules.slow_start_fast_decay,
        call=lambda step, **hyper: schedules.slow_start_fast_decay(**hyper)(step),
        inputs=lambda rng, n: {"step": rng.integers(0, 30, n)},
        hyper={"peak": 0.3, "total_steps": 20, "final": 0.01, "start_frac": 0.1, "rise_frac": 0.3, "power": 2.0},
        reference=slow_start_fast_decay,
        bad={
            "peak": (0.0, np.inf),
            "total_steps": (0, 2.5),
            "final": (0.0, np.inf),
            "start_frac": (-0.1, 1.1),
            "rise_frac": (-0.1, 1.1),
            "power": (0.0, np.inf),
        },
        defaults={"start_frac": 0.01, "rise_frac": 0.5, "power": 1.0},
        free={"step": "the number of a step"},
        bf16=None,
    ),
]
