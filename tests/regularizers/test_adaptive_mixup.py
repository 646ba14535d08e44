import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight.losses.classification import cross_entropy
from reweight.regularizers import mixup
from reweight.regularizers.adaptive_mixup import adaptive_mixup, gate, interval_mixture, intrusion_loss

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "adamixup.json").read_text())
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-12}
RNG = np.random.default_rng(0)
X, TARGETS = RNG.normal(size=(16, 3)).astype(np.float32), np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 16)]


def mixed_pairs(policy_logits, given):
    """Rows of `x1` mixed with those of `x2`, which stand behind them."""
    size = len(given["u"])
    mixture = interval_mixture(policy_logits, given["u"], np.arange(size) + size)
    both = [np.concatenate([given[f"{name}1"], given[f"{name}2"]]) for name in "xy"]
    still = mixup.Mixture(*(jnp.concatenate([part, part]) for part in mixture))
    return mixture.weights[:, 0], *(mixup.mix(values, still)[:size] for values in both)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_mixtures_losses_and_gradients_of_the_policy_agree_with_the_golden_numbers(case, x64):
    given, expected = {name: np.array(x) for name, x in case["inputs"].items()}, case["expected"]

    def fit(policy_logits):
        _, x, targets = mixed_pairs(policy_logits, given)
        inputs, wanted = jnp.concatenate([x, given["x1"]]), jnp.concatenate([targets, given["y1"]])
        return cross_entropy(inputs @ given["W_classifier"].T, wanted)

    def told(policy_logits):
        _, x, _ = mixed_pairs(policy_logits, given)
        inputs = jnp.concatenate([given["x_unseen"], given["x1"], x])
        real = np.arange(len(inputs)) < 2 * len(x)
        return intrusion_loss(inputs @ given["W_discriminator"].T, real)

    logits = given["policy_logits"]
    lam, x, targets = mixed_pairs(logits, given)
    np.testing.assert_allclose(lam, expected["lam"], **CLOSE)
    np.testing.assert_allclose(x, expected["x_mix"], **CLOSE)
    np.testing.assert_allclose(targets, expected["targets_mix"], **CLOSE)
    np.testing.assert_allclose(fit(logits), expected["class_loss_mixed_then_original"], **CLOSE)
    np.testing.assert_allclose(told(logits), expected["intrusion_loss_unseen_original_mixed"], **CLOSE)
    for losses, name in ((fit, "class"), (told, "intrusion")):
        grads = jax.grad(lambda z, f=losses: jnp.mean(f(z)))(logits)
        np.testing.assert_allclose(grads, expected[f"grad_policy_logits_{name}_mean"], **CLOSE)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_ends_of_the_interval_agree_with_the_golden_numbers(case, x64):
    logits, partners = np.array(case["inputs"]["policy_logits"]), np.arange(len(case["inputs"]["u"]))
    low, high = (interval_mixture(logits, np.full(len(partners), u), partners).weights[:, 0] for u in (0.0, 1.0))
    np.testing.assert_allclose(low, case["expected"]["lo"], **CLOSE)
    np.testing.assert_allclose(high - low, case["expected"]["width"], rtol=1e-7, atol=1e-12)


def constant(*logits):
    return lambda pairs: jnp.broadcast_to(jnp.float32(logits), (pairs.shape[0], 3))


keys = jax.random.split(jax.random.key(0), 500)


@functools.partial(jax.jit, static_argnums=0)
def mixtures(policy):
    return jax.vmap(lambda key: adaptive_mixup(key, policy, X, TARGETS))(keys)


def test_an_interval_of_width_one_is_mixup_with_even_weights():
    found = mixtures(constant(-50, 50, -50))
    own = np.sort(np.ravel(found.mixture.weights[..., 0]))
    np.testing.assert_allclose(own, np.linspace(0, 1, own.size), atol=0.03)


@pytest.mark.parametrize(("logits", "own"), [((0, -50, 0), 0.5), ((50, 0, 0), 1.0), ((-50, -50, 50), 0.0)])
def test_an_interval_of_width_zero_has_one_weight_and_none_mixes_nothing(logits, own):
    found = mixtures(constant(*logits))
    np.testing.assert_allclose(found.mixture.weights[..., 0], own, atol=1e-6)
    partner = np.asarray(found.mixture.partners)[..., 1]
    np.testing.assert_allclose(found.x, own * X + (1 - own) * X[partner], atol=1e-5)


