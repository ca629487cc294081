"""Predictions pushed to Label Studio: each of them there once, whatever its server does; and never "safe" for unjudged."""

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fixtures_label_studio import LEGACY, PERSONAL, CutError, StubLabelStudio, jwt
from hypothesis import given
from hypothesis import strategies as st

from judge.annotation.label_studio import labelling_config
from judge.annotation.label_studio_api import LabelStudio
from judge.annotation.label_studio_push import push
from judge.annotation.project_questions import read_questions
from judge.annotation.task_matching import image_name, match_tasks
from judge.annotation.verdict_suggestions import (
    Finished,
    Suggestion,
    read_finished,
    suggestion_of,
    version_of,
)
from judge.errors import ConfigError
from judge.integrations import http_json
from judge.integrations.http_json import NoAnswerError
from judge.serve.cli import main
from judge.verdicts.rows import Judging, verdict_row
from prompts import load_taxonomy
from prompts.verdict import Verdict, verdict_from_scores

POLICY = load_taxonomy("digits").select(["three", "seven"])
CONFIG = labelling_config(POLICY)
JUDGE = "ab" * 32
VERSION = f"small-student@{JUDGE[:12]} digits@{POLICY.hash[:12]}"


def row(path: str | None, *scores: float, threshold: Any = 0.5) -> dict[str, Any]:
    """The verdict row of an image with these scores; without scores, unjudged."""
    if scores:
        verdict = verdict_from_scores(max(scores), list(scores), POLICY, threshold=threshold)
    else:
        verdict = Verdict("unjudged", taxonomy=POLICY.hash, reason="too blue")
    judging = Judging(POLICY, threshold, "small-student", JUDGE)
    return verdict_row(verdict, judging, time="2026-11-22T15:00:00+00:00", path=path)


def finished(tmp_path: Path, *rows: dict[str, Any]) -> Finished:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return read_finished([file])


def names(number: int) -> list[str]:
    return [f"{index:03}.png" for index in range(number)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_json, "_FIRST_WAIT", 0.02)


@pytest.fixture
def many(tmp_path: Path, label_studio: StubLabelStudio) -> Finished:
    """A labelling of 60 images that are the tasks of project 7."""
    label_studio.add_project(7, CONFIG, names(60))
    label_studio.page_limit = 25
    return finished(
        tmp_path, *(row(f"pictures/{name}", index / 60, 0.1) for index, name in enumerate(names(60)))
    )


def stored(stub: StubLabelStudio) -> Counter[int]:
    return Counter(one["task"] for one in stub.predictions.values())


ONCE_EACH = Counter(range(1, 61))


# --- what is sent ----------------------------------------------------------------------------------------------


def test_predictions_are_what_the_project_asks(tmp_path: Path, label_studio: StubLabelStudio) -> None:
    label_studio.add_project(7, CONFIG, ["a/1.png", "a/2.png", "b/3 ü.png", "4.png", "other.png"])
    found = finished(
        tmp_path,
        row("pictures/a/1.png", 0.9, 0.6),
        row("pictures/a/2.png", 0.1, 0.2),
        row("pictures/b/3 ü.png", 0.5, 0.499),
        row("pictures/4.png"),
        row("pictures/nowhere.png", 0.9, 0.9),
    )
    with LabelStudio(label_studio.url) as studio:
        done = push(studio, 7, found)
    assert (done.sent, done.there, done.unjudged, done.ambiguous) == (3, 0, 1, ())
    assert done.without_task == ("pictures/nowhere.png",)
    assert done.versions == (VERSION,)
    by_task = {one["task"]: one for one in label_studio.predictions.values()}
    assert set(by_task) == {1, 2, 3}, "no prediction says anything of an image that was not judged"
    assert {one["model_version"] for one in by_task.values()} == {VERSION}
    chosen = {
        task: {part["from_name"]: part["value"]["choices"] for part in one["result"]}
        for task, one in by_task.items()
    }
    assert chosen == {
        1: {"label": ["unsafe"], "categories": ["three", "seven"]},
        2: {"label": ["safe"]},
        3: {"label": ["unsafe"], "categories": ["three"]},
    }
    for one in by_task.values():
        assert {(part["to_name"], part["type"]) for part in one["result"]} == {("image", "choices")}
    # Sorted by score, the doubtful ones come first.
    assert [task for task, _ in sorted(by_task.items(), key=lambda pair: pair[1]["score"])] == [3, 2, 1]
    assert by_task[1]["score"] == pytest.approx(0.8)


