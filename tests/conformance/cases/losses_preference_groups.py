"""Preference losses of single answers, of K answers to a prompt, of reward models, and of the stream."""

import itertools

import jax
import numpy as np

from conformance.case import BatchLossCase, Case
from conformance.cases.losses_preference_pairs import REFERENCE, four
from conformance.preference_formulas import aot, aot_unpaired, logistic, ratios, sigmoid
from reweight.losses import preference

K = 4

# -- inputs


def answers(rng, n):
    return {name: -8 + 3 * rng.normal(size=n) for name in ("policy", "reference")} | {"desirable": rng.random(n) < 0.6}


def with_statistic(name):
    return lambda rng, n: {**answers(rng, n), name: np.float64(rng.normal())}


def mismatched(rng, n):
    names = ("policy_mismatched", "reference_mismatched")
    return {name: shift + 3 * rng.normal(size=n) for name, shift in zip(names, (-7, -9), strict=True)}


def candidates(rng, n):
    return {"candidate_mask": rng.random((n, K)) < 0.8}


def groups(rng, n):
    arrays = {name: -8 + 3 * rng.normal(size=(n, K)) for name in ("policy", "reference")}
    return {**arrays, "rewards": rng.normal(size=(n, K)), **candidates(rng, n)}


def lengthy(rng, n):
    # Rewards of few values, so that there are ties.
    arrays = {"policy": -8 + 3 * rng.normal(size=(n, K)), "rewards": rng.integers(0, 3, (n, K)).astype(float)}
    return {**arrays, "lengths": rng.integers(0, 9, (n, K)).astype(float), **candidates(rng, n)}


def scored(rng, n):
    arrays = {"rewards": 2 * rng.normal(size=(n, K)), "scores": rng.integers(0, 3, (n, K)).astype(float)}
    return {**arrays, **candidates(rng, n)}


def ranked(rng, n):
    order = np.stack([rng.permutation(K) for _ in range(n)])
    return {
        "rewards": 2 * rng.normal(size=(n, K)),
        "order": np.where(rng.random((n, K)) < 0.9, order, -1),
    } | candidates(rng, n)


def two_rewards(rng, n):
    return {name: 2 * rng.normal(size=n) for name in ("chosen_rewards", "rejected_rewards")}


# -- the formulas once more, in NumPy


def kto(policy, reference, desirable, reference_point, beta, desirable_weight, undesirable_weight):
    gain = policy - reference - reference_point
    return np.where(desirable, desirable_weight * sigmoid(-beta * gain), undesirable_weight * sigmoid(beta * gain))


def bco(policy, reference, desirable, shift, beta):
    logits = beta * (policy - reference) - shift
    return np.where(desirable, logistic(logits), logistic(-logits))


def point(policy_mismatched, reference_mismatched, mask):
    difference = (policy_mismatched - reference_mismatched)[mask]
    return max(difference.mean(), 0.0) if difference.size else 0.0


def by_prompt(formula):
    """A formula of the unmasked candidates of one prompt, over prompts; 0 where there is none."""

    def losses(candidate_mask, **named):
        arrays = {name: value for name, value in named.items() if np.ndim(value)}
        hyper = {name: value for name, value in named.items() if name not in arrays}
        return np.array([
            formula(**{name: array[row][kept] for name, array in arrays.items()}, **hyper) if kept.any() else 0.0
            for row, kept in enumerate(candidate_mask)
        ])  # fmt: skip

    return losses


def softmax(values):
    mass = np.exp(values - values.max())
    return mass / mass.sum()


def infonca(policy, reference, rewards, beta, reward_temperature):
    return -np.sum(softmax(rewards / reward_temperature) * np.log(softmax(beta * (policy - reference))))


def nca(policy, reference, rewards, beta, reward_temperature):
    scores = beta * (policy - reference)
    return np.sum(softmax(rewards / reward_temperature) * logistic(scores)) + np.mean(logistic(-scores))


def exo(policy, reference, rewards, beta, reward_temperature):
    model = softmax(beta * (policy - reference))
    return np.sum(model * (np.log(model) - np.log(softmax(rewards / reward_temperature))))


