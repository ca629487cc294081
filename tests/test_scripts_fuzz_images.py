"""The fuzzer finds what it looks for, finds nothing in the door, and makes the same files again."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from judge.data.frames import open_frames
from judge.errors import ImageError

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz_images.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_images", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_bounded_run_is_clean(tmp_path):
    (tmp_path / "not.png").write_bytes(b"text")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--files", "300", "--seed", "7", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n301 files in " in done.stdout
    counts = {
        line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines() if len(line.split()) == 2
    }
    assert counts["crash"] == counts["hang"] == counts["memory"] == 0
    assert counts["opened"] > 30
    assert sum(counts.values()) == 301
    # Mutations must reach beyond the headers, or nothing was tried.
    assert {"unreadable", "truncated", "not_an_image", "unknown_colours", "animated"} <= counts.keys()


def test_seeds_are_images_and_mutations_can_be_made_again(fuzz):
    seeds = fuzz.draw_seeds()
    broken = set()
    for name, data in seeds.items():
        try:
            assert open_frames(data).total == (4 if "moving" in name else 1)
        except ImageError as error:
            broken.add((name, error.status))
    assert broken == {("PNG cHRM", "unknown_colours")}
    others = list(seeds.values())
    files = [fuzz.mutate(others[n % len(others)], others, Random(n)) for n in range(200)]
    assert files == [fuzz.mutate(others[n % len(others)], others, Random(n)) for n in range(200)]
    assert len(set(files) - set(others)) > 180


SCRIPTED = """
import os, time

def work(line):
    line.send("ready")
    while data := line.recv_bytes():
        if data == b"die":
            os.kill(os.getpid(), 9)
        time.sleep(60 if data == b"sleep" else 0)
        line.send(("opened", 12.0))
"""


def test_crashes_and_hangs_are_seen_and_the_next_file_goes_on(fuzz, monkeypatch, tmp_path):
    (tmp_path / "scripted.py").write_text(SCRIPTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fuzz, "work", importlib.import_module("scripted").work)
    worker = fuzz.Worker()
    try:
        assert worker.open(b"die", 20)[0] == "crash: the process ended with -9"
        started = time.time()
        assert worker.open(b"sleep", 0.2)[0] == "hang: no answer in 0.2 s"
        assert time.time() - started < 20
        assert worker.open(b"x", 20)[::2] == ("opened", 12.0)
    finally:
        worker.stop()


def test_wrong_pictures_and_other_errors_are_crashes(fuzz, monkeypatch):
    def other(*_):
        raise SyntaxError("broken PNG")

    monkeypatch.setattr(fuzz, "open_frames", other)
    assert fuzz.outcome(b"") == "crash: SyntaxError: broken PNG"
