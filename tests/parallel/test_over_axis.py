"""Inside a mapped function, `over_axis` gives the numbers and the gradients of one device."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from reweight import parallel, reduce, weights

SHARDS = 4
KINDS = ["shard_map", "shard_map unchecked", "pmap", "vmap"]


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(f"data={SHARDS}", devices=jax.devices()[:SHARDS])


def on_shards(kind, mesh, fn, whole=()):
    """`fn` mapped over the shards of its arguments, those at the positions in `whole` being the same on all.

    Outputs are per-example if they have an axis; scalars come back once, or once a shard from pmap and vmap.
    """

    def call(*args):
        split = [arg if i in whole else arg.reshape(SHARDS, -1, *arg.shape[1:]) for i, arg in enumerate(args)]
        if kind in ("pmap", "vmap"):
            axes = tuple(None if i in whole else 0 for i in range(len(args)))
            mapped = (jax.pmap if kind == "pmap" else jax.vmap)(fn, in_axes=axes, axis_name="data")
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x, mapped(*split))
        local = [jax.ShapeDtypeStruct(x.shape if i in whole else x.shape[1:], x.dtype) for i, x in enumerate(split)]
        ranks = jax.eval_shape(jax.vmap(fn, axis_name="data", axis_size=1, in_axes=None), *local)
        in_specs = tuple(P() if i in whole else P("data") for i in range(len(args)))
        out_specs = jax.tree.map(lambda x: P("data") if x.ndim > 1 else P(), ranks)
        checked = kind == "shard_map"
        return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=checked)(*args)

    return call if kind == "pmap" else jax.jit(call)


def softmax(losses, scale=1.0):
    return losses.shape[0] * jax.nn.softmax(scale * losses)


def spread(losses):
    """A number of the batch that every example's loss is in."""
    return jnp.std(losses) + jax.nn.logsumexp(losses)


def assert_gradients(found, wanted):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), found, wanted)