def rrhf(policy, lengths, rewards, lam, length_penalty):
    tokens = np.maximum(lengths, 1)
    scores, total = policy / tokens**length_penalty, 0.0
    for i, j in itertools.permutations(range(len(policy)), 2):
        total += max(0.0, scores[i] - scores[j]) if rewards[i] < rewards[j] else 0.0
    best = np.argmax(rewards)
    return total - lam * policy[best] / tokens[best]


def ranked_pairs(rewards, scores):
    above = [(i, j) for i, j in itertools.permutations(range(len(rewards)), 2) if scores[i] > scores[j]]
    return np.mean([logistic(rewards[i] - rewards[j]) for i, j in above]) if above else 0.0


def plackett_luce(rewards, order, candidate_mask):
    losses = []
    for values, names, kept in zip(rewards, order, candidate_mask, strict=True):
        ordered = [values[name] for name in names if name >= 0 and kept[name]]
        losses.append(sum(np.log(np.sum(np.exp(ordered[k:]))) - ordered[k] for k in range(len(ordered))))
    return np.array(losses)


def win_rates(scores, candidate_mask):
    rates = np.zeros(scores.shape)
    for row, kept in enumerate(candidate_mask):
        for i in np.flatnonzero(kept):
            rates[row, i] = np.mean([sigmoid(scores[row, i] - scores[row, j]) for j in np.flatnonzero(kept)])
    return rates


def bradley_terry(chosen_rewards, rejected_rewards, margin=0.0, center=0.0):
    return logistic(chosen_rewards - rejected_rewards - margin) + center * (chosen_rewards + rejected_rewards) ** 2


def kto_of_the_batch(steps, **hyper):
    found = []
    for step in steps:
        rest = {name: step[name] for name in ("policy_mismatched", "reference_mismatched", "mask")}
        judged = {name: step[name] for name in ("policy", "reference", "desirable")}
        found.append(np.where(step["mask"], kto(**judged, reference_point=point(**rest), **hyper), 0))
    return found


def bco_of_the_stream(steps, beta, pairs=False):
    found, seen = [], []
    for step in steps:
        keep = step["mask"]
        if pairs:
            sides = ratios(*(step[name] for name in ("policy_chosen", "policy_rejected", *REFERENCE)))
            sides = [(side, flag) for side, flag in zip(sides, (True, False), strict=True)]
        else:
            sides = [(step["policy"] - step["reference"], step["desirable"])]
        seen += [beta * side[keep] for side, _ in sides]
        shift = np.concatenate(seen).mean()
        found.append(np.where(keep, sum(bco(side, 0, flags, shift, beta) for side, flags in sides), 0))
    return found


def beta_dpo(steps, beta, sensitivity, keep_rate, decay, min_beta):
    mean = std = 0.0
    key, found = jax.random.key(0), []
    for step in steps:
        keep = step["mask"] & np.ones(len(step["policy_chosen"]), bool)
        chosen, rejected = ratios(*(step[name] for name in ("policy_chosen", "policy_rejected", *REFERENCE)))
        margin = (chosen - rejected)[keep]
        mean = decay * mean + (1 - decay) * margin.mean()
        std = decay * std + (1 - decay) * margin.std(ddof=1)
        draw, key = jax.random.split(key)
        if "selected" in step:
            selected = step["selected"][keep]
        else:
            noise = np.asarray(jax.random.gumbel(draw, keep.shape, np.float32), np.float64)[: len(margin)]
            first = np.argsort(0.5 * ((margin - mean) / std) ** 2 - noise)[: int(keep_rate * len(margin))]
            selected = np.isin(np.arange(len(margin)), first)
        own = max(min_beta, beta * (1 + sensitivity * (margin[selected].mean() - mean)))
        losses = np.zeros(len(keep))
        losses[keep] = np.where(selected, logistic(own * margin) * len(margin) / selected.sum(), 0)
        found.append(losses)
    return found


def of_the_batch(formula):
    return lambda steps, **hyper: [formula(**step, **hyper) for step in steps]


# -- invariants


def the_point_is_never_negative(probe):
    arrays = probe.arrays()
    assert probe.value({**arrays, "policy_mismatched": arrays["reference_mismatched"] - 2}) == 0


