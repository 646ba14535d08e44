"""Classification losses with a table or a statistic of the batch, in the train step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reweight.losses import classification
from reweight.train import LossOutput, init_state, make_step

EXAMPLES, CLASSES = 16, 4
LOSSES = {
    "aldr_kl": classification.aldr_kl(EXAMPLES, lam=2.0),
    "elr": classification.elr(EXAMPLES, CLASSES),
    "ps_kd": classification.ps_kd(EXAMPLES, CLASSES, share=lambda step: 0.4 * step),
    "lade": classification.lade(class_counts=np.array([9.0, 4.0, 2.0, 1.0]), weight=0.3),
}
OPTIMIZER = optax.sgd(0.3)


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(12, 3)),
        "labels": rng.integers(0, CLASSES, 12),
        "indices": rng.permutation(EXAMPLES)[:12],
        "mask": rng.random(12) < 0.7,
    }


def logits_of(params, extra, batch, key):
    del extra, key
    return LossOutput(signals={"logits": batch["x"] @ params})


@pytest.mark.parametrize("name", LOSSES)
def test_microbatches_learn_what_the_whole_batch_does(name, x64):
    ends = []
    for microbatches in (1, 3):
        params = jax.random.normal(jax.random.key(0), (3, CLASSES))
        state = init_state(params, None, OPTIMIZER, None, jax.random.key(1), loss=LOSSES[name])
        step = jax.jit(make_step(logits_of, OPTIMIZER, loss=LOSSES[name], microbatches=microbatches))
        for seed in range(3):
            state, metrics = step(state, batch(seed))
        ends.append((state.params, state.loss_state, metrics["loss"]))
        assert float(jnp.max(jnp.abs(state.params - params))) > 1e-2
    for left, right in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9)
