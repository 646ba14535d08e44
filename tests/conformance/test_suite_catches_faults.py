"""The suite can fail: each kind of fault is planted in a toy function, and the check that is meant for it reports it.

Healthy, the toys pass every check.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from conformance.suite import findings
from conformance.toys import (
    EXAMPLE,
    PARTS,
    SCALAR,
    SCHEME,
    STREAM,
    TRANSFORM,
    WEIGHTS,
    Count,
    about,
    centred,
    clean,
    descent,
    losses_of,
    mean_square,
    running,
    softmax_weights,
    softplus,
    unmasked,
)
from reweight import _checks, reduce, weights


@pytest.mark.parametrize(
    "case", [WEIGHTS, SCALAR, EXAMPLE, PARTS, SCHEME, STREAM, TRANSFORM], ids=lambda c: c.function.__name__
)
def test_a_healthy_function_passes_every_check(case):
    assert findings(case) == []


FAULTS = {}


def fault(base, check, says="", **changes):
    """Registers a faulty function in place of the healthy one of a case, with the check that must report it."""

    def register(function):
        name = function.__name__
        healthy = base.function

        @functools.wraps(healthy)
        def disguised(*args, **kwargs):
            return function(*args, **kwargs)

        FAULTS[name] = (dataclasses.replace(base, function=disguised, **changes), check, says)
        return function

    return register


# -- masks


@fault(WEIGHTS, "mask", "value")
def mask_leaks_into_the_value(losses, *, temperature=1.0, mask=None):
    return jnp.where(mask, softmax_weights(losses, temperature=temperature), 0)


@fault(SCALAR, "mask", "gradient")
def mask_leaks_into_the_gradient_only(losses, *, mask=None):
    finite = jnp.where(jnp.isfinite(losses), losses, 0)
    return mean_square(losses, mask=mask) + 0.1 * jnp.sum(finite - jax.lax.stop_gradient(finite))


@fault(SCALAR, "mask", "NaN behind a mask of numbers, value")
def nan_behind_the_mask_times_zero(losses, *, mask=None):
    return jnp.sum((mask * losses) ** 2) / jnp.maximum(jnp.sum(mask), 1)


@fault(EXAMPLE, "mask", "gradient of losses: not finite")
def nan_behind_the_mask_in_the_gradient(losses, *, mask=None):
    return jnp.where(mask, jnp.log1p(jnp.exp(-jnp.abs(losses))) + jnp.maximum(losses, 0) + 0 * jnp.sqrt(losses), 0)


@fault(
    EXAMPLE, "mask", "other numbers behind", inputs=lambda rng, n: {**losses_of(rng, n), "ids": rng.integers(0, 3, n)}
)
def an_id_behind_the_mask_is_read(losses, ids, *, mask=None):
    table = jnp.zeros(3).at[ids].add(1.0)
    return softplus(losses, mask=mask) * table[0]


@fault(SCALAR, "masked is absent")
def divides_by_the_padded_length(losses, *, mask=None):
    return mean_square(losses, mask=mask) * jnp.maximum(unmasked("", losses, mask).sum(), 1) / losses.size


@fault(SCALAR, "empty mask")
def nothing_divided_by_nothing(losses, *, mask=None):
    value, kept = clean("toy.mean_square", losses, mask)
    return jnp.sum(value**2) / jnp.sum(kept)


@fault(WEIGHTS, "eager", "raised")
def mask_of_numbers_is_not_understood(losses, *, temperature=1.0, mask=None):
    return jnp.where(~mask, 0, softmax_weights(losses, temperature=temperature, mask=mask))


# -- the batch


def _on_mesh(function, losses, mask):
    """`function` on each shard by itself, wherever there is a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" not in mesh.axis_names or mesh.manual_axes:
        return function(losses, mask)
    spec = PartitionSpec("data")
    return jax.shard_map(function, in_specs=(spec, spec), out_specs=spec)(losses, mask)


