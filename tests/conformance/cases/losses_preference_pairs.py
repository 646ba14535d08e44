"""Preference losses of pairs, their links and their scores."""

import numpy as np

from conformance import preference_formulas as formulas
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
        lambda margins, label_smoothing: formulas.logistic(margins, label_smoothing),
        hyper={"label_smoothing": 0.2},
        bad=SMOOTHING,
        defaults={"label_smoothing": 0.0},
    ),
    link(
        links.robust_logistic,
        lambda margins, label_smoothing: formulas.robust(margins, label_smoothing),
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
        lambda margins, label_smoothing: formulas.reverse_kl(margins, label_smoothing),
        hyper={"label_smoothing": 0.2},
        bad={"label_smoothing": (0.0, 0.5)},
        defaults={"label_smoothing": 1e-3},
    ),
    link(links.sigmoid, lambda margins: formulas.sigmoid(-margins), bad={"margins": (np.zeros(16, int),)}),
    link(
        links.discovered,
        lambda margins, tau: formulas.discovered(margins, tau),
        hyper={"tau": 0.4},
        bad={"tau": (0.0, np.inf)},
        defaults={"tau": 0.05},
    ),
    link(
        links.discovered,
        lambda margins, tau: formulas.discovered(margins, tau),
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
        reference=formulas.prefix_sum,
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
        reference=formulas.log_odds,
        bad={"log_probs": (np.zeros(16, int),)},
    ),
    Case(
        function=preference.power_rewards,
        inputs=lambda rng, n: {"log_probs": -np.abs(rng.normal(size=n))},
        hyper={"alpha": 0.4},
        differentiable=("log_probs",),
        reference=formulas.power,
        bad={"alpha": FINITE, "log_probs": (np.zeros(16, int),)},
    ),
    # one margin
    pair(
        preference.dpo,
        formulas.of_difference(formulas.logistic),
        hyper={"label_smoothing": 0.2},
        bad=SMOOTHING,
        defaults={"label_smoothing": 0.0},
        invariants=(a_constant_of_the_prompt_changes_nothing, LOG2),
    ),
    pair(
        preference.dpo_norm,
        formulas.of_means(formulas.of_difference(formulas.logistic)),
        inputs=four_with_lengths,
        hyper={"label_smoothing": 0.2},
        bad={**SMOOTHING, **COUNTS},
        defaults={"label_smoothing": 0.0},
        invariants=(LOG2,),
    ),
    pair(
        preference.robust_dpo,
        formulas.of_difference(formulas.robust),
        hyper={"label_smoothing": 0.2},
        bad=SMOOTHING,
        defaults={"label_smoothing": 0.0},
        invariants=(a_constant_of_the_prompt_changes_nothing, LOG2),
    ),
    pair(
        preference.hinge,
        formulas.of_difference(lambda z: np.maximum(1 - z, 0)),
        invariants=(a_constant_of_the_prompt_changes_nothing, at_the_reference(lambda **_: 1.0)),
    ),
    pair(
        preference.ipo,
        formulas.of_means(formulas.of_sides(lambda chosen, rejected, beta: formulas.ipo(chosen - rejected, beta))),
        inputs=four_with_lengths,
        bad=COUNTS,
        invariants=(at_the_reference(lambda beta: 1 / (4 * beta**2)),),
    ),
    pair(
        preference.ipo,
        formulas.of_sides(lambda chosen, rejected, beta, length_normalize: formulas.ipo(chosen - rejected, beta)),
        variant="of sums",
        hyper={"length_normalize": False},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.exo_pair,
        formulas.of_difference(formulas.reverse_kl),
        hyper={"label_smoothing": 0.2},
        bad={"label_smoothing": (0.0, 0.5)},
        defaults={"label_smoothing": 1e-3},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.discopop,
        formulas.of_difference(formulas.discovered),
        hyper={"tau": 0.4},
        bad={"tau": (0.0, np.inf)},
        defaults={"tau": 0.05},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.r_dpo,
        formulas.r_dpo,
        inputs=four_with_lengths,
        hyper={"alpha": 0.1, "label_smoothing": 0.2},
        bad={"alpha": FINITE, **SMOOTHING, **COUNTS},
        defaults={"label_smoothing": 0.0},
        invariants=(a_constant_of_the_prompt_changes_nothing,),
    ),
    pair(
        preference.dpop,
        formulas.of_sides(formulas.dpop),
        hyper={"lam": 2.0, "label_smoothing": 0.2},
        bad={"lam": (-1.0, np.inf), **SMOOTHING},
        defaults={"lam": 50.0, "label_smoothing": 0.0},
        invariants=(LOG2,),
    ),
    pair(
        preference.ld_dpo,
        formulas.ld_dpo,
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
    pair(preference.nca_pair, formulas.of_sides(formulas.nca), invariants=(a_constant_of_the_prompt_matters,)),
    pair(
        preference.bco_pair,
        formulas.of_sides(formulas.bco_pair),
        invariants=(a_constant_of_the_prompt_matters, at_the_reference(lambda **_: 2 * np.log(2))),
    ),
    pair(
        preference.sppo_hard,
        formulas.of_sides(lambda chosen, rejected, beta: 2 * formulas.sppo(chosen, rejected, beta, 1.0, 0.0)),
        defaults={"beta": 1e-3},
        invariants=(a_constant_of_the_prompt_matters, at_the_reference(lambda beta: 1 / (2 * beta**2))),
    ),
    pair(
        preference.sppo,
        formulas.of_sides(formulas.sppo),
        inputs=win_rates,
        bad={"chosen_win_rate": (np.zeros((16, 1)),), "rejected_win_rate": (np.zeros(16, bool),)},
        defaults={"beta": 1e-3},
        invariants=(a_constant_of_the_prompt_matters,),
    ),
    pair(
        preference.apo_zero,
        formulas.of_sides(formulas.apo_zero),
        invariants=(a_constant_of_the_prompt_matters, at_the_reference(lambda **_: 1.0)),
    ),
    pair(
        preference.apo_down,
        formulas.of_sides(formulas.apo_down),
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
        for function, reference in ((preference.aot, formulas.aot), (preference.aot_unpaired, formulas.aot_unpaired))
    ),
    # no reference
    free(
        preference.slic,
        formulas.slic,
        hyper={"delta": 0.8, "lam": 0.3},
        bad={"delta": FINITE, "lam": (-1.0, np.inf)},
        defaults={"delta": 1.0, "lam": 0.0},
    ),
    free(
        preference.slic,
        formulas.slic,
        variant="nll",
        inputs=with_nll(two),
        hyper={"delta": 0.8, "lam": 0.3},
        bad={"nll": (np.zeros((16, 1)),)},
    ),
    free(
        preference.cpo,
        formulas.cpo,
        hyper={"beta": 0.3, "alpha": 0.7, "label_smoothing": 0.2},
        bad={**BETA, "alpha": (-1.0, np.inf), **SMOOTHING},
        defaults={"beta": 0.1, "alpha": 1.0, "label_smoothing": 0.0},
    ),
    free(
        preference.cpo,
        formulas.cpo,
        variant="nll",
        inputs=with_nll(two),
        hyper={"beta": 0.3, "alpha": 0.7},
        bad={"nll": (np.zeros((16, 1)),)},
    ),
    free(
        preference.simpo,
        formulas.of_means(formulas.simpo),
        inputs=two_with_lengths,
        hyper={"beta": 1.5, "gamma": 0.6, "label_smoothing": 0.2},
        bad={**BETA, "gamma": FINITE, **SMOOTHING, **COUNTS},
        defaults={"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0},
    ),
    free(
        preference.alphapo,
        formulas.of_means(formulas.alphapo),
        inputs=two_with_lengths,
        hyper={"alpha": 0.3, "beta": 1.5, "gamma": 0.6, "label_smoothing": 0.2},
        bad={"alpha": FINITE, **BETA, "gamma": FINITE, **SMOOTHING, **COUNTS},
        defaults={"alpha": 0.25, "beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0},
    ),
    free(
        preference.orpo,
        formulas.of_means(formulas.orpo),
        inputs=lambda rng, n: {**two_with_lengths(rng, n), **{name: -np.exp(rng.normal(size=n)) for name in POLICY}},
        hyper={"lam": 0.4},
        bad={"lam": (-1.0, np.inf), **COUNTS},
        defaults={"lam": 0.1},
    ),
    free(
        preference.orpo,
        formulas.of_means(formulas.orpo),
        variant="nll",
        inputs=with_nll(lambda rng, n: {**_lengths(rng, n), **{name: -np.exp(rng.normal(size=n)) for name in POLICY}}),
        hyper={"lam": 0.4},
        bad={"nll": (np.zeros((16, 1)),)},
    ),
    free(
        preference.rrhf,
        formulas.of_means(formulas.rrhf),
        inputs=two_with_lengths,
        hyper={"lam": 0.4},
        bad={"lam": (-1.0, np.inf), **COUNTS},
        defaults={"lam": 1.0},
    ),
    free(
        preference.rrhf,
        formulas.of_means(formulas.rrhf),
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
        reference=lambda name, **given: formulas.of_means(formulas.simpo)(**given),
        bad={"name": ("simpo2",), **BETA},
        free={"pairs": "a tuple of arrays, checked by the loss", "hyper": "checked by the loss"},
        blames=("simpo",),
    ),
]