def test_a_second_run_sends_nothing(many: Finished, label_studio: StubLabelStudio) -> None:
    with LabelStudio(label_studio.url) as studio:
        assert push(studio, 7, many, dry_run=True).sent == 60
        assert not label_studio.predictions
        assert push(studio, 7, many, batch=50).sent == 60
        assert len(label_studio.sent("POST", "/import/predictions")) == 2
        again = push(studio, 7, many)
    assert (again.sent, again.there) == (0, 60)
    assert stored(label_studio) == ONCE_EACH
    assert len(label_studio.sent("POST", "/import/predictions")) == 2


def test_another_judge_taxonomy_or_threshold_is_another_version() -> None:
    plain = row("a.png", 0.9, 0.1)
    other = {
        "judge": plain | {"model": {"name": "small-student", "sha256": "cd" * 32}},
        "taxonomy": plain | {"taxonomy": {"name": "digits", "version": "1", "hash": "ef" * 32}},
        "thresholds": row("a.png", 0.9, 0.1, threshold=0.6),
        "thresholds of a category": row("a.png", 0.9, 0.1, threshold={"seven": 0.6}),
        "served": plain | {"model": {"name": "http://host:1/v1, my judge", "sha256": None}},
    }
    versions = [version_of(one) for one in (plain, *other.values())]
    assert versions[0] == VERSION
    assert len(set(versions)) == len(versions)
    assert not any("," in one for one in versions)


def test_a_later_row_of_an_image_counts(tmp_path: Path) -> None:
    found = finished(tmp_path, row("a.png", 0.9, 0.1), row("a.png", 0.2, 0.1))
    assert found.suggestions == {"a.png": {VERSION: Suggestion((), False, pytest.approx(0.6))}}
    unjudged = finished(tmp_path, row("a.png", 0.2, 0.1), row("b.png", 0.2, 0.1), row("a.png"), row("c.png"))
    assert (list(unjudged.suggestions), unjudged.unjudged) == (["b.png"], 2)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=2),
    st.floats(0.01, 0.99),
)
def test_sureness_is_zero_at_the_threshold_and_grows_with_the_distance(
    scores: list[float], limit: float
) -> None:
    found = suggestion_of(row("a.png", *scores, threshold=limit))
    assert 0 <= found.sureness <= 1
    assert found.unsafe == (max(scores) >= limit) == bool(found.flagged)
    surest = suggestion_of(
        row("a.png", 1.0 if found.unsafe else 0.0, scores[1] if found.unsafe else 0.0, threshold=limit)
    )
    assert surest.sureness == 1.0 >= found.sureness
    assert suggestion_of(row("a.png", limit, 0.0, threshold=limit)).sureness == pytest.approx(0)


# --- a server in trouble -----------------------------------------------------------------------------------------


