import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import losses
from reweight.losses import contrastive
from reweight.train import LossOutput, init_state, make_step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
OFFICIAL = json.loads((GOLDEN / "supcon.json").read_text())
SINGLE = json.loads((GOLDEN / "srat.json").read_text())
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(8, 3)).astype(np.float32)
VIEWS = RNG.normal(size=(8, 2, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 2, 2, 1, 0, 3])
KEPT = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)


@pytest.mark.parametrize("case", OFFICIAL["cases"], ids=range(len(OFFICIAL["cases"])))
def test_supcon_agrees_with_the_official_numbers(case, x64):
    features, labels = np.array(case["inputs"]["features"]), np.array(case["inputs"]["labels"])

    def mean(features):
        return jnp.mean(contrastive.supcon(features, labels, **case["params"]))

    value, grad = jax.value_and_grad(mean)(features)
    np.testing.assert_allclose(value, case["expected"]["mean"], rtol=OFFICIAL["rtol"])
    np.testing.assert_allclose(grad, case["expected"]["grad_features"], rtol=OFFICIAL["rtol"], atol=1e-12)


@pytest.mark.parametrize("case", SINGLE["cases"][:3], ids=range(3))
def test_supcon_of_single_views_agrees_with_another_implementation(case, x64):
    temperature = case["params"]["temperature"]
    came = contrastive.supcon(
        np.array(case["inputs"]["adv_features"]),
        np.array(case["inputs"]["labels"]),
        temperature=temperature,
        base_temperature=temperature,
    )
    np.testing.assert_allclose(came, case["expected"]["separation_per_example"], rtol=SINGLE["rtol"], atol=1e-11)


def test_one_view_is_no_view():
    single = contrastive.supcon(FEATURES, LABELS)
    np.testing.assert_allclose(contrastive.supcon(FEATURES[:, None], LABELS), single, rtol=1e-6)


def test_views_are_examples_of_one_label():
    flat = contrastive.supcon(VIEWS.reshape(16, 3), np.repeat(LABELS, 2))
    np.testing.assert_allclose(contrastive.supcon(VIEWS, LABELS), flat.reshape(8, 2).mean(1), rtol=1e-5)


def test_an_example_without_a_positive_costs_nothing_and_moves_nothing():
    def alone(features):
        return contrastive.supcon(features, LABELS)[7]

    value, grad = jax.value_and_grad(alone)(FEATURES)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_a_batch_of_one_and_labels_that_all_differ_cost_nothing():
    assert contrastive.supcon(FEATURES[:1], LABELS[:1]) == 0
    for count in (2, 8):
        values, grads = jax.value_and_grad(lambda x, n=count: contrastive.supcon(x, jnp.arange(n)).sum())(
            FEATURES[:count]
        )
        assert values == 0
        np.testing.assert_array_equal(grads, 0)
    assert contrastive.supcon(FEATURES[:0], LABELS[:0]).shape == (0,)


def test_two_alike_examples_cost_the_logarithm_of_the_others():
    # All scores are equal, so that the positive has one share in n - 1.
    value = contrastive.supcon(jnp.ones((5, 3)), jnp.array([0, 0, 1, 2, 3]))
    np.testing.assert_allclose(value[:2], np.log(4), rtol=1e-5)


def test_only_the_equality_of_labels_counts_and_no_rotation_or_scale_of_features_does():
    wanted = contrastive.supcon(FEATURES, LABELS)
    rotation = np.linalg.qr(RNG.normal(size=(3, 3)))[0].astype(np.float32)
    scales = RNG.uniform(0.5, 30, (8, 1)).astype(np.float32)
    came = contrastive.supcon(scales * FEATURES @ rotation, np.array([7, -4, 9, 100])[LABELS])
    np.testing.assert_allclose(came, wanted, rtol=1e-4, atol=1e-5)


def test_the_base_temperature_is_a_factor():
    wanted = contrastive.supcon(FEATURES, LABELS, temperature=0.5, base_temperature=0.5)
    came = contrastive.supcon(FEATURES, LABELS, temperature=0.5, base_temperature=0.1)
    np.testing.assert_allclose(came, 5 * wanted, rtol=1e-5)


def test_without_normalization_the_features_are_taken_as_they_are():
    unit = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    options = {"temperature": 0.5, "base_temperature": 0.5}
    came = contrastive.supcon(unit, LABELS, normalize=False, **options)
    np.testing.assert_allclose(came, contrastive.supcon(FEATURES, LABELS, **options), rtol=1e-5)
    assert not np.allclose(contrastive.supcon(FEATURES, LABELS, normalize=False, **options), came)


