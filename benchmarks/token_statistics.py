"""Token statistics from hidden states against whole logits: temporary memory, and time.

What is measured is the gradient, to hidden states and kernel, of the mean of log-prob + 0.01 entropy over tokens.
Goals: at most 1.9 GiB of temporary memory at the large shape, where whole logits take 15.1, and at most 1.1 times the
time of whole logits where those fit. Memory is that of compiled programs, which are not run. On a GPU it is the large
shape that is timed, with the fraction of the matrix products' ceiling: the time of the three products that a gradient
cannot do without over the time taken, so that the product that is computed again counts as a loss.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from reweight import tokens

LARGE = (8192, 2048, 151_936)
TIMED = {"1024 x 512 x 32768": (1024, 512, 32_768), "2048 x 512 x 32768": (2048, 512, 32_768)}
GOALS = {"temporary_gib": 1.9, "ratio": 1.1}
ROWS_OF_THE_SCAN = 1024
CHUNK = 8192

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def whole_logits(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> jax.Array:
    """From logits, in the way that most training code has it."""
    log_p = jax.nn.log_softmax((hidden @ kernel).astype(jnp.float32))
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return jnp.mean(jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0] + 0.01 * entropy)


def checkpointed_scan(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> jax.Array:
    """The same over blocks of rows, whose logits are computed again for the gradient."""

    @jax.checkpoint
    def block(total: jax.Array, rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + whole_logits(rows[0], kernel, rows[1]), None

    count = max(1, len(hidden) // ROWS_OF_THE_SCAN)
    blocks = hidden.reshape(count, -1, hidden.shape[-1]), targets.reshape(count, -1)
    return jax.lax.scan(block, jnp.zeros(()), blocks)[0] / count


def by_statistics(hidden: jax.Array, kernel: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """By `tokens.token_statistics`."""
    found = tokens.token_statistics(hidden, kernel, targets, statistics=("log_probs", "entropy"), **options)
    assert found.log_probs is not None
    assert found.entropy is not None
    return jnp.mean(found.log_probs + 0.01 * found.entropy)


def tied(hidden: jax.Array, embedding: jax.Array, targets: jax.Array) -> jax.Array:
    """By `tokens.token_statistics`, with embeddings as kernel."""
    return by_statistics(hidden, embedding, targets, kernel_layout="VD")


def gradient(loss: Loss) -> Any:
    """The jitted gradient to hidden states and kernel."""
    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def temporary_memory(loss: Loss, shape: tuple[int, int, int], *, transposed: bool = False) -> float:
    """GiB of temporary memory of the compiled gradient, inputs and outputs not counted."""
    rows, features, vocabulary = shape
    kernel = (vocabulary, features) if transposed else (features, vocabulary)
    arguments = (
        jax.ShapeDtypeStruct((rows, features), jnp.bfloat16),
        jax.ShapeDtypeStruct(kernel, jnp.bfloat16),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    return gradient(loss).lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 2**30


def memory(shape: tuple[int, int, int]) -> dict[str, float]:
    """Temporary memory of all ways; prints its table."""
    found = {
        "whole logits": temporary_memory(whole_logits, shape),
        "checkpointed scan": temporary_memory(checkpointed_scan, shape),
        "token_statistics": temporary_memory(by_statistics, shape),
        "token_statistics, tied embeddings": temporary_memory(tied, shape, transposed=True),
    }
    header = (f"{' x '.join(map(str, shape))}, bfloat16", "temporary memory")
    print(measure.table(header, [[name, f"{gib:.2f} GiB"] for name, gib in found.items()]), flush=True)
    return found


def times(name: str, shape: tuple[int, int, int], dtype: str, rounds: int) -> dict[str, Any]:
    """Times all ways at a shape; prints its table."""
    rows, features, vocabulary = shape
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, features), dtype)
    kernel = jax.random.normal(keys[1], (features, vocabulary), dtype) / features**0.5
    targets = jax.random.randint(keys[2], (rows,), 0, vocabulary)
    losses: dict[str, Loss] = {
        "whole logits": whole_logits,
        "token_statistics": by_statistics,
        f"token_statistics, chunks of {CHUNK}": partial(by_statistics, vocab_chunk=CHUNK),
    }
    programs = {what: gradient(loss).lower(hidden, kernel, targets).compile() for what, loss in losses.items()}
    calls: dict[str, Callable[[], Any]] = {
        what: lambda program=program: jax.block_until_ready(program(hidden, kernel, targets))  # type: ignore[misc]
        for what, program in programs.items()
    }
    if gpu := jax.default_backend() == "gpu":
        product = jax.jit(jnp.matmul).lower(hidden, kernel).compile()
        calls["product"] = lambda: jax.block_until_ready(product(hidden, kernel))
    seconds = measure.interleaved(calls, rounds=rounds)
    product_seconds = seconds.pop("product", math.nan)
    ratios = {what: value / seconds["whole logits"] for what, value in seconds.items()}
    ceiling = {what: 3 * product_seconds / value for what, value in seconds.items()} if gpu else {}
    table = [
        [what, f"{value:.3f} s", f"{ratios[what]:.2f} (goal {GOALS['ratio']})", f"{ceiling[what]:.0%}" if gpu else ""]
        for what, value in seconds.items()
    ]
    header = (f"{name}, {dtype}", "time", "ratio", "of the products' ceiling" if gpu else "")
    print(measure.table(header, table), flush=True)
    return {"seconds": seconds, "ratios": ratios} | ({"fraction_of_product_ceiling": ceiling} if gpu else {})


def main() -> None:
    """Measures memory and time, prints the tables and stores them."""
    gpu = jax.default_backend() == "gpu"
    found: dict[str, Any] = {"goals": GOALS, "temporary_gib": memory(LARGE), "times": {}}
    shapes = {"8192 x 2048 x 151936": LARGE} if gpu else TIMED
    for name, shape in shapes.items():
        for dtype in ("bfloat16",) if gpu else ("float32", "bfloat16"):
            found["times"][f"{name}, {dtype}"] = times(name, shape, dtype, rounds=15 if gpu else 9)
    measure.save("token_statistics", found)


if __name__ == "__main__":
    main()
