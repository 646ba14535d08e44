"""Which preference losses find the optimum, and what do wrong labels and unseen answers cost them?

A bandit of 200 prompts with 8 answers, where expected reward, divergence from the reference and the optimum are exact.
Every loss learns a log-linear policy from the same comparisons by a reference policy: clean ones, with 20 % of the
labels flipped, without coverage (two bad answers of each prompt are never shown, and 10 % of the labels flipped), and
by an annotator who likes length. Each runs over a knob from free to held at the reference: a frontier of reward against
divergence. A table policy then learns from all comparisons with their exact probabilities: what is left of the gap to
the optimum is the loss's own. Last, a small language model learns from pairs of reviews that it wrote itself,
and whose quality is known.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import preference_bandit as bandits
from experiments.envs.preference_language import LanguageConfig, learn_language
from experiments.envs.preference_learning import Method, bandit_arrays, learn, policies, within_budget
from experiments.envs.preference_methods import BETAS, DEFAULT, METHODS, NOT_OF_SINGLE_PAIRS, RATED
from experiments.harness import figures
from reweight import _checks

__all__ = ["CLAIMS", "METRICS", "SETTINGS", "Config", "draw", "frontier", "run"]

BETA = BETAS[DEFAULT]
BUDGET = 0.5  # nats: where frontiers are compared
LANGUAGE_BUDGET = 0.5  # nats a review
# Losses of the language model, with their knob; beta where they have one.
LANGUAGE = {"dpo": 0.1, "ipo": 0.1, "bco": 0.1, "simpo": 2.0, "orpo": 1.0}
TABLE_PROMPTS = 4  # of the table policy, a parameter an answer


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
    harness.Metric("language_reward", "quality gained", digits=3, table="language model"),
    harness.Metric("language_kl", "divergence", None, table="language model"),
    harness.Metric(
        "language_within", f"quality gained within {LANGUAGE_BUDGET:g} nats", digits=3, table="language model"
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = NAMES

    seeds: int = 8
    """How many seeds: they are 0, 1, 2, …, the same ones for every method. Eight fill a vector register."""
    prompts: int = 200
    """Prompts of the bandit."""
    pairs: int = 15
    """Comparisons of each prompt; methods for sets of four answers get half as many sets."""
    steps: int = 150
    """Steps of Adam on the bandit."""
    batch_size: int = 10
    """Prompts a step; all of their comparisons are used."""
    learning_rate: float = 0.1
    """The learning rate at the start; it falls to 0 along a cosine."""
    table_steps: int = 180
    """Steps of the table policy, each on all comparisons."""
    table_learning_rate: float = 0.3
    """Its learning rate at the start; it falls to 0 along a cosine."""
    language_steps: int = 100
    """Steps of the language model on its pairs."""
    language_prompts: int = 512
    """Prompts of which it has a pair of reviews, and half as many on which it is evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("pairs", "steps", "table_steps", "language_steps")
        self.check_counts("prompts", low=2)
        self.check_counts("language_prompts", low=32)
        _checks.number("experiments.Config", "batch_size", self.batch_size, low=2, high=self.prompts, integer=True)
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, four methods, a few steps."""
        return cls(
            seeds=2,
            methods=("dpo", "ipo", "kto", "infonca"),
            prompts=20,
            steps=20,
            table_steps=20,
            language_steps=4,
            language_prompts=32,
        )

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
    """A bandit of few prompts with all comparisons, and for features an indicator of each answer: a table."""
    bandit = bandits.make_bandit(np.random.default_rng(seed), prompts=TABLE_PROMPTS, coverage=setting.coverage)
    bandit = bandit._replace(features=np.eye(bandit.rewards.size).reshape(*bandit.rewards.shape, -1))
    arrays: dict[str, Any] = {}
    for kind in config.kinds:
        rankings = bandits.all_rankings(
            bandit, candidates=LISTED_CANDIDATES[kind], flip_rate=setting.flip_rate, sharpness=setting.sharpness
        )
        arrays[kind] = bandit_arrays(bandit, rankings, setting.flip_rate)
    return Worlds(bandit, arrays)


def _worlds(config: Config, make: Callable[[Config, Setting, int], Worlds], settings: Iterable[Setting]) -> Worlds:
    """The worlds of all seeds and settings."""
    worlds = [[make(config, setting, seed) for setting in settings] for seed in config.seed_numbers.tolist()]

    def stacked(axis: int, trees: list[list[Any]]) -> Any:
        return jax.tree.map(
            lambda *x: np.stack(x).astype(np.float32),
            *[jax.tree.map(lambda *x: np.stack(x, axis), *of_settings) for of_settings in trees],
        )

    return Worlds(
        stacked(0, [[world.bandits for world in of_settings] for of_settings in worlds]),
        stacked(1, [[world.arrays for world in of_settings] for of_settings in worlds]),
    )


def _measured(params: Array, bandit: bandits.Bandit, ranked: Array) -> dict[str, Array]:
    """What the policies of one seed and setting reach, `[methods, knobs]`."""
    reference = bandit.reference
    learned = policies(params, bandit.features, reference)
    fitted = policies(within_budget(params, bandit.features, reference, BUDGET), bandit.features, reference)
    gained = functools.partial(bandits.gain, reference=reference)
    chosen = ranked[:, :, 0]
    return {
        "reward": gained(learned, values=bandit.rewards),
        "within": gained(fitted, values=bandit.rewards),
        "kl": bandits.divergence(learned, reference),
        "length": gained(learned, values=bandit.lengths),
        "chosen": jnp.einsum("pna,...pa->...", chosen, learned - reference) / (chosen.shape[0] * chosen.shape[1]),
    }


@jax.jit
def _measure(params: Array, worlds: bandits.Bandit, ranked: Array) -> dict[str, Array]:
    """What all policies reach, `[seeds, methods, settings, knobs]`."""
    return jax.vmap(jax.vmap(_measured, (1, 0, 1), 1))(params, worlds, ranked)


@jax.jit
def _measure_tables(params: Array, worlds: bandits.Bandit) -> dict[str, Array]:
    """What is left of the gap, `[seeds, methods, settings, knobs]`."""

    def of_setting(params: Array, bandit: bandits.Bandit) -> dict[str, Array]:
        learned = policies(params, bandit.features, bandit.reference)
        return {
            "gap": bandits.regret(learned, bandit, BETA),
            "kl": bandits.divergence(learned, bandit.reference),
        }

    return jax.vmap(jax.vmap(of_setting, (1, 0), 1))(params, worlds)


@jax.jit
def _optima(worlds: bandits.Bandit) -> dict[str, Array]:
    """Reward gained and divergence of the optima over beta, `[seeds, settings, betas]`."""

    def of_beta(bandit: bandits.Bandit, beta: Array) -> dict[str, Array]:
        best = bandits.optimum(bandit, beta)
        gained = bandits.gain(best, bandit.rewards, bandit.reference)
        return {"reward": gained, "kl": bandits.divergence(best, bandit.reference)}

    betas = jnp.geomspace(0.05, 50, 40)
    return jax.vmap(jax.vmap(jax.vmap(of_beta, (None, 0)), (0, None)), (0, None))(worlds, betas)


def frontier(kl: np.ndarray, reward: np.ndarray, budget: float) -> np.ndarray:
    """The best reward gained within a budget of divergence on the way of the training.

    Between two evaluations the way is straight, and the first one is that of the reference.

    Args:
      kl: divergences `[..., evaluations]`.
      reward: rewards gained `[..., evaluations]`.
      budget: in nats.

    Returns:
      Rewards `[...]`.
    """
    share = np.linspace(0, 1, 21)

    def way(x: np.ndarray) -> np.ndarray:
        between = x[..., :-1, None] * (1 - share) + x[..., 1:, None] * share
        return between.reshape(*between.shape[:-2], -1)

    return np.where(way(kl) <= budget, way(reward), -np.inf).max(axis=-1)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Every method learns the bandits from samples, then a table from all comparisons."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in config.chosen}
    curves: dict[str, np.ndarray] = {}
    keys = jax.vmap(jax.random.key)(config.seed_numbers)
    worlds = _worlds(config, _sampled, SETTINGS.values())
    populations = _worlds(config, _listed, POPULATION.values())
    language = {name: METHODS["pairs"][name] for name in config.chosen if name in LANGUAGE}
    spoken = LanguageConfig(
        steps=config.language_steps, prompts=config.language_prompts, reviews=config.language_prompts // 2
    )
    units = len(config.kinds) * (config.steps + config.table_steps)
    with context.bar(units + bool(language) * (spoken.reference_steps + spoken.steps)) as inner:
        learnt = [
            learn(
                f"bandit-{kind}",
                methods,
                worlds.arrays[kind],
                keys,
                learning_rate=config.learning_rate,
                steps=config.steps,
                batch_size=config.batch_size,
                mesh=config.mesh,
                context=inner,
            )
            for kind, methods in config.kinds.items()
        ]
        ranked = worlds.arrays[next(iter(config.kinds))]["ranked"]
        measured = jax.device_get(_measure(jnp.concatenate(learnt, axis=1), worlds.bandits, ranked))
        for i, name in enumerate(config.chosen):
            _record(values[name], curves, name, {key: x[:, i] for key, x in measured.items()})

        tables = {
            kind: {name: method for name, method in methods.items() if name not in NOT_OF_SINGLE_PAIRS}
            for kind, methods in config.kinds.items()
        }
        tables = {kind: methods for kind, methods in tables.items() if methods}
        learnt = [
            learn(
                f"table-{kind}",
                methods,
                populations.arrays[kind],
                keys,
                learning_rate=config.table_learning_rate,
                steps=config.table_steps,
                batch_size=TABLE_PROMPTS,
                mesh=config.mesh,
                context=inner,
                knobs=[DEFAULT],
            )
            for kind, methods in tables.items()
        ]
        if learnt:
            measured = jax.device_get(_measure_tables(jnp.concatenate(learnt, axis=1), populations.bandits))
        for i, name in enumerate(name for methods in tables.values() for name in methods):
            for j, setting in enumerate(POPULATION):
                # A rating is the reward: the annotator neither flips nor sharpens it.
                if name not in RATED or setting == "exact":
                    metric = "kl" if setting == "decided" else "gap"
                    values[name][f"{metric}_{setting}"] = measured[metric][:, i, j, 0]

        if language:
            knobs = [LANGUAGE[name] for name in language]
            found = learn_language(language, knobs, spoken, seeds=config.seed_numbers, mesh=config.mesh, context=inner)
            reward, kl = found["reward"] - found["reward"][:, :1], found["kl"]
            for i, name in enumerate(language):
                curves |= {f"language_reward/{name}": reward[..., i], f"language_kl/{name}": kl[..., i]}
                values[name]["language_reward"] = reward[:, -1, i]
                values[name]["language_kl"] = kl[:, -1, i]
                values[name]["language_within"] = frontier(kl[..., i], reward[..., i], LANGUAGE_BUDGET)
    curves |= {f"{key}/optimum": x for key, x in jax.device_get(_optima(worlds.bandits)).items()}
    return harness.Results.of(config, values, curves, labels=LABELS)


def _record(
    values: dict[str, np.ndarray], curves: dict[str, np.ndarray], name: str, measured: Mapping[str, np.ndarray]
) -> None:
    """Writes down what a method reached, `[seeds, settings, knobs]`."""
    curves |= {f"reward/{name}": measured["reward"], f"kl/{name}": measured["kl"]}
    for i, setting in enumerate(SETTINGS):
        values[f"reward_{setting}"] = measured["reward"][:, i, DEFAULT]
        values[f"kl_{setting}"] = measured["kl"][:, i, DEFAULT]
        values[f"within_{setting}"] = measured["within"][:, i].max(axis=1)
    values["chosen_clean"] = measured["chosen"][:, list(SETTINGS).index("clean"), DEFAULT]
    values["length_length"] = measured["length"][:, list(SETTINGS).index("length"), DEFAULT]


CLAIMS = (
    harness.Claim("Rafailov et al. 2023, arXiv 2305.18290", "dpo", "sft", "within_clean"),
    harness.Claim("Rafailov et al. 2023, arXiv 2305.18290", "dpo", "hinge", "gap_exact", "lower"),
    harness.Claim("Azar et al. 2023, arXiv 2310.12036", "ipo", "dpo", "kl_decided", "lower"),
    harness.Claim("Azar et al. 2023, arXiv 2310.12036", "ipo", "dpo", "language_kl", "lower"),
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
    harness.Claim("Jung et al. 2024, arXiv 2404.04656", "bco", "bco_pair", "gap_exact", "lower"),
    harness.Claim("Lu et al. 2024, arXiv 2406.08414", "discopop", "dpo", "within_clean"),
    harness.Claim("Park et al. 2024, arXiv 2403.19159", "r_dpo", "dpo", "length_length", "lower"),
    harness.Claim("Park et al. 2024, arXiv 2403.19159", "r_dpo", "dpo", "within_length"),
    harness.Claim("Liu et al. 2024, arXiv 2409.06411", "ld_dpo", "dpo", "length_length", "lower"),
    harness.Claim("Meng et al. 2024, arXiv 2405.14734", "simpo", "dpo", "length_length", "lower"),
    harness.Claim("Meng et al. 2024, arXiv 2405.14734", "simpo", "dpo", "within_length"),
    harness.Claim("Gupta et al. 2025, arXiv 2501.03884", "alphapo", "simpo", "within_clean"),
)


HIGHLIGHTS = {
    "clean": ("dpo", "ipo", "kto", "simpo", "orpo", "cpo", "sft"),
    "flips": ("dpo", "cdpo", "robust_dpo", "kto", "ipo", "simpo", "orpo"),
    "coverage": ("dpo", "ipo", "kto", "nca_pair", "simpo", "apo_down"),
    "length": ("dpo", "ipo", "r_dpo", "simpo", "orpo", "dpo_norm"),
}
_COLORED = ("dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo", "cdpo", "apo_down", "hinge", "nca_pair")
COLORS = dict(zip(_COLORED, figures.PALETTE, strict=True)) | {
    "bco": "#E69F00", "cpo": "#7F7F7F", "dpo_norm": "#56B4E9", "r_dpo": "#E69F00", "sft": "#999933",
}  # fmt: skip
SMALLEST_GAP = 1e-5


def draw(results: harness.Results) -> Figure:
    """Left the frontiers of the bandit's settings and of the language model, right what a table's gap is."""
    curves = results.curves
    with figures.figure(9.6, 8.6) as drawn:
        grid = drawn.add_gridspec(3, 3, width_ratios=[1, 1, 0.62])
        for i, (name, setting) in enumerate(SETTINGS.items()):
            axes = drawn.add_subplot(grid[divmod(i, 2)])
            _draw_frontiers(axes, results, name)
            axes.set(title=setting.label.capitalize(), xlabel="divergence, nats", ylabel="reward gained")
        axes = drawn.add_subplot(grid[2, :2])
        ends = {}
        for name in LANGUAGE:
            if f"language_kl/{name}" in curves:
                kl, reward = curves[f"language_kl/{name}"], curves[f"language_reward/{name}"]
                ends[results.label(name)] = _line(axes, kl, reward, COLORS[name])
        figures.label_ends(axes, ends)
        axes.set(
            title="Small language model, along the training",
            xlabel="divergence, nats a review",
            ylabel="quality gained",
        )
        _draw_gaps(drawn.add_subplot(grid[:, 2]), results)
    return drawn


def _line(axes: Axes, kl: np.ndarray, reward: np.ndarray, color: str) -> tuple[float, float, str]:
    """Draws means over the seeds of a frontier `[seeds, points]` and returns its last point with the colour."""
    x, y = kl.mean(axis=0), reward.mean(axis=0)
    axes.plot(x, y, color=color, marker="o", markersize=2.5, linewidth=1.4)
    return float(x[-1]), float(y[-1]), color


def _draw_frontiers(axes: Axes, results: harness.Results, setting: str) -> None:
    """One setting's frontiers: of all methods in grey, of some in colour, and the optimum's."""
    curves, at = results.curves, list(SETTINGS).index(setting)

    def points(name: str) -> tuple[np.ndarray, np.ndarray]:
        kl, reward = (np.insert(curves[f"{key}/{name}"][:, at], 0, 0.0, axis=1) for key in ("kl", "reward"))
        order = np.argsort(kl.mean(axis=0))
        return kl[:, order], reward[:, order]

    ends = {}
    for name in results.values:
        if name not in HIGHLIGHTS[setting]:
            kl, reward = points(name)
            axes.plot(kl.mean(axis=0), reward.mean(axis=0), color="#cccccc", linewidth=0.7, zorder=1)
    for name in HIGHLIGHTS[setting]:
        if name in results.values:
            ends[results.label(name)] = _line(axes, *points(name), COLORS[name])
    limit = axes.get_xlim()[1]
    kl, reward = (curves[f"{key}/optimum"][:, at].mean(axis=0) for key in ("kl", "reward"))
    kl, reward = kl[kl <= limit], reward[kl <= limit]
    axes.plot(kl, reward, color="#555555", linestyle=":", linewidth=1.2, zorder=1.5)
    ends["optimum"] = (float(kl.max()), float(reward.max()), "#555555")
    axes.set_ylim(bottom=min(0.0, float(np.min([y for _, y, _ in ends.values()], initial=0.0))) - 0.05)
    figures.label_ends(axes, ends)


def _draw_gaps(axes: Axes, results: harness.Results) -> None:
    """Of all methods how far a table policy stays from the optimum, with right labels and with flipped ones."""
    names = [name for name, values in results.values.items() if "gap_exact" in values]
    names.sort(key=lambda name: results.interval(name, "gap_exact").mean)
    for marker, face, setting in (("o", "#0072B2", "exact"), ("D", "none", "flipped")):
        known = [(i, name) for i, name in enumerate(names) if f"gap_{setting}" in results.values[name]]
        means = [max(results.interval(name, f"gap_{setting}").mean, SMALLEST_GAP) for _, name in known]
        color = "#0072B2" if setting == "exact" else "#D55E00"
        axes.plot(
            means, [i for i, _ in known], marker, color=color, markerfacecolor=face, markersize=4,
            label={"exact": "right labels", "flipped": "20 % flipped"}[setting],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(SMALLEST_GAP / 3, 10)
    axes.set_yticks(range(len(names)), [results.label(name) for name in names], fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(title="Table, all pairs", xlabel="gap to the optimum")
    axes.set_xticks([SMALLEST_GAP, 1e-2, 10], ["$\\leq 10^{-5}$", "0.01", "10"])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(-0.02, 0.3), fontsize=7, handletextpad=0.1)


if __name__ == "__main__":
    harness.main("preference", config=Config, run=run, draw=draw)