LOSSES = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)
COTANGENT = jnp.asarray(np.random.default_rng(1).normal(size=16), jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_per_example_outputs_are_this_shards_rows_of_the_global_result(kind, mesh):
    mapped = on_shards(kind, mesh, parallel.over_axis(softmax, "data"))
    np.testing.assert_allclose(mapped(LOSSES), softmax(LOSSES), rtol=1e-6)
    per_shard = jax.vmap(softmax)(LOSSES.reshape(SHARDS, -1)).ravel()
    assert jnp.max(jnp.abs(per_shard - softmax(LOSSES))) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_batch_level_outputs_come_back_whole_on_every_shard(kind, mesh):
    mapped = on_shards(kind, mesh, parallel.over_axis(spread, "data"))
    np.testing.assert_allclose(mapped(LOSSES), jnp.broadcast_to(spread(LOSSES), mapped(LOSSES).shape), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_taken_outside_is_the_one_of_one_device(kind, mesh):
    def both(losses, scale):
        return softmax(losses, scale), spread(scale * losses)

    def total(fn):
        def scalar(losses, scale):
            per_example, batch_level = fn(losses, scale)
            return jnp.sum(COTANGENT * per_example) + jnp.mean(batch_level)

        return jax.grad(scalar, (0, 1))

    mapped = on_shards(kind, mesh, parallel.over_axis(both, "data"), whole=(1,))
    scale = jnp.float32(0.7)
    taken = total(mapped) if kind == "pmap" else jax.jit(total(mapped))
    assert_gradients(taken(LOSSES, scale), total(both)(LOSSES, scale))


def model(parameters, inputs):
    return jnp.tanh(inputs @ parameters["kernel"]).sum(-1) ** 2


def problem():
    draw = np.random.default_rng(2).normal
    parameters = {"kernel": jnp.asarray(draw(size=(3, 2)), jnp.float32)}
    return parameters, jnp.asarray(draw(size=(16, 3)), jnp.float32)


def replicated_loss(weigh, everywhere, parameters, inputs):
    """The same number on all shards: a batch-level value, plus the mean over shards of weighted means."""
    losses = model(parameters, inputs)
    per_shard = jnp.mean(weigh(losses) * losses)
    return everywhere(per_shard) + parallel.over_axis(spread, "data")(losses)


def wanted_gradient():
    def loss(parameters, inputs):
        losses = model(parameters, inputs)
        return jnp.mean(softmax(losses) * losses) + spread(losses)

    return jax.grad(loss)(*problem())


def test_inside_checked_shard_map_the_gradient_of_a_replicated_loss_needs_no_reduction(mesh):
    weigh = parallel.over_axis(softmax, "data")

    def gradient(parameters, inputs):
        everywhere = partial(jax.lax.pmean, axis_name="data")
        return jax.grad(partial(replicated_loss, weigh, everywhere))(parameters, inputs)

    mapped = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    assert_gradients(mapped(*problem()), wanted_gradient())


def test_inside_checked_shard_map_per_shard_losses_give_the_gradient_of_their_sum(mesh):
    def gradient(parameters, inputs):
        def loss(parameters):
            losses = model(parameters, inputs)
            return jnp.sum(parallel.over_axis(softmax, "data")(losses) * losses)

        return jax.grad(loss)(parameters)

    def whole(parameters, inputs):
        losses = model(parameters, inputs)
        return jnp.sum(softmax(losses) * losses)

    mapped = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    assert_gradients(mapped(*problem()), jax.grad(whole)(*problem()))


@pytest.mark.parametrize("everywhere", [partial(jax.lax.pmean, axis_name="data"), lambda x: x], ids=["pmean", "share"])
@pytest.mark.parametrize("kind", ["shard_map unchecked", "pmap", "vmap"])
def test_without_the_check_the_mean_of_the_shards_gradients_is_the_one_of_one_device(kind, everywhere, mesh):
    weigh = parallel.over_axis(softmax, "data")

    def gradient(parameters, inputs):
        return jax.lax.pmean(jax.grad(partial(replicated_loss, weigh, everywhere))(parameters, inputs), "data")

    parameters, inputs = problem()
    axes = (None, 0)
    split = inputs.reshape(SHARDS, -1, 3)
    if kind == "shard_map unchecked":
        specs = {"in_specs": (P(), P("data")), "out_specs": P(), "check_vma": False}
        found = jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(parameters, inputs)
    elif kind == "pmap":
        found = jax.tree.map(lambda x: x[1], jax.pmap(gradient, axis_name="data", in_axes=axes)(parameters, split))
    else:
        mapped = jax.jit(jax.vmap(gradient, axis_name="data", in_axes=axes))
        found = jax.tree.map(lambda x: x[1], mapped(parameters, split))
    assert_gradients(found, wanted_gradient())


def test_several_axes_cut_the_batch_in_the_order_of_its_spec():
    mesh = parallel.make_mesh("data=2,fsdp=2,model=2")
    spec = P(("fsdp", "data"))
    ranked = parallel.over_axis(lambda x: jnp.argsort(jnp.argsort(x)), ("fsdp", "data"))
    mapped = jax.jit(jax.shard_map(ranked, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_array_equal(mapped(LOSSES), jnp.argsort(jnp.argsort(LOSSES)))
    with pytest.raises(ValueError, match="argument `x` is the same on every shard of data;"):
        jax.eval_shape(jax.shard_map(ranked, mesh=mesh, in_specs=P("fsdp"), out_specs=spec), LOSSES)
    for outer, inner in [("fsdp", "data"), ("data", "fsdp")]:
        ranked = parallel.over_axis(lambda x: jnp.argsort(jnp.argsort(x)), (outer, inner))
        nested = jax.vmap(jax.vmap(ranked, axis_name=inner), axis_name=outer)(LOSSES.reshape(2, 2, -1))
        np.testing.assert_array_equal(nested.ravel(), jnp.argsort(jnp.argsort(LOSSES)))


GROUPS = jnp.asarray(np.random.default_rng(3).integers(0, 3, 16))
MASK = jnp.asarray(np.random.default_rng(4).integers(0, 2, 16), bool)
SCHEMES = {
    "kl_dro": weights.kl_dro(temperature=0.5),
    "group_dro": weights.group_dro(num_groups=3, step_size=0.5),
    "chain": weights.chain(weights.cvar_dro(alpha=0.3), weights.group_dro(num_groups=3, step_size=0.1)),
    "uniform": weights.uniform(),
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", ["shard_map", "vmap"])
def test_a_weighting_has_one_state_for_all_shards_and_the_weights_of_the_global_batch(kind, name, mesh):
    scheme, sharded = SCHEMES[name], parallel.over_axis_weighting(SCHEMES[name], "data")
    assert sharded._replace(update=scheme.update) == scheme

    def run(weighting):
        def two_steps(losses, groups, mask):
            state = weighting.init()
            first, state = weighting.update(state, losses, groups=groups, mask=mask)
            second, state = weighting.update(state, -losses, groups=groups, mask=mask)
            return first, second, jax.tree.map(jnp.sum, state)

        return two_steps

    found = on_shards(kind, mesh, run(sharded))(LOSSES, GROUPS, MASK)
    wanted = run(scheme)(LOSSES, GROUPS, MASK)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, jnp.broadcast_to(want, got.shape), rtol=1e-5, atol=1e-6)


def test_trees_and_keywords_are_gathered_and_scalars_and_bound_tables_are_not(mesh):
    counts = jnp.array([5.0, 3.0, 8.0])

    def fn(signals, power, *, groups, counts, mode="mean"):
        assert signals["loss"].shape == (16,)
        assert counts.shape == (3,)
        assert mode == "mean"
        share = jnp.power(counts, power)[groups]
        return {"rows": share * signals["loss"] / jnp.mean(signals["loss"]), "table": counts / jnp.sum(counts)}

    mapped = parallel.over_axis(partial(fn, counts=counts), "data", batched_out={"rows": True, "table": False})
    specs = {"in_specs": (P("data"), P("data")), "out_specs": {"rows": P("data"), "table": P()}}
    found = jax.jit(jax.shard_map(lambda x, g: mapped({"loss": x}, 2, groups=g), mesh=mesh, **specs))(LOSSES, GROUPS)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5), found, fn({"loss": LOSSES}, 2, groups=GROUPS, counts=counts)
    )


def test_a_whole_argument_is_said_by_name(mesh):
    def fn(losses, counts):
        return losses / jnp.sum(counts)

    mapped = parallel.over_axis(fn, "data", batched_in={"counts": False})
    specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
    found = jax.jit(jax.shard_map(mapped, mesh=mesh, **specs))(LOSSES, jnp.arange(5.0))
    np.testing.assert_allclose(found, LOSSES / 10, rtol=1e-6)


def test_keys_are_rows_too(mesh):
    keys = jax.random.split(jax.random.key(0), 16)
    draw = parallel.over_axis(jax.vmap(jax.random.bits), "data")
    found = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(keys)
    np.testing.assert_array_equal(found, jax.vmap(jax.random.bits)(keys))


def test_the_mapped_function_can_be_lifted_to_a_weighting(mesh):
    fn = partial(weights.kl_dro_weights, temperature=2.0)
    lifted = weights.stateless(parallel.over_axis(fn, "data"))

    def weigh(losses, mask):
        return lifted.update(lifted.init(), losses, mask=mask)[0]

    found = jax.jit(jax.shard_map(weigh, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(LOSSES, MASK)
    np.testing.assert_allclose(found, fn(LOSSES, mask=MASK), rtol=1e-5)


@hypothesis.settings(max_examples=8)
@hypothesis.given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([jnp.float32, jnp.bfloat16, jnp.int32, bool]))
def test_gathering_and_cutting_is_the_identity(rows, shards, dtype):
    values = jnp.arange(rows * shards * 2).reshape(shards, rows, 2).astype(dtype)
    mapped = jax.vmap(parallel.over_axis(lambda x: x, "data"), axis_name="data")
    np.testing.assert_array_equal(mapped(values), values)


ROWS = P("data")


def call(mesh, fn, *args, specs=ROWS, out=ROWS, **kwargs):
    mapped = parallel.over_axis(fn, "data", **kwargs)
    return jax.eval_shape(jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=out), *args)


def test_a_table_that_is_not_said_to_be_whole_is_an_error(mesh):
    specs = (P("data"), P())
    for table in (jnp.arange(4.0), jnp.arange(5.0)):
        with pytest.raises(ValueError, match="argument `counts` is the same on every shard of data") as error:
            call(mesh, lambda losses, counts: losses, LOSSES, table, specs=specs)
        assert "batched_in={'counts': False}" in str(error.value)


def test_constant_rows_are_taken_when_they_are_said_to_be_rows(mesh):
    def weigh(losses):
        mask = jnp.ones(losses.shape, bool)
        return parallel.over_axis(weights.kl_dro_weights, "data", batched_in={"mask": True})(losses, mask=mask)

    found = jax.jit(jax.shard_map(weigh, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(LOSSES)
    np.testing.assert_allclose(found, weights.kl_dro_weights(LOSSES), rtol=1e-5)


def test_bad_calls_are_named(mesh):
    with pytest.raises(ValueError, match=r"argument `counts` is of shape \(2,\); allowed: 4 rows"):
        call(mesh, lambda losses, counts: losses, LOSSES, jnp.arange(8.0))
    with pytest.raises(ValueError, match="argument `fn` is called without a per-example argument"):
        call(mesh, lambda scale: scale, 1.0, specs=P(), out=P())
    with pytest.raises(ValueError, match="argument `scale` is without an axis"):
        call(mesh, lambda x, scale: x, LOSSES, 1.0, specs=(P("data"), P()), batched_in={"scale": True})
    with pytest.raises(ValueError, match="argument `batched_in` is for 'sclae'; allowed: parameters: x, scale"):
        parallel.over_axis(lambda x, scale: x, "data", batched_in={"sclae": False})
    with pytest.raises(ValueError, match=r"argument `batched_in` is \(True, False\); allowed: a prefix"):
        call(mesh, lambda x: x, LOSSES, batched_in={"x": (True, False)})
    with pytest.raises(ValueError, match="argument `batched_in` is 'yes'; allowed: a bool"):
        call(mesh, lambda x: x, LOSSES, batched_in={"x": "yes"})
    with pytest.raises(ValueError, match=r"argument `batched_out` is for an output of shape \(3,\).*allowed: 16 rows"):
        call(mesh, lambda x: jnp.arange(3.0), LOSSES)
    with pytest.raises(ValueError, match=r"argument `batched_out` is for an output\[1\] of shape \(\)"):
        call(mesh, lambda x: (x, jnp.sum(x)), LOSSES, batched_out=True)
    with pytest.raises(ValueError, match=r"argument `axis_name` is .*'dta'"):
        jax.shard_map(parallel.over_axis(softmax, "dta"), mesh=mesh, in_specs=P("data"), out_specs=P("data"))(LOSSES)
    for names in [(), ("data", "data"), 3 * ("data",), (1,)]:
        with pytest.raises(ValueError, match="over_axis: argument `axis_name`"):
            parallel.over_axis(softmax, names)


def test_a_state_that_differs_between_shards_is_refused(mesh):
    scheme = parallel.over_axis_weighting(weights.group_dro(num_groups=4, step_size=0.1), "data")

    def weigh(losses, groups, own):
        state = jax.tree.map(lambda leaf: leaf * jnp.sum(own), scheme.init())
        return scheme.update(state, losses, groups=groups)[1]

    with pytest.raises(ValueError, match="out_specs"):
        jax.eval_shape(jax.shard_map(weigh, mesh=mesh, in_specs=ROWS, out_specs=P()), LOSSES, GROUPS, LOSSES)


def test_under_jit_a_weighted_loss_is_global_and_exchanges_numbers_not_rows():
    mesh = parallel.make_mesh("data=8")

    def loss(losses):
        return reduce.weighted_mean(losses, weights.kl_dro_weights(losses, temperature=0.5), normalizer="count")

    compiled = jax.jit(jax.value_and_grad(loss), in_shardings=parallel.batch_sharding(mesh)).lower(LOSSES).compile()
    value, gradient = compiled(jax.device_put(LOSSES, parallel.batch_sharding(mesh)))
    wanted = jax.value_and_grad(loss)(LOSSES)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-5, atol=1e-6)
    assert gradient.sharding.is_equivalent_to(parallel.batch_sharding(mesh), 1)
    program = compiled.as_text()
    assert "all-reduce(" in program
    assert "all-gather(" not in program


def test_on_shards_a_weighting_costs_one_gather_of_the_losses(mesh):
    kl_dro = parallel.over_axis(partial(weights.kl_dro_weights, temperature=0.5), "data")
    mapped = jax.jit(jax.shard_map(kl_dro, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    program = mapped.lower(LOSSES).compile().as_text()
    assert program.count(" all-gather(") == 1
    assert "all-reduce(" not in program
