import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX import SummaryWriter
from train_problem import EXAMPLES, accuracy, assert_close, assert_equal, batch, loss_fn, params

from reweight import parallel, reduce, weights
from reweight.train import (
    Checkpointer,
    CheckpointError,
    JsonlWriter,
    TensorBoardWriter,
    evaluate,
    fit,
    init_state,
    jit_step,
    make_step,
)

OPTIMIZER = optax.adam(0.05)
STEP = jit_step(make_step(loss_fn, OPTIMIZER, metrics=accuracy))


class Batches:
    """Batches with a place that can be kept and gone back to."""

    def __init__(self, end=None):
        self.place, self.end = 0, end

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == self.end:
            raise StopIteration
        self.place += 1
        return batch(16, seed=self.place)

    def get_state(self):
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


class InterruptedError(Exception):
    pass


def start():
    return init_state(params(), None, OPTIMIZER, weights.uniform(), jax.random.key(0))


def whole_loss(state):
    data = batch(EXAMPLES, masked=False)
    return {"loss": jnp.mean(loss_fn(state.params, None, data, None).losses)}


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(directory, num_steps=9, interrupted_at=None, **options):
    def eval_fn(state):
        if int(state.step) == interrupted_at:
            raise InterruptedError
        return whole_loss(state)

    with Checkpointer(directory / "checkpoints", keep_last=10) as checkpointer:
        options = {"checkpointer": checkpointer, "checkpoint_every": 3, "eval_every": 1, "log_every": 2} | options
        writers = [JsonlWriter(directory / "metrics.jsonl"), TensorBoardWriter(directory / "board")]
        return fit(STEP, start(), Batches(), num_steps=num_steps, eval_fn=eval_fn, writers=writers, **options)


def test_the_loop_is_the_loop():
    state = start()
    for data, _ in zip(Batches(), range(5), strict=False):
        state, _ = STEP(state, data)
    done = fit(STEP, start(), Batches(), num_steps=5)
    assert_equal(done.state, state)
    assert not done.preempted


def test_metrics_and_evaluations_come_at_their_steps(tmp_path):
    writer = JsonlWriter(tmp_path / "new" / "metrics.jsonl")
    fit(STEP, start(), Batches(), num_steps=7, writers=[writer], log_every=2, eval_fn=whole_loss, eval_every=3)
    found = {
        r["step"]: sorted({name.split("/")[0] for name in r if name != "step"})
        for r in records(tmp_path / "new" / "metrics.jsonl")
    }
    assert found == {2: ["train"], 3: ["eval"], 4: ["train"], 6: ["eval", "train"], 7: ["eval", "train"]}


@pytest.mark.parametrize("interrupted_at", [1, 3, 8])
def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, interrupted_at):
    with pytest.raises(InterruptedError):
        run(tmp_path / "twice", interrupted_at=interrupted_at)
    assert_equal(run(tmp_path / "twice").state, run(tmp_path / "once").state)
    assert records(tmp_path / "twice" / "metrics.jsonl") == records(tmp_path / "once" / "metrics.jsonl")


def test_a_finished_run_can_be_lengthened(tmp_path):
    run(tmp_path / "twice", num_steps=6)
    assert_equal(run(tmp_path / "twice").state, run(tmp_path / "once").state)
    assert records(tmp_path / "twice" / "metrics.jsonl") == records(tmp_path / "once" / "metrics.jsonl")


def test_a_run_past_its_last_step_is_refused(tmp_path):
    run(tmp_path, num_steps=6)
    with pytest.raises(ValueError, match="`num_steps` is 5; allowed: at least the step of the checkpoint, 6"):
        run(tmp_path, num_steps=5)


def test_a_run_goes_on_from_an_older_checkpoint_when_told_to(tmp_path):
    whole = run(tmp_path)
    found = records(tmp_path / "metrics.jsonl")
    assert_equal(run(tmp_path, resume=3).state, whole.state)
    assert records(tmp_path / "metrics.jsonl") == found
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 4 .* Other steps here: \[0, 3, 6, 9\]"):
        run(tmp_path, resume=4)


def test_tensorboard_gets_the_scalars_and_entries_of_arrays(tmp_path, monkeypatch):
    seen, opened = {}, []
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, name, value, step: seen.update({(name, step): value}))
    initialize = SummaryWriter.__init__
    monkeypatch.setattr(
        SummaryWriter, "__init__", lambda self, *a, **k: (opened.append(k["purge_step"]), initialize(self, *a, **k))[1]
    )
    writer = TensorBoardWriter(tmp_path)
    writer.begin(4, None)
    writer.write(5, {"loss": np.float32(0.5), "recall": np.array([0.25, 0.75])})
    writer.close()
    assert seen == {("loss", 5): 0.5, ("recall/0", 5): 0.25, ("recall/1", 5): 0.75}
    assert opened == [5]


