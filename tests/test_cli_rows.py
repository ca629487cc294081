"""Rows of `arbiter judge --json` against docs/verdict_row.schema.json, with a small checker of our own."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import judge
from judge.protocol import Scores
from judge.runs.folder import RunDir
from judge.runs.references import fingerprint
from judge.serve.cli import main
from judge.verdicts.rows import Judging, verdict_row
from prompts import Taxonomy, load_taxonomy
from prompts.verdict import Verdict, verdict_from_scores

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "verdict_row.schema.json").read_text("utf-8"))
DIGITS = load_taxonomy("digits")
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "string": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
CHECKED = {
    *("type", "enum", "const", "pattern", "minimum", "maximum", "required", "properties"),
    *("additionalProperties", "allOf", "if", "then"),
}
SAID = {"$schema", "title", "description"}


def wrong(value: Any, schema: dict[str, Any], at: str = "row") -> Iterator[str]:
    """What of a value breaks a schema, for the keywords in CHECKED."""
    assert schema.keys() <= CHECKED | SAID, "the checker knows no other keyword"
    kinds = schema.get("type", list(TYPES))
    allowed = [kind for name in ([kinds] if isinstance(kinds, str) else kinds) for kind in TYPES[name]]
    if not isinstance(value, tuple(allowed)) or (isinstance(value, bool) and bool not in allowed):
        yield f"{at}: {value!r} is not of {kinds}"
        return
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{at}: {value!r} is not allowed"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at}: {value!r} does not match"
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get(
        "maximum", value
    ):
        yield f"{at}: {value!r} is out of range"
    if isinstance(value, dict):
        yield from (f"{at}: no {name}" for name in schema.get("required", ()) if name not in value)
        named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, part in value.items():
            deeper = named.get(name, others if isinstance(others, dict) else {})
            yield from wrong(part, deeper, f"{at}.{name}")
    for part in schema.get("allOf", ()):
        if not [*wrong(value, part["if"], at)]:
            yield from wrong(value, part["then"], at)


class ColourJudge:
    """Red is the first category, green the second; a blue image cannot be judged."""

    name = "colours"
    default_taxonomy = DIGITS

    def score(self, images: Sequence[Image.Image], prompts: Any, taxonomy: Taxonomy) -> Scores:
        colours = np.array([image.getpixel((0, 0)) for image in images], dtype=float).reshape(-1, 3) / 255
        categories = np.zeros((len(images), len(taxonomy)))
        categories[:, :2] = colours[:, :2]
        categories[colours[:, 2] > 0] = np.nan
        reasons = tuple("too blue" if blue else None for blue in colours[:, 2] > 0)
        return Scores(categories.max(axis=1), categories, reasons)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "load_classifier", lambda *_, **__: ColourJudge(), raising=False)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, *colour: int) -> Path:
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)  # type: ignore[arg-type]
        return tmp_path / name

    return make


def test_a_row_of_every_status_follows_the_schema(
    colours: None, picture: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((0, 0, 0), (250, 0, 0), (0, 90, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("no picture")
    files = [picture("safe.png", 9, 9, 0), picture("red.png", 255, 0, 0), picture("blue.png", 0, 0, 9)]
    files += [tmp_path / "moving.gif", tmp_path / "text.png", tmp_path / "gone.png"]
    assert main(["judge", *map(str, files), "--judge", "r", "--json", "--threshold", "three=0.9"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["status"] for row in rows] == ["safe", "unsafe", "unjudged", "unsafe", "unjudged", "unjudged"]
    for row in rows:
        assert [*wrong(row, SCHEMA)] == []
        assert row["thresholds"] == {**dict.fromkeys(DIGITS.names, 0.5), "three": 0.9}
        assert row["taxonomy"] == {"name": "digits", "version": DIGITS.version, "hash": DIGITS.hash}
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files[:-1]]
    assert [row["image"]["sha256"] for row in rows] == [*hashes, None]
    assert rows[3]["image"]["frame"] == "frame 2 of 3, the worst of 3 judged"
    assert rows[1]["flags"][DIGITS.names[0]] is True
    assert list(rows[1]["flags"].values()).count(True) == 1


def test_the_model_is_named_by_its_content(
    colours: None, picture: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir.create(tmp_path / "run", kind="student")
    (run.path / "head.safetensors").write_bytes(b"weights")
    for name, known in ((str(run.path), fingerprint(run.path)), ("http://127.0.0.1:9/v1#m", None)):
        main(["judge", str(picture("a.png", 0, 0, 0)), "--judge", name, "--json"])
        assert json.loads(capsys.readouterr().out)["model"] == {"name": "colours", "sha256": known}


number = st.floats(0, 1) | st.just(float("nan"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    scores=st.lists(number, min_size=3, max_size=3),
    limits=st.floats(0, 1) | st.dictionaries(st.sampled_from(DIGITS.names[:3]), st.floats(0, 1)),
    path=st.none() | st.text(),
)
def test_any_verdict_follows_the_schema(
    scores: list[float], limits: float | dict[str, float], path: str | None
) -> None:
    taxonomy = DIGITS.select(DIGITS.names[:3])
    known = [score for score in scores if score == score]
    whole = max(known) if known else float("nan")
    verdict = verdict_from_scores(whole, scores, taxonomy, threshold=limits, model="m")
    row = verdict_row(verdict, Judging(taxonomy, limits, "m"), time="2026-01-01T00:00:00+00:00", path=path)
    assert [*wrong(json.loads(json.dumps(row, allow_nan=False)), SCHEMA)] == []


def test_the_checker_finds_what_is_wrong() -> None:
    """And the schema asks for every key that a row has."""
    verdict = Verdict("safe", 0.1, taxonomy=DIGITS.hash)
    row = verdict_row(verdict, Judging(DIGITS), time="2026-01-01T00:00:00+00:00")
    assert SCHEMA["required"] == list(row) == list(SCHEMA["properties"])
    broken = [
        *({key: value for key, value in row.items() if key != missing} for missing in row),
        *({**row, key: 1.5} for key in row),
        {**row, "status": "unjudged"},
        {**row, "status": "unsafe"},
        {**row, "status": "fine"},
        {**row, "flagged": None},
        {**row, "unsafe": True},
        {**row, "category": "three"},
        {**row, "model": {"name": "m"}},
        {**row, "image": {**row["image"], "sha256": "0" * 63}},
        {**row, "flags": {"three": 1}},
        {**row, "time": "2026-01-01T00:00:00"},
    ]
    assert all([*wrong(one, SCHEMA)] for one in broken)
    assert [*wrong({**row, "new": 1}, SCHEMA)] == []
