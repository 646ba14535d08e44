"""A step of AdamP and SGDP over one of `optax.adamw` and `optax.sgd` with momentum.

Jitted, parameters and state donated, `apply_updates` included, float32, at the parameter shapes of a ResNet-50 and of a
transformer of 110 M parameters. Goal: at most 1.5 on CPU and 1.15 on a GPU. Where torch is installed, its AdamW and SGD
are timed too, and AdamP and SGDP of the authors' package `adamp` if that is. On a GPU each step is also given as a
fraction of the memory-bandwidth floor: the time that a plain elementwise update takes to move the bytes which any
implementation must move (gradient in; parameter and state in and out).
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from reweight import optim

GOALS = {"cpu": 1.5, "gpu": 1.15}
PAIRS = {"adamp": "adamw", "sgdp": "sgd"}
# Arrays of the size of the parameters that are read or written: gradient, and parameter and state twice.
PASSES = {"adamw": 7, "adamp": 7, "sgd": 5, "sgdp": 5}
OPTIMIZERS = {
    "adamw": optax.adamw(1e-3, weight_decay=1e-2),
    "adamp": optim.adamp(1e-3, weight_decay=1e-2),
    "sgd": optax.chain(optax.add_decayed_weights(1e-5), optax.sgd(0.1, 0.9)),
    "sgdp": optim.sgdp(0.1, 0.9, weight_decay=1e-5),
}


def resnet50() -> dict[str, Any]:
    """Shapes of the parameters of a ResNet-50 with 1000 classes, in flax layout."""
    shapes: dict[str, Any] = {}

    def convolution(name: str, window: int, inputs: int, outputs: int) -> None:
        shapes[name] = {"conv": {"kernel": (window, window, inputs, outputs)}}
        shapes[name]["norm"] = {"scale": (outputs,), "bias": (outputs,)}

    convolution("stem", 7, 3, 64)
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            convolution(f"{name}_reduce", 1, inputs, width)
            convolution(f"{name}_window", 3, width, width)
            convolution(f"{name}_expand", 1, width, 4 * width)
            if block == 0:
                convolution(f"{name}_shortcut", 1, inputs, 4 * width)
            inputs = 4 * width
    return shapes | {"head": {"kernel": (inputs, 1000), "bias": (1000,)}}


def transformer(layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 32_000) -> dict[str, Any]:
    """Shapes of the parameters of a decoder with tied embeddings, in flax layout."""
    to_heads = {"kernel": (width, heads, width // heads), "bias": (heads, width // heads)}
    layer = {
        "query": to_heads,
        "key": to_heads,
        "value": to_heads,
        "out": {"kernel": (heads, width // heads, width), "bias": (width,)},
        "up": {"kernel": (width, 4 * width), "bias": (4 * width,)},
        "down": {"kernel": (4 * width, width), "bias": (width,)},
        "norm_1": {"scale": (width,), "bias": (width,)},
        "norm_2": {"scale": (width,), "bias": (width,)},
    }
    shapes: dict[str, Any] = {f"layer_{index}": layer for index in range(layers)}
    return shapes | {"tokens": {"embedding": (vocabulary, width)}, "positions": {"embedding": (1024, width)}}


MODELS = {"ResNet-50": resnet50(), "transformer": transformer()}


def draw(shapes: dict[str, Any], seed: int) -> Any:
    """Arrays of these shapes, drawn at random."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32)),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def jax_step(transform: optax.GradientTransformation, start: Any, grads: Any) -> Callable[[], None]:
    """A call that makes one step and waits for it."""
    params = jax.tree.map(jnp.copy, start)
    carried = [params, transform.init(params)]

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carried, grads).compile()

    def call() -> None:
        carried[:] = compiled(*carried, grads)
        jax.block_until_ready(carried)

    return call


def elementwise_update(size: int) -> Callable[[], None]:
    """A call that reads two arrays and writes one, each of `size` float32 numbers."""
    carried, other = [jnp.ones(size)], jnp.ones(size)
    update = jax.jit(lambda x, y: 0.9 * x + y, donate_argnums=0)

    def call() -> None:
        carried[0] = jax.block_until_ready(update(carried[0], other))

    return call


def torch_steps(shapes: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """The same optimizers of torch and of the authors' package, as far as installed, output channel first."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    makers: dict[str, Callable[[Any], Any]] = {
        "torch adamw": lambda params: torch.optim.AdamW(params, 1e-3, weight_decay=1e-2),
        "torch sgd": lambda params: torch.optim.SGD(params, 0.1, 0.9, weight_decay=1e-5),
    }
    if importlib.util.find_spec("adamp") is not None:
        import adamp

        makers["torch adamp"] = lambda params: adamp.AdamP(params, 1e-3, weight_decay=1e-2)
        makers["torch sgdp"] = lambda params: adamp.SGDP(params, 0.1, momentum=0.9, weight_decay=1e-5)
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"

    def step_of(make: Callable[[Any], Any]) -> Callable[[], None]:
        leaves = jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, tuple))
        params = [torch.nn.Parameter(torch.randn(*shape[::-1], device=device)) for shape in leaves]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = make(params)

        def call() -> None:
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    return {name: step_of(make) for name, make in makers.items()}


def compare(model: str, shapes: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times all optimizers on one model; prints its table."""
    size = sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, tuple)))
    backend = jax.default_backend()
    start, grads = draw(shapes, 0), draw(shapes, 1)
    steps = {name: jax_step(transform, start, grads) for name, transform in OPTIMIZERS.items()}
    floor = {"elementwise": elementwise_update(size)} if backend == "gpu" else {}
    seconds = measure.interleaved(steps | torch_steps(shapes) | floor, rounds=rounds)
    per_pass = seconds.pop("elementwise", math.nan) / 3
    ratios = {name: seconds[name] / seconds[base] for name, base in PAIRS.items()}
    floors = {name: PASSES[name] * per_pass / seconds[name] for name in PASSES} if floor else {}
    rows = []
    for name, value in seconds.items():
        ratio = f"{ratios[name]:.2f} x {PAIRS[name]} (goal {GOALS.get(backend, math.nan)})" if name in ratios else ""
        rows.append([name, f"{value * 1e3:.1f} ms", ratio, f"{floors[name]:.0%}" if name in floors else ""])
    print(f"\n{model}, {size / 1e6:.1f} M parameters")
    print(measure.table(("step", "time", "ratio", "of bandwidth" if floor else ""), rows), flush=True)
    result = {"parameters": size, "seconds": seconds, "ratios": ratios, "goal": GOALS.get(backend)}
    return result | ({"fraction_of_bandwidth_floor": floors} if floors else {})


def main() -> None:
    """Times both models, prints their tables and stores them."""
    measure.save("optimizers", {model: compare(model, shapes, rounds=11) for model, shapes in MODELS.items()})


if __name__ == "__main__":
    main()
