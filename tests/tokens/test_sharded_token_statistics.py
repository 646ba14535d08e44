"""With the batch over `data` and the vocabulary over `model`: the numbers of one device, and the kernel stays put."""

import contextlib
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from reweight import tokens
from tests.tokens import plain

B, T, D, V, K = 4, 6, 16, 512, 3
ROWS, ITEM = B * T, re.compile(r"(?:[a-z]+\d+|pred)\[([\d,]*)\]")
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\(")


def mesh(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)


def draw(dtype=np.float32):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return normal(B, T, D), normal(D, V), jnp.asarray(rng.integers(0, V, (B, T))), normal(B, T, D), normal(D, V)


def call(statistics, **options):
    def run(hidden, kernel, targets, other, other_kernel):
        extra = {}
        if not {"forward_kl", "reverse_kl", "jensen_shannon"}.isdisjoint(statistics):
            extra |= {"reference_hidden": other, "reference_kernel": other_kernel, "reference_kernel_layout": "DV"}
        if "top_ids" in statistics:
            extra["top_k"] = K
        return tokens.token_statistics(
            hidden, kernel, targets, statistics=statistics, vocab_chunk=96, **extra, **options
        )

    return jax.jit(plain.graded(run))


def collectives(program):
    """Kind and sizes of what is sent in a compiled program, the loops included."""
    found = []
    for line in program.splitlines():
        if match := COLLECTIVE.search(line):
            shapes = ITEM.findall(match[1])
            found.append((match[2], [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]))
    return found


FEW = ("log_probs", "entropy")


@pytest.mark.parametrize(
    ("statistics", "layout", "kind", "shards", "dtype"),
    [
        (FEW, "DV", AxisType.Auto, None, jnp.float32),
        (FEW, "VD", AxisType.Auto, 4, jnp.float32),
        (FEW, "DV", AxisType.Auto, 4, jnp.bfloat16),
        (FEW, "VD", AxisType.Auto, None, jnp.bfloat16),
        (FEW, "DV", AxisType.Explicit, None, jnp.float32),
        (plain.ALL, "DV", AxisType.Auto, None, jnp.float32),
        (plain.ALL, "VD", AxisType.Auto, 4, jnp.float32),
        (plain.ALL, "VD", AxisType.Explicit, None, jnp.float32),
    ],
)
def test_eight_devices_give_the_numbers_of_one_and_send_no_kernel(statistics, layout, kind, shards, dtype):
    arrays = list(draw(dtype))
    if layout == "VD":
        arrays[1] = arrays[1].T
    options = {"kernel_layout": layout}
    wanted = call(statistics, vocab_shards=1, **options)(*arrays)
    along = P(None, "model") if layout == "DV" else P("model", None)
    specs = (P("data"), along, P("data"), P("data"), P(None, "model"))
    devices = mesh(kind)
    placed = [jax.device_put(x, NamedSharding(devices, spec)) for x, spec in zip(arrays, specs, strict=True)]
    with jax.set_mesh(devices) if kind == AxisType.Explicit else contextlib.nullcontext():
        compiled = call(statistics, vocab_shards=shards, **options).lower(*placed).compile()
        found = compiled(*placed)
    exact = dtype == jnp.float32
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(np.float32(right)).max()
        np.testing.assert_allclose(np.float32(left), np.float32(right), atol=(2e-6 if exact else 1e-2) * scale)
    assert found[1][1].sharding.is_equivalent_to(NamedSharding(devices, along), 2)

    sent = collectives(compiled.as_text())
    shard = D * V // 4
    # Sums over `data` of the kernel's gradient are as large as a chunk; over `model` go the hidden states' gradients.
    allowed = {"all-reduce": max(D * 96 // 4 + ROWS, ROWS // 2 * D)}
    few_numbers_a_row = ROWS * K * 8
    for what, numbers in sent:
        assert max(numbers) < shard, f"{what} of {numbers}"
        assert max(numbers) <= allowed.get(what, few_numbers_a_row), f"{what} of {numbers}"
    if statistics != plain.ALL:
        assert {what for what, _ in sent} == {"all-reduce"}


def test_chunks_that_follow_each_other_would_send_the_kernel():
    """That the test above can fail."""
    arrays = draw()
    devices = mesh(AxisType.Auto)
    specs = (P("data"), P(None, "model"), P("data"), P("data"), P(None, "model"))
    placed = [jax.device_put(x, NamedSharding(devices, spec)) for x, spec in zip(arrays, specs, strict=True)]
    program = call(("log_probs",), vocab_shards=1).lower(*placed).compile().as_text()
    assert max(max(numbers) for _, numbers in collectives(program)) >= D * V // 4


@pytest.mark.parametrize("check_vma", [True, False])
def test_on_the_shards_of_a_shard_map(check_vma):
    arrays = draw()
    run = partial(
        lambda *a: plain.weighed(
            tokens.token_statistics(*a[:3], statistics=("log_probs", "top_mass"), top_k=K, vocab_chunk=100)
        )
    )
    devices = mesh(AxisType.Auto)
    rows, whole = P("data"), P()
    mapped = jax.shard_map(
        lambda h, k, t: jax.lax.psum(run(h, k, t), "data"),
        mesh=devices, in_specs=(rows, whole, rows), out_specs=whole, check_vma=check_vma,
    )  # fmt: skip
    found = jax.jit(jax.value_and_grad(mapped, argnums=(0, 1)))(*arrays[:3])
    halves = [(arrays[0][part], arrays[1], arrays[2][part]) for part in (slice(0, 2), slice(2, 4))]
    one, two = (jax.value_and_grad(run, argnums=(0, 1))(*half) for half in halves)
    np.testing.assert_allclose(found[0], one[0] + two[0], rtol=1e-5)
    np.testing.assert_allclose(found[1][0], np.concatenate([one[1][0], two[1][0]]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1][1], one[1][1] + two[1][1], rtol=1e-4, atol=1e-5)
