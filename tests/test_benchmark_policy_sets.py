"""Other people's policy tests: which rows become questions, with which policy, truth and pair."""

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_policy_sets import (
    AREAS,
    LOOSE,
    STRICT,
    bundle,
    data_url,
    edit_row,
    guard_prompt,
    guard_row,
    png,
    shift_row,
    write_json_lines,
    write_parquet,
)
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmark.policy_sets import shift_groups
from eval.benchmark.sets import POLICY_SETS, PolicySet, load_policy_set
from eval.benchmark.sets.rows import PolicyRow, policy_set
from eval.benchmark.sets.texts import category, one_line, policy
from eval.metrics.judged import JudgedRow, pairs_correct
from eval.questions import Question
from judge import open_image
from judge.data.labels import UnusableRowError
from judge.data.sources import UnusableRowsError
from prompts import ExampleError

A, B = "Policy A (Loose)", "Policy B (Strict / No Pets)"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def skipped(found: PolicySet) -> dict[str, tuple[str, str]]:
    return {row.id: (row.status, row.reason) for row in found.skipped}


def shift_copy(root: Path) -> Path:
    write_parquet(root / "id_test.parquet", [shift_row(0, 1, A, "pass"), shift_row(0, 1, B, "block")])
    write_parquet(root / "ood_test.parquet", [shift_row(1, 2, B, "block"), shift_row(1, 1, B, "pass")])
    write_parquet(root / "sft.parquet", [shift_row(9, 1, A, "pass")])
    return root


# --- PolicyShiftBench --------------------------------------------------------------------------------------


def test_a_policy_and_its_label_become_a_question(tmp_path: Path) -> None:
    found = load_policy_set(f"policyshiftbench:{shift_copy(tmp_path)}")
    assert (len(found.questions), found.skipped) == (4, ())
    safe, unsafe = found.questions[:2]
    assert [question.row.unsafe for question in found.questions] == [False, True, True, False]
    [category_] = unsafe.row.taxonomy
    assert (unsafe.row.taxonomy.name, category_.name, unsafe.row.category) == (B, AREAS[1], AREAS[1])
    assert category_.definition == "A strict standard. Principle: ”No pets.” NOT ALLOWED: - Dogs - Cats"
    assert (unsafe.row.arm, safe.row.arm, safe.row.category) == ("keep", "flip", None)
    assert safe.row.example is unsafe.row.example
    assert safe.row.example.violates == {category_.key}
    assert open_image(safe.row.example.image).tobytes() == open_image(png(0)).tobytes()
    for question in found.questions:
        assert question.row.taxonomy.label(question.row.example) == (question.row.unsafe,)
    # Under a policy that an image was not asked about, its label is unknown.
    [plants] = found.questions[2].row.taxonomy.keys
    assert safe.row.example.unknown == {plants}
    assert found.facts[unsafe.id]["tier"] == "policy_discriminative"
    assert found.facts[unsafe.id]["violated_categories"] == [1]


def test_one_image_under_two_policies_of_one_area_is_a_pair(tmp_path: Path) -> None:
    found = load_policy_set(f"policyshiftbench:{shift_copy(tmp_path)}")
    safe, unsafe, *others = found.questions
    assert safe.pair == unsafe.pair is not None
    assert safe.direction == unsafe.direction == "safe_to_unsafe"  # the safe row stands first
    # Image 1 has opposite labels too, but in two areas.
    assert [question.pair for question in others] == [None, None]


def test_splits_are_read_by_name_and_test_is_both(tmp_path: Path) -> None:
    spec = f"policyshiftbench:{shift_copy(tmp_path)}"
    counts = {
        split: len(load_policy_set(spec, split).questions) for split in ("id_test", "ood_test", "sft", "all")
    }
    assert counts == {"id_test": 2, "ood_test": 2, "sft": 1, "all": 5}
    with pytest.raises(ExampleError, match="no split 'rl'; there are: id_test, ood_test, sft, all"):
        load_policy_set(spec, "rl")


