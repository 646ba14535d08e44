import jax
import jax.numpy as jnp
import optax
import pytest
from train_problem import accuracy, assert_close, batch, loss_fn, params

from reweight import reduce, weights
from reweight.train import init_state, make_step


def running_mean(decay=0.9):
    """A weighting with a state and batch scope: the losses against a running mean of past ones."""

    def init(key=None):
        del key
        return jnp.ones(())

    def update(state, losses, *, mask=None, **signals):
        del signals
        mean = reduce.weighted_mean(losses, where=mask)
        return weights.normalize(losses / state, mask=mask), decay * state + (1 - decay) * mean

    return weights.Weighting(init, update, "batch")


def seen_before(size=48):
    """A weighting with a state and example scope: how often this example was seen."""

    def init(key=None):
        del key
        return jnp.zeros(size)

    def update(state, losses, *, indices, mask=None, **signals):
        del signals
        keep = jnp.ones(losses.shape) if mask is None else mask.astype(jnp.float32)
        return keep / (1 + state[indices]), state.at[indices].add(keep)

    return weights.Weighting(init, update, "example", ("indices",))


def softmax(losses, *, mask=None):
    keep = jnp.ones(losses.shape, bool) if mask is None else mask
    return weights.normalize(jnp.exp(jnp.where(keep, losses, -jnp.inf)), mask=mask)


def easy(losses, *, logits, labels, mask=None):
    keep = jnp.ones(losses.shape, bool) if mask is None else mask
    return jnp.where(keep, 1 - jax.nn.softmax(logits)[jnp.arange(labels.size), labels], 0)


WEIGHTINGS = {
    "uniform": weights.uniform(),
    "own loss": weights.stateless(easy, scope="example"),
    "own history": seen_before(),
    "softmax over the batch": weights.stateless(softmax),
    "running mean": running_mean(),
    "chain": weights.chain(seen_before(), weights.stateless(softmax), running_mean()),
}


def taken(weighting, data, *, steps=2, loss=loss_fn, **options):
    optimizer = optax.sgd(0.3, momentum=0.9)
    state = init_state(params(), None, optimizer, weighting, jax.random.key(1))
    step = jax.jit(make_step(loss, optimizer, weighting=weighting, **options))
    for _ in range(steps):
        state, metrics = step(state, data)
    return state, metrics


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_microbatches_equal_the_whole_batch(name, masked):
    data = batch(masked=masked)
    whole = taken(WEIGHTINGS[name], data, metrics=accuracy)
    assert_close(taken(WEIGHTINGS[name], data, metrics=accuracy, microbatches=4), whole)
    assert set(whole[1]) == {"loss", "unweighted_loss", "grad_norm", "effective_sample_size", "accuracy"}
