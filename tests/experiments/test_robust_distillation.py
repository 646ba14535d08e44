import jax
import jax.numpy as jnp
import numpy as np

from experiments import robust_distillation as experiment


def test_the_halves_share_no_digit_and_cover_the_range():
    train, test = experiment._halves(3)
    assert len(train["labels"]) + len(test["labels"]) == 1797
    inputs = np.concatenate([train["inputs"], test["inputs"]])
    assert (inputs.min(), inputs.max()) == (0, 1)
    # The set holds no digit twice.
    assert len({row.tobytes() for row in inputs}) == 1797
    assert not np.array_equal(train["labels"], experiment._halves(4)[0]["labels"])


def test_an_attack_stays_in_its_box_and_lowers_accuracy():
    net = experiment._Net((8,), 0.1)
    _, test = experiment._halves(0)
    batch = {name: jnp.asarray(values[:200]) for name, values in test.items()}
    params = net.init(jax.random.key(0))
    batch["labels"] = net.apply(params, batch["inputs"]).argmax(-1)
    attacked = net.attack(jax.random.key(1), params, batch, 5)
    assert np.abs(attacked - batch["inputs"]).max() <= 0.1 + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    stacked = jax.tree.map(lambda x: x[None], (params, batch))
    clean, robust = net.accuracies(jax.random.key(1)[None], *stacked)[0]
    assert clean == 1
    assert robust < 0.5
