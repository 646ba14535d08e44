import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import optim

RNG = np.random.default_rng(0)
PARAMS, GRADS = ({"w": RNG.normal(size=(3, 4)), "b": RNG.normal(size=8)} for _ in range(2))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1.0])
def test_the_largest_products_over_all_parameters_are_chosen(fraction):
    mask = optim.subnet_mask(PARAMS, GRADS, fraction=fraction)
    assert jax.tree.map(jnp.shape, mask) == jax.tree.map(jnp.shape, PARAMS)
    chosen, scores = flat(mask), np.abs(flat(PARAMS) * flat(GRADS))
    assert chosen.dtype == bool
    assert chosen.sum() == round(20 * fraction)
    if 0 < fraction < 1:
        assert scores[chosen].min() > scores[~chosen].max()


def test_signs_do_not_matter_and_of_equal_entries_the_first_are_chosen():
    turned = jax.tree.map(np.negative, GRADS)
    np.testing.assert_array_equal(flat(optim.subnet_mask(PARAMS, GRADS)), flat(optim.subnet_mask(PARAMS, turned)))
    ones = {"w": np.ones(4)}
    np.testing.assert_array_equal(optim.subnet_mask(ones, ones, fraction=0.5)["w"], [True, True, False, False])


def test_a_mask_for_each_seed():
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf[::-1]]), PARAMS)
    masks = jax.vmap(lambda p: optim.subnet_mask(p, p, fraction=0.2))(stacked)
    for seed in range(2):
        alone = jax.tree.map(lambda leaf, s=seed: leaf[s], stacked)
        wanted = flat(optim.subnet_mask(alone, alone, fraction=0.2))
        np.testing.assert_array_equal(flat(jax.tree.map(lambda leaf, s=seed: leaf[s], masks)), wanted)


def test_a_static_mistake_is_named():
    with pytest.raises(ValueError, match="argument `grads"):
        optim.subnet_mask(PARAMS, {"w": GRADS["w"]})
    with pytest.raises(ValueError, match="argument `fraction`"):
        optim.subnet_mask(PARAMS, GRADS, fraction=1.5)
