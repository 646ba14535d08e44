import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import reduce, weights
from reweight.losses import preference

OFFICIAL = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "preference_wpo_official.json").read_text())[
    "cases"
]
B, T = 4, 6


def drawn(seed=0):
    """Log-probs, sums of squares and masks of both sides, from logits."""
    rng = np.random.default_rng(seed)
    arrays = []
    for _ in range(2):
        log_p = jax.nn.log_softmax(2 * rng.normal(size=(B, T, 5)))
        arrays.append((log_p[..., 0].astype(np.float32), jnp.sum(jnp.exp(2 * log_p), -1).astype(np.float32)))
    masks = [rng.random((B, T)) > 0.3 for _ in range(2)]
    return arrays[0][0], arrays[1][0], arrays[0][1], arrays[1][1], *masks


def side(logits, labels):
    log_p = jax.nn.log_softmax(logits[:, :-1])
    labels = jnp.asarray(labels)[:, 1:]
    taken = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return taken, jnp.sum(jnp.exp(2 * log_p), axis=-1), labels != -100


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: str(case["params"]["beta"]))
def test_weights_and_weighted_losses_agree_with_the_official_code(case, x64):
    labels, params, expected = case["inputs"]["labels"], case["params"], case["expected"]
    half = len(labels) // 2
    reference = [jnp.array(case["inputs"][name]) for name in ("ref_w", "ref_l")]

    def weighted(logits):
        log_probs, squares, mask = side(logits, labels)
        sums = preference.sequence_log_probs(log_probs, mask).sums
        pairs = (values[rows] for values in (log_probs, squares, mask) for rows in (slice(0, half), slice(half, None)))
        w = weights.wpo_weights(*pairs)
        return w * preference.dpo(sums[:half], sums[half:], *reference, **params), (w, sums)

    losses, pullback, (w, sums) = jax.vjp(weighted, jnp.array(case["inputs"]["logits"]), has_aux=True)
    np.testing.assert_allclose(sums, expected["logp"], rtol=1e-9)
    np.testing.assert_allclose(w, expected["weight"], rtol=1e-9)
    np.testing.assert_allclose(losses, expected["loss"], rtol=1e-9)
    np.testing.assert_allclose(pullback(jnp.ones(half))[0], expected["grad_logits"], rtol=1e-9, atol=1e-11)


def test_clipped_weights_are_the_others_held_at_one():
    arrays = drawn()
    free = weights.wpo_weights(*arrays, clip=False)
    np.testing.assert_allclose(weights.wpo_weights(*arrays), np.minimum(free, 1), rtol=1e-6)
    likely = (arrays[0] * 0, arrays[1] * 0, *arrays[2:])
    assert np.all(weights.wpo_weights(*likely, clip=False) > 1)
    assert np.all(weights.wpo_weights(*likely) == 1)


def test_an_answer_of_a_uniform_policy_has_weight_one_at_any_size_of_the_vocabulary():
    for size in (2, 1000, 150_000):
        log_probs, squares = np.full((B, T), -np.log(size), np.float32), np.full((B, T), 1 / size, np.float32)
        w = weights.wpo_weights(log_probs, log_probs, squares, squares, np.ones((B, T)), np.ones((B, T)), clip=False)
        np.testing.assert_allclose(w, 1, rtol=1e-4)


def test_weights_are_means_over_tokens_so_that_repeating_an_answer_changes_nothing():
    arrays = drawn(1)
    twice = [np.concatenate([array, array], axis=-1) for array in arrays]
    np.testing.assert_allclose(
        weights.wpo_weights(*twice, clip=False), weights.wpo_weights(*arrays, clip=False), rtol=1e-5
    )


def test_nothing_behind_the_masks_is_read_and_an_empty_answer_has_factor_one():
    arrays = list(drawn(2))
    arrays[4] = arrays[4] & (np.arange(B) != 1)[:, None]
    arrays[5] = arrays[5] & (np.arange(B) != 1)[:, None]
    wanted = weights.wpo_weights(*arrays)
    for i in range(4):
        arrays[i] = np.where(arrays[4 + i % 2], arrays[i], np.nan)
    np.testing.assert_array_equal(weights.wpo_weights(*arrays), wanted)
    assert wanted[1] == 1


def test_no_gradient_flows_and_sides_may_be_padded_to_different_lengths():
    arrays = drawn(3)
    grads = jax.grad(lambda *four: jnp.sum(weights.wpo_weights(*four, *arrays[4:])), argnums=(0, 1, 2, 3))(*arrays[:4])
    assert not any(np.any(grad) for grad in grads)
    padded = [np.pad(array, ((0, 0), (0, 3))) if i % 2 else array for i, array in enumerate(arrays)]
    np.testing.assert_allclose(weights.wpo_weights(*padded), weights.wpo_weights(*arrays), rtol=1e-6)


def test_the_mean_over_pairs_keeps_the_scale_of_the_weights():
    arrays, losses = drawn(4), np.float32([1, 2, 3, 4])
    w = weights.wpo_weights(*arrays)
    np.testing.assert_allclose(
        reduce.weighted_mean(losses, w, normalizer="count"), np.mean(losses * np.asarray(w)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({2: np.ones((B, T + 1), np.float32)}, "chosen_sum_squares"),
        ({5: np.ones((B, T + 1))}, "rejected_mask"),
        ({0: np.ones((B, T), int)}, "chosen_log_probs"),
        ({1: np.ones((2, T), np.float32), 3: np.ones((2, T), np.float32), 5: np.ones((2, T))}, "rejected_log_probs"),
    ],
)
def test_a_static_mistake_is_named(change, named):
    arrays = list(drawn())
    for index, array in change.items():
        arrays[index] = array
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        weights.wpo_weights(*arrays)


def test_as_a_weighting_it_reads_signals_by_name_and_masked_pairs_weigh_nothing():
    arrays, losses, mask = drawn(5), np.ones(B, np.float32), np.array([1, 0, 1, 1])
    names = [f"{side}_{what}" for what in ("log_probs", "sum_squares", "mask") for side in ("chosen", "rejected")]
    scheme = weights.wpo(clip=False)
    w, _ = scheme.update(scheme.init(), losses, **dict(zip(names, arrays, strict=True)), mask=mask)
    np.testing.assert_allclose(w, mask * np.asarray(weights.wpo_weights(*arrays, clip=False)), rtol=1e-6)
    with pytest.raises(ValueError, match="argument `chosen_sum_squares` is missing"):
        scheme.update(scheme.init(), losses, chosen_log_probs=arrays[0], rejected_log_probs=arrays[1])
