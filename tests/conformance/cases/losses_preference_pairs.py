"""Preference losses of pairs, their links and their scores."""

import numpy as np

from conformance.case import Case
from reweight.losses import preference
from reweight.losses.preference import links

POLICY = ("policy_chosen", "policy_rejected")
REFERENCE = ("reference_chosen", "reference_rejected")
LENGTHS = ("chosen_lengths", "rejected_lengths")
TIME = 7


# -- inputs


def two(rng, n):
    return {name: -8 + 3 * rng.normal(size=n) for name in POLICY}


def four(rng, n):
    return {**two(rng, n), **{name: -8 + 3 * rng.normal(size=n) for name in REFERENCE}}


def _lengths(rng, n):
    # Counted in floats, as a float mask sums to: integers and floats are both taken.
    return {name: rng.integers(0, 12, n).astype(float) for name in LENGTHS}


def two_with_lengths(rng, n):
    return {**two(rng, n), **_lengths(rng, n)}


def four_with_lengths(rng, n):
    return {**four(rng, n), **_lengths(rng, n)}


def with_nll(draw):
    return lambda rng, n: {**draw(rng, n), "nll": np.abs(rng.normal(size=n))}


def with_mask(rng, n):
    return {**four(rng, n), "mask": rng.random(n) > 0.3}


def win_rates(rng, n):
    rates = {f"{side}_win_rate": rng.random(n) for side in ("chosen", "rejected")}
    return {**four(rng, n), **rates}


def margins(rng, n):
    return {"margins": 2 * rng.normal(size=n)}


def token_log_probs(rng, n):
    return -np.abs(rng.normal(size=(n, TIME)))


def token_mask(rng, n):
    mask = rng.random((n, TIME)) > 0.3
    mask[2] = False
    return mask


def tokens(rng, n):
    return {"log_probs": token_log_probs(rng, n), "mask": token_mask(rng, n)}


def two_masks(rng, n):
    masks = {f"{side}_mask": token_mask(rng, n) for side in ("chosen", "rejected")}
    return {**{name: token_log_probs(rng, n) for name in (*POLICY, *REFERENCE)}, **masks}


# -- formulas


def log_sigmoid(z):
    return -np.logaddexp(0, -z)


def sigmoid(z):
    return np.exp(log_sigmoid(z))


def logistic(z, label_smoothing=0.0):
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


def robust(z, label_smoothing):
    right, wrong = logistic(z), logistic(-z)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def reverse_kl(z, label_smoothing):
    q, p = np.stack([sigmoid(z), sigmoid(-z)]), np.array([1 - label_smoothing, label_smoothing])
    return np.sum(q * (np.log(q) - np.log(p)[:, None]), axis=0)


def discovered(z, tau):
    gate = sigmoid(z / tau)
    return (1 - gate) * logistic(z) + gate * np.exp(-z)


def ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def of_difference(link):
    def reference(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, **hyper):
        chosen, rejected = ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        return link(beta * (chosen - rejected), **hyper)

    return reference


def of_sides(function):
    def reference(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, **more):
        chosen, rejected = ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        return function(chosen, rejected, beta, **more)

    return reference


def count(lengths):
    return np.where(lengths < 1, 1, lengths)


def of_means(function):
    def reference(*, chosen_lengths, rejected_lengths, **rest):
        sides = {"chosen": count(chosen_lengths), "rejected": count(rejected_lengths)}
        for side, lengths in sides.items():
            for name in (f"policy_{side}", f"reference_{side}"):
                if name in rest:
                    rest[name] = rest[name] / lengths
        return function(**rest)

    return reference


def ipo(delta, beta, length_normalize=True):
    return (delta - 1 / (2 * beta)) ** 2


def r_dpo(*, chosen_lengths, rejected_lengths, alpha, beta, label_smoothing=0.0, **log_probs):
    chosen, rejected = ratios(**log_probs)
    return logistic(beta * (chosen - rejected) + alpha * (chosen_lengths - rejected_lengths), label_smoothing)


