import jax
import numpy as np

from benchmarks import many_classes


def test_all_ways_are_compared_at_every_number_of_classes(capsys):
    found = many_classes.compare((200, 400), rounds=1)
    assert found["ratios"]["kept"].keys() == found["ratios"]["anew"].keys() == {200, 400}
    assert found["growth"].keys() == {"softmax", "anew", "kept"}
    assert "softmax / kept" in capsys.readouterr().out


def test_sums_that_are_kept_give_the_loss_of_the_whole_kernel():
    hidden, kernel, labels = many_classes._draw(300)
    sums = many_classes.classification.kernel_sums(kernel)
    kept = jax.value_and_grad(many_classes.z_loss)(hidden, kernel[labels], sums)
    anew = jax.value_and_grad(many_classes.anew)(hidden, kernel, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), kept, anew)
