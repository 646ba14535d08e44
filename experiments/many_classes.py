"""What is lost when the loss of many classes looks at no more than the mean and the variance of their scores?

Losses of the spherical family need the score of the label and two sums over the classes, which come from the Gram
matrix of the output kernel, so that a step costs the same for any number of classes (`benchmarks.many_classes` measures
that). Here they learn a language of a thousand words, two words of context (`envs.word_contexts`), beside cross-entropy
of the softmax. Network, budget and seeds are the same for all; what counts is whether the word that comes is among the
first k. A seed draws the language, the examples, the initial parameters and the order of the batches.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.figure import Figure

from experiments import harness
from experiments.envs import word_contexts
from experiments.harness import figures
from reweight.losses import classification
from reweight.train import LossOutput, TrainState, init_state, make_step

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

TOP = (1, 5, 20)
CURVE = (1, 2, 5, 10, 20, 50)
EMBEDDING, HIDDEN, FEATURES = 16, 64, 32

Params = Mapping[str, Array]
Losses = Callable[[Float[Array, "batch d"], Float[Array, "words d"], Int[Array, " batch"]], Float[Array, " batch"]]


def _cross_entropy(hidden: Array, kernel: Array, labels: Array) -> Array:
    return classification.cross_entropy(hidden @ kernel.T, labels)


def _spherical(name: str, hidden: Array, kernel: Array, labels: Array, **hyper: float) -> Array:
    statistics = classification.spherical_statistics(hidden, kernel[labels], classification.kernel_sums(kernel))
    return classification.spherical_loss(name, statistics, **hyper)


class Method(NamedTuple):
    """The name in the figure, the losses from hidden states and kernel, and the learning rate."""

    label: str
    losses: Losses | None
    learning_rate: float = 0.0


# Learning rates, a and b of the Z-loss and eps of the spherical softmax did best on languages of seeds 1000 and 1001.
METHODS: dict[str, Method] = {
    "cross_entropy": Method("cross-entropy", _cross_entropy, 0.03),
    "z_loss": Method("Z-loss", functools.partial(_spherical, "z_loss", a=1.0, b=5.0), 0.1),
    "taylor_softmax": Method("Taylor softmax", functools.partial(_spherical, "taylor_softmax_cross_entropy"), 0.02),
    "spherical_softmax": Method(
        "spherical softmax", functools.partial(_spherical, "spherical_softmax_cross_entropy", eps=0.1), 0.06
    ),
    "truth": Method("true probabilities", None),
}

METRICS = tuple(
    harness.Metric(f"top_{k}_error", f"top-{k} error", "lower", percent=True, digits=1) for k in TOP
)  # fmt: skip

PAPER = "de Brébisson and Vincent 2016, arXiv 1604.08859"
CLAIMS = (
    *(harness.Claim(PAPER, "z_loss", "cross_entropy", f"top_{k}_error", "lower") for k in TOP),
    *(
        harness.Claim(PAPER, "z_loss", other, f"top_{k}_error", "lower")
        for other in ("taylor_softmax", "spherical_softmax")
        for k in (TOP[0], TOP[-1])
    ),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The size of the language and the budget."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    seeds: int = 8
    words: int = 1000
    """Words of the language: the classes."""
    examples: int = 50_000
    """Training examples."""
    test_examples: int = 4000
    """Test examples."""
    steps: int = 800
    """Training steps."""
    batch_size: int = 128
    """Examples a step."""
    rate_factor: float = 1.0
    """Multiplies the learning rates of all methods."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("words", "examples", "test_examples", "steps", "batch_size")
        self.check_positive("rate_factor")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, two methods, few words."""
        return cls(
            seeds=2, methods=("cross_entropy", "z_loss"), words=60, examples=200, test_examples=100, steps=8
        )  # fmt: skip


class _Keys(NamedTuple):
    """A seed's keys."""

    language: PRNGKeyArray
    model: PRNGKeyArray
    run: PRNGKeyArray

    @classmethod
    def of(cls, seed: Int[Array, ""]) -> Self:
        return cls(*jax.random.split(jax.random.key(seed), 3))


def _sets(config: Config, languages: word_contexts.Language) -> list[word_contexts.Examples]:
    """Training and test examples of every seed `[seeds, n, ...]`."""
    rows = []
    for i, seed in enumerate(config.seed_numbers.tolist()):
        language, rng = jax.tree.map(lambda x, i=i: x[i], languages), np.random.default_rng(seed)
        rows.append([word_contexts.sample(rng, language, n) for n in (config.examples, config.test_examples)])
    return [jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *column) for column in zip(*rows, strict=True)]


