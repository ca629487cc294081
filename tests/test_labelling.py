"""`arbiter label`, from files of every kind to labels: one row an input, with the verdicts of `arbiter judge`."""

import base64
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from judge.labelling.writer import parts_in, verdict_rows
from judge.serve.cli import main
from judge.standins.digits import digits_examples
from prompts import load_taxonomy

TYPED = ["--judge", "tiny-student", "--batch-size", "4"]


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures():
    """Name -> encoded image, each of another fate."""
    plain = [example.image for example in digits_examples("test", count=6)]
    images = {f"digit-{number}.png": encoded(image) for number, image in enumerate(plain)}
    clear = plain[0].convert("RGBA")
    clear.putalpha(128)
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    return images | {
        "clear.png": encoded(clear),
        "cut.png": images["digit-0.png"][:-40],
        "empty.png": b"",
        "huge.png": encoded(Image.new("1", (9000, 9000))),
        "moving.gif": encoded(plain[1], "GIF", save_all=True, append_images=[plain[2], noise], duration=9),
        "text.png": b"no image at all",
        "tiff.tif": encoded(plain[0], "TIFF"),
    }


@pytest.fixture(scope="module")
def taxonomies(tmp_path_factory):
    """Two taxonomies for tiny-student: its own, and a part of it under another name."""
    part = load_taxonomy("digits").select(["seven", "three", "nine"]).to_dict()
    path = tmp_path_factory.mktemp("taxonomies") / "few.yaml"
    path.write_text(yaml.safe_dump({**part, "name": "few"}))
    return ["--taxonomy", "digits", "--taxonomy", str(path)]


