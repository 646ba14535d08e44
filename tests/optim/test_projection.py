"""What AdamP, SGDP and the projection are in their limits, and what they are indifferent to."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import optim
from reweight.optim import ParamLayout
from tests.optim.trajectories import run

KERNEL = ParamLayout((0,))
ADAMP = {"weight_decay": 0.1, "wd_ratio": 0.2}
SGDP = {"momentum": 0.9, "weight_decay": 0.02, "wd_ratio": 0.2}


def draw(seed, steps=5, shapes=(("kernel", (4, 3)), ("bias", (3,)))):
    """Parameters and gradients; those of kernels lose most of their radial part at every second step."""
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(shape) for name, shape in shapes}
    grads = {name: rng.standard_normal((steps, *shape)) for name, shape in shapes}
    for name, grad in grads.items():
        if grad.ndim > 2:
            unit = params[name] / np.linalg.norm(params[name], axis=0)
            grad[::2] -= unit * np.sum(unit * grad[::2], axis=-2, keepdims=True)
    return params, grads


def assert_same(left, right, **tolerance):
    tolerance = {"rtol": 1e-9, "atol": 1e-12} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


@pytest.mark.usefixtures("x64")
def test_adamp_with_delta_zero_is_adamw():
    params, grads = draw(0)
    history, _, views = run(optim.adamp(0.1, b2=0.99, weight_decay=0.1, delta=0.0), params, grads)
    assert_same(history, run(optax.adamw(0.1, b2=0.99, weight_decay=0.1), params, grads)[0])
    assert set(views["kernel"].tolist()) == {optim.NONE}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdp_with_delta_zero_is_sgd(nesterov):
    params, grads = draw(1)
    history, _, _ = run(optim.sgdp(0.1, momentum=0.9, nesterov=nesterov, delta=0.0), params, grads)
    assert_same(history, run(optax.sgd(0.1, 0.9, nesterov=nesterov), params, grads)[0])


@pytest.mark.usefixtures("x64")
def test_sgdp_with_a_clean_buffer_is_the_projection_around_momentum():
    params, grads = draw(2)
    sgdp = optim.sgdp(0.1, project_buffer=False, **SGDP)
    wrapped = optim.with_projection(optax.trace(0.9), 0.1, 0.02, wd_scale=10.0, wd_ratio=0.2)
    assert_same(run(sgdp, params, grads)[0], run(wrapped, params, grads)[0])


@pytest.mark.usefixtures("x64")
def test_adamp_is_the_projection_around_adam():
    params, grads = draw(3)
    wrapped = optim.with_projection(optax.scale_by_adam(), 0.1, 0.1, wd_ratio=0.2)
    history, _, views = run(optim.adamp(0.1, **ADAMP), params, grads)
    assert_same(history, run(wrapped, params, grads)[0])
    assert optim.CHANNEL in views["kernel"]


def test_a_complete_optimizer_can_be_wrapped_without_a_learning_rate():
    params, grads = draw(4)
    complete = optim.with_projection(optax.contrib.muon(0.1))
    history, _, views = run(complete, params, grads)
    assert np.isfinite(history["kernel"]).all()
    assert optim.CHANNEL in views["kernel"]
    before = params["kernel"]
    step = history["kernel"][0] - before
    np.testing.assert_allclose(np.sum(before * step, 0), 0, atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", [optim.adamp, optim.sgdp])
def test_infinite_delta_takes_the_channel_view_and_pythagoras_holds(optimizer):
    params, grads = draw(5)
    history, _, views = run(optimizer(0.1, delta=jnp.inf, eps=1e-14), params, grads)
    assert set(views["kernel"].tolist()) == {optim.CHANNEL}
    before = np.concatenate([params["kernel"][None], history["kernel"]])
    step = np.diff(before, axis=0)
    np.testing.assert_allclose(np.sum(before[:-1] * step, -2), 0, atol=1e-12)
    squares = np.sum(before**2, -2)
    np.testing.assert_allclose(np.diff(squares, axis=0), np.sum(step**2, -2), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("optimizer", "options"), [(optim.adamp, ADAMP), (optim.sgdp, SGDP)])
def test_wd_ratio_is_the_decay_where_a_view_fires(optimizer, options):
    params, grads = draw(6, steps=1)
    moved = {
        ratio: run(optimizer(0.1, **(options | {"wd_ratio": ratio})), params, grads)[0]["kernel"][0]
        for ratio in (0.0, 0.5, 1.0)
    }
    decay = 0.1 * options["weight_decay"] / (1 - options.get("momentum", 0))
    for ratio, kernel in moved.items():
        np.testing.assert_allclose(moved[0.0] - kernel, decay * ratio * params["kernel"], rtol=1e-9, atol=1e-15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("optimizer", "options"), [(optim.adamp, ADAMP), (optim.sgdp, SGDP)])
def test_permuting_channels_and_transposing_commute_with_the_run(optimizer, options):
    params, grads = draw(7, shapes=(("kernel", (4, 3)),))
    history, _, _ = run(optimizer(0.1, **options), params, grads)
    order = np.array([2, 0, 1])
    permuted, _, _ = run(
        optimizer(0.1, **options), {"kernel": params["kernel"][:, order]}, {"kernel": grads["kernel"][..., order]}
    )
    np.testing.assert_allclose(permuted["kernel"], history["kernel"][..., order], rtol=1e-9)

    def layout(path, leaf):
        return ParamLayout((1,))

    flipped, _, _ = run(
        optimizer(0.1, layout=layout, **options),
        {"kernel": params["kernel"].T},
        {"kernel": grads["kernel"].swapaxes(1, 2)},
        layout,
    )
    np.testing.assert_allclose(flipped["kernel"].swapaxes(1, 2), history["kernel"], rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("optimizer", "options"), [(optim.adamp, ADAMP), (optim.sgdp, SGDP)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_stack_is_as_many_single_runs(optimizer, options, axis):
    layout = optim.stacked(axes=axis)
    runs = [draw(seed, steps=4) for seed in range(3)]
    single = [run(optimizer(0.1, **options), params, grads) for params, grads in runs]

    def stack(trees, first):
        return jax.tree.map(lambda *leaves: np.stack(leaves, min(axis, leaves[0].ndim - 1 - first) + first), *trees)

    history, _, views = run(
        optimizer(0.1, layout=layout, **options),
        stack([params for params, _ in runs], 0),
        stack([grads for _, grads in runs], 1),
        layout,
    )
    assert_same(history, stack([h for h, _, _ in single], 1))
    np.testing.assert_array_equal(views["kernel"], np.stack([v["kernel"] for _, _, v in single], 1))
    assert len(np.unique(views["kernel"])) > 1


project = jax.jit(optim.project_radial, static_argnames="layout")


@hypothesis.given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.05, 2))
def test_the_test_is_indifferent_to_a_positive_factor_of_the_gradient(seed, exponent, delta):
    rng = np.random.default_rng(seed)
    param, grad, perturb = (rng.standard_normal((4, 3)) for _ in range(3))
    with jax.enable_x64(True):
        first = project(param, grad, perturb, KERNEL, delta=delta)
        second = project(param, grad * 10**exponent, perturb, KERNEL, delta=delta)
    assert_same(first, second)


@hypothesis.given(st.integers(0, 10_000), st.floats(0.05, 2), st.floats(-2, 2))
def test_the_projection_is_linear_in_the_step_and_idempotent(seed, delta, factor):
    rng = np.random.default_rng(seed)
    param, grad, one, two = (rng.standard_normal((4, 3)) for _ in range(4))
    with jax.enable_x64(True):
        left, view = project(param, grad, one + factor * two, KERNEL, delta=delta)
        first, second = (np.asarray(project(param, grad, step, KERNEL, delta=delta)[0]) for step in (one, two))
        again, _ = project(param, grad, left, KERNEL, delta=delta)
    assert_same(left, first + factor * second, atol=1e-9)
    assert_same(left, again, atol=1e-7)
    if view == optim.NONE:
        assert_same(left, one + factor * two)


@hypothesis.given(st.integers(0, 10_000))
def test_the_three_views_by_an_independent_evaluation(seed):
    rng = np.random.default_rng(seed)
    param, grad, perturb = (rng.standard_normal((4, 3)) for _ in range(3))
    with jax.enable_x64(True):
        found, view = project(param, grad, perturb, KERNEL, delta=0.8)
    expected, wanted = perturb, optim.NONE
    for code, columns in ((optim.CHANNEL, (4, 3)), (optim.LAYER, (12, 1))):
        p, g, u = (x.reshape(columns) for x in (param, grad, perturb))
        cosine = np.abs(np.sum(p * g, 0)) / np.linalg.norm(p, axis=0) / np.linalg.norm(g, axis=0)
        if cosine.max() < 0.8 / np.sqrt(columns[0]):
            expected = (u - p * np.sum(p * u, 0) / np.sum(p * p, 0)).reshape(4, 3)
            wanted = code
            break
    assert int(view) == wanted
    assert_same(found, expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", [optim.adamp, optim.sgdp])
@pytest.mark.parametrize("delta", [0.1, 0.8])
def test_every_step_fires_for_a_loss_of_directions(optimizer, delta):
    w0 = np.random.default_rng(0).standard_normal((6, 3))
    target = np.random.default_rng(1).standard_normal((6, 3))
    transform = optimizer(0.05, delta=delta)

    def step(carry, _):
        w, state = carry
        grad = jax.grad(lambda w: -jnp.sum(w / jnp.linalg.norm(w, axis=0) * target))(w)
        updates, state = transform.update(grad, state, w)
        return (optax.apply_updates(w, updates), state), optax.tree.get(state, "views")

    w0 = jnp.asarray(w0, jnp.float32)
    _, views = jax.jit(lambda c: jax.lax.scan(step, c, length=20))((w0, transform.init(w0)))
    assert set(np.asarray(views).ravel().tolist()) == {optim.CHANNEL}


@pytest.mark.usefixtures("x64")
def test_momentum_grows_the_norm_nineteen_times_as_fast_as_its_projection():
    """Gradients are noise orthogonal to w.

    A projected step adds its square to that of the norm, one of momentum 0.9 also twice its inner product with the way
    so far: a factor of (1 + 0.9) / (1 - 0.9) at equal lengths of the steps.
    """
    start = np.random.default_rng(2).standard_normal((200, 8))

    def growth(transform):
        def step(carry, key):
            w, state = carry
            noise = jax.random.normal(key, w.shape)
            noise -= w * jnp.sum(w * noise, 0) / jnp.sum(w * w, 0)
            updates, state = transform.update(noise, state, w)
            return (optax.apply_updates(w, updates), state), None

        keys = jax.random.split(jax.random.key(0), 300)
        (w, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))((start, transform.init(start)))
        return float(np.sum(np.asarray(w) ** 2) - np.sum(start**2))

    projected = growth(optim.sgdp(1e-3, 0.9, project_buffer=False))
    assert 16 < growth(optax.sgd(1e-3, 0.9)) / projected < 21
    assert 4.8 < projected / growth(optax.sgd(1e-3)) < 5.7  # 1 / (1 - 0.9²): the length of the steps


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("optimizer", "options"), [(optim.adamp, ADAMP), (optim.sgdp, SGDP)])
def test_zero_gradients_and_zero_parameters_stay_finite_and_keep_their_dtype(optimizer, options, dtype):
    params = {"zero": jnp.zeros((4, 3), dtype), "kernel": jnp.ones((4, 3), dtype), "bias": jnp.zeros(3, dtype)}
    grads = jax.tree.map(lambda p: jnp.stack([jnp.zeros_like(p), jnp.ones_like(p)]), params)
    history, _, views = run(optimizer(0.1, **options), params, grads)
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()) and leaf.dtype == dtype, history))
    assert views["zero"].tolist() == [optim.CHANNEL, optim.CHANNEL]
    assert views["kernel"].tolist() == [optim.CHANNEL, optim.NONE]
    decay = 0.1 * options["weight_decay"] * options["wd_ratio"] / (1 - options.get("momentum", 0))
    np.testing.assert_allclose(np.asarray(history["kernel"][0], np.float32), 1 - decay, rtol=4e-3)
    np.testing.assert_array_equal(np.asarray(history["zero"][0], np.float32), 0)


def test_a_gradient_that_is_not_finite_fires_nothing():
    grad = jnp.full((4, 3), jnp.nan)
    perturb, view = project(jnp.ones((4, 3)), grad, jnp.ones((4, 3)), KERNEL)
    assert view == optim.NONE
    np.testing.assert_array_equal(perturb, 1)


def test_sums_run_in_float32_for_bfloat16_kernels():
    """The layer bound of this kernel is 2e-4: rounding the cosine to bfloat16 sums would miss it by far."""
    rng = np.random.default_rng(3)
    param = jnp.asarray(rng.standard_normal((512, 512)), jnp.bfloat16)
    grad = jnp.asarray(rng.standard_normal((512, 512)), jnp.bfloat16)
    wide = [np.asarray(x, np.float64) for x in (param, grad)]
    cosine = abs(np.sum(wide[0] * wide[1])) / np.linalg.norm(wide[0]) / np.linalg.norm(wide[1])
    for factor, expected in ((0.98, optim.NONE), (1.02, optim.LAYER)):
        delta = cosine * 512 * factor
        perturb, view = project(param, grad, grad, KERNEL, delta=delta)
        assert int(view) == expected
        assert perturb.dtype == jnp.bfloat16


def test_empty_parameters_pass():
    perturb, view = project(jnp.ones((0, 3)), jnp.ones((0, 3)), jnp.ones((0, 3)), KERNEL)
    assert perturb.shape == (0, 3)
    assert view.shape == ()


def test_channel_norms_growth_and_angles():
    params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
    updates = {"kernel": jnp.array([[-4.0, 1.0], [3.0, 1.0]]), "bias": jnp.ones(2)}
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(optim.channel_norms(params)["kernel"], [5, 0])
    assert optim.channel_norms(params)["bias"] is None
    np.testing.assert_allclose(optim.norm_growth(moved, params)["kernel"], [2**0.5, 1], rtol=1e-6)
    np.testing.assert_allclose(optim.effective_step(params, updates)["kernel"], [np.pi / 4, 0], rtol=1e-6)
    back = {"kernel": jnp.array([[-6.0, 0.0], [-8.0, 0.0]]), "bias": jnp.zeros(2)}
    np.testing.assert_allclose(optim.effective_step(params, back)["kernel"][0], np.pi, rtol=1e-6)


@hypothesis.given(st.floats(-7, -1))
def test_small_angles_are_exact_in_float32(exponent):
    params = jnp.array([[3.0], [4.0]])
    tangent = jnp.array([[-4.0], [3.0]]) * 10**exponent
    radial = 1e-3 * params
    angle = jax.jit(optim.effective_step)(params, tangent + radial)
    np.testing.assert_allclose(angle, np.arctan(10**exponent / 1.001), rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: optim.adamp(-1.0), "learning_rate"),
        (lambda: optim.adamp(b1=1.0), "b1"),
        (lambda: optim.adamp(b2=-0.1), "b2"),
        (lambda: optim.adamp(eps=-1e-8), "eps"),
        (lambda: optim.adamp(weight_decay=-0.1), "weight_decay"),
        (lambda: optim.adamp(delta="0.1"), "delta"),
        (lambda: optim.scale_by_adamp(nesterov=2), "nesterov"),
        (lambda: optim.sgdp(0.1, momentum=1.0), "momentum"),
        (lambda: optim.sgdp(0.1, dampening=1.5), "dampening"),
        (lambda: optim.sgdp(0.1, wd_ratio=-1), "wd_ratio"),
        (lambda: optim.scale_by_sgdp(project_buffer=None), "project_buffer"),
        (lambda: optim.with_projection(optax.identity(), weight_decay=0.1), "weight_decay"),
        (lambda: optim.with_projection(optax.identity(), 0.1, wd_scale=-1), "wd_scale"),
    ],
)
def test_hyperparameters_out_of_range_raise_their_name(make, argument):
    with pytest.raises(ValueError, match=f"argument `{argument}` is"):
        make()


@pytest.mark.parametrize(
    "transform",
    [
        optim.adamp(),
        optim.sgdp(0.1),
        optim.scale_by_adamp(),
        optim.scale_by_sgdp(),
        optim.with_projection(optax.identity()),
    ],
)
def test_an_update_without_parameters_or_with_others_raises(transform):
    params = {"kernel": jnp.ones((4, 3))}
    state = transform.init(params)
    with pytest.raises(ValueError, match="argument `params` is None"):
        transform.update(params, state)
    with pytest.raises(ValueError, match="argument `updates` is a tree"):
        transform.update({"other": jnp.ones((4, 3))}, state, params)
    with pytest.raises(ValueError, match="argument `updates: kernel` is of shape"):
        transform.update({"kernel": jnp.ones((3, 4))}, state, params)
