"""What measures `arbiter label`: inputs, runs, peers, stage times, and the script that prints them."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from eval.labelling import cluster_report
from eval.labelling.cluster_report import MeasuredStages, cpu_machine, report_tables
from eval.labelling.peers import PEERS, rate
from eval.labelling.pictures import KINDS, pictures, write_input
from eval.labelling.policies import draw_taxonomies
from eval.labelling.runs import WALL, Bench
from eval.labelling.stages import blocks_of, photographs, time_driver, time_opening, time_scoring
from eval.scale.cluster import StageTimes
from eval.scale.tables import Picture
from judge.classifiers import load_classifier
from prompts import load_taxonomy

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_label.py"
DIGITS = load_taxonomy("digits")


@pytest.fixture(scope="module")
def bench():
    return Bench("tiny-student", load_classifier("tiny-student"), batch_size=16, workers=1)


def scores_of(folder: Path) -> dict[str, list[float]]:
    """File name -> scores, whatever the input was made of."""
    import pyarrow.parquet as pq

    rows = [row for path in folder.glob("part-*") for row in pq.read_table(path).to_pylist()]
    return {
        row["id"].rsplit("/", 1)[-1].split(".")[0]: list(row["verdicts"]["digits"]["scores"].values())
        for row in rows
    }


def test_pictures_are_distinct_and_the_same_every_time() -> None:
    some = list(pictures(40, seed=1))
    assert some == list(pictures(40, seed=1))
    assert len({one.data for one in some} | {one.data for one in pictures(40, seed=2)}) == 80
    assert {one.name.rsplit(".")[-1] for one in some} == {"jpg", "png"}


def test_every_kind_of_input_holds_the_same_images_and_every_second_is_accounted_for(bench, tmp_path) -> None:
    found = {}
    for kind in KINDS:
        write_input(kind, tmp_path / kind, 21, seed=3, shard=10)
        taken = bench.run(tmp_path / kind, tmp_path / f"{kind}-labels", [DIGITS])
        assert (taken.rows, taken.statuses) == (21, {"ok": 21})
        assert sum(taken.stages[stage] for stage in WALL) == pytest.approx(taken.seconds)
        assert all(taken.stages[stage] >= 0 for stage in WALL)
        assert 0 < taken.encoder_processor <= taken.scoring + 0.05
        assert taken.peak_bytes > 10**7
        assert json.dumps(taken.record())
        found[kind] = scores_of(tmp_path / f"{kind}-labels")
    assert len(found["tar"]) == 21
    assert found["tar"].keys() == found["images"].keys()
    for kind in KINDS:
        for name, scores in found[kind].items():
            assert scores == pytest.approx(found["tar"][name], abs=1e-5)


@pytest.mark.parametrize("name", PEERS)
def test_peers_do_the_same_work(bench, tmp_path, name) -> None:
    import pyarrow.parquet as pq

    write_input("images", tmp_path / "in", 21, seed=4, shard=10)
    out = tmp_path / "peer.parquet"
    assert rate(PEERS[name], bench.classifier, tmp_path / "in", DIGITS, 8, 0, out) > 0
    table = {row["id"].split(".")[0]: row["scores"] for row in pq.read_table(out).to_pylist()}
    bench.run(tmp_path / "in", tmp_path / "ours", [DIGITS])
    ours = scores_of(tmp_path / "ours")
    assert table.keys() == ours.keys()
    if name.endswith("score"):  # the others have a head of their own
        for image, scores in ours.items():
            assert scores == pytest.approx(table[image], abs=1e-4)


def test_drawn_taxonomies_say_the_same_in_other_words() -> None:
    signs = load_taxonomy("signs")
    first, *others = draw_taxonomies(signs, 10, seed=5)
    assert first.names == signs.names
    assert draw_taxonomies(signs, 10, seed=5) == [first, *others]
    assert len({one.name for one in (first, *others)}) == 10
    assert len({one.hash for one in (first, *others)}) == 10
    texts = {one.key: {one.definition, *one.rewordings} for one in signs}
    names = {one.key: {one.name, *one.aliases} for one in signs}
    for other in others:
        assert 8 <= len(other) <= 20
        for category in other:
            assert category.name in names[category.key]
            assert category.definition in texts[category.key]
    assert any(category.name not in signs.names for other in others for category in other)


def test_stage_times_are_those_of_real_stages(bench, tmp_path) -> None:
    size, seconds = time_opening(bench, tmp_path, list(photographs(256, 70)))
    assert 5e3 < size < 5e4
    assert seconds > 0
    blocks = blocks_of(bench, tmp_path, ["timed.tar"])
    assert [len(block.rows) for block in blocks] == [64, 6]
    scoring = time_scoring(bench, blocks, [DIGITS])
    assert all(scoring[stage] > 0 for stage in ("encode", "score", "rows"))
    written = tmp_path / "written"
    written.mkdir()
    assert 0 < time_driver(bench, written, blocks[0], [DIGITS], parts=1) < 0.1
    assert [path.name for path in written.glob("*.parquet")] == ["part-0000000-00000-end.parquet"]
    with pytest.raises(ValueError, match="6 rows"):
        time_driver(bench, written, blocks[1], [DIGITS], parts=1)


def test_the_report_says_where_every_number_is_from(monkeypatch) -> None:
    for name, value in (("IMAGES", (10**6,)), ("MACHINES", (1, 1000))):
        monkeypatch.setattr(cluster_report, name, value)
    times = StageTimes(size=4e3, open=5e-4, encode=2e-3, score=2e-4, rows=1e-5, write=1e-5)
    stages = MeasuredStages(times, {512: Picture("512 x 384", 6e4, 3e-3)})
    assert cpu_machine(times).scorers == 13  # of 16 cores, 2.21 ms of 2.71
    lines: list[str] = []
    found = report_tables(stages, (1.0, 0.5), lines.append)
    text = "\n".join(lines)
    assert "published, not measured" in text
    assert [row["machines"] for row in found["no GPU"]] == [1, 1000, 1000]
    gpu = found["one GPU a machine"]
    assert gpu[0]["bottleneck"] in ("encoders", "cores")
    assert all(row["rate"] <= row["bound"] * 1.01 for row in gpu)
    assert gpu[1]["bottleneck"] == "drivers"  # 100,000 rows a second are less than 1,000 machines make
    assert len(found["bottlenecks"]) == 12
    assert json.dumps(found)


def test_the_script_prints_a_report(monkeypatch, capsys, tmp_path) -> None:
    words = [
        "--images",
        "20",
        "--rounds",
        "1",
        "--judge",
        "tiny-student",
        "--taxonomy",
        "digits",
        "--workers",
        "1",
    ]
    words += ["--only", "kinds", "taxonomies", "--kinds", "tar", "jsonl", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert report["kinds"]["tar"]["rows"] == 20
    assert report["kinds"]["jsonl"]["rows"] == 2
    assert report["taxonomies"]["ten_over_one"] > 0
    assert report["machine"]["packages"]["torch"]
    assert "ten taxonomies take" in printed[-2]
    assert not list(tmp_path.iterdir())
