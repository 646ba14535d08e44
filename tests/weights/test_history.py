import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import weights


def test_a_table_gives_back_what_was_written():
    table = weights.table_init(5, (2,), fill=0.5)
    rows = jnp.arange(6.0).reshape(3, 2)
    table = weights.table_scatter(table, jnp.array([4, 0, 2]), rows)
    np.testing.assert_array_equal(weights.table_gather(table, jnp.array([0, 2, 4])), rows[np.array([1, 2, 0])])
    np.testing.assert_array_equal(weights.table_gather(table, jnp.array([1, 3])), 0.5)


def test_masked_and_foreign_indices_write_nothing_and_foreign_ones_read_zero():
    table = jnp.arange(1.0, 5.0)
    indices = jnp.array([-1, 4, 2, 2])
    values = jnp.array([9.0, 9.0, 7.0, jnp.nan])
    new = weights.table_scatter(table, indices, values, mask=jnp.array([1, 1, 1, 0]))
    np.testing.assert_array_equal(new, [1, 2, 7, 4])
    np.testing.assert_array_equal(weights.table_gather(table, indices), [0, 0, 3, 3])


def test_a_table_keeps_its_dtype():
    table = weights.table_init(3, dtype=jnp.bfloat16)
    assert weights.table_scatter(table, jnp.array([0]), jnp.ones(1)).dtype == jnp.bfloat16


def test_a_table_sharded_along_examples_is_the_same_table():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    table = jax.device_put(weights.table_init(16), sharding)
    indices, values = jnp.array([3, 15, 8]), jnp.array([1.0, 2.0, 3.0])
    new = jax.jit(weights.table_scatter, out_shardings=sharding)(table, indices, values)
    np.testing.assert_array_equal(new, weights.table_scatter(weights.table_init(16), indices, values))
    assert new.sharding == sharding


def losses_seen_by_inner():
    """A scheme whose weights are the losses it is handed."""
    return weights.stateless(lambda losses: losses, scope="example")


def test_the_running_mean_starts_at_the_first_loss_and_decays():
    scheme = weights.smoothed(losses_seen_by_inner(), 4, decay=0.75)
    state = scheme.init()
    handed, state = scheme.update(state, jnp.array([1.0, 2.0]), indices=jnp.array([3, 1]))
    np.testing.assert_allclose(handed, [1, 2])
    handed, state = scheme.update(state, jnp.array([6.0, 5.0]), indices=jnp.array([1, 0]))
    np.testing.assert_allclose(handed, [0.75 * 2 + 0.25 * 6, 5])
    np.testing.assert_allclose(state.losses, [5, 3, 0, 1])
    np.testing.assert_array_equal(state.seen, [True, True, False, True])


def test_without_decay_the_inner_scheme_sees_the_losses_themselves():
    scheme = weights.smoothed(weights.kl_dro(), 4, decay=0.0)
    losses, indices, state = jnp.array([1.0, 3.0, 0.5]), jnp.array([2, 0, 1]), scheme.init()
    for _ in range(2):
        losses = losses + 1
        w, state = scheme.update(state, losses, indices=indices)
        np.testing.assert_allclose(w, weights.kl_dro_weights(losses))


def test_a_masked_example_is_not_remembered():
    scheme = weights.smoothed(losses_seen_by_inner(), 3)
    _, state = scheme.update(
        scheme.init(), jnp.array([jnp.nan, 2.0]), indices=jnp.array([1, 1]), mask=jnp.array([0, 1])
    )
    np.testing.assert_array_equal(state.losses, [0, 2, 0])
    np.testing.assert_array_equal(state.seen, [False, True, False])


def test_a_foreign_index_passes_its_loss_on_and_leaves_the_table():
    scheme = weights.smoothed(losses_seen_by_inner(), 2)
    state = scheme.init()
    for _ in range(2):
        handed, state = scheme.update(state, jnp.array([4.0, 8.0]), indices=jnp.array([-1, 2]))
        np.testing.assert_array_equal(handed, [4, 8])
    assert not np.any(state.seen)


def test_an_example_is_dropped_for_its_history_and_not_for_one_batch():
    scheme = weights.smoothed(weights.small_loss(0.75), 4, decay=0.9)
    state, indices = scheme.init(), jnp.arange(4)
    for _ in range(5):
        _, state = scheme.update(state, jnp.array([1.0, 1.1, 1.2, 5.0]), indices=indices)
    w, _ = scheme.update(state, jnp.array([9.0, 1.1, 1.2, 1.0]), indices=indices)
    assert w[3] == 0
    assert w[0] > 0


def test_the_inner_scheme_keeps_its_state_scope_and_signals():
    inner = weights.group_dro(2, step_size=1.0)
    scheme = weights.smoothed(inner, 4)
    assert scheme.scope == "batch"
    assert scheme.signals == ("indices", "groups")
    assert weights.smoothed(weights.uniform(), 4).scope == "example"
    _, state = scheme.update(scheme.init(), jnp.array([1.0, 3.0]), indices=jnp.array([0, 1]), groups=jnp.array([0, 1]))
    _, expected = inner.update(inner.init(), jnp.array([1.0, 3.0]), groups=jnp.array([0, 1]))
    np.testing.assert_allclose(state.inner.log_probs, expected.log_probs)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: weights.table_init(0), "num_examples"),
        (lambda: weights.table_gather(jnp.ones(3), jnp.ones(2)), "indices"),
        (lambda: weights.table_gather(jnp.ones(()), jnp.array([0])), "table"),
        (lambda: weights.table_scatter(jnp.ones((3, 2)), jnp.array([0]), jnp.ones(1)), "values"),
        (lambda: weights.table_scatter(jnp.ones(3), jnp.array([0]), jnp.ones(1), mask=jnp.ones(2)), "mask"),
        (lambda: weights.smoothed(weights.uniform(), 3, decay=1.0), "decay"),
        (lambda: weights.smoothed(weights.uniform(), -3), "num_examples"),
        (
            lambda: weights.smoothed(weights.uniform(), 3).update(None, jnp.ones(2), indices=jnp.array([[0, 1]])),
            "indices",
        ),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call()
