"""Files come from elsewhere once, and only as they are meant."""

import hashlib

import pytest

from bilevel.data.download import cache_folder, download
from bilevel.data.errors import DataError

CONTENT = b"\x00\x01 what is meant"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def origin(tmp_path):
    path = tmp_path / "origin"
    path.write_bytes(CONTENT)
    return path


def test_fetched_once_and_kept(origin, tmp_path):
    path = download(origin.as_uri(), SHA256, tmp_path / "cache" / "file")
    assert path.read_bytes() == CONTENT
    origin.unlink()
    assert download(origin.as_uri(), SHA256, path).read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_another_file_is_refused_and_not_kept(origin, tmp_path):
    path = tmp_path / "cache" / "file"
    origin.write_bytes(CONTENT + b"!")
    with pytest.raises(DataError, match=f"expected a file with SHA-256 {SHA256}"):
        download(origin.as_uri(), SHA256, path)
    assert not path.exists()


def test_no_origin(origin, tmp_path):
    origin.unlink()
    with pytest.raises(DataError, match="could not be downloaded"):
        download(origin.as_uri(), SHA256, tmp_path / "file")


def test_the_cache_is_where_the_user_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bilevel"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bilevel"
