"""Many losses learn the bandit side by side: one log-linear policy for every method, setting, knob and seed.

All policies share one compiled program, in which a method is a few lines, and one optimizer state. They do not touch
each other: the loss is the sum of all their losses, and each parameter appears in one of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from experiments import harness
from experiments.envs.preference_bandit import Arrays, Bandit, Rankings, divergence
from reweight import reduce
from reweight.train import LossOutput, init_state, make_step

__all__ = ["Method", "View", "bandit_arrays", "learn", "policies", "within_budget"]

Tree = Any  # a pytree of arrays


class View(NamedTuple):
    """Rankings as one policy sees them: what a loss is computed from. Functions compute what few losses look at.

    Attributes:
      policy: log-probabilities of the ranked answers, the best answer first.
      reference: those under the reference.
      lengths: of the ranked answers, in tokens.
      ratings: of the ranked answers.
      counted: which rows have any weight.
      flip_rate: how often a ranking is reversed; known to the methods that ask for it.
      mismatched: log-probabilities of the answers to another prompt, under policy and reference.
      divergence: of the policy from the reference, for the prompt of each row.
      sum_squares: the sum of the squared probabilities of all answers to the prompt of each row.
    """

    policy: Float[Array, "rows candidates"]
    reference: Float[Array, "rows candidates"]
    lengths: Float[Array, "rows candidates"]
    ratings: Float[Array, "rows candidates"]
    counted: Bool[Array, " rows"]
    flip_rate: Float[Array, ""] | float
    mismatched: Callable[[], tuple[Float[Array, "rows candidates"], Float[Array, "rows candidates"]]]
    divergence: Callable[[], Float[Array, " rows"]]
    sum_squares: Callable[[], Float[Array, " rows"]]


class Method(NamedTuple):
    """A loss as the bandit runs it.

    Attributes:
      label: its name in figures.
      loss: `(view, knob, state) -> (losses [rows], state)`.
      knobs: what the frontier is drawn over, mostly beta; the strength of regularisation rises along it or falls.
      knob: the name of the knob.
      init: the state before the first batch, from a key, of a loss that remembers; None for one that does not.
    """

    label: str
    loss: Callable[[View, Float[Array, ""], Tree], tuple[Float[Array, " rows"], Tree]]
    knobs: tuple[float, ...]
    knob: str = "beta"
    init: Callable[[PRNGKeyArray], Tree] | None = None


def _candidates(
    ranked: Float[Array, "prompts sets candidates answers"], values: Float[Array, "prompts answers"]
) -> Float[Array, "rows candidates"]:
    """What the candidates of each ranking have of `values`; the rankings of all prompts one below the other."""
    picked = jnp.sum(ranked * values[:, None, None, :], axis=-1)
    return picked.reshape(-1, picked.shape[-1])


def bandit_arrays(bandit: Bandit, rankings: Rankings, flip_rate: float = 0.0) -> dict[str, np.ndarray]:
    """The data set of a bandit: what `learn` reads, a row a prompt."""
    prompts, answers = bandit.rewards.shape
    arrays = {
        "features": bandit.features,
        "reference": bandit.reference,
        "lengths": bandit.lengths,
        "ranked": np.asarray(rankings.answers)[..., None] == np.arange(answers),
        "ratings": rankings.ratings,
        "weights": rankings.weights,
        "flip_rate": np.full(prompts, flip_rate),
    }
    return {name: np.asarray(x, np.float32) for name, x in arrays.items()}


def policies(
    params: Float[Array, "*lanes features"],
    features: Float[Arrays, "prompts answers features"],
    reference: Float[Arrays, "prompts answers"],
) -> Float[Array, "*lanes prompts answers"]:
    r"""The log-probabilities of log-linear policies, :math:`\pi \propto \pi_{ref}\, e^{\phi^T \theta}`."""
    return jax.nn.log_softmax(reference + jnp.einsum("...d,pad->...pa", params, features))


def within_budget(
    params: Float[Array, "*lanes features"],
    features: Float[Arrays, "prompts answers features"],
    reference: Float[Arrays, "prompts answers"],
    budget: float,
) -> Float[Array, "*lanes features"]:
    r"""Draws policies back towards the reference until their divergence fits a budget.

    What comes back is :math:`\pi_{ref}^{1-\lambda} \pi^\lambda`, normalised, with the largest :math:`\lambda` in [0, 1]
    that fits: of a log-linear policy the parameters times :math:`\lambda`. The divergence grows with :math:`\lambda`.
    """

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        drawn_back = policies(middle[..., None] * params, features, reference)
        fits = divergence(drawn_back, reference) <= budget
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    # The first middle is 1: a policy that fits stays as it is.
    low = jnp.zeros(params.shape[:-1])
    low, _ = jax.lax.fori_loop(0, 14, halve, (low, jnp.full_like(low, 2.0)))
    return jnp.minimum(low, 1.0)[..., None] * params


def learn(
    name: str,
    methods: Mapping[str, Method],
    arrays: Mapping[str, Array],
    keys: PRNGKeyArray,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    context: harness.Context,
    knobs: Sequence[int] | None = None,
    mesh: str | None = None,
) -> Float[Array, "seeds methods settings knobs features"]:
    """Trains a policy for every method, setting, knob and seed with Adam under a cosine, from the reference on.

    Args:
      name: of the folder of checkpoints and metrics.
      methods: by name.
      arrays: those of `bandit_arrays`, stacked over the settings and then over the seeds `[seeds, prompts, settings,
        ...]`.
      keys: one a seed.
      learning_rate: that at the start.
      steps: how many.
      batch_size: prompts a step; all their rankings are used.
      context: where to write and whom to tell of progress.
      knobs: which of the methods' knobs to run, by index. Default: all.
      mesh: devices among which the seeds are divided along the axis `data`. Default: one device.

    Returns:
      The parameters.
    """
    kept = range(len(next(iter(methods.values())).knobs)) if knobs is None else knobs
    values = jnp.array([[method.knobs[i] for i in kept] for method in methods.values()])
    *_, num_settings, _, num_features = arrays["features"].shape[1:]
    lanes = (num_settings, len(kept))

    def loss_fn(params: Array, extra: Tree, batch: Mapping[str, Array], key: PRNGKeyArray) -> LossOutput:
        del key
        data = {n: jnp.moveaxis(x, 1, 0) for n, x in batch.items() if n != "indices"}

        # Selecting the ranked answers for all policies at once leaves little to each method, and little to compile.
        log_policies = jax.vmap(policies, (1, 0, 0), 1)(params, data["features"], data["reference"])
        picked = jnp.einsum("spnka,mscpa->mscpnk", data["ranked"], log_policies)
        picked = picked.reshape(*picked.shape[:3], -1, picked.shape[-1])

        def one_policy(
            policy: Array, log_policy: Array, data: Mapping[str, Array], knob: Array, state: Tree, loss: Any
        ) -> Any:
            ranked, log_reference = data["ranked"], data["reference"]
            log_ratio, sets = log_policy - log_reference, ranked.shape[1]
            before = jnp.roll(ranked, 1, axis=0)
            view = View(
                policy=policy,
                reference=_candidates(ranked, log_reference),
                lengths=_candidates(ranked, data["lengths"]),
                ratings=data["ratings"].reshape(policy.shape),
                counted=data["weights"].ravel() > 0,
                flip_rate=data["flip_rate"][0],
                mismatched=lambda: (_candidates(before, log_policy), _candidates(before, log_reference)),
                divergence=lambda: jnp.repeat(jnp.sum(jnp.exp(log_policy) * log_ratio, axis=-1), sets),
                sum_squares=lambda: jnp.repeat(jnp.sum(jnp.exp(2 * log_policy), axis=-1), sets),
            )
            return loss(view, knob, state)

        losses, states = [], {}
        for i, (own, method) in enumerate(methods.items()):
            of_policy = functools.partial(one_policy, loss=method.loss)
            of_knobs = jax.vmap(of_policy, (0, 0, None, 0, 0))
            of_all = jax.vmap(of_knobs, (0, 0, 0, None, 0))
            found, states[own] = of_all(picked[i], log_policies[i], data, values[i], extra[own])
            losses.append(found)
        weights = data["weights"] / jnp.sum(data["weights"], axis=-1, keepdims=True)
        stacked = jnp.stack(losses)
        means = jnp.einsum("mscpn,spn->pmsc", stacked.reshape(*stacked.shape[:3], *weights.shape[1:]), weights)
        return LossOutput(jnp.sum(means, axis=(1, 2, 3)), {"losses_of": jnp.mean(means, axis=(2, 3))}, states)

    def metrics(signals: Mapping[str, Any]) -> dict[str, reduce.Parts]:
        found = signals["losses_of"]
        return {f"loss_{n}": reduce.weighted_mean(found[:, i], parts=True) for i, n in enumerate(methods)}

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    # Under `jit` the step, whose many methods take long to trace, is traced once.
    step = jax.jit(make_step(loss_fn, optimizer, metrics=metrics))

    def start(key: PRNGKeyArray) -> Any:
        def stacked(method: Method) -> Tree:
            state = () if method.init is None else method.init(key)
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (*lanes, *jnp.shape(x))), state)

        params = jnp.zeros((len(methods), *lanes, num_features))
        return init_state(params, {n: stacked(method) for n, method in methods.items()}, optimizer, key=key)

    state, _ = harness.train_seeds(
        name,
        step,
        jax.jit(jax.vmap(start))(keys),
        dict(arrays),
        keys,
        batch_size=batch_size,
        num_steps=steps,
        context=context,
        stacked_arrays=True,
        every=max(1, steps // 20),
        mesh=mesh,
    )
    return state.params
