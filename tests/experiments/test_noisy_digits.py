import numpy as np
import pytest

from experiments import noisy_labels
from experiments.envs import noisy_digits


@pytest.fixture(scope="module")
def digits():
    return noisy_digits.load_digits()


def test_the_sets_have_nothing_in_common(digits):
    pool, validation, test = ({row.tobytes() for row in np.asarray(part.inputs)} for part in digits)
    # Two of the digits are drawn alike, pixel by pixel.
    assert len(pool & validation) + len(pool & test) + len(validation & test) <= 2
    assert len(validation) >= noisy_digits.VALIDATION - 2


def test_a_training_set_has_every_noise_at_its_rate(digits):
    drawn = noisy_digits.noisy_set(digits[0], 400, 3)
    again, other = (noisy_digits.noisy_set(digits[0], 400, seed) for seed in (3, 4))
    assert drawn["inputs"].shape == (400, 64)
    assert drawn["labels"].shape == (400, len(noisy_digits.NOISES))
    wrong = drawn["labels"] != drawn["clean_labels"][:, None]
    np.testing.assert_allclose(wrong.mean(axis=0), [noise.rate for noise in noisy_digits.NOISES.values()], atol=0.015)
    np.testing.assert_array_equal(drawn["labels"], again["labels"])
    assert np.any(drawn["inputs"] != other["inputs"])


def test_scores_are_of_the_last_and_of_the_best_record():
    noises = len(noisy_digits.NOISES)
    accuracy = np.array([[0.5, 0.9, 0.7], [0.2, 0.3, 0.4]])[:, :, None] * np.ones(noises)
    memorised = np.array([[0.1, 0.2, 0.6], [0.0, 0.0, 0.1]])[:, :, None] * np.ones(noises)
    scores = noisy_labels._scores(noisy_labels.Curves(accuracy, memorised))
    np.testing.assert_allclose(scores["accuracy"], [0.7, 0.4])
    np.testing.assert_allclose(scores["lost_pair_40"], [0.2, 0.0])
    np.testing.assert_allclose(scores["memorised_symmetric_60"], [0.6, 0.1])


@pytest.mark.parametrize(("steps", "every"), [(300, 20), (8, 1), (77, 1), (31, 1), (130, 5)])
def test_the_last_record_is_at_the_end(steps, every):
    assert noisy_labels.Config(steps=steps).every == every
