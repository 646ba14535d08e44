import math
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import tokens
from tests.tokens import plain

D, V, K = 5, 23, 4
RNG = np.random.default_rng(0)


def draw(leading=(6,), features=D, vocabulary=V, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(*leading, features)),
        rng.normal(size=(features, vocabulary)),
        rng.integers(0, vocabulary, leading),
        rng.normal(size=(*leading, features + 1)),
        rng.normal(size=(features + 1, vocabulary)),
    )


def everything(hidden, kernel, targets, reference_hidden, reference_kernel, **options):
    return tokens.token_statistics(
        hidden, kernel, targets, statistics=plain.ALL, reference_hidden=reference_hidden,
        reference_kernel=reference_kernel, **{"top_k": K, **options},
    )  # fmt: skip


def assert_close(found, wanted, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), found, wanted)


@pytest.mark.parametrize(
    ("leading", "vocabulary", "options"),
    [
        ((6,), 23, {"vocab_chunk": 1}),
        ((2, 3), 23, {"vocab_chunk": 7, "temperature": 0.6}),
        ((6,), 24, {"vocab_chunk": 8, "logit_cap": 2.0}),
        ((6,), 24, {"vocab_chunk": 10, "vocab_shards": 4, "top_k": 9}),
        ((1, 2, 1), 23, {"vocab_chunk": 1000, "temperature": 3.0, "logit_cap": 5.0}),
        ((), 5, {"top_k": 5}),
        ((40,), 600, {"vocab_chunk": 256, "top_k": 2}),
    ],
)
@pytest.mark.parametrize("layout", ["DV", "VD"])
def test_values_and_gradients_are_those_of_whole_logits(x64, leading, vocabulary, options, layout):
    arrays = draw(leading, vocabulary=vocabulary)
    squash = {name: value for name, value in options.items() if name in ("temperature", "logit_cap")}
    by_logits = partial(plain.statistics, top_k=options.get("top_k", K), **squash)
    wanted = jax.jit(plain.graded(by_logits))(*arrays)
    turn = (lambda kernel: kernel.T) if layout == "VD" else (lambda kernel: kernel)

    def ours(hidden, kernel, targets, reference_hidden, reference_kernel):
        return everything(
            hidden, turn(kernel), targets, reference_hidden, turn(reference_kernel), kernel_layout=layout, **options
        )

    assert_close(jax.jit(plain.graded(ours))(*arrays), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("squash", [{}, {"temperature": 0.6, "logit_cap": 4.0}])
def test_from_logits_and_from_hidden_states_are_the_same(x64, squash):
    hidden, kernel, targets, reference_hidden, reference_kernel = draw()
    logits, reference = hidden @ kernel, reference_hidden @ reference_kernel

    def from_logits(logits, targets):
        return tokens.token_statistics_from_logits(
            logits, targets, statistics=plain.ALL, top_k=K, reference_logits=reference, **squash
        )

    found, back = jax.vjp(lambda logits: from_logits(logits, targets), logits)
    wanted, wanted_back = jax.vjp(
        lambda hidden, kernel: everything(hidden, kernel, targets, reference_hidden, reference_kernel, **squash),
        hidden, kernel,
    )  # fmt: skip
    assert_close(found, wanted, rtol=1e-10)
    slopes = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0) if x.dtype == jnp.int32 else jnp.cos(x), found)
    (to_logits,) = back(slopes)
    assert_close((to_logits @ kernel.T, hidden.T @ to_logits), wanted_back(slopes), rtol=1e-9, atol=1e-12)


def test_only_what_is_asked_for_comes_back_in_any_order():
    hidden, kernel, targets, *_ = draw()
    found = tokens.token_statistics(hidden, kernel, targets, statistics=["entropy", "log_probs", "entropy"])
    assert [name for name, value in found._asdict().items() if value is not None] == ["log_probs", "entropy"]
    alone = tokens.token_statistics(hidden, kernel, targets).log_probs
    np.testing.assert_allclose(found.log_probs, alone, rtol=1e-6)


compiled = jax.jit(partial(everything, vocab_chunk=9))
sizes = st.floats(0.01, 30)


