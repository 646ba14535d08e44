import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses import ordinal, ranking

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "score_distributions.json").read_text())
LABELS, PAIRS, LEVELS = GOLDEN["cases"][:3], GOLDEN["cases"][3:6], GOLDEN["cases"][6]
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-11}
HUMAN = ("gt_a", "gt_b", "gs_a", "gs_b")
VALUES = np.arange(5, 0, -1)

soft = jax.jit(ordinal.soft_level_labels, static_argnames=("density", "renormalize"))


@pytest.mark.parametrize("case", LABELS, ids=range(len(LABELS)))
def test_labels_agree_with_the_golden_numbers(case, x64):
    params = case["params"]
    found = ordinal.soft_level_labels(
        np.array(case["inputs"]["mos"]),
        np.array(case["inputs"]["std"]),
        low=params["lo"],
        high=params["hi"],
        density=params["density"],
        min_std=params["thre_std"],
        max_error=params["thre_diff"],
    )
    np.testing.assert_allclose(found, case["expected"]["levels_5_to_1"], **CLOSE)


def test_divergence_and_scores_agree_with_the_golden_numbers(x64):
    logits, targets = np.array(LEVELS["inputs"]["token_logits"]), np.array(LEVELS["inputs"]["soft_5_to_1"])
    ids, expected = LEVELS["params"]["level_ids"], LEVELS["expected"]
    np.testing.assert_allclose(ordinal.level_kl(logits, targets, level_ids=ids), expected["kl_per_example"], **CLOSE)
    grad = jax.grad(lambda x: jnp.sum(ordinal.level_kl(x, targets, level_ids=ids)))(logits)
    np.testing.assert_allclose(grad, expected["grad_token_logits_of_sum"], **CLOSE)
    found = ordinal.level_scores(logits, level_ids=ids)
    np.testing.assert_allclose(found.scores, expected["score"], **CLOSE)
    np.testing.assert_allclose(found.stds, expected["std"], **CLOSE)


@pytest.mark.parametrize("case", PAIRS, ids=range(len(PAIRS)))
def test_fidelity_agrees_with_the_golden_numbers(case, x64):
    given, params = {name: np.array(array) for name, array in case["inputs"].items()}, case["params"]

    def fidelity(pred_a, pred_b, std_a, std_b):
        stds = () if params["fixed_std"] else (std_a, std_b)
        human = (given[name] for name in HUMAN)
        return ranking.thurstone_fidelity(
            pred_a, pred_b, *human, *stds, detach_std=bool(params["detach_std"]), eps=params["eps"]
        )

    names = ("pred_a", "pred_b", "std_a", "std_b")
    arguments = [given[name] for name in names]
    np.testing.assert_allclose(fidelity(*arguments), case["expected"]["fidelity_per_example"], **CLOSE)
    grads = jax.grad(lambda *x: jnp.mean(fidelity(*x)), argnums=(0, 1, 2, 3))(*arguments)
    for name, grad in zip(names, grads, strict=True):
        np.testing.assert_allclose(grad, case["expected"][f"grad_{name}"], **CLOSE)
    agreed = ranking.binary_fidelity(given["pred_a"], given["pred_b"], given["gt_a"], given["gt_b"])
    np.testing.assert_allclose(agreed, case["expected"]["binary_fidelity_per_example"], **CLOSE)


DENSITIES = st.sampled_from(["pdf", "cdf"])


@hypothesis.given(mean=st.floats(1, 5, width=32), std=st.floats(0, 2, width=32), density=DENSITIES)
def test_labels_are_weights_with_nearly_the_mean(mean, std, density):
    given = (np.float32([mean]), np.float32([std]))
    label = soft(*given, low=1.0, high=5.0, density=density)[0]
    assert np.all(label >= 0)
    assert label.sum() >= 1 - 1e-5
    assert abs(label @ VALUES - mean) <= 0.1 + 1e-5
    shares = soft(*given, low=1.0, high=5.0, density=density, renormalize=True)[0]
    np.testing.assert_allclose(shares, label / label.sum(), rtol=1e-5)


@hypothesis.given(mean=st.floats(1, 5, width=32))
def test_raters_who_agree_share_the_weight_between_two_neighbours_with_the_exact_mean(mean):
    label = soft(np.float32([mean]), np.float32([0.0]), low=1.0, high=5.0)[0]
    np.testing.assert_allclose(label @ VALUES, mean, rtol=1e-6)
    assert np.sum(np.asarray(label) > 0) <= 2


def test_in_the_middle_of_the_scale_the_repair_gives_equal_weights():
    label = ordinal.soft_level_labels(np.float32([3.0]), np.float32([1.0]), low=1.0, high=5.0)
    np.testing.assert_allclose(label, np.full((1, 5), 0.2), rtol=1e-6)