def test_features_without_a_direction_have_no_gradient_and_break_no_other():
    features = jnp.asarray(FEATURES).at[0].set(0).at[1].set(1e-30)
    values, grads = jax.value_and_grad(lambda x: contrastive.supcon(x, LABELS).sum())(features)
    assert np.isfinite(values)
    np.testing.assert_array_equal(grads[:2], 0)
    assert np.isfinite(grads).all()
    assert np.any(grads[2:])


def test_a_masked_example_is_not_in_the_batch():
    dirty = np.where(KEPT[:, None], FEATURES, np.nan)
    came = contrastive.supcon(dirty, LABELS, mask=KEPT)
    np.testing.assert_allclose(came[KEPT], contrastive.supcon(FEATURES[KEPT], LABELS[KEPT]), rtol=1e-5)
    np.testing.assert_array_equal(came[~KEPT], 0)


@pytest.mark.parametrize("features", [FEATURES, VIEWS], ids=["single", "views"])
def test_the_batch_loss_has_value_and_gradient_of_the_loss(features):
    loss = contrastive.batch_supcon(temperature=0.3, base_temperature=0.2)

    def both(features):
        return loss.update((), features=features, labels=LABELS, mask=KEPT)[0]

    def plain(features):
        return contrastive.supcon(features, LABELS, temperature=0.3, base_temperature=0.2, mask=KEPT)

    np.testing.assert_allclose(both(features), plain(features), rtol=1e-6)
    came, wanted = (jax.grad(lambda x, f=f: f(x).sum())(features) for f in (both, plain))
    np.testing.assert_allclose(came, wanted, rtol=1e-5, atol=1e-6)


def parameters():
    rng = np.random.default_rng(2)
    return {"first": jnp.asarray(rng.normal(size=(3, 4))), "second": jnp.asarray(rng.normal(size=(4, 2)))}


def train(microbatches, loss, inputs, labels, mask):
    """Two steps of a two-layer network, in float64."""

    def signals_fn(params, extra, batch, key):
        features = jnp.tanh(batch["x"] @ params["first"]) @ params["second"]
        return LossOutput(signals={"features": features})

    params = parameters()
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_step(signals_fn, optimizer, loss=loss, microbatches=microbatches))
    state = init_state(params, None, optimizer, loss=loss)
    for _ in range(2):
        state, metrics = step(state, {"x": inputs, "labels": labels, "mask": mask})
    return state.params, metrics["loss"]


def test_microbatches_learn_what_the_whole_batch_learns(x64):
    inputs = FEATURES.astype(np.float64)
    whole, *pieces = (train(m, contrastive.batch_supcon(), inputs, LABELS, KEPT) for m in (1, 2, 4))
    for piece in pieces:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), piece, whole)

    def mean(params):
        features = jnp.tanh(inputs @ params["first"]) @ params["second"]
        return contrastive.supcon(features, LABELS, mask=KEPT).sum() / KEPT.sum()

    params = parameters()
    for _ in range(2):  # by hand, with a gradient through both sides of every pair
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(mean)(params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), whole[0], params)


def test_any_loss_of_pairs_of_examples_becomes_exact_in_microbatches(x64):
    def spread(features, mask):
        """The mean distance of each example to all."""
        apart = jnp.sum((features[:, None] - features) ** 2, axis=-1)
        return jnp.where(mask, (apart * mask).sum(1), 0) / jnp.maximum(mask.sum(), 1)

    loss = losses.of_batch(spread, signals=("features",))
    whole, pieces = (train(m, loss, FEATURES.astype(np.float64), LABELS, KEPT) for m in (1, 4))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), pieces, whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": np.ones(8)}, "features"),
        ({"features": np.ones((8, 3), int)}, "features"),
        ({"labels": LABELS[:5]}, "labels"),
        ({"labels": LABELS + 0.5}, "labels"),
        ({"temperature": 0.0}, "temperature"),
        ({"base_temperature": -1.0}, "base_temperature"),
        ({"mask": KEPT[:3]}, "mask"),
    ],
)
def test_a_mistake_is_named(change, named):
    options = {"features": FEATURES, "labels": LABELS} | change
    with pytest.raises(ValueError, match=f"losses.contrastive.supcon: argument `{named}`"):
        contrastive.supcon(options.pop("features"), options.pop("labels"), **options)


def test_a_loss_of_the_batch_must_give_one_value_an_example():
    loss = losses.of_batch(lambda features, mask: jnp.sum(features), signals=("features",))
    with pytest.raises(ValueError, match=r"losses.of_batch: argument `function\(\*\*signals\)`"):
        loss.update((), features=FEATURES)
