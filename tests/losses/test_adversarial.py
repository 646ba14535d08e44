import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import weights
from reweight.losses import adversarial

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "doubly_robust_at.json").read_text())["cases"][7]
B, D = 5, 3
SIGNS = np.float32([1, -1, 1, 1, -1])
DIRECTION = np.float32([0.5, -2.0, 1.0])


def inputs(seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0.2, 0.8, size=(B, D)), jnp.float32)


def linear(x, signs=SIGNS):
    """Logistic loss of a linear score."""
    return jax.nn.softplus(-signs * (x @ DIRECTION))


def curved(x):
    """A loss with many local maxima, each a function of its own example."""
    return jnp.sum(jnp.sin(7 * x) + x * jnp.roll(x, 1, axis=-1), axis=-1)


def attack(loss_fn, x, **options):
    """Compiled whole, which is quicker than operation by operation."""
    return jax.jit(lambda x: adversarial.pgd_attack(jax.random.key(0), loss_fn, x, **options))(x)


FAST = {"steps": 1, "init": "none", "clip": None}


def test_fast_gradient_sign_is_the_exact_maximum_for_a_linear_model():
    x, eps = inputs(), 0.1
    attacked = attack(linear, x, eps=eps, step_size=eps, norm="linf", **FAST)
    np.testing.assert_allclose(attacked - x, -eps * SIGNS[:, None] * np.sign(DIRECTION), rtol=1e-5)
    worst = jax.nn.softplus(-SIGNS * (x @ DIRECTION) + eps * np.abs(DIRECTION).sum())
    np.testing.assert_allclose(linear(attacked), worst, rtol=1e-5)


