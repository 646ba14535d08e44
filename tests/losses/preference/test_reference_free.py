import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import aligned, arrays, assert_close, drawn, golden, shifted, with_gradients

from reweight import reduce
from reweight.losses import preference
from reweight.losses.preference import links

TRL = golden("preference_cpo_simpo_alphapo")
CPO = golden("preference_cpo_full")
SIMPO = golden("preference_simpo")
RATIO = [case for case in golden("preference_orpo") if case["params"]["what"] == "ratio_term"]
ORPO = [case for case in golden("preference_orpo") if case["params"]["what"] == "full"]
SLIC = golden("preference_slic")
RRHF = [case for case in golden("preference_rrhf") if case["params"]["length_penalty"] == 1.0]
WITH_LENGTHS = ("simpo", "alphapo", "orpo", "rrhf")
ALL = ("slic", "cpo", *WITH_LENGTHS)


def call(name, pairs, **hyper):
    return preference.pair_loss(name, pairs, **hyper)


def trl(kind, beta, label_smoothing, alpha, gamma, log_probs):
    """The function that TRL's trainer calls by these settings, of log-probs that it takes as they come."""
    if kind == "hinge":
        return lambda w, l: preference.hinge(w, l, 0 * w, 0 * l, beta=beta)
    if kind == "ipo":
        return lambda w, l: preference.ipo(w, l, 0 * w, 0 * l, beta=beta, length_normalize=False)
    if alpha == 0 and kind == "sigmoid":
        return functools.partial(preference.cpo, beta=beta, label_smoothing=label_smoothing, alpha=0.0)
    assert log_probs == "mean"
    hyper = {"beta": beta, "gamma": gamma, "label_smoothing": label_smoothing}
    one = jnp.ones(6)
    if alpha == 0:
        return lambda w, l: preference.simpo(w, l, one, one, **hyper)
    return lambda w, l: preference.alphapo(w, l, one, one, alpha=alpha, **hyper)


@pytest.mark.parametrize(
    "case", TRL, ids=lambda case: "-".join(str(case["params"][k]) for k in ("kind", "alpha", "beta"))
)
def test_losses_agree_with_trl(case, x64):
    function, expected = trl(**case["params"]), case["expected"]
    losses, grads = with_gradients(function, *arrays(case, "logp_w", "logp_l"))
    assert_close(losses, expected["loss"])
    assert_close(grads[0], expected["grad_logp_w"])
    assert_close(grads[1], expected["grad_logp_l"])


@pytest.mark.parametrize("case", SIMPO, ids=lambda case: f"{case['params']['kind']}-{case['params']['beta']}")
def test_simpo_agrees_with_the_official_code_from_logits_on(case, x64):
    params, inputs = case["params"], case["inputs"]
    gamma = params["beta"] * params["gamma_beta_ratio"]

    def losses(logits_w, logits_l):
        sides = [shifted(logits_w, inputs["labels_w"]), shifted(logits_l, inputs["labels_l"])]
        chosen, rejected = (preference.sequence_log_probs(*side) for side in sides)
        if params["kind"] == "hinge":
            return links.hinge(params["beta"] * (chosen.means - rejected.means) - gamma)
        return preference.simpo(
            chosen.sums,
            rejected.sums,
            chosen.lengths,
            rejected.lengths,
            beta=params["beta"],
            gamma=gamma,
            label_smoothing=params["label_smoothing"],
        )

    found, grads = with_gradients(losses, *arrays(case, "logits_w", "logits_l"))
    assert_close(found, case["expected"]["loss"])
    assert_close(grads[0], case["expected"]["grad_logits_w"])
    assert_close(grads[1], case["expected"]["grad_logits_l"])


def halves(logits, labels):
    """Sums and lengths of chosen and rejected, and the token log-probs and masks of the chosen."""
    log_probs, mask = shifted(logits, labels)
    half = len(log_probs) // 2
    both = [preference.sequence_log_probs(log_probs[rows], mask[rows]) for rows in (slice(0, half), slice(half, None))]
    return *both, log_probs[:half], mask[:half]