@hypothesis.given(seed=st.integers(0, 10_000), size=sizes)
def test_bounds(seed, size):
    hidden, *rest = draw(seed=seed)
    found = compiled(np.float32(size * hidden), *map(np.float32, rest[:1]), rest[1], *map(np.float32, rest[2:]))
    assert (found.log_probs <= 1e-6).all()
    assert (found.entropy >= -1e-6).all()
    assert (found.entropy <= math.log(V) + 1e-5).all()
    assert (found.sum_squares >= 1 / V - 1e-6).all()
    assert (found.sum_squares <= 1 + 1e-6).all()
    assert (found.top_log_probs[:, :-1] >= found.top_log_probs[:, 1:]).all()
    assert (found.top_log_probs[:, 0] >= found.log_probs - 1e-5).all()
    assert (found.top_mass <= 1 + 1e-5).all()
    assert (found.forward_kl >= 0).all()
    assert (found.reverse_kl >= 0).all()
    assert (found.jensen_shannon >= 0).all()
    assert (found.jensen_shannon <= math.log(2) + 1e-6).all()
    # The probability of a draw's coincidence with another is at least e to minus the entropy.
    assert (found.sum_squares >= np.exp(-found.entropy) - 1e-5).all()


@hypothesis.given(seed=st.integers(0, 10_000), size=sizes)
def test_a_model_does_not_diverge_from_itself(seed, size):
    hidden, kernel, targets, *_ = draw(seed=seed)
    hidden, kernel = np.float32(size * hidden), np.float32(kernel)
    found = chunked_divergences(hidden, kernel, targets, hidden, kernel)
    for divergence in (found.forward_kl, found.reverse_kl, found.jensen_shannon):
        np.testing.assert_allclose(divergence, 0, atol=1e-6)


divergences = ("forward_kl", "reverse_kl", "jensen_shannon")
chunked_divergences = jax.jit(
    lambda hidden, kernel, targets, other, other_kernel: tokens.token_statistics(
        hidden, kernel, targets, statistics=divergences, reference_hidden=other, reference_kernel=other_kernel,
        vocab_chunk=9,
    )
)  # fmt: skip


@hypothesis.given(seed=st.integers(0, 10_000))
def test_exchanging_the_models_turns_forward_into_reverse_and_leaves_jensen_shannon(seed):
    hidden, kernel, targets, other, other_kernel = (np.float32(x) for x in draw(seed=seed))
    other, other_kernel, targets = other[:, :-1], other_kernel[:-1], np.int32(targets)
    one = chunked_divergences(hidden, kernel, targets, other, other_kernel)
    two = chunked_divergences(other, other_kernel, targets, hidden, kernel)
    np.testing.assert_allclose(one.forward_kl, two.reverse_kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.reverse_kl, two.forward_kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.jensen_shannon, two.jensen_shannon, rtol=1e-4, atol=1e-5)


def test_logits_that_are_all_alike_give_the_uniform_distribution():
    _, kernel, targets, *_ = draw()
    found = tokens.token_statistics(
        jnp.zeros((6, D)), jnp.float32(kernel), targets, vocab_chunk=5, top_k=4,
        statistics=("log_probs", "entropy", "logsumexp", "sum_squares", "top_ids", "top_mass"),
    )  # fmt: skip
    np.testing.assert_allclose(found.log_probs, -math.log(V), rtol=1e-6)
    np.testing.assert_allclose(found.entropy, math.log(V), rtol=1e-6)
    np.testing.assert_allclose(found.logsumexp, math.log(V), rtol=1e-6)
    np.testing.assert_allclose(found.sum_squares, 1 / V, rtol=1e-6)
    np.testing.assert_allclose(found.top_mass, 4 / V, rtol=1e-6)
    np.testing.assert_array_equal(found.top_ids, np.broadcast_to(np.arange(4), (6, 4)))  # of equals the smallest ids


@pytest.mark.parametrize(("chunk", "shards"), [(7, 1), (1, 1), (64, 4), (1000, 1)])
def test_the_top_tokens_are_in_order_with_the_smaller_id_first_among_equals(chunk, shards):
    logits = RNG.integers(0, 6, (30, 64)).astype(np.float32)
    found = tokens.token_statistics(
        logits,
        jnp.eye(64),
        np.zeros(30, int),
        statistics=("top_ids",),
        top_k=12,
        vocab_chunk=chunk,
        vocab_shards=shards,
    )
    np.testing.assert_array_equal(found.top_ids, np.argsort(-logits, axis=-1, kind="stable")[:, :12])


