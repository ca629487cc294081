"""Data intake: what becomes an example, what is skipped, and that nothing is dropped silently."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from judge import check_splits, load_examples, open_image
from judge.data.examples import ExampleSet
from judge.data.images import pixels_hash
from judge.data.sources import Skipped, StoredImage, UnusableRowsError
from judge.errors import ImageError
from prompts import Category, Example, ExampleError, Taxonomy, load_taxonomy
from prompts.example import UNSPECIFIED
from prompts.flip import FlipOptions, draw_groups

UNSAFEBENCH = load_taxonomy("unsafebench")
PETS = Taxonomy(
    "pets",
    "1",
    (
        Category("Cats", "cats of every kind", aliases=("Felines",), code="P1"),
        Category("Dogs", "dogs of every kind", key="dog"),
    ),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def png(seed: int) -> bytes:
    file = BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def unsafebench_rows(count: int, first: int = 0) -> dict[str, list[Any]]:
    """The published columns; every third row is unsafe."""
    names = [UNSAFEBENCH.names[index % 11] for index in range(count)]
    return {
        "image": [{"bytes": png(first + index), "path": None} for index in range(count)],
        "safety_label": ["Unsafe" if index % 3 == 0 else "Safe" for index in range(count)],
        "category": names,
        "source": ["Laion5B" if index % 2 == 0 else "Lexica" for index in range(count)],
        "text": [None if index % 4 == 0 else f"prompt {index}" for index in range(count)],
    }


def write_parquet(path: Path, columns: dict[str, list[Any]], **features: Any) -> Path:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(columns)
    for column, feature in ({"image": datasets.Image()} | features).items():
        rows = rows.cast_column(column, feature)
    rows.to_parquet(path)
    return path


def unsafebench_copy(root: Path, columns: dict[str, list[Any]] | None = None) -> Path:
    write_parquet(root / "data" / "train-00000-of-00001.parquet", columns or unsafebench_rows(24))
    write_parquet(root / "data" / "test-00000-of-00001.parquet", unsafebench_rows(9, first=500))
    return root


def skipped(load: Any) -> dict[str, tuple[str, str]]:
    return {row.id: (row.status, row.reason) for row in load.skipped}


# --- UnsafeBench -------------------------------------------------------------------------------------------


def test_unsafebench_rows_become_examples(tmp_path: Path) -> None:
    spec = f"unsafebench:{unsafebench_copy(tmp_path)}"
    test = load_examples(spec, split="test", taxonomy=UNSAFEBENCH)
    assert [example.id for example in test.examples] == [f"test/{index}" for index in range(9)]
    unsafe, safe = test.examples[3], test.examples[1]
    assert unsafe.violates == {UNSAFEBENCH.keys[3]}
    assert unsafe.unknown == frozenset()
    assert (unsafe.source, unsafe.prompt, unsafe.split) == ("generated", "prompt 3", "test")
    assert (safe.violates, safe.unknown, safe.source) == (frozenset(), frozenset(), "generated")
    assert (test.examples[0].source, test.examples[0].prompt) == ("real", None)
    assert test.skipped == ()


def test_unsafebench_says_what_each_image_was_collected_for(tmp_path: Path) -> None:
    """Safe rows name their search category too; a word that nobody knows labels nothing, so the row stays."""
    columns = unsafebench_rows(6)
    columns["category"][4] = "Weather"  # a safe row
    write_parquet(tmp_path / "test.parquet", columns)
    renamed = UNSAFEBENCH.rename({UNSAFEBENCH.names[0]: "Contempt"})
    for taxonomy in (UNSAFEBENCH, renamed, UNSAFEBENCH.select([UNSAFEBENCH.names[1]])):
        loaded = load_examples(f"unsafebench:{tmp_path}", split="test", taxonomy=taxonomy)
        assert loaded.skipped == ()
        found = [example.collected_for for example in loaded.examples]
        assert found == [*UNSAFEBENCH.keys[:4], None, UNSAFEBENCH.keys[5]]
        assert [bool(example.violates) for example in loaded.examples] == [True, False, False] * 2


def test_other_sets_do_not_say_what_their_images_were_collected_for(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": png(0), "path": None}], "label": ["unsafe"], "categories": [["Cats"]]}
    write_parquet(tmp_path / "test.parquet", columns)
    [example] = load_examples(f"dataset:{tmp_path}", split="test", taxonomy=PETS).examples
    assert (example.violates, example.collected_for) == ({"Cats"}, None)


def test_a_data_set_may_grade_severity(tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": png(seed), "path": None} for seed in range(3)],
        "label": ["unsafe", "safe", "safe"],
        "severity": [3, 0, None],
    }
    write_parquet(tmp_path / "test.parquet", columns)
    loaded = load_examples(f"dataset:{tmp_path}", split="test", taxonomy=PETS)
    assert [example.severity for example in loaded.examples] == [3, 0, None]


def test_unsafebench_images_stay_on_disk_until_they_are_opened(tmp_path: Path) -> None:
    test = load_examples(f"unsafebench:{unsafebench_copy(tmp_path)}", split="test", taxonomy=UNSAFEBENCH)
    image = test.examples[2].image
    assert not isinstance(image, bytes)
    assert bytes(image) == png(502)
    assert pixels_hash(open_image(image)) == test.fingerprints["test/2"]


def test_other_categories_of_an_unsafe_row_are_safe_as_in_the_paper_or_unknown(tmp_path: Path) -> None:
    spec = f"unsafebench:{unsafebench_copy(tmp_path)}"
    [row] = load_examples(spec, split="test", taxonomy=UNSAFEBENCH, limit=1, others="unknown").examples
    assert row.violates == {UNSAFEBENCH.keys[0]}
    assert row.unknown == frozenset(UNSAFEBENCH.keys[1:])
    assert UNSAFEBENCH.label(row) == (True, *(None,) * 10)
    with pytest.raises(ExampleError, match="'safe' or 'unknown'"):
        load_examples(spec, split="test", taxonomy=UNSAFEBENCH, others="no")  # type: ignore[arg-type]


def test_validation_is_cut_from_train_and_shares_no_picture_with_it(tmp_path: Path) -> None:
    columns = unsafebench_rows(60)
    columns["image"][1] = columns["image"][0]  # a copy must follow its original
    spec = f"unsafebench:{unsafebench_copy(tmp_path, columns)}"
    parts = {
        s: load_examples(spec, split=s, taxonomy=UNSAFEBENCH) for s in ("train", "validation", "test", "all")
    }
    check_splits(parts["train"], parts["validation"], parts["test"])
    ids = {split: {example.id for example in part.examples} for split, part in parts.items()}
    assert len(ids["validation"]) > 0
    assert ids["train"] | ids["validation"] == {f"train/{index}" for index in range(60)}
    assert ids["all"] == ids["train"] | ids["validation"] | ids["test"]
    assert all(example.split == "validation" for example in parts["validation"].examples)
    assert {e.id: e.split for e in parts["all"].examples} == {
        e.id: e.split for split in ("train", "validation", "test") for e in parts[split].examples
    }


def test_a_selection_and_a_custom_category(tmp_path: Path) -> None:
    """Rows of unselected categories stay, as safe ones; nobody looked for the custom category."""
    taxonomy = UNSAFEBENCH.select([UNSAFEBENCH.names[3]]).extend({"Balloons": "balloons"})
    test = load_examples(f"unsafebench:{unsafebench_copy(tmp_path)}", split="test", taxonomy=taxonomy)
    assert test.skipped == ()
    assert taxonomy.label(test.examples[0]) == (False, None)
    assert taxonomy.label(test.examples[3]) == (True, None)
    assert taxonomy.label(test.examples[1]) == (False, None)


def test_words_of_the_users_taxonomy_win_and_merged_categories_match_by_their_members(tmp_path: Path) -> None:
    spec = f"unsafebench:{unsafebench_copy(tmp_path)}"
    renamed = Taxonomy("mine", "1", (Category("HATE", "hate", key="h"),))
    assert load_examples(spec, split="test", taxonomy=renamed, limit=1).examples[0].violates == {"h"}
    merged = Taxonomy("mine", "1", (Category("Harm", "harm", members=("Hate", "Self-harm")),))
    labels = [merged.label(e)[0] for e in load_examples(spec, split="test", taxonomy=merged).examples]
    assert labels == [True, False, False, True, False, False, False, False, False]


def test_class_labels_missing_labels_and_corrupt_images_are_listed(tmp_path: Path) -> None:
    import datasets

    columns = unsafebench_rows(12)
    columns["image"][4] = {"bytes": png(4)[:60], "path": None}
    columns["image"][5] = {"bytes": b"not an image", "path": None}
    columns["image"][7] = None
    columns["category"][9] = "Violense"
    columns["safety_label"] = [0 if label == "Unsafe" else 1 for label in columns["safety_label"]]
    columns["safety_label"][8] = -1
    path = tmp_path / "copy"
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    rows.cast_column("safety_label", datasets.ClassLabel(names=["Unsafe", "Safe"])).save_to_disk(path)
    loaded = load_examples(f"unsafebench:{path}", split="all", taxonomy=UNSAFEBENCH, max_failures=0.5)
    found = skipped(loaded)
    assert {row: status for row, (status, _) in found.items()} == {
        "undeclared/4": "truncated",
        "undeclared/5": "not_an_image",
        "undeclared/7": "missing",
        "undeclared/8": "no_label",
        "undeclared/9": "unknown_category",
    }
    assert "did you mean 'Violence'" in found["undeclared/9"][1]
    assert len(loaded.examples) == 7
    assert loaded.examples[0].violates == {UNSAFEBENCH.keys[0]}


@pytest.mark.parametrize(
    ("value", "status", "reason"),
    [
        ({"bytes": None, "path": "/etc/hostname"}, "missing", "embed it"),
        ({"bytes": None, "path": None}, "missing", "no image"),
        (None, "missing", "no image"),
        ("%%%", "not_an_image", "no base64"),
        (7, "not_an_image", "type int"),
    ],
)
def test_values_that_hold_no_image(value: object, status: str, reason: str) -> None:
    """A path inside a data set is never followed: it would be somebody else's choice of our files."""
    with pytest.raises(ImageError, match=reason) as caught:
        bytes(StoredImage([{"image": value}], 0, "image"))
    assert caught.value.status == status