@pytest.mark.parametrize("case", CPO, ids=lambda case: case["params"]["kind"])
def test_cpo_and_simpo_with_one_nll_of_the_batch_agree_with_trl(case, x64):
    params, expected = case["params"], case["expected"]

    def total(logits):
        chosen, rejected, tokens, mask = halves(logits, case["inputs"]["labels"])
        if params["kind"] == "simpo":
            pairs = preference.simpo(*chosen[:1], *rejected[:1], chosen.lengths, rejected.lengths,
                                     beta=params["beta"], gamma=params["gamma"])  # fmt: skip
        elif params["kind"] == "hinge":
            pairs = preference.hinge(chosen.sums, rejected.sums, jnp.zeros(2), jnp.zeros(2), beta=params["beta"])
        else:
            pairs = preference.cpo(chosen.sums, rejected.sums, beta=params["beta"], alpha=0.0)
        pair_part = reduce.weighted_mean(pairs, parts=True)
        nll_part = reduce.tokens(-tokens, mask, parts=True)
        nll = reduce.combine([nll_part])
        return reduce.combine([pair_part]) + params["cpo_alpha"] * nll, (pairs, nll)

    (value, (pairs, nll)), grad = jax.value_and_grad(total, has_aux=True)(jnp.array(case["inputs"]["logits"]))
    assert_close(pairs, expected["pair_loss"])
    assert_close(nll, expected["nll"])
    assert_close(value, expected["loss_total"])
    assert_close(grad, expected["grad_logits"])


@pytest.mark.parametrize("case", RATIO, ids=lambda case: str(case["params"]["lam"]))
def test_the_odds_ratio_of_orpo_agrees_with_trl(case, x64):
    one, expected = jnp.ones(6), case["expected"]

    def losses(w, l):
        return preference.orpo(w, l, one, one, lam=case["params"]["lam"], nll=0.0)

    means = arrays(case, "mean_logp_w", "mean_logp_l")
    found, grads = with_gradients(losses, *means)
    assert_close(found, expected["ratio_term"])
    assert_close(preference.log_odds(means[0]) - preference.log_odds(means[1]), expected["log_odds_ratio"])
    assert_close(grads[0], expected["grad_mean_logp_w"], rtol=1e-8)
    assert_close(grads[1], expected["grad_mean_logp_l"], rtol=1e-8)


def orpo_total(case, logits, rows):
    """The parts of TRL's ORPO loss of some pairs: the odds ratios, and the NLL of prompts and answers."""
    inputs, half = case["inputs"], len(case["inputs"]["labels"]) // 2
    labels, attended = np.array(inputs["labels"]), np.array(inputs["attention_mask"])
    ids = np.where(attended, np.array(inputs["input_ids"]), -100)
    chosen, rejected = (
        preference.sequence_log_probs(*shifted(logits[part], labels[part])) for part in (rows, rows + half)
    )
    ratio = preference.orpo(*chosen[:1], *rejected[:1], chosen[1], rejected[1], lam=case["params"]["lam"], nll=0.0)
    tokens, mask = shifted(logits[rows], ids[rows])
    return reduce.weighted_mean(ratio, parts=True), reduce.tokens(-tokens, mask, parts=True), ratio


@pytest.mark.parametrize("pieces", [[[0, 1]], [[0], [1]]], ids=["at once", "in microbatches"])
@pytest.mark.parametrize("case", ORPO, ids=lambda case: str(case["params"]["lam"]))
def test_orpo_with_the_nll_of_prompts_and_answers_agrees_with_trl(case, pieces, x64):
    expected = case["expected"]

    def total(logits):
        parts = [orpo_total(case, logits, np.array(rows)) for rows in pieces]
        ratio, nll = (reduce.combine([part[i] for part in parts]) for i in (0, 1))
        return ratio + nll, (jnp.concatenate([part[2] for part in parts]), nll)

    (value, (ratio, nll)), grad = jax.value_and_grad(total, has_aux=True)(jnp.array(case["inputs"]["logits"]))
    assert_close(ratio, expected["ratio_term"])
    assert_close(nll, expected["nll"])
    assert_close(value, expected["loss_total"])
    assert_close(grad, expected["grad_logits"])


