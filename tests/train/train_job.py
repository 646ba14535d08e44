"""A training run as a program, to be killed: `python train_job.py DIRECTORY NUM_STEPS [MESH]`, on some processes.

It has all that a checkpoint must hold: a stateful weighting, batch statistics, random steps, a shuffled iterator with
reading threads, evaluations. At the end it writes its state.
"""

import pathlib
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from train_problem import EXAMPLES, batch, loss_fn, params

from reweight import parallel, weights
from reweight.train import Checkpointer, JsonlWriter, LossOutput, fit, init_state, jit_step, make_step

DATA = batch(EXAMPLES, masked=False) | {"indices": np.arange(EXAMPLES, dtype=np.int32)}


def noisy_loss(params, extra, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["inputs"].shape)
    out = loss_fn(params, None, {**batch, "inputs": batch["inputs"] - extra + noise}, None)
    return LossOutput(out.losses, out.signals, 0.9 * extra + 0.1 * jnp.mean(batch["inputs"], axis=0))


def past_losses():
    def init(key=None):
        del key
        return jnp.ones(EXAMPLES)

    def update(state, losses, *, indices, **signals):
        del signals
        state = state.at[indices].set(0.5 * state[indices] + 0.5 * losses)
        return weights.normalize(state[indices]), state

    return weights.Weighting(init, update, "batch", ("indices",))


def batches(mesh):
    rows = slice(None) if mesh is None else parallel.process_slice(16, mesh)
    source = grain.MapDataset.source(range(EXAMPLES)).shuffle(seed=3).repeat().batch(16)
    return iter(source.map(lambda ids: {name: x[ids[rows]] for name, x in DATA.items()}).to_iter_dataset())


def main(directory, num_steps, mesh=None):
    parallel.initialize()
    mesh = None if mesh is None else parallel.make_mesh(mesh)
    optimizer = optax.adam(0.02)
    state = init_state(params(), jnp.zeros(5), optimizer, past_losses(), jax.random.key(0))
    step = jit_step(make_step(noisy_loss, optimizer, weighting=past_losses(), microbatches=2), mesh=mesh)
    evaluation = jax.jit(lambda params: jnp.mean(loss_fn(params, None, DATA, None).losses))
    with Checkpointer(directory / "checkpoints", keep_last=2, best_metric="eval/loss", best_mode="min") as checkpointer:
        done = fit(
            step,
            state,
            batches(mesh),
            num_steps=num_steps,
            mesh=mesh,
            writers=[JsonlWriter(directory / "metrics.jsonl")],
            log_every=1,
            eval_fn=lambda state: {"loss": evaluation(state.params)},
            eval_every=2,
            checkpointer=checkpointer,
            checkpoint_every=4,
        )
        best = checkpointer.best()
    if not done.preempted and parallel.is_main_process():
        leaves = jax.tree.leaves(done.state.replace(key=jax.random.key_data(done.state.key)))
        np.savez(directory / "end.npz", np.array(best), *leaves)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
