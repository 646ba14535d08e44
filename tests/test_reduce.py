import functools
import json
import math
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import reduce

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "token_aggregation.json").read_text())
ROWS, TIME = 6, 5

REDUCERS = {
    "mean": lambda x, w, m, parts=False: reduce.weighted_mean(x, w, where=m, parts=parts),
    "mean over count": lambda x, w, m, parts=False: reduce.weighted_mean(
        x, w, where=m, normalizer="count", parts=parts
    ),
    "sum": lambda x, w, m, parts=False: reduce.weighted_sum(x, w, where=m, parts=parts),
    **{
        mode: functools.partial(
            lambda mode, length, x, w, m, parts=False: reduce.tokens(x, m, w, mode=mode, length=length, parts=parts),
            mode,
            7 if mode == "token-sum-fixed-length" else None,
        )
        for mode in reduce.TOKEN_MODES
    },
}


def reference(name, x, w, m):
    """The formulas in float64, row by row."""
    x, w, m = (np.asarray(a, np.float64) for a in (x, w, m))
    total = sum(w[b, t] * x[b, t] for b in range(len(x)) for t in range(TIME) if m[b, t])
    lengths = [int(row.sum()) for row in m]
    sequences = sum(n > 0 for n in lengths)
    if name == "seq-mean-token-mean":
        rows = [sum(w[b, t] * x[b, t] for t in range(TIME) if m[b, t]) / n for b, n in enumerate(lengths) if n]
        return sum(rows) / max(sequences, 1)
    below = {
        "sum": 1,
        "mean": sum(w[b, t] for b in range(len(x)) for t in range(TIME) if m[b, t]),
        "mean over count": sum(lengths),
        "token-mean": sum(lengths),
        "seq-mean-token-sum": sequences,
        "token-sum-fixed-length": 7 * sequences,
    }[name]
    return total / below if below else 0.0


def draw(seed, mask_rate):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, TIME)).astype(np.float32)
    w = rng.exponential(size=(ROWS, TIME)).astype(np.float32)
    return x, w, rng.random((ROWS, TIME)) < mask_rate


@functools.cache
def graded(name):
    return jax.jit(jax.value_and_grad(lambda x, w, m: REDUCERS[name](x, w, m), argnums=(0, 1)))


@functools.cache
def graded_in_pieces(name):
    """The same through the parts of pieces, a piece being the rows that its mask leaves."""

    def value(x, w, pieces):
        return reduce.combine([REDUCERS[name](x, w, piece, parts=True) for piece in pieces])

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


@pytest.mark.parametrize("name", REDUCERS)
@hypothesis.given(seed=st.integers(0, 10**6), mask_rate=st.sampled_from([0.0, 0.2, 0.7, 1.0]))
def test_every_reduction_is_its_formula(name, seed, mask_rate):
    x, w, m = draw(seed, mask_rate)
    value, _ = graded(name)(x, w, m)
    np.testing.assert_allclose(value, reference(name, x, w, m), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REDUCERS)
@hypothesis.given(
    seed=st.integers(0, 10**6),
    mask_rate=st.sampled_from([0.0, 0.3, 1.0]),
    owners=st.lists(st.integers(0, 2), min_size=ROWS, max_size=ROWS),
)
def test_parts_of_any_split_over_rows_give_the_whole_in_value_and_gradient(name, seed, mask_rate, owners):
    x, w, m = draw(seed, mask_rate)
    pieces = [m & (np.asarray(owners) == k)[:, None] for k in range(3)]
    whole, grads = graded(name)(x, w, m)
    value, piece_grads = graded_in_pieces(name)(x, w, pieces)
    np.testing.assert_allclose(value, whole, rtol=1e-5, atol=1e-6)
    for left, right in zip(piece_grads, grads, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REDUCERS)
def test_pieces_of_unequal_and_zero_size_give_the_whole(name):
    x, w, m = draw(3, 0.6)
    bounds = [(0, 1), (1, 1), (1, 5), (5, ROWS)]
    parts = [REDUCERS[name](x[a:b], w[a:b], m[a:b], parts=True) for a, b in bounds]
    np.testing.assert_allclose(reduce.combine(parts), REDUCERS[name](x, w, m), rtol=1e-5)


@pytest.mark.parametrize("name", ["mean", "mean over count", "sum", "token-mean"])
def test_means_and_sums_over_tokens_may_be_split_over_time_too(name):
    x, w, m = draw(4, 0.6)
    parts = [REDUCERS[name](x[:, s], w[:, s], m[:, s], parts=True) for s in (slice(0, 2), slice(2, TIME))]
    np.testing.assert_allclose(reduce.combine(parts), REDUCERS[name](x, w, m), rtol=1e-5)


