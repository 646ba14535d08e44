import jax
import numpy as np
import pytest

from benchmarks import token_statistics as benchmark


def test_all_ways_compute_the_same():
    hidden = jax.random.normal(jax.random.key(0), (2048, 4))
    kernel = jax.random.normal(jax.random.key(1), (4, 11))
    targets = jax.random.randint(jax.random.key(2), (2048,), 0, 11)
    wanted = benchmark.gradient(benchmark.whole_logits)(hidden, kernel, targets)
    for loss in (benchmark.checkpointed_scan, benchmark.by_statistics):
        for found, gradient in zip(benchmark.gradient(loss)(hidden, kernel, targets), wanted, strict=True):
            np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-7)
    by_embedding = benchmark.gradient(benchmark.tied)(hidden, kernel.T, targets)
    np.testing.assert_allclose(by_embedding[1].T, wanted[1], rtol=1e-4, atol=1e-7)


def test_memory_and_time_are_measured(capsys):
    shape = (32, 8, 64)
    memory = benchmark.memory(shape)
    assert memory.keys() >= {"whole logits", "checkpointed scan", "token_statistics"}
    found = benchmark.times("small", shape, "float32", rounds=1)
    assert found["ratios"]["whole logits"] == pytest.approx(1)
    assert "token_statistics" in capsys.readouterr().out
