"""What a training program computes over its hosts; run on one device, on eight, and on two processes of four.

Every number is kept as each process sees it, so that the test can also tell that all processes see the same.
"""

import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from reweight import parallel, reduce, weights
from reweight.losses import preference
from reweight.train import LossOutput, init_state, make_step

BATCH, EXAMPLES, SEED, STEPS = 16, 40, 7, 2
ANSWERS = ("policy", "policy_mismatched", "policy_chosen", "policy_rejected")
PREFERENCES = {
    "batch_kto": preference.batch_kto(beta=0.5),
    "stream_bco": preference.stream_bco(beta=0.5),
    "beta_dpo": preference.beta_dpo(beta=0.5),
    "batch_aot": preference.batch_aot(beta=0.5),
}


def dataset():
    rng = np.random.default_rng(0)
    return {
        "index": np.arange(EXAMPLES),
        "inputs": rng.normal(size=(EXAMPLES, 3)).astype(np.float32),
        "labels": rng.integers(0, 3, EXAMPLES),
        "mask": rng.random(EXAMPLES) < 0.8,
    }


def batches(mesh):
    """The batches of an epoch, in the order of the seed; this host reads its rows only."""
    data = dataset()
    order = np.random.default_rng(SEED).permutation(EXAMPLES)
    for rows in order[: EXAMPLES // BATCH * BATCH].reshape(-1, BATCH):
        mine = rows[parallel.process_slice(BATCH, mesh)]
        yield parallel.shard_batch({name: values[mine] for name, values in data.items()}, mesh)


def losses_of(parameters, batch):
    scores = jax.nn.log_softmax(jnp.tanh(batch["inputs"] @ parameters["hidden"]) @ parameters["head"])
    return -jnp.take_along_axis(scores, batch["labels"][:, None], axis=1)[:, 0]


def step(weighting, parameters, state, batch):
    signals = {"groups": batch["labels"], "mask": batch["mask"]}
    _, state = weighting.update(state, losses_of(parameters, batch), **signals)

    def loss(parameters):
        losses = losses_of(parameters, batch)
        w = (
            weights.kl_dro_weights(losses, temperature=0.3, mask=batch["mask"])
            * weighting.update(state, losses, **signals)[0]
        )
        return reduce.weighted_mean(losses, jax.lax.stop_gradient(w), where=batch["mask"]), w

    (value, w), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
    parameters = jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradient)
    return parameters, state, {"loss": value, "weights": w, "gradient": gradient}


def run(mesh):
    rng = np.random.default_rng(1)
    parameters = {"hidden": rng.normal(size=(3, 4)), "head": rng.normal(size=(4, 3))}
    parameters = jax.tree.map(np.float32, parameters)
    rules = [("hidden", P(None, "model")), ("head", P("model"))] if "model" in mesh.axis_names else []
    parameters = jax.device_put(parameters, parallel.tree_shardings(parameters, rules, mesh))
    weighting = weights.group_dro(num_groups=3, step_size=0.5)
    state = jax.device_put(weighting.init(), parallel.replicated(mesh))
    whole = jax.jit(lambda tree: tree, out_shardings=parallel.replicated(mesh))

    kl_dro = parallel.over_axis(partial(weights.kl_dro_weights, temperature=0.3), "data")
    on_shards = jax.jit(jax.shard_map(kl_dro, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    reductions = jax.jit(
        lambda values, where: {
            "mean": reduce.weighted_mean(values, values**2, where=where),
            "sum": reduce.weighted_sum(values, where=where),
            "columns": reduce.weighted_mean(values, where=where, axis=0, normalizer="count"),
        }
    )
    jitted = jax.jit(partial(step, weighting))
    history = []
    for batch in batches(mesh):
        found = {
            "order": batch["index"],
            "on_shards": on_shards(batch["inputs"][:, 0]),
            "reductions": reductions(batch["inputs"], batch["mask"][:, None]),
        }
        parameters, state, found["step"] = jitted(parameters, state, batch)
        history.append(jax.device_get(whole(found)))
    history.append({"state": jax.device_get(whole(state)), "parameters": jax.device_get(whole(parameters))})
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(history)}


def preferences(mesh):
    """Steps in microbatches with losses that have a statistic of the global batch or of the stream."""

    def signals(parameters, extra, batch, key):
        scores = jnp.tanh(batch["inputs"] @ parameters)
        return LossOutput(signals=dict(zip(ANSWERS, scores.T, strict=True)))

    def begin():
        columns = np.random.default_rng(1).normal(size=(3, len(ANSWERS))).astype(np.float32)
        return {name: init_state(columns, None, optax.sgd(0.1), loss=loss) for name, loss in PREFERENCES.items()}

    def all_steps(states, batch):
        rows = {name.replace("policy", "reference"): batch["inputs"][:, 0] * k for k, name in enumerate(ANSWERS)}
        rows |= {"inputs": batch["inputs"], "desirable": batch["labels"] > 0, "mask": batch["mask"]}
        return {
            name: make_step(signals, optax.sgd(0.1), loss=loss, microbatches=2)(states[name], rows)[0]
            for name, loss in PREFERENCES.items()
        }

    everywhere = parallel.replicated(mesh)
    states = jax.jit(begin, out_shardings=everywhere)()
    jitted = jax.jit(all_steps, out_shardings=everywhere)
    for batch in batches(mesh):
        states = jitted(states, batch)
    return {
        f"{name}{jax.tree_util.keystr(path)}": jax.device_get(leaf)
        for name, state in states.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.loss_state))
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def main():
    folder, *specs = sys.argv[1:]
    parallel.initialize()
    parallel.initialize()
    assert jax.device_count() == 8
    assert parallel.is_main_process() == (jax.process_index() == 0)
    for spec in specs:
        mesh = parallel.make_mesh(spec)
        print(spec, parallel.process_slice(BATCH, mesh), parallel.process_slice(BATCH))
        np.savez(f"{folder}/{spec}.{jax.process_index()}.npz", **run(mesh))
    np.savez(f"{folder}/preferences.{jax.process_index()}.npz", **preferences(parallel.make_mesh(specs[0])))
    parallel.barrier("written")
    print(
        f"process {jax.process_index()} of {jax.process_count()} sees {len(list(pathlib.Path(folder).iterdir()))} files"
    )


if __name__ == "__main__":
    main()
