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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
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
    table_steps: int = 300
    """Steps of the table policy, each on all comparisons."""
    table_learning_rate: float = 0.3
    """Its learning rate at the start; it falls to 0 along a cosine."""

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
    """Bandits `[seeds, settings, ...]` with their data sets by kind `[seeds, prompts, settings, ...]`."""

    bandits: bandits.Bandit
    arrays: dict[str, dict[str, Any]]


CANDIDATES = {"pairs": 2, "sets": 4}
LISTED_CANDIDATES = {"pairs": 2, "sets": 3}


def _sampled(config: Config, setting: Setting, seed: int) -> Worlds:
    """A bandit of many prompts with comparisons drawn by the annotator."""
    bandit = bandits.make_bandit(np.random.default_rng(seed), prompts=config.prompts, coverage=setting.coverage)
    arrays: dict[str, Any] = {}
    for kind in config.kinds:
        rankings = bandits.draw_rankings(
            np.random.default_rng((seed, 1)),
            bandit,
            sets=-(-2 * config.pairs // CANDIDATES[kind]),
            candidates=CANDIDATES[kind],
            flip_rate=setting.flip_rate,
            length_bias=setting.length_bias,
        )
        arrays[kind] = bandit_arrays(bandit, rankings, setting.flip_rate)
    return Worlds(bandit, arrays)


def _listed(config: Config, setting: Setting, seed: int) -> Worlds:
    """A bandit of two prompts with all comparisons, and for features an indicator of each answer: a table."""
    bandit = bandits.make_bandit(np.random.default_rng(seed), prompts=TABLE_PROMPTS, coverage=setting.coverage)
    bandit = bandit._replace(features=np.eye(bandit.rewards.size).reshape(*bandit.rewards.shape, -1))
    arrays: dict[str, Any] = {}
    for kind in config.kinds:
        rankings = bandits.all_rankings(
            bandit, candidates=LISTED_CANDIDATES[kind], flip_rate=setting.flip_rate, sharpness=setting.sharpness
        )
        arrays[kind] = bandit_arrays(bandit, rankings, setting.flip_rate)
    return Worlds(bandit, arrays)


def _worlds(
    config: Config, make: Callable[[Config, Setting, int], Worlds], settings: Iterable[Setting], seeds: int
) -> Worlds:
    """The worlds of all seeds and settings; on a mesh the seeds lie side by side on its axis `data`."""
    worlds = [[make(config, setting, seed) for setting in settings] for seed in range(seeds)]

    def stacked(axis: int, trees: list[list[Any]]) -> Any:
        return jax.tree.map(
            lambda *x: np.stack(x).astype(np.float32),
            *[jax.tree.map(lambda *x: np.stack(x, axis), *of_settings) for of_settings in trees],
        )

    found = Worlds(
        stacked(0, [[world.bandits for world in of_settings] for of_settings in worlds]),
        stacked(1, [[world.arrays for world in of_settings] for of_settings in worlds]),
    )
    mesh = None if config.mesh is None else parallel.make_mesh(config.mesh)
    return jax.device_put(found, None if mesh is None else parallel.batch_sharding(mesh))


def _measured(params: Array, bandit: bandits.Bandit, ranked: Array) -> dict[str, Array]:
    """What the policies of one seed and setting reach, `[methods, knobs]`."""
    learned = policies(params, bandit.features, bandit.reference)
    changes = learned - bandit.reference
    chosen = ranked[:, :, 0]
    return {
        "reward": bandits.expectation(learned, bandit.rewards) - bandits.expectation(bandit.reference, bandit.rewards),
        "kl": bandits.divergence(learned, bandit.reference),
        "gap": bandits.regret(learned, bandit, BETA),
        "length": bandits.expectation(learned, bandit.lengths) - bandits.expectation(bandit.reference, bandit.lengths),
        "chosen": jnp.einsum("pna,...pa->...", chosen, changes) / (chosen.shape[0] * chosen.shape[1]),
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
    seeds = _num_seeds(config)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    worlds = _worlds(config, _sampled, SETTINGS.values(), seeds)
    populations = _worlds(config, _listed, POPULATION.values(), seeds)
    with context.bar(len(config.kinds) * (config.steps + config.table_steps)) as inner:
        for kind, methods in config.kinds.items():
            arrays = worlds.arrays[kind]
            params = learn(
                f"bandit-{kind}",
                methods,
                arrays,
                keys,
                learning_rate=config.learning_rate,
                steps=config.steps,
                batch_size=config.batch_size,
                context=inner,
            )
            measured = _numbers(_measure(params, worlds.bandits, arrays["ranked"]), config)
            for i, name in enumerate(methods):
                _record(values[name], curves, name, {key: x[:, i] for key, x in measured.items()})
        for kind, methods in config.kinds.items():
            of_single = {name: method for name, method in methods.items() if name not in NOT_OF_SINGLE_PAIRS}
            if not of_single:
                continue
            arrays = populations.arrays[kind]
            params = learn(
                f"table-{kind}",
                of_single,
                arrays,
                keys,
                learning_rate=config.table_learning_rate,
                steps=config.table_steps,
                batch_size=TABLE_PROMPTS,
                context=inner,
                knobs=[DEFAULT],
            )
            measured = _numbers(_measure(params, populations.bandits, arrays["ranked"]), config)
            for i, name in enumerate(of_single):
                for j, setting in enumerate(POPULATION):
                    # A rating is the reward: the annotator neither flips nor sharpens it.
                    if name not in RATED or setting == "exact":
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


def _num_seeds(config: Config) -> int:
    """How many seeds are run: on a mesh as many as its axis `data` divides, of which the last are not looked at."""
    size = 1 if config.mesh is None else parallel.make_mesh(config.mesh).shape["data"]
    return -(-config.seeds // size) * size


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


CLAIMS = (
    harness.Claim("Rafailov et al. 2023, arXiv 2305.18290", "dpo", "sft", "within_clean"),
    harness.Claim("Rafailov et al. 2023, arXiv 2305.18290", "dpo", "hinge", "gap_exact", "lower"),
    harness.Claim("Azar et al. 2023, arXiv 2310.12036", "ipo", "dpo", "kl_decided", "lower"),
    harness.Claim("Zhao et al. 2023, arXiv 2305.10425", "slic", "sft", "within_clean"),
    harness.Claim("Yuan et al. 2023, arXiv 2304.05302", "rrhf", "sft", "within_clean"),
    harness.Claim("Xu et al. 2024, arXiv 2401.08417", "cpo", "sft", "within_clean"),
    harness.Claim("Hong et al. 2024, arXiv 2403.07691", "orpo", "sft", "within_clean"),
    harness.Claim("Chowdhury et al. 2024, arXiv 2403.00409", "robust_dpo", "dpo", "reward_flips"),
    harness.Claim("Chowdhury et al. 2024, arXiv 2403.00409", "robust_dpo", "dpo", "within_flips"),
    harness.Claim("Chowdhury et al. 2024, arXiv 2403.00409", "robust_dpo", "dpo", "gap_flipped", "lower"),
    harness.Claim("Ethayarajh et al. 2024, arXiv 2402.01306", "kto", "dpo", "reward_flips"),
    harness.Claim("Ethayarajh et al. 2024, arXiv 2402.01306", "kto", "dpo", "within_flips"),
    harness.Claim("Wu et al. 2024, arXiv 2407.08639", "beta_dpo", "dpo", "reward_flips"),
    harness.Claim("Wu et al. 2024, arXiv 2407.08639", "beta_dpo", "dpo", "within_flips"),
    harness.Claim("Zhou et al. 2024, arXiv 2406.11827", "wpo", "dpo", "within_coverage"),
    harness.Claim("Pal et al. 2024, arXiv 2402.13228", "dpop", "dpo", "chosen_clean"),
    harness.Claim("Chen et al. 2024, arXiv 2402.05369", "nca_pair", "dpo", "chosen_clean"),
    harness.Claim("Chen et al. 2024, arXiv 2402.05369", "nca", "infonca", "chosen_clean"),
    harness.Claim("Chen et al. 2024, arXiv 2402.05369", "infonca", "dpo", "within_clean"),
    harness.Claim("Wu et al. 2024, arXiv 2405.00675", "sppo_hard", "dpo", "chosen_clean"),
    harness.Claim("D'Oosterlinck et al. 2024, arXiv 2408.06266", "apo_zero", "apo_down", "chosen_clean"),
    harness.Claim("D'Oosterlinck et al. 2024, arXiv 2408.06266", "apo_zero", "dpo", "chosen_clean"),
    harness.Claim("Ji et al. 2024, arXiv 2402.00856", "exo_pair", "dpo", "within_clean"),
    harness.Claim("Melnyk et al. 2024, arXiv 2406.05882", "aot", "dpo", "within_clean"),
    harness.Claim("Jung et al. 2024, arXiv 2404.04656", "bco", "kto", "within_clean"),
    harness.Claim("Lu et al. 2024, arXiv 2406.08414", "discopop", "dpo", "within_clean"),
    harness.Claim("Park et al. 2024, arXiv 2403.19159", "r_dpo", "dpo", "length_length", "lower"),
    harness.Claim("Park et al. 2024, arXiv 2403.19159", "r_dpo", "dpo", "within_length"),
    harness.Claim("Liu et al. 2024, arXiv 2409.06411", "ld_dpo", "dpo", "length_length", "lower"),
    harness.Claim("Meng et al. 2024, arXiv 2405.14734", "simpo", "dpo", "length_length", "lower"),
    harness.Claim("Meng et al. 2024, arXiv 2405.14734", "simpo", "dpo", "within_length"),
    harness.Claim("Gupta et al. 2025, arXiv 2501.03884", "alphapo", "simpo", "within_clean"),
)


def draw(results: harness.Results) -> Figure:
    """TODO."""
    with figures.figure(9.6, 6) as drawn:
        drawn.subplots()
    return drawn


if __name__ == "__main__":
    harness.main("preference", config=Config, run=run, draw=draw)