def is_import(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/import/predictions")


class Trouble:
    """What goes wrong with the imports: a list of what each of them does, in turn."""

    def __init__(self, *told: Any) -> None:
        self.told = list(told)

    def __call__(self, method: str, path: str, when: str) -> Any:
        if not is_import(method, path) or not self.told or self.told[0][0] != when:
            return None
        _, what = self.told.pop(0)
        return what() if callable(what) else what


def cut() -> None:
    raise CutError


@pytest.mark.parametrize(
    "told",
    [
        [("before", (500, {"detail": "no"}))],
        [("after", (500, {"detail": "stored, and failed after it"}))],
        [("after", (504, None)), ("before", (502, None)), ("after", (504, None))],
        [("before", cut), ("after", cut)],
        [("before", (429, {"detail": "slowly"}, {"retry-after": "0"}))] * 3,
        [("after", (201, {"made": "a few"}))],
    ],
    ids=["500", "500-after-storing", "gateway", "cut", "429", "no-count"],
)
def test_every_prediction_is_there_once_whatever_fails(
    many: Finished, label_studio: StubLabelStudio, told: list[Any]
) -> None:
    label_studio.trouble = trouble = Trouble(*told)
    with LabelStudio(label_studio.url, patience=60) as studio:
        done = push(studio, 7, many, batch=20)
    assert trouble.told == []
    assert (done.sent, done.taken_back) == (60, 0)
    assert stored(label_studio) == ONCE_EACH


def test_a_slow_server_that_stores_after_all_keeps_one_of_each(
    many: Finished, label_studio: StubLabelStudio
) -> None:
    """The client gives up waiting and finds nothing, so it sends again; then the first request is carried out too."""
    asked_again = threading.Event()
    late = threading.Event()

    def slow() -> None:
        assert asked_again.wait(60)

    def trouble(method: str, path: str, when: str) -> Any:
        if is_import(method, path):
            number = len(label_studio.sent("POST", "/import/predictions"))
            if when == "before" and number == 1:
                slow()
            elif when == "after" and number == 1:
                late.set()
            elif when == "after" and number == 2:
                asked_again.set()
                assert late.wait(60)  # the answer of the second comes when the first is stored as well
        return None

    label_studio.trouble = trouble
    with LabelStudio(label_studio.url, timeout=1, patience=60) as studio:
        done = push(studio, 7, many, batch=60)
    assert done.sent == 60
    assert done.taken_back >= 60
    assert stored(label_studio) == ONCE_EACH


def test_a_server_that_dies_and_comes_back(many: Finished, label_studio: StubLabelStudio) -> None:
    def trouble(method: str, path: str, when: str) -> Any:
        if is_import(method, path) and when == "after" and len(label_studio.predictions) == 40:
            label_studio.trouble = lambda *asked: None
            threading.Thread(target=restart).start()
            raise CutError
        return None

    def restart() -> None:
        label_studio.stop()
        time.sleep(0.2)
        label_studio.start()

    label_studio.trouble = trouble
    with LabelStudio(label_studio.url, patience=120) as studio:
        done = push(studio, 7, many, batch=20)
    assert (done.sent, done.taken_back) == (60, 0)
    assert stored(label_studio) == ONCE_EACH


def test_given_up_it_says_so_and_another_run_goes_on(many: Finished, label_studio: StubLabelStudio) -> None:
    failing = (503, {"detail": "down for the night"})

    def trouble(method: str, path: str, when: str) -> Any:
        return failing if is_import(method, path) and when == "before" and label_studio.predictions else None

    label_studio.trouble = trouble
    with LabelStudio(label_studio.url, patience=0.2) as studio:
        with pytest.raises(NoAnswerError, match=r"down for the night.* 20 predictions are stored"):
            push(studio, 7, many, batch=20)
        label_studio.trouble = lambda *asked: None
        done = push(studio, 7, many, batch=20)
    assert (done.sent, done.there) == (40, 20)
    assert stored(label_studio) == ONCE_EACH


def test_copies_of_a_killed_run_are_taken_back(many: Finished, label_studio: StubLabelStudio) -> None:
    with LabelStudio(label_studio.url) as studio:
        push(studio, 7, many)
        first = dict(label_studio.predictions)
        for one in list(first.values())[:5]:
            number = len(label_studio.predictions) + 1
            label_studio.predictions[number] = one | {"id": number}
        done = push(studio, 7, many)
    assert (done.sent, done.there, done.taken_back) == (0, 60, 5)
    assert label_studio.predictions == first


def test_what_is_refused_is_said(many: Finished, label_studio: StubLabelStudio) -> None:
    label_studio.trouble = Trouble(("before", (400, {"validation_errors": ["Prediction 0: no such choice"]})))
    with LabelStudio(label_studio.url) as studio, pytest.raises(ConfigError, match="no such choice"):
        push(studio, 7, many)
    label_studio.trouble = Trouble(("before", (201, {"created": 3})))
    with LabelStudio(label_studio.url) as studio, pytest.raises(ConfigError, match="stored 3 of 50"):
        push(studio, 7, many)


# --- keys --------------------------------------------------------------------------------------------------------


def test_a_personal_token_is_exchanged_and_renewed(
    many: Finished, label_studio: StubLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", PERSONAL)

    def run_out(method: str, path: str, when: str) -> None:
        if is_import(method, path) and when == "after":
            label_studio.access = jwt("access", 99)  # what was handed out is refused from now on

    label_studio.trouble = run_out
    with LabelStudio(label_studio.url) as studio:
        assert push(studio, 7, many, batch=30).sent == 60
    assert label_studio.refreshed == 2
    assert stored(label_studio) == ONCE_EACH


@pytest.mark.parametrize("key", ["wrong-key-of-mine", jwt("refresh", 7), jwt("access", 7)])
def test_a_key_stands_in_no_message(
    label_studio: StubLabelStudio, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], key: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
    label_studio.trouble = lambda method, path, when: (
        None if path.endswith("refresh/") else (401, {"detail": f"The token {key} is not valid."})
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("a.png", 0.9, 0.1)))
    words = ["--url", label_studio.url, "--project", "7", "--patience", "1"]
    assert main(["annotate", "push", str(tmp_path / "rows.jsonl"), *words]) == 2
    shown = "".join(capfd.readouterr())
    assert "LABEL_STUDIO_API_KEY" in shown
    assert key not in shown


def test_no_key_and_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="LABEL_STUDIO_API_KEY"):
        LabelStudio("http://localhost:8080")
    for wrong in ("localhost:8080", "http://user:secret@host", "ftp://host", "http://host/?next=elsewhere"):
        with pytest.raises(ConfigError) as caught:
            LabelStudio(wrong, LEGACY)
        assert "secret" not in str(caught.value)
    for bad in ("two words", "line\nbreak", "ü"):
        with pytest.raises(ConfigError) as caught:
            LabelStudio("http://localhost:8080", bad)
        assert bad not in str(caught.value)


