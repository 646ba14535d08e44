import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import dynamics
from reweight.losses import adversarial

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "robust_disparity.json").read_text())
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-11}  # the numbers are stored with 12 digits
RNG = np.random.default_rng(0)
THETA = np.float32([1.0, 0.5, -0.2, 0.7])
MIXING = RNG.normal(size=(4, 6)) / 2
COVARIANCE = (MIXING @ MIXING.T + 0.1 * np.eye(4)).astype(np.float32)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
EPS = {"linf": 0.15, "l2": 0.3}


def robust(covariance=1.0, ratio=3.0, eps=0.2, norm="linf", theta=THETA, **more):
    return dynamics.robust_gaussian_classifier(theta, covariance, ratio=ratio, eps=eps, norm=norm, **more)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_rules_accuracies_and_gaps_agree_with_the_golden_numbers(case, x64):
    theta, expected, params = jnp.array(case["inputs"]["theta"]), case["expected"], dict(case["params"])
    variance = params.pop("sigma") ** 2
    attack = {name: params[name] for name in ("eps", "norm")}
    rule = dynamics.robust_gaussian_classifier(theta, variance, **params)
    np.testing.assert_allclose(rule.weights, expected["direction"], **CLOSE)
    np.testing.assert_allclose(rule.bias, expected["b_over_norm_w"], **CLOSE)
    standard = dynamics.robust_gaussian_classifier(theta, variance, **{**params, "eps": 0.0})
    for name, found in (
        ("", dynamics.class_accuracies(*rule, theta, variance)),
        ("robust_", dynamics.class_accuracies(*rule, theta, variance, **attack)),
        ("standard_", dynamics.class_accuracies(*standard, theta, variance)),
    ):
        for side, value in found._asdict().items():
            key = f"{name}acc_{'plus' if side == 'positive' else 'minus'}".replace("standard_acc", "standard_acc")
            if key in expected:
                np.testing.assert_allclose(value, expected[key], **CLOSE)
    gap = dynamics.disparity_gap(theta, variance, **params)
    np.testing.assert_allclose(gap.accuracy, expected["balanced_accuracy_gap"], **CLOSE)
    np.testing.assert_allclose(gap.disparity, expected["disparity_gap"], **CLOSE)


@NORMS
def test_without_attack_it_is_linear_discriminant_analysis(norm):
    rule = robust(COVARIANCE, ratio=5.0, eps=0.0, norm=norm)
    weights = np.linalg.solve(np.float64(COVARIANCE), THETA)
    length = np.linalg.norm(weights)
    np.testing.assert_allclose(rule.weights, weights / length, rtol=1e-3)
    np.testing.assert_allclose(rule.bias, np.log(5) / 2 / length, rtol=1e-3)


@NORMS
@pytest.mark.parametrize("covariance", [0.5, np.float32([0.3, 2.0, 1.0, 0.1]), COVARIANCE], ids=["one", "each", "all"])
def test_no_other_rule_is_more_accurate_under_attack(norm, covariance, x64):
    theta = np.float64(THETA)
    covariance = np.asarray(covariance, float)
    attack = {"eps": EPS[norm], "norm": norm}

    def accuracy(weights, bias):
        found = dynamics.class_accuracies(weights, bias, theta, covariance, **attack)
        return 3 / 4 * found.positive + found.negative / 4

    rule = dynamics.robust_gaussian_classifier(theta, covariance, ratio=3.0, **attack)
    moved = jax.random.normal(jax.random.key(0), (2000, 5)) * 10.0 ** -jax.random.uniform(
        jax.random.key(1), (2000, 1), minval=0.0, maxval=4.0
    )
    others = jax.jit(jax.vmap(lambda d: accuracy(rule.weights + d[:4], rule.bias + d[4])))(moved)
    assert others.max() <= accuracy(*rule) + 1e-12


SPECTRUM = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0] * np.logspace(-2, 0, 12) ** 0.5
CORRELATED = {"equal": 0.01 * np.eye(12) + 0.99, "spectrum": SPECTRUM @ SPECTRUM.T}


@pytest.mark.parametrize("covariance", CORRELATED.values(), ids=CORRELATED)
def test_a_sparse_rule_is_exact_however_the_entries_are_correlated(covariance, x64):
    theta, eps = np.random.default_rng(1).normal(size=12), 0.4
    weights, _ = dynamics.robust_gaussian_classifier(theta, covariance, ratio=2.0, eps=eps)
    scale = (weights @ theta - eps * np.abs(weights).sum()) / (weights @ covariance @ weights)
    attack = theta - scale * covariance @ weights  # moves every entry that is used as far as it may, against its weight
    used = weights != 0
    np.testing.assert_allclose(attack[used], eps * np.sign(weights[used]), rtol=1e-10)
    assert 2 < used.sum() < 12
    assert np.all(np.abs(attack[~used]) < eps)


