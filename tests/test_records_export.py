"""Decisions as training rows: read back as examples, by a recipe and by `arbiter calibrate`."""

import csv
import io
import json
import stat
from contextlib import suppress

import numpy as np
import pytest
from fixtures_shapes import draw_shapes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from judge import check_splits, load_examples
from judge.data.folders import FolderReader
from judge.data.sources import Row
from judge.errors import ConfigError
from judge.records.decision_table import _cell, begins_formula
from judge.records.entries import Decision, Item, NewItem, Ruling
from judge.records.export import _Row, _table, export_folder, label_keys, label_word, split_of
from prompts import load_taxonomy
from prompts.errors import ExampleError
from prompts.example import UNSPECIFIED
from prompts.printable import printable
from prompts.reading import clean
from prompts.taxonomy import Category, Taxonomy

CANNABIS = "Cannabis; leaves"
RULING = Ruling("agree", "unsafe", ("Knives",))


def encoded(seed, kind="PNG", size=(12, 10)):
    """The bytes of a small picture, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return written.getvalue()


@pytest.fixture
def decide(records, own_taxonomy, make_row):
    """`decide(data, "unsafe", ["Gore"], prompt=None, taxonomy=...)` puts an image into the queue and decides it."""

    def add(data, status, categories=(), prompt=None, taxonomy=own_taxonomy, name="a.png"):
        [item] = records.add_items([NewItem(data, name, prompt)])
        row = make_row([0.9, 0.1, 0.2], sha256=item.sha256)
        row["taxonomy"]["hash"] = taxonomy.hash
        verdict = records.add_verdict(item.id, row, taxonomy)
        if status is None:
            return records.decide(item.id, verdict.id, "skip", moderator="m")
        same = status == "unsafe" and tuple(categories) == ("Knives",)
        action = "agree" if same else "overrule"
        return records.decide(
            item.id, verdict.id, action, status=status, categories=list(categories), moderator="m"
        )

    return add


def examples_of(folder, table="", taxonomy="taxonomy.yaml", split="all"):
    """The rows of an export as data sets read them: file content -> example."""
    where = folder / table if table else folder
    found = load_examples(
        f"folder:{where}", split=split, taxonomy=load_taxonomy(folder / taxonomy), max_failures=0
    )
    return {example.image.read_bytes(): example for example in found.examples}


def test_decisions_become_examples(records, decide, own_taxonomy, tmp_path):
    images = [encoded(seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP"))]
    decide(images[0], "unsafe", ["Knives"], prompt="=SUM(A1) and\n'more', \u00e4")
    decide(images[1], "safe")
    decide(images[2], "unsafe", [CANNABIS, "Gore"])
    decide(images[3], "unsafe", [])
    decide(images[4], None)
    exported = export_folder(records, tmp_path / "out")
    assert exported.rows == 4
    assert exported.left_out == []
    found = examples_of(tmp_path / "out")
    assert [found[image].violates for image in images[:4]] == [
        {"Knives"},
        set(),
        {"cannabis", "Gore"},
        {UNSPECIFIED},
    ]
    assert found[images[0]].prompt.lstrip() == "=SUM(A1) and\n'more', \u00e4"
    assert load_taxonomy(tmp_path / "out" / "taxonomy.yaml").hash == own_taxonomy.hash
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["action"], row["judged"], row["label"]) for row in rows] == [
        ("agree", "unsafe", "unsafe"),
        ("overrule", "unsafe", "safe"),
        ("overrule", "unsafe", "unsafe"),
        ("overrule", "unsafe", "unsafe"),
    ]
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t"))]
    suffixes = sorted(path.suffix for path in (tmp_path / "out" / "images").iterdir())
    assert suffixes == [".gif", ".jpg", ".png", ".webp"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert sum(about["tables"]["labels.csv"].values()) == 4


def test_the_latest_decision_counts(records, decide, tmp_path):
    image, other = encoded(1), encoded(2)
    decide(image, "unsafe", ["Knives"])
    decide(image, "safe")
    decide(image, "unsafe", ["Gore"], prompt="a knife")
    decide(other, "safe")
    decide(other, None)
    export_folder(records, tmp_path / "out")
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        rows = [(row["prompt"], row["label"]) for row in csv.DictReader(file)]
    assert rows == [("", "safe"), ("a knife", "unsafe")], "and a skip takes back what was said before"


def test_copies_in_another_format_are_one_image(records, decide, tmp_path):
    as_png, as_bmp = encoded(1), encoded(1, "BMP")
    decide(as_png, "unsafe", ["Knives"])
    decide(as_bmp, "safe")
    assert export_folder(records, tmp_path / "out").rows == 1
    assert [example.violates for example in examples_of(tmp_path / "out").values()] == [set()]


@pytest.mark.parametrize("images", [3, 40])
def test_equal_pixels_are_in_one_split_in_every_export(records, decide, tmp_path, images):
    for seed in range(images):
        decide(encoded(seed, "PNG"), "safe")
        decide(encoded(seed, "BMP"), "safe", prompt="the same, with a prompt")
    first = export_folder(records, tmp_path / "first")
    assert first.rows == 2 * images
    assert len(list((tmp_path / "first" / "images").iterdir())) == images
    taxonomy = load_taxonomy(tmp_path / "first" / "taxonomy.yaml")
    sets = []
    for part in ("train", "validation", "test"):
        with suppress(ExampleError):  # few images leave a split empty
            sets.append(load_examples(f"folder:{tmp_path / 'first'}", split=part, taxonomy=taxonomy))
    check_splits(*sets)
    assert sum(len(one.examples) for one in sets) == 2 * images
    decide(encoded(99), "safe")
    export_folder(records, tmp_path / "second")
    first_split = {data: example.split for data, example in examples_of(tmp_path / "first").items()}
    second_split = {data: example.split for data, example in examples_of(tmp_path / "second").items()}
    if images == 40:  # all splits are declared, so that none is made from another
        assert all(first.tables["labels.csv"].values())
        assert first_split.items() <= second_split.items()


@given(st.binary(min_size=32, max_size=32))
def test_a_split_is_a_share_of_the_hash(pixels):
    share = int.from_bytes(pixels) / 2**256
    expected = "train" if share < 0.8 else "validation" if share < 0.9 else "test"
    assert split_of(pixels.hex()) == expected


def test_several_taxonomies_have_a_table_each(records, decide, own_taxonomy, tmp_path):
    other = own_taxonomy.reword({"Gore": "blood, drawn or real"})
    image = encoded(1)
    decide(image, "unsafe", ["Knives"])
    decide(image, "safe", taxonomy=other)
    exported = export_folder(records, tmp_path / "out")
    names = {taxonomy.hash[:16] for taxonomy in (own_taxonomy, other)}
    assert set(exported.tables) == {f"labels-{name}.csv" for name in names}
    for taxonomy, violated in ((own_taxonomy, {"Knives"}), (other, set())):
        name = taxonomy.hash[:16]
        found = examples_of(tmp_path / "out", f"labels-{name}.csv", f"taxonomy-{name}.yaml")
        assert {frozenset(example.violates) for example in found.values()} == {frozenset(violated)}
        assert load_taxonomy(tmp_path / "out" / f"taxonomy-{name}.yaml").hash == taxonomy.hash


def test_what_cannot_be_a_row_is_listed(records, decide, tmp_path):
    frames = [Image.new("RGB", (9, 9), (shade, 0, 0)) for shade in (0, 200)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:], duration=50)
    decide(moving.getvalue(), "unsafe", ["Gore"], name="moving.gif")
    decide(encoded(3)[:80], "safe", name="half.png")
    deleted = decide(encoded(4), "safe", name="deleted.png", prompt="private")
    kept = decide(encoded(4), "safe", name="kept.png")
    records.delete_item(deleted.item.id)
    exported = export_folder(records, tmp_path / "out")
    assert exported.rows == 1
    assert {left["name"]: left["reason"].split(":")[0] for left in exported.left_out} == {
        "moving.gif": "animated",
        "half.png": "truncated",
        "deleted.png": "its item was deleted",
    }
    assert "private" not in (tmp_path / "out" / "labels.csv").read_text()
    assert {path.stem for path in (tmp_path / "out" / "images").iterdir()} == {kept.item.sha256}


def test_an_export_overwrites_nothing(records, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"")
    with pytest.raises(ConfigError, match="no empty folder"):
        export_folder(records, tmp_path / "out")
    with pytest.raises(ConfigError, match="no empty folder"):
        export_folder(records, tmp_path / "out" / "mine")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert export_folder(records, tmp_path / "empty").rows == 0


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.text(
    "=+-@\t\r\n\"',; a\uff1d", max_size=8
)


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_any_prompt_survives_the_table(own_taxonomy, make_row, tmp_path_factory, prompts):
    """As classifiers read it; and no spreadsheet computes it."""
    row = make_row([0.9, 0.1, 0.2])
    rows = [
        _Row(
            Decision(n, Item(n, "a", "0" * 64, text or None, "decided", ""), n, row, RULING, None, "m", ""),
            own_taxonomy.hash,
            "images/a.png",
            "train",
        )
        for n, text in enumerate(prompts)
    ]
    folder = tmp_path_factory.mktemp("table")
    (folder / "labels.csv").write_bytes(_table(rows, label_keys(own_taxonomy)).encode())
    found = list(FolderReader(folder).rows("train"))
    assert [clean(row.prompt).text for row in found] == [clean(text).text for text in prompts]
    assert not [row.prompt for row in found if begins_formula(row.prompt)]


@given(TEXT | st.integers() | st.none() | st.floats())
def test_no_cell_of_the_log_is_a_formula(value):
    cell = _cell(value)
    assert not begins_formula(cell)
    assert cell == printable(cell), "on one line, without control characters"
    assert cell.removeprefix("'") == printable("" if value is None else value).removeprefix("'")


WORD = st.text("ab;,. =", min_size=1, max_size=4).map(lambda text: " ".join(text.split())).filter(bool)


@given(
    st.lists(
        st.tuples(WORD, WORD, WORD, st.booleans()), min_size=1, max_size=5, unique_by=lambda given: given[0]
    ),
    st.data(),
)
def test_every_category_is_read_back_by_its_label(entries, data):
    """Whatever names, keys and codes a moderator chose, and whether it merges others."""
    from judge.data.labels import Labels

    try:
        taxonomy = Taxonomy(
            "t",
            "1",
            tuple(
                Category(name, "x", key=key, code=code, members=("other a", "other b") if merges else ())
                for name, key, code, merges in entries
            ),
        )
    except ValueError:
        return
    readable = label_keys(taxonomy)
    assert readable.hash == taxonomy.hash
    labels = Labels(readable, "safe")
    chosen = data.draw(st.lists(st.sampled_from(readable.categories), min_size=1, unique=True))
    cell = " " + ";".join(label_word(category) for category in chosen)
    assert labels.example(Row("1", b"", "train", "unsafe", cell)).violates == {c.key for c in chosen}


@pytest.fixture(scope="module")
def exported_shapes(tmp_path_factory, shapes):
    """Pictures of shapes, decided by a moderator who is always right, exported: data for a recipe."""
    from judge.records.records import Records
    from judge.verdicts.rows import Judging, verdict_row
    from prompts.verdict import verdict_from_scores

    home = tmp_path_factory.mktemp("moderated")
    taxonomy = load_taxonomy(shapes.taxonomy)
    records = Records.in_folder(home / "state")
    rng, judging = np.random.default_rng(5), Judging(taxonomy, 0.5, "fake")
    for number in range(160):
        keys = [str(key) for key in rng.choice(taxonomy.keys, size=number % 3, replace=False)]
        written = io.BytesIO()
        draw_shapes(keys, rng).save(written, "PNG")
        [item] = records.add_items(
            [NewItem(written.getvalue(), f"{number}.png", f"drawing {number}" * (number % 2))]
        )
        shown = [c.name for c in taxonomy if c.key in keys]
        scores = [0.9 if c.key in keys else 0.1 for c in taxonomy]
        if number % 4 == 0:  # the judge errs
            scores = [1 - score for score in scores]
        verdict = verdict_from_scores(max(scores), scores, taxonomy)
        row = verdict_row(verdict, judging, time="", path=item.name, image_hash=item.sha256)
        stored = records.add_verdict(item.id, row, taxonomy)
        words = {"status": "unsafe" if shown else "safe", "categories": shown}
        action = "overrule" if number % 4 == 0 else "agree"
        records.decide(item.id, stored.id, action, moderator="m", **words)
    exported = export_folder(records, home / "rows")
    records.close()
    assert exported.rows == 160
    assert all(exported.tables["labels.csv"].values())
    return home / "rows"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_recipe")
def test_a_recipe_trains_on_decisions(exported_shapes, run_recipe, base_folder, tmp_path):
    from fixtures_shapes import TRAINER_OPTIONS

    from judge.runs.folder import RunDir

    (tmp_path / "small.yaml").write_text("flip: {group_size: 4, max_categories: 2}\n")
    run_recipe(
        "lora_llava",
        config=tmp_path / "small.yaml",
        model_name_or_path=base_folder(),
        dataset=f"folder:{exported_shapes}",
        taxonomy=exported_shapes / "taxonomy.yaml",
        held_out="corner",
        output_dir=tmp_path / "judge",
        groups_per_epoch=50,
        test_rows=4,
        judge_batch_size=32,
        **TRAINER_OPTIONS | {"max_steps": 1},
    )
    run = RunDir.open(tmp_path / "judge", kind="vlm")
    assert run.config["dataset"] == f"folder:{exported_shapes}"
    assert 0 <= run.metrics["after"]["f1"] <= 1


def test_thresholds_are_calibrated_on_decisions(exported_shapes, monkeypatch, capsys, tmp_path):
    import judge
    from judge.calibration.thresholds import load_thresholds
    from judge.protocol import Scores
    from judge.serve import cli

    class Guess:
        name, default_taxonomy = "guess", None

        def score(self, images, prompts, taxonomy):
            means = np.array([np.asarray(image, dtype=float).mean() / 255 for image in images])
            return Scores(means, np.tile(means[:, None], (1, len(taxonomy))), (None,) * len(images))

    monkeypatch.setattr(judge, "load_classifier", lambda *_, **__: Guess(), raising=False)
    out = tmp_path / "thresholds.yaml"
    words = ["calibrate", "--judge", "guess", "--data", f"folder:{exported_shapes}", "--split", "all"]
    assert cli.main([*words, "--taxonomy", str(exported_shapes / "taxonomy.yaml"), "--out", str(out)]) == 0
    fitted = load_thresholds(out).thresholds
    taxonomy = load_taxonomy(exported_shapes / "taxonomy.yaml")
    assert set(fitted) == set(taxonomy.names)
    assert {one.unsafe + one.safe for one in fitted.values()} == {160}
