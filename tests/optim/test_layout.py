import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from reweight.optim import ParamLayout, default_layout, layout_rules, param_layouts, path_name, stacked

SKIP = ParamLayout(project=False)


def layouts(params, layout=None):
    """Layouts by path name, of a tree whose leaves are shapes."""
    tree = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), params, is_leaf=lambda x: type(x) is tuple
    )
    found = jax.tree_util.tree_leaves_with_path(param_layouts(tree, layout))
    return {path_name(path): leaf for path, leaf in found}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("dense/kernel", (4, 3), ParamLayout((0,))),
        ("dense/bias", (3,), SKIP),
        ("conv/kernel", (2, 2, 3, 4), ParamLayout((0, 1, 2))),
        ("conv1d/kernel", (2, 3, 4), ParamLayout((0, 1))),
        ("conv_transpose/kernel", (2, 2, 3, 4), ParamLayout((0, 1, 2))),
        ("embed/embedding", (7, 4), ParamLayout((1,))),
        ("pos_embedding", (1, 9, 4), ParamLayout((2,))),
        ("norm/scale", (4,), SKIP),
        ("attention/query/kernel", (4, 2, 3), ParamLayout((0,))),
        ("attention/query/bias", (2, 3), SKIP),
        ("attention/out/kernel", (2, 3, 4), ParamLayout((0, 1))),
        ("attention/qkv/kernel", (4, 3, 2, 3), ParamLayout((0,))),
        ("q_proj/w", (4, 2, 3), ParamLayout((0,))),
        ("query/kernel", (4, 6), ParamLayout((0,))),
        ("lora_a", (4, 2), ParamLayout((0,))),
        ("lora_b", (2, 3), ParamLayout((0,))),
        ("temperature", (), SKIP),
    ],
)
def test_flax_parameters_have_rows_over_their_inputs(path, shape, expected):
    assert layouts({path: shape})[path] == expected


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("layers/dense/kernel", (5, 4, 3), ParamLayout((1,), (0,))),
        ("layers/dense/bias", (5, 3), ParamLayout((), (0,), project=False)),
        ("layers/attention/query/kernel", (5, 4, 2, 3), ParamLayout((1,), (0,))),
        ("layers/attention/out/kernel", (5, 2, 3, 4), ParamLayout((1, 2), (0,))),
        ("layers/attention/query/bias", (5, 2, 3), ParamLayout((), (0,), project=False)),
        ("encoder/ScanBlock_0/conv/kernel", (5, 2, 2, 3, 4), ParamLayout((1, 2, 3), (0,))),
        ("VmapDense_0/kernel", (5, 4, 3), ParamLayout((1,), (0,))),
        ("layers/ScanBlock_0/dense/kernel", (5, 4, 3), ParamLayout((1,), (0,))),
        ("blocks/moe/experts/kernel", (5, 8, 4, 3), ParamLayout((2,), (0, 1))),
        ("layer_stack/embedding", (5, 7, 3), ParamLayout((2,), (0,))),
        ("decoder/query/kernel", (5, 4, 2, 3), ParamLayout((1,), (0,))),
    ],
)
def test_a_stack_puts_batch_axes_in_front(path, shape, expected):
    assert layouts({path: shape})[path] == expected


@pytest.mark.parametrize(
    "path", ["layers/0/kernel", "layers/layer_1/kernel", "blocks/2/conv/kernel", "layers_0/kernel", "expert_3/kernel"]
)
def test_a_list_of_modules_is_no_stack(path):
    assert layouts({path: (3, 4, 5)})[path] == ParamLayout((0, 1))


def test_a_kernel_keeps_two_axes_under_the_name_of_a_stack():
    assert layouts({"experts/router/kernel": (4, 8)}) == {"experts/router/kernel": ParamLayout((0,))}


def test_nnx_modules_are_laid_out_like_linen_modules():
    @nnx.split_rngs(splits=5)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs):
        return nnx.Linear(3, 4, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 4, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=4, decode=False, rngs=rngs)
            self.up = nnx.ConvTranspose(3, 4, (2, 2), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.heads = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs))
            self.layers = stack(rngs)

    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    expected = {
        "embed/embedding": ParamLayout((1,)),
        "attention/query/kernel": ParamLayout((0,)),
        "attention/query/bias": SKIP,
        "attention/value/kernel": ParamLayout((0,)),
        "attention/out/kernel": ParamLayout((0, 1)),
        "up/kernel": ParamLayout((0, 1, 2)),
        "norm/scale": SKIP,
        "heads/layers/0/kernel": ParamLayout((0,)),
        "layers/kernel": ParamLayout((1,), (0,)),
        "layers/bias": ParamLayout((), (0,), project=False),
    }
    for tree in (state, nnx.to_pure_dict(state)):
        found = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(param_layouts(tree))}
        assert {name: found[name] for name in expected} == expected


