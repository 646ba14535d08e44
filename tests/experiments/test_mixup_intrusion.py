"""The points of `mixup_intrusion`, and that even mixtures of its outer classes fall on the middle one."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import mixup_intrusion as experiment

KEY = jax.random.key(0)


def test_classes_stand_in_a_row_with_exact_shares():
    x, labels = experiment.points(KEY, experiment.TRAIN, experiment.SHARES)
    np.testing.assert_array_equal(np.bincount(labels), [235, 30, 235])
    for label, centre in enumerate(experiment.CENTRES):
        np.testing.assert_allclose(np.mean(x[labels == label], axis=0), [centre, 0], atol=0.25)


def test_mixtures_intrude_and_examples_do_not():
    x, labels = experiment.points(KEY, 3000, (1 / 3,) * 3)
    params = experiment._initial(KEY, 8)
    found = {
        name: jax.jit(lambda method=method: experiment._measured(method, params, KEY, (x, labels)))()
        for name, method in experiment.METHODS.items()
    }
    assert found["plain"]["intruding"] == 0
    assert found["plain"]["mixing"] == 0
    assert found["mixup"]["intruding"] > 0.1
    np.testing.assert_allclose(found["mixup"]["mixing"], 0.25, atol=0.01)
    assert 0 < found["adamixup"]["mixing"] < 0.5


def test_every_method_has_a_finite_loss_an_example():
    x, labels = experiment.points(KEY, 32, experiment.SHARES)
    params = experiment._initial(KEY, 8)
    for method in experiment.METHODS.values():
        losses = experiment._loss_fn(method)(params, None, {"inputs": x, "labels": labels}, KEY).losses
        assert losses.shape == (32,)
        assert jnp.all(jnp.isfinite(losses))
