"""Preparing sets: without a network, once, whole, and again if damaged."""

import logging
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from reweight import data

LABEL_SUMS = {"digits": 6457, "breast_cancer": 286, "wine": 133, "diabetes": 0}
SIZES = {"digits": (1438, 359), "breast_cancer": (456, 113), "wine": (142, 36), "diabetes": (352, 90)}
INPUT_SUMS = {"digits": 82055.64, "breast_cancer": 10267.03, "wine": 1513.70, "diabetes": 2887.17}


def prepared(cache, name="wine"):
    return cache / "scikit_learn" / name / "1.0.0"


def arrays_equal(one, other):
    assert one.arrays.keys() == other.arrays.keys()
    for name in one.arrays:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("name", data.EMBEDDED)
def test_an_embedded_set_is_prepared_without_a_network_to_the_same_numbers(name, tmp_path, no_network):
    train, test = (data.load(data.DataConfig(name, cache=str(tmp_path)), split) for split in ("train", "test"))
    assert (len(train), len(test)) == SIZES[name]
    np.testing.assert_allclose(np.abs(train["inputs"]).sum(dtype=np.float64), INPUT_SUMS[name], rtol=1e-5)
    np.testing.assert_allclose(train["labels"].sum(dtype=np.float64), LABEL_SUMS[name], atol=1e-3)


def test_the_split_is_stratified_disjoint_and_complete(tmp_path):
    from sklearn.datasets import load_wine

    config = data.DataConfig("wine", cache=str(tmp_path))
    builder = data.prepare(config)
    rows = {s: np.stack([e["inputs"] for e in builder.as_data_source(split=s)]) for s in ("train", "test")}
    everything = np.concatenate([rows["train"], rows["test"]])
    expected = load_wine().data.astype(np.float32)
    np.testing.assert_array_equal(np.unique(everything, axis=0), np.unique(expected, axis=0))
    assert len(everything) == len(expected)
    assert data.load(config, "train").info.class_counts == (47, 57, 38)
    assert data.load(config, "test").info.class_counts == (12, 14, 10)


def test_a_set_is_prepared_once(tmp_path):
    config = data.DataConfig("wine", cache=str(tmp_path))
    data.load(config, "train")
    before = {path: path.stat().st_mtime_ns for path in prepared(tmp_path).iterdir()}
    data.load(config, "train")
    assert {path: path.stat().st_mtime_ns for path in prepared(tmp_path).iterdir()} == before


def test_tfds_finds_the_embedded_sets_by_name(tmp_path):
    data.prepare(data.DataConfig("wine", cache=str(tmp_path)))
    builder = tfds.builder("scikit_learn/wine", data_dir=str(tmp_path), file_format="array_record")
    assert builder.info.splits["train"].num_examples == 142
    again = data.load(data.DataConfig("tfds:scikit_learn/wine", cache=str(tmp_path)), "train")
    np.testing.assert_array_equal(again["inputs"], data.load("wine", "train")["inputs"])


def _cut(folder):
    path = next(folder.glob("*train*"))
    path.write_bytes(path.read_bytes()[:100])


def _flip(folder):
    path = next(folder.glob("*test*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _remove(folder):
    (folder / "dataset_info.json").unlink()


def _no_digests(folder):
    (folder / "sha256.json").unlink()


@pytest.mark.parametrize("damage", [_cut, _flip, _remove, _no_digests])
def test_a_damaged_embedded_set_is_noticed_and_prepared_again(damage, tmp_path, caplog):
    config = data.DataConfig("wine", cache=str(tmp_path))
    whole = data.load(config, "train")
    damage(prepared(tmp_path))
    with caplog.at_level(logging.WARNING, logger="reweight.data.prepare"):
        again = data.load(config, "train")
    assert "damaged or incomplete" in caplog.text
    arrays_equal(again, whole)


def test_what_a_killed_preparation_left_is_cleared_away(tmp_path):
    left = prepared(tmp_path).parent / "incomplete.ABC123_1.0.0"
    left.mkdir(parents=True)
    (left / "scikit_learn-train.array_record-00000-of-00001").write_bytes(b"half")
    data.load(data.DataConfig("wine", cache=str(tmp_path)), "train")
    assert not left.exists()


def test_a_finished_cache_needs_no_write_access(tmp_path, monkeypatch):
    config = data.DataConfig("wine", cache=str(tmp_path))
    whole = data.load(config, "train")
    shutil.rmtree(tmp_path / ".locks")
    shutil.rmtree(tmp_path / ".columns")
    # The user who runs the tests may be root, for whom no folder is read-only.
    mkdir = os.mkdir

    def refuse(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "read-only", str(path))
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refuse)
    arrays_equal(data.load(config, "train"), whole)


def test_damaged_labels_in_the_cache_are_read_again(tmp_path, caplog):
    config = data.DataConfig("wine", cache=str(tmp_path))
    whole = data.load(config, "train")
    for path in (tmp_path / ".columns").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    arrays_equal(data.load(config, "train"), whole)
    assert "is damaged" in caplog.text


def _load_at_once(cache, barrier, queue):
    barrier.wait(60)
    queue.put(data.load(data.DataConfig("wine", cache=cache), "train")["inputs"].tobytes())


def test_processes_that_prepare_the_same_set_at_once_all_get_it_whole(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_load_at_once, args=(str(tmp_path), barrier, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = {queue.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert results == {data.load("wine", "train")["inputs"].tobytes()}
    assert not list(prepared(tmp_path).parent.glob("incomplete.*"))


def test_the_cache_folder_is_the_configs_or_the_environments_or_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("REWEIGHT_CACHE", str(tmp_path / "environment"))
    assert data.cache_dir(data.DataConfig(cache=str(tmp_path / "config"))) == tmp_path / "config"
    assert data.cache_dir(data.DataConfig()) == tmp_path / "environment"
    monkeypatch.delenv("REWEIGHT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_dir(data.DataConfig()) == tmp_path / ".cache" / "reweight"