def _initial(key: PRNGKeyArray, words: int) -> dict[str, Array]:
    """Embeddings of the context's words, two layers, and the output kernel with a column of biases."""
    shapes = {"embedding": (words, EMBEDDING), "first": (2 * EMBEDDING, HIDDEN), "second": (HIDDEN, FEATURES)}
    keys = dict(zip((*shapes, "kernel"), jax.random.split(key, 4), strict=True))
    scales = {"embedding": 1.0, "first": (2 * EMBEDDING) ** -0.5, "second": HIDDEN**-0.5}
    params = {name: scales[name] * jax.random.normal(keys[name], shape) for name, shape in shapes.items()}
    kernel = FEATURES**-0.5 * jax.random.normal(keys["kernel"], (words, FEATURES))
    return params | {"kernel": jnp.concatenate([kernel, jnp.zeros((words, 1))], axis=1)}


def _hidden(params: Params, contexts: Int[Array | np.ndarray, "batch 2"]) -> Float[Array, "batch d"]:
    """Hidden states, with a 1 that meets the biases."""
    rows = params["embedding"][contexts].reshape(len(contexts), -1)
    last = jax.nn.relu(rows @ params["first"]) @ params["second"]
    return jnp.concatenate([last, jnp.ones((len(last), 1), last.dtype)], axis=1)


def _train(name: str, config: Config, context: harness.Context, train: word_contexts.Examples) -> Params:
    method = METHODS[name]
    losses = method.losses
    assert losses is not None
    rate = config.rate_factor * method.learning_rate
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, config.steps))

    def loss_fn(params: Params, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del extra, key
        return LossOutput(losses(_hidden(params, batch["contexts"]), params["kernel"], batch["labels"]))

    def start(seed: Int[Array, ""]) -> TrainState:
        keys = _Keys.of(seed)
        return init_state(_initial(keys.model, config.words), {}, optimizer, key=keys.run)

    seeds = jnp.asarray(config.seed_numbers)
    state, _ = harness.train_seeds(
        name,
        make_step(loss_fn, optimizer),
        jax.jit(jax.vmap(start))(seeds),
        train._asdict(),
        jax.vmap(lambda seed: _Keys.of(seed).run)(seeds),
        batch_size=config.batch_size,
        num_steps=config.steps,
        context=context,
        stacked_arrays=True,
        mesh=config.mesh,
    )
    return state.params


def _errors(scores: Float[Array, "n words"], labels: Int[Array | np.ndarray, " n"]) -> Float[Array, " curve"]:
    """How often the word that came is not among the first k, for each k of the curve."""
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    ahead = jnp.sum(scores > own, axis=1)
    return jnp.stack([jnp.mean(ahead >= k) for k in CURVE])


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains a network with every loss and scores it on fresh contexts."""
    context = harness.Context() if context is None else context

    make = functools.partial(word_contexts.language, words=config.words)
    languages = jax.jit(jax.vmap(lambda seed: make(_Keys.of(seed).language)))(jnp.asarray(config.seed_numbers))
    train, test = _sets(config, languages)

    @jax.jit
    @jax.vmap
    def of_network(params: Params, test: word_contexts.Examples) -> Array:
        return _errors(_hidden(params, test.contexts) @ params["kernel"].T, test.labels)

    @jax.jit
    @jax.vmap
    def of_truth(language: word_contexts.Language, test: word_contexts.Examples) -> Array:
        return _errors(language.log_probs(test.contexts), test.labels)

    values: dict[str, dict[str, np.ndarray]] = {}
    curves: dict[str, np.ndarray] = {}
    trained = [name for name in config.chosen if METHODS[name].losses is not None]
    with context.bar(len(trained) * config.steps) as inner:
        for name in config.chosen:
            if name in trained:
                errors = of_network(_train(name, config, inner, train), test)
            else:
                errors = of_truth(languages, test)
            curves[f"errors/{name}"] = np.asarray(errors, np.float64)
            values[name] = {f"top_{k}_error": curves[f"errors/{name}"][:, CURVE.index(k)] for k in TOP}
    return harness.Results.of(config, values, curves)


def draw(results: harness.Results) -> Figure:
    """Left: the error by how many words are looked at. Right: what it is more than that of the first method."""
    with figures.figure(8.8, 3.6) as drawn:
        left, right = drawn.subplots(1, 2)
        lines = {}
        baseline = next(iter(results.values))
        for color, name in zip(figures.PALETTE, METHODS, strict=False):
            if name not in results.values:
                continue
            errors = 100 * results.curves[f"errors/{name}"]
            lines[results.label(name)] = figures.band(left, CURVE, errors, label="", color=color)
            against = errors - 100 * results.curves[f"errors/{baseline}"]
            figures.band(right, CURVE, against, label="", color=color)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(CURVE, [str(k) for k in CURVE])
            axes.minorticks_off()
            axes.set_xlabel("words looked at, k")
        left.set(ylabel="top-k error, %")
        left.set_title("The word that comes is not among the first k")
        right.set(ylabel="points")
        right.set_title(f"The same less that of {results.label(baseline)}")
        drawn.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    return drawn


if __name__ == "__main__":
    harness.main("many_classes", config=Config, run=run, draw=draw)
