import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import weights

OPTIMIZERS = {
    "sgd": optax.sgd(0.2),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05, eps=1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.05)),
}
PARAMS = {"kernel": np.array([0.5, -1.0, 0.3]), "bias": np.array(0.1)}
META = {"scale": np.array([0.4, -0.7])}
INNER, OUTER = (np.random.default_rng(seed).normal(size=(10, 6)) for seed in (0, 1))


def objective(rows, params, meta, *, weighted=True):
    x, y, features = rows[:, :3], rows[:, 3], rows[:, 4:]
    losses = (jnp.tanh(x @ params["kernel"]) + params["bias"] - y) ** 2
    weight = jax.nn.sigmoid(features @ meta["scale"]) if weighted else 1
    return jnp.mean(weight * losses), losses


@functools.cache
def started(name):
    """A state of the optimizer that has seen two other gradients."""
    optimizer = OPTIMIZERS[name]
    state = optimizer.init(PARAMS)
    for seed in (2, 3):
        rng = np.random.default_rng(seed)
        grads = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape), PARAMS)
        _, state = optimizer.update(grads, state, PARAMS)
    return state


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_is_that_of_the_outer_objective_after_the_step(name, weighted, x64):
    optimizer, state = OPTIMIZERS[name], started(name)
    inner, outer = functools.partial(objective, INNER), functools.partial(objective, OUTER, weighted=weighted)

    @jax.jit
    def after(meta):
        grads = jax.grad(lambda params: inner(params, meta)[0])(PARAMS)
        updates, new = optimizer.update(grads, state, PARAMS)
        params = optax.apply_updates(PARAMS, updates)
        return outer(params, meta)[0], (params, new)

    found = weights.meta_gradient(PARAMS, META, state, inner=inner, outer=outer, optimizer=optimizer)
    (value, (params, new)), grads = jax.value_and_grad(after, has_aux=True)(META)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(close, (found.outer[0], found.params, found.opt_state), (value, params, new))
    jax.tree.map(close, found.grads, grads)
    step = 1e-6
    for i in range(2):
        shift = step * np.eye(2)[i]
        ends = [after({"scale": META["scale"] + sign * shift})[0] for sign in (1, -1)]
        np.testing.assert_allclose(found.grads["scale"][i], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-9)


def test_what_the_objectives_return_beside_their_values_comes_back():
    optimizer = OPTIMIZERS["sgd"]
    inner, outer = functools.partial(objective, INNER), functools.partial(objective, OUTER)
    found = weights.meta_gradient(PARAMS, META, optimizer.init(PARAMS), inner=inner, outer=outer, optimizer=optimizer)
    np.testing.assert_allclose(found.inner[1], inner(PARAMS, META)[1], rtol=1e-6)
    np.testing.assert_allclose(found.outer[1], outer(found.params, META)[1], rtol=1e-6)
    slope = jax.grad(lambda params: inner(params, META)[0])(PARAMS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found.slope, slope)


def test_a_parameter_whose_gradient_has_always_been_zero_does_no_harm():
    optimizer = optax.adam(0.1)
    rows = INNER.copy()
    rows[:, 0] = 0  # a pixel that is always black
    inner, outer = functools.partial(objective, rows), functools.partial(objective, OUTER)
    found = weights.meta_gradient(PARAMS, META, optimizer.init(PARAMS), inner=inner, outer=outer, optimizer=optimizer)
    assert np.all(np.isfinite(found.grads["scale"]))
    assert np.any(found.grads["scale"] != 0)
    assert found.params["kernel"][0] == PARAMS["kernel"][0]


def test_without_weights_in_the_inner_objective_only_the_direct_part_is_left():
    optimizer = OPTIMIZERS["sgd"]
    inner = functools.partial(objective, INNER, weighted=False)
    found = weights.meta_gradient(
        PARAMS, META, optimizer.init(PARAMS), inner=inner, outer=functools.partial(objective, OUTER),
        optimizer=optimizer,
    )  # fmt: skip
    direct = jax.grad(lambda meta: objective(OUTER, found.params, meta)[0])(META)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found.grads, direct)


def test_weights_judged_on_clean_examples_leave_the_wrong_ones():
    """Meta-learning with clean data: one weight an example, of which half have a label that is wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    y = x @ np.float32([1, -2, 0.5])
    wrong = np.arange(40) % 2 == 0
    noisy = np.where(wrong, -y, y)
    optimizer, meta_optimizer = optax.sgd(0.05), optax.adam(0.1)

    def inner(params, logits):
        return jnp.mean(jax.nn.sigmoid(logits) * (x @ params - noisy) ** 2), ()

    def outer(params, logits):
        return jnp.mean((x[20:] @ params - y[20:]) ** 2), ()

    @jax.jit
    def step(carry, _):
        params, logits, states = carry
        found = weights.meta_gradient(params, logits, states[0], inner=inner, outer=outer, optimizer=optimizer)
        updates, meta_state = meta_optimizer.update(found.grads, states[1])
        return (found.params, optax.apply_updates(logits, updates), (found.opt_state, meta_state)), None

    start = (np.zeros(3, np.float32), np.zeros(40, np.float32))
    carry = (*start, (optimizer.init(start[0]), meta_optimizer.init(start[1])))
    (params, logits, _), _ = jax.lax.scan(step, carry, None, 150)
    assert np.mean(logits[~wrong]) > np.mean(logits[wrong]) + 3
    np.testing.assert_allclose(params, [1, -2, 0.5], atol=0.3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"opt_state": optax.adam(0.1).init(PARAMS)}, "opt_state"),
        ({"inner": lambda params, meta: (params["kernel"], ())}, "inner"),
        ({"outer": lambda params, meta: (params["kernel"], ())}, "outer"),
    ],
)
def test_a_static_mistake_is_named(changes, named):
    both = functools.partial(objective, INNER)
    given = {"opt_state": OPTIMIZERS["sgd"].init(PARAMS), "inner": both, "outer": both} | changes
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        weights.meta_gradient(PARAMS, META, optimizer=OPTIMIZERS["sgd"], **given)
