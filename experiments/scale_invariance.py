"""Does momentum slow down scale-invariant weights, and does projection (AdamP, SGDP) stop it?

Of weights that a normalisation follows only the direction counts, not the norm. Every step makes the norm grow, with
momentum more so, and the larger it is the less the same step turns the weights: the angle, the effective step, decays.
AdamP and SGDP leave out the part of the step that points along the weights. Two views: descent on a sphere in three
dimensions, where nothing else happens, and a network with batch normalisation under a cosine schedule, where norm,
effective step and accuracy are measured. There is no weight decay, which would make the norm shrink again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.harness import figures
from reweight import optim
from reweight.losses.classification import cross_entropy

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "Descent", "draw", "run", "sphere"]

MOMENTUM = 0.9
SPHERE_RATES = (0.1, 1.0)
NEAR = 0.05  # radians


class Method(NamedTuple):
    """The name in figures, an optimizer by its learning rate, whose rate it gets, and whether it is on the sphere."""

    label: str
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    family: Literal["sgd", "adam"] = "sgd"
    on_sphere: bool = True


METHODS: dict[str, Method] = {
    "gd": Method("SGD without momentum", optax.sgd),
    "sgd": Method("SGD with momentum", functools.partial(optax.sgd, momentum=MOMENTUM)),
    # As in the paper, where the buffer of the momentum is not projected, and as in the authors' package, where it is.
    "sgdp": Method("SGDP", functools.partial(optim.sgdp, momentum=MOMENTUM, project_buffer=False)),
    "sgdp_buffer": Method("SGDP, projected buffer", functools.partial(optim.sgdp, momentum=MOMENTUM)),
    "adam": Method("Adam", optax.adam, family="adam", on_sphere=False),
    "adamp": Method("AdamP", optim.adamp, family="adam", on_sphere=False),
}

METRICS = (
    *(
        metric
        for rate in SPHERE_RATES
        for metric in (
            harness.Metric(f"sphere_norm_{rate:g}", "final norm", None, table=f"sphere, learning rate {rate:g}"),
            harness.Metric(
                f"sphere_steps_{rate:g}", "steps to the target", "lower", digits=1,
                table=f"sphere, learning rate {rate:g}",
            ),
        )
    ),
    harness.Metric("norm_growth", "final norm / initial norm", None, table="network", digits=3),
    harness.Metric("effective_step", "effective step in the middle half, mrad", None, table="network"),
    harness.Metric("step_kept", "effective step, middle half / start", None, table="network", digits=3),
    harness.Metric("accuracy", "test accuracy", percent=True, table="network"),
)  # fmt: skip

_claim = functools.partial(harness.Claim, "Heo et al. 2021, arXiv 2006.08217")
CLAIMS = (
    _claim("sgd", "gd", "sphere_norm_0.1", "higher"),
    _claim("sgd", "gd", "sphere_norm_1", "higher"),
    _claim("sgdp", "sgd", "sphere_norm_0.1", "lower"),
    _claim("sgdp", "sgd", "sphere_norm_1", "lower"),
    _claim("sgdp", "sgd", "sphere_steps_0.1", "lower"),
    _claim("sgdp", "sgd", "sphere_steps_1", "lower"),
    _claim("sgdp_buffer", "sgd", "sphere_steps_0.1", "lower"),
    _claim("sgdp_buffer", "sgd", "sphere_steps_1", "lower"),
    _claim("sgd", "gd", "norm_growth", "higher"),
    _claim("sgdp", "sgd", "norm_growth", "lower"),
    _claim("sgdp_buffer", "sgd", "norm_growth", "lower"),
    _claim("adamp", "adam", "norm_growth", "lower"),
    _claim("sgd", "gd", "step_kept", "lower"),
    _claim("sgdp", "sgd", "step_kept", "higher"),
    _claim("sgdp_buffer", "sgd", "step_kept", "higher"),
    _claim("adamp", "adam", "step_kept", "higher"),
    _claim("sgdp", "sgd", "accuracy", "higher"),
    _claim("sgdp_buffer", "sgd", "accuracy", "higher"),
    _claim("adamp", "adam", "accuracy", "higher"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.ClassifierConfig):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    steps: int = 500
    learning_rate: float = 0.5
    """The learning rate of SGD and SGDP in the network at the start; it falls to 0 along a cosine."""
    adam_learning_rate: float = 0.01
    """The learning rate of Adam and AdamP at the start."""
    sphere_seeds: int = 20
    """How many random starts and targets on the sphere."""
    sphere_steps: int = 100
    """Steps on the sphere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("sphere_seeds", "sphere_steps")
        self.check_positive("adam_learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("sgdp", "adamp"), steps=20, sphere_seeds=3, sphere_steps=20)


class Descent(NamedTuple):
    """A descent on the sphere: after every step the norm of the weights and their angle to the target, in radians."""

    norm: Float[Array, " steps"]
    angle: Float[Array, " steps"]


def sphere(key: PRNGKeyArray, optimizer: optax.GradientTransformation, *, steps: int) -> Descent:
    r"""Descends :math:`f(w) = -\cos(w, w^*)` in three dimensions from a random unit vector to another.

    Args:
      key: draws the start and the target.
      optimizer: an optax transformation; it sees `w` as a kernel `[3, 1]`.
      steps: how many steps.

    Returns:
      Norm and angle after each step.
    """
    start, target = (x / jnp.linalg.norm(x) for x in jax.random.normal(key, (2, 3, 1)))

    def loss(params: dict[str, Array]) -> Array:
        return -jnp.sum(params["kernel"] * target) / jnp.linalg.norm(params["kernel"])

    def step(
        carry: tuple[dict[str, Array], optax.OptState], _: None
    ) -> tuple[tuple[dict[str, Array], optax.OptState], Descent]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        norm = jnp.linalg.norm(params["kernel"])
        unit = params["kernel"] / norm
        # Of two unit vectors: exact for small angles, where the arc cosine of their product is not.
        angle = 2 * jnp.arctan2(jnp.linalg.norm(unit - target), jnp.linalg.norm(unit + target))
        return (params, state), Descent(norm, angle)

    params = {"kernel": start}
    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1]