def test_requests_go_to_the_named_host_only(label_studio: StubLabelStudio) -> None:
    label_studio.trouble = lambda *asked: (302, None, {"location": "http://elsewhere.example/"})
    with (
        LabelStudio(label_studio.url) as studio,
        pytest.raises(ConfigError, match="sends requests elsewhere"),
    ):
        studio.project(7)
    label_studio.trouble = lambda *asked: (200, {"hello": "I am another server"})
    with (
        LabelStudio(label_studio.url) as studio,
        pytest.raises(ConfigError, match="not answer like Label Studio"),
    ):
        studio.project(7)


# --- which task is which image -------------------------------------------------------------------------------------


def test_tasks_are_found_by_the_end_of_their_path() -> None:
    tasks = {
        1: "a/1.png",
        2: "b/1.png",
        3: "2.png",
        4: "/srv/x/3.png",
        5: "3.png",
        6: "a/1.png",
        7: "only.png",
    }
    found = match_tasks(
        [
            "in/a/1.png",
            "./in/b//1.png",
            "1.png",
            r"in\2.png",
            "x/3.png",
            "p/only.png",
            "q/only.png",
            "none.png",
        ],
        tasks,
    )
    # The third 1.png could be either, and both images named only.png could be task 7.
    assert found.tasks == {1: "in/a/1.png", 6: "in/a/1.png", 2: "./in/b//1.png", 3: r"in\2.png", 4: "x/3.png"}
    assert found.without_task == ("none.png",)
    assert found.ambiguous == ("1.png", "p/only.png", "q/only.png")
    assert match_tasks(["a.png", "./a.png"], {1: "a.png"}).ambiguous == ("a.png", "./a.png")


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


@given(st.lists(PATHS, unique=True), st.dictionaries(st.integers(1, 9), PATHS))
def test_no_task_gets_the_verdict_of_an_image_that_is_not_its(rows: list[str], tasks: dict[int, str]) -> None:
    """Against the definition: a pair of which each fits the other better than anything else does."""
    found = match_tasks(rows, tasks)
    assert set(found.tasks.values()) | set(found.without_task) | set(found.ambiguous) == set(rows)
    for task, name in tasks.items():
        path = found.tasks.get(task)
        pairs = [(one, other) for one in rows for other in set(tasks.values())]
        if path is None:
            assert name not in rows
        else:
            rivals = [pair for pair in pairs if (pair[0] == path) != (pair[1] == name)]
            assert shared(path, name) > max((shared(*pair) for pair in rivals), default=(0, False))


def shared(one: str, other: str) -> tuple[int, bool]:
    """How many parts at the end are the same, if these are all of the shorter path; and whether the paths are."""
    pairs = list(zip(reversed(one.split("/")), reversed(other.split("/")), strict=False))
    return (len(pairs) if all(a == b for a, b in pairs) else 0), one == other


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"path": "a b/1.png", "image": "whatever"}, "a b/1.png"),
        ({"image": "/data/local-files/?d=a%20b/1.png"}, "a b/1.png"),
        ({"image": "/data/upload/7/0a1b2c3d-1.png"}, "1.png"),
        ({"image": "s3://bucket/in/1.png"}, "/in/1.png"),
        ({"image": "https://host/in/1%C3%BC.png?signature=x"}, "/in/1ü.png"),
        ({"image": "data:image/png;base64,AAAA"}, None),
        ({"image": 7}, None),
        ({"other": "1.png"}, None),
        ({"image": "http://["}, None),
    ],
)
def test_the_name_of_a_task(data: dict[str, Any], name: str | None) -> None:
    assert image_name(data, "image") == name


