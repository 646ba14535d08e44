import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import aligned, arrays, assert_close, drawn, golden, with_gradients

from reweight.losses import preference

GROUPS = golden("preference_groupwise_nca_exo")
RANKED = golden("preference_kwise_reward_models")
RRHF = golden("preference_rrhf")
MODELS = golden("preference_bradley_terry")
WIN_RATES = [case for case in golden("preference_sppo") if case["params"]["kind"] == "win_probabilities"]
NAMES = {
    "InfoNCA": preference.infonca,
    "NCA": preference.nca,
    "exo_reward": preference.exo,
    "dpo_reward": preference.infonca,
}
POLICIES = {"infonca": preference.infonca, "nca": preference.nca, "exo": preference.exo}


def groups(seed=0, prompts=5, size=4):
    """Policy, reference and rewards."""
    rng = np.random.default_rng(seed)
    policy, reference = (jnp.array(-8 + 3 * rng.normal(size=(prompts, size)), jnp.float32) for _ in range(2))
    return policy, reference, jnp.array(rng.normal(size=(prompts, size)), jnp.float32)


@jax.jit
def every_loss(policy, reference, rewards, mask=None):
    """Every per-prompt loss of the module, as functions of the first argument."""
    order = jnp.argsort(-jnp.where(True if mask is None else mask, rewards, -jnp.inf), axis=-1)
    lengths = jnp.full(policy.shape, 3)
    calls = {name: lambda x, f=f: f(x, reference, rewards, candidate_mask=mask) for name, f in POLICIES.items()} | {
        "rrhf_ranked": lambda x: preference.rrhf_ranked(x, lengths, rewards, candidate_mask=mask),
        "bradley_terry_ranked": lambda x: preference.bradley_terry_ranked(x, rewards, candidate_mask=mask),
        "plackett_luce": lambda x: preference.plackett_luce(x, order, candidate_mask=mask),
    }
    return {name: with_gradients(call, policy) for name, call in calls.items()}


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: f"{case['params']['name']}, beta {case['params']['beta']}")
def test_groups_agree_with_the_released_codes(case, x64):
    hyper = {name: value for name, value in case["params"].items() if name != "name"}
    policy, *fixed = arrays(case, "pi", "ref", "rewards")
    losses, (grad,) = with_gradients(lambda p: NAMES[case["params"]["name"]](p, *fixed, **hyper), policy)
    expected = case["expected"]
    if "loss" in expected:
        assert_close(losses, expected["loss"])
    if "loss_mean" in expected:
        assert_close(jnp.mean(losses), expected["loss_mean"])
        assert_close(grad / len(losses), expected["grad_pi_of_mean"])
    else:
        assert_close(grad, expected["grad_pi"])


@pytest.mark.parametrize("case", RANKED, ids=lambda case: f"{len(case['inputs']['order_best_first'])} ranked")
def test_ranked_reward_models_agree_with_numpy(case, x64):
    (rewards,) = arrays(case, "rewards")
    ranked, size = case["inputs"]["order_best_first"], len(rewards)
    scores = jnp.zeros(size).at[jnp.array(ranked)].set(-jnp.arange(1.0, len(ranked) + 1))
    order = jnp.array(ranked + [-1] * (size - len(ranked)))
    for name, call in {
        "pairwise_mean": lambda r: preference.bradley_terry_ranked(r, scores, candidate_mask=scores != 0),
        "plackett_luce": lambda r: preference.plackett_luce(r, order),
    }.items():
        loss, (grad,) = with_gradients(call, rewards)
        assert_close(loss, case["expected"][name])
        assert_close(grad, case["expected"][f"grad_rewards_{name.removesuffix('_mean')}"])