def test_json_lines_are_cut_where_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.begin(0, None)
    writer.write(1, {"loss": np.float32(0.1)})
    position = writer.position()
    writer.write(2, {"loss": float("nan")})
    writer.close()
    path.write_bytes(path.read_bytes()[:-5])
    writer.begin(1, position)
    writer.write(2, {"loss": np.array([1.0, 2.0])})
    writer.close()
    assert records(path) == [{"step": 1, "loss": float(np.float32(0.1))}, {"step": 2, "loss": [1.0, 2.0]}]
    with pytest.raises(ValueError, match=r"`path` is .*with content"):
        writer.begin(0, None)
    with pytest.raises(ValueError, match="of at least 1000 bytes"):
        writer.begin(1, 1000)


def test_a_mesh_gives_the_numbers_of_one_device(tmp_path):
    mesh = parallel.make_mesh("data=8")
    step = jit_step(make_step(loss_fn, OPTIMIZER, metrics=accuracy), mesh=mesh)
    alone = fit(STEP, start(), Batches(), num_steps=6).state
    with Checkpointer(tmp_path) as checkpointer:
        options = {"mesh": mesh, "checkpointer": checkpointer, "checkpoint_every": 2}
        fit(step, start(), Batches(), num_steps=4, **options)
        resumed = fit(step, start(), Batches(), num_steps=6, **options).state
    assert_close(resumed, alone)
    assert len(resumed.params["hidden"].sharding.device_set) == 8


def test_evaluation_over_unequal_batches_is_that_of_all_examples():
    data = batch(EXAMPLES)

    def metric_fn(state, part):
        losses = loss_fn(state.params, None, part, None).losses
        return {"loss": reduce.weighted_mean(losses, where=part["mask"], parts=True)}

    parts = [{name: x[a:b] for name, x in data.items()} for a, b in ((0, 7), (7, 40), (40, EXAMPLES))]
    expected = evaluate(metric_fn, start(), [data])
    assert evaluate(metric_fn, start(), parts) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="`batches` is empty"):
        evaluate(metric_fn, start(), [])


def test_a_progress_bar_shows_the_loss(capsys):
    fit(STEP, start(), Batches(), num_steps=3, log_every=1, progress=True)
    assert "train/loss" in capsys.readouterr().err
    fit(STEP, start(), Batches(), num_steps=3, log_every=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_steps": 0}, "`num_steps` is 0"),
        ({"log_every": 0}, "`log_every` is 0"),
        ({"eval_fn": whole_loss}, "`eval_every` is None; allowed: to be given together with `eval_fn`"),
        ({"checkpoint_every": 2}, "`checkpointer` is None"),
        ({"batches": Batches(end=2)}, "`batches` is at its end after 2 steps; allowed: an iterator that lasts 3 steps"),
    ],
)
def test_arguments_that_contradict_are_named(options, said):
    options = {"batches": Batches(), "num_steps": 3} | options
    with pytest.raises(ValueError, match=f"train.fit: argument {said}"):
        fit(STEP, start(), **options)


def test_checkpoints_need_an_iterator_with_a_place_and_a_best_metric_that_is_measured(tmp_path):
    with Checkpointer(tmp_path, best_metric="eval/loss") as checkpointer:
        options = {"num_steps": 3, "checkpointer": checkpointer, "checkpoint_every": 3}
        with pytest.raises(ValueError, match="`batches` is of type generator"):
            fit(STEP, start(), (batch() for _ in range(5)), **options)
        with pytest.raises(ValueError, match="`checkpoint_every` is 3; allowed: a multiple of `eval_every`, 2"):
            fit(STEP, start(), Batches(), eval_fn=whole_loss, eval_every=2, **options)
        fit(STEP, start(), Batches(), eval_fn=whole_loss, eval_every=3, **options)
        assert (checkpointer.steps(), checkpointer.best()) == ([0, 3], 3)
        with pytest.raises(ValueError, match=r"`resume` is False, and .* holds the steps \[0, 3\]"):
            fit(STEP, start(), Batches(), resume=False, eval_fn=whole_loss, eval_every=3, **options)