def test_scale_and_origin_of_the_ratings_do_not_matter():
    means, stds = np.float32([1.3, 2.9, 4.2]), np.float32([0.6, 0.8, 0.5])
    wanted = soft(means, stds, low=1.0, high=5.0)
    np.testing.assert_allclose(soft(20 * means - 7, 20 * stds, low=13.0, high=93.0), wanted, rtol=1e-3, atol=1e-5)


def test_the_divergence_is_zero_where_the_softmax_is_the_target_and_never_negative_for_shares():
    targets = np.random.default_rng(0).dirichlet(np.ones(4), 6).astype(np.float32)
    np.testing.assert_allclose(ordinal.level_kl(np.log(targets), targets), 0, atol=1e-6)
    logits = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    assert np.all(ordinal.level_kl(logits, targets) >= 0)


def test_scores_of_a_certain_model_have_no_spread_and_finite_gradients():
    logits = np.float32([[1e4, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    found = ordinal.level_scores(logits)
    np.testing.assert_allclose(found.scores, [5, 3])
    np.testing.assert_allclose(found.stds, [0, np.sqrt(2)], rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: sum(map(jnp.sum, ordinal.level_scores(x))))(logits)))
    np.testing.assert_allclose(ordinal.level_scores(logits, levels=(10.0, 8.0, 6.0, 4.0, 2.0)).scores, [10, 6])


def test_an_open_set_leaves_what_is_beside_the_levels_out(x64):
    logits, ids, levels = np.random.default_rng(4).normal(size=(6, 8)), (6, 0, 3, 2, 5), VALUES
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = ordinal.level_scores(logits, level_ids=ids, closed_set=False)
    np.testing.assert_allclose(found.scores, probs[:, ids] @ levels, rtol=1e-12)
    squares = (levels - np.asarray(found.scores)[:, None]) ** 2
    np.testing.assert_allclose(found.stds, np.sqrt(np.sum(probs[:, ids] * squares, axis=1)), rtol=1e-12)
    closed = ordinal.level_scores(logits, level_ids=ids)
    np.testing.assert_allclose(found.scores, closed.scores * probs[:, ids].sum(-1), rtol=1e-12)
    # Where all classes are levels nothing is beside them.
    for came, wanted in zip(ordinal.level_scores(logits, closed_set=False), ordinal.level_scores(logits), strict=True):
        np.testing.assert_array_equal(came, wanted)


def test_equal_predictions_are_even_and_agreement_costs_nothing():
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    apart = np.float32([-2.0, 0.0, 3.0])
    loss = ranking.thurstone_fidelity(apart, zero, apart, zero, one, one, one, one)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    even = ranking.binary_fidelity(apart, apart, one, zero)
    np.testing.assert_allclose(even, 1 - np.sqrt(0.5), rtol=1e-6)


def test_the_order_of_a_pair_does_not_matter():
    rng = np.random.default_rng(2)
    a, b, x, y = rng.normal(size=(4, 5)).astype(np.float32)
    s, t = rng.uniform(0.3, 1, size=(2, 5)).astype(np.float32)
    one_way = ranking.thurstone_fidelity(a, b, x, y, s, t)
    np.testing.assert_allclose(ranking.thurstone_fidelity(b, a, y, x, t, s), one_way, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ranking.binary_fidelity(b, a, y, x), ranking.binary_fidelity(a, b, x, y), rtol=1e-5)


def test_humans_who_agree_make_it_the_binary_fidelity(x64):
    a, b = np.random.default_rng(3).normal(size=(2, 5))
    zero = np.zeros(5)
    loss = ranking.thurstone_fidelity(a, b, zero + 1, zero, zero, zero)
    np.testing.assert_allclose(loss, ranking.binary_fidelity(a, b, zero + 1, zero), atol=2e-4)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: ordinal.soft_level_labels(x, x, low=5.0, high=1.0), "high"),
        (lambda x: ordinal.soft_level_labels(x, x[:2], low=1.0, high=5.0), "stds"),
        (lambda x: ordinal.soft_level_labels(x, x, low=1.0, high=5.0, density="mass"), "density"),
        (lambda x: ordinal.level_kl(x, x[:2]), "targets"),
        (lambda x: ordinal.level_scores(x, level_ids=(0.5, 1.0)), "level_ids"),
        (lambda x: ranking.thurstone_fidelity(x, x, x, x, x, x, x), "pred_std_b"),
        (lambda x: ranking.binary_fidelity(x, x, x, x[:2]), "human_b"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(np.ones(3, np.float32))