@pytest.fixture(scope="module")
def inputs(pictures, tmp_path_factory):
    """A folder with all of them as files, in a tar, in Parquet and as JSON lines."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "files").mkdir()
    for name, data in pictures.items():
        (folder / "files" / name).write_bytes(data)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, data in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = [{"id": name, "image": data, "prompt": None} for name, data in pictures.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    lines = [{"id": name, "image": base64.b64encode(data).decode()} for name, data in pictures.items()]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def labels(inputs, taxonomies, tmp_path_factory):
    """The labels of all inputs."""
    folder = tmp_path_factory.mktemp("out") / "labels"
    assert main(["label", str(inputs), str(folder), *TYPED, *taxonomies]) == 3
    return folder


def table(folder):
    return pq.read_table(folder).to_pylist()


STATUSES = {
    "cut.png": "unreadable",
    "empty.png": "unsupported",
    "huge.png": "too_large",
    "text.png": "unsupported",
    "tiff.tif": "unsupported",
}


def test_one_row_an_input_whatever_its_fate(labels, pictures):
    rows = table(labels)
    assert len(rows) == len({row["id"] for row in rows}) == 4 * len(pictures)
    by_source = {}
    for row in rows:
        by_source.setdefault(row["source"].split("/")[0], []).append(row)
    assert {source: len(some) for source, some in by_source.items()} == dict.fromkeys(
        ("files", "shard.tar", "table.parquet", "lines.jsonl"), len(pictures)
    )
    for row in rows:
        name = next(name for name in pictures if row["id"].endswith(name) or row["id"].endswith(name[:-4]))
        assert row["status"] == STATUSES.get(name, "ok"), row
        for verdict in row["verdicts"].values():
            judged = [score is not None for score in verdict["scores"].values()]
            assert all(judged) if row["status"] == "ok" else not any(judged)
            assert (verdict["unsafe"] is None) == (verdict["status"] == "unjudged") == (row["status"] != "ok")
        assert (row["reason"] is None) == (row["status"] == "ok")


def test_the_same_image_has_the_same_verdict_wherever_it_lies(labels):
    found = {}
    for row in table(labels):
        found.setdefault(row["sha256"], []).append(row["verdicts"])
    for same in found.values():
        assert len(same) == 4
        for name in ("digits", "few"):
            assert same[0][name]["category"] == same[1][name]["category"] == same[3][name]["category"]
            assert same[0][name]["unsafe"] == same[2][name]["unsafe"]


def test_rows_are_those_of_arbiter_judge(labels, inputs, taxonomies, capsys):
    for taxonomy, name in ((taxonomies[1], "digits"), (taxonomies[3], "few")):
        capsys.readouterr()
        main(["judge", str(inputs / "files"), *TYPED, "--taxonomy", taxonomy, "--json"])
        expected = {
            row["image"]["path"].rpartition("/")[2]: row
            for row in map(json.loads, capsys.readouterr().out.splitlines())
        }
        found = {
            row["image"]["path"].rpartition("/")[2]: row
            for about, row in verdict_rows(labels)
            if about == name and row["image"]["path"].startswith("files/")
        }
        assert found.keys() == expected.keys()
        for path, row in found.items():
            other = expected[path]
            assert row.keys() == other.keys()
            assert row["scores"] == pytest.approx(other["scores"], rel=1e-4)
            assert row["unsafe"] == (
                None if other["unsafe"] is None else pytest.approx(other["unsafe"], rel=1e-4)
            )
            for key in row.keys() - {"time", "image", "scores", "unsafe", "decided_by"}:
                assert row[key] == other[key], key
            assert row["image"]["sha256"] == other["image"]["sha256"]
            assert row["image"]["frame"] == other["image"]["frame"]


def test_run_again_finds_nothing_to_do_and_labels_what_is_new(labels, inputs, taxonomies, pictures, capsys):
    before = {path: path.stat().st_mtime_ns for path in labels.glob("part-*")}
    assert main(["label", str(inputs), str(labels), *TYPED, *taxonomies]) == 3
    assert f"{4 * len(pictures)} rows in" in (said := capsys.readouterr().err)
    assert " 0 of them new" in said
    assert {path: path.stat().st_mtime_ns for path in labels.glob("part-*")} == before
    new = inputs / "files" / "new.png"
    new.write_bytes(pictures["digit-0.png"])
    try:
        assert main(["label", str(inputs), str(labels), *TYPED, *taxonomies]) == 3
        assert " 1 of them new" in capsys.readouterr().err
    finally:
        new.unlink()


def test_another_question_or_another_input_is_refused(labels, inputs, taxonomies, capsys):
    for changed, why in (
        ([str(inputs), str(labels), *TYPED, "--taxonomy", "digits"], "taxonomy few"),
        ([str(inputs), str(labels), *TYPED, *taxonomies, "--threshold", "0.3"], "thresholds of"),
        ([str(inputs / "files"), str(labels), *TYPED, *taxonomies], "input: "),
        ([str(inputs), str(labels), "--judge", "small-student", *taxonomies], "judge"),
        (
            [str(inputs), str(labels), *TYPED, "--taxonomy", "digits", "--taxonomy", "digits"],
            "Two taxonomies",
        ),
    ):
        assert main(["label", *changed]) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nowhere", "out"], "nowhere"),
        (["EMPTY", "out"], "holds nothing to label"),
        (["EMPTY", "out", "--engine", "spark"], "--engine 'spark': expected local or ray"),
        (["EMPTY", "out", "--ray-address", "auto"], "--ray-gpus are about --engine ray"),
        (["EMPTY", "out", "--column", "picture=x"], "--column 'picture=x': write one of image"),
        (
            ["EMPTY", "out", "--taxonomy", "digits", "--threshold", "tree=0.3"],
            "--threshold 'tree': no category",
        ),
        (["EMPTY", "out", "--again", "ok,slow"], "--again 'slow': the statuses are ok, unreadable"),
    ],
)
def test_mistakes_are_said(words, why, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    assert main(["label", *words, *TYPED]) == 2
    assert why in capsys.readouterr().err


def test_a_taxonomy_outside_the_lessons_is_refused_before_anything_is_read(inputs, tmp_path, capsys):
    path = tmp_path / "long.yaml"
    categories = [{"name": f"c{n}", "definition": f"thing number {n}"} for n in range(60)]
    path.write_text(yaml.safe_dump({"name": "long", "version": "1", "categories": categories}))
    assert main(["label", str(inputs), str(tmp_path / "out"), *TYPED, "--taxonomy", str(path)]) == 2
    assert "Under 'long' every image would be unjudged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_killed_and_resumed(pictures, tmp_path):
    """kill -9 at whatever instant: exactly one row an input, and the scores of a run that nobody killed."""
    source, whole, killed = tmp_path / "in", tmp_path / "whole", tmp_path / "killed"
    source.mkdir()
    fine = [data for name, data in pictures.items() if name.startswith("digit")]
    for shard in range(6):
        with tarfile.open(source / f"{shard}.tar", "w") as tar:
            for number in range(80):
                member = tarfile.TarInfo(f"{number:03}.png")
                member.size = len(data := fine[(shard + number) % len(fine)])
                tar.addfile(member, io.BytesIO(data))
    command = [sys.executable, "-m", "judge.serve.cli", "label", str(source)]
    options = [*TYPED, "--quiet", "--workers", "1"]
    for parts in (2,):
        process = subprocess.Popen([*command, str(killed), *options])
        while process.poll() is None and len(list(killed.glob("part-*"))) < parts:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert main(["label", str(source), str(killed), *options]) == 0
    assert main(["label", str(source), str(whole), *options]) == 0
    assert table(killed) == table(whole)
    assert len(table(whole)) == 6 * 80
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    assert len(parts_in(killed)) == 6


def test_no_process_stays_behind():
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False
    ).stdout
    assert "judge.intake.worker" not in children


def test_a_changed_file_is_refused_or_labelled_again(pictures, tmp_path, capsys):
    """Some file of a live folder is always replaced: that must not be the end of its labels."""
    where, out = tmp_path / "in", tmp_path / "out"
    where.mkdir()
    for name in ("digit-0.png", "digit-1.png"):
        (where / name).write_bytes(pictures[name])
    with tarfile.open(where / "t.tar", "w") as tar:
        (tmp_path / "k.png").write_bytes(pictures["digit-2.png"])
        tar.add(tmp_path / "k.png", "k.png")
    typed = ["label", str(where), str(out), *TYPED, "--quiet"]
    assert main(typed) == 0
    before = {row["id"]: row["sha256"] for row in table(out)}
    kept = (out / "part-0000001-00000-end.parquet").stat().st_mtime_ns
    (where / "digit-0.png").write_bytes(pictures["digit-3.png"])
    assert main(typed) == 2
    assert "digit-0.png changed since" in capsys.readouterr().err
    assert {row["id"]: row["sha256"] for row in table(out)} == before
    assert main([*typed, "--again", "changed"]) == 0
    after = {row["id"]: row["sha256"] for row in table(out)}
    assert after == before | {"digit-0.png": hashlib.sha256(pictures["digit-3.png"]).hexdigest()}
    assert (out / "part-0000001-00000-end.parquet").stat().st_mtime_ns == kept
    assert main(typed) == 0


def test_labels_inside_of_the_input_are_no_input(pictures, tmp_path, capsys):
    (tmp_path / "digit.png").write_bytes(pictures["digit-0.png"])
    assert main(["label", str(tmp_path), str(tmp_path / "."), *TYPED]) == 2
    assert "is the input and the output" in capsys.readouterr().err
    for made in (1, 0):
        assert main(["label", str(tmp_path), str(tmp_path / "labels"), *TYPED]) == 0
        assert f"1 rows in {tmp_path / 'labels'}, {made} of them new" in capsys.readouterr().err