def rates_are_shares(probe):
    arrays = probe.arrays()
    keep = arrays["candidate_mask"]
    rates = probe.value(arrays)
    means = rates.sum(-1)[keep.any(-1)] / keep.sum(-1)[keep.any(-1)]
    np.testing.assert_allclose(means, 0.5, rtol=1e-5)


def a_constant_a_prompt_changes_nothing(probe):
    arrays = probe.arrays()
    name = "policy" if "policy" in arrays else "rewards"
    moved = {**arrays, name: arrays[name] + np.arange(16.0)[:, None]}
    np.testing.assert_allclose(probe.value(moved), probe.value(arrays), rtol=1e-4, atol=1e-5)


# -- cases

BETA = {"beta": (0.0, -1.0, np.inf)}
SMOOTHING = {"label_smoothing": (-0.1, 0.5)}
WEIGHTS = {name: (-1.0, np.inf) for name in ("desirable_weight", "undesirable_weight")}
ANSWERS = {"reference": (np.zeros((16, 1)),), "desirable": (np.zeros((16, 1), bool),)}
PAIRED = {"differentiable": ("policy_chosen", "policy_rejected"), "stopped": REFERENCE}


def judged(function, reference, *, inputs=answers, stopped=("reference",), hyper=None, bad=None, **more):
    return Case(
        function=function,
        inputs=inputs,
        fixed=stopped[1:],
        hyper={"beta": 0.3, **(hyper or {})},
        differentiable=("policy",),
        stopped=stopped,
        reference=reference,
        bad={**BETA, **ANSWERS, **{name: (np.zeros(16),) for name in stopped[1:]}, **(bad or {})},
        **more,
    )


def group(function, formula, **more):
    return Case(
        function=function,
        inputs=groups,
        hyper={"beta": 0.3, "reward_temperature": 0.7},
        mask="candidate_mask",
        differentiable=("policy",),
        stopped=("reference", "rewards"),
        reference=by_prompt(formula),
        bad={**BETA, "reward_temperature": (0.0, np.inf), "rewards": (np.zeros((16, K + 1)),)},
        defaults={"beta": 0.1, "reward_temperature": 1.0},
        **more,
    )


WEIGHTED = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
WEIGHT_DEFAULTS = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}