@pytest.mark.parametrize("case", SLIC, ids=lambda case: str(case["params"]["lam"]))
def test_slic_agrees_with_a_peer(case, x64):
    masks = arrays(case, "mask_w", "mask_l")

    def losses(*tokens):
        sums = [preference.sequence_log_probs(*side).sums for side in zip(tokens, masks, strict=True)]
        return preference.slic(*sums, **case["params"])

    found, grads = with_gradients(losses, *arrays(case, "token_logp_w", "token_logp_l"))
    assert_close(found, case["expected"]["loss"])
    # The golden gradients are those of log-probs that are 0 behind the mask, ours reads nothing there.
    for grad, mask, side in zip(grads, masks, "wl", strict=True):
        assert_close(grad, np.array(case["expected"][f"grad_token_logp_{side}"]) * mask)


@pytest.mark.parametrize("case", RRHF, ids=lambda case: f"{len(case['inputs']['labels'])} answers")
def test_rrhf_agrees_with_its_code_over_all_pairs_of_a_prompt(case, x64):
    labels, rewards = jnp.array(case["inputs"]["labels"]), np.array(case["inputs"]["rewards"])
    log_probs = aligned(jnp.array(case["inputs"]["logits"]), labels)
    sums, lengths = preference.sequence_log_probs(log_probs, labels != -100)
    better, worse = np.nonzero(rewards[:, None] > rewards[None])
    pairs = preference.rrhf(sums[better], sums[worse], lengths[better], lengths[worse], lam=0.0)
    assert_close(jnp.sum(pairs), case["expected"]["rank_loss"])
    best = case["expected"]["best"]
    alone = preference.rrhf(sums[best], sums[best], lengths[best], lengths[best])
    assert_close(alone, case["expected"]["nll_best_over_response_tokens"])


def test_simpo_without_a_margin_is_cpo_on_means():
    pairs = drawn(0)
    means = [pairs[i] / np.asarray(pairs[4 + i], np.float32) for i in (0, 1)]
    np.testing.assert_allclose(
        call("simpo", pairs, beta=1.3, gamma=0.0), preference.cpo(*means, beta=1.3, alpha=0.0), rtol=1e-5
    )


def test_the_defaults_of_simpo_are_those_of_the_official_code():
    pairs = drawn(1)
    means = [pairs[i] / np.asarray(pairs[4 + i], np.float32) for i in (0, 1)]
    expected = np.logaddexp(0, -2.0 * (means[0] - means[1] - 0.25))
    np.testing.assert_allclose(call("simpo", pairs), expected, rtol=1e-5)


def test_repeating_an_answer_changes_sums_and_not_simpo():
    pairs = drawn(2)
    twice = pairs._replace(policy_chosen=2 * pairs.policy_chosen, chosen_lengths=2 * pairs.chosen_lengths)
    np.testing.assert_allclose(call("simpo", twice), call("simpo", pairs), rtol=1e-6)
    assert not np.allclose(call("cpo", twice), call("cpo", pairs))


@pytest.mark.parametrize("alpha", [1e-4, -1e-4, 0.0])
def test_alphapo_tends_to_simpo(alpha):
    pairs = drawn(3)
    simpo, simpo_grads = with_gradients(lambda w, l: call("simpo", pairs._replace(policy_chosen=w, policy_rejected=l)),
                                        *pairs[:2])  # fmt: skip
    near, near_grads = with_gradients(
        lambda w, l: call("alphapo", pairs._replace(policy_chosen=w, policy_rejected=l), alpha=alpha), *pairs[:2]
    )
    np.testing.assert_allclose(near, simpo, rtol=5e-3)
    np.testing.assert_allclose(near_grads[0], simpo_grads[0], rtol=5e-3, atol=1e-6)


