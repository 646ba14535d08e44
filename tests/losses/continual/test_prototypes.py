import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses import continual

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
CALIBRATED = json.loads((GOLDEN / "csfa.json").read_text())["cases"][:2]
*FIXED, MEANS = json.loads((GOLDEN / "fscil_tricks.json").read_text())["cases"]
RNG = np.random.default_rng(0)
FEATURES, LABELS = RNG.normal(size=(12, 5)).astype(np.float32), np.arange(12) % 3
BASE, NEW = RNG.normal(size=(4, 5)).astype(np.float32), RNG.normal(size=(2, 5)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def given(case, *names):
    return [jnp.array(case["inputs"][name]) for name in names]


# -- class means


def test_class_means_agree_with_the_golden_numbers(x64):
    features, labels, query = given(MEANS, "features", "labels", "query")
    prototypes = continual.class_prototypes(features, labels, num_classes=3)
    np.testing.assert_allclose(prototypes, MEANS["expected"]["prototypes"], rtol=1e-8)
    np.testing.assert_allclose(continual.cosine_scores(query, prototypes), MEANS["expected"]["cosine"], rtol=1e-8)


def test_one_example_is_its_own_prototype_and_a_class_without_any_has_score_zero():
    prototypes = continual.class_prototypes(FEATURES[:2], np.array([2, 0]), num_classes=4)
    np.testing.assert_allclose(prototypes[np.array([2, 0])], unit(FEATURES[:2]), rtol=1e-6)
    scores = continual.cosine_scores(FEATURES, prototypes, scale=10.0)
    np.testing.assert_array_equal(scores[:, [1, 3]], 0)
    np.testing.assert_allclose(scores[0, 2], 10, rtol=1e-6)


def test_what_is_masked_or_of_no_class_is_not_in_the_mean():
    wanted = continual.class_prototypes(FEATURES[:6], LABELS[:6], num_classes=3)
    masked = np.where(np.arange(12)[:, None] < 6, FEATURES, np.nan)
    came = continual.class_prototypes(masked, LABELS, num_classes=3, mask=np.arange(12) < 6)
    np.testing.assert_allclose(came, wanted, rtol=1e-6)
    labels = np.where(np.arange(12) < 6, LABELS, np.where(np.arange(12) < 9, -1, 3))
    np.testing.assert_allclose(continual.class_prototypes(FEATURES, labels, num_classes=3), wanted, rtol=1e-6)


def test_features_of_zeros_have_no_direction_and_no_gradient():
    def total(features):
        prototypes = continual.class_prototypes(features, LABELS, num_classes=3)
        return jnp.sum(continual.cosine_scores(features, prototypes))

    value, grad = jax.value_and_grad(total)(jnp.zeros((12, 5)))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


# -- calibration


@pytest.mark.parametrize("case", CALIBRATED, ids=range(2))
def test_calibrated_prototypes_agree_with_the_official_code(case, x64):
    base, new, query = given(case, "base", "new", "query")
    came = continual.calibrate_prototypes(new, base, **case["params"])
    np.testing.assert_allclose(came, case["expected"]["calibrated"], rtol=1e-8)
    scores = continual.cosine_scores(query, jnp.concatenate([base, came]))
    np.testing.assert_allclose(scores, case["expected"]["cosine"], rtol=1e-8)


def test_without_strength_prototypes_stay_and_with_all_of_it_they_are_made_of_base_classes():
    np.testing.assert_allclose(continual.calibrate_prototypes(NEW, BASE, alpha=0.0), unit(NEW), rtol=1e-6)
    nearest = np.argmax(unit(NEW) @ unit(BASE).T, axis=1)
    alone = continual.calibrate_prototypes(NEW, BASE, alpha=1.0, tau=1e4)
    np.testing.assert_allclose(alone, unit(BASE)[nearest], rtol=1e-5)
    mean = continual.calibrate_prototypes(NEW, BASE, alpha=1.0, tau=0.0)
    np.testing.assert_allclose(mean, np.tile(unit(unit(BASE).mean(0)), (2, 1)), rtol=1e-5)


def test_lengths_of_prototypes_do_not_matter():
    came = continual.calibrate_prototypes(7 * NEW, BASE * np.float32([[1], [2], [3], [4]]))
    np.testing.assert_allclose(came, continual.calibrate_prototypes(NEW, BASE), rtol=1e-4, atol=1e-6)


# -- prototypes in a simplex


@pytest.mark.parametrize("case", FIXED, ids=range(2))
def test_the_simplex_its_loss_and_the_assignment_agree_with_the_official_code(case, x64):
    basis, x, labels, means = given(case, "U", "x", "labels", "class_means")
    expected = case["expected"]
    vectors = continual.simplex_etf(basis)
    np.testing.assert_allclose(vectors, expected["etf_rows"], rtol=1e-8)
    np.testing.assert_allclose(continual.cosine_scores(x, vectors), expected["scores"], rtol=1e-8)
    np.testing.assert_allclose(continual.dr_loss(x, vectors, labels), expected["dr_loss_per_example"], rtol=1e-8)
    value, grad = jax.value_and_grad(lambda x: jnp.mean(continual.dr_loss(x, vectors, labels)))(x)
    np.testing.assert_allclose(value, expected["dr_loss_mean"], rtol=1e-8)
    np.testing.assert_allclose(grad, expected["grad_x_mean"], rtol=1e-8, atol=1e-12)
    chosen = continual.assign_prototypes(means, vectors)
    np.testing.assert_array_equal(chosen, expected["assignment"])
    score = np.sum(unit(np.asarray(means)) * np.asarray(vectors[chosen]))
    np.testing.assert_allclose(score, expected["assignment_score"], rtol=1e-8)


@pytest.mark.parametrize("classes", [2, 5, 8])
def test_all_pairs_of_a_simplex_have_the_same_angle(classes):
    vectors = continual.etf_prototypes(jax.random.key(1), 8, classes)
    wanted = np.where(np.eye(classes), 1, -1 / (classes - 1))
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=1e-6)


