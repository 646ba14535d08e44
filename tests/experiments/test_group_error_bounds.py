import jax
import jax.numpy as jnp
import numpy as np

from experiments import group_error_bounds as experiment


def test_discs_stand_inside_of_noise_of_their_group():
    groups = np.repeat(np.arange(3), 200)
    drawn = experiment._discs(jax.random.key(0), groups)
    labels = np.asarray(drawn["labels"])
    sizes = labels.sum(axis=(1, 2))
    assert sizes.min() >= np.pi * 2**2 - 4
    assert sizes.max() <= np.pi * 4**2 + 4
    noise = np.asarray(drawn["inputs"]) - labels
    np.testing.assert_allclose([noise[groups == g].std() for g in range(3)], experiment.NOISE, rtol=0.02)


def test_a_logit_sees_its_neighbourhood_and_nothing_else():
    params = experiment._initial(jax.random.key(0), 4)
    image = jnp.zeros((1, experiment.SIDE, experiment.SIDE))
    moved = np.any(experiment._apply(params, image.at[0, 6, 7].set(1.0)) != experiment._apply(params, image), axis=-1)[
        0
    ]
    rows, columns = np.nonzero(moved)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 8, 5, 9)


def test_scores_of_groups():
    scores = experiment._scores(np.array([[0.9, 0.8, 0.7], [0.8, 0.8, 0.8]]))
    np.testing.assert_allclose(scores["dice"], 0.8)
    np.testing.assert_allclose(scores["equity_scaled"], [0.8 / 1.2, 0.8], rtol=1e-6)
    np.testing.assert_allclose(scores["worst_group"], [0.7, 0.8])
    np.testing.assert_allclose(scores["apart"], [0.2, 0], atol=1e-12)
