import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled import drawn, golden, softmax, with_gradient

from reweight import schedules
from reweight.losses import classification

*ELR, FIRST_PLUS, SECOND_PLUS, RAMP = golden("elr")
PS_KD = golden("ps_kd")[:2]
CLOSE = {"rtol": 1e-8, "atol": 1e-11}


def signals(seed=0, n=6, **more):
    logits, labels = drawn(seed, n)
    return {"logits": logits, "labels": labels, "indices": np.arange(n)} | more


def updated(loss, state, **given):
    """Losses, the gradient of their mean in the logits, and the next state."""
    rest = {name: array for name, array in given.items() if name != "logits"}
    losses, pullback, state = jax.vjp(
        lambda x: loss.update(state, logits=x, **rest), jnp.asarray(given["logits"]), has_aux=True
    )
    return losses, pullback(jnp.full_like(losses, 1 / losses.size))[0], state


@pytest.mark.parametrize("case", ELR, ids=["plain", "clipped"])
def test_elr_agrees_with_the_official_code_over_three_steps(case, x64):
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    loss = classification.elr(params["n_examples"], params["n_classes"], decay=params["beta"], weight=params["lam"])
    state = loss.init()
    for step in range(3):
        given = {name: jnp.array(inputs[f"{name}_by_step"][step]) for name in ("logits", "labels", "indices")}
        losses, grad, state = updated(loss, state, **given)
        np.testing.assert_allclose(np.mean(losses), expected["loss_mean_by_step"][step], **CLOSE)
        np.testing.assert_allclose(grad, expected["grad_logits_by_step"][step], **CLOSE)
        np.testing.assert_allclose(state.targets, expected["target_table_by_step"][step], **CLOSE)


@pytest.mark.parametrize("case", [FIRST_PLUS, SECOND_PLUS], ids=["ten classes", "a hundred classes"])
def test_elr_plus_agrees_with_the_official_code_over_two_steps(case, x64):
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    ramp = schedules.sigmoid_rampup(params["rampup_length"])
    loss = classification.elr_plus(
        params["n_examples"],
        params["n_classes"],
        decay=params["beta"],
        weight=lambda step: params["lam"] * ramp(step),
        filter_labels=bool(params["renormalise_targets"]),
    )
    state = loss.init()._replace(step=jnp.int32(params["first_step"]))
    for step in range(2):
        indices, mixed = (jnp.array(inputs[f"{name}_by_step"][step]) for name in ("indices", "mix_index"))
        share = inputs["mix_lambda_by_step"][step]
        labels = jax.nn.one_hot(jnp.array(inputs["labels_by_step"][step]), params["n_classes"])
        given = {
            "indices": indices,
            "mix_indices": indices[mixed],
            "logits": jnp.array(inputs["logits_mix_by_step"][step]),
            "memory_logits": jnp.array(inputs["ema_logits_by_step"][step]),
            "labels": share * labels + (1 - share) * labels[mixed],
            "mix_share": jnp.full(3, share),
        }
        remembered, _ = loss.statistics(state, **given)
        losses, grad, state = updated(loss, state, **given)
        np.testing.assert_allclose(np.mean(losses), expected["loss_mean_by_step"][step], **CLOSE)
        if "q_by_step" in expected:
            np.testing.assert_allclose(grad, expected["grad_logits_by_step"][step], **CLOSE)
            np.testing.assert_allclose(remembered.targets, expected["q_by_step"][step], **CLOSE)
        else:
            np.testing.assert_allclose(grad[0], expected["grad_logits_row0_by_step"][step], **CLOSE)
    if "history_last" in expected:
        np.testing.assert_allclose(state.targets, expected["history_last"], **CLOSE)
    else:
        np.testing.assert_allclose(state.targets.sum(-1), expected["history_row_sums"], **CLOSE)


def test_elr_plus_filters_labels_that_hardly_anything_speaks_for():
    """However improbable both labels of a mixture are: what they share is decided between the two."""
    loss = classification.elr_plus(2, 3, decay=0.0, weight=0.0, filter_labels=True)
    given = {"labels": np.float32([[0, 0.5, 0.5], [0, 0.25, 0.75]]), "indices": np.arange(2)}
    remembered = np.float32([[60, 0, 1], [60, 1, 0]])
    logits = np.float32([[1, 2, 4], [1, 2, 4]])
    came, _ = loss.update(loss.init(), logits=logits, memory_logits=remembered, **given)
    shares = given["labels"] * np.exp(np.float32([[0, 0, 1], [0, 1, 0]]))
    shares /= shares.sum(-1, keepdims=True)
    np.testing.assert_allclose(came, -np.sum(shares * np.log(softmax(logits)), -1), rtol=1e-5)
    unseen, _ = loss.update(loss.init(), logits=logits, memory_logits=np.float32([[900, 0, 1]] * 2), **given)
    np.testing.assert_array_equal(unseen, 0)