@pytest.mark.parametrize("case", RRHF, ids=lambda case: f"of {len(case['inputs']['rewards'])}")
def test_rrhf_agrees_with_its_code(case, x64):
    labels = np.array(case["inputs"]["labels"])
    mask, (rewards,) = labels != -100, arrays(case, "rewards")
    answers = preference.sequence_log_probs(aligned(np.array(case["inputs"]["logits"]), labels), mask)
    power, expected = case["params"]["length_penalty"], case["expected"]

    def loss(scores, lam):
        sums = scores * jnp.maximum(answers.lengths, 1) ** power
        return preference.rrhf_ranked(sums, answers.lengths, rewards, lam=lam, length_penalty=power)

    scores = answers.sums / jnp.maximum(answers.lengths, 1) ** power
    assert_close(scores, expected["scores"])
    ranking, (grad,) = with_gradients(lambda scores: loss(scores, 0.0), scores)
    assert_close(ranking, expected["rank_loss"])
    assert_close(grad, expected["grad_scores_of_rank_loss"])
    assert_close(loss(scores, 1.0) - ranking, expected["nll_best_over_response_tokens"])


@pytest.mark.parametrize("case", MODELS, ids=lambda case: f"center {case['params']['center']}")
def test_bradley_terry_agrees_with_trl(case, x64):
    *rewards, margin = arrays(case, "r_w", "r_l", "margin")
    losses, grads = with_gradients(
        lambda chosen, rejected: preference.bradley_terry(chosen, rejected, margin, center=case["params"]["center"]),
        *rewards,
    )
    assert_close(losses, case["expected"]["loss"])
    for grad, side in zip(grads, "wl", strict=True):
        assert_close(grad / len(losses), case["expected"][f"grad_r_{side}_of_mean"])


@pytest.mark.parametrize("case", WIN_RATES, ids=lambda case: f"of {case['inputs']['scores']}")
def test_win_rates_agree_with_the_released_code(case, x64):
    assert_close(preference.sppo_win_rates(*arrays(case, "scores")), case["expected"]["win_probability"])


# -- two answers are a pair


def paired(pairs):
    return jnp.stack(pairs[:2], -1), jnp.stack(pairs[2:4], -1)


def test_two_answers_with_a_hard_target_are_dpo_and_nca_pair():
    pairs = drawn()
    policy, reference = paired(pairs)
    sure = jnp.broadcast_to(jnp.array([1e4, 0.0]), policy.shape)
    for group, pair in ((preference.infonca, preference.dpo), (preference.nca, preference.nca_pair)):
        np.testing.assert_allclose(group(policy, reference, sure, beta=0.3), pair(*pairs[:4], beta=0.3), rtol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-3, 0.2])
def test_two_answers_with_smoothed_targets_are_exo_pair_and_cdpo(epsilon):
    pairs = drawn()
    policy, reference = paired(pairs)
    rewards = jnp.broadcast_to(jnp.log(jnp.array([1 - epsilon, epsilon])), policy.shape)
    for group, pair in ((preference.exo, preference.exo_pair), (preference.infonca, preference.dpo)):
        wanted = pair(*pairs[:4], beta=0.3, label_smoothing=epsilon)
        np.testing.assert_allclose(group(policy, reference, rewards, beta=0.3), wanted, rtol=1e-4, atol=1e-6)


def test_two_answers_are_rrhf_and_bradley_terry():
    pairs = drawn()
    policy, _ = paired(pairs)
    lengths, scores = jnp.stack(pairs[4:6], -1), jnp.broadcast_to(jnp.array([1, 0]), policy.shape)
    wanted = preference.rrhf(*pairs[:2], *pairs[4:6], lam=0.7)
    np.testing.assert_allclose(preference.rrhf_ranked(policy, lengths, scores * 1.0, lam=0.7), wanted, rtol=1e-5)
    wanted = preference.bradley_terry(*pairs[:2])
    np.testing.assert_allclose(preference.bradley_terry_ranked(policy, scores), wanted, rtol=1e-5)
    np.testing.assert_allclose(preference.plackett_luce(policy, 1 - scores), wanted, rtol=1e-5, atol=1e-6)


# -- many answers


