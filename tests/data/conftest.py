"""A stand-in for CIFAR-100: TFDS's own builder, over a few random images in the format of the real archive."""

import numpy as np
import pytest
import tensorflow_datasets as tfds


@pytest.fixture(scope="session")
def cifar100(tmp_path_factory):
    """Pretends to download the archive; returns the images and fine labels of each split, by their number."""
    archive = tmp_path_factory.mktemp("archive")
    folder = archive / "cifar-100-binary"
    folder.mkdir()
    random = np.random.default_rng(0)
    truth = {}
    for split, n in (("train", 300), ("test", 40)):
        fine = np.arange(n) % 100
        images = random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        columns = [fine[:, None] // 5, fine[:, None], images.transpose(0, 3, 1, 2).reshape(n, -1)]
        np.concatenate(columns, axis=1).astype(np.uint8).tofile(folder / f"{split}.bin")
        truth[split] = images, fine
    for kind, n in (("fine", 100), ("coarse", 20)):
        (folder / f"{kind}_label_names.txt").write_text("\n".join(f"{kind} {i}" for i in range(n)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(archive))
        yield truth


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was attempted: {args}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