def test_small_copies_of_a_split_are_splits_of_their_own(tmp_path: Path) -> None:
    for index, name in enumerate(("id_test", "id_test_mini", "sft", "sft_think")):
        write_parquet(tmp_path / f"{name}-00000-of-00001.parquet", [shift_row(index, 1, A, "pass")])
    spec = f"policyshiftbench:{tmp_path}"
    images = {
        name: load_policy_set(spec, name).questions[0].row.example.id
        for name in ("id_test_mini", "sft_think")
    }
    assert images == {"id_test_mini": "1", "sft_think": "3"}
    assert len(load_policy_set(spec).questions) == 1


def test_a_row_can_be_asked_under_the_whole_bundle(tmp_path: Path) -> None:
    write_parquet(tmp_path / "id_test.parquet", [shift_row(0, 1, B, "block"), shift_row(0, 1, A, "pass")])
    unsafe, safe = load_policy_set(f"policyshiftbench:{tmp_path}", form="bundle").questions
    assert unsafe.row.taxonomy.names == (AREAS[1], AREAS[2])
    assert [c.code for c in unsafe.row.taxonomy] == ["01", "02"]
    assert (unsafe.row.unsafe, unsafe.row.category, safe.row.unsafe) == (True, AREAS[1], False)
    assert unsafe.row.taxonomy.label(unsafe.row.example) == (True, False)
    # The same policy has the same key in every row, alone or in a bundle.
    alone = load_policy_set(f"policyshiftbench:{tmp_path}").questions[0].row.taxonomy
    assert unsafe.row.taxonomy.keys[0] == alone.keys[0]
    assert unsafe.row.taxonomy.keys[1] == safe.row.taxonomy.keys[1]