def test_a_temperature_scales_the_hidden_states():
    hidden, kernel, targets, *_ = map(np.float32, draw())
    targets = np.int32(targets)
    one = tokens.token_statistics(hidden, kernel, targets, temperature=0.5, vocab_chunk=6)
    two = tokens.token_statistics(2 * hidden, kernel, targets, vocab_chunk=6)
    np.testing.assert_allclose(one.log_probs, two.log_probs, rtol=1e-5)


def test_no_gradient_flows_to_temperature_cap_and_reference():
    hidden, kernel, targets, other, other_kernel = map(jnp.float32, draw())

    def loss(temperature, cap, other, other_kernel):
        squash = {"temperature": temperature, "logit_cap": cap, "vocab_chunk": 9}
        return plain.weighed(everything(hidden, kernel, jnp.int32(targets), other, other_kernel, **squash))

    for gradient in jax.grad(loss, argnums=(0, 1, 2, 3))(0.7, 3.0, other, other_kernel):
        assert (np.asarray(gradient) == 0).all()


def test_bfloat16_is_accumulated_in_float32_and_gradients_have_the_dtype_of_their_inputs():
    hidden, kernel, targets, other, other_kernel = draw((64,), 32, 512)
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, 0.2 * kernel, other, 0.2 * other_kernel)]
    wide = [x.astype(jnp.float32) for x in narrow]
    call = jax.jit(plain.graded(lambda h, k, o, ok: everything(h, k, jnp.asarray(targets), o, ok, vocab_chunk=100)))
    (_, found), gradients = call(*narrow)
    (_, wanted), wanted_gradients = call(*wide)
    for value, other_value in zip(found, wanted, strict=True):
        assert value.dtype in (jnp.float32, jnp.int32)
        np.testing.assert_allclose(value, other_value, rtol=1e-4, atol=1e-5)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        assert gradient.dtype == jnp.bfloat16
        error = np.linalg.norm(np.float32(gradient) - wanted_gradient)
        assert error < 0.004 * np.linalg.norm(wanted_gradient)  # half a unit in the last place of bfloat16


def test_mixed_dtypes_meet_in_the_wider_one():
    hidden, kernel, targets, *_ = draw()
    kernel = jnp.asarray(kernel, jnp.bfloat16)
    found = jax.grad(lambda h, k: jnp.sum(tokens.token_statistics(h, k, targets, vocab_chunk=6).log_probs), (0, 1))
    to_hidden, to_kernel = found(jnp.float32(hidden), kernel)
    assert (to_hidden.dtype, to_kernel.dtype) == (jnp.float32, jnp.bfloat16)
    wanted, _ = found(jnp.float32(hidden), kernel.astype(jnp.float32))
    np.testing.assert_allclose(to_hidden, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_logits_of_ten_thousand_keep_the_digits_of_plain_log_softmax(size):
    hidden = np.float32(size) * RNG.normal(size=(8, D)).astype(np.float32)
    kernel, targets = RNG.normal(size=(D, V)).astype(np.float32), RNG.integers(0, V, 8)
    statistics = ("log_probs", "entropy", "sum_squares")

    def ours(hidden):
        found = tokens.token_statistics(hidden, kernel, targets, statistics=statistics, vocab_chunk=7)
        return plain.weighed(found), found.log_probs

    def wanted(hidden):
        log_p = jax.nn.log_softmax(hidden @ kernel)
        chosen = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
        found = chosen, -jnp.sum(jnp.exp(log_p) * log_p, -1), jnp.sum(jnp.exp(2 * log_p), -1)
        return plain.weighed(found), chosen

    for left, right in zip(
        jax.tree.leaves(jax.value_and_grad(ours, has_aux=True)(hidden)),
        jax.tree.leaves(jax.value_and_grad(wanted, has_aux=True)(hidden)),
        strict=True,
    ):
        assert np.isfinite(left).all()
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-2)


def test_tokens_that_are_ruled_out_have_no_probability_and_no_gradient():
    logits = RNG.normal(size=(4, 9)).astype(np.float32)
    logits[:, 5:] = -np.inf
    statistics = ("log_probs", "entropy", "sum_squares", "top_mass", "top_log_probs")

    def loss(logits):
        found = tokens.token_statistics_from_logits(logits, np.arange(4), statistics=statistics, top_k=3)
        return plain.weighed(found), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    (_, wanted), wanted_gradient = jax.value_and_grad(loss, has_aux=True)(logits[:, :5])
    assert_close(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, :5], wanted_gradient, rtol=1e-5, atol=1e-6)
    assert (gradient[:, 5:] == 0).all()