def test_fast_gradient_is_the_exact_maximum_in_the_euclidean_ball():
    x, eps = inputs(), 0.3
    attacked = attack(linear, x, eps=eps, step_size=eps, norm="l2", **FAST)
    worst = jax.nn.softplus(-SIGNS * (x @ DIRECTION) + eps * np.linalg.norm(DIRECTION))
    np.testing.assert_allclose(linear(attacked), worst, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_many_small_steps_reach_the_maximum_of_a_linear_model_from_any_start(norm):
    x, eps = inputs(), 0.2
    one = attack(linear, x, eps=eps, step_size=eps, norm=norm, **FAST)
    for init in ("uniform", "normal", "none"):
        many = attack(linear, x, eps=eps, step_size=0.1, steps=40, norm=norm, init=init, clip=None)
        np.testing.assert_allclose(linear(many), linear(one), rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("init", ["uniform", "normal", "none"])
def test_the_attack_stays_in_the_ball_and_in_the_range_of_the_data(norm, init):
    x, eps = inputs(), 0.3
    attacked = attack(curved, x, eps=eps, step_size=0.25, steps=7, norm=norm, init=init, clip=(0.1, 0.9))
    assert np.all((np.asarray(attacked) >= 0.1) & (np.asarray(attacked) <= 0.9))
    size = np.linalg.norm(attacked - x, axis=-1, ord=np.inf if norm == "linf" else 2)
    assert np.all(size <= eps * (1 + 1e-5))
    assert np.mean(curved(attacked)) > np.mean(curved(x))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_on_an_example_does_not_depend_on_the_others(norm):
    x = inputs()
    run = jax.jit(lambda x: attack(curved, x, eps=0.3, step_size=0.1, steps=5, norm=norm, init="none"))
    alone = [run(x[i : i + 1])[0] for i in range(B)]
    np.testing.assert_allclose(run(x), np.stack(alone), rtol=1e-5)


def test_no_steps_leave_the_start():
    x = inputs()
    for eps in (0.0, 0.3):
        np.testing.assert_array_equal(attack(curved, x, eps=eps, step_size=0.1, steps=0, init="none"), x)
    drawn = attack(curved, x, eps=0.3, step_size=0.1, steps=0, init="normal", clip=None) - x
    assert 1e-4 < np.std(drawn) < 1e-2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_uniform_start_fills_the_ball(norm):
    x = jnp.zeros((4000, 2))
    start = np.asarray(attack(curved, x, eps=2.0, step_size=0.0, steps=0, norm=norm, clip=None))
    np.testing.assert_allclose(start.mean(0), 0, atol=0.1)
    radius = np.abs(start).max(-1) if norm == "linf" else np.linalg.norm(start, axis=-1)
    # In a ball of two dimensions the share of points within r of the centre is (r / eps)^2.
    np.testing.assert_allclose(np.mean(radius < 1.0), 0.25, atol=0.03)


def test_a_radius_of_zero_leaves_the_input():
    x = inputs()
    np.testing.assert_allclose(attack(curved, x, eps=0.0, step_size=0.1, steps=3), x, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_flat_loss_and_a_zero_gradient_move_nothing(norm):
    x = inputs()
    flat = attack(lambda x: 0 * jnp.sum(x, -1), x, eps=0.3, step_size=0.1, steps=2, norm=norm, init="none")
    np.testing.assert_allclose(flat, x, atol=1e-7)


def test_the_attack_keeps_the_dtype_and_any_shape_of_the_input():
    x = jnp.full((2, 4, 4, 1), 0.5, jnp.bfloat16)
    attacked = attack(lambda x: jnp.sum(x**2, (1, 2, 3)), x, eps=0.25, step_size=0.125, steps=2, norm="l2")
    assert attacked.dtype == jnp.bfloat16
    assert attacked.shape == x.shape


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": -0.1}, "eps"),
        ({"step_size": float("inf")}, "step_size"),
        ({"steps": 1.5}, "steps"),
        ({"norm": "l1"}, "norm"),
        ({"init": "zeros"}, "init"),
        ({"clip": (1.0, 0.0)}, "clip"),
        ({"key": None}, "key"),
        ({"x": jnp.ones(())}, "x"),
        ({"x": jnp.ones((B, D), int)}, "x"),
        ({"loss_fn": lambda x: jnp.sum(x)}, r"loss_fn\(x\)"),
    ],
)
def test_a_mistake_in_an_attack_is_named(change, named):
    options = {"key": jax.random.key(0), "loss_fn": curved, "x": inputs(), "eps": 0.1, "step_size": 0.1, "steps": 2}
    options |= change
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        adversarial.pgd_attack(options.pop("key"), options.pop("loss_fn"), options.pop("x"), **options)


def golden_problem():
    inputs, params = GOLDEN["inputs"], GOLDEN["params"]

    def loss_fn(theta, x):
        return jax.nn.softplus(-inputs["y"] * jnp.tanh(x @ theta.T) @ jnp.array(inputs["v"]))

    theta, x, delta = (jnp.array(inputs[key]) for key in ("theta", "x", "delta"))
    return loss_fn, theta, x[None], delta[None], {"eps": params["eps"], "barrier": params["c"]}


def test_the_barrier_objective_and_its_derivatives_agree_with_the_golden_numbers(x64):
    loss_fn, theta, x, delta, box = golden_problem()
    expected = GOLDEN["expected"]

    def objective(delta):
        return adversarial.barrier_objective(loss_fn(theta, x + delta), delta, **box)[0]

    value, grad = jax.jit(jax.value_and_grad(objective))(delta)
    np.testing.assert_allclose(value, expected["barrier_objective"], rtol=1e-9)
    np.testing.assert_allclose(grad[0], expected["grad_delta_barrier"], rtol=1e-9)
    hessian = jax.jit(jax.hessian(objective))(delta).reshape(D, D)
    np.testing.assert_allclose(hessian, expected["hessian_delta_barrier"], rtol=1e-9)


@pytest.mark.parametrize("mode", ["danskin", "relu", "cg"])
def test_hypergradients_agree_with_the_golden_numbers(mode, x64):
    loss_fn, theta, x, delta, box = golden_problem()
    run = jax.jit(functools.partial(adversarial.hypergradient, loss_fn, **box, mode=mode))
    grad = run(theta, x, delta)
    np.testing.assert_allclose(grad, GOLDEN["expected"][f"hypergrad_{mode}"], rtol=1e-9)


SMOOTH = {"eps": 0.5, "barrier": 0.3}


def network(theta, x):
    return jax.nn.softplus(-SIGNS[: len(x)] * (jnp.tanh(x @ theta["hidden"]) @ theta["out"]))


def parameters():
    rng = np.random.default_rng(3)
    return {"hidden": jnp.asarray(rng.normal(size=(D, 4))), "out": jnp.asarray(rng.normal(size=4))}


def best_response(theta, x):
    """The attack to many digits: gradient descent on a problem that the barrier makes strongly convex enough."""
    return adversarial.barrier_attack(lambda z: network(theta, z), x, **SMOOTH, steps=1500, optimizer=optax.sgd(0.1))


def test_the_exact_hypergradient_is_the_derivative_through_the_attack(x64):
    theta, x, w = parameters(), inputs().astype(jnp.float64), jnp.array([0.5, 0.1, 0.2, 0.15, 0.05])
    outer = jax.jit(lambda theta: jnp.sum(w * network(theta, x + best_response(theta, x))))
    exact = jax.jit(
        lambda theta: adversarial.hypergradient(
            network, theta, x, best_response(theta, x), **SMOOTH, mode="cg", weights=w
        )
    )
    grad = exact(theta)
    rng = np.random.default_rng(4)
    for _ in range(3):
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), theta)
        ahead, behind = (jax.tree.map(lambda a, b, s=s: a + s * 1e-5 * b, theta, direction) for s in (1, -1))
        numeric = (outer(ahead) - outer(behind)) / 2e-5
        np.testing.assert_allclose(optax.tree.vdot(grad, direction), numeric, rtol=1e-5)


