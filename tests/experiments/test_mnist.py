import gzip
import hashlib

import numpy as np
import pytest

from bilevel.data import DataError
from bilevel.experiments import mnist
from bilevel.experiments.mnist import load_split
from experiments.test_experiments import write_mnist


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    write_mnist(tmp_path / "mnist", train=30, test=12)
    return tmp_path / "mnist"


def test_the_sets_are_disjoint_and_follow_the_seed(folder):
    split = load_split(18, 12, 10, seed=0)
    rows = np.concatenate([split.train.X, split.valid.X])
    assert rows.shape == (30, 784)
    assert len(np.unique(rows, axis=0)) == 30
    assert rows.max() == 1.0
    assert rows.dtype == np.float32
    assert list(split.test.y) == [i % 10 for i in range(10)]
    for images in split:  # the digit of an image is the row that lights up
        np.testing.assert_array_equal(images.X.reshape(-1, 28, 28)[:, :, 0].argmax(axis=1) // 2, images.y)
    assert not np.array_equal(load_split(18, 12, 10, seed=1).train.y, split.train.y)


def truncated(raw):
    return gzip.compress(gzip.decompress(raw)[:-5])


def of_other_type(raw):
    return gzip.compress(b"\0\0\x0d\3" + gzip.decompress(raw)[4:])


FAULTS = {
    "too few": (None, "expected at least 31 train images of 784 pixels"),
    "no gzip": (lambda raw: raw[10:], "cannot be read as gzip"),
    "cut off": (lambda raw: raw[:-20], "cannot be read as gzip"),
    "wrong size": (truncated, "expected 23520 values, but it holds 23515"),
    "wrong type": (of_other_type, "expected an idx file of unsigned bytes in 3 dimensions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_are_not_mnist_are_told(fault, folder):
    damage, expected = FAULTS[fault]
    path = folder / "train-images-idx3-ubyte.gz"
    if damage is not None:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=expected):
        load_split(20, 11, 10, seed=0)


def test_missing_files_are_told(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: expected a file of MNIST, but there is none"):
        load_split(10, 10, 10, seed=0)


def test_without_a_folder_the_files_are_downloaded(tmp_path, monkeypatch):
    write_mnist(tmp_path / "origin", train=30, test=12)
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mnist, "ORIGIN", (tmp_path / "origin").as_uri() + "/")
    with pytest.raises(DataError, match=r"expected a file with SHA-256 440fca.*BILEVEL_DATA can name a folder"):
        load_split(18, 12, 10, seed=0)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "origin").iterdir()}
    monkeypatch.setattr(mnist, "SHA256", sums)
    assert len(load_split(18, 12, 10, seed=0).train.y) == 18
    assert sorted(path.name for path in (tmp_path / "bilevel" / "mnist").iterdir()) == sorted(sums)
