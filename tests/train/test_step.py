import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from train_problem import GROUPS, accuracy, assert_close, assert_equal, batch, loss_fn, params

from reweight import parallel, reduce, weights
from reweight.train import init_state, jit_step, make_step

WEIGHTING = weights.chain(weights.kl_dro(temperature=0.5), weights.group_dro(GROUPS, step_size=0.5))


def start(optimizer=None, seed=0, dtype=jnp.float32):
    optimizer = optax.adam(0.05) if optimizer is None else optimizer
    return init_state(params(seed, dtype), None, optimizer, WEIGHTING, jax.random.key(seed))


def step(optimizer=None, **options):
    optimizer = optax.adam(0.05) if optimizer is None else optimizer
    return make_step(loss_fn, optimizer, weighting=WEIGHTING, metrics=accuracy, **options)


def test_a_step_follows_the_gradient_of_the_reduced_weighted_loss_with_fixed_weights():
    state, data = start(optax.sgd(0.3)), batch()
    losses = loss_fn(state.params, None, data, None).losses
    w, weighting_state = jax.jit(WEIGHTING.update)(state.weighting_state, losses, **data)

    def objective(p):
        return jnp.sum(jnp.where(data["mask"], w * loss_fn(p, None, data, None).losses, 0)) / np.sum(data["mask"])

    value, grads = jax.jit(jax.value_and_grad(objective))(state.params)
    new, metrics = jax.jit(step(optax.sgd(0.3)))(state, data)
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.3 * g, state.params, grads))
    assert_close(new.weighting_state, weighting_state)
    assert new.step == 1
    hits = jnp.argmax(loss_fn(state.params, None, data, None).signals["logits"], -1) == data["labels"]
    expected = {
        "loss": value,
        "unweighted_loss": np.mean(losses[data["mask"]]),
        "grad_norm": optax.tree.norm(grads),
        "effective_sample_size": jnp.sum(w) ** 2 / jnp.sum(w**2),
        "accuracy": np.mean(hits[data["mask"]]),
    }
    assert_close(metrics, expected)


def test_without_a_weighting_a_step_is_plain_training():
    data = batch(masked=False)
    optimizer = optax.sgd(0.3)
    state = init_state(params(), None, optimizer, key=jax.random.key(0))
    grads = jax.grad(lambda p: jnp.mean(loss_fn(p, None, data, None).losses))(state.params)
    new, metrics = jax.jit(make_step(loss_fn, optimizer))(state, data)
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.3 * g, state.params, grads))
    assert metrics["effective_sample_size"] == 16


def test_the_mask_of_the_loss_function_goes_before_that_of_the_batch():
    data = batch()
    kept = np.arange(16) < 5

    def shifted(params, extra, batch, key):
        return loss_fn(params, extra, batch, key)._replace(signals={"mask": batch["kept"]})

    optimizer = optax.sgd(0.3)
    state = init_state(params(), None, optimizer)
    _, metrics = make_step(shifted, optimizer)(state, data | {"kept": kept})
    _, expected = make_step(loss_fn, optimizer)(state, data | {"mask": kept})
    assert_equal(metrics, expected)


def test_an_optimizer_may_read_the_loss():
    def update(grads, state, params=None, *, value, **extra):
        return jax.tree.map(jnp.zeros_like, grads), value

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    state, metrics = jax.jit(step(optimizer))(start(optimizer), batch())
    assert state.opt_state == metrics["loss"] > 0


@pytest.mark.parametrize("microbatches", [1, 2])
def test_parameters_keep_their_type(microbatches):
    state = start(dtype=jnp.bfloat16)
    new, metrics = jax.jit(step(microbatches=microbatches))(state, batch())
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(new.params))
    assert metrics["loss"].dtype == metrics["grad_norm"].dtype == jnp.float32


def test_the_state_is_donated_and_the_callers_parameters_are_not():
    optimizer = optax.ema(0.9)  # whose state starts as zeros
    own = params()
    state = init_state(own, own, optimizer, WEIGHTING, jax.random.key(0))  # the same arrays twice
    new, _ = jit_step(step(optimizer, microbatches=2))(state, batch())
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves((own, new)))