def test_a_loss_without_curvature_makes_the_relu_form_exact(x64):
    x, delta = inputs().astype(jnp.float64), 0.1 * inputs(1).astype(jnp.float64)

    def score(theta, x):
        return x @ theta

    theta = jnp.asarray(DIRECTION, jnp.float64)
    relu, cg = (adversarial.hypergradient(score, theta, x, delta, **SMOOTH, mode=mode) for mode in ("relu", "cg"))
    np.testing.assert_allclose(relu, cg, rtol=1e-10)
    danskin = adversarial.hypergradient(score, theta, x, delta, **SMOOTH, mode="danskin")
    np.testing.assert_allclose(danskin, jnp.mean(x + delta, 0), rtol=1e-10)
    assert np.max(np.abs(relu - danskin)) > 1e-2


def test_the_hypergradient_of_a_batch_is_the_sum_of_those_of_its_examples(x64):
    theta, x, delta = parameters(), inputs().astype(jnp.float64), 0.1 * inputs(1).astype(jnp.float64)

    def positive(theta, x):
        return jax.nn.softplus(jnp.tanh(x @ theta["hidden"]) @ theta["out"])

    for mode in ("danskin", "relu", "cg"):
        run = jax.jit(functools.partial(adversarial.hypergradient, positive, **SMOOTH, mode=mode))
        whole = run(theta, x, delta, weights=jnp.ones(B))
        parts = [run(theta, x[i : i + 1], delta[i : i + 1]) for i in range(B)]
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), whole, total)


