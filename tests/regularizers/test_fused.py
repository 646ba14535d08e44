import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from reweight.losses import ordinal
from reweight.regularizers import fused

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "presto.json").read_text())
FITS = GOLDEN["cases"][3]
FEATURES, LABELS = (np.array(FITS["inputs"][name]) for name in ("X", "labels"))
RNG = np.random.default_rng(0)
TOP = FITS["expected"]["lambda_max"]

path = jax.jit(
    functools.partial(fused.presto_path, num_classes=3, tolerance=1e-9),
    static_argnames=("num_lambdas", "lambda_min_ratio"),
)


def objective(intercepts, coefficients, strength, alpha, features=FEATURES):
    standard = coefficients * features.std(0)[:, None]
    nll = jnp.mean(ordinal.cumulative_logit_nll(features @ coefficients + intercepts, LABELS))
    return nll + strength * fused.presto_penalty(standard, alpha=alpha)


@pytest.mark.parametrize("name", FITS["expected"]["fits"])
def test_fits_agree_with_the_golden_numbers(name, x64):
    wanted = FITS["expected"]["fits"][name]
    alpha, share = (float(part) for part in name.removeprefix("alpha").removesuffix("_lambda_max").split("_at_"))
    found = path(FEATURES, LABELS, alpha=alpha, lambdas=np.array([share * TOP]))
    tolerance = {"rtol": GOLDEN["rtol"], "atol": GOLDEN["rtol"]}
    np.testing.assert_allclose(found.intercepts[0], wanted["intercepts"], **tolerance)
    np.testing.assert_allclose(found.coefficients[0], wanted["beta"], **tolerance)
    np.testing.assert_allclose(np.cumsum(found.increments[0], axis=1), wanted["beta_std"], **tolerance)
    logits = FEATURES @ found.coefficients[0] + found.intercepts[0]
    np.testing.assert_allclose(
        jnp.mean(ordinal.cumulative_logit_nll(logits, LABELS)), wanted["mean_nll"], rtol=GOLDEN["rtol"]
    )
    brier = np.mean(np.sum((np.eye(3)[LABELS] - ordinal.cumulative_probs(logits)[0]) ** 2, axis=1))
    np.testing.assert_allclose(brier, wanted["brier"], rtol=GOLDEN["rtol"])
    zeros = np.abs(np.diff(wanted["beta_std"], prepend=0)) < 1e-9
    np.testing.assert_array_equal(np.asarray(found.increments[0])[zeros], 0)


def test_the_path_starts_where_all_is_zero_and_ends_at_its_share(x64):
    found = path(FEATURES, LABELS)
    np.testing.assert_allclose(found.lambdas[0], TOP, rtol=GOLDEN["rtol"])
    np.testing.assert_allclose(found.lambdas[-1], 0.01 * TOP, rtol=1e-6)
    assert found.lambdas.shape == (20,)
    np.testing.assert_allclose(found.coefficients[0], 0, atol=1e-8)
    np.testing.assert_allclose(found.intercepts[0], FITS["expected"]["null_intercepts"], rtol=1e-6)
    assert np.all(np.asarray(found.residuals) <= 1e-9)
    used = np.sum(np.asarray(found.increments) != 0, axis=(1, 2))
    assert used[1] < used[-1]


@pytest.mark.parametrize(("alpha", "share"), [(0.5, 0.5), (0.005, 0.01), (0.0, 0.01)])
def test_the_path_of_an_elastic_net_starts_at_a_larger_penalty(alpha, share, x64):
    """At the least that takes all increments to 0; a ridge starts where a share of 0.01 of a lasso does, as in R."""
    found = path(FEATURES, LABELS, alpha=alpha, num_lambdas=2, lambda_min_ratio=0.9)
    np.testing.assert_allclose(found.lambdas[0], TOP / share, rtol=GOLDEN["rtol"])
    assert np.any(np.abs(found.increments[1]) > 1e-8)
    if alpha == share:
        np.testing.assert_allclose(found.increments[0], 0, atol=1e-8)


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
def test_no_step_from_a_fit_lowers_the_objective(alpha, x64):
    strength = 0.05
    found = path(FEATURES, LABELS, alpha=alpha, lambdas=np.array([strength]))
    intercepts, coefficients = found.intercepts[0], found.coefficients[0]
    at = objective(intercepts, coefficients, strength, alpha)
    for _ in range(50):
        moved = [x + 1e-3 * RNG.normal(size=x.shape) for x in (intercepts, coefficients)]
        assert objective(*moved, strength, alpha) >= at - 1e-10


