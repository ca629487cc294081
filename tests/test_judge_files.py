"""Files are replaced whole, and hashed as `sha256sum` does."""

import hashlib
import os

import pytest

from judge.runs.files import file_hash, write_atomically


@pytest.mark.parametrize(("content", "stored"), [("ä\n", "ä\n".encode()), (b"\0\xff", b"\0\xff")])
def test_text_is_utf_8_and_bytes_are_bytes(tmp_path, content, stored):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    write_atomically(path, content)
    assert path.read_bytes() == stored
    assert [found.name for found in tmp_path.iterdir()] == ["file"]  # nothing is left beside it
    assert file_hash(path) == hashlib.sha256(stored).hexdigest()


@pytest.mark.parametrize("moment", [0, 1])
def test_a_crash_leaves_the_old_content_or_the_new(tmp_path, monkeypatch, moment):
    path, calls = tmp_path / "file", iter(range(9))
    path.write_bytes(b"before")

    def fsync(_):
        if next(calls) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"after")
    assert path.read_bytes() == (b"before", b"after")[moment]


def test_a_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", "")