def test_targets_are_mixed_as_inputs_are_and_stay_probabilities():
    found = mixtures(lambda pairs: 3 * pairs)
    np.testing.assert_allclose(np.sum(found.targets, axis=-1), 1, atol=1e-5)
    own, partner = np.asarray(found.mixture.weights)[..., :1], np.asarray(found.mixture.partners)[..., 1]
    np.testing.assert_allclose(found.x, own * X + (1 - own) * X[partner], atol=1e-5)
    np.testing.assert_allclose(found.targets, own * TARGETS + (1 - own) * TARGETS[partner], atol=1e-5)
    assert np.all((own > 0) & (own < 1))
    assert np.all(np.sort(partner, axis=1) == np.arange(16))


def test_the_gate_is_noise_times_the_pair_and_cut_at_two_deviations():
    partners = np.arange(16)[::-1].copy()
    ones = np.ones((16, 200), np.float32)
    found = gate(jax.random.key(1), np.where(np.arange(16)[:, None] < 8, ones, 0), partners)
    assert np.abs(found).max() <= 1
    np.testing.assert_allclose(np.std(found), 0.88 / 2, atol=0.02)  # a normal cut at 2 has deviation 0.88
    np.testing.assert_array_equal(gate(jax.random.key(1), np.zeros((16, 3), np.float32), partners), 0)


def test_a_partner_outside_of_the_batch_is_a_row_of_zeros_for_the_gate_too():
    alone = gate(jax.random.key(1), X, np.full(16, 16))
    with_itself = gate(jax.random.key(1), X, np.arange(16))
    of_others = gate(jax.random.key(1), np.where(np.arange(16)[:, None] < 8, X, 0), np.arange(16)[::-1].copy())
    np.testing.assert_array_equal(alone[:8], of_others[:8])
    assert not np.allclose(alone, with_itself)


def test_masked_rows_are_absent():
    mask = np.arange(16) % 3 != 0
    hidden = np.where(mask[:, None], X, np.nan)
    policy = jax.jit(lambda pairs: 3 * pairs)
    found = adaptive_mixup(jax.random.key(1), policy, hidden, TARGETS, mask=mask)
    alone = adaptive_mixup(jax.random.key(1), policy, X[mask], TARGETS[mask])
    for whole, kept in zip(
        (found.x, found.targets, found.mixture.weights), (*alone[:2], alone.mixture.weights), strict=True
    ):
        np.testing.assert_allclose(np.asarray(whole)[mask], kept, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.mixture.partners[mask], np.flatnonzero(mask)[alone.mixture.partners])
    np.testing.assert_array_equal(found.mixture.partners[~mask], 16)
    np.testing.assert_array_equal(found.x[~mask], 0)
    nothing = adaptive_mixup(jax.random.key(1), policy, hidden, TARGETS, mask=np.zeros(16))
    np.testing.assert_array_equal(nothing.x, 0)


def test_the_policy_learns_from_both_losses():
    params = jnp.zeros((3, 3))

    def total(params, part):
        found = adaptive_mixup(jax.random.key(2), lambda pairs: pairs @ params, X, TARGETS)
        if part == "fit":
            return jnp.mean(cross_entropy(jnp.pad(found.x, ((0, 0), (0, 1))), found.targets))
        return jnp.mean(intrusion_loss(found.x[:, :2], np.zeros(16)))

    for part in ("fit", "told"):
        assert np.any(jax.grad(total)(params, part) != 0)


def test_real_rows_are_the_first_class():
    logits = np.float32([[0, 3], [0, 3]])
    found = intrusion_loss(logits, np.array([True, False]))
    np.testing.assert_allclose(found, [np.log1p(np.exp(-3)), 3 + np.log1p(np.exp(-3))], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: adaptive_mixup(jax.random.key(0), lambda x: x[:, :2], X, TARGETS), "policy"),
        (lambda: adaptive_mixup(jax.random.key(0), constant(0, 0, 0), X, TARGETS[:3]), "targets"),
        (lambda: interval_mixture(X, np.ones(3, np.float32), np.arange(16)), "u"),
        (lambda: gate(jax.random.key(0), X, np.arange(3)), "x"),
        (lambda: gate(jax.random.key(0), X, np.zeros(16)), "partners"),
        (lambda: gate(jax.random.key(0), X, np.arange(16), mask=np.ones(3)), "mask"),
        (lambda: adaptive_mixup(jax.random.key(0), constant(0, 0, 0), X, TARGETS, mask=np.ones(3)), "mask"),
        (lambda: intrusion_loss(X, np.ones(16)), "logits"),
        (lambda: intrusion_loss(X[:, :2], np.ones(3)), "real"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
