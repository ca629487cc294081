"""The benchmarks run and print their JSON; no times are compared."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def last_line(start_script):
    def run(script, *options):
        done = start_script(SCRIPTS / script, "--size", "tiny", "--threads", 1, *options)
        assert done.wait() == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.slow
def test_training_steps_are_equal_and_compared(last_line, monkeypatch, capsys):
    """Each competitor is measured in a fork: what a fresh process imports takes longer than its steps."""
    pytest.importorskip("trl")
    options = ["--steps", "1", "--group-size", "4", "--only", "trl", "ours"]
    bench = runpy.run_path(str(SCRIPTS / "bench_train.py"))

    def run_fork(name, folder):
        return last_line("bench_train.py", *options, "--one", name, "--folder", folder)

    monkeypatch.setitem(bench["main"].__globals__, "run_process", run_fork)
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--size", "tiny", "--threads", "1", *options])
    bench["main"]()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["equal_loss"], found["loss_difference"]
    assert found["equal_gradients"], found["gradient_difference"]
    assert found["samples_per_second_ratio"] > 0
    assert found["peak_memory_ratio"] > 0
    assert found["samples_per_second_ratio_no_checkpointing"] is None
    assert {"machine", "versions", "whole_peak_memory_ratio", "policy_tokens"} <= found.keys()


@pytest.mark.slow
def test_methods_of_judging_are_compared(last_line):
    found = last_line("bench_judge.py", "--images", "8", "--steps", "1")
    for key in (
        "stream_vs_generate",
        "stream_vs_decision_pipeline",
        "eight_taxonomies_cost",
        "eight_taxonomies_shared_cost",
    ):
        assert found[key] > 0
    assert len(found["taxonomy_tokens"]) == 8
    assert all(220 <= tokens <= 380 for tokens in found["taxonomy_tokens"])
    assert {"machine", "versions", "policy_tokens", "written_tokens"} <= found.keys()


@pytest.mark.slow
def test_the_overhead_of_the_head_and_the_speedup_by_int8(exported, monkeypatch, capsys):
    """It times a student that is exported already: tracing takes longer than all the rest, and has tests of its own."""
    from judge.student import export

    asked, (_, traced) = [], exported("tiny-clip")

    def copy(student, path, *, int8):
        asked.append((student.name, int8))
        for file in traced.parent.glob(f"{traced.stem}.*"):
            shutil.copy(file, path.with_name(file.name.replace(traced.stem, path.stem, 1)))

    monkeypatch.setattr(export, "export_student", copy)
    monkeypatch.setattr("transformers.logging.set_verbosity_error", lambda: None)  # it would stay so
    options = ["--size", "tiny", "--threads", "1", "--rounds", "1", "--batches", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_student.py", *options])
    runpy.run_path(str(SCRIPTS / "bench_student.py"))["main"]()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert asked == [("tiny", True)]
    assert found["head_overhead"] > -1
    assert found["int8_speedup"] > 0
    assert found["max_over_use"] > 0
    assert {"machine", "versions", "load_average"} <= found.keys()


def test_what_further_taxonomies_add(monkeypatch, capsys):
    options = ["--batch", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_taxonomies.py", *options])
    runpy.run_path(str(SCRIPTS / "bench_taxonomies.py"))["main"]()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["milliseconds_per_image"]) == ["encoder", "one taxonomy", "ten taxonomies"]
    assert found["ten_over_one"] > 0
    assert found["phrases"] > 300