@pytest.mark.parametrize("name", ["infonca", "exo"])
def test_a_constant_a_prompt_changes_nothing_where_answers_are_compared(name):
    policy, reference, rewards = groups()
    shift = jnp.arange(5.0)[:, None]
    losses = POLICIES[name]
    wanted = losses(policy, reference, rewards)
    np.testing.assert_allclose(losses(policy + shift, reference, rewards), wanted, rtol=1e-4)
    np.testing.assert_allclose(losses(policy, reference, rewards + shift), wanted, rtol=1e-4)
    assert not np.allclose(preference.nca(policy + shift, reference, rewards), preference.nca(*groups()))


def test_exo_and_infonca_are_least_where_the_model_has_the_targets():
    _, reference, rewards = groups()
    ideal = reference + rewards / 0.1
    losses, (grad,) = with_gradients(lambda p: preference.exo(p, reference, rewards), ideal)
    np.testing.assert_allclose(losses, 0, atol=1e-5)
    np.testing.assert_allclose(grad, 0, atol=1e-6)
    grad = jax.grad(lambda p: jnp.sum(preference.infonca(p, reference, rewards)))(ideal)
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_permuting_the_answers_changes_nothing():
    order = np.array([2, 0, 3, 1])
    for name, (losses, (grad,)) in every_loss(*groups()).items():
        other, (permuted,) = every_loss(*(array[:, order] for array in groups()))[name]
        np.testing.assert_allclose(other, losses, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(permuted, grad[:, order], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_masked_answer_is_not_there_whatever_it_is():
    keep = jnp.array([[True, False, True, True]] * 5)
    short = every_loss(*(array[:, np.array([0, 2, 3])] for array in groups()))
    for garbage in (jnp.nan, jnp.inf, -1e4):
        dirty = [jnp.where(keep, array, garbage) for array in groups()]
        for name, (losses, (grad,)) in every_loss(*dirty, mask=keep).items():
            np.testing.assert_allclose(losses, short[name][0], rtol=1e-5, err_msg=name)
            np.testing.assert_allclose(grad[:, (0, 2, 3)], short[name][1][0], rtol=1e-5, atol=1e-7, err_msg=name)
            assert not np.any(grad[:, 1])


def test_a_single_answer_has_nothing_to_be_compared_with():
    for single in (every_loss(*groups(size=1)), every_loss(*groups(), mask=jnp.array([False, True, False, False]))):
        for name, (losses, (grad,)) in single.items():
            if name not in ("nca", "rrhf_ranked"):
                assert not np.any([*losses, *grad.ravel()]), name


def test_a_prompt_without_an_answer_costs_nothing():
    for name, (losses, (grad,)) in every_loss(*groups(), mask=jnp.zeros((5, 4), bool)).items():
        assert not np.any([*losses, *grad.ravel()]), name
    assert not np.any(preference.sppo_win_rates(groups()[0], candidate_mask=jnp.zeros(4)))


def test_ties_give_no_pair():
    policy, _, rewards = groups()
    level = jnp.zeros_like(rewards)
    assert not np.any(preference.bradley_terry_ranked(policy, level))
    assert not np.any(preference.rrhf_ranked(policy, jnp.ones((5, 4)), level, lam=0.0))
    half = jnp.broadcast_to(jnp.array([1.0, 1.0, 0.0, 0.0]), rewards.shape)
    four = [-jax.nn.log_sigmoid(policy[:, i] - policy[:, j]) for i in (0, 1) for j in (2, 3)]
    np.testing.assert_allclose(preference.bradley_terry_ranked(policy, half), np.mean(four, 0), rtol=1e-5)


def test_rrhf_sums_over_pairs_and_takes_the_nll_of_the_best_over_its_own_tokens():
    loss = preference.rrhf_ranked(jnp.array([-2.0, -6.0, -9.0]), jnp.array([2, 2, 3]), jnp.array([0.0, 2.0, 1.0]))
    # Means -1, -3, -3: the first is above the two that are better by 2 each; the second and third are equal.
    np.testing.assert_allclose(loss, 4.0 + 3.0)


def test_plackett_luce_of_all_rankings_is_a_distribution():
    rewards = groups()[0][0, :3] / 3
    orders = jnp.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    losses = preference.plackett_luce(jnp.broadcast_to(rewards, (6, 3)), orders)
    np.testing.assert_allclose(jnp.sum(jnp.exp(-losses)), 1, rtol=1e-6)


def test_win_rates_are_shares_of_one_tournament():
    rates = preference.sppo_win_rates(groups()[0])
    np.testing.assert_allclose(jnp.mean(rates, -1), 0.5, rtol=1e-6)
    np.testing.assert_allclose(preference.sppo_win_rates(jnp.zeros((2, 3))), 0.5)
    assert not np.any(jax.grad(lambda s: preference.sppo_win_rates(s)[0])(jnp.arange(3.0)))


def test_a_margin_asks_for_more_and_the_centre_pulls_to_zero():
    chosen, rejected = jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0])
    wanted = preference.bradley_terry(chosen - 0.7, rejected)
    np.testing.assert_allclose(preference.bradley_terry(chosen, rejected, jnp.array(0.7)), wanted, rtol=1e-6)
    shifted = preference.bradley_terry(chosen + 3, rejected + 3)
    np.testing.assert_allclose(shifted, preference.bradley_terry(chosen, rejected), rtol=1e-6)
    centred = preference.bradley_terry(chosen + 3, rejected + 3, center=0.01) - shifted
    np.testing.assert_allclose(centred, 0.01 * (chosen + rejected + 6) ** 2, rtol=1e-4)