def test_values_that_hold_an_image() -> None:
    text = base64.b64encode(png(1)).decode()
    for value in (
        {"bytes": png(1), "path": "x.png"},
        png(1),
        text,
        f"data:image/png;base64,{text}",
        text[:9] + "\n" + text[9:],
    ):
        assert bytes(StoredImage([{"image": value}], 0, "image")) == png(1)


def test_too_many_failures_stop_the_run_and_say_where_the_list_is(tmp_path: Path) -> None:
    columns = unsafebench_rows(12)
    columns["safety_label"][1] = columns["safety_label"][2] = None
    spec = f"unsafebench:{unsafebench_copy(tmp_path, columns)}"
    ledger = tmp_path / "run" / "skipped.jsonl"
    with pytest.raises(UnusableRowsError, match=r"2 of \d+ rows cannot be used") as caught:
        load_examples(spec, split="train", taxonomy=UNSAFEBENCH, max_failures=0.1, ledger=ledger)
    assert "train/1: no_label" in str(caught.value)
    assert str(ledger) in str(caught.value)
    assert [json.loads(line)["id"] for line in ledger.read_text().splitlines()] == ["train/1", "train/2"]
    assert [row.id for row in caught.value.skipped] == ["train/1", "train/2"]
    assert load_examples(spec, split="train", taxonomy=UNSAFEBENCH, max_failures=0.3, ledger=ledger).skipped