@pytest.mark.parametrize("name", REDUCERS)
def test_the_parts_finish_to_the_value(name):
    x, w, m = draw(5, 0.6)
    assert reduce.finish(REDUCERS[name](x, w, m, parts=True)) == REDUCERS[name](x, w, m)


@pytest.mark.parametrize("name", REDUCERS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_stands_behind_a_mask_reaches_neither_value_nor_gradient(name, poison):
    x, w, m = draw(6, 0.6)
    clean = graded(name)(x, w, m)
    dirty = graded(name)(np.where(m, x, poison), np.where(m, w, poison), m)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    for grad in dirty[1]:
        assert np.all(np.asarray(grad)[~m] == 0)
    # Compiled as a whole, a product with the mask would pass too: the compiler makes a selection of it.
    eager = REDUCERS[name](np.where(m, x, poison), np.where(m, w, poison), m)
    np.testing.assert_allclose(eager, clean[0], rtol=1e-6)


@pytest.mark.parametrize("name", REDUCERS)
def test_an_empty_mask_gives_zero_with_zero_gradient(name):
    x, w, m = draw(7, 0.0)
    value, grads = graded(name)(np.full_like(x, np.nan), w, m)
    assert value == 0
    assert all(np.all(np.asarray(grad) == 0) for grad in grads)


@pytest.mark.parametrize("name", REDUCERS)
def test_bfloat16_is_summed_in_float32(name):
    x, w, m = draw(8, 0.8)
    x, w = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
    value = REDUCERS[name](x, w, m)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, reference(name, x, w, m), rtol=1e-5)


def test_a_long_bfloat16_mean_does_not_stall():
    values = jnp.full((100_000,), 0.1, jnp.bfloat16)
    np.testing.assert_allclose(reduce.weighted_mean(values), float(values[0]), rtol=1e-4)


def test_float64_stays_float64(x64):
    x, w, m = (jnp.asarray(a) for a in draw(9, 0.7))
    x, w = x.astype(jnp.float64), w.astype(jnp.float64)
    for name in REDUCERS:
        value = REDUCERS[name](x, w, m)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, reference(name, x, w, m), rtol=1e-12)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
@pytest.mark.parametrize("mode", reduce.TOKEN_MODES)
def test_token_modes_agree_with_the_golden_numbers(case, mode, x64):
    values = jnp.asarray([[float(v) for v in row] for row in case["inputs"]["tok_loss"]])
    mask = jnp.asarray(case["inputs"]["mask"])
    norm = case["params"]["norm"]
    fixed = mode == "token-sum-fixed-length"
    # The published mode divides by the constant alone, ours by the sequences too.
    scale = float(np.sum(np.any(np.asarray(mask) > 0, axis=1))) if fixed else 1.0
    key = "seq-mean-token-sum-norm" if fixed else mode

    def total(x):
        return scale * reduce.tokens(x, mask, mode=mode, length=norm if fixed else None)

    value, grad = jax.value_and_grad(total)(values)
    # Theirs has 1e-8 below the line of the mean over a sequence.
    np.testing.assert_allclose(value, case["expected"][key], rtol=2e-8)
    if f"{key}_grad" in case["expected"]:
        np.testing.assert_allclose(grad, case["expected"][f"{key}_grad"], rtol=2e-8)


def test_padding_a_batch_with_empty_rows_changes_no_token_mode():
    x, w, m = draw(10, 0.7)
    pad = ((0, 3), (0, 0))
    for mode in reduce.TOKEN_MODES:
        padded = REDUCERS[mode](np.pad(x, pad, constant_values=np.nan), np.pad(w, pad), np.pad(m, pad))
        np.testing.assert_allclose(padded, REDUCERS[mode](x, w, m), rtol=1e-6)


def test_a_weight_a_sequence_is_that_weight_at_each_of_its_tokens():
    x, w, m = draw(11, 0.7)
    for mode in reduce.TOKEN_MODES:
        per_token = REDUCERS[mode](x, np.broadcast_to(w[:, :1], w.shape), m)
        np.testing.assert_allclose(REDUCERS[mode](x, w[:, 0], m), per_token, rtol=1e-6)


def test_a_square_batch_reads_a_weight_vector_as_a_weight_a_sequence():
    values, weights = np.triu(np.ones((3, 3), np.float32)), np.array([1.0, 10.0, 100.0], np.float32)
    value = reduce.tokens(values, np.ones((3, 3)), weights, mode="seq-mean-token-sum")
    np.testing.assert_allclose(value, (3 * 1 + 2 * 10 + 1 * 100) / 3)


