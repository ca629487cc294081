"""recipes/unsafebench.py: what it leaves behind, what a resumed run repeats, and what it refuses."""

import shutil

import pytest
import yaml
from fixtures_chat_server import completion, problem

from eval.benchmark.choices import Choice
from eval.benchmark.predict import ClassifierFailedError
from eval.benchmark.predictions import PredictionsError, read_predictions
from judge.data.examples import load_examples
from judge.data.sources import UnusableRowsError
from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from judge.serve import cli
from prompts import load_taxonomy
from prompts.errors import ExampleError, TaxonomyError

OWN = '''
from pathlib import Path
import numpy as np
from judge.protocol import Scores

class Bright:
    """Says unsafe of what is bright, and notes what it is asked."""
    name = "bright"
    def __init__(self, *, log: str = "", crash: str = "", stop_after: int = 0):
        self.log, self.crash, self.stop_after = log, crash, stop_after
    def score(self, images, prompts, taxonomy):
        unsafe = np.array([np.asarray(image).mean() / 255 for image in images])
        if self.crash:
            raise RuntimeError(self.crash)
        if self.log:
            with Path(self.log).open("a") as file:
                for value, prompt in zip(unsafe, prompts):
                    file.write(f"{value:.17g} {prompt is not None} {len(taxonomy)}\\n")
            if self.stop_after and len(Path(self.log).read_text().splitlines()) == self.stop_after:
                raise KeyboardInterrupt
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), axis=1), (None,) * len(images))
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "bright.py").write_text(OWN)
    return folder


@pytest.fixture
def bright(home, tmp_path):
    """`bright(**options)` names a classifier that notes in `tmp_path/asked` what it is asked."""

    def name(**options):
        options = {"log": tmp_path / "asked"} | options
        return ",".join(
            [f"python:{home}/bright.py:Bright", *(f"{key}={value}" for key, value in options.items())]
        )

    return name


def asked(tmp_path):
    path = tmp_path / "asked"
    return path.read_text().splitlines() if path.exists() else []


SMALL = {"limit": 40, "batch_size": 8, "overlap": "false"}


@pytest.fixture
def without_report(monkeypatch):
    """Its curves and pictures take longer than asking a few small classifiers; other tests read it."""
    monkeypatch.setattr("eval.benchmark.report.page.write_benchmark_report", lambda *_, **__: None)


@pytest.fixture(scope="module")
def finished(home, run_recipe):
    (home / "elsewhere.csv").write_text("id,unsafe\n")
    config = home / "mine.yaml"
    mine = [
        "tiny-student",
        {"name": f"python:{home}/bright.py:Bright", "label": "bright", "price_per_1000": 1.5},
        f"predictions:{home}/elsewhere.csv",
        "open_nsfw",
        "runs/nothing_here",
    ]
    unions = ["tiny-student or bright", "bright or open_nsfw"]
    config.write_text(yaml.safe_dump({"classifiers": mine, "skip_missing": True, "unite": unions}))
    printed = run_recipe("unsafebench", config=config, output_dir=home / "run", **SMALL)
    return RunDir.open(home / "run", kind="benchmark"), printed


def test_it_leaves_numbers_predictions_and_a_report(finished):
    run, printed = finished
    metrics = run.metrics
    measured = metrics["classifiers"]
    assert set(measured) == {"tiny-student", "bright", "elsewhere", "tiny-student or bright"}
    recall = {label: record["overall"]["all"]["recall"] for label, record in measured.items()}
    assert recall["tiny-student or bright"] >= max(recall["tiny-student"], recall["bright"])
    assert measured["tiny-student"]["overall"]["all"]["f1"] > 0.9
    assert measured["elsewhere"]["unjudged_share"] == 1
    assert measured["bright"]["cost"]["price_per_1000"] == 1.5
    assert measured["bright"]["group"] == "other"
    assert measured["tiny-student"]["cost"]["images_per_second"] > 0
    assert metrics["skipped"].keys() == {"open_nsfw", "nothing_here", "bright or open_nsfw"}
    assert metrics["skipped"]["bright or open_nsfw"] == "open_nsfw could not be measured"
    assert "covers no category of 'digits'" in metrics["skipped"]["open_nsfw"]
    assert metrics["failed"] == {}
    assert "overlap" not in metrics
    assert metrics["policies"] == {}
    for text in ("tiny-student", "not measured: open_nsfw", "runs/nothing_here", "F1 by category"):
        assert text in printed, text
    found = read_predictions(run.path / "predictions" / "tiny-student.parquet")
    assert len(found.rows) == 40
    assert found.about.fingerprint
    assert found.about.machine
    for file in ("report.html", "report.md", "config.yaml", "environment.json", "taxonomy.yaml"):
        assert (run.path / file).is_file()
    assert run.config["classifiers"][1]["label"] == "bright"


def test_resuming_a_finished_run_writes_the_report_and_asks_nobody(finished, run_recipe, monkeypatch):
    run, _ = finished
    before = run.metrics
    monkeypatch.setattr(Choice, "load", lambda *_: pytest.fail("loaded"))
    (run.path / "report.html").unlink()
    (run.path / "metrics.json").unlink()
    # open_nsfw covers nothing, which only it can say.
    names = [one for one in run.config["classifiers"] if one != "open_nsfw"]
    config = run.path.parent / "fewer.yaml"
    # All else is as the run was started with.
    config.write_text(yaml.safe_dump({"classifiers": names, "unite": run.config["unite"][:1]}))
    run_recipe("unsafebench", "--config", config, output_dir=run.path, resume="true")
    assert (run.path / "report.html").is_file()
    assert run.metrics["classifiers"] == before["classifiers"]
    assert run.config["limit"] == 40


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": 41}, "limit 40, not 41"),
        ({"protocol": "paper"}, "protocol 'default', not 'paper'"),
        ({"dataset": "signs:20"}, "dataset 'digits', not 'signs:20'"),
        ({"with_prompts": "false"}, "with_prompts True, not False"),
    ],
)
def test_a_run_goes_on_under_its_own_options_only(finished, run_recipe, options, says):
    run, _ = finished
    with pytest.raises(CheckpointError, match=f"was started with {says}.*choose another output_dir"):
        run_recipe("unsafebench", output_dir=run.path, resume="true", **options)


def test_a_run_does_not_go_on_unasked_nor_with_another_classifier_of_one_name(finished, run_recipe):
    run, _ = finished
    with pytest.raises(CheckpointError, match="already holds a run of kind 'benchmark'"):
        run_recipe("unsafebench", output_dir=run.path, **SMALL)
    other = "tiny-student,prompt_mode=ignore"
    with pytest.raises(ConfigError, match=r"holds predictions with options .*not .*'prompt_mode': 'ignore'"):
        run_recipe("unsafebench", output_dir=run.path, resume="true", classifiers=other, unite=[])


@pytest.mark.usefixtures("without_report")
def test_a_stopped_run_goes_on_where_it_was(bright, run_recipe, tmp_path, capsys):
    out = tmp_path / "run"
    classifiers = [bright(label="first"), bright(stop_after=40 + 24)]
    with pytest.raises(KeyboardInterrupt):
        run_recipe("unsafebench", classifiers=classifiers, output_dir=out, **SMALL)
    assert f"arbiter bench --output_dir {out} --resume true" in capsys.readouterr().err
    (tmp_path / "asked").unlink()
    run_recipe("unsafebench", output_dir=out, resume="true")
    assert len(asked(tmp_path)) == 24  # the batch in flight, and those after it
    found = read_predictions(out / "predictions" / "Bright.parquet")
    assert len({row.id for row in found.rows}) == 40
    assert not any(row.reason for row in found.rows)
    assert not list(out.glob("predictions/*.parts"))


@pytest.mark.usefixtures("without_report")
def test_others_go_on_when_one_always_crashes(home, bright, run_recipe, tmp_path):
    broken = bright(crash="no such kernel", label="broken", log="")
    options = {"output_dir": tmp_path / "run", "classifiers": [broken, bright()]}
    with pytest.raises(
        ClassifierFailedError, match=r"1 of 2 classifiers .*broken: .*RuntimeError: no such kernel"
    ):
        run_recipe("unsafebench", **options, **SMALL)
    run = RunDir.open(tmp_path / "run", kind="benchmark")
    assert set(run.metrics["classifiers"]) == {"Bright"}
    assert "no such kernel" in run.metrics["failed"]["broken"]
    assert len(asked(tmp_path)) == 40
    with pytest.raises(ConfigError, match=r"No classifier could be measured.*no such kernel"):
        run_recipe(
            "unsafebench", **options | {"output_dir": tmp_path / "alone", "classifiers": broken}, **SMALL
        )


@pytest.mark.usefixtures("without_report")
def test_what_a_service_did_not_answer_is_asked_again(stub, run_recipe, tmp_path):
    """A chat server that has too many requests for two pictures, and writes prose about a third."""
    seen = []

    def answer(request):
        picture = request["messages"][0]["content"][0]["image_url"]["url"]
        if picture not in seen:
            seen.append(picture)
        if seen.index(picture) in busy:
            return problem(429, "slow down")
        return completion("What a lovely day." if seen.index(picture) == 3 else "The image is safe.")

    stub.answer, busy = answer, {1, 4}
    served = f"served,url={stub.url}#m,retries=0,concurrency=1,label=GPT,price_per_1000=2.5"
    options = {"classifiers": served, "output_dir": tmp_path / "run", "limit": 6, "batch_size": 2}
    printed = run_recipe("unsafebench", **options, overlap="false")
    assert "GPT: a service left 2 images unanswered; --resume true asks about them again" in printed
    first = read_predictions(tmp_path / "run/predictions/GPT.parquet")
    unjudged = [place for place, row in enumerate(first.rows) if row.reason]
    assert unjudged == [1, 3, 4]
    assert "HTTP 429" in first.rows[1].reason
    assert 'could not be read: "What a lovely day."' in first.rows[3].reason

    busy.clear()
    stub.asked.clear()
    run_recipe("unsafebench", output_dir=tmp_path / "run", resume="true")
    assert len(stub.asked) == 6  # three questions about each of the two
    again = read_predictions(tmp_path / "run/predictions/GPT.parquet")
    assert [place for place, row in enumerate(again.rows) if row.reason] == [3]
    assert RunDir.open(tmp_path / "run").metrics["classifiers"]["GPT"]["group"] == "zero_shot"
    stub.asked.clear()
    run_recipe("unsafebench", output_dir=tmp_path / "run", resume="true")
    assert stub.asked == []


@pytest.mark.usefixtures("without_report")
def test_prompts_can_be_left_out(bright, run_recipe, tmp_path):
    run_recipe(
        "unsafebench", classifiers=bright(), output_dir=tmp_path / "run", with_prompts="false", **SMALL
    )
    assert {line.split()[1:][0] for line in asked(tmp_path)} == {"False"}


@pytest.mark.usefixtures("without_report")
def test_some_categories_of_a_taxonomy(bright, run_recipe, shapes, tmp_path):
    """Rows that name other categories are read, and safe under the policy that is asked."""
    taxonomy = load_taxonomy(shapes.taxonomy)
    chosen = list(taxonomy.names[:2])
    run_recipe(
        "unsafebench", classifiers=bright(), output_dir=tmp_path / "run", dataset=shapes.dataset,
        taxonomy=shapes.taxonomy, categories=chosen, **SMALL,
    )  # fmt: skip
    assert {line.split()[2] for line in asked(tmp_path)} == {"2"}
    found = read_predictions(tmp_path / "run/predictions/Bright.parquet")
    assert found.about.taxonomy.names == tuple(chosen)
    examples = load_examples(shapes.dataset, split="test", taxonomy=taxonomy, limit=40).examples
    keys = set(taxonomy.keys[:2])
    assert [row.truth for row in found.rows] == [bool(one.violates & keys) for one in examples]
    assert any(one.violates and not one.violates & keys for one in examples)


@pytest.mark.usefixtures("without_report")
def test_ones_own_data_are_asked_about_the_whole_taxonomy(bright, run_recipe, tmp_path):
    """The five digits of the recipe's own run are no choice of whoever names another data set."""
    run_recipe(
        "unsafebench", classifiers=bright(), output_dir=tmp_path / "run", dataset="digits:20",
        taxonomy="digits", **SMALL,
    )  # fmt: skip
    assert {line.split()[2] for line in asked(tmp_path)} == {"10"}


def test_the_papers_protocol(bright, run_recipe, shapes, tmp_path):
    run_recipe(
        "unsafebench",
        classifiers=[bright(group="conventional", label="fixed"), bright(label="any")],
        output_dir=tmp_path / "run",
        protocol="paper",
        dataset=shapes.dataset,
        taxonomy=shapes.taxonomy,
        **SMALL,
    )
    fixed, other = (
        read_predictions(tmp_path / f"run/predictions/{name}.parquet") for name in ("fixed", "any")
    )
    assert fixed.about.splits == ("test", "train", "validation")
    assert len(fixed.rows) == 120
    assert (other.about.splits, len(other.rows)) == (("test",), 40)
    assert {tuple(line.split()[1:]) for line in asked(tmp_path)} == {("False", "1")}
    metrics = RunDir.open(tmp_path / "run").metrics
    assert {label: record["rows"] for label, record in metrics["classifiers"].items()} == {
        "fixed": 120,
        "any": 40,
    }


def test_a_classifier_that_covers_a_part_of_ones_own_categories(run_recipe, shapes, tmp_path):
    """As UnsafeBench's list with open_nsfw: one of its categories and one of the user's, on pictures of shapes."""
    taxonomy = load_taxonomy("unsafebench").select(["Sexual"]).extend({"Ring": "a round outline"})
    (tmp_path / "mine.yaml").write_text(taxonomy.to_yaml())
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = ["path,label,categories"]
    for number, picture in enumerate(sorted(shapes.folder.glob("files/test *.png"))[:12]):
        shutil.copy(picture, folder / f"{number}.png")
        lines.append(f"{number}.png,{('safe,', 'unsafe,Sexual', 'unsafe,Ring')[number % 3]}")
    (folder / "table.csv").write_text("\n".join(lines))
    run_recipe(
        "unsafebench",
        classifiers=["open_nsfw", "tiny-student"],
        dataset=f"folder:{folder}",
        taxonomy=tmp_path / "mine.yaml",
        split="all",
        output_dir=tmp_path / "run",
        overlap="false",
    )
    metrics = RunDir.open(tmp_path / "run", kind="benchmark").metrics
    part, whole = metrics["classifiers"]["open_nsfw"], metrics["classifiers"]["tiny-student"]
    assert (part["covers"], whole["covers"]) == (["Sexual"], ["Sexual", "Ring"])
    assert part["overall"] is None
    assert part["cells"]["Sexual"]["all"]["rows"] == whole["cells"]["Sexual"]["all"]["rows"] == 8
    assert "Ring" not in part["cells"]
    assert part["unjudged"] == 0


@pytest.mark.parametrize("given", ["hate", "Sexaul"])
def test_labels_outside_the_taxonomy_are_named(bright, run_recipe, shapes, tmp_path, given):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(next(shapes.folder.glob("files/test *.png")), folder / "a.png")
    (folder / "table.csv").write_text(f"path,label,categories\na.png,unsafe,{given}\n")
    with pytest.raises(UnusableRowsError, match=f"a.png: unknown_category, '{given}'.*known: .*") as raised:
        run_recipe(
            "unsafebench", classifiers=bright(), dataset=f"folder:{folder}", split="all", output_dir=tmp_path / "run"
        )  # fmt: skip
    assert "skipped-all.jsonl" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"classifiers": "runs/nothing_here"}, CheckpointError, "nothing_here"),
        ({"classifiers": "tiny-studnt"}, ConfigError, "did you mean 'tiny-student'"),
        ({"classifiers": ["tiny-student", "tiny-student"]}, ConfigError, "both be called 'tiny-student'"),
        ({"classifiers": []}, ConfigError, "no classifier to ask"),
        ({"classifiers": "predictions:none.csv"}, PredictionsError, r"no file none\.csv"),
        ({"classifiers": "tiny-student", "protocol": "papers"}, ConfigError, "protocol is 'papers'"),
        ({"classifiers": "tiny-student", "unite": "tiny-student"}, ConfigError, "write two labels"),
        ({"classifiers": "tiny-student", "unite": "tiny-student or tiny-studnt"}, ConfigError, "did you mean 'tiny-student'"),
        ({"classifiers": "tiny-student", "categories": "thre"}, TaxonomyError, "thre"),
        ({"resume": "true"}, ConfigError, "holds no run to go on with"),
        ({"classifiers": "tiny-student", "threshold": 1}, ConfigError, "threshold is 1"),
        ({"classifiers": "tiny-student", "batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"classifiers": "tiny-student", "split": "tset"}, ExampleError, "tset"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, run_recipe, options, error, says):
    with pytest.raises(error, match=says):
        run_recipe("unsafebench", output_dir=tmp_path / "run", **options)
    if "split" not in options:
        assert not (tmp_path / "run").exists()


def test_arbiter_bench_hands_its_words_to_the_recipe(monkeypatch):
    called = []
    monkeypatch.setattr("judge.serve.recipe_files.subprocess.call", lambda words: called.append(words) or 7)
    assert cli.main(["bench", "runs/a", "q16,weights=b", "--rows", "40"]) == 7
    assert called[0][3].endswith("unsafebench.py")
    assert called[0][4:] == ["--classifiers", "runs/a", "q16,weights=b", "--rows", "40"]
