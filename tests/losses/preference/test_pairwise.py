import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import arrays, assert_agrees, assert_close, drawn, golden, shifted, with_gradients

from reweight import reduce, weights
from reweight.losses import preference
from reweight.losses.preference import links

FOUR = ("pi_w", "pi_l", "ref_w", "ref_l")
LENGTHS = ("n_w", "n_l")
GRADIENTS = ("grad_pi_w", "grad_pi_l")
TRL = golden("preference_trl_pair_losses") + golden("preference_trl_edges")
# Where ours is called otherwise.
NAMES = {"sigmoid": "dpo", "robust": "robust_dpo", "sigmoid_norm": "dpo_norm"}
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")
ORIGINAL = golden("preference_dpo_cdpo_ipo_sum")
DISCOPOP = golden("preference_discopop")
MARGIN = [case for case in golden("preference_rdpo_dpop") if case["params"]["name"] in ("r_dpo", "dpop")]
TOKENS = golden("preference_trl_token_level")
# Functions of beta (log-ratio of chosen - log-ratio of rejected), and their value at the reference.
OF_ONE_MARGIN = {
    "dpo": np.log(2),
    "robust_dpo": np.log(2),
    "hinge": 1.0,
    "exo_pair": None,
    "discopop": None,
}


def trl_hyper(name, params):
    hyper = {"beta": params["beta"]}
    if name in SMOOTHED:
        hyper["label_smoothing"] = params["label_smoothing"]
    if name == "discopop":
        hyper["tau"] = params["discopop_tau"]
    return hyper


@pytest.mark.parametrize("name", TRL[0]["expected"])
def test_losses_agree_with_trl(name, x64):
    for case in TRL:
        expected, fixed = case["expected"][name], arrays(case, "ref_w", "ref_l", *LENGTHS)

        def losses(chosen, rejected, case=case, fixed=fixed):
            pairs = preference.Pairs(chosen, rejected, *fixed)
            return preference.pair_loss(NAMES.get(name, name), pairs, **trl_hyper(name, case["params"]))

        found, grads = with_gradients(losses, *arrays(case, "pi_w", "pi_l"))
        wanted = [expected[key] for key in ("loss", *GRADIENTS)]
        if name.startswith("aot"):
            # In the order of the ranks there, of the pairs here; and which of two equal margins goes first is free.
            found, wanted[0] = np.sort(found), np.sort(wanted[0])
            if "ties" in case["params"].get("what", ""):
                grads, wanted[1:] = (np.sort(grad) for grad in grads), (np.sort(grad) for grad in wanted[1:])
        for came, known in zip((found, *grads), wanted, strict=True):
            assert_close(came, known)


@pytest.mark.parametrize("case", ORIGINAL, ids=lambda case: case["params"]["name"])
def test_dpo_agrees_with_its_first_code(case, x64):
    params, expected = case["params"], case["expected"]
    if params["name"] == "ipo_sum":
        function = functools.partial(preference.ipo, beta=params["beta"], length_normalize=False)
    else:
        smoothing = params["label_smoothing"]
        function = functools.partial(preference.dpo, beta=params["beta"], label_smoothing=smoothing)
    if params.get("reference_free"):
        inputs = arrays(case, "pi_w", "pi_l")
        losses, grads = with_gradients(lambda w, l: function(w, l, jnp.zeros_like(w), jnp.zeros_like(l)), *inputs)
        assert_close(losses, expected["loss"])
        assert_close(grads[0], expected["grad_pi_w"])
    else:
        assert_agrees(case, function, *FOUR, gradients=GRADIENTS)
    for side in "wl":
        rewards = preference.implicit_rewards(*arrays(case, f"pi_{side}", f"ref_{side}"), beta=params["beta"])
        assert_close(rewards, expected[f"reward_{side}"])


