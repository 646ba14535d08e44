"""Trajectories in float64 equal to those of the authors' PyTorch package."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight import optim
from tests.optim.trajectories import cases, run

pytestmark = pytest.mark.usefixtures("x64")
EXACT = {"rtol": 1e-9, "atol": 1e-11}  # the files have twelve digits


def check(history, views, expected):
    assert history.keys() == expected["params"].keys()
    for name, params in expected["params"].items():
        np.testing.assert_allclose(history[name], params, **EXACT, err_msg=name)
        wanted = expected["view"][name].reshape(len(params), -1)
        np.testing.assert_array_equal(np.broadcast_to(views[name].reshape(len(params), -1), wanted.shape), wanted)


def adamp_of(params):
    params = dict(params)
    params["b1"], params["b2"] = params.pop("betas", (0.9, 0.999))
    return optim.adamp(params.pop("lr"), **params)


@pytest.mark.parametrize("case", cases("adamp"), ids=range(4))
def test_adamp_follows_the_authors_package(case):
    history, states, views = run(adamp_of(case["params"]), case["inputs"]["params0"], case["inputs"]["grads"])
    check(history, views, case["expected"])
    for field, name in (("mu", "final_exp_avg"), ("nu", "final_exp_avg_sq")):
        for key, moment in case["expected"][name].items():
            np.testing.assert_allclose(getattr(states[0], field)[key][-1], moment, **EXACT)


def test_the_golden_cases_of_adamp_see_every_view():
    seen = {int(view) for case in cases("adamp") for views in case["expected"]["view"].values() for view in views}
    assert seen == {optim.NONE, optim.CHANNEL, optim.LAYER, optim.SKIPPED}


@pytest.mark.parametrize("case", cases("adamp_layouts"), ids=range(3))
def test_adamp_on_stacks_embeddings_and_attention_is_a_run_for_each(case):
    check(*_history_and_views(adamp_of(case["params"]), case), case["expected"])


def _history_and_views(transform, case):
    history, _, views = run(transform, case["inputs"]["params0"], case["inputs"]["grads"])
    return history, views


@pytest.mark.parametrize("project_buffer", [True, False])
@pytest.mark.parametrize("case", cases("sgdp"), ids=range(4))
def test_sgdp_follows_the_authors_package_and_timm(case, project_buffer):
    params = dict(case["params"], project_buffer=project_buffer)
    expected = case["expected"]
    if not project_buffer:
        expected = expected.get("project_buffer_false", expected)  # with nesterov the two coincide
    transform = optim.sgdp(params.pop("lr"), **params)
    history, states, views = run(transform, case["inputs"]["params0"], case["inputs"]["grads"])
    check(history, views, expected)
    for name, buffer in expected["buffer"].items():
        np.testing.assert_allclose(states[0].trace[name], buffer, **EXACT)


@pytest.mark.parametrize("case", cases("adamp_with_projection"), ids=range(2))
def test_the_projection_around_lion_uses_the_raw_gradient(case):
    params = dict(case["params"])
    params.pop("inner")
    inner = optax.scale_by_lion(params.pop("b1"), params.pop("b2"))
    transform = optim.with_projection(inner, params.pop("learning_rate"), params.pop("weight_decay"), **params)
    check(*_history_and_views(transform, case), case["expected"])


@pytest.mark.parametrize("case", cases("adamp_project_radial"), ids=range(4))
def test_project_radial_on_single_tensors(case):
    project = jax.jit(optim.project_radial, static_argnames="layout")
    delta, eps = case["params"]["delta"], case["params"]["eps"]
    for name, given in case["inputs"].items():
        layout = optim.ParamLayout(tuple(int(axis) for axis in given["reduce_axes"]))
        arrays = (given["param"], given["grad"], given["perturb"])
        perturb, view = project(*arrays, layout, delta=delta, eps=eps)
        expected = case["expected"][name]
        np.testing.assert_allclose(perturb, expected["perturb"], rtol=1e-9, atol=1e-12, err_msg=name)
        assert {0: "none", 1: "channel", 2: "layer"}[int(view)] == expected["view"], name


def _network_loss(params, x, labels):
    hidden = x @ params["W1"]
    hidden = (hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 1e-5) * params["gamma"] + params["beta"]
    logits = jax.nn.relu(hidden) @ params["W2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.parametrize("case", cases("adamp_sgdp_network"), ids=range(4))
def test_training_a_network_with_normalisation_under_a_schedule(case):
    options, inputs, expected = dict(case["params"]), dict(case["inputs"]), case["expected"]
    rates = jnp.asarray(options.pop("learning_rates"))
    optimizer = {"adamp": optim.adamp, "sgdp": optim.sgdp}[options.pop("optimizer")]
    if "betas" in options:
        options["b1"], options["b2"] = options.pop("betas")
    x, labels = inputs.pop("x"), inputs.pop("labels").astype(int)
    transform = optimizer(lambda count: rates[count], **options)

    def step(carry, _):
        params, state = carry
        loss, grad = jax.value_and_grad(_network_loss)(params, x, labels)
        updates, state = transform.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        views = optim.named_views(optax.tree.get(state, "views"), params)
        return (params, state), (loss, views, optim.channel_norms(params)["W1"])

    start = (inputs, transform.init(inputs))
    (params, _), (loss, views, norms) = jax.jit(lambda c: jax.lax.scan(step, c, length=20))(start)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(norms, expected["W1_column_norms"], rtol=1e-7)
    for name, final in expected["params"].items():
        np.testing.assert_allclose(params[name], final, rtol=1e-7, atol=1e-9)
    for name, wanted in expected["view"].items():
        np.testing.assert_array_equal(views[name], wanted)


@pytest.mark.parametrize("case", cases("adamp_sgdp_sphere"), ids=range(4))
def test_the_toy_on_the_sphere_with_its_norms_and_angles(case):
    options, target, expected = dict(case["params"]), case["inputs"]["target"], case["expected"]
    name, lr = options.pop("optimizer"), options.pop("lr")
    if "betas" in options:
        options["b1"], options["b2"] = options.pop("betas")
    if name == "sgd_momentum":
        transform = optax.sgd(lr, options["momentum"])
    else:
        transform = (optim.adamp if name == "adamp" else optim.sgdp)(lr, **options)

    def cosines(w):
        return jnp.sum(w * target, 0) / jnp.linalg.norm(w, axis=0) / jnp.linalg.norm(target, axis=0)

    def step(carry, _):
        w, state = carry
        updates, state = transform.update(jax.grad(lambda w: -jnp.sum(cosines(w)))(w), state, w)
        turned = optim.effective_step(w, updates)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, optim.channel_norms(w), jnp.arccos(cosines(w)), turned)

    w0 = case["inputs"]["w0"]
    _, (params, norms, angle, turned) = jax.jit(lambda c: jax.lax.scan(step, c, length=15))((w0, transform.init(w0)))
    np.testing.assert_allclose(params, expected["params"], rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(norms, expected["norm"], rtol=1e-8)
    np.testing.assert_allclose(angle, expected["angle_to_target"], rtol=1e-8)
    np.testing.assert_allclose(turned, expected["effective_step"], rtol=1e-8, atol=1e-11)
