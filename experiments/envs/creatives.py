"""Advertisements that end early or wear out, and the networks that predict when."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from experiments import harness
from reweight import models, weights
from reweight.losses import survival
from reweight.metrics.survival import concordance_index
from reweight.train import LossOutput, init_state, make_step

__all__ = ["HEADS", "Creatives", "draw_creatives", "learn_lifetimes"]

SHORT, LONG = survival.DAYS_OF_CUT_OUT, survival.DAYS_OF_WEAR_OUT
FEATURES = 10
TEST = 1000


class Creatives(NamedTuple):
    """Examples `[n, ...]`.

    Attributes:
      inputs: features.
      times: days until the end or the last look.
      events: whether the end was seen.
      rates: click-through rates, around 0.01; the features behind them say other things about long lives than they do
        among the creatives that few people click.
    """

    inputs: Float[Array, "n p"]
    times: Float[Array, " n"]
    events: Bool[Array, " n"]
    rates: Float[Array, " n"]


def draw_creatives(key: PRNGKeyArray, n: int) -> Creatives:
    """Weibull lives: some creatives fail within days, the others wear out after weeks."""
    of_inputs, of_group, of_life, of_look = jax.random.split(key, 4)
    x = jax.random.normal(of_inputs, (n, FEATURES))
    early = jax.random.bernoulli(of_group, jax.nn.sigmoid(1.5 * x[:, 0] - 0.5))
    popular = x[:, 1] > 1
    # What makes a life long differs between the two groups, and between creatives that are clicked and those that not.
    short_scale = 4 * jnp.exp(0.8 * x[:, 2])
    long_scale = 50 * jnp.exp(0.6 * jnp.where(popular, x[:, 3], -x[:, 3]) + 0.3 * x[:, 4])
    draws = -jnp.log1p(-jax.random.uniform(of_life, (n,)))
    lives = jnp.where(early, short_scale * draws ** (1 / 1.5), long_scale * draws ** (1 / 3))
    looks = jax.random.uniform(of_look, (n,), minval=20, maxval=200)
    return Creatives(x, jnp.minimum(lives, looks), lives <= looks, 0.003 * jnp.exp(1.5 * popular + 0.3 * x[:, 1]))


def _sets(key: PRNGKeyArray, examples: int) -> tuple[Creatives, Creatives]:
    """The creatives that a seed trains on, and those that it is tested on."""
    _, of_train, _, of_test = jax.random.split(key, 4)
    return draw_creatives(of_train, examples), draw_creatives(of_test, TEST)


def _survivor_risk(logits: Array) -> Array:
    """Minus the expected number of intervals outlived."""
    return -jnp.sum(survival.survival_from_hazard(logits), axis=-1)


class Head(NamedTuple):
    """What a method reads from the network: the number of outputs, the losses, the risks, short, long and overall."""

    outputs: int
    losses: Callable[[Array, Mapping[str, Array]], Float[Array, " batch"]]
    risks: Callable[[Array], tuple[Array, Array, Array]]
    by_clicks: bool = False


def _cox(scores: Array, batch: Mapping[str, Array]) -> Array:
    """Minus the log of Cox's partial likelihood over the batch, as a term an example."""
    risk = scores[:, 0]
    at_risk = batch["times"] >= batch["times"][:, None]
    total = jax.nn.logsumexp(jnp.where(at_risk, risk, -jnp.inf), axis=1)
    return jnp.where(batch["events"], total - risk, 0)


def _single(logits: Array, batch: Mapping[str, Array]) -> Array:
    seen = survival.bucketize(batch["times"], batch["events"], edges=LONG)
    return survival.discrete_hazard_nll(logits, seen.intervals, seen.events)


def _two_terms(logits: Array, batch: Mapping[str, Array]) -> Array:
    short, long = jnp.split(logits, [len(SHORT) - 1], axis=-1)
    return survival.two_term_hazard_nll(short, long, batch["times"], batch["events"])


def _joined(logits: Array) -> tuple[Array, Array, Array]:
    """The long head's first interval is the whole short grid: overall, the short head says how much of it is lived."""
    short, long = jnp.split(logits, [len(SHORT) - 1], axis=-1)
    days = jnp.diff(jnp.asarray(SHORT)), jnp.diff(jnp.asarray(LONG))
    early, late = survival.survival_from_hazard(short), survival.survival_from_hazard(long)
    overall = jnp.sum(days[0] * early, axis=-1) + jnp.sum(days[1][1:] * late[:, 1:], axis=-1)
    return _survivor_risk(short), _survivor_risk(long), -overall


BOTH = len(SHORT) + len(LONG) - 2

HEADS: dict[str, Head] = {
    "cox": Head(1, _cox, lambda scores: (scores[:, 0],) * 3),
    "one_grid": Head(len(LONG) - 1, _single, lambda logits: (_survivor_risk(logits),) * 3),
    "two_terms": Head(BOTH, _two_terms, _joined),
    "two_terms_by_clicks": Head(BOTH, _two_terms, _joined, by_clicks=True),
}


def _indices(risks: tuple[Array, Array, Array], test: Creatives) -> dict[str, Array]:
    """Concordance of the short risk within the short grid, of the long and overall risks, and by clicks."""
    short, long, overall = risks
    end = SHORT[-1]
    lasting = test.times > end
    return {
        "short": concordance_index(short, jnp.minimum(test.times, end), test.events & ~lasting),
        "long": concordance_index(long, test.times, test.events, mask=lasting),
        "overall": concordance_index(overall, test.times, test.events),
        "by_clicks": concordance_index(overall, test.times, test.events, test.rates),
    }


def learn_lifetimes(
    name: str,
    seeds: np.ndarray,
    *,
    examples: int,
    steps: int,
    batch_size: int,
    context: harness.Context,
    mesh: str | None = None,
) -> dict[str, np.ndarray]:
    """Trains a network with one of `HEADS` for every seed; its concordance indices `[seeds]` on new creatives."""
    head = HEADS[name]

    def build(key: PRNGKeyArray) -> Any:
        return models.functional(models.build("mlp", (FEATURES,), head.outputs, key=key))

    apply = build(jax.random.key(0)).apply
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-3)

    def loss_fn(params: Any, extra: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        outputs, _ = apply(params, extra, batch["inputs"])
        return LossOutput(head.losses(outputs, batch) * batch["weights"], extra=extra)

    @jax.jit
    @jax.vmap
    def start(key: PRNGKeyArray) -> tuple[Any, dict[str, Array]]:
        of_model, _, run, _ = jax.random.split(key, 4)
        model, (train, _) = build(of_model), _sets(key, examples)
        rows = train._asdict()
        rates = rows.pop("rates")
        rows["weights"] = weights.normalize(rates) if head.by_clicks else jnp.ones_like(rates)
        return init_state(model.params, model.extra, optimizer, key=run), rows

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    state, arrays = start(keys)
    state, _ = harness.train_seeds(
        name,
        make_step(loss_fn, optimizer),
        state,
        arrays,
        keys,
        batch_size=batch_size,
        num_steps=steps,
        context=context,
        stacked_arrays=True,
        mesh=mesh,
    )

    @jax.jit
    @jax.vmap
    def evaluate(key: PRNGKeyArray, params: Any, extra: Any) -> dict[str, Array]:
        _, test = _sets(key, examples)
        outputs, _ = apply(params, extra, test.inputs)
        return _indices(head.risks(outputs), test)

    return {index: np.asarray(x, np.float64) for index, x in evaluate(keys, state.params, state.extra).items()}
