import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import reduce, weights
from reweight.losses import adversarial, classification, contrastive
from reweight.train import LossOutput, init_state, make_step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ATTACKS = json.loads((GOLDEN / "slow_start_fast_decay.json").read_text())["cases"][3:]
SRAT = json.loads((GOLDEN / "srat.json").read_text())
RNG = np.random.default_rng(0)
B, C, D = 8, 3, 4
LOGITS = RNG.normal(size=(B, C)).astype(np.float32)
FEATURES = RNG.normal(size=(B, D)).astype(np.float32)
LABELS = np.array([0, 1, 0, 2, 2, 1, 0, 0])
KEPT = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
COUNTS = np.array([400.0, 40.0, 4.0], np.float32)


def network(case):
    w1, b1, w2, b2 = (jnp.array(case["inputs"][name]) for name in ("W1", "b1", "W2", "b2"))
    return lambda x: jnp.tanh(x @ w1.T + b1) @ w2.T + b2


@pytest.mark.parametrize("case", ATTACKS, ids=range(len(ATTACKS)))
def test_attacks_and_adversarial_cross_entropy_agree_with_the_golden_numbers(case, x64):
    params, expected, logits_fn = case["params"], case["expected"], network(case)
    options = {name: params[name] for name in ("eps", "step_size", "steps", "norm", "init")}
    x, labels = jnp.array(case["inputs"]["x"]), jnp.array(case["inputs"]["labels"])
    attack = adversarial.attack_classifier(None, logits_fn, x, labels, clip=tuple(params["clip"]), **options)
    np.testing.assert_allclose(attack.inputs, expected["x_adv"], rtol=1e-8, atol=1e-12)
    losses = adversarial.adversarial_cross_entropy(None, logits_fn, x, labels, **options)
    np.testing.assert_allclose(losses, expected["adversarial_ce_per_example"], rtol=1e-8)
    clean = adversarial.adversarial_cross_entropy(None, logits_fn, x, labels, **options | {"eps": 0.0})
    np.testing.assert_allclose(clean, expected["clean_ce_per_example"], rtol=1e-8)


def ahead(x):
    """Two classes, of which class 0 leads by twice the only input."""
    return jnp.concatenate([x, -x], axis=-1)


# Each step moves a lead by 0.1, so that the examples fall at once, after 1, 2, 3 and 5 steps, and never.
LEADS = jnp.array([[-0.05], [0.05], [0.15], [0.25], [0.45], [0.95]])
STEPS = {"eps": 0.6, "step_size": 0.1, "init": "none", "clip": None}


