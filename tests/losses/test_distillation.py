import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight.losses import classification, distillation

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (3 * RNG.normal(size=(2, 6, 5))).astype(np.float32)
MASK = np.array([1, 1, 0, 1, 0])
BOTH = pytest.mark.parametrize("loss", [distillation.soft_cross_entropy, distillation.kl_divergence])


def graded(loss, **hyper):
    return jax.vjp(lambda x: loss(x, TEACHER, **hyper), STUDENT)


def entropy(logits, temperature=1.0):
    log_probs = jax.nn.log_softmax(logits / temperature)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def test_soft_cross_entropy_is_cross_entropy_of_the_probabilities_of_the_teacher():
    wanted = classification.cross_entropy(STUDENT / 2, jax.nn.softmax(TEACHER / 3))
    came = distillation.soft_cross_entropy(STUDENT, TEACHER, temperature=2.0, teacher_temperature=3.0)
    np.testing.assert_allclose(came, wanted, rtol=1e-5)


def test_the_divergence_is_soft_cross_entropy_less_the_entropy_of_the_teacher_and_has_its_gradient():
    soft, soft_back = graded(distillation.soft_cross_entropy, temperature=4.0)
    divergence, back = graded(distillation.kl_divergence, temperature=4.0)
    np.testing.assert_allclose(divergence, soft - entropy(TEACHER, 4.0), atol=1e-6)
    np.testing.assert_allclose(back(jnp.ones(6))[0], soft_back(jnp.ones(6))[0], atol=1e-6)


def test_the_divergence_is_that_of_optax():
    wanted = optax.losses.kl_divergence(jax.nn.log_softmax(STUDENT), jax.nn.softmax(TEACHER))
    np.testing.assert_allclose(distillation.kl_divergence(STUDENT, TEACHER), wanted, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_the_difference_of_the_probabilities_over_the_temperature(loss, temperature):
    _, back = graded(loss, temperature=temperature)
    wanted = (jax.nn.softmax(STUDENT / temperature) - jax.nn.softmax(TEACHER / temperature)) / temperature
    np.testing.assert_allclose(back(jnp.ones(6))[0], wanted, atol=2e-6)


@BOTH
def test_the_temperature_of_the_teacher_is_that_of_the_student_unless_given(loss):
    np.testing.assert_array_equal(
        loss(STUDENT, TEACHER, temperature=3.0), loss(STUDENT, TEACHER, temperature=3.0, teacher_temperature=3.0)
    )
    assert np.all(loss(STUDENT, TEACHER, temperature=3.0) != loss(STUDENT, TEACHER, teacher_temperature=3.0))


def test_a_hot_softmax_matches_centred_logits():
    """At high temperature the loss times T squared is half the mean squared difference of centred logits."""
    centre = lambda x: x - x.mean(-1, keepdims=True)  # noqa: E731
    wanted = np.mean((centre(STUDENT) - centre(TEACHER)) ** 2, axis=-1) / 2
    came = 1e3**2 * distillation.kl_divergence(STUDENT, TEACHER, temperature=1e3)
    np.testing.assert_allclose(came, wanted, rtol=2e-2)


def test_a_cold_teacher_is_its_label():
    cold = distillation.soft_cross_entropy(STUDENT, TEACHER, teacher_temperature=1e-3)
    np.testing.assert_allclose(cold, classification.cross_entropy(STUDENT, TEACHER.argmax(-1)), rtol=1e-5)


def test_a_student_that_agrees_costs_nothing():
    value, back = jax.vjp(lambda x: distillation.kl_divergence(x, TEACHER), TEACHER + 5)
    np.testing.assert_allclose(value, 0, atol=1e-10)
    np.testing.assert_allclose(back(jnp.ones(6))[0], 0, atol=1e-6)


def test_the_divergence_of_near_neighbours_keeps_its_digits(x64):
    near = TEACHER + np.float32(1e-3) * STUDENT
    wide = distillation.kl_divergence(np.float64(near), np.float64(TEACHER))
    came = distillation.kl_divergence(near, TEACHER)
    assert came.dtype == jnp.float32
    assert np.all(came > 0)
    np.testing.assert_allclose(came, wide, rtol=1e-2)  # 1e-6 in size: float32 log-probabilities differ by 1e-7


@BOTH
def test_no_gradient_flows_to_the_teacher(loss):
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(loss(STUDENT, x)))(TEACHER), 0)


@BOTH
def test_the_softmaxes_run_over_the_classes_of_the_mask(loss):
    kept = MASK.astype(bool)
    hidden = np.where(kept, STUDENT, np.nan)
    came, back = jax.vjp(lambda x: loss(x, TEACHER, temperature=2.0, class_mask=MASK), hidden)
    np.testing.assert_allclose(came, loss(STUDENT[:, kept], TEACHER[:, kept], temperature=2.0), rtol=1e-5)
    gradient = back(jnp.ones(6))[0]
    np.testing.assert_array_equal(gradient[:, ~kept], 0)
    assert np.all(gradient[:, kept] != 0)
    nothing, back = jax.vjp(lambda x: loss(x, TEACHER, class_mask=np.zeros(5)), hidden)
    np.testing.assert_array_equal(nothing, 0)
    np.testing.assert_array_equal(back(jnp.ones(6))[0], 0)


@BOTH
def test_probabilities_that_vanish_cost_what_they_should(loss):
    student, teacher = np.float32([[1e4, -1e4, 0.0]]), np.float32([[-1e4, 1e4, 0.0]])
    value, back = jax.vjp(lambda x: loss(x, teacher), student)
    np.testing.assert_allclose(value, 2e4)
    np.testing.assert_allclose(back(jnp.ones(1))[0], [[1, -1, 0]])