@fault(WEIGHTS, "sharded", "eight devices")
def mean_per_shard(losses, *, temperature=1.0, mask=None):
    return _on_mesh(lambda x, m: softmax_weights(x, temperature=temperature, mask=m), losses, mask)


@fault(SCHEME, "sharded", "eight devices")
def weighting_per_shard(temperature=1.0):
    scheme = running(temperature)

    def update(state, losses, mask=None):
        found = _on_mesh(lambda x, m: softmax_weights(x, temperature=temperature, mask=m), losses, mask)
        return found, scheme.update(state, losses, mask=mask)[1]

    return scheme._replace(update=update)


@fault(WEIGHTS, "permutation")
def order_matters(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses + 0.01 * jnp.arange(losses.size), temperature=temperature, mask=mask)


@fault(EXAMPLE, "independence")
def other_examples_matter(losses, *, mask=None):
    value, kept = clean("toy.softplus", losses, mask)
    return softplus(losses - jnp.sum(value) / jnp.maximum(jnp.sum(kept), 1), mask=mask)


@fault(PARTS, "accumulation")
def mean_of_means(values, *, where=None, parts=True):
    return reduce.Parts(reduce.weighted_mean(values, where=where), jnp.ones(()))


@fault(SCALAR, "accumulation", "sums", returns="sums")
def a_mean_is_taken_for_a_sum(losses, *, mask=None):
    return mean_square(losses, mask=mask)


@fault(PARTS, "accumulation", "gradients")
def parts_add_up_but_their_gradients_do_not(values, *, where=None, parts=True):
    total, count = reduce.weighted_mean(values, where=where, parts=True)
    mean = total / jnp.maximum(count, 1)
    return reduce.Parts(total + mean - jax.lax.stop_gradient(mean), count)


@fault(SCHEME, "scope", "weights of the pieces")
def scope_promises_too_much(temperature=1.0):
    return running(temperature)._replace(scope="example")


@fault(SCHEME, "scope", "the state after the pieces", reference=None, mean=None)
def state_counts_calls(temperature=1.0):
    def update(state, losses, mask=None):
        return softplus(losses, mask=mask), Count(state.seen + jnp.any(unmasked("", losses, mask)))

    return running(temperature)._replace(update=update, scope="example")


@fault(SCHEME, "scope", "would save a pass", reference=None, mean=None)
def scope_promises_too_little(temperature=1.0):
    def update(state, losses, mask=None):
        return softplus(losses, mask=mask), state

    return running(temperature)._replace(update=update)


# -- gradients


@fault(WEIGHTS, "stop-gradient")
def stop_gradient_is_missing(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses, temperature=temperature, mask=mask) * (1 + losses - jax.lax.stop_gradient(losses))


@fault(SCHEME, "stop-gradient")
def weighting_has_a_gradient(temperature=1.0):
    scheme = running(temperature)

    def update(state, losses, mask=None):
        found, state = scheme.update(state, losses, mask=mask)
        value = jnp.where(unmasked("", losses, mask), losses, 0)
        return found * (1 + value - jax.lax.stop_gradient(value)), state

    return scheme._replace(update=update)


@fault(SCALAR, "gradient and vmap", "finite differences")
def gradient_is_twice_too_large(losses, *, mask=None):
    value = mean_square(losses, mask=mask)
    return 2 * value - jax.lax.stop_gradient(value)


@fault(SCALAR, "gradient and vmap", "zero everywhere")
def gradient_is_stopped(losses, *, mask=None):
    return jax.lax.stop_gradient(mean_square(losses, mask=mask))


@fault(EXAMPLE, "declared", differentiable=())
def says_nothing_of_its_gradient(losses, *, mask=None):
    return softplus(losses, mask=mask)


# -- numbers


@fault(WEIGHTS, "extreme", "losses = 10000")
def overflows(losses, *, temperature=1.0, mask=None):
    value, kept = clean("toy.softmax_weights", losses, mask)
    mass = jnp.where(kept, jnp.exp(value / temperature), 0)
    return jax.lax.stop_gradient(mass * jnp.sum(kept) / jnp.maximum(jnp.sum(mass), 1e-30))


