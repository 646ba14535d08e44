import jax
import jax.numpy as jnp
import numpy as np

from experiments import calibration
from experiments.envs import overlapping_classes as world

CENTRES = world.centres(jax.random.key(0), classes=8, features=3, radius=2.0)


def drawn(overlap, present=8, n=20_000):
    examples = world.sample(jax.random.key(1), CENTRES, overlap, n, present=present)
    return examples, world.log_posterior(examples.inputs, CENTRES, overlap, present=present)


def test_labels_have_the_true_probabilities():
    for overlap in (0.0, 0.4, 1.0):
        examples, logs = drawn(overlap)
        probs = np.exp(logs)
        np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
        # In any region the labels come as often as they are probable.
        for region in (probs[:, 0] > 0.4, probs[:, 3] < 0.1, np.asarray(examples.inputs[:, 0] > 0)):
            shares = np.bincount(examples.labels[region], minlength=8) / region.sum()
            np.testing.assert_allclose(shares, probs[region].mean(axis=0), atol=0.03)


def test_where_all_is_common_the_two_of_a_pair_are_equally_probable():
    _, logs = drawn(1.0)
    np.testing.assert_allclose(logs[:, ::2], logs[:, 1::2], rtol=1e-5)


def test_classes_that_are_not_present_have_no_probability_and_no_example():
    examples, logs = drawn(0.5, present=4)
    assert examples.labels.max() == 3
    assert np.all(np.exp(logs[:, 4:]) == 0)
    np.testing.assert_allclose(np.exp(logs[:, :4]).sum(axis=1), 1, rtol=1e-5)


def test_the_networks_of_the_cells_know_only_their_classes():
    params = calibration._initial(jnp.array(0))
    logits = calibration._logits(params, jnp.ones((len(calibration.CELLS), 2, calibration.FEATURES)))
    for cell, rows in zip(calibration.CELLS, logits, strict=True):
        assert np.all(rows[:, cell.classes :] == -1e4)
        assert np.all(rows[:, : cell.classes] > -1e3)


def test_the_mean_of_the_areas_is_over_cells_with_overlap():
    scores = {name: np.arange(5.0)[None] for name in ("nll", "aurc")}
    values = calibration._numbers(scores)
    np.testing.assert_allclose(values["aurc"], 1.5)
    np.testing.assert_allclose(values["growth"], 2)
