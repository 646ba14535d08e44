"""The models of the experiment on long tails that are pre-trained on other frequencies, and their scores."""

import jax
import numpy as np

from experiments import harness, long_tail
from experiments.envs import foundation

CLASSES, EXAMPLES = foundation.CLASSES, 5 * foundation.CLASSES


def tuned(logits):
    """Scores to be given to test examples; class c was the (c + m)-th most frequent in pre-training of model m."""
    ranks = (np.arange(CLASSES) + np.arange(foundation.MODELS)[:, None]) % CLASSES
    frequencies = np.broadcast_to(1.0 / (1 + ranks), (1, foundation.MODELS, CLASSES))
    labels = np.arange(EXAMPLES)[None] % CLASSES
    return foundation.Tuned({"adjusted": logits}, labels, frequencies, CLASSES - np.arange(CLASSES))


def knowing(*classes):
    """Logits of models that each know all classes but some: of one seed `[1, models, examples, classes]`."""
    labels = np.arange(EXAMPLES) % CLASSES
    logits = np.zeros((1, foundation.MODELS, EXAMPLES, CLASSES))
    for model, unknown in enumerate(classes):
        known = ~np.isin(labels, unknown)
        logits[0, model, known, labels[known]] = 1.0
        logits[0, model, ~known, (labels[~known] + 1) % CLASSES] = 0.5
    return logits


def test_models_are_scored_on_the_classes_that_were_rare_for_them():
    # The third that was rarest in pre-training is unknown to each of the first three.
    unknown = [np.flatnonzero(row) for row in long_tail._tail(tuned(None).pretraining[0])]
    found = tuned(knowing(*unknown[:3], [], []))
    each = long_tail._tuned_scores(long_tail.Tuning("", "adjusted"), found)
    share = len(unknown[0]) / CLASSES
    np.testing.assert_allclose(each["tuned_accuracy"], 1 - share)
    np.testing.assert_allclose(each["pretraining_tail"], 0)
    kinds = long_tail._tuned_scores(long_tail.Tuning("", "adjusted", "together"), found)
    assert kinds["pretraining_tail"] > 0.3
    best = long_tail._tuned_scores(long_tail.Tuning("", "adjusted", "best", (0, 3)), found)
    np.testing.assert_allclose(best["tuned_accuracy"], 1)


def test_the_rarest_third_are_the_last_of_the_tuning_set():
    tail = long_tail._tail(np.array([9.0, 1.0, 5.0, 0.5, 3.0, 7.0]))
    np.testing.assert_array_equal(np.flatnonzero(tail), [1, 3])
    counts = foundation._tuning_counts()
    assert np.all(np.diff(counts) <= 0)
    np.testing.assert_allclose(counts[0] / counts[-1], foundation.RATIO, rtol=0.2)


def test_a_seed_draws_orders_of_pre_training_of_which_three_models_share_one():
    world = jax.jit(foundation._draw)(jax.random.key(0))
    frequencies = np.asarray(world.frequencies)
    np.testing.assert_array_equal(frequencies[0], frequencies[3])
    np.testing.assert_array_equal(frequencies[0], frequencies[4])
    assert not np.array_equal(frequencies[0], frequencies[1])
    np.testing.assert_allclose(frequencies.sum(axis=1), 1, rtol=1e-5)
    shares = np.bincount(np.asarray(world.pretraining["labels"])[:, 1], minlength=CLASSES) / foundation.PRETRAINING_SIZE
    np.testing.assert_allclose(shares, frequencies[1], atol=0.03)
    assert np.all(np.bincount(world.test["labels"]) == foundation.TEST_SIZE // CLASSES)


def test_tuning_gives_logits_of_every_model_and_seed():
    losses = {"cross_entropy": long_tail.TUNING_LOSSES["cross_entropy"]}
    found = foundation.tune(losses, seeds=np.arange(2), steps=4, batch_size=8, context=harness.Context(), mesh=None)
    assert found.logits["cross_entropy"].shape == (2, foundation.MODELS, foundation.TEST_SIZE, CLASSES)
    assert np.all(np.isfinite(found.logits["cross_entropy"]))
