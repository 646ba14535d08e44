import jax
import numpy as np

from benchmarks import many_classes


def test_all_ways_are_compared_at_every_number_of_classes(capsys):
    found = many_classes.compare((200, 400), rounds=1)
    assert found["ratios"]["factored"].keys() == found["ratios"]["anew"].keys() == {200, 400}
    assert found["growth"].keys() == {"softmax", "anew", "factored"}
    assert "softmax / factored" in capsys.readouterr().out


def test_the_step_in_factors_is_the_step_of_the_whole_kernel(x64):
    hidden, kernel, labels = many_classes._draw(300)
    to_hidden, to_kernel = jax.grad(many_classes.anew, argnums=(0, 1))(hidden, kernel, labels)
    factored = many_classes.classification.factored_kernel(kernel)
    slopes = jax.grad(many_classes.z_loss, argnums=(0, 1, 2))(hidden, factored.rows(labels), factored.sums)
    moved = many_classes.classification.factored_step(factored, labels, *slopes[1:], learning_rate=0.1)
    np.testing.assert_allclose(slopes[0], to_hidden, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(moved.kernel, kernel - 0.1 * to_kernel, rtol=1e-9, atol=1e-12)
