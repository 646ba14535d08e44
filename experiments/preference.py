"""Which preference losses find the optimum, and what do wrong labels and unseen answers cost them?

A bandit of 200 prompts with 8 answers, where expected reward, divergence from the reference and the optimum are exact.
Every loss learns a log-linear policy from the same comparisons by a reference policy: clean ones, with 20 % of the
labels flipped, without coverage (two bad answers of each prompt are never shown, and 10 % of the labels flipped), and
by an annotator who likes length. Each runs over a knob from free to held at the reference: a frontier of reward against
divergence. A table policy then learns from all comparisons with their exact probabilities: what is left of the gap to
the optimum is the loss's own.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import preference_bandit as bandits
from experiments.envs.preference_learning import Method, bandit_arrays, learn, policies
from experiments.envs.preference_methods import BETAS, DEFAULT, METHODS, NOT_OF_SINGLE_PAIRS, RATED
from experiments.harness import figures
from reweight import _checks, parallel

__all__ = ["CLAIMS", "METRICS", "SETTINGS", "Config", "draw", "frontier", "run"]

BETA = BETAS[DEFAULT]
BUDGET = 0.5  # nats: where frontiers are compared
TABLE_PROMPTS = 2  # of the table policy, a parameter an answer


class Setting(NamedTuple):
    """What the comparisons are like."""

    label: str
    flip_rate: float = 0.0
    coverage: bool = True
    length_bias: float = 0.0
    sharpness: float = 1.0


SETTINGS = {
    "clean": Setting("clean labels"),
    "flips": Setting("20 % of the labels flipped", flip_rate=0.2),
    "coverage": Setting("two answers never shown", flip_rate=0.1, coverage=False),
    "length": Setting("annotator who likes length", length_bias=1.0),
}
POPULATION = {
    "exact": Setting("exact probabilities"),
    "flipped": Setting("20 % flips", flip_rate=0.2),
    "decided": Setting("the better answer always wins", sharpness=np.inf),
    "unseen": Setting("two answers never shown", coverage=False),
}

NAMES = tuple(name for methods in METHODS.values() for name in methods)
LABELS = {name: method.label for methods in METHODS.values() for name, method in methods.items()}

# What else is measured in a setting.
ALSO = {
    "clean": (harness.Metric("chosen_clean", "log-prob of the chosen", None, table=SETTINGS["clean"].label),),
    "length": (harness.Metric("length_length", "tokens gained", None, table=SETTINGS["length"].label),),
}
METRICS = (
    *(
        metric
        for name, setting in SETTINGS.items()
        for metric in (
            harness.Metric(f"reward_{name}", "reward gained", table=setting.label),
            harness.Metric(f"kl_{name}", "divergence", None, table=setting.label),
            harness.Metric(f"within_{name}", f"within {BUDGET:g} nats", table=setting.label),
            *ALSO.get(name, ()),
        )
    ),
    *(
        harness.Metric(
            f"gap_{name}", f"gap: {setting.label}", "lower", digits=4, table="table policy"
        )
        for name, setting in POPULATION.items()
        if name != "decided"
    ),
    harness.Metric("kl_decided", f"divergence: {POPULATION['decided'].label}", None, table="table policy"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = NAMES

    prompts: int = 200
    """Prompts of the bandit."""
    pairs: int = 15
    """Comparisons of each prompt; methods for sets of four answers get half as many sets."""
    steps: int = 200
    """Steps of Adam on the bandit."""
    batch_size: int = 10
    """Prompts a step; all of their comparisons are used."""
    learning_rate: float = 0.1
    """The learning rate at the start; it falls to 0 along a cosine."""
    table_steps: int = 400
    """Steps of the table policy, each on all comparisons."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low = functools.partial(_checks.number, "experiments.Config", low=1, integer=True)
        for name in ("pairs", "steps", "table_steps"):
            low(name, getattr(self, name))
        low("prompts", self.prompts, low=2)
        low("batch_size", self.batch_size, low=2, high=self.prompts)
        _checks.number("experiments.Config", "learning_rate", self.learning_rate, low=0, open_low=True, open_high=True)

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, four methods, a few steps."""
        return cls(seeds=2, methods=("dpo", "ipo", "kto", "infonca"), prompts=20, steps=20, table_steps=20)

    @property
    def kinds(self) -> dict[str, dict[str, Method]]:
        """The methods to run by the kind of their data."""
        chosen = {k: {n: m for n, m in methods.items() if n in self.chosen} for k, methods in METHODS.items()}
        return {kind: methods for kind, methods in chosen.items() if methods}


class Worlds(NamedTuple):
    """Bandits, one a setting, with their data sets by kind."""

    bandits: bandits.Bandit
    arrays: dict[str, dict[str, Array]]


# In bandits the settings are the first axis; a data set has a row a prompt, and then the settings.
_AXES = Worlds(0, 1)  # type: ignore[arg-type]


def _stacked(settings: Iterable[Setting]) -> dict[str, Array]:
    fields = zip(*(setting[1:] for setting in settings), strict=True)
    return {name: jnp.array(values) for name, values in zip(Setting._fields[1:], fields, strict=True)}


def _worlds(config: Config, key: PRNGKeyArray) -> tuple[Worlds, Worlds]:
    """The bandits of a seed with drawn comparisons, and their first prompts with all comparisons, for tables."""
    world, draw = jax.random.split(key)
    sets = {"pairs": (config.pairs, 2, 2), "sets": (-(-config.pairs // 2), 4, 3)}

    def drawn(setting: Mapping[str, Array]) -> Worlds:
        bandit = bandits.make_bandit(world, prompts=config.prompts, coverage=setting["coverage"])
        annotator = {"flip_rate": setting["flip_rate"], "length_bias": setting["length_bias"]}
        arrays = {}
        for kind in config.kinds:
            number, candidates, _ = sets[kind]
            rankings = bandits.draw_rankings(draw, bandit, sets=number, candidates=candidates, **annotator)
            arrays[kind] = bandit_arrays(bandit, rankings, setting["flip_rate"])
        return Worlds(bandit, arrays)

    def listed(setting: Mapping[str, Array], bandit: bandits.Bandit) -> Worlds:
        cells = jnp.eye(bandit.rewards.size).reshape(*bandit.rewards.shape, -1)
        bandit = bandit._replace(features=cells)
        annotator = {"flip_rate": setting["flip_rate"], "sharpness": setting["sharpness"]}
        arrays = {}
        for kind in config.kinds:
            *_, candidates = sets[kind]
            rankings = bandits.all_rankings(bandit, candidates=candidates, **annotator)
            arrays[kind] = bandit_arrays(bandit, rankings, setting["flip_rate"])
        return Worlds(bandit, arrays)

    samples = jax.vmap(drawn, out_axes=_AXES)(_stacked(SETTINGS.values()))
    names = list(SETTINGS)
    like = jnp.array([names.index("clean" if setting.coverage else "coverage") for setting in POPULATION.values()])
    first = jax.tree.map(lambda x: x[like, :TABLE_PROMPTS], samples.bandits)
    return samples, jax.vmap(listed, out_axes=_AXES)(_stacked(POPULATION.values()), first)


def _measured(params: Array, bandit: bandits.Bandit, ranked: Array) -> dict[str, Array]:
    """What the policies of one seed and setting reach, `[methods, knobs]`."""
    learned = policies(params, bandit.features, bandit.reference)
    changes = learned - bandit.reference
    best = ranked[:, :, 0]
    return {
        "reward": bandits.expectation(learned, bandit.rewards) - bandits.expectation(bandit.reference, bandit.rewards),
        "kl": bandits.divergence(learned, bandit.reference),
        "gap": bandits.regret(learned, bandit, BETA),
        "length": bandits.expectation(learned, bandit.lengths) - bandits.expectation(bandit.reference, bandit.lengths),
        "chosen": jnp.einsum("pna,...pa->...", best, changes) / (best.shape[0] * best.shape[1]),
    }


@jax.jit
def _measure(params: Array, worlds: bandits.Bandit, ranked: Array) -> dict[str, Array]:
    """What all policies reach, `[seeds, methods, settings, knobs]`."""
    return jax.vmap(jax.vmap(_measured, (1, 0, 1), 1))(params, worlds, ranked)


@jax.jit
def _optima(worlds: bandits.Bandit) -> dict[str, Array]:
    """Reward gained and divergence of the optima over beta, `[seeds, settings, betas]`."""

    def of_beta(bandit: bandits.Bandit, beta: Array) -> dict[str, Array]:
        best = bandits.optimum(bandit, beta)
        gained = bandits.expectation(best, bandit.rewards) - bandits.expectation(bandit.reference, bandit.rewards)
        return {"reward": gained, "kl": bandits.divergence(best, bandit.reference)}

    betas = jnp.geomspace(0.05, 50, 40)
    return jax.vmap(jax.vmap(jax.vmap(of_beta, (None, 0)), (0, None)), (0, None))(worlds, betas)


def frontier(kl: np.ndarray, reward: np.ndarray, budget: float = BUDGET) -> np.ndarray:
    """The best reward gained within a budget of divergence, on the line through the points of the knobs.

    The line starts at the reference, which gains nothing, and is straight in the root of the divergence, as the
    optimum's is near the reference.

    Args:
      kl: divergences `[..., knobs]`.
      reward: rewards gained `[..., knobs]`.
      budget: in nats.

    Returns:
      Rewards `[...]`.
    """
    kl, reward = (np.concatenate([np.zeros((*np.shape(x)[:-1], 1)), x], axis=-1) for x in (kl, reward))
    at = np.linspace(0, np.sqrt(budget), 101)

    def best(distance: np.ndarray, gained: np.ndarray) -> float:
        order = np.argsort(distance)
        return np.interp(at[at <= distance.max()], distance[order], gained[order]).max()

    return np.vectorize(best, signature="(k),(k)->()")(np.sqrt(np.maximum(kl, 0)), reward)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Every method learns the bandits from samples, then a table from all comparisons."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in config.chosen}
    curves: dict[str, np.ndarray] = {}
    keys = _seeds(config)
    worlds, populations = jax.jit(jax.vmap(functools.partial(_worlds, config)))(keys)
    with context.bar(len(config.kinds) * (config.steps + config.table_steps)) as inner:
        for kind, methods in config.kinds.items():
            arrays = worlds.arrays[kind]
            params = learn(
                f"bandit-{kind}", methods, arrays, keys,
                learning_rate=config.learning_rate, steps=config.steps, batch_size=config.batch_size, context=inner,
            )  # fmt: skip
            measured = _numbers(_measure(params, worlds.bandits, arrays["ranked"]), config)
            for i, name in enumerate(methods):
                _record(values[name], curves, name, {key: x[:, i] for key, x in measured.items()})
        for kind, methods in config.kinds.items():
            of_single = {name: method for name, method in methods.items() if name not in NOT_OF_SINGLE_PAIRS}
            if not of_single:
                continue
            arrays = populations.arrays[kind]
            params = learn(
                f"table-{kind}", of_single, arrays, keys, knobs=[DEFAULT],
                learning_rate=config.learning_rate, steps=config.table_steps, batch_size=TABLE_PROMPTS, context=inner,
            )  # fmt: skip
            measured = _numbers(_measure(params, populations.bandits, arrays["ranked"]), config)
            for i, name in enumerate(of_single):
                for j, setting in enumerate(POPULATION):
                    # A rating is the reward: the annotator neither flips nor sharpens it.
                    if name not in RATED or setting in ("exact", "unseen"):
                        metric = "kl" if setting == "decided" else "gap"
                        values[name][f"{metric}_{setting}"] = measured[metric][:, i, j, 0]
    curves |= {f"{key}/optimum": x for key, x in _numbers(_optima(worlds.bandits), config).items()}
    return harness.Results(
        experiment="preference",
        question=(__doc__ or "").splitlines()[0],
        config=dataclasses.asdict(config),
        metrics=METRICS,
        values=values,
        claims=CLAIMS,
        curves=curves,
        labels=LABELS,
    )


def _seeds(config: Config) -> PRNGKeyArray:
    """A key a seed; on a mesh the seeds lie side by side on its axis `data`, and all arrays with them.

    There are then as many seeds as the axis divides; those beyond the number asked for are not looked at.
    """
    if config.mesh is None:
        return jax.vmap(jax.random.key)(jnp.arange(config.seeds))
    mesh = parallel.make_mesh(config.mesh)
    size = mesh.shape["data"]
    keys = jax.vmap(jax.random.key)(jnp.arange(-(-config.seeds // size) * size))
    return jax.device_put(keys, parallel.batch_sharding(mesh))


def _numbers(tree: dict[str, Array], config: Config) -> dict[str, np.ndarray]:
    return {name: np.asarray(x)[: config.seeds] for name, x in tree.items()}


def _record(
    values: dict[str, np.ndarray], curves: dict[str, np.ndarray], name: str, measured: Mapping[str, np.ndarray]
) -> None:
    """Writes down what a method reached, `[seeds, settings, knobs]`."""
    curves |= {f"reward/{name}": measured["reward"], f"kl/{name}": measured["kl"]}
    for i, setting in enumerate(SETTINGS):
        values[f"reward_{setting}"] = measured["reward"][:, i, DEFAULT]
        values[f"kl_{setting}"] = measured["kl"][:, i, DEFAULT]
        values[f"within_{setting}"] = frontier(measured["kl"][:, i], measured["reward"][:, i])
    values["chosen_clean"] = measured["chosen"][:, list(SETTINGS).index("clean"), DEFAULT]
    values["length_length"] = measured["length"][:, list(SETTINGS).index("length"), DEFAULT]


CLAIMS: tuple[harness.Claim, ...] = ()


def draw(results: harness.Results) -> Figure:
    """TODO."""
    with figures.figure(9.6, 6) as drawn:
        drawn.subplots()
    return drawn


if __name__ == "__main__":
    harness.main("preference", config=Config, run=run, draw=draw)
