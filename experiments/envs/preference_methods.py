"""Every preference loss as the bandit runs it: what it reads of a ranking, and what its frontier is drawn over.

Two kinds of data: pairs, and sets of answers, ranked and rated. Losses of single answers get the two answers of a pair
as a good and a bad one. Where a paper leaves the choice, a knob runs from almost free to held at the
reference; fixed hyperparameters are the defaults of the library.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.envs.preference_bandit import LONGEST
from experiments.envs.preference_learning import Method, View
from reweight import weights
from reweight.losses import preference
from reweight.losses.base import BatchLoss

__all__ = ["DEFAULT", "METHODS", "NOT_OF_SINGLE_PAIRS", "RATED"]

BETAS = (0.1, 0.25, 0.5, 1.5)
DEFAULT = 2  # the knob whose policies stand in the tables: beta = 0.5 where the knob is beta
# Means over tokens are this much smaller than sums: answers have five tokens on average.
MEAN_BETAS = tuple(5 * beta for beta in BETAS)
FALLING = BETAS[::-1]
WEIGHTS = (0.1, 0.5, 2.0, 10.0)

Knob = Any  # a traced scalar
Losses = Float[Array, " rows"]


def _pairs(view: View) -> preference.Pairs:
    (chosen, rejected), (chosen_reference, rejected_reference) = view.policy.T, view.reference.T
    chosen_lengths, rejected_lengths = view.lengths.T
    return preference.Pairs(
        chosen, rejected, chosen_reference, rejected_reference, chosen_lengths, rejected_lengths, mask=view.counted
    )


def _of_pairs(
    label: str,
    name: str,
    knobs: tuple[float, ...] = BETAS,
    *,
    knob: str = "beta",
    flips: str | None = None,
    **hyper: Any,
) -> Method:
    """A loss of `PAIR_LOSSES`; `flips` names the hyperparameter that is told the rate of flips."""

    def loss(view: View, value: Knob, state: Any) -> tuple[Losses, Any]:
        told = {} if flips is None else {flips: view.flip_rate}
        return preference.pair_loss(name, _pairs(view), **{knob: value}, **told, **hyper), state

    return Method(label, loss, knobs, knob)


def _of_batches(
    label: str,
    make: Callable[..., BatchLoss],
    signals: Callable[[View], dict[str, Array]],
    collect: Callable[[Losses], Losses] = lambda losses: losses,
) -> Method:
    """A loss with a statistic of the batch or the stream."""

    def loss(view: View, beta: Knob, state: Any) -> tuple[Losses, Any]:
        losses, state = make(beta=beta).update(state, **signals(view))
        return collect(losses), state

    return Method(label, loss, BETAS, init=make().init)


def _plain(
    label: str, function: Callable[[View, Knob], Losses], knobs: tuple[float, ...] = BETAS, knob: str = "beta"
) -> Method:
    return Method(label, lambda view, value, state: (function(view, value), state), knobs, knob)


def _pair_signals(view: View) -> dict[str, Array]:
    return {name: value for name, value in _pairs(view)._asdict().items() if value is not None}


def _judged_signals(view: View) -> dict[str, Array]:
    """Chosen and rejected answers one below the other."""
    return {
        "policy": view.policy.T.ravel(),
        "reference": view.reference.T.ravel(),
        "desirable": jnp.arange(2 * len(view.policy)) < len(view.policy),
        "mask": jnp.tile(view.counted, 2),
    }


def _kto_signals(view: View) -> dict[str, Array]:
    policy, reference = view.mismatched()
    mismatched = {"policy_mismatched": policy.T.ravel(), "reference_mismatched": reference.T.ravel()}
    return _judged_signals(view) | mismatched


def _add_sides(losses: Losses) -> Losses:
    """From losses of chosen and rejected answers one below the other to losses of pairs."""
    return jnp.sum(losses.reshape(2, -1), axis=0)


def _sft(view: View, beta: Knob) -> Losses:
    """The likelihood of the chosen answer, with the divergence from the reference as a penalty."""
    return -view.policy[:, 0] + beta * view.divergence()


def _apo_zero_unpaired(view: View, beta: Knob) -> Losses:
    judged = _judged_signals(view)
    return _add_sides(
        preference.apo_zero_unpaired(judged["policy"], judged["reference"], judged["desirable"], beta=beta)
    )


def _ld_dpo(view: View, beta: Knob) -> Losses:
    """The log-probability of an answer lies evenly on its tokens."""
    masks = [jnp.arange(LONGEST) < lengths[:, None] for lengths in view.lengths.T]
    sides = [*view.policy.T, *view.reference.T]
    tokens = [
        jnp.where(mask, (side / lengths)[:, None], 0)
        for side, mask, lengths in zip(sides, [*masks, *masks], [*view.lengths.T, *view.lengths.T], strict=True)
    ]
    return preference.ld_dpo(*tokens, *masks, beta=beta)


def _wpo(view: View, beta: Knob) -> Losses:
    """Of a policy over answers, an answer is a token."""
    chosen, rejected = view.policy.T[..., None]
    squares = view.sum_squares()[:, None]
    mask = jnp.ones_like(squares)
    importance = weights.wpo_weights(chosen, rejected, squares, squares, mask, mask)
    return importance * preference.pair_loss("dpo", _pairs(view), beta=beta)


def _rewards(view: View, beta: Knob) -> Float[Array, "rows candidates"]:
    """A policy as a reward model. Unlike `implicit_rewards`, which are for logging, these have a gradient."""
    return beta * (view.policy - view.reference)


def _bradley_terry(view: View, beta: Knob) -> Losses:
    return preference.bradley_terry(*_rewards(view, beta).T, center=0.01)


def _groupwise(function: Callable[..., Losses]) -> Callable[[View, Knob], Losses]:
    return lambda view, beta: function(view.policy, view.reference, view.ratings, beta=beta)


def _rrhf_ranked(view: View, lam: Knob) -> Losses:
    return preference.rrhf_ranked(view.policy, view.lengths, view.ratings, lam=lam)


def _sppo(view: View, beta: Knob) -> Losses:
    """The best and the worst of the set with their win rates among its answers."""
    rates = preference.sppo_win_rates(view.ratings)
    best, worst = (jnp.argmax(sign * view.ratings, axis=-1)[:, None] for sign in (1, -1))

    def take(values: Array) -> tuple[Array, Array]:
        chosen, rejected = (jnp.take_along_axis(values, at, axis=-1)[:, 0] for at in (best, worst))
        return chosen, rejected

    return preference.sppo(*take(view.policy), *take(view.reference), *take(rates), beta=beta)


def _plackett_luce(view: View, beta: Knob) -> Losses:
    rewards = _rewards(view, beta)
    return preference.plackett_luce(rewards, jnp.broadcast_to(jnp.arange(rewards.shape[-1]), rewards.shape))


def _bradley_terry_ranked(view: View, beta: Knob) -> Losses:
    rewards = _rewards(view, beta)
    return preference.bradley_terry_ranked(rewards, jnp.broadcast_to(-jnp.arange(rewards.shape[-1]), rewards.shape))


METHODS: Mapping[str, Mapping[str, Method]] = {
    "pairs": {
        "sft": _plain("SFT", _sft, (0.01, 0.03, 0.1, 0.3)),
        "dpo": _of_pairs("DPO", "dpo"),
        "cdpo": _of_pairs("cDPO", "dpo", flips="label_smoothing"),
        "robust_dpo": _of_pairs("robust DPO", "robust_dpo", flips="label_smoothing"),
        "beta_dpo": _of_batches("β-DPO", preference.beta_dpo, _pair_signals),
        "wpo": _plain("WPO", _wpo),
        "dpo_norm": _of_pairs("DPO on means", "dpo_norm", MEAN_BETAS),
        "r_dpo": _of_pairs("R-DPO", "r_dpo", alpha=0.2),
        "ld_dpo": _plain("LD-DPO", _ld_dpo),
        "dpop": _of_pairs("DPOP", "dpop", lam=5.0),
        "ipo": _of_pairs("IPO", "ipo", length_normalize=False),
        "ipo_mean": _of_pairs("IPO on means", "ipo", MEAN_BETAS),
        "hinge": _of_pairs("hinge", "hinge"),
        "exo_pair": _of_pairs("EXO, pairs", "exo_pair"),
        "discopop": _of_pairs("DiscoPOP", "discopop"),
        "nca_pair": _of_pairs("NCA, pairs", "nca_pair"),
        "bco_pair": _of_pairs("BCO, no shift", "bco_pair"),
        "bco": _of_batches("BCO", preference.stream_bco, _judged_signals, _add_sides),
        "kto": _of_batches("KTO", preference.batch_kto, _kto_signals, _add_sides),
        "apo_zero": _of_pairs("APO-zero", "apo_zero"),
        "apo_zero_unpaired": _plain("APO-zero, unpaired", _apo_zero_unpaired),
        "apo_down": _of_pairs("APO-down", "apo_down"),
        "sppo_hard": _of_pairs("SPPO, hard", "sppo_hard"),
        "aot": _of_batches("AOT", preference.batch_aot, _pair_signals),
        "aot_unpaired": _of_batches("AOT, unpaired", preference.batch_aot_unpaired, _pair_signals),
        "bradley_terry": _plain("Bradley-Terry", _bradley_terry),
        "slic": _of_pairs("SLiC", "slic", FALLING, knob="delta", lam=0.1),
        "cpo": _of_pairs("CPO", "cpo"),
        "simpo": _of_pairs("SimPO", "simpo", MEAN_BETAS),
        "alphapo": _of_pairs("AlphaPO", "alphapo", MEAN_BETAS),
        "orpo": _of_pairs("ORPO", "orpo", WEIGHTS, knob="lam"),
        "rrhf": _of_pairs("RRHF", "rrhf", WEIGHTS, knob="lam"),
    },
    "sets": {
        "infonca": _plain("InfoNCA", _groupwise(preference.infonca)),
        "nca": _plain("NCA", _groupwise(preference.nca)),
        "exo": _plain("EXO", _groupwise(preference.exo)),
        "sppo": _plain("SPPO", _sppo),
        "rrhf_ranked": _plain("RRHF, K = 4", _rrhf_ranked, WEIGHTS, "lam"),
        "plackett_luce": _plain("Plackett-Luce", _plackett_luce),
        "bradley_terry_ranked": _plain("Bradley-Terry, K = 4", _bradley_terry_ranked),
    },
}
RATED = ("infonca", "nca", "exo", "sppo", "rrhf_ranked")  # these read by how much, the other losses which is better
# Their losses look at the other pairs of the batch, in which a pair that is listed with a weight would count as one.
NOT_OF_SINGLE_PAIRS = ("beta_dpo", "aot", "aot_unpaired")