@pytest.mark.parametrize("case", DISCOPOP, ids=lambda case: str(case["params"]["beta"]))
def test_discopop_agrees_with_its_code(case, x64):
    function = functools.partial(preference.discopop, **case["params"])
    assert_agrees(case, function, *FOUR, gradients=GRADIENTS)


@pytest.mark.parametrize("case", DISCOPOP, ids=lambda case: str(case["params"]["beta"]))
def test_discopop_does_not_overflow_in_float32(case):
    inputs = [np.float32(case["inputs"][name]) for name in FOUR]
    losses, grads = with_gradients(functools.partial(preference.discopop, **case["params"]), *inputs)
    np.testing.assert_allclose(losses, case["expected"]["loss"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[0], case["expected"]["grad_pi_w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", MARGIN, ids=lambda case: f"{case['params']['name']}-{case['params']['beta']}")
def test_r_dpo_and_dpop_agree_with_a_peer(case, x64):
    hyper = {name: value for name, value in case["params"].items() if name != "name"}
    names = (*FOUR, *LENGTHS) if case["params"]["name"] == "r_dpo" else FOUR
    function = functools.partial(getattr(preference, case["params"]["name"]), **hyper)
    assert_agrees(case, function, *names, gradients=GRADIENTS)


def token_losses(case, logits):
    """Total loss and the losses of each kind, from logits, as TRL's trainer has them."""
    params, inputs = case["params"], case["inputs"]
    half = len(inputs["input_ids"]) // 2
    ids, counted = inputs["input_ids"], inputs["completion_mask"]
    policy, mask = shifted(logits, ids, counted=counted)
    reference, _ = shifted(jnp.array(inputs["ref_logits"]), ids, counted=counted)
    sides = [(policy[rows], reference[rows], mask[rows]) for rows in (slice(0, half), slice(half, None))]
    lengths = [preference.sequence_log_probs(own, kept).lengths for own, _, kept in sides]

    def summed(values, kept, others):
        if params["ld_alpha"] is None:
            return preference.sequence_log_probs(values, kept).sums
        return preference.shared_prefix_log_probs(values, kept, others, alpha=params["ld_alpha"]).sums

    sums = [
        summed(side[what], side[2], others)
        for what in (0, 1)
        for side, others in zip(sides, lengths[::-1], strict=True)
    ]
    pairs = preference.Pairs(*sums, *lengths)
    weight = jnp.ones(half)
    if params["wpo_weight"]:
        squares = jnp.sum(jax.nn.softmax(logits[:, :-1]) ** 2, axis=-1)
        weight = weights.wpo_weights(
            policy[:half], policy[half:], squares[:half], squares[half:], mask[:half], mask[half:], clip=False
        )
    total, losses = 0.0, {}
    for name in params["losses"]:
        if name == "sft":
            losses[name] = jnp.full(half, reduce.tokens(-policy[:half], mask[:half]))
        else:
            losses[name] = preference.pair_loss(NAMES.get(name, name), pairs, beta=params["beta"]) * weight
        total += jnp.mean(losses[name])
    return total, (losses, pairs)


@pytest.mark.parametrize("case", TOKENS, ids=lambda case: case["params"]["name"])
def test_from_logits_to_the_loss_as_in_trl(case, x64):
    graded = jax.value_and_grad(lambda logits: token_losses(case, logits), has_aux=True)
    (total, (losses, pairs)), grad = graded(jnp.array(case["inputs"]["logits"]))
    for name, field in zip(FOUR, pairs, strict=False):
        assert_close(field, case["expected"][name])
    for name, values in losses.items():
        assert_close(values, case["expected"]["per_sequence"][name])
    assert_close(total, case["expected"]["loss_total"])
    assert_close(grad, case["expected"]["grad_logits"])


def test_ld_dpo_is_dpo_on_sums_with_a_lighter_tail(x64):
    case = TOKENS[0]
    inputs, half = case["inputs"], len(case["inputs"]["input_ids"]) // 2
    policy, mask = shifted(jnp.array(inputs["logits"]), inputs["input_ids"], counted=inputs["completion_mask"])
    reference, _ = shifted(jnp.array(inputs["ref_logits"]), inputs["input_ids"], counted=inputs["completion_mask"])
    tokens = (policy[:half], policy[half:], reference[:half], reference[half:])
    losses = preference.ld_dpo(*tokens, mask[:half], mask[half:], alpha=0.3, beta=0.1)
    assert_close(losses, case["expected"]["per_sequence"]["sigmoid"])


def test_ld_dpo_takes_sides_padded_to_different_lengths_and_reads_nothing_behind_the_masks():
    rng = np.random.default_rng(0)
    tokens = [-np.abs(rng.normal(size=(3, 9))).astype(np.float32) for _ in range(4)]
    chosen_mask, rejected_mask = np.arange(9) < np.array([[5], [0], [2]]), np.arange(9) < np.array([[3], [4], [0]])
    whole = preference.ld_dpo(*tokens, chosen_mask, rejected_mask, alpha=0.4)
    masks = (chosen_mask, rejected_mask, chosen_mask, rejected_mask)
    poisoned = [np.where(mask, values, np.nan) for values, mask in zip(tokens, masks, strict=True)]
    for i, length in ((1, 4), (3, 4)):
        poisoned[i] = poisoned[i][:, :length]
    losses, grads = with_gradients(
        lambda w, l: preference.ld_dpo(w, l, poisoned[2], poisoned[3], chosen_mask, rejected_mask[:, :4], alpha=0.4),
        *poisoned[:2],
    )
    np.testing.assert_allclose(losses, whole, rtol=1e-6)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not grads[0][1].any()


def test_ld_dpo_with_a_full_tail_is_dpo():
    rng = np.random.default_rng(1)
    tokens = [-np.abs(rng.normal(size=(4, 6))).astype(np.float32) for _ in range(4)]
    masks = [rng.random((4, 6)) > 0.4 for _ in range(2)]
    sums = [preference.sequence_log_probs(values, masks[i % 2]).sums for i, values in enumerate(tokens)]
    np.testing.assert_allclose(
        preference.ld_dpo(*tokens, *masks, alpha=1.0, beta=0.3), preference.dpo(*sums, beta=0.3), rtol=1e-6
    )


def call(name, pairs, **hyper):
    return preference.pair_loss(name, pairs, **hyper)


def test_without_flips_dpo_conservative_dpo_and_robust_dpo_are_one():
    pairs = drawn(0)
    plain = call("dpo", pairs, beta=0.4)
    np.testing.assert_allclose(plain, call("dpo", pairs, beta=0.4, label_smoothing=0.0))
    np.testing.assert_allclose(plain, call("robust_dpo", pairs, beta=0.4, label_smoothing=0.0), rtol=1e-6)
    assert not np.allclose(plain, call("dpo", pairs, beta=0.4, label_smoothing=0.2))


def test_robust_dpo_averaged_over_flips_is_dpo():
    pairs, rate = drawn(1), 0.3
    flipped = preference.Pairs(pairs[1], pairs[0], pairs[3], pairs[2])
    right = call("robust_dpo", pairs, beta=0.2, label_smoothing=rate)
    wrong = call("robust_dpo", flipped, beta=0.2, label_smoothing=rate)
    np.testing.assert_allclose((1 - rate) * right + rate * wrong, call("dpo", pairs, beta=0.2), rtol=1e-5)


@pytest.mark.parametrize("name", OF_ONE_MARGIN)
def test_a_constant_of_the_prompt_changes_nothing(name):
    pairs = drawn(2)
    moved = pairs._replace(policy_chosen=pairs.policy_chosen + 5, policy_rejected=pairs.policy_rejected + 5)
    np.testing.assert_allclose(call(name, moved), call(name, pairs), rtol=1e-5, atol=1e-6)


def test_ipo_of_sums_does_not_see_a_constant_of_the_prompt_and_ipo_of_means_does():
    pairs = drawn(2)
    moved = pairs._replace(policy_chosen=pairs.policy_chosen + 5, policy_rejected=pairs.policy_rejected + 5)
    sums = functools.partial(call, "ipo", length_normalize=False)
    np.testing.assert_allclose(sums(moved), sums(pairs), rtol=1e-5)
    assert not np.allclose(call("ipo", moved), call("ipo", pairs))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value in OF_ONE_MARGIN.items() if value])
