"""Optimizers with projection, and the measurements that go with them."""

import numpy as np
import optax

from conformance.case import Case, TransformCase
from reweight import optim
from reweight.optim import ParamLayout


def _leaf(path, function):
    """Applies `function(name, leaf...)` over the two levels of the suite's tree."""
    return {outer: {inner: function(outer, inner) for inner in tree} for outer, tree in path.items()}


def project(param, grad, step, delta, eps=1e-8, views=2):
    """The projected step and the factor of the decay, for a flax kernel or a vector."""
    if param.ndim < 2:
        return step, False
    columns = lambda array: array.reshape(-1, array.shape[-1])  # noqa: E731
    for view in (columns, lambda array: array.reshape(-1, 1))[:views]:
        p, g, u = view(param), view(grad), view(step)
        norm = lambda array: np.maximum(np.linalg.norm(array, axis=0), eps)  # noqa: E731
        cosine = np.abs(np.sum(p * g, 0)) / (norm(p) * norm(g))
        if cosine.max() < delta / np.sqrt(p.shape[0]):
            unit = p / (np.linalg.norm(p, axis=0) + eps)
            return (u - unit * np.sum(unit * u, 0)).reshape(param.shape), True
    return step, False


def adamp(params, grads, learning_rate=None, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, delta=0.1, wd_ratio=0.1,
          nesterov=False):  # fmt: skip
    rate = -1.0 if learning_rate is None else learning_rate

    def run(outer, inner):
        p = params[outer][inner]
        m, v = np.zeros_like(p), np.zeros_like(p)
        for t, tree in enumerate(grads, start=1):
            g = tree[outer][inner]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            top = b1 * m + (1 - b1) * g if nesterov else m
            u, fired = project(p, g, top / (np.sqrt(v / (1 - b2**t)) + eps), delta)
            p = p - rate * weight_decay * (wd_ratio if fired else 1) * p - rate / (1 - b1**t) * u
        return p

    return _leaf(params, run)


def sgdp(params, grads, learning_rate=None, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, eps=1e-8,
         delta=0.1, wd_ratio=0.1, project_buffer=True):  # fmt: skip
    rate = -1.0 if learning_rate is None else learning_rate

    def run(outer, inner):
        p = params[outer][inner]
        b = np.zeros_like(p)
        for tree in grads:
            g = tree[outer][inner]
            b = momentum * b + (1 - dampening) * g
            q = g + momentum * b if nesterov else b
            u, fired = project(p, g, q, delta)
            if project_buffer and not nesterov:
                b = u
            p = p - rate * weight_decay / (1 - momentum) * (wd_ratio if fired else 1) * p - rate * u
        return p

    return _leaf(params, run)


def projected_sgd(params, grads, inner, learning_rate, weight_decay, wd_scale=1.0, delta=0.1, wd_ratio=0.1):
    def run(outer, name):
        p = params[outer][name]
        for tree in grads:
            u, fired = project(p, tree[outer][name], tree[outer][name], delta)
            p = p - learning_rate * (u + weight_decay * wd_scale * (wd_ratio if fired else 1) * p)
        return p

    return _leaf(params, run)


def _with_view(param, grad, perturb, delta):
    step, fired = project(param, grad, perturb, delta)
    by_channel = fired and project(param, grad, perturb, delta, views=1)[1]
    return step, np.int8(1 if by_channel else 2 if fired else 0)


def _rows(path, leaf):
    del path, leaf
    return ParamLayout(reduce_axes=(1,))


def _step_angle(params, updates):
    after = params + updates
    cosine = np.sum(params * after, 1) / (np.linalg.norm(params, axis=1) * np.linalg.norm(after, axis=1))
    return np.arccos(cosine)


def a_large_delta_leaves_no_radial_part(probe):
    params = probe.params()
    transform = probe.transform(delta=np.inf, weight_decay=0.0, eps=1e-12)
    updates, _ = transform.update(probe.grads()[0], transform.init(params), params)
    kernel, step = params["dense"]["kernel"], np.asarray(updates["dense"]["kernel"])
    radial = np.sum(kernel * step, 0) / np.linalg.norm(kernel, axis=0) / np.linalg.norm(step, axis=0)
    np.testing.assert_allclose(radial, 0, atol=1e-5)


_COMMON = {"weight_decay": (-0.1,), "delta": (-0.1,), "wd_ratio": (-0.1,), "eps": (-1e-8,)}
_ADAM = {"b1": (-0.1, 1.0), "b2": (-0.1, 1.0), **_COMMON, "nesterov": ("yes",)}
_SGD = {"momentum": (-0.1, 1.0), "dampening": (-0.1, 1.1), **_COMMON, "nesterov": ("yes",), "project_buffer": ("no",)}
_RATE = {"learning_rate": (-0.1,)}
_FREE = {"layout": "any rule; tested in tests/optim", "mask": "any mask that optax takes"}
_DEFAULTS = {"weight_decay": 0.0, "delta": 0.1, "wd_ratio": 0.1, "eps": 1e-8}
_ADAM_DEFAULTS = {"b1": 0.9, "b2": 0.999, **_DEFAULTS}
_SGD_DEFAULTS = {"momentum": 0.0, "dampening": 0.0, **_DEFAULTS}
_ADAM_HYPER = {"b1": 0.8, "b2": 0.95, "weight_decay": 0.1, "delta": 0.7, "wd_ratio": 0.2}
_SGD_HYPER = {"momentum": 0.8, "dampening": 0.1, "weight_decay": 0.1, "delta": 0.7, "wd_ratio": 0.2}
_SHARED = {"layered": True, "free": _FREE, "invariants": (a_large_delta_leaves_no_radial_part,)}