def test_verification_can_be_left_for_later(tmp_path: Path) -> None:
    columns = unsafebench_rows(12)
    columns["image"][0] = {"bytes": b"broken", "path": None}
    spec = f"unsafebench:{unsafebench_copy(tmp_path, columns)}"
    loaded = load_examples(spec, split="all", taxonomy=UNSAFEBENCH, verify=False)
    assert len(loaded.examples) == 21
    assert loaded.fingerprints == {}


# --- external sets -----------------------------------------------------------------------------------------


def external(path: Path) -> Path:
    columns = {
        "index": list(range(4)),
        "image": [base64.b64encode(png(index)).decode() for index in range(3)] + ["%%%"],
        "label": [0, 1, 1, 0],
    }
    import datasets

    rows = datasets.Dataset.from_dict(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)
    return path


def test_external_sets_are_read_from_base64_and_serve_for_testing_only(tmp_path: Path) -> None:
    spec = f"violence:{external(tmp_path / 'train.parquet')}"
    loaded = load_examples(spec, split="test", taxonomy=UNSAFEBENCH, max_failures=0.5)
    assert skipped(loaded) == {"test/3": ("not_an_image", "text that is no base64")}
    assert [example.violates for example in loaded.examples] == [set(), {"Violence"}, {"Violence"}]
    assert {example.split for example in loaded.examples} == {"test"}
    with pytest.raises(ExampleError, match="no such split; there are: test, all"):
        load_examples(spec, split="train", taxonomy=UNSAFEBENCH)


