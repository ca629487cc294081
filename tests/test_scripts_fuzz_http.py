"""The fuzzer of the server finds what it looks for, and nothing in a few hundred files."""

import argparse
import importlib
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("fuzz_http")


def test_a_bounded_run_is_clean(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "not.png").write_bytes(b"text")
    (folder / "empty.png").write_bytes(b"")
    (folder / "large.png").write_bytes(bytes(33 * 2**20))
    Image.new("RGB", (9, 9), "white").save(folder / "white.png")
    report = tmp_path / "report.txt"
    arguments = ["--files", "200", "--seed", "3", "--folder", str(folder), "--report", str(report)]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "fuzz_http.py"), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert report.read_text() == done.stdout
    table = done.stdout.partition("204 files in ")[0]
    counts = {
        name.strip(): int(count) for name, count in (line.rsplit(None, 1) for line in table.splitlines())
    }
    assert sum(counts.values()) == 204
    assert {"200 safe", "200 unsafe", "413 too_large", "415 not_an_image", "422 truncated"} <= counts.keys()
    assert not [name for name in counts if name.startswith(("5", "WRONG"))]
    assert "\n0 violations" in done.stdout
    assert "pillow " in done.stdout


ROW = {"status": "unsafe"}
REFUSED = {"message": "m", "type": "t", "param": None, "code": "truncated"}


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (200, {"results": [{"flagged": True, "verdict": ROW}]}, "200 unsafe"),
        (200, {"results": [{"flagged": False, "verdict": {"status": "safe"}}]}, "200 safe"),
        (422, {"error": REFUSED}, "422 truncated"),
        (200, {"results": [{"flagged": False, "verdict": ROW}]}, "WRONG"),
        (200, {"results": [{"flagged": True, "verdict": {"status": "unjudged"}}]}, "WRONG"),
        (200, {"results": []}, "WRONG"),
        (500, {"error": REFUSED}, "WRONG"),
        (422, {"error": {**REFUSED, "code": "crashed"}}, "WRONG"),
        (422, {"error": {**REFUSED, "code": "other"}}, "WRONG"),
        (400, {"detail": "x"}, "WRONG"),
        (422, {"error": None}, "WRONG"),
        (200, [], "WRONG"),
    ],
)
def test_what_counts_as_an_answer(fuzz, status, body, answer):
    assert fuzz.verdict_of(status, json.dumps(body).encode()).split(":")[0] == answer
    assert fuzz.verdict_of(status, b"<html>").startswith("WRONG")


def test_violations_are_reported_and_kept(fuzz, tmp_path):
    options = argparse.Namespace(seconds=2.5, megabytes=300.0, keep=tmp_path / "kept")
    found = fuzz.Findings(options)
    found.add("one", b"1", "200 safe", 0.1, 9.0)
    assert found.violations == []
    found.add("two", b"2", "WRONG: 500 b'x'", 0.1, 0.1)
    found.add("three", b"3", "422 timeout", 2.6, 2.6)
    found.peaks = {7: 299.0, 8: 120.0}
    assert found.violations == ["two: WRONG: 500 b'x'", "three: late: 2.60 s of work, 422 timeout"]
    assert [path.read_bytes() for path in sorted((tmp_path / "kept").iterdir())] == [b"2", b"3"]
    text = found.report()
    assert "\nmemory: 2 decode workers, at most 299 MB each\n" in text
    assert "\n2 violations\ntwo: " in text
    assert "largest 9.00 s a file" in text


def test_the_interlaced_image_is_one(fuzz):
    image = Image.open(BytesIO(fuzz.interlaced(37, 19)))
    image.load()
    assert (image.size, image.mode, image.info["interlace"]) == ((37, 19), "RGBA", 1)