@fault(EXAMPLE, "extreme", "gradient of losses is not finite")
def gradient_overflows(losses, *, mask=None):
    value, kept = clean("toy.softplus", losses, mask)
    return jnp.where(kept, jnp.where(value > 50, value, jnp.log1p(jnp.exp(value))), 0)


@fault(WEIGHTS, "bfloat16", "value")
def accumulates_in_bfloat16(losses, *, temperature=1.0, mask=None):
    narrow = (losses / temperature).astype(losses.dtype)
    mass = jnp.where(mask, jnp.exp(narrow - jnp.max(jnp.where(mask, narrow, -jnp.inf))), 0)
    return jax.lax.stop_gradient((mass / jnp.sum(mass) * jnp.sum(mask)).astype(jnp.float32))


@fault(WEIGHTS, "bfloat16", "comes bfloat16")
def returns_bfloat16(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses, temperature=temperature, mask=mask).astype(losses.dtype)


@fault(SCALAR, "gradient and vmap", "float64", inputs=lambda rng, n: {"losses": 1000 + rng.normal(size=n)})
def digits_cancel(losses, *, mask=None):
    value, kept = clean("toy.mean_square", losses, mask)
    count = jnp.maximum(jnp.sum(kept), 1)
    return jnp.sum(value**2) / count - (jnp.sum(value) / count) ** 2


@fault(WEIGHTS, "gradient and vmap", "reference")
def formula_is_slightly_wrong(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses, temperature=temperature * 1.0001, mask=mask)


@fault(SCHEME, "gradient and vmap", "reference")
def hyperparameter_is_ignored(temperature=1.0):
    return running(1.0)


@fault(WEIGHTS, "weights", "masked example has weight")
def masked_examples_have_weight(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses, temperature=temperature, mask=mask) + 1e-3


@fault(WEIGHTS, "weights", "mean")
def weights_sum_to_one(losses, *, temperature=1.0, mask=None):
    found = softmax_weights(losses, temperature=temperature, mask=mask)
    return found / jnp.maximum(jnp.sum(found), 1)


@fault(WEIGHTS, "weights", "a weight is -")
def a_weight_is_negative(losses, *, temperature=1.0, mask=None):
    found = softmax_weights(losses, temperature=temperature, mask=mask)
    return jnp.where(unmasked("", losses, mask), 1.5 * found - 0.5, 0)


def a_constant_changes_nothing(probe):
    arrays = probe.arrays()
    moved = probe.value({**arrays, "losses": arrays["losses"] + 1})
    np.testing.assert_allclose(moved, probe.value(arrays), rtol=1e-4)


@fault(WEIGHTS, "invariants", "a_constant_changes_nothing", invariants=(a_constant_changes_nothing,))
def an_invariant_does_not_hold(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses**2, temperature=temperature, mask=mask)


# -- transformations


@fault(WEIGHTS, "jit")
def branches_in_python(losses, *, temperature=1.0, mask=None):
    if losses.max() > 0:
        return softmax_weights(losses, temperature=temperature, mask=mask)
    return jnp.ones_like(losses)


@fault(WEIGHTS, "jit", "raised")
def hyperparameter_cannot_be_traced(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses, temperature=float(temperature), mask=mask)


@fault(WEIGHTS, "eager")
def differs_under_jit(losses, *, temperature=1.0, mask=None):
    factor = 1.0 if isinstance(losses, jax.core.Tracer) else 1.001
    return factor * softmax_weights(losses, temperature=temperature, mask=mask)


@fault(WEIGHTS, "gradient and vmap", "raised")
def cannot_be_vmapped(losses, *, temperature=1.0, mask=None):
    shape = jax.ShapeDtypeStruct(losses.shape, losses.dtype)
    losses = jax.pure_callback(np.asarray, shape, jax.lax.stop_gradient(losses))
    return softmax_weights(losses, temperature=temperature, mask=mask)


