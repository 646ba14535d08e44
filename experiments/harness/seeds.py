"""All seeds of a method side by side on the device, with metrics on disk and checkpoints to go on from."""

import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from experiments.harness.command import Context
from reweight import parallel
from reweight.train import Checkpointer, JsonlWriter, Run, TensorBoardWriter, TrainState, run_on_device
from reweight.train.step import Step

__all__ = ["train_seeds"]

Tree = Any  # a pytree of arrays


def train_seeds(
    method: str,
    step: Step,
    state: TrainState,
    arrays: dict[str, Array],
    keys: PRNGKeyArray,
    *,
    batch_size: int,
    num_steps: int,
    context: Context,
    stacked_arrays: bool = False,
    every: int | None = None,
    chunks: int = 2,
    eval_fn: Callable[[TrainState], dict[str, Array]] | None = None,
    eval_every: int | None = None,
    mesh: str | None = None,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """`run_on_device` for stacked seeds, gone on with from where the run in `context.path` was interrupted.

    Between its chunks it writes `checkpoints/<method>/`, `metrics/<method>.jsonl` (the metrics of every seed) and
    `tensorboard/<method>/` (their means). A run that was killed and is resumed leaves the files and numbers of one that
    was not.

    Args:
      method: the name of the method.
      step: from `make_step`.
      state: stacked over the seeds, at step 0.
      arrays: see `run_on_device`.
      keys: one a seed.
      batch_size: examples a step.
      num_steps: the step to stop at.
      context: where to write and whom to tell of progress.
      stacked_arrays: see `run_on_device`.
      every: steps between two records of the metrics; one more is made after the last step. Default: a fiftieth of all.
      chunks: into how many pieces the run is cut.
      eval_fn: named arrays to be measured of the state of a seed now and then; see `run_on_device`.
      eval_every: steps between two of them.
      mesh: devices among which the seeds are divided along the axis `data`, such as `"data=8"`. Default: where the
        arrays are. A run may be gone on with on another mesh.

    Returns:
      The last states, and the metrics of all steps `[seeds, steps]`, with what `eval_fn` measured `[seeds, evals, ...]`
      beside them.
    """
    seeds = len(state.step)
    chunk = -(-num_steps // chunks)
    every = max(1, num_steps // 50) if every is None else every
    if mesh is not None:
        devices = parallel.make_mesh(mesh)
        keys = _spread(keys, devices)
        rows = functools.partial(_spread, mesh=devices)
        whole = functools.partial(jax.device_put, device=parallel.replicated(devices))
        arrays = jax.tree.map(rows if stacked_arrays else whole, arrays)
        state = jax.tree.map(rows, state)

    def kept(state: TrainState) -> TrainState:
        return state if mesh is None else jax.tree.map(lambda x: x[:seeds], state)

    options: dict[str, Any] = {"batch_size": batch_size, "num_steps": num_steps, "stacked_arrays": stacked_arrays}
    options |= {"eval_fn": eval_fn, "eval_every": eval_every}
    if context.path is None:
        run = run_on_device(step, state, arrays, keys, **options)
        context.tick(method, num_steps)
        return kept(run.state), _numbers(run.metrics, seeds) | _numbers(run.evals or {}, seeds)

    jsonl = JsonlWriter(context.path / "metrics" / f"{method}.jsonl")
    tensorboard = TensorBoardWriter(context.path / "tensorboard" / method)
    past: dict[str, np.ndarray] = {}
    with Checkpointer(context.path / "checkpoints" / method, keep_last=2) as checkpointer:
        start, position = 0, None
        if checkpointer.latest() is None:
            # The first checkpoint is there before the first line of metrics, for a run killed in its first chunk.
            jsonl.begin(0, None)
            checkpointer.save(0, kept(state), data=_packed(past), writers=jsonl.position())
            checkpointer.wait()
        else:
            restored = checkpointer.restore(kept(state))
            past, start, position = _unpacked(restored.data), restored.step, restored.writers
            state = restored.state if mesh is None else jax.tree.map(rows, restored.state)
            jsonl.begin(start, position)
        tensorboard.begin(start, None)
        context.tick(method, start)

        def on_chunk(run: Run) -> None:
            nonlocal past
            number = int(run.state.step[0])
            new = _numbers(run.metrics, seeds)
            first = number - next(iter(new.values())).shape[1] + 1
            for at in range(first, number + 1):
                if at % every == 0 or at == num_steps:
                    values = {f"train/{name}": x[:, at - first] for name, x in new.items()}
                    jsonl.write(at, values)
                    tensorboard.write(at, {name: x.mean() for name, x in values.items()})
            new |= _numbers(run.evals or {}, seeds)
            past = {name: np.concatenate([past[name], x], axis=1) if past else x for name, x in new.items()}
            tensorboard.position()
            checkpointer.save(number, kept(run.state), data=_packed(past), writers=jsonl.position())
            context.tick(method, number - first + 1)

        if start < num_steps:
            state = run_on_device(step, state, arrays, keys, chunk_size=chunk, on_chunk=on_chunk, **options).state
        jsonl.close()
        tensorboard.close()
    return kept(state), past


def _spread(x: Array, mesh: Mesh) -> Array:
    """Rows of seeds on the mesh's axis `data`, the last one repeated where it does not divide them."""
    x = jnp.asarray(x)
    missing = -len(x) % mesh.shape["data"]
    padded = jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]) if missing else x
    return jax.device_put(padded, parallel.batch_sharding(mesh))


def _numbers(tree: dict[str, Array], seeds: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(x)[:seeds] for name, x in tree.items()}


def _packed(metrics: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **metrics)
    return buffer.getvalue()


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return dict(stored)