@pytest.mark.parametrize("case", PS_KD, ids=["four epochs", "two epochs"])
def test_ps_kd_agrees_with_the_official_code_over_its_epochs(case, x64):
    params, inputs, expected = case["params"], case["inputs"], case["expected"]
    labels, epochs = jnp.array(inputs["labels"]), params["total_epochs"]
    share = schedules.epoch_ramp(params["alpha_T"], epochs, 1)
    loss = classification.ps_kd(len(labels), len(inputs["logits_by_epoch"][0][0]), share=share)
    state = loss.init()
    for epoch in range(epochs):
        given = {
            "logits": jnp.array(inputs["logits_by_epoch"][epoch]),
            "labels": labels,
            "indices": jnp.arange(len(labels)),
        }
        remembered, _ = loss.statistics(state, **given)
        np.testing.assert_allclose(remembered.strength, expected["alpha_by_epoch"][epoch], **CLOSE)
        targets = classification.progressive_targets(labels, remembered.targets, share=remembered.strength)
        np.testing.assert_allclose(targets, expected["targets_by_epoch"][epoch], **CLOSE)
        losses, grad, state = updated(loss, state, **given)
        np.testing.assert_allclose(losses, expected["loss_per_example_by_epoch"][epoch], **CLOSE)
        np.testing.assert_allclose(grad, expected["grad_logits_by_epoch"][epoch], **CLOSE)


def test_elr_without_weight_or_without_memory_is_cross_entropy():
    given = signals()
    wanted = classification.cross_entropy(given["logits"], given["labels"])
    for hyper in ({"weight": 0.0}, {"decay": 1.0}):
        loss = classification.elr(6, 5, **hyper)
        _, state = loss.update(loss.init(), **given)
        came, _ = loss.update(state, **given)
        np.testing.assert_allclose(came, wanted, rtol=1e-6)


def test_elr_without_decay_rewards_confidence():
    given = signals(1)
    came, _ = classification.elr(6, 5, decay=0.0, weight=2.0).update(classification.elr(6, 5).init(), **given)
    probs = softmax(given["logits"])
    wanted = -np.log(probs[np.arange(6), given["labels"]]) + 2 * np.log(1 - np.sum(probs**2, -1))
    np.testing.assert_allclose(came, wanted, rtol=1e-4)


def test_the_gradient_of_the_penalty_is_the_published_one():
    logits, _ = drawn(2)
    probs, targets = softmax(logits), np.random.default_rng(0).dirichlet(np.ones(5), 6) * 0.8
    _, grad = with_gradient(lambda x, t: classification.early_learning_penalty(x, t), logits, targets)
    toward = np.sum((targets[:, None] - targets[:, :, None]) * probs[:, None], -1)
    wanted = probs / (1 - np.sum(probs * targets, -1, keepdims=True)) * toward
    np.testing.assert_allclose(grad, wanted, rtol=1e-3, atol=1e-6)


def test_the_penalty_falls_as_the_prediction_agrees_and_ends_at_the_floor():
    targets = np.eye(3)[[0]]
    values = [classification.early_learning_penalty(np.float32([[z, 0, 0]]), targets)[0] for z in (-9, 0, 2, 5, 50)]
    assert np.all(np.diff(values) < 0)
    np.testing.assert_allclose(values[-1], np.log(1e-4), rtol=1e-4)
    np.testing.assert_array_equal(classification.early_learning_penalty(np.ones((2, 3)), np.zeros((2, 3))), 0)


def test_with_elr_a_wrong_label_does_not_undo_what_was_learnt_early():
    """An example whose prediction was right for long: cross-entropy pulls it to the wrong label, ELR holds it."""
    logits, wrong = np.float32([[4.0, 0.0, 0.0]]), np.array([1])
    loss = classification.elr(1, 3)
    state = loss.init()
    update = jax.jit(loss.update)
    for _ in range(15):
        _, state = update(state, logits=logits, labels=np.array([0]), indices=np.array([0]))
    _, grad, _ = updated(loss, state, logits=logits, labels=wrong, indices=np.array([0]))
    _, plain = with_gradient(classification.cross_entropy, logits, wrong)
    assert plain[0, 0] > 0.9
    assert grad[0, 0] < 0


def test_ps_kd_starts_with_the_labels_and_without_a_share_stays_there():
    given = signals(3)
    wanted = classification.cross_entropy(given["logits"], given["labels"])
    for share, batches in ((0.8, 1), (0.0, 3)):
        loss = classification.ps_kd(6, 5, share=share)
        state = loss.init()
        for _ in range(batches):
            came, state = loss.update(state, **given)
        np.testing.assert_allclose(came, wanted, rtol=1e-6)


def test_a_prediction_that_knows_nothing_smooths_labels():
    logits, labels = drawn(4)
    targets = classification.progressive_targets(labels, np.full((6, 5), 0.2, np.float32), share=0.3)
    np.testing.assert_allclose(targets, 0.7 * np.eye(5)[labels] + 0.06, rtol=1e-6)
    soft = classification.progressive_targets(np.eye(5, dtype=np.float32)[labels], softmax(logits), share=0.3)
    np.testing.assert_allclose(soft, classification.progressive_targets(labels, softmax(logits), share=0.3), rtol=1e-6)


