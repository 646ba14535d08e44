import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trajectories import cases

from reweight import optim

STEPS = cases("csfa")[2:4]
RNG = np.random.default_rng(0)
HERE, THERE = ({"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=3)} for _ in range(2))
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}


def tree(case, name):
    return {"W": case["expected"][f"{name}_W"], "b": case["expected"][f"{name}_b"]}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def quadratic(params):
    """The gradient of a bowl that is steeper in some directions than in others."""
    return jax.tree.map(lambda x: x * jnp.arange(1.0, 1 + x.size).reshape(x.shape), params)


@pytest.mark.parametrize("case", STEPS, ids=range(2))
def test_perturbation_and_direction_agree_with_the_official_code(case, x64):
    params, tolerance = case["params"], {"rtol": 1e-8, "atol": 1e-11}
    here, there = tree(case, "grad_at_theta"), tree(case, "grad_at_perturbed")
    came = optim.ascent_step(here, rho=params["rho"], eps=params["perturb_eps"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), came, tree(case, "perturbation"))
    came = optim.surrogate_gap_gradient(here, there, gap_weight=params["alpha_gap"], eps=params["perturb_eps"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), came, tree(case, "direction"))


def test_the_ascent_has_its_length_along_the_gradient():
    came = optim.ascent_step(HERE, rho=0.3)
    np.testing.assert_allclose(flat(came), 0.3 * flat(HERE) / np.linalg.norm(flat(HERE)), rtol=1e-5)
    np.testing.assert_array_equal(flat(optim.ascent_step(jax.tree.map(np.zeros_like, HERE))), 0)


def test_what_is_taken_away_is_orthogonal_to_the_perturbed_gradient():
    came = flat(optim.surrogate_gap_gradient(HERE, THERE, gap_weight=0.7))
    removed = (flat(THERE) - came) / 0.7
    assert abs(removed @ flat(THERE)) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(removed - flat(HERE)) ** 2 + np.linalg.norm(removed) ** 2,
                               np.linalg.norm(flat(HERE)) ** 2, rtol=1e-5)  # fmt: skip


def test_without_gap_it_is_the_perturbed_gradient_and_along_it_nothing_is_taken_away():
    np.testing.assert_allclose(flat(optim.surrogate_gap_gradient(HERE, THERE, gap_weight=0.0)), flat(THERE), rtol=1e-6)
    parallel = jax.tree.map(lambda leaf: 3 * leaf, HERE)
    np.testing.assert_allclose(flat(optim.surrogate_gap_gradient(parallel, HERE)), flat(HERE), rtol=1e-5)


def test_without_radius_it_is_the_inner_optimizer():
    inner = optax.adam(0.1)
    plain, aware = inner, optim.sharpness_aware(inner, rho=0.0)
    p, q, s, t = PARAMS, PARAMS, plain.init(PARAMS), aware.init(PARAMS)
    for _ in range(3):
        updates, s = plain.update(quadratic(p), s, p)
        p = optax.apply_updates(p, updates)
        updates, t = aware.update(quadratic(q), t, q, grad_fn=quadratic)
        q = optax.apply_updates(q, updates)
    np.testing.assert_allclose(flat(p), flat(q), rtol=1e-5)


def test_without_gap_it_is_the_sam_of_optax():
    sam = optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), opaque_mode=True, reset_state=True
    )
    wanted, _ = sam.update(quadratic(PARAMS), sam.init(PARAMS), PARAMS, grad_fn=lambda params, _: quadratic(params))
    aware = optim.sharpness_aware(optax.sgd(0.1), rho=0.05, gap_weight=0.0)
    came, _ = aware.update(quadratic(PARAMS), aware.init(PARAMS), PARAMS, grad_fn=quadratic)
    np.testing.assert_allclose(flat(came), flat(wanted), rtol=1e-5)


def test_a_perturbed_gradient_of_zero_is_no_step_and_leaves_the_state():
    aware = optim.sharpness_aware(optax.adamw(0.1, weight_decay=0.5))
    state = aware.init(PARAMS)
    updates, moved = jax.jit(
        lambda p: aware.update(quadratic(p), state, p, grad_fn=lambda q: jax.tree.map(jnp.zeros_like, q))
    )(PARAMS)
    np.testing.assert_array_equal(flat(updates), 0)
    jax.tree.map(np.testing.assert_array_equal, moved, state)


def test_other_extra_arguments_reach_the_inner_optimizer():
    def init(params):
        return ()

    def update(updates, state, params=None, *, value, **_):
        return jax.tree.map(lambda leaf: value + 0 * leaf, updates), state

    aware = optim.sharpness_aware(optax.GradientTransformationExtraArgs(init, update))
    updates, _ = aware.update(quadratic(PARAMS), (), PARAMS, grad_fn=quadratic, value=3.0)
    np.testing.assert_array_equal(flat(updates), 3)


def test_a_missing_gradient_function_is_named():
    aware = optim.sharpness_aware(optax.sgd(0.1))
    with pytest.raises(ValueError, match="argument `grad_fn`"):
        aware.update(PARAMS, aware.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="argument `grad_fn"):
        aware.update(PARAMS, aware.init(PARAMS), PARAMS, grad_fn=lambda params: {"w": params["w"]})
    with pytest.raises(ValueError, match="argument `perturbed_grads"):
        optim.surrogate_gap_gradient(HERE, {"w": HERE["w"], "b": HERE["w"]})
