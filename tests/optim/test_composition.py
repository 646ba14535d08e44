"""The optimizers inside the wrappers of optax, with masks and schedules, in nnx, and on sharded parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from reweight import optim
from tests.optim.trajectories import run

OPTIONS = {"weight_decay": 0.1, "wd_ratio": 0.2}
OPTIMIZERS = pytest.mark.parametrize(
    ("optimizer", "options"), [(optim.adamp, OPTIONS), (optim.sgdp, OPTIONS | {"momentum": 0.9})]
)


def draw(steps=4):
    rng = np.random.default_rng(0)
    params = {"dense": {"kernel": rng.standard_normal((8, 4)), "bias": np.ones(4)}, "head": {"kernel": np.ones((4, 2))}}
    grads = jax.tree.map(lambda leaf: rng.standard_normal((steps, *leaf.shape)), params)
    kernel = params["dense"]["kernel"]
    unit = kernel / np.linalg.norm(kernel, axis=0)
    grads["dense"]["kernel"][::2] -= unit * np.sum(unit * grads["dense"]["kernel"][::2], axis=-2, keepdims=True)
    return params, grads


def assert_same(left, right, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), left, right)


@pytest.mark.usefixtures("x64")
@OPTIMIZERS
def test_wrapped_by_optax_it_is_the_plain_one(optimizer, options):
    params, grads = draw()
    plain, _, views = run(optimizer(0.1, **options), params, grads)
    assert set(views["dense/kernel"].tolist()) >= {optim.CHANNEL}
    labels = {"dense": "a", "head": "b"}
    both = optax.multi_transform({"a": optimizer(0.1, **options), "b": optimizer(0.1, **options)}, labels)
    wrapped = {
        # A norm below the bound of the clip, so that the chain changes nothing.
        "chain": optax.chain(optax.clip_by_global_norm(1e3), optimizer(0.1, **options)),
        "inject_hyperparams": optax.inject_hyperparams(optimizer)(0.1, **options),
        "masked": optax.masked(optimizer(0.1, **options), True),
    }
    for name, transform in wrapped.items():
        history, _, inside = run(transform, params, grads)
        assert_same(history, plain)
        for key, view in views.items():
            np.testing.assert_array_equal(inside[key], view, err_msg=name)

    def step(carry, grad):
        updates, state = both.update(grad, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params

    assert_same(jax.lax.scan(step, (params, both.init(params)), grads)[1], plain)


@pytest.mark.usefixtures("x64")
@OPTIMIZERS
def test_hyperparameters_can_be_schedules_through_inject_hyperparams(optimizer, options):
    params, grads = draw()
    rates = jnp.array([0.1, 0.05, 0.2, 0.01])

    def schedule(count):
        return rates[count]

    def layout(path, leaf):
        return optim.flax_layout(path, leaf)

    inject = optax.inject_hyperparams(optimizer, static_args="layout")
    injected = inject(schedule, delta=lambda count: 0.1 + 0 * count, layout=layout, **options)
    assert_same(run(injected, params, grads)[0], run(optimizer(schedule, **options), params, grads)[0])


@OPTIMIZERS
def test_the_schedule_is_read_at_the_zero_based_count_for_step_and_decay(optimizer, options):
    params, grads = draw(steps=2)
    scheduled = run(optimizer(lambda count: 0.1 * (count == 0), **options), params, grads)[0]
    constant = run(optimizer(0.1, **options), params, grads)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-6), scheduled, constant)
    jax.tree.map(lambda a: np.testing.assert_array_equal(a[1], a[0]), scheduled)


@OPTIMIZERS
def test_multisteps_takes_the_mean_gradient(optimizer, options):
    params, grads = draw()
    steps = optax.MultiSteps(optimizer(0.1, **options), 2).gradient_transformation()
    history, _, _ = run(steps, params, grads)
    means = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]).mean(1), grads)
    expected, _, _ = run(optimizer(0.1, **options), params, means)
    assert_same(jax.tree.map(lambda leaf: leaf[1::2], history), expected, rtol=1e-4)


@OPTIMIZERS
@pytest.mark.parametrize("form", ["tree", "prefix", "function"])
def test_the_mask_says_which_leaves_decay_and_not_which_are_projected(optimizer, options, form):
    params, grads = draw()
    tree = {"dense": {"kernel": False, "bias": False}, "head": {"kernel": True}}
    mask = {"tree": tree, "prefix": {"dense": False, "head": True}, "function": lambda params: tree}[form]
    masked, _, views = run(optimizer(0.1, mask=mask, **options), params, grads)
    free, _, _ = run(optimizer(0.1, **(options | {"weight_decay": 0.0})), params, grads)
    decayed, _, _ = run(optimizer(0.1, **options), params, grads)
    assert_same(masked["dense"], free["dense"])
    assert_same(masked["head"], decayed["head"])
    assert optim.CHANNEL in views["dense/kernel"]


@OPTIMIZERS
def test_absent_gradients_and_frozen_parameters_are_left_alone(optimizer, options):
    params, grads = draw(steps=1)
    first = jax.tree.map(lambda leaf: leaf[0], grads)
    transform = optimizer(0.1, **options)
    state = transform.init(params)
    full, _ = transform.update(first, state, params)
    updates, state = transform.update(first | {"head": {"kernel": None}}, state, params)
    assert updates["head"]["kernel"] is None
    assert_same(updates["dense"], full["dense"])
    assert jax.tree.structure(state) == jax.tree.structure(transform.init(params))
    frozen = optax.masked(optimizer(0.1, **options), {"dense": True, "head": False})
    updates, _ = frozen.update(first, frozen.init(params), params)
    np.testing.assert_array_equal(updates["head"]["kernel"], first["head"]["kernel"])
    assert_same(updates["dense"], full["dense"])


def test_parameters_that_are_none_have_no_state_and_no_views():
    params = {"kernel": jnp.ones((3, 2)), "none": None}
    transform = optim.adamp()
    state = transform.init(params)
    updates, state = transform.update(params, state, params)
    assert updates["none"] is None
    assert optim.named_views(optax.tree.get(state, "views"), params).keys() == {"kernel"}


@OPTIMIZERS
def test_state_and_parameters_can_be_donated(optimizer, options):
    params, grads = jax.tree.map(jnp.asarray, draw(steps=1))
    grads = jax.tree.map(lambda leaf: leaf[0], grads)
    transform = optimizer(0.1, **options)

    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    params, state = jitted(params, transform.init(params), grads)
    jitted(params, state, grads)


def test_moments_can_be_mapped_like_parameters():
    params, _ = draw()
    transform = optim.adamp()
    state = optax.tree.map_params(transform, lambda leaf: leaf + 1, transform.init(params))
    assert_same(state[0].mu, jax.tree.map(np.ones_like, params))
    np.testing.assert_array_equal(state[0].views, transform.init(params)[0].views)


def test_nnx_optimizer_runs_on_modules():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    before = np.asarray(model.kernel[...])
    optimizer = nnx.Optimizer(model, optim.adamp(0.1), wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 3))) ** 2))(model)
    optimizer.update(model, grads)
    assert np.abs(np.asarray(model.kernel[...]) - before).max() > 0.01


def test_views_of_another_tree_raise():
    params, _ = draw()
    with pytest.raises(ValueError, match="named_views: argument `views` is of shape"):
        optim.named_views(jnp.zeros(5, jnp.int8), params)


SPECS = [PartitionSpec("x", "y"), PartitionSpec("y", "x"), PartitionSpec(("x", "y"), None), PartitionSpec(None, "x")]


@OPTIMIZERS
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sharded_parameters_take_the_same_steps_without_being_gathered(optimizer, options, spec):
    rng = np.random.default_rng(1)
    params = {"kernel": rng.standard_normal((16, 8)).astype(np.float32)}
    grads = {"kernel": rng.standard_normal((16, 8)).astype(np.float32)}
    transform = optimizer(0.1, delta=1.0, **options)

    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    single, single_state = jax.jit(step)(params, transform.init(params), grads)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placed = jax.device_put((params, grads), NamedSharding(mesh, spec))
    compiled = jax.jit(step).lower(placed[0], transform.init(placed[0]), placed[1]).compile()
    moved, state = compiled(placed[0], transform.init(placed[0]), placed[1])
    assert_same(moved, single)
    np.testing.assert_array_equal(optax.tree.get(state, "views"), optax.tree.get(single_state, "views"))
    assert moved["kernel"].sharding.is_equivalent_to(placed[0]["kernel"].sharding, 2)
    text = compiled.as_text()
    gathered = re.findall(r"= \S+?\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", text)
    assert all(np.prod([int(n) for n in shape.split(",") if n]) <= 16 for shape in gathered), gathered
    assert "all-reduce" in text
