import dataclasses

import jax
import numpy as np
import pytest

from experiments import adversarial, harness
from experiments.envs import robust_digits


def test_halves_share_no_digit_and_have_the_long_tail_in_training_alone():
    train, test = robust_digits.halves(3, ratio=10.0)
    counts = np.bincount(train["labels"], minlength=10)
    assert counts[0] == 87
    assert counts[-1] == 8
    assert (np.diff(counts) <= 0).all()
    assert np.bincount(test["labels"], minlength=10).min() >= 87
    ours, others = ({x.tobytes() for x in side["inputs"]} for side in (train, test))
    assert not ours & others
    assert all(side["inputs"].min() == 0 and side["inputs"].max() == 1 for side in (train, test))


def test_a_seed_draws_the_halves_and_which_digit_is_which_class():
    (first, _), (again, _), (other, _) = (robust_digits.halves(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["inputs"], again["inputs"])
    assert not np.array_equal(first["inputs"], other["inputs"])
    assert len(first["labels"]) == len(other["labels"]) == 870


def test_a_network_that_knows_nothing_falls_to_the_first_class_and_recalls_count_by_class():
    config = robust_digits.AttackConfig(seeds=2, width=4)
    bench = robust_digits.bench(config, harness.Context())
    params = jax.vmap(lambda key: robust_digits.initial(4, key))(bench.keys)
    clean, robust = bench.recalls(params)
    np.testing.assert_array_equal(clean, np.eye(10)[[0, 0]])
    np.testing.assert_array_equal(robust, clean)


def test_the_tail_is_the_mean_of_the_three_weakest_classes_of_ten():
    robust = np.random.default_rng(0).uniform(size=(4, 10)).astype(np.float32)
    scores = adversarial.scores(np.ones_like(robust), robust)
    np.testing.assert_allclose(scores["robust_tail"], np.sort(robust, axis=1)[:, :3].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(scores["robust_worst"], robust.min(axis=1))


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("eps", -0.1), ("width", 2.5)])
def test_an_option_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"experiments.Config: argument `{field}`"):
        dataclasses.replace(robust_digits.AttackConfig(), **{field: value})
