"""Training language models on sequence tasks: what is learnt, from what, and that it can be interrupted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import harness
from experiments.harness import language
from reweight import models
from reweight.data import sequences
from reweight.train import epoch_order

TASK = sequences.ModularArithmetic(modulus=3)
TINY = language.decoder_for(TASK, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=16)


def training(steps, **changes):
    options = {"config": TINY, "optimizer": optax.adam(1e-2), "steps": steps, "batch_size": 8, "examples": 64}
    return language.LanguageTraining(**(options | changes))


@pytest.fixture(scope="module")
def trained():
    return language.train_language("tiny", TASK, training(6), seeds=range(2))


def test_a_decoder_for_a_task_has_its_vocabulary_and_length():
    task = sequences.Addition(digits=2)
    config = language.decoder_for(task, "1M", d_ff=64)
    assert (config.vocab_size, config.max_length) == (task.vocab_size, task.max_length)
    assert (config.d_model, config.d_ff) == (models.DECODERS["1M"].d_model, 64)


def test_the_loss_is_the_mean_over_the_tokens_of_the_answers(trained):
    assert trained.metrics["loss"].shape == (2, 6)
    model, keys = language._functions(TINY), language._Keys(*jax.random.split(jax.random.key(1), 4))
    rows = TASK.sample(keys.data, 64)
    tokens = np.asarray(rows.tokens)[np.asarray(epoch_order(keys.order, 0, 64)[:8])]
    params = models.language_model(TINY, key=keys.model).params
    log_probs = jax.nn.log_softmax(model.logits(params, model.apply(params, tokens)[0]))
    # The answers of this task have one symbol and the end token, after a prompt without padding.
    at = TASK.prompt_length
    picked = [log_probs[i, at - 1 + t, tokens[i, at + t]] for i in range(8) for t in range(2)]
    np.testing.assert_allclose(trained.metrics["loss"][1, 0], -np.mean(picked), rtol=1e-5)


def test_seeds_on_a_mesh_are_those_side_by_side(trained):
    spread = language.train_language("tiny", TASK, training(6), seeds=range(2), mesh="data=8")
    np.testing.assert_allclose(spread.metrics["loss"], trained.metrics["loss"], rtol=1e-4)
    assert jax.tree.leaves(spread.params)[0].shape[0] == 2


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, tmp_path):
    class Killed(BaseException):
        pass

    def killed_later(name, units):
        if units:
            raise Killed

    step = training(6)
    context = harness.Context(path=tmp_path, tick=killed_later)
    with pytest.raises(Killed):
        language.train_language("tiny", TASK, step, seeds=range(2), context=context)
    resumed = language.train_language("tiny", TASK, step, seeds=range(2), context=harness.Context(path=tmp_path))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, trained.params)
    np.testing.assert_array_equal(resumed.metrics["loss"], trained.metrics["loss"])


def test_log_probs_of_answers_are_those_of_the_logits(trained):
    batch = TASK.sample(jax.random.key(5), 4)
    found = language.answer_log_probs(trained, batch)
    assert found.shape == (2, 4)
    params = jax.tree.map(lambda x: x[1], trained.params)
    model = language._functions(TINY)
    hidden, _ = model.apply(params, batch.tokens[:, :-1], mask=batch.mask[:, :-1])
    log_probs = jax.nn.log_softmax(model.logits(params, hidden))
    picked = jnp.take_along_axis(log_probs, batch.tokens[:, 1:, None], axis=2)[..., 0]
    expected = jnp.sum(jnp.where(batch.response_mask[:, 1:], picked, 0), axis=1)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_smallest_decoder_learns_to_add_in_four_hundred_steps():
    # Twenty seconds on two cores, of which most is compiling.
    task, steps = sequences.Addition(digits=3), 400
    schedule = optax.warmup_cosine_decay_schedule(0, 5e-3, 50, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    config = language.decoder_for(task)
    learnt = language.train_language("adder", task, language.LanguageTraining(config, optimizer, steps), seeds=[0])
    size = sum(x[0].size for x in jax.tree.leaves(learnt.params))
    assert 0.15e6 < size < 0.25e6
    assert language.exact_accuracy(learnt, task)[0] > 0.9