def test_no_gradient_flows_through_reference_rewards_and_margins():
    policy, reference, rewards = groups()
    for losses in POLICIES.values():
        grads = jax.grad(lambda *a, f=losses: jnp.sum(f(*a)), argnums=(1, 2))(policy, reference, rewards)
        assert not any(np.any(grad) for grad in grads)
    scored = jax.grad(lambda s: jnp.sum(preference.bradley_terry_ranked(policy, s)))(rewards)
    margin = jax.grad(lambda m: jnp.sum(preference.bradley_terry(policy, reference, m)))(rewards)
    assert not np.any([scored, margin])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_values_have_finite_losses_and_gradients(size):
    policy, reference, rewards = groups()
    spread = size * jnp.broadcast_to(jnp.array([1.0, -1.0, 0.0, 1.0]), policy.shape)
    for inputs in ((spread, reference, rewards), (policy, reference, spread), (spread, -spread, -spread)):
        for name, (losses, (grad,)) in every_loss(*inputs).items():
            assert np.all(np.isfinite([*losses, *grad.ravel()])), name
    losses, grads = with_gradients(lambda *r: preference.bradley_terry(*r, center=0.01), spread, -spread)
    assert np.all(np.isfinite([losses, *grads]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, f, r: preference.infonca(p, f, r, beta=0), r"losses\.preference\.infonca: argument `beta` is 0"),
        (lambda p, f, r: preference.nca(p, f, r, reward_temperature=0), "nca: argument `reward_temperature` is 0"),
        (lambda p, f, r: preference.exo(p, f, r[:, 1:]), r"exo: argument `rewards` is of shape \(5, 3\)"),
        (lambda p, f, r: preference.exo(p, f, r, candidate_mask=jnp.ones(3)), "argument `candidate_mask` is of shape"),
        (lambda p, f, r: preference.nca(*(x[0, 0] for x in (p, f, r))), "argument `policy` is a scalar"),
        (lambda p, f, r: preference.rrhf_ranked(p, r[1:], r), "rrhf_ranked: argument `lengths` is of shape"),
        (lambda p, f, r: preference.rrhf_ranked(p, r, r, lam=-1), "argument `lam` is -1"),
        (lambda p, f, r: preference.plackett_luce(p, r), "plackett_luce: argument `order` is of dtype float32"),
        (lambda p, f, r: preference.bradley_terry_ranked(p, r[1:]), "argument `scores` is of shape"),
        (lambda p, f, r: preference.bradley_terry(p[0], p[1], r), "bradley_terry: argument `margin` is of shape"),
        (lambda p, f, r: preference.bradley_terry(p, f, center=-1), "argument `center` is -1"),
        (lambda p, f, r: preference.sppo_win_rates(r[0, 0]), "sppo_win_rates: argument `scores` is a scalar"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(*groups())