def test_an_attack_counts_the_steps_that_an_example_withstands():
    attack = functools.partial(adversarial.attack_classifier, None, ahead, LEADS, jnp.zeros(6, int), **STEPS)
    np.testing.assert_array_equal(attack(steps=6).steps, [0, 1, 2, 3, 5, 6])
    np.testing.assert_array_equal(attack(steps=3).steps, [0, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(attack(steps=0).steps, 0)
    np.testing.assert_allclose(attack(steps=3).inputs, LEADS - 0.3, rtol=1e-5)


def test_an_example_that_falls_once_has_fallen():
    def wave(x):
        """Wrong between 0.1 and 0.3; the loss falls all the way."""
        return jnp.concatenate([jnp.where((x > 0.1) & (x < 0.3), -5.0, 5.0) + x, jnp.zeros_like(x)], axis=-1)

    options = {"eps": 1.0, "step_size": 0.1, "steps": 6, "init": "none", "clip": None}
    attack = adversarial.attack_classifier(None, wave, jnp.array([[0.45]]), jnp.array([0]), **options)
    assert attack.steps == 2
    assert attack.inputs < 0.1  # where it is classified rightly again


def test_the_attack_is_that_on_the_cross_entropy_and_its_steps_are_those_of_gairat():
    x, labels, key = jnp.asarray(FEATURES), jnp.asarray(LABELS), jax.random.key(3)
    kernel = jnp.asarray(RNG.normal(size=(D, C)), jnp.float32)

    def losses(x):
        return classification.cross_entropy(x @ kernel, labels)

    options = {"eps": 0.5, "step_size": 0.1, "steps": 10, "clip": None}
    attack = adversarial.attack_classifier(key, lambda x: x @ kernel, x, labels, **options)
    wanted = adversarial.pgd_attack(key, losses, x, **options)
    np.testing.assert_allclose(attack.inputs, wanted, rtol=1e-6)
    w = weights.gairat_weights(attack.steps, num_steps=10)
    order = np.argsort(attack.steps)
    assert (np.diff(w[order]) <= 0).all()


def test_what_has_no_class_is_not_attacked():
    attack = adversarial.attack_classifier(None, ahead, LEADS, jnp.array([0, 0, 0, -1, 2, 0]), **STEPS, steps=4)
    np.testing.assert_array_equal(attack.inputs[3:5], LEADS[3:5])
    np.testing.assert_array_equal(attack.steps[3:5], 4)


def test_the_gradient_of_adversarial_cross_entropy_is_at_the_fixed_attack():
    x, labels = jnp.asarray(FEATURES), jnp.asarray(LABELS)
    options = {"eps": 0.3, "step_size": 0.1, "steps": 3, "init": "none", "clip": None}

    def under_attack(kernel):
        return adversarial.adversarial_cross_entropy(None, lambda x: x @ kernel, x, labels, **options).sum()

    kernel = jnp.asarray(RNG.normal(size=(D, C)), jnp.float32)
    attacked = adversarial.attack_classifier(None, lambda x: x @ kernel, x, labels, **options).inputs
    wanted = jax.grad(lambda kernel: classification.cross_entropy(attacked @ kernel, labels).sum())(kernel)
    np.testing.assert_allclose(jax.grad(under_attack)(kernel), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": jnp.zeros(5, int)}, "labels"),
        ({"labels": jnp.zeros(6)}, "labels"),
        ({"logits_fn": lambda x: x[:, 0]}, r"logits_fn\(x\)"),
        ({"eps": -1.0}, "eps"),
        ({"init": "uniform"}, "key"),
    ],
)
@pytest.mark.parametrize("function", ["attack_classifier", "adversarial_cross_entropy"])
def test_a_mistake_in_an_attack_on_a_classifier_is_named(function, change, named):
    options = STEPS | {"steps": 2, "logits_fn": ahead, "labels": jnp.zeros(6, int)} | change
    with pytest.raises(ValueError, match=f"losses.adversarial.{function}: argument `{named}`"):
        getattr(adversarial, function)(None, options.pop("logits_fn"), LEADS, options.pop("labels"), **options)


@pytest.mark.parametrize("case", SRAT["cases"][:3], ids=range(3))
def test_srat_agrees_with_the_golden_numbers(case, x64):
    params, expected = case["params"], case["expected"]
    logits, features = (jnp.array(case["inputs"][name]) for name in ("adv_logits", "adv_features"))
    labels = jnp.array(case["inputs"]["labels"])
    counts = np.array(params["class_counts"], np.float64)
    table = weights.effective_number_weights(counts, beta=params["beta"])
    options = {"sep_weight": params["sep_weight"], "temperature": params["temperature"]}

    def losses(logits, features):
        return adversarial.srat_loss(logits, features, labels, table, **options)

    def in_a_batch(logits, features):
        late = functools.partial(weights.deferred_class_weights, counts, start_step=0, beta=params["beta"])
        loss = adversarial.batch_srat(late, **options)
        return loss.update(loss.init(), attacked_logits=logits, attacked_features=features, labels=labels)[0]

    for function in (losses, in_a_batch):
        close = functools.partial(np.testing.assert_allclose, rtol=SRAT["rtol"], atol=1e-11)
        close(function(logits, features), expected["srat_ce_per_example"])
        mean, (by_logits, by_features) = jax.value_and_grad(lambda *x, f=function: f(*x).mean(), (0, 1))(
            logits, features
        )
        close(mean, expected["srat_ce_mean"])
        close(by_logits, expected["grad_adv_logits"])
        close(by_features, expected["grad_adv_features"])
    focal = functools.partial(classification.focal_loss, gamma=params["focal_gamma"])
    came = adversarial.srat_loss(logits, features, labels, table, base_loss=focal, **options)
    close(came, expected["srat_focal_per_example"])


def test_srat_without_separation_and_weights_is_cross_entropy():
    plain = classification.cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(adversarial.srat_loss(LOGITS, FEATURES, LABELS, sep_weight=0.0), plain, rtol=1e-6)
    table = weights.effective_number_weights(COUNTS)
    weighted = adversarial.srat_loss(LOGITS, FEATURES, LABELS, table, sep_weight=0.0)
    np.testing.assert_allclose(weighted, table[LABELS] * plain, rtol=1e-5)


def test_srat_adds_the_separation_of_the_features_to_any_base_loss():
    ldam = functools.partial(classification.ldam, class_counts=COUNTS)
    came = adversarial.srat_loss(LOGITS, FEATURES, LABELS, base_loss=ldam, sep_weight=0.5, temperature=0.3)
    apart = contrastive.supcon(FEATURES, LABELS, temperature=0.3, base_temperature=0.3)
    np.testing.assert_allclose(came, ldam(LOGITS, LABELS) + 0.5 * apart, rtol=1e-5)


def test_srat_leaves_out_what_is_masked_and_what_has_no_class():
    labels = np.where(np.arange(B) == 4, -1, LABELS)
    rest = KEPT & (labels >= 0)
    dirty = np.where(KEPT[:, None], FEATURES, np.nan)
    came = adversarial.srat_loss(LOGITS, dirty, labels, COUNTS, mask=KEPT)
    wanted = adversarial.srat_loss(LOGITS[rest], FEATURES[rest], labels[rest], COUNTS)
    np.testing.assert_allclose(came[rest], wanted, rtol=1e-5)
    np.testing.assert_array_equal(came[~rest], 0)


def test_no_gradient_flows_to_the_class_weights():
    def total(table):
        return adversarial.srat_loss(LOGITS, FEATURES, LABELS, table).sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(COUNTS)), 0)