CASES = [
    TransformCase(
        function=optim.adamp,
        defaults={"learning_rate": 1e-3, **_ADAM_DEFAULTS},
        hyper={"learning_rate": 0.1, **_ADAM_HYPER},
        injectable=("learning_rate", "b1", "b2", "weight_decay", "delta", "wd_ratio"),
        reference=adamp,
        bad={**_RATE, **_ADAM},
        **_SHARED,
    ),
    TransformCase(
        function=optim.adamp,
        variant="nesterov, defaults",
        hyper={"learning_rate": 0.1, "nesterov": True},
        reference=adamp,
        **_SHARED,
    ),
    TransformCase(
        function=optim.scale_by_adamp, defaults=_ADAM_DEFAULTS, hyper=_ADAM_HYPER, reference=adamp, bad=_ADAM, **_SHARED
    ),
    TransformCase(
        function=optim.sgdp,
        defaults=_SGD_DEFAULTS,
        hyper={"learning_rate": 0.1, **_SGD_HYPER},
        injectable=("learning_rate", "momentum", "dampening", "weight_decay", "delta", "wd_ratio"),
        reference=sgdp,
        bad={**_RATE, **_SGD},
        **_SHARED,
    ),
    TransformCase(
        function=optim.sgdp,
        variant="nesterov",
        hyper={"learning_rate": 0.1, **_SGD_HYPER, "nesterov": True},
        reference=sgdp,
        **_SHARED,
    ),
    TransformCase(
        function=optim.scale_by_sgdp,
        defaults=_SGD_DEFAULTS,
        hyper={**_SGD_HYPER, "project_buffer": False},
        reference=sgdp,
        bad=_SGD,
        **_SHARED,
    ),
    TransformCase(
        function=optim.with_projection,
        defaults={"wd_scale": 1.0, **_DEFAULTS},
        hyper={
            "inner": optax.identity(),
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "wd_scale": 2.0,
            "delta": 0.7,
            "wd_ratio": 0.2,
        },
        reference=projected_sgd,
        bad={**_RATE, **_COMMON, "wd_scale": (-1.0,)},
        layered=True,
        free={**_FREE, "inner": "any transform"},
        invariants=(a_large_delta_leaves_no_radial_part,),
    ),
    Case(
        function=optim.project_radial,
        defaults={"delta": 0.1, "eps": 1e-8},
        inputs=lambda rng, n: {name: rng.normal(size=(n, 5, 3)) for name in ("param", "grad", "perturb")},
        hyper={"layout": ParamLayout(reduce_axes=(1,), batch_axes=(0,)), "delta": 1.2},
        differentiable=("perturb",),
        constant=("param", "grad"),
        bf16=None,
        reference=lambda param, grad, perturb, layout, delta: tuple(
            np.stack(part)
            for part in zip(*(_with_view(*rows, delta) for rows in zip(param, grad, perturb, strict=True)), strict=True)
        ),
        bad={"delta": (-0.1,), "eps": (-1e-8,)},
        free={"layout": "one that does not fit is refused in the name of the parameter; tested in tests/optim"},
    ),
    Case(
        function=optim.channel_norms,
        inputs=lambda rng, n: {"params": rng.normal(size=(n, 5))},
        call=lambda params: optim.channel_norms({"w": params}, layout=_rows),
        differentiable=("params",),
        extremes={"params": (1e4, 1e-4)},
        reference=lambda params: {"w": np.linalg.norm(params, axis=1)},
        free={"layout": "any rule; tested in tests/optim"},
    ),
    Case(
        function=optim.norm_growth,
        inputs=lambda rng, n: {"params": rng.normal(size=(n, 5)), "initial": rng.normal(size=(n, 5))},
        call=lambda params, initial: optim.norm_growth({"w": params}, {"w": initial}, layout=_rows),
        constant=("params", "initial"),
        reference=lambda params, initial: {"w": np.linalg.norm(params, axis=1) / np.linalg.norm(initial, axis=1)},
        free={"layout": "any rule; tested in tests/optim"},
    ),
    Case(
        function=optim.effective_step,
        inputs=lambda rng, n: {"params": rng.normal(size=(n, 5)), "updates": rng.normal(size=(n, 5))},
        call=lambda params, updates: optim.effective_step({"w": params}, {"w": updates}, layout=_rows),
        constant=("params", "updates"),
        reference=lambda params, updates: {"w": _step_angle(params, updates)},
        free={"layout": "any rule; tested in tests/optim"},
    ),
    Case(
        function=optim.named_views,
        inputs=lambda rng, n: {"views": np.arange(2, dtype=np.int32)},
        call=lambda views: optim.named_views(views, {"a": np.ones((3, 2)), "b": np.ones((2, 2))}),
        returns="batch",
        fixed=("views",),
        reference=lambda views: {"a": views[0], "b": views[1]},
        bad={"views": (np.zeros(3, int),)},
        free={"params": "any tree", "layout": "any rule; tested in tests/optim", "views": "made by a transform"},
    ),
]