CASES = [
    # single answers
    judged(
        preference.kto,
        kto,
        inputs=with_statistic("reference_point"),
        stopped=("reference", "reference_point"),
        hyper=WEIGHTED,
        bad=WEIGHTS,
        defaults=WEIGHT_DEFAULTS,
    ),
    judged(
        preference.apo_zero_unpaired,
        lambda **named: kto(**named, reference_point=0.0),
        hyper=WEIGHTED,
        bad=WEIGHTS,
        defaults=WEIGHT_DEFAULTS,
    ),
    judged(
        preference.bco,
        bco,
        inputs=with_statistic("shift"),
        stopped=("reference", "shift"),
        defaults={"beta": 0.1},
    ),
    Case(
        function=preference.kto_reference_point,
        inputs=mismatched,
        returns="batch",
        mask="mask",
        stopped=("policy_mismatched", "reference_mismatched"),
        reference=point,
        invariants=(the_point_is_never_negative,),
    ),
    # K answers
    group(preference.infonca, infonca, invariants=(a_constant_a_prompt_changes_nothing,)),
    group(preference.nca, nca),
    group(preference.exo, exo, invariants=(a_constant_a_prompt_changes_nothing,)),
    Case(
        function=preference.rrhf_ranked,
        inputs=lengthy,
        hyper={"lam": 0.7, "length_penalty": 0.8},
        mask="candidate_mask",
        differentiable=("policy",),
        stopped=("lengths", "rewards"),
        reference=by_prompt(rrhf),
        bad={"lam": (-1.0, np.inf), "length_penalty": (-1.0, np.inf)},
        defaults={"lam": 1.0, "length_penalty": 1.0},
    ),
    Case(
        function=preference.sppo_win_rates,
        inputs=lambda rng, n: {"scores": 2 * rng.normal(size=(n, K)), **candidates(rng, n)},
        mask="candidate_mask",
        stopped=("scores",),
        reference=win_rates,
        invariants=(rates_are_shares,),
    ),
    # reward models
    Case(
        function=preference.bradley_terry,
        inputs=two_rewards,
        hyper={"center": 0.1},
        differentiable=("chosen_rewards", "rejected_rewards"),
        reference=bradley_terry,
        bad={"center": (-1.0, np.inf)},
        defaults={"center": 0.0},
    ),
    Case(
        function=preference.bradley_terry,
        variant="margin",
        inputs=lambda rng, n: {**two_rewards(rng, n), "margin": rng.random(n)},
        differentiable=("chosen_rewards", "rejected_rewards"),
        stopped=("margin",),
        reference=bradley_terry,
        bad={"margin": (np.zeros((16, 2)),)},
    ),
    Case(
        function=preference.bradley_terry_ranked,
        inputs=scored,
        mask="candidate_mask",
        differentiable=("rewards",),
        stopped=("scores",),
        reference=by_prompt(ranked_pairs),
        bad={"scores": (np.zeros((16, K + 1)),)},
        invariants=(a_constant_a_prompt_changes_nothing,),
    ),
    Case(
        function=preference.plackett_luce,
        inputs=ranked,
        mask="candidate_mask",
        hidden=("rewards",),
        differentiable=("rewards",),
        reference=plackett_luce,
        bad={"order": (np.zeros((16, K + 1), int),)},
        invariants=(a_constant_a_prompt_changes_nothing,),
    ),
    # of the batch and of the stream
    BatchLossCase(
        function=preference.batch_kto,
        inputs=lambda rng, n: {**answers(rng, n), **mismatched(rng, n)},
        hyper={"beta": 0.3, **WEIGHTED},
        differentiable=("policy",),
        stopped=("reference", "policy_mismatched", "reference_mismatched"),
        reference=kto_of_the_batch,
        bad={**BETA, **WEIGHTS, **ANSWERS},
        defaults=WEIGHT_DEFAULTS,
        blames=("kto", "kto_reference_point"),
    ),
    BatchLossCase(
        function=preference.stream_bco,
        inputs=answers,
        hyper={"beta": 0.3},
        differentiable=("policy",),
        stopped=("reference",),
        reference=bco_of_the_stream,
        bad={**BETA, **ANSWERS},
        defaults={"beta": 0.1},
    ),
    BatchLossCase(
        function=preference.stream_bco,
        variant="pairs",
        inputs=four,
        hyper={"beta": 0.3, "pairs": True},
        reference=bco_of_the_stream,
        **PAIRED,
    ),
    BatchLossCase(
        function=preference.beta_dpo,
        inputs=four,
        hyper={"beta": 0.3, "sensitivity": 0.4, "keep_rate": 0.6, "decay": 0.7, "min_beta": 0.01},
        ordered=True,
        reference=beta_dpo,
        bad={
            **BETA,
            "sensitivity": (-1.0, np.inf),
            "keep_rate": (0.0, 1.1),
            "decay": (-0.1, 1.0),
            "min_beta": (0.0, np.inf),
        },
        defaults={"beta": 0.1, "sensitivity": 0.6, "keep_rate": 0.8, "decay": 0.9, "min_beta": 1e-3},
        **PAIRED,
    ),
    BatchLossCase(
        function=preference.beta_dpo,
        variant="selected",
        inputs=lambda rng, n: {**four(rng, n), "selected": rng.random(n) < 0.7},
        hyper={"beta": 0.3, "sensitivity": 0.4, "keep_rate": 0.6, "decay": 0.7, "min_beta": 0.01},
        reference=beta_dpo,
        bad={"selected": (np.zeros((16, 1)),)},
        **PAIRED,
    ),
    *(
        BatchLossCase(
            function=function,
            inputs=four,
            hyper={"beta": 0.3, "label_smoothing": 0.2},
            reference=of_the_batch(formula),
            bad={**BETA, **SMOOTHING},
            defaults={"beta": 0.1, "label_smoothing": 0.0},
            surrogate=function is preference.batch_aot_unpaired,
            **PAIRED,
        )
        for function, formula in ((preference.batch_aot, aot), (preference.batch_aot_unpaired, aot_unpaired))
    ),
]