def test_cpo_is_dpo_without_a_reference_and_an_nll():
    pairs = drawn(4)
    zeros = np.zeros(8, np.float32)
    pair_part = preference.dpo(*pairs[:2], zeros, zeros, beta=0.2)
    np.testing.assert_allclose(call("cpo", pairs, beta=0.2, alpha=0.0), pair_part, rtol=1e-6)
    np.testing.assert_allclose(call("cpo", pairs, beta=0.2, alpha=0.5), pair_part - 0.5 * pairs[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "weight", "mean"),
    [("slic", {"lam": 0.3}, False), ("cpo", {"alpha": 0.3}, False), ("orpo", {}, True), ("rrhf", {"lam": 0.3}, True)],
)
def test_the_nll_is_the_chosen_answers_own_or_the_one_that_is_given(name, weight, mean):
    pairs = drawn(5)
    own = -pairs[0] / np.asarray(pairs[4], np.float32) if mean else -pairs[0]
    np.testing.assert_allclose(call(name, pairs, **weight), call(name, pairs._replace(nll=own), **weight), rtol=1e-6)
    other, scale = own + 2, next(iter(weight.values()), 1.0)
    moved = call(name, pairs._replace(nll=other), **weight)
    np.testing.assert_allclose(moved - call(name, pairs, **weight), 2 * scale, rtol=1e-4)
    slopes = jax.grad(lambda nll: jnp.sum(call(name, pairs._replace(nll=nll), **weight)))(own)
    np.testing.assert_allclose(slopes, scale, rtol=1e-6)


def test_orpo_of_equal_answers_is_log_two_and_an_nll():
    pairs = drawn(6)
    same = pairs._replace(policy_rejected=pairs[0], rejected_lengths=pairs[4])
    own = -pairs[0] / np.asarray(pairs[4], np.float32)
    np.testing.assert_allclose(call("orpo", same, lam=0.4), own + 0.4 * np.log(2), rtol=1e-6)


def test_orpo_still_lowers_a_rejected_answer_that_has_become_certain():
    slope = jax.grad(lambda l: preference.orpo(-3.0, l, 1.0, 1.0, lam=0.1, nll=0.0))(jnp.float32(0.0))
    assert 1e4 < slope < 1e6


def test_ties_of_hinges_have_no_slope():
    for name, equal in (("slic", {"delta": 0.0}), ("rrhf", {"lam": 0.0})):
        pairs = preference.Pairs(jnp.float32(-2), jnp.float32(-2), chosen_lengths=1, rejected_lengths=1)
        loss, slope = jax.value_and_grad(lambda w, n=name, h=equal, p=pairs: call(n, p._replace(policy_chosen=w), **h))(
            pairs.policy_chosen
        )
        assert loss == 0
        assert slope == 0


@pytest.mark.parametrize("name", ALL)
def test_log_probs_of_ten_thousand_and_empty_answers_give_finite_losses_and_gradients(name):
    ends = np.float32([-1e4, -1e4, 0.0, 0.0])
    pairs = preference.Pairs(
        ends, ends[[0, 2, 1, 3]], chosen_lengths=np.array([1, 4, 0, 0]), rejected_lengths=np.array([0, 0, 2, 0])
    )
    losses, grads = with_gradients(
        lambda w, l: call(name, pairs._replace(policy_chosen=w, policy_rejected=l)), *pairs[:2]
    )
    assert np.isfinite(losses).all()
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda p: preference.simpo(p[0], p[1], p[4], p[5][:3]), "rejected_lengths"),
        (lambda p: preference.simpo(p[0], p[1], p[4], p[5], gamma=np.inf), "gamma"),
        (lambda p: preference.cpo(p[0], p[1], nll=p[0][:3]), "nll"),
        (lambda p: preference.cpo(p[0], p[1], alpha=-1.0), "alpha"),
        (lambda p: preference.slic(p[0], p[1].astype(int)), "policy_rejected"),
        (lambda p: preference.orpo(p[0], p[1], p[4], p[5], lam=np.inf), "lam"),
        (lambda p: preference.rrhf(p[0], p[1][:, None], p[4], p[5]), "policy_rejected"),
        (lambda p: preference.alphapo(p[0], p[1], p[4], p[5], alpha=np.nan), "alpha"),
    ],
)
def test_a_static_mistake_is_named(run, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        run(drawn())
