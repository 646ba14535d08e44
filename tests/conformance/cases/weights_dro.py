"""Distributionally robust weights."""

import numpy as np

from conformance.case import Case, WeightingCase
from conformance.cases.weights_base import some_losses
from reweight import weights


def spread(reference):
    """A reference on the unmasked losses, spread over the batch with zeros where masked."""

    def whole(losses, mask, **hyper):
        out = np.zeros(losses.shape)
        out[mask] = reference(losses[mask], **hyper)
        return out

    return whole


def each(reference):
    """A reference of a scheme without memory, for each step."""
    return lambda steps, **hyper: [reference(**step, **hyper) for step in steps]


@spread
def kl(losses, temperature=1.0):
    tilted = np.exp((losses - losses.max()) / temperature)
    return tilted / tilted.mean()


def kl_value(losses, mask, temperature=1.0):
    return np.asarray(temperature * np.log(np.mean(np.exp(losses[mask] / temperature))))


@spread
def cvar(losses, alpha):
    """Mass 1/alpha from the largest loss down, until n is spent."""
    out, left = np.zeros(losses.shape), float(losses.size)
    for index in np.argsort(-losses):
        out[index] = min(1 / alpha, left)
        left -= out[index]
    return out


@spread
def chi2(losses, radius):
    """The threshold by bisection on the variance of the weights."""

    def at(threshold):
        positive = np.maximum(losses - threshold, 0)
        return positive / positive.mean()

    low, high = losses.min() - 1e6, losses.max() - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean((at(middle) - 1) ** 2) < radius else (low, middle)
    return at(low)


def value_of(reference):
    return lambda losses, mask, **hyper: np.mean((reference(losses, mask, **hyper) * losses)[mask])


def compositional(steps, temperature, step_size):
    found, running = [], None
    for step in steps:
        tilted = np.exp(step["losses"] / temperature)
        batch = np.mean(tilted[step["mask"]])
        running = batch if running is None else (1 - step_size) * running + step_size * batch
        found.append(np.where(step["mask"], tilted / running, 0))
    return found


def a_constant_changes_nothing(probe):
    arrays = probe.arrays()
    shifted = {**arrays, "losses": arrays["losses"] + 5.0}
    np.testing.assert_allclose(probe.value(shifted), probe.value(arrays), atol=1e-4)


def larger_losses_weigh_more(probe):
    arrays = probe.arrays()
    order = np.argsort(arrays["losses"][arrays["mask"]])
    value = probe.value(arrays)[arrays["mask"]][order]
    assert (np.diff(value) >= -1e-6).all(), value


def _uniform(probe, **hyper):
    arrays = probe.arrays()
    np.testing.assert_allclose(probe.value(arrays, **hyper), arrays["mask"], atol=1e-5)


def _largest_only(probe, **hyper):
    arrays = probe.arrays()
    top = np.argmax(np.where(arrays["mask"], arrays["losses"], -np.inf))
    wanted = np.where(np.arange(arrays["mask"].size) == top, np.sum(arrays["mask"]), 0)
    np.testing.assert_allclose(probe.value(arrays, **hyper), wanted, atol=1e-5)


def infinite_temperature_is_uniform(probe):
    _uniform(probe, temperature=np.inf)


def zero_temperature_is_the_largest_loss(probe):
    _largest_only(probe, temperature=0.0)


def alpha_one_is_uniform(probe):
    _uniform(probe, alpha=1.0)


def a_small_alpha_is_the_largest_loss(probe):
    _largest_only(probe, alpha=0.01)


def radius_zero_is_uniform(probe):
    _uniform(probe, radius=0.0)


def a_large_radius_is_the_largest_loss(probe):
    _largest_only(probe, radius=100.0)


def the_radius_is_met(probe):
    arrays = probe.arrays()
    value = probe.value(arrays)[arrays["mask"]]
    np.testing.assert_allclose(np.mean((value - 1) ** 2), probe.case.hyper["radius"], rtol=1e-4)