def test_ps_kd_turns_to_the_examples_that_got_worse():
    """Its gradient on the label's logit is cross-entropy's times 1 - a (1 - P_y) / (1 - p_y)."""
    given, before = signals(5), drawn(6)[0]
    loss = classification.ps_kd(6, 5, share=0.4)
    _, state = loss.update(loss.init(), **given | {"logits": before})
    _, grad, _ = updated(loss, state, **given)
    own = np.arange(6), given["labels"]
    p, past = softmax(given["logits"])[own], softmax(before)[own]
    np.testing.assert_allclose(6 * grad[own], -(1 - p) * (1 - 0.4 * (1 - past) / (1 - p)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("read", ["before", "after"])
def test_the_memory_is_a_moving_average_of_the_examples_own_predictions(read):
    seen = []

    def loss(logits, labels, targets, strength):
        seen.append(targets)
        return jnp.zeros(len(logits))

    memory, past = classification.target_memory(loss, 6, 5, decay=0.75, read=read), np.zeros((6, 5))
    state = memory.init()
    for seed in range(3):
        given = signals(seed)
        _, state = memory.update(state, **given)
        new = 0.75 * past + 0.25 * softmax(given["logits"])
        np.testing.assert_allclose(seen[-1], past if read == "before" else new, rtol=1e-5, atol=1e-7)
        past = new
    np.testing.assert_allclose(state.targets, past, rtol=1e-5)
    np.testing.assert_allclose(state.targets.sum(-1), 1 - 0.75**3, rtol=1e-5)
    part = {name: array[2:4] for name, array in signals(9).items()}
    _, after = memory.update(state, **part)
    assert np.all(np.any(np.asarray(after.targets) != np.asarray(state.targets), axis=-1) == (np.arange(6) // 2 == 1))


def test_an_index_outside_of_the_table_counts_as_new_and_is_not_stored():
    loss, given = classification.elr(6, 5), signals(7)
    _, state = loss.update(loss.init(), **given)
    came, after = loss.update(state, **given | {"indices": np.array([-1, 6, 100, 3, 4, 5])})
    fresh, _ = loss.update(loss.init(), **given)
    np.testing.assert_allclose(came[:3], fresh[:3], rtol=1e-6)
    np.testing.assert_array_equal(after.targets[:3], state.targets[:3])


def test_a_schedule_counts_the_batches_that_hold_something():
    loss, given = classification.elr(6, 5, weight=lambda step: 2.0 * step), signals(8)
    state = loss.init()
    strengths = []
    for mask in (np.ones(6), np.zeros(6), np.ones(6)):
        remembered, state = loss.statistics(state, **given, mask=mask)
        strengths.append(float(remembered.strength))
    assert strengths == [0.0, 2.0, 2.0]
    assert state.step == 2


def test_elr_plus_learns_labels_or_their_mixtures():
    given, loss = signals(9), classification.elr_plus(6, 5)
    hard, _ = loss.update(loss.init(), **given)
    soft, _ = loss.update(loss.init(), **given | {"labels": np.eye(5, dtype=np.float32)[given["labels"]]})
    np.testing.assert_allclose(hard, soft, rtol=1e-5)
    unmixed = given | {"mix_indices": np.arange(6)[::-1], "mix_share": np.ones(6, np.float32)}
    np.testing.assert_allclose(loss.update(loss.init(), **unmixed)[0], hard, rtol=1e-6)


def test_a_narrow_table_keeps_its_dtype():
    loss, given = classification.elr(6, 5, dtype=jnp.bfloat16), signals(10)
    came, state = loss.update(loss.init(), **given)
    assert state.targets.dtype == jnp.bfloat16
    np.testing.assert_allclose(came, classification.elr(6, 5).update(classification.elr(6, 5).init(), **given)[0])


def test_a_static_mistake_is_named():
    given = signals()
    loss = classification.elr(6, 5)
    for call, named in (
        (lambda: classification.elr(0, 5), "num_examples"),
        (lambda: classification.elr(6, 0), "num_classes"),
        (lambda: classification.elr(6, 5, weight=-1.0), "weight"),
        (lambda: classification.elr_plus(6, 5, floor=0.0), "floor"),
        (lambda: classification.ps_kd(6, 5, share=1.5), "share"),
        (lambda: classification.target_memory(lambda *_: 0, 6, 5, read="never"), "read"),
        (lambda: loss.update(loss.init(), logits=given["logits"], labels=given["labels"]), "indices"),
        (lambda: loss.update(loss.init(), **given | {"logits": given["logits"][:, :4]}), "logits"),
        (lambda: loss.update(loss.init(), **given, mix_indices=np.arange(6)), "mix_share"),
    ):
        with pytest.raises(ValueError, match=f"argument `{named}`"):
            call()