# -- states


@fault(SCHEME, "state", "dtypes")
def state_changes_its_dtype(temperature=1.0):
    scheme = running(temperature)

    def update(state, losses, **signals):
        return scheme.update(state, losses, **signals)[0], Count(state.seen + 0.5)

    return weights.Weighting(lambda key=None: Count(jnp.zeros((), jnp.int32)), update)


@fault(SCHEME, "empty mask", "state")
def an_empty_batch_moves_the_state(temperature=1.0):
    scheme = running(temperature)

    def update(state, losses, **signals):
        return scheme.update(state, losses, **signals)[0], Count(state.seen + 1)

    return scheme._replace(update=update)


@fault(SCHEME, "mask", "state")
def the_state_reads_behind_the_mask(temperature=1.0):
    scheme = running(temperature)

    def update(state, losses, **signals):
        weights, _ = scheme.update(state, losses, **signals)
        return weights, Count(0.9 * state.seen + 0.1 * jnp.mean(jax.lax.stop_gradient(losses)))

    return scheme._replace(update=update)


@fault(SCHEME, "extreme", "step after")
def the_state_never_recovers(temperature=1.0):
    def update(state, losses, mask=None):
        found = softmax_weights(losses, temperature=temperature, mask=mask)
        value = jnp.where(unmasked("", losses, mask), jax.lax.stop_gradient(losses), 0)
        return found / state.seen, Count(jnp.mean(value))

    return weights.Weighting(lambda key=None: Count(jnp.ones(())), update)


# -- losses of the batch


def _mean(values, mask):
    value, kept = clean("toy.centred", values, mask)
    return jnp.sum(value) / jnp.maximum(jnp.sum(kept), 1)


@fault(STREAM, "statistics", "losses of a piece", reference=None)
def losses_look_at_the_batch_themselves(scale=1.0):
    def losses(statistics, values, mask=None):
        return about(values, jax.lax.stop_gradient(_mean(values, mask)), scale, mask)

    return centred(scale)._replace(losses=losses)


@fault(STREAM, "statistics", "gradient of values of a piece")
def a_gradient_comes_from_other_examples(scale=1.0):
    def losses(statistics, values, mask=None):
        mean = _mean(values, mask)
        return about(values, statistics + mean - jax.lax.stop_gradient(mean), scale, mask)

    return centred(scale)._replace(losses=losses)


@fault(STREAM, "gradient and vmap", "finite differences")
def a_surrogate_gradient_is_not_declared(scale=1.0):
    loss = centred(scale)

    def losses(statistics, **signals):
        found = loss.losses(statistics, **signals)
        return 2 * found - jax.lax.stop_gradient(found)

    return loss._replace(losses=losses)


@fault(STREAM, "gradient and vmap", "reference")
def the_mean_is_that_of_the_batch_before(scale=1.0):
    loss = centred(scale)

    def statistics(state, **signals):
        _, new = loss.statistics(state, **signals)
        return state.total / jnp.maximum(state.seen, 1), new

    return loss._replace(statistics=statistics)


@fault(STREAM, "sharded", "eight devices")
def a_statistic_per_shard(scale=1.0):
    loss = centred(scale)

    def statistics(state, values, mask=None):
        _, new = loss.statistics(state, values=values, mask=mask)
        return _on_mesh(lambda x, m: jnp.full(x.shape, _mean(x, m)), values, mask), new

    return loss._replace(statistics=statistics)


@fault(STREAM, "mask", "value")
def the_statistic_reads_behind_the_mask(scale=1.0):
    loss = centred(scale)

    def statistics(state, values, mask=None):
        _, new = loss.statistics(state, values=values, mask=mask)
        return jnp.mean(values), new

    return loss._replace(statistics=statistics)


@fault(STREAM, "empty mask", "state")
def an_empty_batch_is_counted(scale=1.0):
    loss = centred(scale)

    def statistics(state, **signals):
        found, new = loss.statistics(state, **signals)
        return found, new._replace(seen=new.seen + 1)

    return loss._replace(statistics=statistics)