def parameters():
    rng = np.random.default_rng(1)
    return {"first": jnp.asarray(rng.normal(size=(D, D))), "second": jnp.asarray(rng.normal(size=(D, C)))}


def under_attack(params, x):
    features = jnp.tanh(x @ params["first"])
    return features @ params["second"], features


def signals_fn(params, extra, batch, key):
    logits, features = under_attack(params, batch["x"])
    return LossOutput(signals={"attacked_logits": logits, "attacked_features": features})


def test_microbatches_learn_what_the_whole_batch_learns_and_weights_set_in_late(x64):
    counts = COUNTS.astype(np.float64)
    late = functools.partial(weights.deferred_class_weights, counts, start_step=2, beta=0.99)
    loss = adversarial.batch_srat(late, base_loss=functools.partial(classification.ldam, class_counts=counts))
    batch = {"x": FEATURES.astype(np.float64), "labels": LABELS, "mask": KEPT}
    optimizer, ends = optax.sgd(0.1), []
    for microbatches in (1, 4):
        step = jax.jit(make_step(signals_fn, optimizer, loss=loss, microbatches=microbatches))
        state = init_state(parameters(), None, optimizer, loss=loss)
        for _ in range(3):
            state, _ = step(state, batch)
        empty, _ = step(state, batch | {"mask": np.zeros(B, bool)})
        assert empty.loss_state.step == state.loss_state.step == 3
        ends.append(state.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), ends[1], ends[0])

    params = parameters()
    for number in range(3):

        def mean(params, number=number):
            table = late(number)
            losses = adversarial.srat_loss(
                *under_attack(params, batch["x"]),
                LABELS,
                table,
                base_loss=functools.partial(classification.ldam, class_counts=counts),
                mask=KEPT,
            )
            return reduce.weighted_mean(losses, where=KEPT)

        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(mean)(params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), ends[0], params)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attacked_logits": LOGITS[:, 0]}, "attacked_logits"),
        ({"attacked_features": FEATURES[:5]}, "attacked_features"),
        ({"labels": LABELS + 0.5}, "labels"),
        ({"class_weights": COUNTS[:2]}, "class_weights"),
        ({"class_weights": COUNTS[None]}, "class_weights"),
        ({"sep_weight": -1.0}, "sep_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"mask": KEPT[:3]}, "mask"),
        ({"base_loss": lambda logits, labels: jnp.zeros(())}, r"base_loss\(logits, labels\)"),
    ],
)
def test_a_mistake_in_srat_is_named(change, named):
    options = {"attacked_logits": LOGITS, "attacked_features": FEATURES, "labels": LABELS} | change
    arrays = [options.pop(name) for name in ("attacked_logits", "attacked_features", "labels")]
    with pytest.raises(ValueError, match=f"losses.adversarial.srat_loss: argument `{named}`"):
        adversarial.srat_loss(*arrays, **options)