def test_no_array_of_a_state_is_weakly_typed():
    state = init_state({"scale": jnp.asarray(1.0)}, 2.0, optax.sgd(0.1, momentum=0.9))
    assert not any(x.weak_type for x in jax.tree.leaves(state.replace(key=None)))


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("mesh", ["data=8", "data=4,model=2"])
def test_a_mesh_gives_the_numbers_of_one_device(mesh, microbatches):
    mesh = parallel.make_mesh(mesh)
    rules = [(r"hidden", PartitionSpec(None, "model"))] if "model" in mesh.axis_names else []
    state = start()
    shardings = parallel.tree_shardings(state, rules, mesh)
    sharded = jit_step(step(microbatches=microbatches), mesh=mesh, state_shardings=shardings)
    alone = jax.jit(step(microbatches=microbatches))
    there, here = jax.device_put(start(), shardings), state
    for seed in range(2):
        there, there_metrics = sharded(there, parallel.shard_batch(batch(seed=seed), mesh))
        here, here_metrics = alone(here, batch(seed=seed))
    assert_close((there, there_metrics), (here, here_metrics))
    assert there.opt_state[0].mu["hidden"].sharding.spec == (PartitionSpec(None, "model") if rules else PartitionSpec())


def test_microbatches_of_a_sharded_batch_stay_where_they_are():
    mesh = parallel.make_mesh("data=8")
    sharded = jit_step(step(microbatches=2), mesh=mesh)
    lowered = sharded.lower(jax.device_put(start(), parallel.replicated(mesh)), parallel.shard_batch(batch(), mesh))
    program = lowered.compile().as_text()
    assert "all-reduce" in program
    assert not any(moved in program for moved in ("all-to-all", "collective-permute"))


def test_states_of_several_seeds_step_side_by_side():
    states = jax.vmap(lambda seed: start(seed=seed))(jnp.arange(3))
    stepped = jax.jit(jax.vmap(step(), in_axes=(0, None)))(states, batch())
    alone = jax.jit(step())
    for seed in range(3):
        assert_close(jax.tree.map(lambda x, i=seed: x[i], stepped), alone(start(seed=seed), batch()))


def no_output(params, extra, batch, key):
    return loss_fn(params, extra, batch, key).losses


def unreduced(losses, weights, mask):
    return reduce.weighted_mean(losses, weights, where=mask, axis=(), parts=True)


def not_parts(losses, weights, mask):
    return jnp.mean(losses)


RAGGED = {"inputs": jnp.ones((4, 5)), "labels": jnp.ones(3, int)}
MISFITS = [
    ({"microbatches": 0}, "train.make_step: argument `microbatches` is 0"),
    ({"loss_fn": no_output}, "argument `loss_fn` is returning .*; allowed: a function to LossOutput"),
    ({"reduction": not_parts}, "argument `reduction` is returning .*; allowed: a function to Parts of two scalars"),
    ({"reduction": unreduced}, r"`reduction` is returning Parts of shapes \(16,\) and \(16,\)"),
    ({"metrics": lambda signals: {"loss": reduce.Parts(0, 0)}}, "argument `metrics` is naming one 'loss'"),
    ({"metrics": lambda signals: {"hits": jnp.ones(())}}, r"argument `metrics\['hits'\]` is of type"),
    ({"batch": RAGGED}, "`batch` is of sizes: .*inputs.* 4, .*labels.* 3"),
    ({"batch": {"temperature": 1.0}}, "`batch` is of sizes: .*temperature.* a scalar"),
    ({"batch": {}}, "`batch` is of sizes: empty"),
]


@pytest.mark.parametrize(("options", "said"), MISFITS)
def test_what_does_not_fit_is_named(options, said):
    options = {"loss_fn": loss_fn, "batch": batch()} | options
    data = options.pop("batch")
    optimizer = optax.sgd(0.1)
    with pytest.raises(ValueError, match=said):
        make_step(options.pop("loss_fn"), optimizer, **options)(init_state(params(), None, optimizer), data)


def test_shardings_need_a_mesh():
    with pytest.raises(ValueError, match="`mesh` is None; allowed: a Mesh where `state_shardings` are given"):
        jit_step(step(), state_shardings=start())