def test_json_lines_with_files_and_base64(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    rows = [
        shift_row(0, 1, A, "pass", image="a.png"),
        shift_row(1, 1, A, "pass", image=data_url(png(1))),
        shift_row(2, 1, A, "pass", image=data_url(png(2)).split(",")[1]),
        shift_row(3, 1, A, "pass", image="../a.png"),
        shift_row(4, 1, A, "pass", image="/etc/hosts"),
        shift_row(5, 1, A, "pass", image="no-such.png"),
        shift_row(6, 1, A, "pass", image=None),
    ]
    write_json_lines(tmp_path / "set" / "id_test.jsonl", rows[3:])
    write_json_lines(tmp_path / "id_test.jsonl", rows)
    (tmp_path / "stats.json").write_text("{}")  # belongs to the published folder, and is no table
    found = load_policy_set(f"policyshiftbench:{tmp_path / 'id_test.jsonl'}", max_failures=1)
    pictures = [open_image(q.row.example.image).tobytes() for q in found.questions]
    assert pictures == [open_image(png(seed)).tobytes() for seed in range(3)]
    assert [status for status, _ in skipped(found).values()] == [
        "outside_folder",
        "outside_folder",
        "bad_row",
        "missing",
    ]
    assert len(load_policy_set(f"policyshiftbench:{tmp_path}", max_failures=1).questions) == 3


def test_damaged_rows_are_listed_with_reasons(tmp_path: Path) -> None:
    good = [shift_row(0, 1, A, "pass"), shift_row(0, 1, B, "block")]
    damaged = {
        "no_label": shift_row(1, 1, A, ""),
        "bad_label": shift_row(2, 1, A, "maybe", violated_categories=[]),
        "contradictory_label": shift_row(3, 1, A, "pass", violated_categories=[2]),
        "bad_policy": shift_row(4, 1, A, "pass", policy_description="<image> " + LOOSE),
    }
    others = [
        shift_row(5, 1, A, "block", violated_categories=[2]),  # blocked by the bundle's other policy
        shift_row(6, 1, A, "pass", policy_description="long " * 500),
        shift_row(7, 1, A, "pass", section_title=""),
        shift_row(0, 1, A, "pass"),  # a second time
        shift_row(8, 1, A, "pass", image=b"no image"),
    ]
    write_parquet(tmp_path / "id_test.parquet", [*good, *damaged.values(), *others])
    ledger = tmp_path / "skipped.jsonl"
    found = load_policy_set(f"policyshiftbench:{tmp_path}", max_failures=1, ledger=ledger)
    assert [question.row.example.id for question in found.questions] == ["0", "0"]
    reasons = skipped(found)
    assert [reasons[f"id_test/{n}"][0] for n in range(2, 6)] == list(damaged)
    assert reasons["id_test/6"] == (
        "contradictory_label",
        "blocked in area 2, by another policy than its own",
    )
    assert reasons["id_test/7"][0] == reasons["id_test/8"][0] == "bad_policy"
    assert reasons[f"id_test/0/1/{A}"][0] == "duplicate_id"
    assert reasons[f"id_test/8/1/{A}"][0] == "not_an_image"
    assert len([json.loads(line) for line in ledger.read_text().splitlines()]) == len(found.skipped) == 9
    with pytest.raises(
        UnusableRowsError, match=r"9 of 11 rows cannot be used \(81.8%, allowed 1.0%\)"
    ) as caught:
        load_policy_set(f"policyshiftbench:{tmp_path}")
    assert len(caught.value.skipped) == 9


def test_rows_that_contradict_each_other_are_all_skipped(tmp_path: Path) -> None:
    rows = [shift_row(0, 1, A, "pass"), shift_row(0, 1, A, "block"), shift_row(1, 1, A, "pass")]
    write_parquet(tmp_path / "id_test.parquet", rows)
    found = load_policy_set(f"policyshiftbench:{tmp_path}", max_failures=1)
    assert [question.row.example.id for question in found.questions] == ["1"]
    assert [row.status for row in found.skipped] == ["contradictory_label"] * 2


def test_a_bundle_must_hold_the_areas_that_are_violated(tmp_path: Path) -> None:
    alone = bundle({2: (A, LOOSE)})
    rows = [
        shift_row(0, 1, A, "pass"),
        shift_row(1, 1, A, "pass", question="Is this allowed?"),
        shift_row(2, 1, A, "pass", question=alone),
        shift_row(3, 2, A, "block", question=alone, violated_categories=[1, 2]),
        shift_row(4, 2, B, "block", question=bundle({2: (B, STRICT)}), violated_categories=None),
    ]
    write_parquet(tmp_path / "id_test.parquet", rows)
    found = load_policy_set(f"policyshiftbench:{tmp_path}", form="bundle", max_failures=1)
    assert [question.row.example.id for question in found.questions] == ["0", "4"]
    assert found.questions[1].row.unsafe
    assert [row.status for row in found.skipped] == ["bad_row", "bad_row", "unknown_category"]
    with pytest.raises(ExampleError, match="form is 'all'; use 'policy' or 'bundle'"):
        load_policy_set(f"policyshiftbench:{tmp_path}", form="all")  # type: ignore[arg-type]


def test_columns_of_another_name_can_be_given_and_are_never_guessed(tmp_path: Path) -> None:
    rows = [shift_row(0, 1, A, "pass")]
    rows[0]["text"] = rows[0].pop("policy_description")
    write_parquet(tmp_path / "id_test.parquet", rows)
    spec = f"policyshiftbench:{tmp_path}"
    with pytest.raises(
        ExampleError, match=r"no column 'policy_description'; it has: .*text.*policy_description=COLUMN"
    ):
        load_policy_set(spec)
    [question] = load_policy_set(f"{spec}?policy_description=text").questions
    assert question.row.taxonomy.categories[0].definition == one_line(LOOSE)
    with pytest.raises(
        ExampleError, match=r"no field 'policy_descriptions' .did you mean 'policy_description'"
    ):
        load_policy_set(f"{spec}?policy_descriptions=text")
    with pytest.raises(ExampleError, match="no column 'tiers'; it has"):
        load_policy_set(f"{spec}?policy_description=text&tier=tiers")


def test_saved_data_sets_and_a_file_that_names_no_split(tmp_path: Path) -> None:
    import datasets

    rows = [shift_row(0, 1, A, "pass"), shift_row(0, 1, B, "block")]
    rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    both = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"id_test": both, "rl": both}).save_to_disk(tmp_path / "saved")
    both.save_to_disk(tmp_path / "one")
    both.to_parquet(tmp_path / "rows.parquet")
    for name, split in (("saved", "test"), ("saved", "rl"), ("one", "test"), ("rows.parquet", "ood_test")):
        found = load_policy_set(f"policyshiftbench:{tmp_path / name}", split)
        assert [question.row.unsafe for question in found.questions] == [False, True]


