"""recipes/build_corpus.py on one's own words, pictures and taxonomy; what it refuses; and that it goes on."""

import json

import pytest

from judge.data.examples import load_examples
from judge.errors import CheckpointError, ConfigError, PipelineError
from judge.runs.folder import RunDir
from judge.serve import cli
from prompts import load_taxonomy

SHARES = "shares: {train: 0.5, test: 0.5}\n"
SMALL = {"steps": 1, "batch_size": 4, "chunk_size": 4, "max_failures": 1.0}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Words and a taxonomy that have nothing to do with digits."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "words.csv").write_text(
        "word,kind,label\noak,tree,Trees\nbirch,tree,Trees\nlawn,place,safe\nmoor,place,\n"
    )
    (folder / "plants.yaml").write_text(
        "name: plants\nversion: 1\ncategories:\n  - {name: Trees, definition: shows a tree}\n"
        "  - {name: Flowers, definition: shows a flower}\n"
    )
    (folder / "own.yaml").write_text(SHARES)
    return folder


@pytest.fixture(scope="module")
def finished(own, run_recipe, base_folder):
    printed = run_recipe(
        "build_corpus",
        config=own / "own.yaml",
        words=own / "words.csv",
        templates=["a {tree} on a {place}", "a {place}"],
        taxonomy=own / "plants.yaml",
        classifier=base_folder(),
        count=5,
        seeds=2,
        output_dir=own / "run",
        **SMALL,
    )
    return RunDir.open(own / "run", kind="corpus"), printed


def test_own_words_become_a_corpus_under_an_own_taxonomy(finished, own):
    run, printed = finished
    taxonomy = load_taxonomy(str(own / "plants.yaml"))
    assert run.taxonomy.names == taxonomy.names == ("Trees", "Flowers")
    rows = [json.loads(line) for line in (run.path / "rows.jsonl").read_text().splitlines()]
    assert run.metrics["rows"] == len(rows)
    assert run.metrics["lost"] == run.metrics["doubled"] == run.metrics["damaged"] == 0
    keys = {category.key for category in taxonomy}
    for row in rows:
        assert (row["model"], row["scheduler"], row["steps"]) == ("tiny-diffusion", "DDIMScheduler", 1)
        assert set(row["scores"]) == keys or row["failure"]
        assert row["written_by"]["words"]
    assert {tuple(row["prompt_label"]) if row["prompt_label"] is not None else None for row in rows} <= {
        *((key,) for key in keys),
        (),
        None,
    }
    assert run.config["changed"]["taxonomy"]["here"] == str(own / "plants.yaml")
    found = load_examples(f"webdataset:{run.path / 'shards'}", split="all", taxonomy=taxonomy)
    assert len(found.examples) == run.metrics["in_shards"]
    assert "0 lost, 0 doubled, 0 damaged" in printed
    assert (run.path / "failed.jsonl").is_file()
    assert f"{len(rows):,} rows were planned" in (run.path / "README.md").read_text()
    in_split = {}
    for row in rows:
        if row["split"]:
            in_split.setdefault(row["cluster"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in in_split.values())


def test_it_goes_on_and_refuses_another_plan(finished, own, run_recipe, base_folder):
    run, _ = finished
    with pytest.raises(CheckpointError, match="already holds a run of kind 'corpus'; resume it"):
        run_recipe("build_corpus", classifier=base_folder(), output_dir=run.path)
    with pytest.raises(CheckpointError, match="count 5, not 4"):
        run_recipe("build_corpus", count=4, resume="true", output_dir=run.path)
    with pytest.raises(ConfigError, match="holds no corpus to go on with"):
        run_recipe("build_corpus", resume="true", output_dir=own / "nothing")
    before = run.metrics["shards"]
    (run.path / "metrics.json").unlink()
    run_recipe("build_corpus", resume="true", output_dir=run.path)
    assert run.metrics["shards"] == before
    assert run.config["changed"]["taxonomy"]["here"] == str(own / "plants.yaml")


def test_own_pictures_without_any_pipeline(shapes, run_recipe, base_folder, tmp_path):
    table = tmp_path / "all.csv"
    pictures = sorted(shapes.folder.glob("files/test *.png"))[:3]
    lines = []
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(picture.read_bytes())
        lines.append(f"{number}.png,prompt {number}\n")
    table.write_text("path,prompt\n" + "".join(lines) + "gone.png,\n")
    (tmp_path / "own.yaml").write_text("shares: {train: 1.0}\n")
    run_recipe(
        "build_corpus",
        config=tmp_path / "own.yaml",
        pictures=table,
        taxonomy=shapes.taxonomy,
        classifier=base_folder(),
        format="parquet",
        output_dir=tmp_path / "run",
        **SMALL,
    )
    metrics = RunDir.open(tmp_path / "run").metrics
    assert metrics["rows"] == 4
    assert metrics["failed"]["pictures: unreadable"] == 1
    failed = [json.loads(line) for line in (tmp_path / "run" / "failed.jsonl").read_text().splitlines()]
    assert "gone.png" in {row["file"] for row in failed}
    found = load_examples(
        f"dataset:{tmp_path / 'run' / 'shards'}", split="all", taxonomy=load_taxonomy(str(shapes.taxonomy))
    )
    assert {example.source for example in found.examples} == {"real"}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"pipeline": "nothing-here"}, PipelineError, "There is no pipeline 'nothing-here'"),
        ({"scheduler": "NoScheduler"}, PipelineError, "no scheduler 'NoScheduler'"),
        ({"classifier": "tiny-studnt"}, CheckpointError, "did you mean 'tiny-student'"),
        ({"prompts": "none"}, ConfigError, "Give one of prompts, words and pictures; got none"),
        ({"words": "w.csv"}, ConfigError, "templates or by a chat model"),
        ({"steps": 0}, ConfigError, "steps is 0"),
    ],
)
def test_what_is_refused_leaves_no_folder(tmp_path, run_recipe, options, error, says):
    with pytest.raises(error, match=says):
        run_recipe("build_corpus", output_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_arbiter_corpus_hands_its_words_to_the_recipe(monkeypatch):
    called = []
    monkeypatch.setattr("judge.serve.recipe_files.subprocess.call", lambda words: called.append(words) or 7)
    assert cli.main(["corpus", "my.csv", "--seeds", "4"]) == 7
    assert called[0][3].endswith("build_corpus.py")
    assert called[0][4:] == ["--prompts", "my.csv", "--seeds", "4"]
