"""Who memorises wrong labels?

A network that is large for its training set is trained on digits of which some have a wrong label: one drawn at random,
the next class, or one that depends on the input, as does then which labels are wrong. Measured are the accuracy on
clean test examples at the end, what is lost since the best moment, and the share of wrong labels that the network has
fitted. Networks learn before they memorise: at its best moment cross-entropy has fitted few of them, at the end nearly
all.

A seed draws the training set, the initial parameters and the order of the batches, the same for all methods and noises,
and the wrong labels. STORM takes two batches a step, one to learn from and one to judge by. For nested dropout the
number of features to keep in the test is chosen on 300 more examples with right labels, which no other method sees.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import harness
from experiments.envs import noisy_digits
from experiments.envs.noisy_digits import CLASSES, NOISES, Sets, load_digits, noisy_set
from experiments.harness import figures
from reweight import reduce, schedules, weights
from reweight.losses import BatchLoss, classification
from reweight.train import LossOutput, TrainState, init_state, make_meta_step, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

Tree = Any  # a pytree of arrays
Batch = Mapping[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
RECORDS = 15
SIGMA = 80.0
COLORS = (*figures.PALETTE, "#8C564B")  # one more than methods elsewhere
HARD = ("symmetric_60", "pair_40", "instance_40")


class Setting(NamedTuple):
    """What methods may know: the size of the training set, the budget, and the share of wrong labels."""

    examples: int
    steps_per_epoch: int
    epochs: int
    rate: Float[Array, ""] | float

    @property
    def keep_rate(self) -> Callable[[Array], Array]:
        """From all labels to the share of right ones, within the first quarter of the epochs."""
        gradual = max(self.epochs // 4, 1)
        return weights.keep_schedule(
            self.rate, steps_per_epoch=self.steps_per_epoch, gradual_epochs=gradual,  # type: ignore[arg-type]
        )  # fmt: skip


def _co_teaching(setting: Setting) -> weights.Weighting:
    """Co-teaching that ranks the examples by what the networks make of them without dropout."""
    choice = weights.co_teaching(setting.keep_rate)

    def update(state: Any, losses: Array, **signals: Any) -> tuple[Array, Any]:
        return choice.update(state, signals["plain_losses"].astype(losses.dtype))

    return weights.Weighting(choice.init, update, "batch", ("plain_losses",))


class Method(NamedTuple):
    """What a method is made of.

    Attributes:
      label: the name in the figure.
      loss: the loss in a setting.
      weighting: the weighting in a setting.
      dropout: the share of features that is dropped at random.
      sigma: how many of the first features nested dropout leaves, about; infinity for no nested dropout.
      networks: how many learn side by side.
      passes: how often an example goes through the network, with other dropout each time.
      batches: how many batches a step takes.
    """

    label: str
    loss: Callable[[Setting], Callable[[Array, Array], Array] | BatchLoss] = lambda _: classification.cross_entropy
    weighting: Callable[[Setting], weights.Weighting | weights.LearnedWeighting] = lambda _: weights.uniform()
    dropout: float = 0.0
    sigma: float = math.inf
    networks: int = 1
    passes: int = 1
    batches: int = 1

    @property
    def nested(self) -> bool:
        """Whether dropout is nested."""
        return math.isfinite(self.sigma)


# Hyperparameters are those of the papers where they name them: for ELR those of symmetric noise, which on examples held
# out of training did far better here under the other noises too than those that its paper has for them; for LDR-KL and
# ALDR-KL those of the authors' experiments. Rates of dropout, alone and under STORM, and the width of nested dropout
# did best on the same examples; learning rate and budget are such that cross-entropy fits nearly all.
METHODS: dict[str, Method] = {
    "cross_entropy": Method("cross-entropy"),
    "gce": Method("GCE", loss=lambda _: classification.generalized_cross_entropy),
    "nce_rce": Method("NCE + RCE", loss=lambda _: classification.nce_rce),
    "ldr_kl": Method(
        "LDR-KL",
        loss=lambda _: functools.partial(classification.ldr_kl, lam=10.0, margin=0.1, normalize="softplus_mean"),
    ),
    "aldr_kl": Method("ALDR-KL", loss=lambda setting: classification.aldr_kl(setting.examples)),
    "elr": Method("ELR", loss=lambda setting: classification.elr(setting.examples, CLASSES)),
    "ps_kd": Method(
        "PS-KD",
        loss=lambda setting: classification.ps_kd(
            setting.examples, CLASSES, share=schedules.epoch_ramp(0.8, setting.epochs, setting.steps_per_epoch)
        ),
    ),
    "dropout": Method("dropout", dropout=0.5),
    "storm": Method("STORM", weighting=lambda _: weights.storm(CLASSES, window=50), dropout=0.3, passes=3, batches=2),
    "co_teaching": Method("co-teaching", weighting=_co_teaching, networks=2),
    "nested_co_teaching": Method("nested + co-teaching", weighting=_co_teaching, sigma=SIGMA, networks=2),
}


def _metrics() -> tuple[harness.Metric, ...]:
    columns = [
        harness.Metric("accuracy", "accuracy", percent=True, digits=1, table="all noises"),
        harness.Metric("memorised", "wrong labels memorised", "lower", percent=True, digits=1, table="all noises"),
    ]
    for name, noise in NOISES.items():
        metric = functools.partial(harness.Metric, percent=True, digits=1, table=noise.label)
        columns += [
            metric(f"accuracy_{name}", "accuracy"),
            metric(f"lost_{name}", "lost since the best", "lower"),
            metric(f"memorised_{name}", "wrong labels memorised", "lower"),
        ]
    return tuple(columns)


METRICS = _metrics()
_ELR, _LDR = "Liu et al. 2020, arXiv 2007.00151", "Zhu, Ying and Yang 2023, arXiv 2112.14869"
_GCE, _NCE = "Zhang and Sabuncu 2018, arXiv 1805.07836", "Ma et al. 2020, arXiv 2006.13554"
_CO_TEACHING, _NESTED = "Han et al. 2018, arXiv 1804.06872", "Chen et al. 2022, arXiv 2206.13140"
_STORM = "Heck et al. 2024, arXiv 2412.12955"
CLAIMS = (
    *(harness.Claim(_ELR, "elr", "cross_entropy", f"accuracy_{noise}") for noise in HARD),
    *(harness.Claim(_ELR, "elr", "cross_entropy", f"memorised_{noise}", "lower") for noise in HARD),
    harness.Claim(_LDR, "ldr_kl", "cross_entropy", "accuracy"),
    harness.Claim(_LDR, "aldr_kl", "cross_entropy", "accuracy"),
    harness.Claim(_LDR, "aldr_kl", "ldr_kl", "accuracy"),
    harness.Claim(_LDR, "aldr_kl", "gce", "accuracy"),
    harness.Claim(_GCE, "gce", "cross_entropy", "accuracy_symmetric_60"),
    harness.Claim(_GCE, "gce", "cross_entropy", "accuracy"),
    harness.Claim(_NCE, "nce_rce", "cross_entropy", "accuracy_symmetric_60"),
    harness.Claim(_NCE, "nce_rce", "gce", "accuracy_symmetric_60"),
    harness.Claim(_CO_TEACHING, "co_teaching", "cross_entropy", "accuracy_symmetric_60"),
    harness.Claim(_CO_TEACHING, "co_teaching", "cross_entropy", "accuracy_pair_40"),
    harness.Claim(_STORM, "storm", "dropout", "memorised", "lower"),
    harness.Claim(_STORM, "storm", "dropout", "accuracy"),
    harness.Claim(_NESTED, "nested_co_teaching", "cross_entropy", "accuracy"),
    harness.Claim(_NESTED, "nested_co_teaching", "co_teaching", "accuracy"),
    harness.Claim(_NESTED, "nested_co_teaching", "co_teaching", "memorised", "lower"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """Sizes and budget."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 6
    examples: int = 500
    """Examples of the training set."""
    width: int = 128
    """Hidden units."""
    steps: int = 300
    """Training steps."""
    batch_size: int = 50
    """Examples a batch."""
    learning_rate: float = 5e-3
    """The learning rate of Adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("examples", "width", "steps", "batch_size")
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, a few steps."""
        return cls(seeds=2, methods=("cross_entropy", "elr"), examples=100, width=16, steps=8)

    @property
    def every(self) -> int:
        """Steps between two records: at most a fifteenth of all, and a divisor, so that the last one is at the end."""
        return next(n for n in range(max(1, self.steps // RECORDS), 0, -1) if self.steps % n == 0)


def _count(signals: Mapping[str, Any]) -> dict[str, reduce.Parts]:
    """How many labels of a batch are wrong, and how many of these the network predicts."""
    wrong = signals["labels"] != signals["clean_labels"]
    fitted = wrong & (jnp.argmax(signals["plain_logits"], axis=-1) == signals["labels"])
    return {
        name: reduce.weighted_sum(x.astype(jnp.float32), parts=True)
        for name, x in (("wrong", wrong), ("fitted", fitted))
    }


class Learner(NamedTuple):
    """The step of a method in a setting, and the state before the first one."""

    step: Step
    start: Callable[[Tree, PRNGKeyArray], TrainState]


def _learner(method: Method, setting: Setting, config: Config) -> Learner:
    loss, weighting, optimizer = method.loss(setting), method.weighting(setting), optax.adam(config.learning_rate)
    batch_loss = loss if isinstance(loss, BatchLoss) else None

    def loss_fn(params: Tree, extra: Tree, batch: Batch, key: PRNGKeyArray) -> LossOutput:
        del extra

        def forward(params: Tree, key: PRNGKeyArray) -> tuple[Array, Array]:
            dropped = {"dropout": method.dropout, "sigma": method.sigma}
            return noisy_digits.forward(params, batch["inputs"], key, passes=method.passes, **dropped)

        plain, passes = jax.vmap(forward)(params, jax.random.split(key, method.networks))
        signals = {"logits": passes[0, 0], "plain_logits": plain[0]}
        if isinstance(loss, BatchLoss):
            return LossOutput(None, signals)

        def losses(logits: Array) -> Array:
            return jnp.stack([loss(x, batch["labels"]) for x in logits], axis=1)

        if method.passes > 1:
            signals |= {"pass_losses": losses(passes[0]), "pass_logits": jnp.swapaxes(passes[0], 0, 1)}
        if method.networks > 1:
            return LossOutput(losses(passes[:, 0]), signals | {"plain_losses": losses(plain)})
        return LossOutput(loss(passes[0, 0], batch["labels"]), signals)

    if isinstance(weighting, weights.LearnedWeighting):
        step = make_meta_step(loss_fn, optimizer, weighting, metrics=_count)
    else:
        step = make_step(loss_fn, optimizer, loss=batch_loss, weighting=weighting, metrics=_count)

    def start(params: Tree, key: PRNGKeyArray) -> TrainState:
        return init_state(params, None, optimizer, weighting, key, loss=batch_loss)

    return Learner(step, start)


class Curves(NamedTuple):
    """Over a run and for each noise: accuracy on the test set, and the share of wrong labels memorised."""

    accuracy: Float[np.ndarray, "seeds records noises"]
    memorised: Float[np.ndarray, "seeds records noises"]


def _train(name: str, config: Config, context: harness.Context, digits: tuple[Sets, Sets, Sets]) -> Curves:
    """Trains a method on every noise, which stand side by side as the seeds do."""
    method, (pool, validation, test) = METHODS[name], digits
    batch_size = method.batches * config.batch_size
    steps_per_epoch = max(1, config.examples // batch_size)
    setting = Setting(config.examples, steps_per_epoch, -(-config.steps // steps_per_epoch), 0.0)
    rates = jnp.array([noise.rate for noise in NOISES.values()])

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        def one(inner: TrainState, labels: Array, rate: Array) -> tuple[TrainState, dict[str, Array]]:
            learner = _learner(method, setting._replace(rate=rate), config)
            return learner.step(inner, {**batch, "labels": labels})

        inner, measured = jax.vmap(one, in_axes=(0, 1, 0))(state.params, batch["labels"], rates)
        kept = {field: measured[field] for field in ("wrong", "fitted")}
        return state.replace(step=state.step + 1, params=inner), kept | {"loss": jnp.mean(measured["loss"])}

    def start(params: Tree, key: PRNGKeyArray) -> TrainState:
        inner = _learner(method, setting, config).start(jax.tree.map(lambda x: x[: method.networks], params), key)
        inner = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(NOISES), *x.shape)), inner)
        return init_state({}, None, optax.identity(), key=key).replace(params=inner)

    def evaluate(state: TrainState) -> dict[str, Array]:
        accuracy = functools.partial(noisy_digits.accuracy, validation=validation, test=test, best_width=method.nested)
        return {"accuracy": jax.vmap(accuracy)(state.params.params)}

    drawn = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(jnp.asarray(config.seed_numbers))
    of_networks, of_run, of_order = drawn.T
    sets = [noisy_set(pool, config.examples, seed) for seed in config.seed_numbers.tolist()]
    _, metrics = harness.train_seeds(
        name,
        step,
        jax.vmap(start)(noisy_digits.networks(of_networks, pool.inputs.shape[1], config.width), of_run),
        {field: jnp.stack([s[field] for s in sets]) for field in sets[0]},
        of_order,
        batch_size=batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        every=config.every,
        eval_fn=evaluate,
        eval_every=config.every,
        mesh=config.mesh,
    )
    wrong, fitted = (
        metrics[field].reshape(config.seeds, -1, config.every, len(NOISES)).sum(axis=2) for field in ("wrong", "fitted")
    )
    return Curves(metrics["accuracy"], fitted / np.maximum(wrong, 1))


def _scores(curves: Curves) -> dict[str, np.ndarray]:
    """The metrics of every seed."""
    last, best = curves.accuracy[:, -1], curves.accuracy.max(axis=1)
    scores = {"accuracy": last.mean(axis=1), "memorised": curves.memorised[:, -1].mean(axis=1)}
    for i, name in enumerate(NOISES):
        scores |= {
            f"accuracy_{name}": last[:, i],
            f"lost_{name}": (best - last)[:, i],
            f"memorised_{name}": curves.memorised[:, -1, i],
        }
    return scores


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method on every noise over all seeds."""
    context = harness.Context() if context is None else context
    digits, values = load_digits(), {}
    curves: dict[str, np.ndarray] = {}
    with context.bar(len(config.chosen) * config.steps) as inner:
        for name in config.chosen:
            found = _train(name, config, inner, digits)
            values[name] = _scores(found)
            curves |= {f"accuracy/{name}": found.accuracy, f"memorised/{name}": found.memorised}
    curves["steps"] = np.arange(config.every, config.steps + 1, config.every)
    return harness.Results.of(config, values, curves)


def _draw_memory(axes: Axes, results: harness.Results, noise: str, *, named: bool) -> None:
    at, ends = results.curves["steps"], {}
    for i, name in enumerate(results.values):
        values = 100 * results.curves[f"memorised/{name}"][:, :, list(NOISES).index(noise)].mean(axis=0)
        axes.plot(at, values, color=COLORS[i], linewidth=2.4 if i == 0 else 1.4)
        ends[results.label(name)] = (float(at[-1]), float(values[-1]), COLORS[i])
    axes.set(title=NOISES[noise].label, xlabel="step", ylim=(0, 100))
    axes.set_xlim(0, at[-1])
    if named:
        figures.label_ends(axes, ends)


def _draw_accuracy(axes: Axes, results: harness.Results, noise: str) -> None:
    """From the best moment (hollow) to the end (filled)."""
    for i, name in enumerate(results.values):
        found = results.interval(name, f"accuracy_{noise}")
        last = 100 * found.mean
        best = last + 100 * results.interval(name, f"lost_{noise}").mean
        axes.plot([last, best], [i, i], color=COLORS[i], linewidth=1, alpha=0.6)
        axes.plot(best, i, "o", color=COLORS[i], markerfacecolor="white")
        figures.interval(axes, found, i, color=COLORS[i], scale=100, linestyle="none")
    axes.set(xlabel="accuracy, %")


def draw(results: harness.Results) -> Figure:
    """Above how much is memorised over the training, below what that costs; the colours are those of the names."""
    labels = [results.label(name) for name in results.values]
    with figures.figure(9.6, 6.8) as drawn:
        grid = drawn.subplots(2, len(HARD), sharey="row", height_ratios=(1, 1.15))
        for (above, below), noise in zip(grid.T, HARD, strict=True):
            _draw_memory(above, results, noise, named=noise == HARD[-1])
            _draw_accuracy(below, results, noise)
        grid[0, 0].set_ylabel("wrong labels memorised, %")
        for below in grid[1]:
            figures.name_rows(below, labels, COLORS, named=below is grid[1, 0])
        moments = [
            Line2D([], [], color="#444444", marker="o", linestyle="none", markerfacecolor=fill)
            for fill in ("#444444", "white")
        ]
        drawn.legend(moments, ["at the end", "at its best"], loc="outside lower center", ncols=2)
    return drawn


if __name__ == "__main__":
    harness.main("noisy_labels", config=Config, run=run, draw=draw)