def test_without_a_penalty_the_boundaries_go_free(x64):
    found = path(FEATURES, LABELS, lambdas=np.array([0.01, 0.0]), max_iterations=20_000)
    free = functools.partial(objective, strength=0.0, alpha=1.0)
    for slope in jax.grad(free, argnums=(0, 1))(found.intercepts[1], found.coefficients[1]):
        np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_two_classes_are_the_lasso_of_logistic_regression(x64):
    labels, strength = (LABELS > 0).astype(int), 0.03
    found = fused.presto_path(FEATURES, labels, num_classes=2, lambdas=np.array([strength]), tolerance=1e-10)
    standard = (FEATURES - FEATURES.mean(0)) / FEATURES.std(0)
    peer = LogisticRegression(l1_ratio=1.0, C=1 / (strength * 40), solver="saga", tol=1e-10, max_iter=100_000)
    peer.fit(standard, 1 - labels)
    np.testing.assert_allclose(found.increments[0, :, 0], peer.coef_[0], rtol=1e-5, atol=1e-7)


def test_scale_and_origin_of_the_features_do_not_matter(x64):
    scale, origin = np.array([100.0, 0.01]), np.array([-5.0, 3.0])
    found, moved = (path(x, LABELS, lambdas=np.array([0.02])) for x in (FEATURES, FEATURES * scale + origin))
    np.testing.assert_allclose(moved.increments, found.increments, atol=1e-7)
    logits = (FEATURES * scale + origin) @ moved.coefficients[0] + moved.intercepts[0]
    np.testing.assert_allclose(logits, FEATURES @ found.coefficients[0] + found.intercepts[0], atol=1e-6)


def test_folds_are_masks_and_a_vmap_fits_them_all(x64):
    folds = np.arange(40) % 4 != np.arange(4)[:, None]
    lambdas = TOP * np.array([0.5, 0.1])
    together = jax.vmap(lambda mask: path(FEATURES, LABELS, mask=mask, lambdas=lambdas))(folds)
    alone = path(FEATURES[folds[1]], LABELS[folds[1]], lambdas=lambdas)
    np.testing.assert_allclose(together.coefficients[1], alone.coefficients, atol=1e-7)


def test_a_constant_feature_and_an_empty_class_do_no_harm():
    features = np.concatenate([FEATURES, np.full((40, 1), 3.0)], axis=1).astype(np.float32)
    found = fused.presto_path(features, np.minimum(LABELS, 1), num_classes=3, num_lambdas=3, lambda_min_ratio=0.2)
    assert all(np.all(np.isfinite(leaf)) for leaf in found)
    np.testing.assert_array_equal(found.coefficients[:, 2], 0)
    nothing = fused.presto_path(features, LABELS, num_classes=3, num_lambdas=2, mask=np.zeros(40))
    assert not any(np.any(leaf) for leaf in nothing)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"alpha": -1.0}, "alpha"),
        ({"lambda_min_ratio": 1.0}, "lambda_min_ratio"),
        ({"labels": LABELS[:3]}, "labels"),
        ({"mask": np.ones(3)}, "mask"),
        ({"lambdas": np.ones((2, 2))}, "lambdas"),
    ],
)
def test_a_static_mistake_is_named(change, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        fused.presto_path(**{"features": FEATURES, "labels": LABELS, "num_classes": 3, **change})


def test_cross_validation_scores_every_example_by_fits_that_have_not_seen_it(x64):
    key, folds, n = jax.random.key(3), 4, len(LABELS)
    options = {"num_classes": 3, "num_lambdas": 4, "lambda_min_ratio": 0.2, "tolerance": 1e-9}
    found = fused.presto_cross_validation(key, FEATURES, LABELS, folds=folds, **options)
    whole = fused.presto_path(FEATURES, LABELS, **options)
    np.testing.assert_allclose(found.path.coefficients, whole.coefficients, rtol=1e-9)
    fold = np.argsort(np.argsort(jax.random.uniform(key, (n,)))) % folds
    assert np.ptp(np.bincount(fold)) <= 1
    scores = np.zeros(4)
    for held in range(folds):
        seen = fold != held
        part = path(FEATURES[seen], LABELS[seen], lambdas=whole.lambdas)
        for i in range(4):
            logits = FEATURES[~seen] @ part.coefficients[i] + part.intercepts[i]
            probs = np.diff(1 / (1 + np.exp(-np.asarray(logits))), axis=1, prepend=0, append=1)
            scores[i] += np.sum((probs - np.eye(3)[LABELS[~seen]]) ** 2) / n
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    assert found.best == np.argmin(scores)
    np.testing.assert_array_equal(found.coefficients, found.path.coefficients[found.best])
    np.testing.assert_array_equal(found.intercepts, found.path.intercepts[found.best])


def test_cross_validation_never_reads_what_is_hidden():
    mask = np.arange(len(LABELS)) % 3 != 0
    options = {"num_classes": 3, "num_lambdas": 3, "lambda_min_ratio": 0.2, "folds": 2, "mask": mask}
    poisoned = np.where(mask[:, None], FEATURES, np.nan)
    found, again = (
        fused.presto_cross_validation(jax.random.key(0), x, LABELS, **options) for x in (FEATURES, poisoned)
    )
    np.testing.assert_array_equal(found.scores, again.scores)
    nothing = fused.presto_cross_validation(jax.random.key(0), FEATURES, LABELS, **{**options, "mask": 0 * mask})
    np.testing.assert_array_equal(nothing.scores, 0)
    assert nothing.best == 0  # of equal scores the largest penalty
