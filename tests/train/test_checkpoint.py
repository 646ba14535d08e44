import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from train_problem import assert_equal, batch, loss_fn, params

from reweight import parallel
from reweight.train import Checkpointer, CheckpointError, init_state, jit_step, make_step
from reweight.train.checkpoint import checksum

OPTIMIZER = optax.adam(0.1)
CONFIG = {"lr": 0.1, "data": {"name": "digits", "tail": 10}}
STEP = jit_step(make_step(loss_fn, OPTIMIZER))


def start():
    return init_state(params(), {"mean": jnp.zeros(3, jnp.bfloat16)}, OPTIMIZER, key=jax.random.key(5))


def on_host(state):
    return jax.tree.map(np.array, state.replace(key=jax.random.key_data(state.key)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with checkpoints at steps 1, 2 and 3, and the states that they hold."""
    directory, states, state = tmp_path_factory.mktemp("written"), {}, start()
    with Checkpointer(directory, config=CONFIG) as checkpointer:
        for number in (1, 2, 3):
            state, _ = STEP(state, batch(seed=number))
            states[number] = on_host(state)
            checkpointer.save(number, state, data={"place": number}, writers=[10 * number])
    return directory, states


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "run")
    return tmp_path / "run", written[1]


def test_what_is_saved_comes_back_while_its_buffers_are_donated(written):
    directory, states = written
    with Checkpointer(directory, config=CONFIG) as checkpointer:
        assert (checkpointer.steps(), checkpointer.latest(), checkpointer.best()) == ([1, 2, 3], 3, None)
        for number, state in states.items():
            restored = checkpointer.restore(start(), step=number)
            assert_equal(on_host(restored.state), state)
            assert (restored.step, restored.data, restored.writers) == (number, {"place": number}, [10 * number])
        assert checkpointer.restore(start()).step == 3


def test_the_restored_state_lies_as_its_template(written):
    mesh = parallel.make_mesh("data=4,model=2")
    shardings = parallel.tree_shardings(start(), [(r"hidden", PartitionSpec(None, "model"))], mesh)
    template = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), start(), shardings
    )
    with Checkpointer(written[0], config=CONFIG) as checkpointer:
        state = checkpointer.restore(template).state
    assert_equal(on_host(state), written[1][3])
    assert state.params["hidden"].sharding == NamedSharding(mesh, PartitionSpec(None, "model"))
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = [0.1, 0.9, float("nan"), 0.3, 0.9, 0.2, 0.4]
    with Checkpointer(tmp_path / "max", keep_last=2, best_metric="accuracy") as checkpointer:
        for number, score in enumerate(scores):
            checkpointer.save(number, start(), metrics={"accuracy": score})
        checkpointer.wait()
        assert (checkpointer.steps(), checkpointer.best()) == ([1, 5, 6], 1)
    with Checkpointer(tmp_path / "max", keep_last=2, best_metric="accuracy") as checkpointer:
        checkpointer.save(7, start())
        checkpointer.wait()
        assert (checkpointer.steps(), checkpointer.best()) == ([1, 6, 7], 1)
    with Checkpointer(tmp_path / "min", keep_last=1, best_metric="loss", best_mode="min") as checkpointer:
        for number, score in enumerate(scores):
            checkpointer.save(number, start(), metrics={"loss": score})
        checkpointer.wait()
        assert (checkpointer.steps(), checkpointer.best()) == ([0, 6], 0)


def test_the_best_metric_must_be_among_the_metrics(tmp_path):
    with Checkpointer(tmp_path, best_metric="accuracy") as checkpointer:
        checkpointer.save(1, start(), metrics={"accuracy": 0.5, "recall": np.array([0.2, 0.8])})
        with pytest.raises(ValueError, match=r"`metrics` is of names \['loss'\]; allowed: .* 'accuracy', among them"):
            checkpointer.save(2, start(), metrics={"loss": 0.5})


def test_a_step_is_written_once(copied):
    with Checkpointer(copied[0], config=CONFIG) as checkpointer:
        with pytest.raises(ValueError, match="`step` is 3; allowed: a step after the latest checkpoint, 3"):
            checkpointer.save(3, start())
        checkpointer.discard_after(1)
        assert checkpointer.steps() == [1]


def damage_arrays(folder, change):
    """Changes the files that hold the arrays' bytes, leaving the index alone."""
    for path in (folder / "state").rglob("d/*"):
        change(path)


def flip_every_file(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "truncated arrays": lambda f: damage_arrays(f, lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])),
    "empty arrays": lambda f: damage_arrays(f, lambda p: p.write_bytes(b"")),
    "garbage for arrays": lambda f: damage_arrays(f, lambda p: p.write_bytes(b"\xa5" * p.stat().st_size)),
    "a flipped bit": lambda f: damage_arrays(f, flip_every_file),
    "missing arrays": lambda f: damage_arrays(f, pathlib.Path.unlink),
    "no state": lambda f: shutil.rmtree(f / "state"),
    "no index": lambda f: (f / "state" / "manifest.ocdbt").unlink(),
    "garbage for the index": lambda f: (f / "state" / "manifest.ocdbt").write_bytes(b"\x00\x01garbage"),
    "no tree": lambda f: (f / "state" / "_METADATA").unlink(),
    "garbage for the tree": lambda f: (f / "state" / "_METADATA").write_text("{"),
    "no description": lambda f: shutil.rmtree(f / "run"),
    "half a description": lambda f: (f / "run" / "metadata").write_text((f / "run" / "metadata").read_text()[:100]),
    "another description": lambda f: (f / "run" / "metadata").write_text('{"step": 3}'),
    "no marker": lambda f: (f / "_CHECKPOINT_METADATA").unlink(),
    "garbage for the marker": lambda f: (f / "_CHECKPOINT_METADATA").write_bytes(b"\xff\xfe{"),
    "nothing at all": lambda f: (shutil.rmtree(f), f.mkdir()),
}
HARMLESS = {"no tree", "no marker", "garbage for the marker"}  # the arrays and their description are whole


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_says_so_and_leaves_the_older_ones(copied, name):
    directory, states = copied
    DAMAGES[name](directory / "3")
    with Checkpointer(directory, config=CONFIG, best_metric="loss") as checkpointer:
        if name in HARMLESS:
            assert_equal(on_host(checkpointer.restore(start(), step=3).state), states[3])
        else:
            with pytest.raises(CheckpointError, match=r"checkpoint 3 in .* damaged.*Other steps here: \[1, 2\]"):
                checkpointer.restore(start(), step=3)
        assert_equal(on_host(checkpointer.restore(start(), step=2).state), states[2])
        checkpointer.discard_after(2)
        checkpointer.save(3, start())
        checkpointer.wait()
        assert checkpointer.restore(start()).step == 3


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    data: dict = dataclasses.field(default_factory=lambda: {"name": "digits", "tail": 10})


