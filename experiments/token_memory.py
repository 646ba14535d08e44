"""Does training through token statistics give the same curve as through logits, and what does it save?

A small decoder learns to write reviews from a grammar whose probabilities are known, over a vocabulary of which they
use a few symbols. Its loss comes from the logits, or from `tokens.token_statistics`, which takes the vocabulary in
chunks and never holds them. How far apart two such curves may be is seen on two others: that of logits a part of the
rows at a time, where sums are rounded in another order and nothing else differs, and that of logits in bfloat16. Beside
it, for the gradient of the loss to the hidden states and the output kernel: the temporary memory that the compiler
plans, over sizes of vocabulary and batch, and the time of one size. That two curves are equal is no claim that one is
better, so the largest relative difference to the curve of the logits is a metric, to be read next to the others'.

Memory is the compiler's plan and the same for every seed. Times are of the machine at hand, and no two runs have the
same ones.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from experiments import harness
from experiments.harness import figures, language
from reweight import _checks, tokens
from reweight.data import sequences

__all__ = ["CLAIMS", "METHODS", "METRICS", "Config", "draw", "run"]

TASK = sequences.Sentiment(max_clauses=3)
SHAPE: Mapping[str, Any] = {"d_model": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "d_ff": 128}
PIECES = 8
TRIALS = 3

Hidden = Float[Array, "rows features"]
Kernel = Float[Array, "vocabulary features"]
Targets = Int[Array, " rows"]
LogProbs = Float[Array, " rows"]


def _from_logits(hidden: Hidden, kernel: Kernel, targets: Targets, chunk: int | None = None) -> LogProbs:
    del chunk
    log_probs = jax.nn.log_softmax((hidden @ kernel.T).astype(jnp.float32))
    return jnp.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]


def _in_bfloat16(hidden: Hidden, kernel: Kernel, targets: Targets, chunk: int | None = None) -> LogProbs:
    return _from_logits(hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), targets, chunk)


def _by_rows(hidden: Hidden, kernel: Kernel, targets: Targets, chunk: int | None = None) -> LogProbs:
    """The logits of an eighth of the rows at a time, computed again in the backward pass."""
    count = math.gcd(PIECES, len(targets))

    @jax.checkpoint
    def piece(rows: tuple[Array, Array]) -> LogProbs:
        return _from_logits(rows[0], kernel, rows[1], chunk)

    pieces = (hidden.reshape(count, -1, hidden.shape[1]), targets.reshape(count, -1))
    return jax.lax.map(piece, pieces).ravel()


def _from_statistics(hidden: Hidden, kernel: Kernel, targets: Targets, chunk: int | None = None) -> LogProbs:
    found = tokens.token_statistics(hidden, kernel, targets, kernel_layout="VD", vocab_chunk=chunk)
    assert found.log_probs is not None
    return found.log_probs


class Method(NamedTuple):
    """The name in figures, how log-probabilities come from hidden states, and whether memory and time are measured."""

    label: str
    log_probs: Callable[[Hidden, Kernel, Targets, int | None], LogProbs]
    measured: bool = True


class _Style(NamedTuple):
    """How a method is drawn."""

    color: str
    marker: str


METHODS: dict[str, Method] = {
    "logits": Method("logits", _from_logits),
    "rows": Method(f"logits, rows in {PIECES} pieces", _by_rows),
    "bfloat16": Method("logits in bfloat16", _in_bfloat16, measured=False),
    "statistics": Method("token statistics", _from_statistics),
}

STYLES = {
    name: _Style(color, marker) for name, color, marker in zip(METHODS, figures.PALETTE, figures.MARKERS, strict=False)
}
LOWEST = 1e-8  # differences below are drawn there; that of float32 to the next number is 6e-8

METRICS = (
    harness.Metric(
        "curve_difference", "largest difference to the curve of logits", None, percent=True, digits=5, table="training"
    ),
    harness.Metric("divergence", "divergence from the grammar, nats a review", "lower", digits=3, table="training"),
    harness.Metric("memory", "temporary memory, MiB", "lower", digits=0, table="gradient of the loss"),
    harness.Metric("milliseconds", "time, ms", "lower", digits=1, table="gradient of the loss"),
)  # fmt: skip

_claim = functools.partial(harness.Claim, "Wijmans et al. 2024, arXiv 2411.09009", direction="lower")
CLAIMS = (
    _claim("statistics", "logits", "memory"),
    _claim("statistics", "rows", "memory"),
    _claim("statistics", "bfloat16", "curve_difference"),
    _claim("statistics", "rows", "milliseconds"),
    _claim("statistics", "logits", "milliseconds"),
)


@dataclasses.dataclass(frozen=True)
class Config(harness.Config):
    """The options of the experiment."""

    table: ClassVar[tuple[str, ...]] = tuple(METHODS)

    steps: int = 100
    """Training steps."""
    batch_size: int = 16
    """Rows a step."""
    learning_rate: float = 3e-3
    """The learning rate at the start, after a short warm-up; it falls to 0 along a cosine."""
    vocabulary: int = 512
    """The vocabulary in training."""
    chunk: int = 128
    """Columns of the vocabulary that token statistics take at a time in training."""
    tokens: int = 8192
    """Tokens of the gradient whose memory is planned."""
    features: int = 256
    """Width of its hidden states."""
    vocabularies: tuple[int, ...] = (2048, 8192, 32_768, 131_072)
    """Its vocabularies; the last one is that of the table."""
    timed_tokens: int = 512
    """Tokens of the gradient that is timed."""
    timed_vocabulary: int = 8192
    """Its vocabulary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "batch_size", "chunk", "tokens", "features", "timed_tokens", "timed_vocabulary")
        self.check_counts("vocabulary", low=TASK.vocab_size)
        if not self.vocabularies:
            _checks.fail("experiments.Config", "vocabularies", "empty", "at least one")
        for size in self.vocabularies:
            _checks.number("experiments.Config", "vocabularies", size, low=1, integer=True)
        self.check_positive("learning_rate")

    @classmethod
    def smoke(cls) -> Self:
        """Two seeds, the two methods of the question, a few steps and small sizes."""
        return cls(
            seeds=2, methods=("logits", "statistics"), steps=20, vocabulary=64, chunk=16, tokens=256, features=16,
            vocabularies=(256, 1024), timed_tokens=64, timed_vocabulary=256,
        )  # fmt: skip

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Tokens of the gradients whose memory is planned with the last vocabulary but one."""
        return tuple(max(1, self.tokens // part) for part in (16, 4, 1))


def _gradient(name: str) -> Any:
    """The loss and its gradient to hidden states and kernel, to be compiled."""

    def loss(hidden: Hidden, kernel: Kernel, targets: Targets) -> Float[Array, ""]:
        return -jnp.mean(METHODS[name].log_probs(hidden, kernel, targets, None))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@functools.cache
def _memory(name: str, rows: int, vocabulary: int, features: int) -> float:
    """MiB of temporary memory that the compiler plans for a gradient, beyond its arguments and results."""
    shapes = (
        jax.ShapeDtypeStruct((rows, features), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, features), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    return _gradient(name).lower(*shapes).compile().memory_analysis().temp_size_in_bytes / 2**20


def _times(names: tuple[str, ...], config: Config) -> dict[str, np.ndarray]:
    """Milliseconds of the gradient by method, the least of a few trials for each seed's inputs; methods take turns."""

    def inputs(key: PRNGKeyArray) -> tuple[Hidden, Kernel, Targets]:
        hidden_key, kernel_key, target_key = jax.random.split(key, 3)
        hidden = jax.random.normal(hidden_key, (config.timed_tokens, config.features))
        kernel = jax.random.normal(kernel_key, (config.timed_vocabulary, config.features)) / config.features**0.5
        return hidden, kernel, jax.random.randint(target_key, hidden.shape[:1], 0, config.timed_vocabulary)

    gradients = {name: _gradient(name) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for seed in [config.first_seed, *config.seed_numbers]:  # the first round compiles
        arrays = jax.block_until_ready(inputs(jax.random.key(seed)))
        trials: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(TRIALS):
            for name in names:
                start = time.perf_counter()
                jax.block_until_ready(gradients[name](*arrays))
                trials[name].append(1000 * (time.perf_counter() - start))
        for name in names:
            taken[name].append(min(trials[name]))
    return {name: np.array(milliseconds[1:]) for name, milliseconds in taken.items()}


def _train(name: str, config: Config, context: harness.Context) -> language.Trained:
    method = METHODS[name]

    def log_probs(model: Any, params: Any, hidden: Array, targets: Array, mask: Array) -> Array:
        del mask  # the reduction leaves out what is no answer
        kernel, _ = model.kernel(params)
        rows = hidden.reshape(-1, hidden.shape[-1])
        return method.log_probs(rows, kernel, targets.ravel(), config.chunk).reshape(targets.shape)

    schedule = optax.warmup_cosine_decay_schedule(0, config.learning_rate, config.steps // 10, config.steps)
    training = language.LanguageTraining(
        config=language.decoder_for(TASK, vocab_size=config.vocabulary, **SHAPE),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        steps=config.steps,
        batch_size=config.batch_size,
        examples=max(4096, config.batch_size),
        log_probs=log_probs,
    )
    every = max(1, config.steps // 50)
    return language.train_language(
        name, TASK, training, seeds=config.seed_numbers, mesh=config.mesh, context=context, every=every
    )


def _divergence(trained: language.Trained) -> np.ndarray:
    """The Kullback-Leibler divergence of every seed's model from the grammar, over reviews that the grammar draws."""
    batch = TASK.sample(jax.random.fold_in(jax.random.key(0), 2**31), 2048)
    at = TASK.prompt_length
    known = TASK.scores(batch.tokens[:, :at], batch.tokens[:, at:], batch.response_mask[:, at:]).log_prob
    return np.mean(np.asarray(known) - language.answer_log_probs(trained, batch), axis=1)


def run(config: Config, context: harness.Context | None = None) -> harness.Results:
    """Trains every method, then plans the memory and takes the time of its gradient."""
    context = harness.Context() if context is None else context
    values: dict[str, dict[str, np.ndarray]] = {name: {} for name in config.chosen}
    curves: dict[str, np.ndarray] = {}
    measured = tuple(name for name in config.chosen if METHODS[name].measured)
    with context.bar(len(config.chosen) * config.steps) as inner:
        for name in config.chosen:
            outcome = _train(name, config, inner)
            loss = outcome.metrics["loss"].astype(np.float64)
            curves[f"loss/{name}"] = loss
            values[name]["divergence"] = _divergence(outcome)
            if "loss/logits" in curves:
                curves[f"difference/{name}"] = np.abs(loss / curves["loss/logits"] - 1)
                values[name]["curve_difference"] = curves[f"difference/{name}"].max(axis=1)
    curves["vocabularies"], curves["token_counts"] = np.array(config.vocabularies), np.array(config.token_counts)
    fixed = config.vocabularies[-2:][0]
    for name in measured:
        over_vocabulary = [_memory(name, config.tokens, size, config.features) for size in config.vocabularies]
        curves[f"memory_by_vocabulary/{name}"] = np.array(over_vocabulary)
        over_tokens = [_memory(name, rows, fixed, config.features) for rows in config.token_counts]
        curves[f"memory_by_tokens/{name}"] = np.array(over_tokens)
        values[name]["memory"] = np.full(config.seeds, over_vocabulary[-1])
    for name, taken in _times(measured, config).items():
        values[name]["milliseconds"] = taken
    return harness.Results.of(config, values, curves)


def _binary(size: float) -> str:
    return f"{size / 1024:g}k" if size >= 1024 else f"{size:g}"


def _memory_lines(axes: Axes, results: harness.Results, quantity: str, sizes: np.ndarray) -> dict[str, Line2D]:
    """Memory over sizes, a line a method, by the names of the methods."""
    named = {}
    for name, style in STYLES.items():
        if (memory := results.curves.get(f"{quantity}/{name}")) is not None:
            (named[name],) = axes.plot(sizes, memory, **style._asdict())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sizes, [_binary(size) for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(base=4))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda mib, _: f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib:g} MiB")
    )
    axes.minorticks_off()
    return named


def _dots(axes: Axes, results: harness.Results, metric: str, text: str) -> None:
    """A metric of the methods that have it: mean, interval and number."""
    rows = [name for name in METHODS if metric in results.values.get(name, {})]
    for row, name in enumerate(rows):
        found = results.interval(name, metric)
        figures.interval(axes, found, row, **STYLES[name]._asdict())
        axes.annotate(
            text.format(found.mean), (found.mean, row), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.25 * max(results.interval(name, metric).high for name in rows))


def draw(results: harness.Results) -> Figure:
    """Above what training gives and how far the curves are apart, below what its gradient takes."""
    curves, config = results.curves, results.config
    lines: dict[str, Line2D] = {}
    with figures.figure(9.6, 5.6) as drawn:
        (loss, difference, divergence), (by_vocabulary, by_tokens, taken) = drawn.subplots(2, 3)
        at = np.arange(1, config["steps"] + 1)
        for name, style in STYLES.items():
            options: Any = {"label": results.label(name), "color": style.color}
            if f"loss/{name}" in curves:
                # The curves lie on each other: the first one is drawn broad, the others in it.
                lines[name] = figures.band(loss, at, curves[f"loss/{name}"], **options)
                lines[name].set(**{"linewidth": 6, "alpha": 0.3} if name == "logits" else {"linewidth": 1.2})
            if name != "logits" and f"difference/{name}" in curves:
                largest = np.maximum.accumulate(curves[f"difference/{name}"], axis=1)
                figures.band(difference, at, largest, log=True, lowest=LOWEST, **options)
        loss.set(title="Loss in training", xlabel="step", ylabel="nats a token")
        difference.set_yscale("log")
        difference.set(title="Difference to the curve of logits", xlabel="step", ylabel="largest so far, relative")
        _dots(divergence, results, "divergence", "{:.3f}")
        divergence.set(title="Divergence from the grammar", xlabel="nats a review")
        lines |= _memory_lines(by_vocabulary, results, "memory_by_vocabulary", curves["vocabularies"])
        by_vocabulary.set(
            title=f"Memory, {_binary(config['tokens'])} tokens",
            xlabel="vocabulary",
            ylabel="beyond arguments and gradient",
        )
        _memory_lines(by_tokens, results, "memory_by_tokens", curves["token_counts"])
        fixed = _binary(config["vocabularies"][-2:][0])
        by_tokens.set(title=f"Memory, vocabulary {fixed}", xlabel="tokens")
        by_tokens.sharey(by_vocabulary)
        _dots(taken, results, "milliseconds", "{:.0f}")
        sizes = f"{_binary(config['timed_tokens'])} tokens, vocabulary {_binary(config['timed_vocabulary'])}"
        taken.set(title=f"Time, {sizes}", xlabel="milliseconds")
        shown = [name for name in METHODS if name in lines]
        labels = [results.label(name) for name in shown]
        drawn.legend([lines[name] for name in shown], labels, loc="outside lower center", ncols=len(METHODS))
    return drawn


if __name__ == "__main__":
    harness.main("token_memory", config=Config, run=run, draw=draw)