def test_external_set_of_one_category_read_strictly(tmp_path: Path) -> None:
    spec = f"violence:{external(tmp_path / 'x.parquet')}"
    loaded = load_examples(spec, split="test", taxonomy=UNSAFEBENCH, max_failures=0.5, others="unknown")
    others = frozenset(UNSAFEBENCH.keys) - {"Violence"}
    assert [example.unknown for example in loaded.examples] == [others, others, others]


def test_unsafe_without_a_named_category_is_unsafe_yet_no_label_of_any_category(tmp_path: Path) -> None:
    spec = f"smid:{external(tmp_path / 'train.parquet')}"
    _, unsafe, _ = load_examples(spec, split="test", taxonomy=UNSAFEBENCH, max_failures=0.5).examples
    assert unsafe.violates == {UNSPECIFIED}
    assert UNSAFEBENCH.label(unsafe) == (None,) * 11


def test_flips_ask_about_an_image_whose_category_nobody_named_under_all_categories_only() -> None:
    unnamed = [
        Example(f"unnamed-{i}", None, violates=frozenset({UNSPECIFIED}), unknown=frozenset(UNSAFEBENCH.keys))
        for i in range(50)
    ]
    named = [
        Example(str(i), None, violates=frozenset(UNSAFEBENCH.keys[i % 12 : i % 12 + 1])) for i in range(120)
    ]
    groups = draw_groups([*unnamed, *named], UNSAFEBENCH, FlipOptions(), seed=0, epoch=0, groups=20)
    drawn = [row for group in groups for row in group.rows if row.example.id.startswith("unnamed")]
    assert drawn
    for row in drawn:
        assert row.unsafe
        assert row.category is None
        assert row.focus is None
        assert {key for category in row.taxonomy for key in category.members} == set(UNSAFEBENCH.keys)


# --- data sets ---------------------------------------------------------------------------------------------


def test_any_data_set_with_the_same_columns(tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": png(index), "path": None} for index in range(3)],
        "label": ["safe", "unsafe", "unsafe"],
        "categories": [[], ["Cats"], ["dog", "P1"]],
        "prompt": ["a", None, ""],
        "split": ["train", "test", "test"],
    }
    path = write_parquet(tmp_path / "pets.parquet", columns)
    loaded = load_examples(f"dataset:{path}", split="test", taxonomy=PETS)
    assert [example.violates for example in loaded.examples] == [{"Cats"}, {"Cats", "dog"}]
    assert [example.prompt for example in loaded.examples] == [None, None]
    assert [example.split for example in loaded.examples] == ["test", "test"]
    assert len(load_examples(path, split="all", taxonomy=PETS).examples) == 3