# --- SafeEditBench -----------------------------------------------------------------------------------------


def test_five_levels_of_edited_twins(tmp_path: Path) -> None:
    import datasets

    rows = [
        edit_row(path, level, unsafe)
        for path, limit in (("images/knife.png", 3), ("images/knife_safe.png", 6))
        for level in range(1, 6)
        for unsafe in [level >= limit]
    ]
    levels = datasets.ClassLabel(names=[f"Policy L{n}" for n in range(1, 6)])
    labels = datasets.ClassLabel(names=["safe", "unsafe"])
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet", rows, policy_name=levels, safety_label=labels
    )
    found = load_policy_set(f"safeeditbench:{tmp_path}")
    assert [q.row.unsafe for q in found.questions] == [False, False, True, True, True] + [False] * 5
    assert [q.row.taxonomy.names for q in found.questions][:2] == [("Policy L1",), ("Policy L2",)]
    assert found.questions[2].row.taxonomy.categories[0].definition == "Level 3 forbids: 1. knives 2. blood"
    facts = [found.facts[q.id] for q in found.questions]
    assert {fact["twin"] for fact in facts} == {"knife"}
    assert [fact["edited"] for fact in facts] == [False] * 5 + [True] * 5
    assert {fact["level"] for fact in facts} == {f"Policy L{n}" for n in range(1, 6)}
    # Two levels allow the original and three do not: two disjoint pairs; its twin has none.
    assert len({q.pair for q in found.questions if q.pair}) == 2
    assert all(q.pair is None for q in found.questions[5:])


def test_the_authors_json_lines_of_safeeditbench(tmp_path: Path) -> None:
    rows = [edit_row("images/a.png", level, level > 3) for level in (3, 4)]
    for row in rows:
        del row["image"]
        row["policy_level"] = f"L{row.pop('policy_name') + 1}"
        row["safety_label"] = ("safe", "unsafe")[row["safety_label"]]
    rows.append({**rows[0], "image_path": "../images/b.png"})
    rows.append({**rows[0], "safety_label": True})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(1))
    found = load_policy_set(
        f"safeeditbench:{write_json_lines(tmp_path / 'test.jsonl', rows)}", max_failures=0.5
    )
    assert [(q.row.taxonomy.name, q.row.unsafe) for q in found.questions] == [("L3", False), ("L4", True)]
    assert [row.status for row in found.skipped] == ["outside_folder", "bad_label"]


# --- LlavaGuard --------------------------------------------------------------------------------------------


