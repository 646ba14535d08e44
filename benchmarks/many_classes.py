"""Losses of the spherical family against the softmax over all classes, as the classes grow: time of a gradient.

Three ways. `softmax`: cross-entropy, its gradient to hidden states and kernel. `anew`: the Z-loss from the sums of the
kernel, which are computed in the step, and the same gradients; linear in the classes too, but without a score of every
example and class. `factored`: the same step, up to rounding, on a kernel in factors. Goal: that the time of `factored`
does not grow with the classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from reweight.losses import classification

ROWS, FEATURES = 128, 128
CLASSES = (1_000, 10_000, 100_000)
RATE = 1e-3
GOAL = 2.0  # largest time over smallest, as the classes grow a hundredfold


def whole_step(loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], classes: int) -> Callable[[], None]:
    """A call that takes one step of gradient descent on a whole kernel, and waits for it."""
    hidden, kernel, labels = _draw(classes)

    def step(hidden: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        to_hidden, to_kernel = jax.grad(loss, argnums=(0, 1))(hidden, kernel, labels)
        return to_hidden, kernel - RATE * to_kernel

    compiled = jax.jit(step, donate_argnums=1)
    carried = [kernel]

    def call() -> None:
        to_hidden, carried[0] = compiled(hidden, carried[0])
        jax.block_until_ready((to_hidden, carried))

    return call


def softmax(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy from the scores of all classes."""
    return jnp.mean(classification.cross_entropy(hidden @ kernel.T, labels))


def z_loss(hidden: jax.Array, rows: jax.Array, sums: classification.KernelSums) -> jax.Array:
    """The Z-loss from the sums of the kernel and the labels' rows."""
    statistics = classification.spherical_statistics(hidden, rows, sums)
    return jnp.mean(classification.spherical_loss("z_loss", statistics, a=0.3, b=9.0))


def anew(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """The Z-loss from a whole kernel."""
    return z_loss(hidden, kernel[labels], classification.kernel_sums(kernel))


def factored_step(classes: int) -> Callable[[], None]:
    """A call that takes the same step on a kernel in factors."""
    hidden, kernel, labels = _draw(classes)

    def step(hidden: jax.Array, factored: classification.FactoredKernel) -> Any:
        slopes = jax.grad(z_loss, argnums=(0, 1, 2))(hidden, factored.rows(labels), factored.sums)
        return slopes[0], classification.factored_step(factored, labels, *slopes[1:], learning_rate=RATE)

    compiled = jax.jit(step, donate_argnums=1)
    carried = [classification.factored_kernel(kernel)]

    def call() -> None:
        to_hidden, carried[0] = compiled(hidden, carried[0])
        jax.block_until_ready((to_hidden, carried))

    return call


def _draw(classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states, a kernel, and labels."""
    of_hidden, of_kernel, of_labels = jax.random.split(jax.random.key(0), 3)
    labels = jax.random.randint(of_labels, (ROWS,), 0, classes)
    kernel = jax.random.normal(of_kernel, (classes, FEATURES)) / FEATURES**0.5
    return jax.random.normal(of_hidden, (ROWS, FEATURES)), kernel, labels


def compare(sizes: tuple[int, ...] = CLASSES, rounds: int = 15) -> dict[str, Any]:
    """Times all at every number of classes, those of a kind in turns; prints the table."""
    whole = {f"softmax {n}": whole_step(softmax, n) for n in sizes} | {f"anew {n}": whole_step(anew, n) for n in sizes}
    # Apart from those that go through the memory of a whole kernel, whose traces a quick step would pay for.
    factored = {f"factored {n}": factored_step(n) for n in sizes}
    seconds = measure.interleaved(factored, rounds=4 * rounds) | measure.interleaved(whole, rounds=rounds)
    ways = ("softmax", "anew", "factored")
    growth = {way: seconds[f"{way} {sizes[-1]}"] / seconds[f"{way} {sizes[0]}"] for way in ways}
    ratios = {way: {n: seconds[f"softmax {n}"] / seconds[f"{way} {n}"] for n in sizes} for way in ways[1:]}
    rows = []
    for n in sizes:
        times = [f"{1e3 * seconds[f'{way} {n}']:.2f} ms" for way in ways]
        rows.append([f"{n}", *times, *(f"{ratios[way][n]:.1f}" for way in ways[1:])])
    rows.append(["growth", *(f"{growth[way]:.1f} x" for way in ways), "", f"goal of factored: {GOAL:g} x"])
    print(measure.table(("classes", *ways, "softmax / anew", "softmax / factored"), rows), flush=True)
    return {"rows": ROWS, "features": FEATURES, "seconds": seconds, "ratios": ratios, "growth": growth, "goal": GOAL}


def main() -> None:
    """Times all, prints the table and stores it."""
    measure.save("many_classes", compare())


if __name__ == "__main__":
    main()
