import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reweight import dynamics


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {"kernel": scale * rng.normal(size=(3, 2)).astype(np.float32), "bias": [rng.normal(size=2).astype("f")]}


def test_norms_and_cosine_are_those_of_all_parameters_in_one_vector():
    one, two = tree(0), tree(1, scale=3.0)
    rows = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)]) for x in (one, two)]
    norms = [np.linalg.norm(row) for row in rows]
    wanted = (*norms, rows[0] @ rows[1] / np.prod(norms))
    np.testing.assert_allclose(jnp.stack(dynamics.gradient_split(one, two)), wanted, rtol=1e-6)


@pytest.mark.parametrize(("factor", "cosine"), [(1e-25, 1), (2.0, 1), (-3.0, -1), (1e25, 1), (0.0, 0)])
def test_the_cosine_knows_the_direction_only(factor, cosine):
    one = tree(0)
    split = dynamics.gradient_split(one, jax.tree.map(lambda leaf: np.float32(factor) * leaf, one))
    np.testing.assert_allclose(split.cosine, cosine, atol=1e-6)
    np.testing.assert_allclose(split.plasticity_norm, np.abs(factor) * split.stability_norm, rtol=1e-5)


def test_at_the_minimum_of_the_old_loss_the_new_loss_alone_pulls():
    old, new = jnp.array([1.0, 2.0]), jnp.array([-3.0, 0.5])
    pull = jax.grad(lambda at, to: jnp.sum((at - to) ** 2))
    split = dynamics.gradient_split(pull(old, old), pull(old, new))
    assert split.stability_norm == 0 < split.plasticity_norm
    later = dynamics.gradient_split(pull((old + new) / 2, old), pull((old + new) / 2, new))
    np.testing.assert_allclose(later.cosine, -1, rtol=1e-6)


def test_drift_is_the_squared_distance_of_each_example():
    rng = np.random.default_rng(2)
    before, after = rng.normal(size=(2, 5, 3, 2)).astype(np.float32)
    wanted = [np.linalg.norm(a - b) ** 2 for a, b in zip(after, before, strict=True)]
    np.testing.assert_allclose(dynamics.feature_drift(before, after), wanted, rtol=1e-6)
    np.testing.assert_array_equal(dynamics.feature_drift(before, before), 0)
    turned = np.linalg.qr(rng.normal(size=(2, 2)))[0].astype(np.float32)
    np.testing.assert_allclose(dynamics.feature_drift(before @ turned, after @ turned), wanted, rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="gradient_split: argument `plasticity`"):
        dynamics.gradient_split(tree(0), {"kernel": jnp.zeros((3, 2))})
    with pytest.raises(ValueError, match="gradient_split: argument `stability`"):
        dynamics.gradient_split({}, {})
    with pytest.raises(ValueError, match="feature_drift: argument `after`"):
        dynamics.feature_drift(jnp.zeros((3, 2)), jnp.zeros((3, 1)))
