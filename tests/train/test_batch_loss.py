"""A step with a loss of the batch or of the stream: the statistic is of the whole batch, however it is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from train_problem import assert_close, assert_equal

from reweight import reduce, weights
from reweight.losses import BatchLoss, preference
from reweight.train import Checkpointer, LossOutput, init_state, jit_step, make_step, run_on_device

SIZE, FEATURES = 16, 3
PAIRS = ("policy_chosen", "policy_rejected")
LOSSES = {
    "batch_kto": preference.batch_kto(beta=0.5, desirable_weight=1.3),
    "stream_bco": preference.stream_bco(beta=0.5),
    "stream_bco of pairs": preference.stream_bco(beta=0.5, pairs=True),
    "beta_dpo": preference.beta_dpo(beta=0.5),
    "batch_aot": preference.batch_aot(beta=0.5, label_smoothing=0.1),
    "batch_aot_unpaired": preference.batch_aot_unpaired(beta=0.5),
}


def data(seed=0, size=SIZE, dtype=np.float32, masked=True):
    rng = np.random.default_rng(seed)
    names = ("policy", "policy_mismatched", *PAIRS)
    arrays = {f"inputs_{name}": rng.normal(size=(size, FEATURES)).astype(dtype) for name in names}
    arrays |= {name.replace("policy", "reference"): rng.normal(size=size).astype(dtype) for name in names}
    arrays |= {"desirable": rng.random(size) < 0.6, "labels": rng.integers(0, 3, size).astype(np.int32)}
    return arrays | ({"mask": rng.random(size) < 0.7} if masked else {})


def signals_of(params, batch):
    return {
        name: jnp.tanh(batch[f"inputs_{name}"] @ params["kernel"]) @ params["out"]
        for name in ("policy", "policy_mismatched", *PAIRS)
    }


def signals_fn(params, extra, batch, key):
    del extra, key
    return LossOutput(signals=signals_of(params, batch))


def parameters(dtype=jnp.float32):
    key = jax.random.key(3)
    return {"kernel": jax.random.normal(key, (FEATURES, 4), dtype), "out": jnp.arange(1, 5, dtype=dtype)}


OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def start(loss, weighting=None, dtype=jnp.float32, key=0):
    return init_state(parameters(dtype), None, OPTIMIZER, weighting, jax.random.key(key), loss=loss)


@functools.cache
def compiled(name, microbatches, scheme=None):
    step = make_step(signals_fn, OPTIMIZER, loss=LOSSES[name], weighting=WEIGHTINGS[scheme], microbatches=microbatches)
    return jax.jit(step)


WEIGHTINGS = {
    None: None,
    "chained": weights.chain(weights.kl_dro(temperature=0.5), weights.group_dro(3, step_size=0.5, signal="labels")),
}


@pytest.mark.parametrize("name", LOSSES)
def test_microbatches_are_the_whole_batch_in_float64(name, x64):
    ends = []
    for microbatches in (1, 4):
        state = start(LOSSES[name], WEIGHTINGS["chained"], jnp.float64)
        for seed in range(2):
            state, metrics = compiled(name, microbatches, "chained")(state, data(seed, dtype=np.float64))
        ends.append((state, metrics))
    assert ends[0][0].params["out"].dtype == jnp.float64
    assert not np.allclose(ends[0][0].params["out"], parameters()["out"])
    assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_losses_given_the_statistic(name):
    loss, batch = LOSSES[name], data()

    def value(params):
        values, state = loss.update(start(loss).loss_state, **batch, **signals_of(params, batch))
        return reduce.weighted_mean(values, where=batch["mask"]), state

    (total, loss_state), grads = jax.value_and_grad(value, has_aux=True)(parameters())
    new, metrics = compiled(name, 1)(start(loss), batch)
    assert_close(metrics["loss"], total)
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.1 * g, parameters(), grads))
    assert_close(new.loss_state, loss_state)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_an_example_changes_nothing(name):
    batch = data()
    warm, _ = compiled(name, 1)(start(LOSSES[name]), batch)
    still = warm.replace(opt_state=OPTIMIZER.init(warm.params))
    dirty = {n: np.full_like(x, np.nan) if n.startswith("reference") else x for n, x in batch.items()}
    for microbatches in (1, 4):
        new, metrics = compiled(name, microbatches)(still, dirty | {"mask": np.zeros(SIZE, bool)})
        assert_equal((new.params, new.loss_state), (still.params, still.loss_state))
        assert metrics["loss"] == metrics["grad_norm"] == 0


@pytest.mark.parametrize("name", ["stream_bco", "beta_dpo", "batch_aot_unpaired"])
def test_eight_devices_take_the_step_of_one(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for microbatches in (1, 2):
        alone, measured = compiled(name, microbatches)(start(LOSSES[name]), data())
        step = make_step(signals_fn, OPTIMIZER, loss=LOSSES[name], microbatches=microbatches)
        spread, wanted = jit_step(step, mesh=mesh)(start(LOSSES[name]), data())
        assert_close((spread, wanted), (alone, measured))


def test_seeds_side_by_side_on_the_device_are_the_seeds_one_by_one():
    loss, keys = LOSSES["beta_dpo"], jax.random.split(jax.random.key(1), 2)
    step = make_step(signals_fn, OPTIMIZER, loss=loss)
    begin = functools.partial(init_state, parameters(), None, OPTIMIZER, None, loss=loss)
    options = {"batch_size": 8, "num_steps": 5}
    both = run_on_device(step, jax.vmap(begin)(keys), data(size=24), jax.random.key(2), **options)
    for seed, key in enumerate(keys):
        single = run_on_device(step, begin(key), data(size=24), jax.random.key(2), **options)
        pick = jax.tree.map(lambda x, seed=seed: x[seed], both.state)
        assert_close((pick.params, pick.loss_state), (single.state.params, single.state.loss_state))
    assert not np.array_equal(*both.state.params["out"])  # the seeds draw different pairs


def test_a_checkpoint_holds_the_state_of_the_loss(tmp_path):
    for name in ("stream_bco", "beta_dpo"):
        state, _ = compiled(name, 1)(start(LOSSES[name]), data())
        with Checkpointer(tmp_path / name) as checkpointer:
            checkpointer.save(1, state)
            restored = checkpointer.restore(start(LOSSES[name], key=7))
        assert_equal(restored.state, state)
        after, _ = compiled(name, 1)(restored.state, data(1))
        assert_equal(after, compiled(name, 1)(state, data(1))[0])


def test_a_loss_adds_nothing_to_a_state_without_one():
    state = init_state(parameters(), None, OPTIMIZER, key=jax.random.key(4))
    assert state.loss_state == ()
    with_loss = init_state(parameters(), None, OPTIMIZER, key=jax.random.key(4), loss=LOSSES["beta_dpo"])
    assert_equal(with_loss.replace(loss_state=()), state)


def test_a_scalar_and_a_row_of_the_statistics_reach_their_microbatch():
    def statistics(state, **signals):
        values = signals["policy"]
        return {"mean": jnp.mean(values), "rank": jnp.argsort(jnp.argsort(values)).astype(values.dtype)}, state + 1

    def losses(statistics, **signals):
        return (signals["policy"] - statistics["mean"]) * statistics["rank"]

    loss = BatchLoss(lambda key=None: jnp.zeros(()), statistics, losses)
    ends = []
    for microbatches in (1, 2, SIZE):
        step = jax.jit(make_step(signals_fn, OPTIMIZER, loss=loss, microbatches=microbatches))
        ends.append(step(start(loss), data(masked=False)))
    assert ends[0][0].loss_state == 1
    for end in ends[1:]:
        assert_close(end, ends[0])


def test_no_gradient_flows_through_a_statistic_that_forgets_to_stop_it():
    loss = BatchLoss(
        lambda key=None: (),
        lambda state, **signals: (jnp.mean(signals["policy"] ** 2), state),
        lambda statistics, **signals: statistics * jnp.ones_like(signals["policy"]),
    )
    _, metrics = jax.jit(make_step(signals_fn, OPTIMIZER, loss=loss))(start(loss), data())
    assert metrics["loss"] > 0
    assert metrics["grad_norm"] == 0


def both(params, extra, batch, key):
    output = signals_fn(params, extra, batch, key)
    return output._replace(losses=output.signals["policy"])


ODD = BatchLoss(
    lambda key=None: (),
    lambda state, **signals: (jnp.zeros(3), state),
    lambda statistics, **signals: signals["policy"],
)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no losses", "train.make_step: argument `loss_fn` is returning a LossOutput without losses"),
        ("losses too", "train.make_step: argument `loss_fn` is returning a LossOutput with losses"),
        ("another state", r"train.step: argument `state` is with a loss_state .* init_state\(\.\.\., loss=loss\)"),
        ("a missing signal", "losses.preference.batch_kto: argument `policy` is missing"),
        ("odd statistics", "train.step: argument `microbatches` is above 1 with `statistics` of shape"),
    ],
)
def test_errors_name_the_argument(what, message):
    loss, function, state, batch, microbatches = LOSSES["stream_bco"], signals_fn, None, data(), 1
    match what:
        case "no losses":
            loss = None
        case "losses too":
            function = both
        case "another state":
            state = start(None)
        case "a missing signal":
            loss, function = LOSSES["batch_kto"], lambda *_: LossOutput()
        case "odd statistics":
            microbatches, loss = 2, ODD
    step = make_step(function, OPTIMIZER, loss=loss, microbatches=microbatches)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, start(loss) if state is None else state, batch)