def test_values_at_the_reference(name, value):
    pairs = drawn(3)
    pairs = pairs._replace(reference_chosen=pairs.policy_chosen, reference_rejected=pairs.policy_rejected)
    np.testing.assert_allclose(call(name, pairs, beta=0.7), value, rtol=1e-6)
    np.testing.assert_allclose(call("ipo", pairs, beta=0.7), 1 / (4 * 0.7**2), rtol=1e-6)
    np.testing.assert_allclose(call("dpo_norm", pairs, beta=0.7), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(call("dpop", pairs, beta=0.7), np.log(2), rtol=1e-6)


@hypothesis.given(st.floats(-60, 60), st.sampled_from([0.05, 0.1, 1.0, 5.0]))
def test_the_slope_of_dpo_is_that_of_the_logistic_function(margin, beta):
    slope = jax.grad(lambda x: preference.dpo(x, 0.0, 0.0, 0.0, beta=beta))(jnp.float32(margin))
    np.testing.assert_allclose(slope, -beta / (1 + np.exp(beta * margin)), rtol=1e-5, atol=1e-30)


@hypothesis.given(st.floats(-12, 12))
def test_smoothed_dpo_is_least_at_the_logit_of_its_labels(margin):
    least = np.log(0.8 / 0.2)
    at = functools.partial(preference.dpo, policy_rejected=0.0, reference_chosen=0.0, reference_rejected=0.0, beta=1.0)
    assert at(least, label_smoothing=0.2) <= at(margin, label_smoothing=0.2) + 1e-6
    assert preference.exo_pair(least, 0.0, 0.0, 0.0, beta=1.0, label_smoothing=0.2) < 1e-6


def test_equal_lengths_of_one_token_make_means_sums():
    pairs = drawn(4)._replace(chosen_lengths=np.ones(8, int), rejected_lengths=np.ones(8, int))
    np.testing.assert_allclose(call("dpo_norm", pairs), call("dpo", pairs), rtol=1e-6)
    np.testing.assert_allclose(call("ipo", pairs), call("ipo", pairs, length_normalize=False), rtol=1e-6)
    np.testing.assert_allclose(call("r_dpo", pairs, alpha=3.0), call("dpo", pairs), rtol=1e-6)


def test_an_empty_answer_counts_as_one_token():
    pairs = drawn(4)._replace(chosen_lengths=np.zeros(8, int))
    one = pairs._replace(chosen_lengths=np.ones(8, int))
    for name in ("dpo_norm", "ipo", "simpo", "orpo", "rrhf"):
        np.testing.assert_array_equal(call(name, pairs), call(name, one))
    # A difference of lengths is one of lengths as they are.
    assert not np.allclose(call("r_dpo", pairs, alpha=0.1), call("r_dpo", one, alpha=0.1))


def test_r_dpo_gives_longer_chosen_answers_a_lead_and_without_alpha_none():
    pairs = drawn(5)
    np.testing.assert_allclose(call("r_dpo", pairs, alpha=0.0), call("dpo", pairs), rtol=1e-6)
    longer = np.asarray(pairs.chosen_lengths) > np.asarray(pairs.rejected_lengths)
    assert longer.any()
    assert np.all((call("r_dpo", pairs, alpha=0.1) < call("dpo", pairs))[longer])


def test_dpop_is_dpo_where_chosen_answers_are_likelier_than_under_the_reference():
    pairs = drawn(6)
    risen = np.asarray(pairs.policy_chosen) >= np.asarray(pairs.reference_chosen)
    assert 0 < risen.sum() < len(risen)
    penalised, plain = call("dpop", pairs, lam=5.0), call("dpo", pairs)
    np.testing.assert_allclose(penalised[risen], plain[risen], rtol=1e-6)
    assert np.all(penalised[~risen] > plain[~risen])
    np.testing.assert_allclose(call("dpop", pairs, lam=0.0), plain, rtol=1e-6)


def test_no_gradient_flows_through_the_reference_or_the_lengths():
    pairs = drawn(7)
    for name, parameters in (("dpo", {}), ("dpop", {}), ("dpo_norm", {}), ("ipo", {}), ("r_dpo", {"alpha": 0.1})):
        grads = jax.grad(
            lambda reference, lengths, name=name, parameters=parameters: jnp.sum(
                call(name, preference.Pairs(*pairs[:2], *reference, *lengths), **parameters)
            ),
            argnums=(0, 1),
        )(pairs[2:4], tuple(jnp.float32(length) for length in pairs[4:6]))
        assert not any(np.any(grad) for grad in jax.tree.leaves(grads)), name


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_log_ratios_of_ten_thousand_give_finite_losses_and_gradients(size):
    base = drawn(8)
    pairs = base._replace(policy_chosen=base.policy_chosen + np.float32(size), reference_rejected=-base.policy_rejected)
    hyper = {"r_dpo": {"alpha": 0.1}}
    for name in ("dpo", "dpo_norm", "robust_dpo", "hinge", "ipo", "exo_pair", "discopop", "r_dpo", "dpop"):
        losses, grads = with_gradients(
            lambda w, l, name=name: call(name, preference.Pairs(w, l, *pairs[2:]), **hyper.get(name, {})), *pairs[:2]
        )
        assert np.isfinite(losses).all()
        assert all(np.isfinite(grad).all() for grad in grads)


def test_a_wide_passage_of_discopop_goes_on_along_its_tangent():
    loss, slope = jax.value_and_grad(functools.partial(links.discovered, tau=3.0))(jnp.float32(-1e4))
    assert np.isfinite(loss)
    assert np.isfinite(slope)
    assert slope < -1e10


def test_pairs_of_any_shape_are_pairs():
    pairs = drawn(9)
    grid = preference.Pairs(*(np.reshape(field, (2, 4)) for field in pairs[:6]))
    for name in ("dpo", "ipo", "dpop"):
        np.testing.assert_allclose(call(name, grid).reshape(-1), call(name, pairs), rtol=1e-6)
    alone = preference.Pairs(*(field[0] for field in pairs[:6]))
    np.testing.assert_allclose(call("dpo_norm", alone), call("dpo_norm", pairs)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda p: preference.dpo(p[0], p[1][:3], p[2], p[3]), "policy_rejected"),
        (lambda p: preference.dpo(p[0], p[1], p[2][:, None], p[3]), "reference_chosen"),
        (lambda p: preference.dpo(*p[:4], beta=0.0), "beta"),
        (lambda p: preference.dpo(*p[:4], label_smoothing=0.5), "label_smoothing"),
        (lambda p: preference.exo_pair(*p[:4], label_smoothing=0.0), "label_smoothing"),
        (lambda p: preference.ipo(*p[:4]), "chosen_lengths"),
        (lambda p: preference.ipo(*p[:5]), "rejected_lengths"),
        (lambda p: preference.dpo_norm(*p[:4], p[4], p[5] > 3), "rejected_lengths"),
        (lambda p: preference.r_dpo(*p[:6], alpha=np.inf), "alpha"),
        (lambda p: preference.dpop(*p[:4], lam=-1.0), "lam"),
        (lambda p: preference.discopop(*p[:4], tau=0.0), "tau"),
        (lambda p: links.squared(p[0], target=p[1][:3]), "target"),
    ],
)
def test_a_static_mistake_is_named(run, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        run(drawn())
