import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight.losses import adversarial, classification, distillation
from reweight.train import LossOutput, init_state, make_step

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "mtard.json").read_text())
TRAINING, ATTACK = GOLDEN["cases"][:3], GOLDEN["cases"][3]
CLOSE = {"rtol": GOLDEN["rtol"], "atol": 1e-11}  # the numbers are stored with 12 digits
KINDS = {
    "attacked_student_logits": "student_adv",
    "attacked_teacher_logits": "teacher_adv",
    "student_logits": "student_nat",
    "teacher_logits": "teacher_nat",
}
RNG = np.random.default_rng(0)
SIGNALS = {name: (2 * RNG.normal(size=(8, 4))).astype(np.float32) for name in KINDS}


def made(params):
    return distillation.batch_mtard(
        weight_rate=params["r_w"],
        temperature_rate=params["r_T"],
        min_temperature=params["T_lo"],
        max_temperature=params["T_hi"],
        eps=params["eps"],
    )


@pytest.mark.parametrize("case", TRAINING, ids=range(len(TRAINING)))
def test_losses_gradients_weights_and_temperatures_agree_with_the_golden_numbers(case, x64):
    loss, expected = made(case["params"]), case["expected"]
    state = loss.init()
    temperatures = np.ones(2)
    for step, total in enumerate(expected["total"]):
        signals = {name: jnp.array(case["inputs"][f"{kind}_by_step"][step]) for name, kind in KINDS.items()}
        attacked = distillation.mtard_kl(
            signals["attacked_student_logits"],
            signals["attacked_teacher_logits"],
            teacher_temperature=temperatures[0],
            eps=case["params"]["eps"],
        )
        np.testing.assert_allclose(attacked, expected["loss_adv_per_example"][step], **CLOSE)

        def whole(signals, state=state):
            values, new = loss.update(state, **signals)
            return jnp.mean(values), new

        (value, state), gradient = jax.value_and_grad(whole, has_aux=True)(signals)
        temperatures = state.teachers.temperatures
        np.testing.assert_allclose(value, total, **CLOSE)
        for name in ("adv", "nat"):
            came = gradient[{"adv": "attacked_student_logits", "nat": "student_logits"}[name]]
            np.testing.assert_allclose(came, expected[f"grad_student_{name}_by_step"][step], **CLOSE)
            assert not np.any(gradient[{"adv": "attacked_teacher_logits", "nat": "teacher_logits"}[name]])
        weights = [expected["w_adv"][step], expected["w_nat"][step]]
        np.testing.assert_allclose(state.losses.weights, weights, **CLOSE)
        np.testing.assert_allclose(temperatures, [expected["T_adv_after"][step], expected["T_nat_after"][step]])


def test_the_attack_agrees_with_the_golden_numbers(x64, monkeypatch):
    given = {name: jnp.array(value, float) for name, value in ATTACK["inputs"].items() if name != "labels"}
    labels = jnp.array(ATTACK["inputs"]["labels"])
    monkeypatch.setattr(jax.random, "normal", lambda *_: given["init_normal"])

    def loss(x):
        hidden = jnp.tanh(x @ given["W1"].T + given["b1"])
        return classification.cross_entropy(hidden @ given["W2"].T + given["b2"], labels)

    params = ATTACK["params"]
    sizes = {name: params[name] for name in ("eps", "step_size", "steps")}
    came = adversarial.pgd_attack(jax.random.key(0), loss, given["x"], init="normal", **sizes)
    np.testing.assert_allclose(came, ATTACK["expected"]["x_adv"], **CLOSE)


def test_without_a_floor_it_is_the_divergence_over_the_classes():
    student, teacher = SIGNALS["student_logits"], SIGNALS["teacher_logits"]
    came = distillation.mtard_kl(student, teacher, teacher_temperature=3.0, eps=0.0)
    wanted = distillation.kl_divergence(student, teacher, teacher_temperature=3.0) / 4
    np.testing.assert_allclose(came, wanted, rtol=1e-4, atol=1e-6)


def test_a_certain_teacher_gives_finite_losses_with_and_without_a_floor():
    teacher = np.float32([[1e4, -1e4, 0.0]])
    for eps in (0.0, 1e-5):
        value, gradient = jax.value_and_grad(lambda x, e=eps: jnp.sum(distillation.mtard_kl(x, teacher, eps=e)))(
            np.float32([[-1e4, 1e4, 0.0]])
        )
        np.testing.assert_allclose(value, 2e4 / 3, rtol=1e-5)
        assert np.all(np.isfinite(gradient))


def test_without_rates_two_divergences_are_averaged_for_ever():
    loss = distillation.batch_mtard(weight_rate=0.0, temperature_rate=0.0)
    state = loss.init()
    for scale in (1.0, 0.1, 3.0):
        signals = {name: scale * value for name, value in SIGNALS.items()}
        values, state = loss.update(state, **signals)
        pairs = [
            distillation.mtard_kl(signals[f"{kind}student_logits"], signals[f"{kind}teacher_logits"])
            for kind in ("attacked_", "")
        ]
        np.testing.assert_allclose(values, (pairs[0] + pairs[1]) / 2, rtol=1e-5)


def test_one_teacher_at_equal_inputs_is_distillation_from_it():
    signals = {name: SIGNALS[name.removeprefix("attacked_")] for name in KINDS}
    loss = distillation.batch_mtard()
    state = loss.init()
    for _ in range(3):
        values, state = loss.update(state, **signals)
        np.testing.assert_allclose(
            values, distillation.mtard_kl(signals["student_logits"], signals["teacher_logits"]), rtol=1e-5
        )
    np.testing.assert_array_equal(state.teachers.temperatures, 1)


def test_schedules_lower_the_rates():
    loss = distillation.batch_mtard(
        temperature_rate=optax.piecewise_constant_schedule(0.5, {2: 0.1}),
        weight_rate=optax.piecewise_constant_schedule(0.0, {}),
    )
    signals = {**SIGNALS, "attacked_teacher_logits": 0 * SIGNALS["teacher_logits"]}
    state, found = loss.init(), []
    for _ in range(4):
        _, state = loss.update(state, **signals)
        found.append(float(state.teachers.temperatures[1]))
    np.testing.assert_allclose(found, [1.5, 2.0, 2.05, 2.1], rtol=1e-6)


def test_a_step_in_microbatches_is_the_step_on_the_whole_batch():
    loss = distillation.batch_mtard(weight_rate=0.5, temperature_rate=0.1)
    batch = {"inputs": RNG.normal(size=(8, 3)).astype(np.float32), **SIGNALS, "mask": np.arange(8) != 5}
    params = {"kernel": RNG.normal(size=(3, 4)).astype(np.float32)}

    def forward(params, extra, batch, key):
        logits = batch["inputs"] @ params["kernel"]
        return LossOutput(signals={"student_logits": logits, "attacked_student_logits": 1.5 * logits})

    ends = []
    for microbatches in (1, 4):
        optimizer = optax.sgd(1.0)
        step = jax.jit(make_step(forward, optimizer, loss=loss, microbatches=microbatches))
        state = init_state(params, None, optimizer, None, jax.random.key(0), loss=loss)
        for _ in range(3):
            state, _ = step(state, batch)
        ends.append((state.params["kernel"], state.loss_state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)
    assert ends[0][1].losses.weights[0] != ends[0][1].losses.weights[1]