@NORMS
def test_a_matrix_is_the_same_as_its_diagonal_and_that_as_its_only_entry(norm):
    variances = np.float32([0.3, 2.0, 1.0, 0.1])
    for narrow, wide in ((variances, np.diag(variances)), (2.0, np.full(4, 2.0, np.float32))):
        for left, right in zip(robust(narrow, norm=norm), robust(wide, norm=norm), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_the_direction_for_equal_variances():
    soft = np.sign(THETA) * np.maximum(np.abs(THETA) - 0.3, 0)
    np.testing.assert_allclose(robust(2.0, eps=0.3).weights, soft / np.linalg.norm(soft), rtol=1e-5)
    np.testing.assert_allclose(robust(2.0, eps=0.3, norm="l2").weights, THETA / np.linalg.norm(THETA), rtol=1e-5)


@NORMS
def test_the_direction_does_not_depend_on_the_ratio(norm):
    np.testing.assert_array_equal(
        robust(COVARIANCE, 1.0, norm=norm).weights, robust(COVARIANCE, 9.0, norm=norm).weights
    )


@NORMS
def test_balanced_classes_lose_alike(norm):
    rule = robust(COVARIANCE, ratio=1.0, eps=EPS[norm], norm=norm)
    assert rule.bias == 0
    found = dynamics.class_accuracies(*rule, THETA, COVARIANCE)
    np.testing.assert_allclose(found.disparity, 0, atol=1e-6)
    gap = dynamics.disparity_gap(THETA, COVARIANCE, ratio=1.0, eps=EPS[norm], norm=norm)
    assert gap.accuracy > 0


def test_with_equal_variances_robustness_in_euclidean_norm_costs_balanced_classes_nothing():
    gap = dynamics.disparity_gap(THETA, 0.8, ratio=1.0, eps=0.5, norm="l2")
    np.testing.assert_allclose(gap.accuracy, 0, atol=1e-6)
    assert dynamics.disparity_gap(THETA, 0.8, ratio=4.0, eps=0.5, norm="l2").accuracy > 0.01


@NORMS
def test_the_disparity_grows_with_the_imbalance_and_with_the_attack(norm):
    def gap(ratio, eps):
        return float(dynamics.disparity_gap(THETA, 1.0, ratio=ratio, eps=eps, norm=norm).disparity)

    by_ratio = [gap(ratio, EPS[norm]) for ratio in (1.0, 2.0, 5.0)]
    by_eps = [gap(3.0, eps * EPS[norm]) for eps in (0.0, 0.5, 1.0, 1.5)]
    np.testing.assert_allclose([by_ratio[0], by_eps[0]], 0, atol=1e-6)
    assert np.all(np.diff(by_ratio) > 0.01)
    assert np.all(np.diff(by_eps) > 0.005)


def test_a_ratio_below_one_exchanges_the_classes():
    rare, frequent = robust(ratio=0.25), robust(ratio=4.0)
    np.testing.assert_allclose(rare.bias, -frequent.bias, rtol=1e-6)


@NORMS
@pytest.mark.parametrize("eps", [2.0, 1e4])
def test_where_no_margin_is_left_all_is_given_to_the_frequent_class(norm, eps):
    rule = robust(COVARIANCE, ratio=3.0, eps=eps, norm=norm)
    np.testing.assert_array_equal(rule.weights, 0)
    assert rule.bias > 0
    assert dynamics.class_accuracies(*rule, THETA, COVARIANCE) == (1, 0)
    rule = robust(COVARIANCE, ratio=1.0, eps=eps, norm=norm)
    assert dynamics.class_accuracies(*rule, THETA, COVARIANCE) == (0.5, 0.5)


def test_with_hardly_any_margin_the_bias_is_large_and_finite():
    theta = np.float32([0.2, 0.1])
    rule = dynamics.robust_gaussian_classifier(theta, 1.0, ratio=2.0, eps=np.nextafter(theta[0], 0))
    assert np.isfinite(rule.bias)
    assert dynamics.class_accuracies(*rule, theta, 1.0) == (1, 0)


def test_accuracies_do_not_depend_on_the_scale_of_the_rule():
    rule = robust(COVARIANCE)
    for scale in (1e-20, 1e4, 1e18):
        np.testing.assert_allclose(
            dynamics.class_accuracies(scale * rule.weights, scale * rule.bias, THETA, COVARIANCE, eps=0.2),
            dynamics.class_accuracies(*rule, THETA, COVARIANCE, eps=0.2),
            rtol=1e-5,
        )


@NORMS
def test_the_accuracies_are_those_of_draws_and_of_attacks(norm):
    eps, count = EPS[norm], 20_000
    rule = robust(COVARIANCE, eps=eps, norm=norm)
    noise = np.random.default_rng(1).multivariate_normal(np.zeros(4), COVARIANCE, count).astype(np.float32)

    for sign, natural, attacked in zip(
        (1, -1),
        dynamics.class_accuracies(*rule, THETA, COVARIANCE),
        dynamics.class_accuracies(*rule, THETA, COVARIANCE, eps=eps, norm=norm),
        strict=True,
    ):

        def loss(x, sign=sign):
            return jax.nn.softplus(-sign * (x @ rule.weights + rule.bias))

        x = sign * THETA + noise
        one_step = {"eps": eps, "step_size": eps, "steps": 1, "norm": norm, "init": "none", "clip": None}
        moved = adversarial.pgd_attack(None, loss, x, **one_step)
        for wanted, inputs in ((natural, x), (attacked, moved)):
            share = np.mean(sign * (inputs @ rule.weights + rule.bias) > 0)
            np.testing.assert_allclose(share, wanted, atol=4 * np.sqrt(0.25 / count))