def _limits(hyper, at_the_mean, at_the_maximum):
    def between_the_mean_and_the_largest_loss(probe):
        arrays = probe.arrays()
        losses = arrays["losses"][arrays["mask"]]
        value = float(probe.value(arrays))
        assert losses.mean() < value < losses.max()
        np.testing.assert_allclose(probe.value(arrays, **{hyper: at_the_mean}), losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(probe.value(arrays, **{hyper: at_the_maximum}), losses.max(), rtol=1e-5)

    return (between_the_mean_and_the_largest_loss,)


WEIGHTS = {"inputs": some_losses, "mask": "mask", "stopped": ("losses",), "couples": True, "weights": True}
VALUE = {"inputs": some_losses, "mask": "mask", "differentiable": ("losses",), "returns": "batch"}
SHARED = (a_constant_changes_nothing, larger_losses_weigh_more)
KL = (*SHARED, infinite_temperature_is_uniform, zero_temperature_is_the_largest_loss)
CVAR = (*SHARED, alpha_one_is_uniform, a_small_alpha_is_the_largest_loss)
CHI2 = (*SHARED, radius_zero_is_uniform, a_large_radius_is_the_largest_loss, the_radius_is_met)
TEMPERATURE, ALPHA, RADIUS = {"temperature": (-1.0,)}, {"alpha": (0.0, -0.5, 1.5)}, {"radius": (-0.1,)}

CASES = [
    Case(
        function=weights.kl_dro_weights,
        defaults={"temperature": 1.0},
        hyper={"temperature": 0.7},
        **WEIGHTS,
        reference=kl,
        invariants=KL,
        bad=TEMPERATURE,
    ),
    Case(
        function=weights.kl_dro_value,
        defaults={"temperature": 1.0},
        hyper={"temperature": 0.7},
        **VALUE,
        reference=kl_value,
        invariants=_limits("temperature", np.inf, 0.0),
        bad=TEMPERATURE,
    ),
    Case(
        function=weights.kl_dro_value,
        variant="gradient of the temperature",
        inputs=lambda rng, n: {**some_losses(rng, n), "temperature": np.float64(0.7)},
        returns="batch",
        fixed=("temperature",),
        mask="mask",
        differentiable=("losses", "temperature"),
        reference=kl_value,
    ),
    WeightingCase(
        function=weights.kl_dro,
        defaults={"temperature": 1.0},
        inputs=some_losses,
        hyper={"temperature": 0.7},
        reference=each(kl),
        invariants=KL,
        bad=TEMPERATURE,
    ),
    WeightingCase(
        function=weights.kl_dro, variant="defaults", inputs=some_losses, reference=each(kl), invariants=SHARED
    ),
    WeightingCase(
        function=weights.compositional_kl_dro,
        defaults={"temperature": 1.0, "step_size": 0.1},
        inputs=some_losses,
        hyper={"temperature": 0.7, "step_size": 0.3},
        mean=None,
        reference=compositional,
        bad={"temperature": (0.0, -1.0), "step_size": (0.0, 1.5)},
    ),
    Case(
        function=weights.cvar_weights,
        defaults={"alpha": 0.5},
        hyper={"alpha": 0.3},
        **WEIGHTS,
        reference=cvar,
        invariants=CVAR,
        bad=ALPHA,
    ),
    Case(
        function=weights.cvar_value,
        defaults={"alpha": 0.5},
        hyper={"alpha": 0.3},
        **VALUE,
        reference=value_of(cvar),
        invariants=_limits("alpha", 1.0, 0.01),
        bad=ALPHA,
    ),
    WeightingCase(
        function=weights.cvar_dro,
        defaults={"alpha": 0.5},
        blames=("cvar_weights",),
        inputs=some_losses,
        hyper={"alpha": 0.3},
        reference=each(cvar),
        invariants=CVAR,
        bad=ALPHA,
    ),
    Case(
        function=weights.chi2_dro_weights,
        defaults={"radius": 1.0},
        hyper={"radius": 0.4},
        **WEIGHTS,
        reference=chi2,
        invariants=CHI2,
        bad=RADIUS,
    ),
    Case(
        function=weights.chi2_dro_weights,
        variant="wide",
        hyper={"radius": 2.0},
        **WEIGHTS,
        reference=chi2,
        invariants=SHARED,
    ),
    Case(
        function=weights.chi2_dro_value,
        defaults={"radius": 1.0},
        hyper={"radius": 0.4},
        **VALUE,
        reference=value_of(chi2),
        invariants=_limits("radius", 0.0, 100.0),
        bad=RADIUS,
    ),
    WeightingCase(
        function=weights.chi2_dro,
        defaults={"radius": 1.0},
        inputs=some_losses,
        hyper={"radius": 0.4},
        reference=each(chi2),
        invariants=CHI2,
        bad=RADIUS,
    ),
]
