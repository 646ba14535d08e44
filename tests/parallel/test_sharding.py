import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from reweight import parallel


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh("data=4,model=2")


RULES = [
    (r"embed", P("model", None)),
    (r"block_\d+/kernel", P(None, "model")),
    (r"kernel", P(("data", "model"), None)),
]


def params():
    zeros = jnp.zeros
    return {
        "embed": zeros((6, 3)),
        "block_0": {"kernel": zeros((3, 4)), "bias": zeros(4)},
        "block_12": {"kernel": zeros((4, 4))},
        "head": {"kernel": zeros((8, 5)), "kernels": zeros(3)},
    }


def specs(shardings):
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def test_the_first_rule_that_matches_the_path_counts_and_the_rest_is_replicated(mesh):
    assert specs(parallel.tree_shardings(params(), RULES, mesh)) == {
        "embed": P("model", None),
        "block_0": {"kernel": P(None, "model"), "bias": P()},
        "block_12": {"kernel": P(None, "model")},
        "head": {"kernel": P(("data", "model"), None), "kernels": P()},
    }


def test_a_rule_matches_whole_names_at_the_end_of_the_path(mesh):
    def matches(pattern):
        tree = {"encoder": {"mlp": {"up": jnp.zeros(2)}}}
        return specs(parallel.tree_shardings(tree, [(pattern, P("model"))], mesh))["encoder"]["mlp"]["up"] == P("model")

    assert all(map(matches, ["up", "mlp/up", "encoder/.*", "encoder/mlp/up", "u.", ".*", "mlp/(up|gate)", "down|up"]))
    assert not any(map(matches, ["p", "mlp", "encoder", "encoder/mlp", "lp/up", "mlp/u"]))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-3),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10))),
        optax.inject_hyperparams(optax.sgd)(1e-3, momentum=0.9),
        optax.multi_transform({"a": optax.adam(1e-3)}, lambda tree: jax.tree.map(lambda _: "a", tree)),
        optax.MultiSteps(optax.lion(1e-3), 2),
        optax.masked(optax.adam(1e-3), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
    ],
    ids=["adam", "chain", "inject_hyperparams", "multi_transform", "MultiSteps", "masked"],
)
def test_moments_are_sharded_like_their_parameters(mesh, optimizer):
    placed = jax.device_put(params(), parallel.tree_shardings(params(), RULES, mesh))
    state = jax.eval_shape(optimizer.init, params())
    state = jax.device_put(optimizer.init(params()), parallel.tree_shardings(state, RULES, mesh))
    like = jax.tree.leaves(
        jax.tree.map(lambda x: (x.shape, x.sharding.spec), placed), is_leaf=lambda x: type(x) is tuple
    )
    ranked = {shape: spec for shape, spec in like if len(shape) > 1}
    found = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert len(found) >= len(ranked)
    for leaf in found:
        assert leaf.sharding.spec == ranked[leaf.shape]


def test_flax_states_have_the_paths_of_their_modules(mesh):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)])
            self.norm = nnx.BatchNorm(6, rngs=rngs)

    state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))[1]
    rules = [("layers/0/kernel", P(None, "model")), ("norm/mean", P("model"))]
    found = {
        jax.tree_util.keystr(path): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(parallel.tree_shardings(state, rules, mesh))
    }
    cut = {path: spec for path, spec in found.items() if spec != P()}
    assert sorted(cut.values(), key=str) == [P("model"), P(None, "model")]
    assert len(found) == 8
    assert all("'kernel'" in path or "'mean'" in path for path in cut)


def test_a_parameter_called_value_keeps_its_name(mesh):
    tree = {"attention": {"value": jnp.zeros((4, 4))}}
    assert specs(parallel.tree_shardings(tree, [("value", P("model"))], mesh)) == {"attention": {"value": P("model")}}


def test_a_dimension_that_does_not_divide_is_an_error_or_left_whole(mesh):
    tree = {"layer": {"kernel": jnp.zeros((8, 5))}}
    rules = [("kernel", P("data", "model"))]
    with pytest.raises(ValueError, match=r"'layer/kernel' of shape \(8, 5\), whose dimension 1 does not divide into 2"):
        parallel.tree_shardings(tree, rules, mesh)
    placed = parallel.tree_shardings(tree, rules, mesh, indivisible="replicate")
    assert placed["layer"]["kernel"].spec == P("data", None)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([("embed", P("expert"))], "the axis 'expert'; allowed: an axis of the mesh (data=4, model=2)"),
        ([("nothing like it", P("expert"))], "the axis 'expert'"),
        ([("embed", P("model", "model"))], "each axis of the mesh once"),
        ([("embed", P("model", None, None))], "at most one entry for each dimension"),
        ([("(embed", P("model"))], "a regular expression"),
        ([("embed", "model")], "a pair (regular expression, PartitionSpec)"),
    ],
)
def test_a_bad_rule_is_named(mesh, rules, says):
    with pytest.raises(ValueError, match="tree_shardings: argument `rules") as error:
        parallel.tree_shardings(params(), rules, mesh)
    assert says in str(error.value)


def test_replicated_is_whole_on_every_device(mesh):
    assert jax.device_put(jnp.arange(3), parallel.replicated(mesh)).is_fully_replicated


@pytest.mark.parametrize(("axis", "shards"), [("data", 4), ("model", 2), (("data", "model"), 8)])
def test_a_batch_is_cut_by_rows_in_order(mesh, axis, shards):
    rows = np.arange(24).reshape(8, 3)
    array = parallel.shard_batch({"x": rows, "y": rows[:, 0]}, mesh, axis=axis)
    np.testing.assert_array_equal(array["x"], rows)
    assert array["x"].sharding.is_equivalent_to(parallel.batch_sharding(mesh, axis), 2)
    assert array["y"].addressable_shards[0].data.shape == (8 // shards,)


def test_a_batch_that_is_on_the_devices_already_is_taken_too(mesh):
    array = parallel.shard_batch(jnp.arange(8), mesh)
    assert array.sharding == parallel.batch_sharding(mesh)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"x": np.zeros((6, 2))}, "argument `batch['x']` is of 6 rows for 4 shards"),
        ({"x": np.zeros(8), "y": np.zeros(4)}, "argument `batch['y']` is of 4 rows; allowed: the 8 rows"),
        ({"x": np.float32(1)}, "argument `batch['x']` is a scalar"),
    ],
)
def test_a_bad_batch_is_named(mesh, batch, says):
    with pytest.raises(ValueError, match="shard_batch") as error:
        parallel.shard_batch(batch, mesh)
    assert says in str(error.value)


def test_an_axis_that_the_mesh_has_not_is_named(mesh):
    with pytest.raises(ValueError, match="the axis 'batch'; allowed: an axis of the mesh"):
        parallel.batch_sharding(mesh, "batch")