def dpop(chosen, rejected, beta, lam, label_smoothing=0.0):
    return logistic(beta * (chosen - rejected - lam * np.maximum(-chosen, 0)), label_smoothing)


def sppo(chosen, rejected, beta, chosen_win_rate, rejected_win_rate):
    return ((chosen - (chosen_win_rate - 0.5) / beta) ** 2 + (rejected - (rejected_win_rate - 0.5) / beta) ** 2) / 2


def nca(chosen, rejected, beta):
    return logistic(beta * chosen) + (logistic(-beta * chosen) + logistic(-beta * rejected)) / 2


def by_rank(values, others):
    out = np.empty_like(values)
    out[np.argsort(values, kind="stable")] = np.sort(others)
    return out


def aot(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, mask=None, label_smoothing=0.0):
    out, keep = np.zeros(policy_chosen.shape), np.ones(policy_chosen.shape, bool) if mask is None else mask
    policy, held = (policy_chosen - policy_rejected)[keep], (reference_chosen - reference_rejected)[keep]
    out[keep] = logistic(beta * (policy - by_rank(policy, held)), label_smoothing)
    return out


def aot_unpaired(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, mask, label_smoothing=0.0):
    out = np.zeros(policy_chosen.shape)
    chosen, rejected = ratios(
        policy_chosen[mask], policy_rejected[mask], reference_chosen[mask], reference_rejected[mask]
    )
    out[mask] = logistic(beta * (chosen - by_rank(chosen, rejected)), label_smoothing)
    return out


def prefix_sum(log_probs, mask, other_lengths, alpha):
    sums = np.zeros(len(log_probs))
    for row, (values, kept) in enumerate(zip(log_probs, mask, strict=True)):
        own = values[kept]
        shared = int(min(len(own), other_lengths[row]))
        sums[row] = own[:shared].sum() + alpha * own[shared:].sum()
    return sums, mask.sum(-1).astype(np.int32)


def ld_dpo(*, chosen_mask, rejected_mask, alpha, beta, label_smoothing=0.0, **log_probs):
    masks = {"chosen": (chosen_mask, rejected_mask), "rejected": (rejected_mask, chosen_mask)}
    sums = {}
    for name, values in log_probs.items():
        own, other = masks[name.rpartition("_")[2]]
        sums[name] = prefix_sum(values, own, other.sum(-1), alpha)[0]
    return of_difference(logistic)(**sums, beta=beta, label_smoothing=label_smoothing)


def slic(policy_chosen, policy_rejected, delta=1.0, lam=0.0, nll=None):
    return np.maximum(delta - policy_chosen + policy_rejected, 0) + lam * (-policy_chosen if nll is None else nll)


def cpo(policy_chosen, policy_rejected, beta, alpha, label_smoothing=0.0, nll=None):
    nll = -policy_chosen if nll is None else nll
    return logistic(beta * (policy_chosen - policy_rejected), label_smoothing) + alpha * nll


def simpo(policy_chosen, policy_rejected, beta, gamma, label_smoothing=0.0):
    return logistic(beta * (policy_chosen - policy_rejected) - gamma, label_smoothing)


def power(log_probs, alpha):
    return (1 - np.exp(log_probs) ** -alpha) / alpha


def alphapo(policy_chosen, policy_rejected, alpha, **hyper):
    return simpo(power(policy_chosen, alpha), power(policy_rejected, alpha), **hyper)


def log_odds(log_probs):
    clamped = np.minimum(log_probs, -1e-12)
    return clamped - np.log(-np.expm1(clamped))


def orpo(policy_chosen, policy_rejected, lam, nll=None):
    nll = -policy_chosen if nll is None else nll
    return nll + lam * logistic(log_odds(policy_chosen) - log_odds(policy_rejected))


def rrhf(policy_chosen, policy_rejected, lam, nll=None):
    return np.maximum(policy_rejected - policy_chosen, 0) + lam * (-policy_chosen if nll is None else nll)


# -- invariants