def _steps_until_near(angles: np.ndarray) -> np.ndarray:
    """The number of steps after which the angle stays small, of every row of `[seeds, steps]`."""
    far = angles >= NEAR
    return np.where(far.any(axis=1), angles.shape[1] - np.argmax(far[:, ::-1], axis=1), 0)


def _kernels(tree: object) -> Float[Array, " rows"]:
    """The entries of a tree of values a channel that belong to kernels with a normalisation behind them."""
    leaves = [(optim.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return jnp.concatenate([x.ravel() for name, x in leaves if name.endswith("kernel") and not name.startswith("head")])


def _measure(before: object, after: object) -> dict[str, Array]:
    updates = jax.tree.map(lambda new, old: new - old, after, before)
    return {
        "norm": jnp.mean(_kernels(optim.channel_norms(after))),
        "effective_step": jnp.mean(_kernels(optim.effective_step(before, updates))),
    }


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Runs every method on the sphere and in the network."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in config.chosen}
    curves: dict[str, np.ndarray] = {}
    keys = jax.random.split(jax.random.key(config.first_seed), config.sphere_seeds)
    rates = jnp.array(SPHERE_RATES)
    for name in config.chosen:
        if not METHODS[name].on_sphere:
            continue

        def descend(rate: Array, key: PRNGKeyArray, name: str = name) -> Descent:
            return sphere(key, METHODS[name].optimizer(rate), steps=config.sphere_steps)

        norms, angles = map(np.asarray, jax.jit(jax.vmap(jax.vmap(descend, (None, 0)), (0, None)))(rates, keys))
        for rate, norm, angle in zip(SPHERE_RATES, norms, angles, strict=True):
            values[name][f"sphere_norm_{rate:g}"] = norm[:, -1]
            values[name][f"sphere_steps_{rate:g}"] = _steps_until_near(angle)
            curves |= {f"sphere_norm_{rate:g}/{name}": norm, f"sphere_angle_{rate:g}/{name}": angle}

    with context.bar(len(config.chosen) * config.total_steps) as inner:
        problem = harness.Problem(config, inner, options={"norm": "batch"}, records=100)
        initial = jax.vmap(lambda params: jnp.mean(_kernels(optim.channel_norms(params))))(problem.initial[0])
        for name in config.chosen:
            method = METHODS[name]
            rate = config.learning_rate if method.family == "sgd" else config.adam_learning_rate
            training = harness.Training(method.optimizer(config.cosine(rate)), cross_entropy, measure=_measure)
            outcome = problem.train(name, training)
            growth = outcome.metrics["norm"] / np.asarray(initial)[:, None]
            steps = 1000 * outcome.metrics["effective_step"]
            at, middle = outcome.steps, config.steps / 2
            early = at <= max(config.steps / 20, at[0])
            half = (at > middle / 2) & (at <= np.ceil(1.5 * middle))
            values[name]["norm_growth"] = growth[:, -1]
            values[name]["effective_step"] = steps[:, half].mean(axis=1)
            values[name]["step_kept"] = steps[:, half].mean(axis=1) / steps[:, early].mean(axis=1)
            values[name]["accuracy"] = outcome.recalls.mean(axis=1)
            curves |= {f"norm_growth/{name}": growth, f"effective_step/{name}": steps}
            curves["network_steps"] = outcome.steps
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Above the sphere, below the network; left the norm of the weights, right how far they have to go or go."""
    rate = f"{SPHERE_RATES[-1]:g}"
    curves = results.curves
    panels = (
        (f"sphere_norm_{rate}", f"Sphere, learning rate {rate}: norm of the weights", "norm", None),
        (f"sphere_angle_{rate}", f"Sphere, learning rate {rate}: angle to the target", "radians", 1e-4),
        ("norm_growth", "Network: norm of the weights", "norm / initial norm", None),
        ("effective_step", "Network: effective step (the turn of the weights)", "milliradians", 0.03),
    )
    named = {}
    with figures.figure(9.6, 6.4) as drawn:
        grid = drawn.subplots(2, 2)
        for axes, (quantity, title, unit, lowest) in zip(grid.flat, panels, strict=True):
            for color, name in zip(figures.PALETTE, METHODS, strict=False):
                if f"{quantity}/{name}" not in curves:
                    continue
                values = curves[f"{quantity}/{name}"]
                at = (
                    curves["network_steps"]
                    if quantity in ("norm_growth", "effective_step")
                    else np.arange(1, values.shape[1] + 1)
                )
                label = results.label(name)
                named[label] = figures.band(axes, at, values, label=label, color=color, log=lowest is not None)
            if lowest is not None:
                axes.set_yscale("log")
                axes.set_ylim(lowest, None)
            axes.set(title=title, xlabel="step", ylabel=unit)
        grid[0, 1].axhline(NEAR, color="#999999", linewidth=0.8, linestyle=":")
        drawn.legend(named.values(), named, loc="outside lower center", ncols=len(METHODS))
    return drawn


if __name__ == "__main__":
    harness.main("scale_invariance", config=Config, run=run, draw=draw)