def test_weights_of_mean_one_give_the_same_mean_under_both_normalizers():
    x, w, m = draw(12, 0.7)
    w = w / np.mean(w[m])
    np.testing.assert_allclose(REDUCERS["mean"](x, w, m), REDUCERS["mean over count"](x, w, m), rtol=1e-5)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), [1]])
def test_reduction_over_axes_is_that_of_numpy(axis):
    rng = np.random.default_rng(13)
    x, w = rng.normal(size=(2, 3, 4)), rng.exponential(size=(2, 3, 4))
    axes = tuple(axis) if isinstance(axis, list) else axis
    np.testing.assert_allclose(reduce.weighted_mean(x, w, axis=axis), np.average(x, axes, w), rtol=1e-5)
    np.testing.assert_allclose(reduce.weighted_sum(x, w, axis=axis), np.sum(x * w, axes), rtol=1e-5)


def test_masks_and_weights_broadcast():
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    row_mask = np.array([[1], [0], [1]])
    np.testing.assert_allclose(reduce.weighted_mean(x, where=row_mask), x[[0, 2]].mean())
    np.testing.assert_allclose(reduce.weighted_mean(x, 2.0, normalizer="count"), 2 * x.mean())
    np.testing.assert_allclose(reduce.weighted_sum(x, np.array([1.0, 0, 0, 0])), x[:, 0].sum())


def test_any_non_zero_mask_entry_counts_once():
    x = np.array([1.0, 2.0, 4.0], np.float32)
    assert reduce.weighted_mean(x, where=np.array([5, 0, -3]), normalizer="count") == 2.5


def test_integer_values_are_averaged_as_numbers():
    assert reduce.weighted_mean(jnp.array([1, 2])) == 1.5


def test_zero_weights_give_zero():
    value, grad = jax.value_and_grad(reduce.weighted_mean)(jnp.ones(3), jnp.zeros(3))
    assert value == 0
    assert np.all(grad == 0)


def test_vmap_is_the_loop():
    x, w, m = draw(14, 0.6)
    for name in ("mean", "sum"):
        np.testing.assert_allclose(
            jax.vmap(REDUCERS[name])(x, w, m), [REDUCERS[name](*row) for row in zip(x, w, m, strict=True)], rtol=1e-6
        )


def test_a_sharded_batch_has_the_same_mean():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    rng = np.random.default_rng(15)
    x, w = rng.normal(size=(16, 3)).astype(np.float32), rng.exponential(size=(16, 3)).astype(np.float32)
    m = rng.random((16, 3)) < 0.5
    for name in REDUCERS:
        sharded = jax.jit(REDUCERS[name])(*(jax.device_put(a, sharding) for a in (x, w, m)))
        np.testing.assert_allclose(sharded, REDUCERS[name](x, w, m), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: reduce.weighted_mean(x, where=np.ones((4,))), "where"),
        (lambda x: reduce.weighted_mean(x, np.ones((2, 2, 3))), "weights"),
        (lambda x: reduce.weighted_mean(x, axis=2), "axis"),
        (lambda x: reduce.weighted_sum(x, axis=(0, -2)), "axis"),
        (lambda x: reduce.weighted_mean(x, normalizer="sum"), "normalizer"),
        (lambda x: reduce.tokens(x, np.ones((3, 2))), "mask"),
        (lambda x: reduce.tokens(x, x > 0, mode="mean"), "mode"),
        (lambda x: reduce.tokens(x, x > 0, mode="token-sum-fixed-length"), "length"),
        (lambda x: reduce.tokens(x, x > 0, mode="token-sum-fixed-length", length=0), "length"),
        (lambda x: reduce.tokens(x, x > 0, length=4), "length"),
        (lambda x: reduce.tokens(x[0, 0], np.ones(())), "values"),
        (lambda x: reduce.tokens(x, x > 0, np.ones((2, 2))), "weights"),
        (lambda x: reduce.weighted_mean("abc"), "values"),
        (lambda x: reduce.combine([]), "parts"),
    ],
)
def test_a_static_mistake_is_named(call, named):
    with pytest.raises(ValueError, match=f"argument `{named}`"):
        call(np.ones((2, 3), np.float32))


def test_a_sum_of_sums_divides_by_nothing():
    x = np.arange(6.0, dtype=np.float32)
    total = reduce.combine(reduce.weighted_sum(piece, parts=True) for piece in np.split(x, 3))
    assert math.isclose(total, 15)