def guard_copy(root: Path, rows: list[dict[str, Any]]) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(sorted({str(row["url"]).split("?")[0].rsplit("/", 1)[-1] for row in rows})):
        if name.endswith(".jpg"):
            (root / "images" / name).write_bytes(png(seed))
    with (root / "test.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return root


def test_a_category_declared_non_violating_makes_the_opposite_row(tmp_path: Path) -> None:
    allowed, other = guard_prompt({"O2": "allowed"}), guard_prompt({"O1": "allowed"})
    rows = [
        guard_row("7", "a.jpg", "Unsafe", "O2: Violence, Harm, or Cruelty"),
        guard_row("7_v2", "a.jpg", "Safe", "O2: Violence, Harm, or Cruelty", policy=allowed),
        guard_row("7_v3_a", "a.jpg", "Unsafe", "O2: Violence, Harm, or Cruelty", policy=other),
        guard_row("8", "b.jpg?width=200", "Safe", "NA: None applying"),
    ]
    found = load_policy_set(f"llavaguard:{guard_copy(tmp_path, rows)}")
    usual, exception, unrelated, safe = found.questions
    assert found.skipped == ()
    assert usual.row.taxonomy.names == ("Hate, Harassment", "Violence, Harm, or Cruelty")
    assert [c.code for c in usual.row.taxonomy] == ["O1", "O2"]
    assert usual.row.taxonomy.categories[1].definition.startswith("Should not: - Contain fights. Can: -")
    assert exception.row.taxonomy.categories[1].definition.startswith(
        "Category O2 is declared as non-violating."
    )
    assert [q.row.unsafe for q in found.questions] == [True, False, True, False]
    assert [q.row.arm for q in found.questions] == ["keep", "flip", "keep", "benign"]
    # The safe row says that the image violates no category but the one it allows; that, the unsafe row says.
    assert usual.row.taxonomy.label(usual.row.example) == (False, True)
    assert exception.row.taxonomy.label(exception.row.example) == (False, False)
    assert usual.pair == exception.pair is not None
    assert usual.direction == exception.direction == "unsafe_to_safe"
    assert unrelated.pair is safe.pair is None
    assert (usual.row.example.severity, safe.row.example.severity) == (3, 0)
    assert found.facts[exception.id]["changed"] == ["O2"]


def test_of_an_unsafe_image_only_the_named_category_is_known(tmp_path: Path) -> None:
    rows = [
        guard_row("1", "a.jpg", "Unsafe", "O2: Violence, Harm, or Cruelty"),
        guard_row("2", "b.jpg", "Safe", "NA"),
    ]
    unsafe, safe = load_policy_set(f"llavaguard:{guard_copy(tmp_path, rows)}").questions
    assert unsafe.row.taxonomy.label(unsafe.row.example) == (None, True)
    assert safe.row.taxonomy.label(safe.row.example) == (False, False)


def test_a_category_declared_sensitive_is_the_other_direction(tmp_path: Path) -> None:
    rows = [
        guard_row(
            "9_v4", "a.jpg", "Unsafe", "O1: Hate, Harassment", policy=guard_prompt({"O1": "sensitive"})
        ),
        guard_row("9", "a.jpg", "Safe", "O1: Hate, Harassment", score="Barely Safe"),
    ]
    unsafe, safe = load_policy_set(f"llavaguard:{guard_copy(tmp_path, rows)}").questions
    assert unsafe.direction == safe.direction == "safe_to_unsafe"


def test_the_authors_json_files(tmp_path: Path) -> None:
    answer = {"rating": "Unsafe", "category": "O1: Hate, Harassment", "rationale": "It insults someone."}
    turns = [{"from": "human", "value": guard_prompt()}, {"from": "gpt", "value": json.dumps(answer)}]
    row = {
        "id": "smid_1",
        "image": "/cluster/pictures/a.jpg",
        "score": "Moderately Inappropriate",
        "conversations": turns,
    }
    broken = [
        {**row, "id": "2", "conversations": turns[:1]},
        {**row, "id": "3", "conversations": [*turns[:1], {"value": "yes"}]},
    ]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(png(0))
    (tmp_path / "test.json").write_text(json.dumps([row, *broken]))
    (tmp_path / "all_data.json").write_text("not a part of the set")
    found = load_policy_set(f"llavaguard:{tmp_path}", max_failures=0.7)
    [question] = found.questions
    assert (question.row.category, question.row.example.severity) == ("Hate, Harassment", 2)
    assert found.facts[question.id]["rationale"] == "It insults someone."
    assert [row.status for row in found.skipped] == ["bad_row", "bad_row"]


def test_images_of_llavaguard_inside_of_the_table(tmp_path: Path) -> None:
    rows = [
        guard_row(str(n), "a.jpg", "Safe", "NA: None applying", url=data_url(png(n % 2))) for n in range(3)
    ]
    found = load_policy_set(f"llavaguard:{write_json_lines(tmp_path / 'test.jsonl', rows)}")
    assert len({question.row.example.id for question in found.questions}) == 2
    embedded = [{**row, "image": png(n), "url": None if n else "x/a.jpg"} for n, row in enumerate(rows)]
    write_parquet(tmp_path / "stored" / "test.parquet", embedded)
    found = load_policy_set(f"llavaguard:{tmp_path / 'stored'}?image=image", max_failures=1)
    assert [question.row.example.id for question in found.questions] == ["a.jpg"]
    assert [row.status for row in found.skipped] == ["bad_row"] * 2


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"rating": "Perhaps"}, "bad_label"),
        ({"rating": ""}, "no_label"),
        ({"category": "Violence"}, "unknown_category"),
        ({"rating": "Unsafe"}, "contradictory_label"),
        ({"rating": "Unsafe", "category": "O9: Disasters or Emergencies"}, "contradictory_label"),
        ({"policy": "Is this fine?"}, "bad_policy"),
        ({"score": "Terrible"}, "bad_severity"),
        ({"id": ""}, "bad_row"),
        ({"url": "https://example.org/missing.png"}, "missing"),
        ({"url": "https://elsewhere.example/.."}, "unreadable"),
        ({"url": "https://elsewhere.example/a.jpg"}, "bad_row"),
    ],
)
def test_rows_of_llavaguard_that_cannot_be_used(tmp_path: Path, changes: dict[str, str], status: str) -> None:
    rows = [
        guard_row("0", "b.jpg", "Safe", "NA: None applying"),
        guard_row("1", "a.jpg", "Safe", "NA: None applying"),
    ]
    bad = guard_row("2", "a.jpg", "Safe", "NA: None applying") | changes
    found = load_policy_set(f"llavaguard:{guard_copy(tmp_path, [*rows, bad])}", max_failures=1)
    assert status in [row.status for row in found.skipped]
    assert "0" in {question.id.removeprefix("test/") for question in found.questions}
    assert "test/2" not in {question.id for question in found.questions}