def a_constant_of_the_prompt_changes_nothing(probe):
    arrays = probe.arrays()
    moved = {**arrays, **{name: arrays[name] + 3.0 for name in POLICY}}
    np.testing.assert_allclose(probe.value(moved), probe.value(arrays), rtol=1e-4, atol=1e-5)


def a_constant_of_the_prompt_matters(probe):
    arrays = probe.arrays()
    moved = {**arrays, **{name: arrays[name] + 3.0 for name in POLICY}}
    assert np.max(np.abs(probe.value(moved) - probe.value(arrays))) > 0.01


def at_the_reference(expected):
    def a_policy_that_is_the_reference_has_the_known_loss(probe):
        arrays = probe.arrays()
        same = {**arrays, **dict(zip(POLICY, (arrays[name] for name in REFERENCE), strict=True))}
        np.testing.assert_allclose(probe.value(same), expected(**probe.case.hyper), rtol=1e-5)

    return a_policy_that_is_the_reference_has_the_known_loss


LOG2 = at_the_reference(lambda **_: np.log(2))

# -- what must be refused

BETA = {"beta": (0.0, -1.0, np.inf)}
SMOOTHING = {"label_smoothing": (-0.1, 0.5)}
SHAPES = {"policy_rejected": (np.zeros((16, 1)), np.zeros(16, int)), "reference_chosen": (np.float64(0.0),)}
COUNTS = {name: (np.zeros((16, 1)), np.zeros(16, bool)) for name in LENGTHS}
FINITE = (np.inf, -np.inf)


def pair(function, reference, *, inputs=four, hyper=None, bad=None, defaults=None, **more):
    """A case of a loss with a reference, and `beta`."""
    arrays = inputs(np.random.default_rng(0), 4)
    return Case(
        function=function,
        inputs=inputs,
        hyper={"beta": 0.3, **(hyper or {})},
        differentiable=POLICY,
        stopped=tuple(
            name for name in (*REFERENCE, *LENGTHS, "chosen_win_rate", "rejected_win_rate") if name in arrays
        ),
        reference=reference,
        bad={**BETA, **SHAPES, **(bad or {})},
        defaults={"beta": 0.1, **(defaults or {})},
        **more,
    )


def free(function, reference, *, inputs=two, bad=None, **more):
    """A case of a loss without a reference."""
    arrays = inputs(np.random.default_rng(0), 4)
    return Case(
        function=function,
        inputs=inputs,
        differentiable=tuple(name for name in (*POLICY, "nll") if name in arrays),
        stopped=tuple(name for name in LENGTHS if name in arrays),
        reference=reference,
        bad={"policy_rejected": SHAPES["policy_rejected"], **(bad or {})},
        **more,
    )


def link(function, reference, **more):
    return Case(function=function, inputs=margins, differentiable=("margins",), reference=reference, **more)