def test_masked_rows_are_not_read_and_have_no_say():
    hidden, kernel, targets, *_ = draw((4, 3))
    mask = np.arange(3) < np.array([[3], [1], [0], [2]])
    dirty = np.where(mask[..., None], hidden, np.nan)

    def loss(hidden, kernel):
        found = tokens.token_statistics(
            hidden, kernel, np.where(mask, targets, 999), statistics=("log_probs", "entropy", "top_ids"), mask=mask,
            top_k=2, vocab_chunk=8,
        )  # fmt: skip
        return plain.weighed(found), found

    (_, found), (to_hidden, to_kernel) = jax.value_and_grad(loss, (0, 1), has_aux=True)(dirty, kernel)
    assert (found.log_probs[~mask] == 0).all()
    assert (found.entropy[~mask] == 0).all()
    assert (found.top_ids[~mask] == -1).all()
    assert (to_hidden[~mask] == 0).all()
    assert np.isfinite(to_kernel).all()


def test_no_rows_at_all():
    _, kernel, _, _, other_kernel = draw()
    empty = jnp.zeros((0, 3, D)), kernel, jnp.zeros((0, 3), int), jnp.zeros((0, 3, D + 1)), other_kernel
    (value, found), gradients = plain.graded(partial(everything, vocab_chunk=8))(*empty)
    assert value == 0
    assert found.log_probs.shape == (0, 3)
    assert (gradients[1] == 0).all()


def test_stacked_seeds_under_vmap():
    one, two = draw(seed=1), draw(seed=2)
    stacked = [jnp.stack([jnp.asarray(a), jnp.asarray(b)]) for a, b in zip(one, two, strict=True)]
    call = plain.graded(partial(everything, vocab_chunk=9))
    found = jax.jit(jax.vmap(call))(*stacked)
    for index, arrays in enumerate((one, two)):
        assert_close(
            jax.tree.map(lambda x, i=index: x[i], found), call(*map(jnp.asarray, arrays)), rtol=1e-4, atol=1e-5
        )


def test_a_statistic_gets_the_arguments_that_it_needs_and_no_others():
    hidden, kernel, targets, other, other_kernel = draw()
    call = partial(tokens.token_statistics, hidden, kernel, targets)
    for argument, options in (
        ("top_k", {"statistics": ("top_mass",)}),
        ("top_k", {"top_k": 3}),
        ("reference_hidden", {"statistics": ("forward_kl",)}),
        ("reference_kernel", {"statistics": ("forward_kl",), "reference_hidden": other}),
        ("reference_hidden", {"reference_hidden": other, "reference_kernel": other_kernel}),
        ("temperature", {"temperature": jnp.ones(6)}),
    ):
        with pytest.raises(ValueError, match=f"`{argument}`"):
            call(**options)


class TestMemory:
    """Of compiled programs, at the shapes of a model with a large vocabulary; nothing is run."""

    N, D, V = 8192, 2048, 151_936

    def temporary(self, loss, kernel_shape):
        struct = jax.ShapeDtypeStruct
        arguments = (
            struct((self.N, self.D), jnp.bfloat16),
            struct(kernel_shape, jnp.bfloat16),
            struct((self.N,), jnp.int32),
        )
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**30

    @pytest.mark.parametrize("layout", ["DV", "VD"])
    def test_a_gradient_holds_neither_logits_nor_a_wider_kernel(self, layout):
        def loss(hidden, kernel, targets):
            found = tokens.token_statistics(
                hidden, kernel, targets, statistics=("log_probs", "entropy"), kernel_layout=layout
            )
            return jnp.mean(found.log_probs + 0.01 * found.entropy)

        shape = (self.D, self.V) if layout == "DV" else (self.V, self.D)
        kernel_in_bfloat16, kernel_in_float32 = (size * self.D * self.V / 2**30 for size in (2, 4))
        gib = self.temporary(loss, shape)
        assert gib < 1.9
        assert gib < kernel_in_bfloat16 + 0.5 < kernel_in_float32
