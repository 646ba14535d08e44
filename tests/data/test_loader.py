"""Batches: the same order everywhere, and from anywhere on."""

import json
import pickle

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from reweight import data


@pytest.fixture(scope="module")
def wine():
    return data.load(data.DataConfig("wine", groups=("label",)), "train")


def rows(loader):
    """The ids of each batch, without padding."""
    return [batch["indices"][batch["mask"]].tolist() for batch in loader]


def flat(batches):
    return [row for batch in batches for row in batch]


def test_a_batch_holds_the_examples_of_its_ids(wine):
    batch = next(iter(data.make_loader(wine, batch_size=16)))
    assert set(batch) == {"inputs", "labels", "clean_labels", "indices", "groups", "mask"}
    for name, values in wine.arrays.items():
        np.testing.assert_array_equal(batch[name], values[batch["indices"]])
    assert batch["mask"].dtype == bool
    assert batch["mask"].all()


def test_an_epoch_without_shuffling_is_the_source_in_order(wine):
    batches = rows(data.make_loader(wine, batch_size=50, shuffle=False, epochs=1, remainder="pad"))
    assert [len(batch) for batch in batches] == [50, 50, 42]
    assert flat(batches) == list(range(142))


def test_every_epoch_is_a_different_permutation(wine):
    order = np.reshape(flat(rows(data.make_loader(wine, batch_size=71, epochs=3))), (3, 142))
    for epoch in order:
        assert sorted(epoch) == list(range(142))
    assert not np.array_equal(order[0], order[1])
    assert not np.array_equal(order[1], order[2])


def test_the_seed_alone_decides_the_order(wine):
    one, again, other = (rows(data.make_loader(wine, batch_size=32, epochs=1, seed=seed)) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_seeds_do_not_share_epochs(wine):
    epochs = [
        tuple(flat(rows(data.make_loader(wine, batch_size=142, epochs=3, seed=seed)))[i * 142 : (i + 1) * 142])
        for seed in range(3)
        for i in range(3)
    ]
    assert len(set(epochs)) == 9


def test_the_remainder_of_an_epoch_is_dropped_or_padded_with_masked_rows(wine):
    dropped = list(data.make_loader(wine, batch_size=40, epochs=2, remainder="drop"))
    assert len(dropped) == 6
    assert all(batch["mask"].all() for batch in dropped)
    padded = list(data.make_loader(wine, batch_size=40, epochs=2, remainder="pad"))
    assert [int(batch["mask"].sum()) for batch in padded] == [40, 40, 40, 22] * 2
    assert {batch["inputs"].shape for batch in padded} == {(40, 13)}
    assert np.isfinite(padded[3]["inputs"]).all()


def test_a_small_source_fills_one_padded_batch(wine):
    batches = list(data.make_loader(wine, batch_size=256, epochs=1, remainder="pad"))
    assert len(batches) == 1
    assert batches[0]["mask"].sum() == 142


def test_without_a_number_of_epochs_there_is_no_end(wine):
    iterator = iter(data.make_loader(wine, batch_size=142))
    for _ in range(5):
        assert sorted(next(iterator)["indices"]) == list(range(142))


@hypothesis.given(
    processes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    batch=st.sampled_from([12, 24, 48]),
    seed=st.integers(0, 5),
    remainder=st.sampled_from(["drop", "pad"]),
)
@hypothesis.settings(max_examples=15)
def test_processes_together_read_the_batches_of_one(wine, processes, batch, seed, remainder):
    def batches(index, count):
        loader = data.make_loader(
            wine,
            batch_size=batch,
            seed=seed,
            epochs=2,
            remainder=remainder,
            rows=slice(index * batch // count, (index + 1) * batch // count),
        )
        return list(loader)

    whole = batches(0, 1)
    shares = [batches(index, processes) for index in range(processes)]
    for k, expected in enumerate(whole):
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *(share[k] for share in shares))
        jax.tree.map(np.testing.assert_array_equal, together, expected)
    assert all(len(share) == len(whole) for share in shares)


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("stop", [0, 3, 5, 9])
def test_a_loader_goes_on_from_its_state_in_the_middle_of_an_epoch(wine, stop, num_threads):
    def loader(**kwargs):
        return data.make_loader(wine, batch_size=32, epochs=3, num_threads=num_threads, **kwargs)

    uninterrupted = rows(loader())
    iterator = iter(loader())
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    for _ in range(2):  # what is read after the state was taken is read again
        next(iterator)
    again = iter(loader())
    again.set_state(state)
    assert rows(again) == uninterrupted[stop:]


def test_a_state_goes_on_with_another_number_of_processes_and_threads(wine):
    uninterrupted = rows(data.make_loader(wine, batch_size=32, epochs=2))
    iterator = iter(data.make_loader(wine, batch_size=32, epochs=2, rows=slice(16, 32)))
    for _ in range(3):
        next(iterator)
    again = iter(data.make_loader(wine, batch_size=32, epochs=2, num_threads=1))
    again.set_state(iterator.get_state())
    assert rows(again) == uninterrupted[3:]


def test_streamed_batches_are_those_of_the_set_in_memory(wine):
    streamed = data.stream(data.DataConfig("wine", groups=("label",)), "train")
    loaders = (data.make_loader(source, batch_size=50, epochs=1) for source in (wine, streamed))
    for one, other in zip(*loaders, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_stream_pickles_as_its_config():
    streamed = data.stream(data.DataConfig("wine", long_tail=2.0), "train")
    copy = pickle.loads(pickle.dumps(streamed))
    assert len(pickle.dumps(streamed)) < 1000
    jax.tree.map(np.testing.assert_array_equal, copy.read(np.arange(5)), streamed.read(np.arange(5)))


@pytest.mark.slow
def test_worker_processes_read_the_same_batches_and_go_on_from_their_state(wine):
    expected = rows(data.make_loader(wine, batch_size=32, epochs=2))
    loader = data.make_loader(wine, batch_size=32, epochs=2, num_workers=2)
    iterator = iter(loader)
    first = rows(next(iterator) for _ in range(3))
    state = json.loads(json.dumps(iterator.get_state()))
    again = iter(loader)
    again.set_state(state)
    assert first + rows(again) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 143}, "batch_size"),
        ({"batch_size": 8, "rows": slice(4, 12)}, "rows"),
        ({"batch_size": 8, "rows": slice(0, 8, 2)}, "rows"),
        ({"batch_size": 8, "seed": -1}, "seed"),
        ({"batch_size": 8, "epochs": 0}, "epochs"),
        ({"batch_size": 8, "remainder": "keep"}, "remainder"),
        ({"batch_size": 8, "num_threads": -1}, "num_threads"),
        ({"batch_size": 8, "num_workers": 1.5}, "num_workers"),
    ],
)
def test_a_bad_argument_is_named(wine, arguments, named):
    with pytest.raises(ValueError, match=rf"data.make_loader: argument `{named}`"):
        data.make_loader(wine, **arguments)
