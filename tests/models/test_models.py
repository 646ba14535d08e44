"""The networks and their functional form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reweight import models, optim

KEY = jax.random.key(0)
SMALL = [
    ("mlp", (6,), {"widths": (8, 8)}),
    ("mlp", (4, 4, 1), {"widths": (8,), "norm": "batch"}),
    ("mlp", (6,), {"widths": (8,), "norm": "layer", "dropout": 0.5}),
    ("convnet", (8, 8, 1), {"widths": (4, 8)}),
    ("convnet", (5, 7, 2), {"widths": (4, 4, 4), "norm": None}),
]


def small(name, shape, options, key=KEY, num_classes=3):
    return models.functional(models.build(name, shape, num_classes, key=key, **options))


def paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "shape", "options"), SMALL)
def test_a_model_maps_a_batch_to_float32_logits(name, shape, options):
    params, extra, apply = small(name, shape, options)
    logits, _ = apply(params, extra, jnp.ones((5, *shape)), train=True, key=KEY)
    assert logits.shape == (5, 3)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_parameters_are_nested_dicts_with_readable_paths():
    params, extra, _ = small("mlp", (6,), {"widths": (8, 4), "norm": "batch"})
    assert paths(params) == {
        "layers/0/kernel": (6, 8),
        "layers/1/kernel": (8, 4),
        "norms/0/scale": (8,),
        "norms/0/bias": (8,),
        "norms/1/scale": (4,),
        "norms/1/bias": (4,),
        "head/kernel": (4, 3),
        "head/bias": (3,),
    }
    assert set(paths(extra)) == {f"norms/{i}/{name}" for i in (0, 1) for name in ("mean", "var")}
    assert all(isinstance(key, str) for key in params["layers"])


def test_resnet18_has_the_parameters_of_the_reference_for_cifar_and_imagenet():
    def shapes(shape, classes, stem):
        return jax.eval_shape(lambda key: small("resnet18", shape, {"stem": stem}, key, classes)[:2], KEY)

    params, extra = shapes((32, 32, 3), 10, "cifar")
    assert count(params) == 11_173_962
    assert count(extra) == 9_600
    assert count(shapes((224, 224, 3), 1000, "imagenet")[0]) == 11_689_512


@pytest.mark.parametrize(("stem", "side"), [("cifar", 8), ("imagenet", 32)])
def test_resnet18_halves_the_resolution_as_often_as_its_stem_says(stem, side):
    def logits(key, inputs):
        model = models.build("resnet18", (side, side, 3), 10, key=key, stem=stem)
        sizes = []
        block = type(model.blocks[0]).__call__

        def spy(self, x, train, mask):
            out = block(self, x, train, mask)
            sizes.append(out.shape[1])
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.blocks[0]), "__call__", spy)
            out = model(inputs)
        assert sizes == [8, 8, 4, 4, 2, 2, 1, 1]
        return out

    assert jax.eval_shape(logits, KEY, jnp.zeros((2, side, side, 3))).shape == (2, 10)


def test_the_default_layout_of_the_optimizers_projects_kernels_and_nothing_else():
    params = jax.eval_shape(lambda key: small("resnet18", (8, 8, 3), {}, key)[0], KEY)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layout = optim.default_layout(path, leaf)
        assert layout.project == (path[-1].key == "kernel")
        if layout.project:
            assert layout.reduce_axes == tuple(range(leaf.ndim - 1))


def test_initial_parameters_depend_on_the_key_alone():
    one, again, other = (small("mlp", (6,), {}, jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, again)))
    assert not np.array_equal(one["layers"]["0"]["kernel"], other["layers"]["0"]["kernel"])


def test_initialisation_vmapped_over_seeds_equals_one_seed_at_a_time():
    def init(key):
        params, extra, _ = small("convnet", (8, 8, 1), {"widths": (4,)}, key)
        return params, extra

    keys = jax.random.split(KEY, 3)
    stacked = jax.jit(jax.vmap(init))(keys)
    for i, key in enumerate(keys):
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(init(key)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


def test_training_vmaps_over_seeds_and_scans_over_steps():
    *_, apply = small("mlp", (6,), {"widths": (8,), "norm": "batch"})
    inputs = jax.random.normal(KEY, (16, 6))
    labels = jnp.arange(16) % 3
    optimizer = optax.sgd(0.5)

    def run(key):
        params, extra, _ = small("mlp", (6,), {"widths": (8,), "norm": "batch"}, key)

        def loss_fn(params, extra):
            logits, extra = apply(params, extra, inputs, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), extra

        def step(carry, _):
            params, extra, opt_state = carry
            (loss, extra), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, extra)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), extra, opt_state), loss

        return jax.lax.scan(step, (params, extra, optimizer.init(params)), length=20)[1]

    losses = jax.jit(jax.vmap(run))(jax.random.split(KEY, 2))
    assert losses.shape == (2, 20)
    assert (losses[:, -1] < 0.7 * losses[:, 0]).all()


def test_training_moves_the_running_statistics_towards_the_batch_and_evaluation_reads_them():
    params, extra, apply = small("mlp", (2,), {"widths": (4,), "norm": "batch"})
    inputs = 3 + 2 * jax.random.normal(KEY, (64, 2))
    hidden = inputs @ params["layers"]["0"]["kernel"]
    trained, moved = apply(params, extra, inputs, train=True)
    np.testing.assert_allclose(moved["norms"]["0"]["mean"], 0.1 * hidden.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moved["norms"]["0"]["var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-4)
    evaluated, same = apply(params, moved, inputs)
    assert same is moved
    assert not np.allclose(trained, evaluated)
    moved = jax.lax.fori_loop(0, 200, lambda _, extra: apply(params, extra, inputs, train=True)[1], moved)
    np.testing.assert_allclose(apply(params, moved, inputs)[0], trained, atol=1e-4)


def test_an_example_is_evaluated_alike_in_any_batch():
    params, extra, apply = small("convnet", (8, 8, 1), {"widths": (4,)})
    inputs = jax.random.normal(KEY, (6, 8, 8, 1))
    whole = apply(params, extra, inputs)[0]
    np.testing.assert_allclose(apply(params, extra, inputs[2:3])[0], whole[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "shape", "options"), [SMALL[1], SMALL[3]])
def test_masked_examples_change_neither_logits_nor_statistics_nor_gradients(name, shape, options):
    params, extra, apply = small(name, shape, options)
    inputs = jax.random.normal(KEY, (4, *shape))
    mask = jnp.array([1, 1, 0, 1])

    def total(params, inputs, mask):
        logits, moved = apply(params, extra, inputs, train=True, mask=mask)
        kept = logits if mask is None else jnp.where(mask[:, None] != 0, logits, 0)
        return jnp.sum(jnp.sin(kept)), moved

    value_and_grad = jax.jit(jax.value_and_grad(total, has_aux=True))
    kept = value_and_grad(params, inputs[jnp.array([0, 1, 3])], None)
    masked = value_and_grad(params, inputs.at[2].set(1e4), mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), masked, kept)


def test_a_batch_that_is_masked_altogether_leaves_the_statistics_and_stays_finite():
    params, extra, apply = small("mlp", (3,), {"widths": (4,), "norm": "batch"})
    logits, moved = apply(params, extra, jnp.ones((4, 3)), train=True, mask=jnp.zeros(4))
    assert np.isfinite(logits).all()
    jax.tree.map(np.testing.assert_array_equal, moved, extra)


def test_batch_statistics_are_those_of_the_global_batch_on_eight_devices():
    params, extra, apply = small("mlp", (4,), {"widths": (8,), "norm": "batch"})
    inputs = jax.random.normal(KEY, (32, 4)) * jnp.arange(1, 33)[:, None]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("data")))
    one = jax.jit(lambda x: apply(params, extra, x, train=True))(inputs)
    eight = jax.jit(lambda x: apply(params, extra, x, train=True))(sharded)
    assert len(eight[0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eight, one)


@pytest.mark.parametrize(("name", "shape", "options"), [SMALL[1], SMALL[3]])
def test_bfloat16_is_the_dtype_of_the_computation_only(name, shape, options):
    params, extra, apply = small(name, shape, options | {"dtype": "bfloat16"})
    full = small(name, shape, options)
    inputs = jax.random.normal(KEY, (8, *shape))
    logits, moved = apply(params, extra, inputs, train=True)
    expected, statistics = full.apply(params, extra, inputs, train=True)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, moved, logits)))
    assert "bf16" in str(jax.make_jaxpr(lambda x: apply(params, extra, x)[0])(inputs))
    np.testing.assert_allclose(logits, expected, atol=0.1)
    assert not np.array_equal(logits, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.05), moved, statistics)


def test_running_statistics_are_not_rounded_to_bfloat16():
    params, extra, apply = small("mlp", (2,), {"widths": (2,), "norm": "batch", "dtype": "bfloat16"})
    params["layers"]["0"]["kernel"] = jnp.eye(2)
    params["head"]["kernel"] = jnp.ones((2, 3))
    extra["norms"]["0"]["mean"] = jnp.array([0.999, 0.999])  # rounds to 1 in bfloat16
    logits, _ = apply(params, extra, jnp.ones((1, 2)))
    np.testing.assert_allclose(logits, 0.002, rtol=0.01)


def test_dropout_is_drawn_from_the_key_in_training_only():
    params, extra, apply = small("mlp", (6,), {"widths": (64,), "dropout": 0.5})
    inputs = jnp.ones((2, 6))
    one, again, other = (apply(params, extra, inputs, train=True, key=jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(apply(params, extra, inputs, key=KEY)[0], apply(params, extra, inputs)[0])


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("mpl", (4,), 3), {}, "name"),
        (("mlp", (4,), 0), {}, "num_classes"),
        (("mlp", (4, 0), 3), {}, "input_shape"),
        (("convnet", (4,), 3), {}, "input_shape"),
        (("mlp", (4,), 3), {"width": 8}, "width"),
        (("mlp", (4,), 3), {"widths": (8, 0)}, "widths"),
        (("mlp", (4,), 3), {"norm": "group"}, "norm"),
        (("mlp", (4,), 3), {"dropout": 1.0}, "dropout"),
        (("mlp", (4,), 3), {"dtype": "int32"}, "dtype"),
        (("resnet18", (8, 8, 3), 3), {"stem": "small"}, "stem"),
    ],
)
def test_a_bad_argument_is_named(arguments, options, named):
    with pytest.raises(ValueError, match=rf"models.build: argument `{named}`"):
        models.build(*arguments, key=KEY, **options)


def test_inputs_and_mask_of_a_wrong_shape_and_a_missing_key_are_named():
    params, extra, apply = small("mlp", (6,), {"widths": (8,), "dropout": 0.5})
    with pytest.raises(ValueError, match="argument `inputs` is of shape"):
        apply(params, extra, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="argument `mask` is of shape"):
        apply(params, extra, jnp.ones((2, 6)), mask=jnp.ones(3))
    with pytest.raises(ValueError, match="argument `key` is missing"):
        apply(params, extra, jnp.ones((2, 6)), train=True)