CASES = [
    # links
    link(
        links.logistic,
        lambda margins, label_smoothing: logistic(margins, label_smoothing),
        hyper={"label_smoothing": 0.2},
        bad=SMOOTHING,
        defaults={"label_smoothing": 0.0},
    ),
    link(
        links.robust_logistic,
        lambda margins, label_smoothing: robust(margins, label_smoothing),
        hyper={"label_smoothing": 0.2},
        bad=SMOOTHING,
    ),
    link(
        links.hinge,
        lambda margins, target: np.maximum(target - margins, 0),
        hyper={"target": 0.7},
        bad={"target": FINITE},
        defaults={"target": 1.0},
    ),
    link(
        links.squared,
        lambda margins, target: (margins - target) ** 2,
        hyper={"target": 0.7},
        bad={"target": FINITE},
    ),
    Case(
        function=links.squared,
        variant="a target each",
        inputs=lambda rng, n: {**margins(rng, n), "target": rng.normal(size=n)},
        differentiable=("margins", "target"),
        reference=lambda margins, target: (margins - target) ** 2,
    ),
    link(
        links.reverse_kl,
        lambda margins, label_smoothing: reverse_kl(margins, label_smoothing),
        hyper={"label_smoothing": 0.2},
        bad={"label_smoothing": (0.0, 0.5)},
        defaults={"label_smoothing": 1e-3},
    ),
    link(links.sigmoid, lambda margins: sigmoid(-margins), bad={"margins": (np.zeros(16, int),)}),
    link(
        links.discovered,
        lambda margins, tau: discovered(margins, tau),
        hyper={"tau": 0.4},
        bad={"tau": (0.0, np.inf)},
        defaults={"tau": 0.05},
    ),
    link(
        links.discovered,
        lambda margins, tau: discovered(margins, tau),
        variant="wide",
        hyper={"tau": 3.0},
    ),
    # scores
    Case(
        function=preference.sequence_log_probs,
        inputs=tokens,
        mask="mask",
        differentiable=("log_probs",),
        reference=lambda log_probs, mask: (np.where(mask, log_probs, 0).sum(-1), mask.sum(-1).astype(np.int32)),
        bad={"log_probs": (np.zeros((16, TIME), int), np.float64(0.0))},
    ),
    Case(
        function=preference.shared_prefix_log_probs,
        inputs=lambda rng, n: {**tokens(rng, n), "other_lengths": rng.integers(0, TIME + 1, n).astype(float)},
        hyper={"alpha": 0.3},
        mask="mask",
        hidden=("log_probs",),
        differentiable=("log_probs",),
        constant=("other_lengths",),
        reference=prefix_sum,
        bad={"alpha": (-0.1, 1.1), "other_lengths": (np.zeros((16, 1)),)},
        defaults={"alpha": 0.5},
    ),
    Case(
        function=preference.implicit_rewards,
        inputs=lambda rng, n: {"policy": rng.normal(size=n), "reference": rng.normal(size=n)},
        hyper={"beta": 0.3},
        stopped=("policy", "reference"),
        reference=lambda policy, reference, beta: beta * (policy - reference),
        bad=BETA,
        defaults={"beta": 0.1},
    ),
    Case(
        function=preference.log_odds,
        inputs=lambda rng, n: {"log_probs": -np.exp(2 * rng.normal(size=n))},
        differentiable=("log_probs",),
        extremes={"log_probs": (-1e4, 0.0, 1e4)},
        reference=log_odds,
        bad={"log_probs": (np.zeros(16, int),)},
    ),
    Case(
        function=preference.power_rewards,
        inputs=lambda rng, n: {"log_probs": -np.abs(rng.normal(size=n))},
        hyper={"alpha": 0.4},
        differentiable=("log_probs",),
        reference=power,
        bad={"alpha": FINITE, "log_probs": (np.zeros(16, int),)},
    ),
    # one margin
    pair(
        preference.dpo,
        of_difference(logistic),
        hyper={"label_smoothing": 0.2},
        bad=SMOOTHING,
        defaults={"label_smoothing": 0.0},
        invariants=(a_constant_of_the_prompt_changes_nothing, LOG2),
    ),
    pair(
        preference.dpo_norm,
        of_means(of_difference(logistic)),
        inputs=four_with_lengths,
        hyper={"label_smoothing": 0.2},
        bad={**SMOOTHING, **COUNTS},
        defaults={"label_smoothing": 0.0},
        invariants=(LOG2,),
    ),
    pair(
        preference.robust_dpo,
        of_difference(robust),
        hyper={"label_smoothing": 0.2},
        bad=SMOOTHING,
        defaults={"label_smoothing": 0.0},
        invariants=(a_constant_of_the_prompt_changes_nothing, LOG2),
    ),
    pair(
        preference.hinge,
        of_difference(lambda z: np.maximum(1 - z, 0)),
        invariants=(a_constant_of_the_prompt_changes_nothing, at_the_reference(lambda **_: 1.0)),
    ),
    pair(
        preference.ipo,
        of_means(of_sides(lambda chosen, rejected, beta: ipo(chosen - rejected, beta))),
        inputs=four_with_lengths,
        bad=COUNTS,
        invariants=(at_the_reference(lambda beta: 1 / (4 * beta**2)),),
    ),
    pair(
        preference.ipo,
        of_sides(lambda chosen, rejected, beta, length_normalize: ipo(chosen - rejected, beta)),
        variant="of sums",
        hyper={"length_normalize": False},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.exo_pair,
        of_difference(reverse_kl),
        hyper={"label_smoothing": 0.2},
        bad={"label_smoothing": (0.0, 0.5)},
        defaults={"label_smoothing": 1e-3},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.discopop,
        of_difference(discovered),
        hyper={"tau": 0.4},
        bad={"tau": (0.0, np.inf)},
        defaults={"tau": 0.05},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.r_dpo,
        r_dpo,
        inputs=four_with_lengths,
        hyper={"alpha": 0.1, "label_smoothing": 0.2},
        bad={"alpha": FINITE, **SMOOTHING, **COUNTS},
        defaults={"label_smoothing": 0.0},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.dpop,
        of_sides(dpop),
        hyper={"lam": 2.0, "label_smoothing": 0.2},
        bad={"lam": (-1.0, np.inf), **SMOOTHING},
        defaults={"lam": 50.0, "label_smoothing": 0.0},
        invariants=(LOG2,),
    ),
    pair(
        preference.ld_dpo,
        ld_dpo,
        inputs=two_masks,
        hyper={"alpha": 0.3, "label_smoothing": 0.2},
        bad={
            "alpha": (-0.1, 1.1),
            **SMOOTHING,
            "policy_rejected": (np.zeros((16, TIME), int), np.float64(0.0)),
            "rejected_mask": (np.ones((16, TIME + 1)),),
        },
        defaults={"alpha": 0.5, "label_smoothing": 0.0},
    ),
    Case(
        function=preference.ld_dpo,
        variant="one mask",
        inputs=lambda rng, n: {
            **{name: token_log_probs(rng, n) for name in (*POLICY, *REFERENCE)},
            "mask": token_mask(rng, n),
        },
        call=lambda mask, **arrays: preference.ld_dpo(**arrays, chosen_mask=mask, rejected_mask=mask),
        mask="mask",
        differentiable=POLICY,
        stopped=REFERENCE,
        empty=np.log(2),
        free=dict.fromkeys((*POLICY, "mask"), "errors name the mask of a side, which is not an argument here"),
    ),
    # each side by itself
    pair(preference.nca_pair, of_sides(nca), invariants=(a_constant_of_the_prompt_matters,)),
    pair(
        preference.bco_pair,
        of_sides(lambda chosen, rejected, beta: logistic(beta * chosen) + logistic(-beta * rejected)),
        invariants=(a_constant_of_the_prompt_matters, at_the_reference(lambda **_: 2 * np.log(2))),
    ),
    pair(
        preference.sppo_hard,
        of_sides(lambda chosen, rejected, beta: 2 * sppo(chosen, rejected, beta, 1.0, 0.0)),
        defaults={"beta": 1e-3},
        invariants=(a_constant_of_the_prompt_matters, at_the_reference(lambda beta: 1 / (2 * beta**2))),
    ),
    pair(
        preference.sppo,
        of_sides(sppo),
        inputs=win_rates,
        bad={"chosen_win_rate": (np.zeros((16, 1)),), "rejected_win_rate": (np.zeros(16, bool),)},
        defaults={"beta": 1e-3},
        invariants=(a_constant_of_the_prompt_matters,),
    ),
    pair(
        preference.apo_zero,
        of_sides(lambda chosen, rejected, beta: 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)),
        invariants=(a_constant_of_the_prompt_matters, at_the_reference(lambda **_: 1.0)),
    ),
    pair(
        preference.apo_down,
        of_sides(lambda chosen, rejected, beta: 1 + sigmoid(beta * chosen) - sigmoid(beta * (chosen - rejected))),
        invariants=(a_constant_of_the_prompt_matters, at_the_reference(lambda **_: 1.0)),
    ),
    # ranks in the batch
    *(
        pair(
            function,
            reference,
            inputs=with_mask,
            hyper={"label_smoothing": 0.2},
            bad={**SMOOTHING, "mask": (np.ones(15, bool),)},
            defaults={"label_smoothing": 0.0},
            mask="mask",
            couples=True,
        )
        for function, reference in ((preference.aot, aot), (preference.aot_unpaired, aot_unpaired))
    ),
    # no reference
    free(
        preference.slic,
        slic,
        hyper={"delta": 0.8, "lam": 0.3},
        bad={"delta": FINITE, "lam": (-1.0, np.inf)},
        defaults={"delta": 1.0, "lam": 0.0},
    ),
    free(
        preference.slic,
        slic,
        variant="nll",
        inputs=with_nll(two),
        hyper={"delta": 0.8, "lam": 0.3},
        bad={"nll": (np.zeros((16, 1)),)},
    ),
    free(
        preference.cpo,
        cpo,
        hyper={"beta": 0.3, "alpha": 0.7, "label_smoothing": 0.2},
        bad={**BETA, "alpha": (-1.0, np.inf), **SMOOTHING},
        defaults={"beta": 0.1, "alpha": 1.0, "label_smoothing": 0.0},
    ),
    free(
        preference.cpo,
        cpo,
        variant="nll",
        inputs=with_nll(two),
        hyper={"beta": 0.3, "alpha": 0.7},
        bad={"nll": (np.zeros((16, 1)),)},
    ),
    free(
        preference.simpo,
        of_means(simpo),
        inputs=two_with_lengths,
        hyper={"beta": 1.5, "gamma": 0.6, "label_smoothing": 0.2},
        bad={**BETA, "gamma": FINITE, **SMOOTHING, **COUNTS},
        defaults={"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0},
    ),
    free(
        preference.alphapo,
        of_means(alphapo),
        inputs=two_with_lengths,
        hyper={"alpha": 0.3, "beta": 1.5, "gamma": 0.6, "label_smoothing": 0.2},
        bad={"alpha": FINITE, **BETA, "gamma": FINITE, **SMOOTHING, **COUNTS},
        defaults={"alpha": 0.25, "beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0},
    ),
    free(
        preference.orpo,
        of_means(orpo),
        inputs=lambda rng, n: {**two_with_lengths(rng, n), **{name: -np.exp(rng.normal(size=n)) for name in POLICY}},
        hyper={"lam": 0.4},
        bad={"lam": (-1.0, np.inf), **COUNTS},
        defaults={"lam": 0.1},
    ),
    free(
        preference.orpo,
        of_means(orpo),
        variant="nll",
        inputs=with_nll(lambda rng, n: {**_lengths(rng, n), **{name: -np.exp(rng.normal(size=n)) for name in POLICY}}),
        hyper={"lam": 0.4},
        bad={"nll": (np.zeros((16, 1)),)},
    ),
    free(
        preference.rrhf,
        of_means(rrhf),
        inputs=two_with_lengths,
        hyper={"lam": 0.4},
        bad={"lam": (-1.0, np.inf), **COUNTS},
        defaults={"lam": 1.0},
    ),
    free(
        preference.rrhf,
        of_means(rrhf),
        variant="nll",
        inputs=with_nll(two_with_lengths),
        hyper={"lam": 0.4},
        bad={"nll": (np.zeros((16, 1)),)},
    ),
    # by name
    Case(
        function=preference.pair_loss,
        inputs=two_with_lengths,
        call=lambda name, beta, gamma, **arrays: preference.pair_loss(
            name, preference.Pairs(**arrays), beta=beta, gamma=gamma
        ),
        hyper={"name": "simpo", "beta": 1.5, "gamma": 0.6},
        differentiable=POLICY,
        stopped=LENGTHS,
        reference=lambda name, **given: of_means(simpo)(**given),
        bad={"name": ("simpo2",), **BETA},
        free={"pairs": "a tuple of arrays, checked by the loss", "hyper": "checked by the loss"},
        blames=("simpo",),
    ),
]