def test_linen_modules_scanned_by_nn_scan_are_recognised():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4)(x), None

    scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.MultiHeadDotProductAttention(2)(x)
            return scanned()(x, None)[0]

    params = jax.eval_shape(Model().init, jax.random.key(0), jnp.ones((1, 3, 4)))["params"]
    found = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(param_layouts(params))}
    assert found["ScanBlock_0/Dense_0/kernel"] == ParamLayout((1,), (0,))
    assert found["ScanBlock_0/Dense_0/bias"] == ParamLayout((), (0,), project=False)
    assert found["MultiHeadDotProductAttention_0/key/kernel"] == ParamLayout((0,))
    assert found["MultiHeadDotProductAttention_0/key/bias"] == SKIP


def test_the_first_pattern_that_is_found_decides():
    rule = layout_rules(
        [
            ("decoder/layers/", stacked(axes=1)),
            ("up/kernel$", ParamLayout((0, 1, -1))),
            ("router", ParamLayout(project=False)),
            ("kernel", ParamLayout((1,))),
        ]
    )
    shapes = {
        "decoder": {"layers": {"query": {"kernel": (4, 5, 2, 3)}, "mlp": {"kernel": (4, 5, 6), "bias": (6, 5)}}},
        "up": {"kernel": (2, 2, 3, 4)},
        "router": {"kernel": (4, 8)},
        "dense": {"kernel": (4, 8)},
        "embed": {"embedding": (4, 8)},
    }
    assert layouts(shapes, rule) == {
        "decoder/layers/query/kernel": ParamLayout((0,), (1,)),
        "decoder/layers/mlp/kernel": ParamLayout((0,), (1,)),
        "decoder/layers/mlp/bias": ParamLayout((), (1,), project=False),
        "up/kernel": ParamLayout((0, 1, 3)),
        "router/kernel": SKIP,
        "dense/kernel": ParamLayout((1,)),
        "embed/embedding": ParamLayout((1,)),
    }


def test_a_stack_of_stacks_has_two_batch_axes():
    rule = stacked(axes=(0, 1))
    assert layouts({"a/kernel": (2, 5, 4, 3)}, rule)["a/kernel"] == ParamLayout((2,), (0, 1))
    assert layouts({"a/bias": (3,)}, rule)["a/bias"] == SKIP


def test_integer_parameters_are_never_projected():
    assert default_layout((), jnp.zeros((3, 3), jnp.int32)) == SKIP


@pytest.mark.parametrize("layout", [ParamLayout((2,)), ParamLayout((0, -2)), ParamLayout((0,), (0,)), ParamLayout()])
def test_a_layout_that_does_not_fit_its_parameter_raises(layout):
    with pytest.raises(ValueError, match=r"a/kernel.*laid out as"):
        layouts({"a": {"kernel": (3, 4)}}, lambda path, leaf: layout)


@pytest.mark.parametrize("rule", [("(", ParamLayout((0,))), ("kernel", (0,))])
def test_a_rule_that_is_none_raises(rule):
    with pytest.raises(ValueError, match=r"layout_rules: argument `rules\[0\]`"):
        layout_rules([rule])


def test_layouts_reach_the_leaves_that_a_mask_leaves():
    params = {"a": {"kernel": jnp.ones((3, 4))}, "b": {"kernel": jnp.ones((3, 4))}}
    masked = {"a": params["a"], "b": {"kernel": optax.MaskedNode()}}
    found = jax.tree_util.tree_leaves_with_path(param_layouts(masked))
    assert [path_name(path) for path, _ in found] == ["a/kernel"]


@pytest.mark.parametrize("name", ["a", "b", "w", "x", "mat"])
def test_a_matrix_under_any_other_name_is_a_kernel(name):
    layout = param_layouts({name: jnp.ones((3, 4))})[name]
    assert layout == ParamLayout((0,))