# --- other projects and files --------------------------------------------------------------------------------------


def test_a_project_of_the_second_round_is_asked_for_categories_only() -> None:
    questions = read_questions(labelling_config(POLICY, only_categories=True), POLICY.names)
    assert [part["from_name"] for part in questions.result(Suggestion(("three",), True, 0.1))] == [
        "categories"
    ]
    assert questions.result(Suggestion((), False, 0.1)) == []


TWO_IMAGES = CONFIG.replace("</View>", '<Image name="other" value="$other"/></View>').replace(
    'name="categories" toName="image"', 'name="categories" toName="other"'
)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("<View>", "cannot be read"),
        ("<View><Image name='image' value='$image'/></View>", "no choices named 'label'"),
        (CONFIG.replace('value="seven"', 'value="eight"'), "no choice seven"),
        (CONFIG.replace('value="unsafe"', 'value="bad"'), "no choice unsafe"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><View/>", "entities"),
        (TWO_IMAGES, "about two images"),
    ],
)
def test_a_project_that_asks_something_else_is_refused(config: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_questions(config, POLICY.names)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("no json", "is no JSON"),
        ("[1]", "no verdict row"),
        (json.dumps(row("a.png", 0.9, 0.1) | {"flags": {"three": "yes", "seven": False}}), "no verdict row"),
        (json.dumps(row(None, 0.9, 0.1)), "no path"),
        (json.dumps(row("-", 0.9, 0.1)), "no path"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, line: str, why: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(row('b.png', 0.1, 0.1))}\n\n{line}\n")
    with pytest.raises(ConfigError, match=f"rows.jsonl, line 3.*{why}"):
        read_finished([file])


def test_labels_of_a_whole_run_are_read(tmp_path: Path) -> None:
    """The output of `arbiter label`, in its own schema: the same suggestions as the rows of `arbiter judge`."""
    import pyarrow as pa

    from judge.labelling.writer import Part, schema, write_part

    rows = {
        name: row(name, *scores)
        for name, scores in {"a.png": (0.9, 0.1), "b.png": (0.2, 0.1), "c.png": ()}.items()
    }
    kept = ("status", "flagged", "unsafe", "category", "decided_by", "because", "reason", "note")
    common = {key: rows["a.png"][key] for key in ("row_format", "thresholds", "taxonomy", "model", "arbiter")}
    table = pa.Table.from_pylist(
        [
            {
                "id": name,
                "source": name,
                "sha256": None,
                "status": "ok" if one["scores"] else "unreadable",
                "reason": None,
                "verdicts": {
                    "digits": {key: one[key] for key in kept} | {"scores": one["scores"], "frame": None}
                },
            }
            for name, one in rows.items()
        ],
        schema=schema([POLICY]),
    )
    about = {"time": rows["a.png"]["time"], "taxonomies": {"digits": common}}
    (tmp_path / "labels").mkdir()
    write_part(tmp_path / "labels", Part(0, 0, end=True), [table], about)
    assert read_finished([tmp_path / "labels"]) == finished(tmp_path, *rows.values())
    with pytest.raises(ConfigError, match="no labels"):
        read_finished([tmp_path])


def test_the_command(
    label_studio: StubLabelStudio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_studio.add_project(7, CONFIG, ["1.png", "2.png"], key="path")
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps(one) + "\n" for one in (row("1.png", 0.9, 0.1), row("2.png"), row("3.png", 0.1, 0.1))
        )
    )
    words = ["annotate", "push", str(file), "--url", label_studio.url + "/", "--project", "7"]
    assert main([*words, "--dry-run"]) == 0
    assert "Would push 1 predictions to project 7; 1 unjudged images left out" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    assert "1 images without a task in project 7: 3.png" in shown.err
    assert json.loads(shown.out)["sent"] == 1
    assert main(words) == 0
    assert "Pushed 0 predictions to project 7; 1 there already" in capsys.readouterr().out
    assert main([*words, "--taxonomy", "other"]) == 2
    assert "there are rows of digits" in capsys.readouterr().err
    assert main([*words[:-1], "8"]) == 2
    assert "/api/projects/8/" in capsys.readouterr().err
    file.write_text(json.dumps(row("elsewhere.png", 0.9, 0.1)))
    assert main(words) == 2
    assert "a row is named 'elsewhere.png', a task is named '1.png'" in capsys.readouterr().err