def test_positions_of_the_simplex_are_drawn():
    draws = jax.vmap(lambda key: continual.etf_prototypes(key, 4, 3))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.05)


def test_classes_get_back_the_prototypes_that_they_lie_at():
    vectors = continual.etf_prototypes(jax.random.key(2), 8, 6)
    order = np.array([4, 0, 5, 2])
    means = 3 * vectors[order] + 0.1 * RNG.normal(size=(4, 8))
    np.testing.assert_array_equal(jax.jit(continual.assign_prototypes)(means, vectors), order)


def test_a_class_without_mean_gets_what_is_left():
    vectors = continual.etf_prototypes(jax.random.key(2), 8, 3)
    means = vectors[np.array([2, 2, 1])].at[0].set(0)
    np.testing.assert_array_equal(continual.assign_prototypes(means, vectors), [0, 2, 1])


def test_means_that_are_not_finite_still_get_distinct_prototypes():
    vectors = continual.etf_prototypes(jax.random.key(2), 8, 4)
    came = continual.assign_prototypes(jnp.full((3, 8), jnp.nan), vectors)
    assert len(set(np.asarray(came).tolist())) == 3


def test_the_loss_is_zero_at_the_prototype_and_two_opposite():
    vectors = continual.etf_prototypes(jax.random.key(3), 5, 3)
    losses = continual.dr_loss(jnp.stack([5 * vectors[1], -vectors[1], jnp.zeros(5), vectors[1]]), vectors,
                               np.array([1, 1, 1, -1]))  # fmt: skip
    np.testing.assert_allclose(losses, [0, 2, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: continual.class_prototypes(FEATURES, LABELS, num_classes=0), "num_classes"),
        (lambda: continual.class_prototypes(FEATURES, LABELS[:3], num_classes=3), "labels"),
        (lambda: continual.cosine_scores(FEATURES, BASE[:, :3]), "prototypes"),
        (lambda: continual.cosine_scores(np.float32(1), BASE), "features"),
        (lambda: continual.cosine_scores(FEATURES, BASE, scale=0.0), "scale"),
        (lambda: continual.calibrate_prototypes(NEW, BASE, alpha=1.5), "alpha"),
        (lambda: continual.calibrate_prototypes(NEW, BASE, tau=-1.0), "tau"),
        (lambda: continual.calibrate_prototypes(NEW, BASE[:0]), "base"),
        (lambda: continual.etf_prototypes(jax.random.key(0), 3, 4), "dim"),
        (lambda: continual.etf_prototypes(jax.random.key(0), 3, 1), "num_classes"),
        (lambda: continual.simplex_etf(BASE.T[:3]), "basis"),
        (lambda: continual.assign_prototypes(BASE, NEW), "prototypes"),
        (lambda: continual.dr_loss(FEATURES, BASE, LABELS[:4]), "labels"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