def test_a_configuration_may_be_a_dataclass(written):
    with Checkpointer(written[0], config=Config()) as checkpointer:
        assert checkpointer.restore(start()).step == 3


def wider(state):
    return state.replace(params=state.params | {"hidden": jnp.zeros((5, 9))})


FOREIGN = [
    ({"lr": 0.2, "data": {"name": "digits", "tail": 10}}, {}, "config `lr` was 0.1, is 0.2"),
    ({"lr": 0.1, "data": {"name": "digits"}}, {}, "config `data.tail` was 10, is absent"),
    (None, {}, 'config `data.name` was "digits", is absent'),
    (
        CONFIG,
        {"params": {"hidden": jnp.zeros((5, 9))}},
        r"array `params/hidden` was float32\[5, 8\], is float32\[5, 9\]",
    ),
    (CONFIG, {"opt_state": ()}, "array `opt_state/0/count` is only in the checkpoint"),
    (CONFIG, {"opt_state": {"trace": jnp.zeros(2)}}, "array `opt_state/trace` is not in the checkpoint"),
    (CONFIG, {"extra": {"mean": jnp.zeros(3)}}, r"`extra/mean` was bfloat16\[3\], is float32\[3\]"),
    (CONFIG, {"key": jax.random.key(0, impl="rbg")}, "key `key` has another implementation"),
]


@pytest.mark.parametrize(("config", "changes", "said"), FOREIGN)
def test_a_foreign_checkpoint_names_the_difference(written, config, changes, said):
    expected = rf"checkpoint 3 .*another run: .*{said}.*Other steps here: \[1, 2\]"
    with Checkpointer(written[0], config=config) as checkpointer, pytest.raises(CheckpointError, match=expected):
        checkpointer.restore(start().replace(**changes))


def test_an_empty_folder_says_so(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        assert (checkpointer.steps(), checkpointer.latest(), checkpointer.best()) == ([], None, None)
        with pytest.raises(CheckpointError, match="there is no checkpoint in"):
            checkpointer.restore(start())


def test_iterator_states_may_be_bytes(tmp_path):
    with Checkpointer(tmp_path, background=False) as checkpointer:
        checkpointer.save(1, start(), data=b"\x00\xff")
        assert checkpointer.restore(start()).data == b"\x00\xff"


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "bfloat16", "float16", "float32", "float64", "int64"])
def test_a_checksum_sees_every_bit_and_every_place(dtype):
    with jax.enable_x64(True):
        values = np.array([[0, 1, 0], [1, 1, 0]], dtype=jnp.dtype(dtype))
        x = jnp.asarray(values)
        flipped = jnp.asarray(np.where(np.arange(6).reshape(2, 3) == 4, 0, values).astype(values.dtype))
        sums = [int(checksum(y)) for y in (x, flipped, x[:, ::-1], x.reshape(3, 2) * 0, x * 0)]
        assert len(set(sums[:4])) == 4
        assert sums[3] == sums[4]  # the same bits in the same order


def test_a_checksum_does_not_depend_on_the_sharding():
    x = jax.random.normal(jax.random.key(0), (16, 6))
    sharded = jax.device_put(x, NamedSharding(parallel.make_mesh("data=4,model=2"), PartitionSpec("data", "model")))
    assert jax.jit(checksum)(sharded) == checksum(x)


def test_the_state_of_a_weighting_is_saved(tmp_path):
    state = start().replace(weighting_state={"seen": jnp.arange(4)})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
        template = state.replace(weighting_state={"seen": jnp.zeros(4, jnp.int32)})
        assert_equal(on_host(checkpointer.restore(template).state), on_host(state))