def test_robust_weights_are_the_weights_of_a_doubly_robust_step(x64):
    theta, x = parameters(), inputs().astype(jnp.float64)
    delta = 0.1 * inputs(1).astype(jnp.float64)

    @jax.jit
    def step(theta):
        w = weights.kl_dro_weights(network(theta, x + delta), temperature=0.2) / B
        return adversarial.hypergradient(network, theta, x, delta, **SMOOTH, mode="danskin", weights=w)

    direct = jax.jit(jax.grad(lambda theta: weights.kl_dro_value(network(theta, x + delta), temperature=0.2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), step(theta), direct(theta))


def test_the_barrier_attack_ends_where_its_objective_is_flat_inside_the_box(x64):
    theta, x = parameters(), inputs().astype(jnp.float64)
    delta = jax.jit(best_response)(theta, x)
    assert np.all(np.abs(delta) < SMOOTH["eps"])

    def total(delta):
        return jnp.sum(adversarial.barrier_objective(network(theta, x + delta), delta, **SMOOTH))

    np.testing.assert_allclose(jax.jit(jax.grad(total))(delta), 0, atol=1e-8)
    assert np.all(network(theta, x + delta) >= network(theta, x))


def test_a_weaker_barrier_comes_closer_to_the_worst_case():
    theta, x = parameters(), inputs()
    worst = attack(lambda z: network(theta, z), x, eps=0.5, step_size=0.05, steps=40, clip=None)
    gaps = []
    for barrier in (1.0, 0.1, 0.01):
        delta = adversarial.barrier_attack(
            lambda z: network(theta, z), x, eps=0.5, barrier=barrier, steps=300, optimizer=optax.adam(0.02)
        )
        gaps.append(float(jnp.mean(network(theta, worst) - network(theta, x + delta))))
    assert gaps[0] > gaps[1] > gaps[2] > -1e-4
    assert gaps[2] < 0.3 * gaps[0]


def test_steps_that_leave_the_box_are_put_back_inside():
    x = inputs()
    delta = adversarial.barrier_attack(
        curved, x, **SMOOTH, steps=5, optimizer=optax.sgd(1e3), delta=2 * jnp.ones((B, D))
    )
    assert np.all(np.abs(delta) < 0.5)
    assert np.all(np.isfinite(delta))


def test_the_barrier_is_finite_on_and_outside_the_box():
    delta = jnp.array([[0.5, 0.0], [-3.0, 0.1]])
    value, grad = jax.value_and_grad(
        lambda d: jnp.sum(adversarial.barrier_objective(jnp.zeros(2), d, eps=0.5, barrier=0.1))
    )(delta)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


ATTACKS = {
    "pgd": lambda loss_fn, x: adversarial.pgd_attack(
        None, loss_fn, x, eps=0.3, step_size=0.1, steps=2, norm="l2", init="none", clip=None
    ),
    "barrier": lambda loss_fn, x: adversarial.barrier_attack(loss_fn, x, **SMOOTH, steps=2, optimizer=optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_gradient_flows_through_an_attack_to_inputs_or_parameters(name):
    def attacked(theta, x):
        return jnp.sum(ATTACKS[name](lambda z: network(theta, z), x))

    grads = jax.jit(jax.grad(attacked, argnums=(0, 1)))(parameters(), inputs())
    for grad in jax.tree.leaves(grads):
        np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": 0.0}, "eps"),
        ({"barrier": 0.0}, "barrier"),
        ({"mode": "exact"}, "mode"),
        ({"solver_steps": 0}, "solver_steps"),
        ({"weights": jnp.ones(2)}, "weights"),
        ({"delta": jnp.ones((B, D + 1))}, "delta"),
    ],
)
def test_a_mistake_in_a_hypergradient_is_named(change, named):
    options = {"delta": jnp.zeros((B, D)), **SMOOTH} | change
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        adversarial.hypergradient(network, parameters(), inputs(), options.pop("delta"), **options)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"eps": -1.0}, "eps"), ({"barrier": 0}, "barrier"), ({"steps": -1}, "steps"), ({"delta": jnp.ones(2)}, "delta")],
)
def test_a_mistake_in_a_barrier_attack_is_named(change, named):
    options = {**SMOOTH, "steps": 1, "optimizer": optax.sgd(0.1)} | change
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        adversarial.barrier_attack(curved, inputs(), **options)


def test_losses_that_do_not_fit_the_attacks_are_named():
    with pytest.raises(ValueError, match="argument `losses`"):
        adversarial.barrier_objective(jnp.ones(2), jnp.zeros((B, D)), eps=0.1, barrier=0.1)