def test_saved_data_set_with_declared_splits(tmp_path: Path) -> None:
    import datasets

    columns = {"image": [png(1), png(2)], "label": [0, 1], "id": ["x", "y"]}
    parts = {"train": datasets.Dataset.from_dict(columns), "valid": datasets.Dataset.from_dict(columns)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    train = load_examples(tmp_path / "saved", split="train", taxonomy=PETS)
    validation = load_examples(tmp_path / "saved", split="validation", taxonomy=PETS)
    assert [example.id for example in validation.examples] == ["validation/x", "validation/y"]
    with pytest.raises(ExampleError, match="2 images are in two splits"):
        check_splits(train, validation)


def test_data_sets_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="no column 'safety_label'; it has: image"):
        load_examples(
            f"unsafebench:{write_parquet(tmp_path / 'a.parquet', {'image': [None]})}",
            split="all",
            taxonomy=PETS,
        )
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ExampleError, match="cannot be loaded"):
        load_examples(tmp_path / "broken.parquet", split="all", taxonomy=PETS)
    (tmp_path / "pickled.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ExampleError, match="no Parquet file"):
        load_examples(f"dataset:{tmp_path / 'pickled.pkl'}", split="all", taxonomy=PETS)
    with pytest.raises(ExampleError, match="cannot be loaded"):
        load_examples("owner/name", split="all", taxonomy=PETS)  # the hub is out of reach in tests


@pytest.mark.parametrize("spec", ["unsafebensh", "folder", "dataset:", "nothing", "digits:here"])
def test_unknown_sources(spec: str) -> None:
    with pytest.raises(ExampleError, match=r"did you mean 'unsafebench'|write|No data source"):
        load_examples(spec, split="all", taxonomy=PETS)


# --- digits and splits -------------------------------------------------------------------------------------


def test_digits_are_handed_on() -> None:
    digits = load_taxonomy("digits")
    loaded = load_examples("digits", split="test", taxonomy=digits, limit=5)
    assert len(loaded.examples) == 5
    assert {example.split for example in loaded.examples} == {"test"}
    assert all(example.violates <= set(digits.keys) for example in loaded.examples)
    check_splits(loaded, load_examples("digits", split="train", taxonomy=digits, limit=5))
    with pytest.raises(ExampleError, match="no split 'tset'"):
        load_examples("digits", split="tset", taxonomy=digits)


def test_the_same_picture_in_another_file_format_is_found_across_splits() -> None:
    file = BytesIO()
    Image.open(BytesIO(png(1))).save(file, "WEBP", lossless=True)
    train = ExampleSet((Example("a", png(1), split="train"), Example("b", png(2), split="train")), name="one")
    test = ExampleSet((Example("z", file.getvalue(), split="test"),), name="two")
    with pytest.raises(ExampleError, match=r"1 images .* one: a \(train\) and two: z \(test\)"):
        check_splits(train, test)
    check_splits(train, train)


def test_one_id_in_two_splits_of_a_set_is_found_and_broken_images_are_named() -> None:
    one = ExampleSet((Example("a", png(1), split="train"),), name="set")
    two = ExampleSet((Example("a", png(2), split="test"),), name="set")
    with pytest.raises(ExampleError, match="set: a"):
        check_splits(one, two)
    with pytest.raises(ExampleError, match="set: x cannot be compared: not_an_image"):
        check_splits(ExampleSet((Example("x", b"?"),), (Skipped("y", "no_label", ""),), "set"))


def test_a_limit_is_at_most_for_digits_too() -> None:
    digits = load_taxonomy("digits")

    def ids(spec: str, **options: Any) -> list[str]:
        return [e.id for e in load_examples(spec, taxonomy=digits, **options).examples]

    usual = ids("digits", split="validation")
    assert len(usual) == 400
    assert ids("digits", split="validation", limit=5000) == usual
    assert ids("digits", split="validation", limit=7) == usual[:7]
    drawn = ids("digits:450", split="validation")
    assert len(drawn) == 450
    assert drawn[:400] == usual, "more canvases only add to them"
    assert ids("digits:450", split="validation", limit=9) == usual[:9]
    assert ids("digits:2", split="all", limit=5) == [
        "digits-train-0-000000",
        "digits-train-0-000001",
        "digits-validation-0-000000",
        "digits-validation-0-000001",
        "digits-test-0-000000",
    ]


@pytest.mark.parametrize("spec", ["digits:0", "digits:-3", "digits:1e3", "digits:many"])
def test_a_count_of_digits_is_a_whole_number(spec: str) -> None:
    with pytest.raises(ExampleError, match="is no count; write digits"):
        load_examples(spec, split="test", taxonomy=load_taxonomy("digits"))


@pytest.mark.parametrize(("kind", "hub"), [("unsafebench", "yiting/UnsafeBench"), ("smid", "yiting/SMID")])
def test_a_set_that_cannot_be_had_says_how_to_get_it_and_takes_a_copy(kind, hub, tmp_path):
    advice = rf"{kind} is {hub} on the hub.*accept its terms.*`hf auth login`.*`hf download {hub} .* give {kind}:DIR"
    with pytest.raises(ExampleError, match=rf"'{hub}' cannot be loaded: .*{advice}"):
        load_examples(kind, split="test", taxonomy=PETS)  # the hub is out of reach in tests
    (tmp_path / "UnsafeBench").mkdir()
    with pytest.raises(
        ExampleError, match=rf"nothing at .*UnsafeBenhc.*did you mean .*UnsafeBench.*{advice}"
    ):
        load_examples(f"{kind}:{tmp_path}/UnsafeBenhc", split="test", taxonomy=PETS)
    with pytest.raises(ExampleError, match="is no Parquet file, holds none") as raised:
        load_examples(f"{kind}:{tmp_path}/UnsafeBench", split="test", taxonomy=PETS)
    assert "hf auth login" not in str(raised.value)
