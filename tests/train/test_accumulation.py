"""A step in microbatches is the step on the whole batch: value, update, and the weighting's next state."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_problem import CLASSES, EXAMPLES, GROUPS, accuracy, assert_close, batch, loss_fn, params

from reweight import reduce, weights
from reweight.train import LossOutput, init_state, make_step, mean_over_count, token_reduction, whole_batch

COUNTS = np.array([100, 30, 5])
SCHEMES = {
    "chi2_dro": weights.chi2_dro(radius=0.5),
    "class_balanced": weights.class_balanced(COUNTS),
    "class_weighted": weights.class_weighted(jnp.array([0.5, 1.0, 2.0])),
    "compositional_kl_dro": weights.compositional_kl_dro(temperature=0.5),
    "cvar_dro": weights.cvar_dro(alpha=0.4),
    "entropy_filter": weights.entropy_filter(fraction=0.8),
    "focal": weights.focal(),
    "gairat": weights.gairat(),
    "group_dro": weights.group_dro(GROUPS, step_size=0.5),
    "importance": weights.importance(high=2.0),
    "inverse_frequency": weights.inverse_frequency(COUNTS),
    "kl_dro": weights.kl_dro(temperature=0.5),
    "normalized_loss_balance": weights.normalized_loss_balance(GROUPS, rate=0.5, signal="groups"),
    "small_loss": weights.small_loss(0.6),
    "smoothed": weights.smoothed(weights.kl_dro(), EXAMPLES),
    "uniform": weights.uniform(),
    "wpo": weights.wpo(),
}
COMBINED = {
    "self-normalised importance": weights.importance(self_normalize=True),
    "a history of scope example": weights.smoothed(weights.focal(), EXAMPLES),
    "stateless": weights.stateless(lambda losses, *, mask=None: weights.normalize(losses, mask=mask)),
    "one that sets in late": weights.deferred(weights.kl_dro(temperature=0.5), start_step=1),
    "a chain of scope example": weights.chain(weights.focal(), weights.class_balanced(COUNTS)),
    "a chain with states": weights.chain(
        weights.focal(), weights.group_dro(GROUPS, step_size=0.5), weights.smoothed(weights.kl_dro(), EXAMPLES)
    ),
}
COMBINERS = {"chain", "deferred", "stateless"}
OF_NETWORKS = {"co_teaching": weights.co_teaching(weights.keep_schedule(0.5, steps_per_epoch=1, gradual_epochs=2))}


def data(masked=True):
    rng = np.random.default_rng(1)
    signals = {"log_ratios": rng.normal(size=16).astype(np.float32), "attack_steps": rng.integers(0, 11, 16)}
    for side in ("chosen", "rejected"):
        signals[f"{side}_log_probs"] = -rng.exponential(size=(16, 3)).astype(np.float32)
        signals[f"{side}_sum_squares"] = rng.uniform(0.2, 0.9, (16, 3)).astype(np.float32)
        signals[f"{side}_mask"] = rng.random((16, 3)) > 0.3
    return batch(masked=masked) | signals


def taken(weighting, data, *, steps=2, loss=loss_fn, extra=None, start=None, **options):
    optimizer = optax.sgd(0.3, momentum=0.9)
    state = init_state(params() if start is None else start, extra, optimizer, weighting, jax.random.key(1))
    step = jax.jit(make_step(loss, optimizer, weighting=weighting, **options))
    for _ in range(steps):
        state, metrics = step(state, data)
    return state, metrics


@pytest.mark.parametrize("weighting", (SCHEMES | COMBINED).values(), ids=SCHEMES | COMBINED)
def test_microbatches_are_the_whole_batch(weighting):
    whole = taken(weighting, data(), metrics=accuracy)
    assert_close(taken(weighting, data(), metrics=accuracy, microbatches=4), whole)


def losses_of_networks(params, extra, batch, key):
    losses = jax.vmap(lambda one: loss_fn(one, None, batch, key).losses, out_axes=-1)(params)
    return LossOutput(losses, {}, extra)


@pytest.mark.parametrize("weighting", OF_NETWORKS.values(), ids=OF_NETWORKS)
def test_microbatches_of_networks_side_by_side_are_the_whole_batch(weighting):
    columns = data() | {"mask": data()["mask"][:, None]}
    options = {"loss": losses_of_networks, "start": jax.vmap(params)(jnp.arange(2)), "steps": 3}
    whole = taken(weighting, columns, **options)
    assert_close(taken(weighting, columns, microbatches=4, **options), whole)
    uniform, _ = taken(weights.uniform(), columns, **options)
    assert not np.allclose(whole[0].params["hidden"], uniform.params["hidden"], rtol=1e-3)


@pytest.mark.parametrize("microbatches", [2, 16])
@pytest.mark.parametrize("name", ["uniform", "group_dro"])
def test_microbatches_of_any_size_without_a_mask(name, microbatches):
    whole = taken(SCHEMES[name], data(masked=False))
    assert_close(taken(SCHEMES[name], data(masked=False), microbatches=microbatches), whole)


def test_every_scheme_is_tested():
    public = {name: getattr(weights, name) for name in weights.__all__}
    made = {
        name
        for name, value in public.items()
        if callable(value)
        and not isinstance(value, type)
        and typing.get_type_hints(value).get("return") is weights.Weighting
    }
    assert made - COMBINERS == SCHEMES.keys() | OF_NETWORKS.keys()


def test_microbatches_in_float64_agree_to_its_rounding(x64):
    double = data() | {"inputs": data()["inputs"].astype(np.float64)}
    results = []
    for microbatches in (1, 4):
        optimizer = optax.sgd(0.3)
        state = init_state(params(dtype=jnp.float64), None, optimizer, SCHEMES["kl_dro"], jax.random.key(1))
        step = jax.jit(make_step(loss_fn, optimizer, weighting=SCHEMES["kl_dro"], microbatches=microbatches))
        results.append(step(state, double))
    assert results[0][0].params["hidden"].dtype == jnp.float64
    assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


def test_a_piece_without_a_single_example_counts_nothing():
    some = data() | {"mask": np.arange(16) % 4 == 1}  # of four microbatches one has examples
    # Finite: what is not behind a mask of the model itself, such as its matrix products, would pass NaN on.
    some["inputs"] = np.where(some["mask"][:, None], some["inputs"], 1e3).astype(np.float32)
    state, metrics = taken(weights.kl_dro(), some, microbatches=4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))
    assert_close((state, metrics), taken(weights.kl_dro(), some))
    alone = jax.tree.map(lambda x: x[np.asarray(some["mask"])], some)
    assert_close(state.params, taken(weights.kl_dro(), alone)[0].params)


def test_a_batch_without_a_single_example_changes_nothing():
    none = data() | {"mask": np.zeros(16, bool)}
    for microbatches in (1, 4):
        state, metrics = taken(weights.group_dro(GROUPS), none, microbatches=microbatches)
        assert_close(state.params, params(), rtol=0, atol=0)
        assert all(value == 0 for value in metrics.values())


def token_loss(params, extra, batch, key):
    del key
    logits = jnp.tanh(batch["inputs"][:, None] * batch["times"][..., None]) @ params["hidden"][:, :CLASSES]
    return LossOutput(optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"]), {}, extra)


TIME = 6


def sequences():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, TIME + 1, 16)
    return batch(masked=False) | {
        "times": rng.normal(size=(16, TIME)).astype(np.float32),
        "tokens": rng.integers(0, CLASSES, (16, TIME)),
        "mask": np.arange(TIME) < lengths[:, None],
    }


def by_row(losses, *, mask):
    """A weight a sequence, from the whole batch."""
    return jax.nn.softmax(jnp.sum(jnp.where(mask, losses, 0), axis=-1)) * losses.shape[0]


TOKEN_SCHEMES = {"a weight a token": weights.kl_dro(), "a weight a sequence": weights.stateless(by_row)}


@pytest.mark.parametrize("scheme", TOKEN_SCHEMES)
@pytest.mark.parametrize("mode", reduce.TOKEN_MODES)
def test_token_losses_add_up_in_every_mode(mode, scheme):
    reduction = token_reduction(mode, length=TIME if mode == "token-sum-fixed-length" else None)
    options = {"loss": token_loss, "reduction": reduction, "steps": 1}
    whole = taken(TOKEN_SCHEMES[scheme], sequences(), **options)
    assert_close(taken(TOKEN_SCHEMES[scheme], sequences(), microbatches=4, **options), whole)
    assert whole[1]["grad_norm"] > 0


def total(losses, weights, mask):
    return reduce.weighted_sum(losses, weights, where=mask, parts=True)


def weighted_average(losses, weights, mask):
    return reduce.weighted_mean(losses, weights, where=mask, parts=True)


def ratio(losses, weights, mask):
    """A ratio of sums that both have a gradient, like Dice."""
    return reduce.Parts(total(losses, weights, mask).total, total(losses**2 + 1, weights, mask).total)


@pytest.mark.parametrize("scheme", ["focal", "kl_dro"])
@pytest.mark.parametrize("reduction", [total, weighted_average, ratio])
def test_every_reduction_adds_up(reduction, scheme):
    whole = taken(SCHEMES[scheme], data(), steps=1, reduction=reduction)
    assert_close(taken(SCHEMES[scheme], data(), steps=1, reduction=reduction, microbatches=4), whole)


def test_both_passes_of_a_microbatch_draw_the_same_numbers():
    def random_loss(params, extra, batch, key):
        return LossOutput(jax.random.uniform(key, batch["labels"].shape) + 0 * jnp.sum(params["hidden"]), {}, extra)

    def seen_loss(losses, *, mask=None):
        return losses

    def same(signals):
        return {"apart": reduce.weighted_sum(jnp.abs(signals["weights"] - signals["losses"]), parts=True)}

    _, metrics = taken(weights.stateless(seen_loss), data(), loss=random_loss, microbatches=4, metrics=same)
    assert metrics["apart"] == 0
    first = taken(weights.uniform(), data(), loss=random_loss, microbatches=4, steps=1)[1]["loss"]
    second = taken(weights.uniform(), data(), loss=random_loss, microbatches=4, steps=2)[1]["loss"]
    assert first != second


@pytest.mark.parametrize("scheme", ["uniform", "kl_dro"])
def test_extra_passes_through_the_microbatches_once(scheme):
    def counting(params, extra, batch, key):
        return loss_fn(params, None, batch, key)._replace(extra=extra + jnp.sum(batch["labels"]))

    state, _ = taken(SCHEMES[scheme], data(), steps=1, loss=counting, extra=jnp.zeros(()), microbatches=4)
    assert state.extra == np.sum(data()["labels"])


def test_signals_that_the_weighting_does_not_read_are_not_kept():
    vocabulary = 4096

    def loss(params, extra, batch, key):
        logits = batch["inputs"] @ params
        return LossOutput(jax.nn.logsumexp(logits, axis=-1), {"logits": logits}, extra)

    def memory(weighting):
        optimizer = optax.sgd(0.1)
        state = init_state(jnp.zeros((5, vocabulary)), None, optimizer, weighting)
        step = jax.jit(make_step(loss, optimizer, weighting=weighting, microbatches=16))
        return step.lower(state, batch(48)).compile().memory_analysis().temp_size_in_bytes

    def read(losses, *, logits, mask=None):
        return logits[:, 0] / jnp.max(logits)

    all_logits = 4 * 48 * vocabulary
    assert memory(weights.kl_dro()) < all_logits < memory(weights.stateless(read))


@pytest.mark.parametrize("wrapped", [lambda f: f, functools.partial, lambda f: functools.wraps(f)(lambda *a: f(*a))])
def test_what_cannot_be_split_is_refused(wrapped):
    loss, reduction = wrapped(whole_batch(loss_fn)), wrapped(whole_batch(mean_over_count))
    with pytest.raises(ValueError, match="`microbatches` is 2; allowed: 1, because `loss_fn` is marked `whole_batch`"):
        make_step(loss, optax.sgd(0.1), microbatches=2)
    with pytest.raises(ValueError, match="because `reduction` is marked `whole_batch`"):
        make_step(loss_fn, optax.sgd(0.1), reduction=reduction, microbatches=2)
    assert_close(taken(weights.kl_dro(), data(), loss=loss, reduction=reduction), taken(weights.kl_dro(), data()))


def scalar_loss(params, extra, batch, key):
    return LossOutput(jnp.mean(loss_fn(params, extra, batch, key).losses))


def table_signal(params, extra, batch, key):
    return loss_fn(params, extra, batch, key)._replace(signals={"table": jnp.ones(3)})


def test_a_loss_of_the_whole_batch_works_undivided_only():
    assert taken(weights.uniform(), batch(masked=False), loss=scalar_loss, steps=1)[1]["grad_norm"] > 0
    with pytest.raises(ValueError, match=r"`microbatches` is above 1 with `losses` of shape \(\) for 4 examples"):
        taken(weights.uniform(), batch(masked=False), loss=scalar_loss, microbatches=4)


def one_for_all(losses, *, mask=None):
    return jnp.ones(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"microbatches": 3}, "`microbatches` is 3; allowed: a divisor of the batch size 16"),
        ({"microbatches": 4, "loss": table_signal}, r"`microbatches` is above 1 with `table` of shape \(3,\)"),
        (
            {"microbatches": 4, "weighting": weights.stateless(one_for_all)},
            r"`microbatches` is above 1 with `weights` of shape \(1,\) for 16 examples",
        ),
    ],
)
def test_what_does_not_divide_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        taken(options.pop("weighting", weights.kl_dro()), data(), **options)