@fault(STREAM, "errors", "without the signal values")
def a_missing_signal_is_not_noticed(scale=1.0):
    loss = centred(scale)
    zeros = {"values": np.zeros(16, np.float32)}
    return loss._replace(
        statistics=lambda state, **signals: loss.statistics(state, **{**zeros, **signals}),
        losses=lambda statistics, **signals: loss.losses(statistics, **{**zeros, **signals}),
    )


# -- errors


@fault(WEIGHTS, "errors", "accepted")
def hyperparameter_is_not_validated(losses, *, temperature=1.0, mask=None):
    return softmax_weights(losses, temperature=jnp.asarray(temperature, jnp.float32), mask=mask)


@fault(WEIGHTS, "errors", "does not name temperature")
def error_does_not_name_the_argument(losses, *, temperature=1.0, mask=None):
    if not isinstance(temperature, jax.core.Tracer) and not 0 < temperature < np.inf:
        raise ValueError("toy.softmax_weights: bad hyperparameter")
    return softmax_weights(losses, temperature=temperature, mask=mask)


@fault(WEIGHTS, "errors", "does not name the function")
def error_names_another_function(losses, *, temperature=1.0, mask=None):
    _checks.number("toy.softmax_weights_of_rows", "temperature", temperature, low=0, open_low=True)
    return softmax_weights(losses, temperature=temperature, mask=mask)


@fault(WEIGHTS, "errors", "TypeError instead of ValueError")
def error_is_of_another_type(losses, *, temperature=1.0, mask=None):
    if isinstance(temperature, float) and temperature <= 0:
        raise TypeError("toy.softmax_weights: argument `temperature` is negative")
    return softmax_weights(losses, temperature=temperature, mask=mask)


@fault(WEIGHTS, "errors", "17 examples among 16")
def shapes_are_not_checked(losses, *, temperature=1.0, mask=None):
    rows = min(losses.shape[0], 16 if mask is None else mask.shape[0])
    return softmax_weights(losses[:rows], temperature=temperature, mask=None if mask is None else mask[:rows])


# -- optimizers


@fault(TRANSFORM, "sharded")
def norm_per_shard(learning_rate=0.1):
    def update(updates, state, params=None):
        shards = 1 if jax.sharding.get_abstract_mesh().empty else 8
        return jax.tree.map(lambda leaf: -learning_rate * leaf * shards, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@fault(TRANSFORM, "bfloat16", "not finite")
def is_not_finite_in_bfloat16(learning_rate=0.1):
    def update(updates, state, params=None):
        return jax.tree.map(
            lambda g: -learning_rate * g / (g.astype(g.dtype) - g + (g.dtype == jnp.float32)), updates
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@fault(TRANSFORM, "extreme", "gradients of 0")
def zero_gradient_is_divided_by(learning_rate=0.1):
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -learning_rate * g / jnp.sqrt(jnp.sum(g**2)), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@fault(TRANSFORM, "state", "changes the state")
def optimizer_state_changes_dtype(learning_rate=0.1):
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state)),
    )


@fault(TRANSFORM, "errors", "without params: accepted", needs_params=True)
def parameters_are_not_asked_for(learning_rate=0.1):
    return descent(learning_rate)


@fault(TRANSFORM, "layers", layered=True)
def a_stack_is_one_tensor(learning_rate=0.1):
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -learning_rate * g / (1 + jnp.max(jnp.abs(g))), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@fault(TRANSFORM, "composes", "injected")
def learning_rate_is_not_injected(learning_rate=0.1):
    rate = learning_rate if isinstance(learning_rate, float) else 0.0
    return optax.sgd(rate)


@pytest.mark.parametrize("name", FAULTS)
def test_the_suite_reports(name):
    case, check, says = FAULTS[name]
    found = findings(case, only=[check])
    assert any(finding.startswith(f"{check}:") and says in finding for finding in found), found
