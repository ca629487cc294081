"""Label Studio's formats: what is written has the documented form, and what it exports is read, whatever it holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.annotation.answers import Answer, read_answers
from judge.annotation.images import Folder, Picture, list_files
from judge.annotation.label_studio import import_tasks, labelling_config, read_export
from judge.annotation.tasks import assign_pairs, write_tasks
from judge.errors import ConfigError
from prompts import Category, Taxonomy

POLICY = Taxonomy(
    "mine", "1", (Category("Fire & flames", "open flames; 'hot' or not"), Category("Smoke, ash", "smoke"))
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    pictures = tmp_path / "pictures"
    (pictures / "sub dir").mkdir(parents=True)
    for name in ("a.png", "b&c#1.png", "sub dir/d?e=ä.png"):
        (pictures / name).write_bytes(b"never opened")
    return Folder(pictures)


def choices(name: str, *values: str) -> dict[str, Any]:
    """One entry of a `result`, as Label Studio writes it."""
    return {
        "id": "x1",
        "type": "choices",
        "origin": "manual",
        "from_name": name,
        "to_name": "image",
        "value": {"choices": list(values)},
    }


def annotation(who: Any, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "completed_by": who,
        "result": list(results),
        "was_cancelled": False,
        "lead_time": 2.5,
    } | more


def save(folder: Folder, tasks: Any) -> Path:
    path = folder.path.parent / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def answers(folder: Folder, tasks: Any) -> list[Answer]:
    return read_answers([save(folder, tasks)], POLICY, folder)


def test_the_configuration_asks_both_questions_and_shows_the_definitions() -> None:
    view = ElementTree.fromstring(labelling_config(POLICY))
    [image] = view.iter("Image")
    assert image.attrib == {"name": "image", "value": "$image"}
    label, categories = view.iter("Choices")
    assert (label.get("name"), label.get("toName"), label.get("choice"), label.get("required")) == (
        *("label", "image", "single-radio", "true"),
    )
    assert [choice.get("value") for choice in label] == ["safe", "unsafe", "N/A"]
    assert [choice.get("value") for choice in categories] == list(POLICY.names)
    assert (categories.get("choice"), categories.get("whenTagName"), categories.get("whenChoiceValue")) == (
        *("multiple", "label", "unsafe"),
    )
    assert "Fire & flames: open flames; 'hot' or not" in [
        header.get("value") for header in view.iter("Header")
    ]


def test_the_second_round_asks_for_categories_only() -> None:
    [categories] = ElementTree.fromstring(labelling_config(POLICY, only_categories=True)).iter("Choices")
    assert (categories.get("name"), categories.get("required")) == ("categories", "true")
    assert "visibleWhen" not in categories.attrib


def test_addresses_of_local_files_lead_back_to_the_names(folder: Folder) -> None:
    pictures = list_files(["a.png", "b&c#1.png", "sub dir/d?e=ä.png"], folder)
    for picture, task in zip(pictures, import_tasks(pictures, [()] * 3), strict=True):
        address = urlsplit(task["data"]["image"])
        assert (address.path, parse_qs(address.query)) == ("/data/local-files/", {"d": [picture.name]})
    tasks = import_tasks(pictures, [()] * 3, "https://example.org/p/")
    assert tasks[1]["data"]["image"] == "https://example.org/p/b%26c%231.png"


def test_no_key_of_the_data_is_the_name_of_a_question() -> None:
    """JSON-MIN writes the choices, the annotator, id and times beside the data."""
    [task] = import_tasks([Picture("a.png", "Lexica", "Smoke, ash")], [("anna", "ben")])
    reserved = {
        "label",
        "categories",
        "id",
        "annotator",
        "annotation_id",
        "created_at",
        "updated_at",
        "lead_time",
    }
    assert set(task) == {"data"}
    assert set(task["data"]).isdisjoint(reserved)


def exported(folder: Folder, minimal: bool) -> Iterator[dict[str, Any]]:
    """What Label Studio exports when three people have answered the tasks that were written, in either format."""
    tasks = json.loads((folder.path.parent / "tasks.json").read_text(encoding="utf-8"))
    said: list[tuple[Any, str, list[str]]] = [
        (3, "safe", []),
        ({"id": 4, "email": "ben@example.org"}, "unsafe", ["Smoke, ash"]),
        (5, "N/A", []),
        (6, "unsafe", ["Fire & flames", "Smoke, ash"]),
    ]
    for number, task in enumerate(tasks, start=1):
        if not minimal:
            results = [
                [choices("label", label), *([choices("categories", *c)] if c else [])] for _, label, c in said
            ]
            made = [annotation(who, *found) for (who, *_), found in zip(said, results, strict=True)]
            yield {
                "id": number,
                "annotations": made,
                "data": task["data"],
                "drafts": [],
                "predictions": [],
                "meta": {},
            }
            continue
        for who, label, named in said:
            record = {**task["data"], "id": number, "label": label, "annotation_id": 1, "lead_time": 1.0}
            if named:
                record["categories"] = named[0] if len(named) == 1 else {"choices": named}
            # JSON-MIN names people by their address, where the export has it, else by their number.
            yield record | {"annotator": who["email"] if isinstance(who, dict) else who}


@pytest.mark.parametrize("minimal", [False, True], ids=["JSON", "JSON-MIN"])
def test_round_trip(folder: Folder, minimal: bool) -> None:
    pictures = list_files(
        ["a.png", "b&c#1.png", "sub dir/d?e=ä.png"], folder, source="Lexica", collected_for="Smoke, ash"
    )
    out = folder.path.parent / "tasks.json"
    written = write_tasks(assign_pairs(pictures, ["anna", "ben"]), out, POLICY)
    assert written == {out: 3, out.with_suffix(".xml"): 3}
    found = answers(folder, list(exported(folder, minimal)))
    assert [answer.picture for answer in found] == [picture for picture in pictures for _ in range(4)]
    assert [(answer.annotator, answer.label, answer.categories) for answer in found[:4]] == [
        ("3", "safe", ()),
        ("ben@example.org", "unsafe", ("Smoke, ash",)),
        ("5", "na", ()),
        ("6", "unsafe", POLICY.names),
    ]


def test_what_nobody_answered_is_a_row_without_an_answer(folder: Folder) -> None:
    data = {"path": "a.png"}
    skipped = annotation(1, choices("label", "safe"), was_cancelled=True)
    tasks = [
        {"data": data, "annotations": [skipped, annotation(2)]},
        {
            "data": {"path": "b&c#1.png"},
            "annotations": [],
            "predictions": [annotation(9, choices("label", "safe"))],
        },
    ]
    found = answers(folder, tasks)
    assert [(one.picture.name, one.annotator, one.label) for one in found] == [
        ("a.png", "1", None),
        ("a.png", "2", None),
        ("b&c#1.png", "", None),
    ]


def test_annotations_of_a_task_come_in_the_order_in_which_they_were_made(folder: Folder) -> None:
    made = [
        annotation("cem", choices("label", "safe"), created_at="2026-03-09T22:16:08Z"),
        annotation("anna", choices("label", "safe"), created_at="2026-03-08T21:52:49Z"),
    ]
    found = answers(folder, [{"data": {"path": "a.png"}, "annotations": made}])
    assert [(one.annotator, one.where) for one in found] == [
        ("anna", "export.json, task 1, annotation 2"),
        ("cem", "export.json, task 1, annotation 1"),
    ]


def test_projects_that_were_not_made_here(folder: Folder) -> None:
    address = "/data/local-files/?d=sub%20dir/d%3Fe%3D%C3%A4.png"
    tasks = [
        {
            "data": {"image": address},
            "annotations": [annotation(1, choices("label", "Safe"), choices("weather", "rain"))],
        },
        {"data": {"image": "a.png"}, "annotations": [annotation(1, choices("label", "N/A"))]},
    ]
    found = answers(folder, tasks)
    assert [(one.picture.name, one.label) for one in found] == [
        ("sub dir/d?e=ä.png", "safe"),
        ("a.png", "na"),
    ]


@pytest.mark.parametrize(
    ("data", "results", "message"),
    [
        ({"path": "a.png"}, [choices("label", "safe", "unsafe")], "annotation 1: 2 labels, safe, unsafe"),
        (
            {"path": "a.png"},
            [choices("label", "safe"), choices("categories", "Smoke, ash")],
            "calls 'a.png' safe, yet",
        ),
        (
            {"path": "a.png"},
            [choices("label", "unsafe"), choices("categories", "Smoke")],
            "did you mean 'Smoke, ash'",
        ),
        (
            {"path": "a.png"},
            [{"from_name": "label", "value": {"rectanglelabels": ["x"]}}],
            "expected choices, got",
        ),
        ({"path": "../a.png"}, [], r"task 1, annotation 1: '../a\.png' leads out of"),
        ({"image": "/data/local-files/?d=/etc/passwd"}, [], "leads out of"),
        ({"image": "/data/upload/1/abc-a.png"}, [], "nobody can know"),
        ({"image": "https://example.org/a.png"}, [], "nobody can know"),
        ({"image": "http://[::1/a.png"}, [], "nobody can know"),
        ({"image": 3}, [], "has neither `path` nor `image`"),
    ],
)
def test_wrong_tasks_are_named(
    folder: Folder, data: dict[str, Any], results: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        answers(folder, [{"data": data, "annotations": [annotation(1, *results)]}])


keys = st.sampled_from(["data", "annotations", "label", "choices", "path", "image", "email", "source"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["label", "a.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
results = st.fixed_dictionaries({}, optional={"from_name": st.just("label") | values, "value": values})
annotations = st.fixed_dictionaries(
    {},
    optional={
        "result": st.lists(results, max_size=2) | values,
        **dict.fromkeys(("completed_by", "created_at", "was_cancelled"), values),
    },
)
tasks = st.fixed_dictionaries({"data": values, "annotations": st.lists(annotations, max_size=2) | values})


@given(st.lists(tasks | values, max_size=2) | values)
@settings(max_examples=150)
def test_any_json_is_rows_or_one_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    try:
        found = list(read_export(path))
    except ConfigError:
        return
    assert all(isinstance(cell, str) for _, cells in found for cell in cells.values())
