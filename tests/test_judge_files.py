"""Files are replaced whole, and hashed as `sha256sum` does."""

import hashlib
import os
from threading import Thread

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


def test_two_threads_may_write_one_file(tmp_path, monkeypatch):
    """The other one writes all of it while the first is about to put its own in place."""
    path, real, others = tmp_path / "file", os.fsync, []

    def fsync(number):
        if not others:
            others.append(Thread(target=write_atomically, args=(path, "theirs")))
            others[0].start()
            others[0].join()
            assert path.read_text() == "theirs"
        real(number)

    monkeypatch.setattr("judge.runs.files.os.fsync", fsync)
    write_atomically(path, "ours")
    assert path.read_text() == "ours"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