# --- All sets ----------------------------------------------------------------------------------------------


def test_unknown_sets_and_copies_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("it is a gated dataset on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ExampleError, match=r"No policy set 'policyshift:x' .did you mean 'policyshiftbench'"):
        load_policy_set("policyshift:x")
    for name, source in POLICY_SETS.items():
        with pytest.raises(
            ExampleError,
            match=f"nothing at {tmp_path}/no.*hf download {source.origin.hub} .* give {name}:DIR",
        ):
            load_policy_set(f"{name}:{tmp_path}/no")
        reason = "gated dataset" if source.origin.whole else "cannot be read from the hub alone"
        with pytest.raises(
            ExampleError, match=f"{reason}.*{source.origin.access[:20]}.*hf auth login.*{name}:DIR"
        ):
            load_policy_set(name)


def test_a_folder_without_any_table(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="no Parquet file"):
        load_policy_set(f"safeeditbench:{tmp_path}")
    (tmp_path / "test.json").write_text('{"a": 1}')
    with pytest.raises(ExampleError, match="must hold a list of objects, got dict"):
        load_policy_set(f"safeeditbench:{tmp_path}")
    (tmp_path / "test.json").write_text("[" * 100_000)
    with pytest.raises(ExampleError, match="cannot be read as JSON"):
        load_policy_set(f"safeeditbench:{tmp_path}")


def test_tables_that_lead_out_of_the_folder_or_name_no_split(tmp_path: Path) -> None:
    rows = [edit_row("a.png", 1, False, image=data_url(png(0)), policy_name="L1")]
    outside = write_json_lines(tmp_path / "outside.jsonl", rows)
    folder = tmp_path / "set"
    write_json_lines(folder / "test.jsonl", rows)
    assert len(load_policy_set(f"safeeditbench:{folder}").questions) == 1
    (folder / "linked_test.jsonl").symlink_to(outside)
    with pytest.raises(ExampleError, match=r"linked_test\.jsonl leads out of"):
        load_policy_set(f"safeeditbench:{folder}")
    # The user may name any file: a link is followed, and what is in it is still read as data.
    assert len(load_policy_set(f"safeeditbench:{folder / 'linked_test.jsonl'}").questions) == 1
    (folder / "linked_test.jsonl").unlink()
    write_json_lines(folder / "more.jsonl", rows)
    with pytest.raises(ExampleError, match=r"more\.jsonl names no split, while other files do"):
        load_policy_set(f"safeeditbench:{folder}")


@given(st.text(min_size=1))
def test_a_policy_text_keeps_its_words_or_is_refused(text: str) -> None:
    line = one_line(text)
    assert line.split() == text.replace('"', "”").split()
    with contextlib.suppress(UnusableRowError):
        made = category("Some area", text)
        assert made.definition == line
        assert made.key == category("Some area", f"  {text}\n").key


@pytest.mark.parametrize("text", ["", " \n", "[INST]", "a <image>", "x" * 2001, "a \u202e b", "\ud800"])
def test_a_policy_text_that_a_taxonomy_refuses(text: str) -> None:
    with pytest.raises(UnusableRowError) as caught:
        category("Some area", text)
    assert caught.value.status == "bad_policy"


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_any_rows_make_consistent_questions_and_disjoint_pairs(
    drawn: list[tuple[int, int, int, bool]],
) -> None:
    """(image, area, policy, label): labels may contradict each other, and rows may come twice."""
    rows = []
    for image, area, number, unsafe in drawn:
        own = category(f"area {area}", f"policy {number} of area {area}")
        violates = frozenset({own.key} if unsafe else ())
        name = f"{image}/{area}/{number}"
        taxonomy = policy("p", [own])
        rows.append(PolicyRow(name, str(image), b"", "test", taxonomy, violates, area=str(area)))
    found = policy_set(rows, [], "drawn")
    labels: dict[tuple[int, int, int], set[bool]] = {}
    for image, area, number, unsafe in drawn:
        labels.setdefault((image, area, number), set()).add(unsafe)
    truth = {f"{i}/{a}/{p}": min(both) for (i, a, p), both in labels.items() if len(both) == 1}
    assert {question.id: question.row.unsafe for question in found.questions} == truth
    assert len(found.questions) + len(found.skipped) == len(rows)
    pairs: dict[str, list[Question]] = {}
    for question in found.questions:
        assert question.row.taxonomy.label(question.row.example) == (question.row.unsafe,)
        if question.pair is not None:
            pairs.setdefault(question.pair, []).append(question)
    assert all(sorted(q.row.unsafe for q in both) == [False, True] for both in pairs.values())
    assert all(
        found.groups[a.id] == found.groups[b.id] and a.direction == b.direction for a, b in pairs.values()
    )
    sides = [[truth[q] for q in truth if found.groups[q] == group] for group in set(found.groups.values())]
    assert len(pairs) == sum(min(side.count(True), side.count(False)) for side in sides)


def test_pairs_of_a_set_are_pairs_of_the_metrics(tmp_path: Path) -> None:
    rows = [shift_row(n, 1, policy, label) for n in range(3) for policy, label in ((A, "pass"), (B, "block"))]
    write_parquet(tmp_path / "id_test.parquet", rows)
    found = load_policy_set(f"policyshiftbench:{tmp_path}")
    judged = [
        JudgedRow(
            id=q.id, truth=q.row.unsafe, unsafe=0.9 * q.row.unsafe, policy=q.row.taxonomy.names, pair=q.pair
        )
        for q in found.questions
    ]
    assert pairs_correct(judged) == (3, 3)
    assert shift_groups(judged, found.groups) == {f"{n}/1": [True] for n in range(3)}
