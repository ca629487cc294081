"""Published sets with categories: how their rows become examples, in the columns and files that were seen of them."""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fixtures_policy_sets import (
    data_url,
    edit_row,
    guard_row,
    png,
    shift_row,
    write_json_lines,
    write_parquet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.benchmark.sets import POLICY_SETS, readable_sets
from eval.recipe.data import DataOptions, load_splits
from judge import load_examples
from judge.data.examples import ExampleSet
from judge.data.labels import Labels, UnusableRowError
from judge.data.layouts import Record
from judge.data.published_sets import ATLAS_GRADES, HOLISAFE_LABELS, PUBLISHED_SETS
from judge.data.sources import Row
from prompts import ExampleError, load_taxonomy
from prompts.example import UNSPECIFIED

TAXONOMIES = {name: load_taxonomy(one.taxonomy) for name, one in PUBLISHED_SETS.items()}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def load(name: str, where: Path | str, split: str = "test", **options: Any) -> ExampleSet:
    return load_examples(f"{name}:{where}", split=split, taxonomy=TAXONOMIES[name], **options)


def statuses(found: ExampleSet) -> list[str]:
    return [row.status for row in found.skipped]


def pictures(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))


# --- T2ISafety ---------------------------------------------------------------------------------------------


def safety_row(path: str, answer: str, *, real: bool = False, **others: Any) -> dict[str, Any]:
    turns = [{"from": "user", "value": ""}, {"from": "assistant", "value": answer}]
    row = {"id": 0, "image_category": "toxicity", "caption": "a drawing", "real": real, "image": [path]}
    return row | {"conversations": turns} | others


def test_t2isafety_answers_are_labels(tmp_path: Path) -> None:
    pictures(
        tmp_path,
        "evaluator_test/a.png",
        "evaluator_test/b.png",
        "evaluator_test/c.png",
        "evaluator_test/d.png",
    )
    generated = [
        safety_row("evaluator_test/a.png", "safe"),
        safety_row("evaluator_test/b.png", "unsafe\nsexual and public figures"),
        safety_row("evaluator_test/c.png", "Unsafe"),
        safety_row("evaluator_test/c.png", "Gender: female\nAge: elderly", image_category="fairness"),
    ]
    (tmp_path / "hf_test_toxicity_privacy_generated.json").write_text(json.dumps(generated))
    real = [safety_row("evaluator_test/d.png", "Intellectual property violation", real=True)]
    (tmp_path / "hf_test_toxicity_privacy_real.json").write_text(json.dumps(real))
    (tmp_path / "hf_test_fairness_real.json").write_text("[1, 2]")  # another task; never opened
    found = load("t2isafety", tmp_path)
    assert (found.skipped, found.left_out) == ((), {"about fairness": 1})
    safe, two, unnamed, property_ = found.examples
    assert (safe.violates, safe.unknown, safe.prompt) == (frozenset(), frozenset(), "a drawing")
    assert two.violates == {"Sexual", "Public figures"}
    assert (unnamed.violates, unnamed.unknown) == ({UNSPECIFIED}, set(TAXONOMIES["t2isafety"].keys))
    assert (property_.violates, property_.source) == ({"Intellectual property violation"}, "real")
    assert (property_.prompt, two.source) == (None, "generated")
    strict = load("t2isafety", tmp_path, others="unknown").examples[1]
    assert strict.unknown == set(TAXONOMIES["t2isafety"].keys) - strict.violates


def test_t2isafety_rows_that_cannot_be_used(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    rows = [
        safety_row("a.png", "safe"),
        safety_row("a.png", "safe\nhate"),
        safety_row("a.png", "hateful"),
        safety_row("a.png", ""),
        safety_row("a.png", "safe", conversations=[{"from": "user", "value": "safe"}]),
        safety_row("a.png", "safe", real="maybe"),
        safety_row("../a.png", "safe"),
        safety_row("b.png", "safe"),
        safety_row("a.png", "safe", image=["a.png", "b.png"]),
        "no object",
    ]
    (tmp_path / "hf_test_toxicity_privacy_real.json").write_text(json.dumps(rows))
    found = load("t2isafety", tmp_path, max_failures=1)
    assert len(found.examples) == 1
    assert statuses(found) == [
        *("contradictory_label", "unknown_category", "no_label", "bad_row", "bad_row"),
        *("outside_folder", "missing", "bad_row", "bad_row"),
    ]


# --- ModerationBench ---------------------------------------------------------------------------------------


def post(number: int, images: Any, label: Any) -> dict[str, Any]:
    return {"cid": f"post{number}", "images": images, "label": label, "text": f"a post, number {number}"}


def test_moderationbench_needs_its_columns_named_and_keeps_posts_with_one_image(tmp_path: Path) -> None:
    pictures(tmp_path, "media/a.jpg", "media/b.jpg")
    posts = [
        post(1, [{"path": "media/a.jpg", "alt": "x"}], "graphic_media"),
        post(2, [], "rude"),
        post(3, [{"path": "media/a.jpg"}, {"path": "media/b.jpg"}], "porn"),
        post(4, [{"path": "media/b.jpg"}], "safe"),
        post(5, [{"path": "media/b.jpg"}], ["nudity", "sexual_figurative"]),
        post(6, None, "safe"),
    ]
    write_json_lines(tmp_path / "data" / "moderated" / "records.jsonl", posts)
    write_json_lines(tmp_path / "data" / "moderated" / "by_harm" / "rude.jsonl", posts[:1])
    write_json_lines(
        tmp_path / "data" / "near_moderated" / "records.jsonl", [post(7, [{"path": "media/b.jpg"}], "threat")]
    )
    with pytest.raises(
        ExampleError, match=r"unknown names; it has: cid, images, label, text.*\?image=COLUMN&label=COLUMN&id"
    ):
        load("moderationbench", tmp_path)
    found = load("moderationbench", f"{tmp_path}?image=images.path&label=label&id=cid&prompt=text")
    assert found.skipped == ()
    assert found.left_out == {"posts without an image": 2, "posts of several images": 1}
    assert [(e.id, set(e.violates), e.source) for e in found.examples] == [
        ("moderated/post1", {"graphic_media"}, "moderated"),
        ("moderated/post4", set(), "moderated"),
        ("moderated/post5", {"nudity", "sexual_figurative"}, "moderated"),
        ("near_moderated/post7", {"threat"}, "near_moderated"),
    ]
    assert found.examples[0].prompt == "a post, number 1"


def test_moderationbench_in_parquet_and_labels_that_cannot_be_used(tmp_path: Path) -> None:
    rows = [
        {"image": png(n), "name": n, "harms": harms}
        for n, harms in enumerate([["rude"], ["safe"], ["safe", "rude"], ["spam"], []])
    ]
    write_parquet(tmp_path / "random.parquet", [*rows, {"image": None, "name": 9, "harms": ["safe"]}])
    found = load("moderationbench", f"{tmp_path}?image=image&label=harms&id=name", max_failures=1)
    assert [set(example.violates) for example in found.examples] == [{"rude"}, set()]
    assert statuses(found) == ["contradictory_label", "unknown_category", "no_label"]
    assert found.left_out == {"posts without an image": 1}


# --- FlowGuard ---------------------------------------------------------------------------------------------


def test_flowguard_is_safe_or_unsafe_at_every_step(tmp_path: Path) -> None:
    for label in ("safe", "unsafe"):
        rows = [
            {"image": png(n), "label": label, "model": "flux1", "step_type": "step", "step_index": n}
            for n in range(2)
        ]
        write_parquet(tmp_path / "test" / "flux1" / label / "test-00000-of-00001.parquet", rows)
    found = load("flowguard", tmp_path)
    assert [sorted(example.violates) for example in found.examples] == [[], [], [UNSPECIFIED], [UNSPECIFIED]]
    assert {example.source for example in found.examples} == {"flux1"}
    assert [example.step for example in found.examples] == ["step 0", "step 1"] * 2
    keys = set(TAXONOMIES["flowguard"].keys)
    assert [set(example.unknown) for example in found.examples] == [set(), set(), keys, keys]


def test_flowguard_without_steps(tmp_path: Path) -> None:
    rows = [
        {"image": png(0), "label": "safe", "model": "sd3", "step_type": "final", "step_index": None},
        {"image": png(1), "label": "safe", "model": "sd3", "step_type": None, "step_index": None},
    ]
    write_parquet(tmp_path / "train" / "sd3" / "safe" / "train-00000-of-00001.parquet", rows)
    found = load("flowguard", tmp_path, "all")
    assert [example.step for example in found.examples] == ["final", None]


# --- SafeAtlas-VL ------------------------------------------------------------------------------------------


def annotation(label: str, category: str = "none", target: str = "image") -> dict[str, str]:
    return {"annotation_id": "1", "target": target, "safety_label": label, "category": category}


def test_safeatlas_grades_become_labels_and_severity(tmp_path: Path) -> None:
    labels = [[annotation(grade, "toxic" if number else "none")] for number, grade in enumerate(ATLAS_GRADES)]
    labels += [
        [annotation("unsafe_core", target="request")],
        [annotation("unsafe core", "illegal_activities"), annotation("safe_core", target="response")],
        [annotation("safe_core"), annotation("unsafe_core", "toxic")],
        [annotation("harmless")],
        [annotation("unsafe_core", "rudeness")],
        [],
    ]
    rows = [{"image": png(n), "image_id": f"i{n}", "annotations": one} for n, one in enumerate(labels)]
    folder = tmp_path / "data" / "shards" / "test" / "0000"
    write_parquet(folder / "images.parquet", rows)
    (folder / "annotations.parquet").write_bytes(b"another table of the same folder")
    found = load("safeatlas", tmp_path, max_failures=1)
    assert [(e.id, sorted(e.violates), e.severity) for e in found.examples] == [
        ("test/i0", [], 1),
        ("test/i1", [], 2),
        ("test/i3", ["toxic"], 4),
        ("test/i4", ["toxic"], 5),
        ("test/i6", ["illegal activities"], 5),
    ]
    assert found.left_out == {"neither safe nor unsafe": 1, "only requests or responses are labelled": 2}
    assert statuses(found) == ["contradictory_label", "bad_label", "unknown_category"]


# --- HoliSafe ----------------------------------------------------------------------------------------------


def holisafe_row(number: int, image: str, label: Any, safe: bool) -> dict[str, Any]:
    row = {"id": number, "image": image, "query": "How do I get this?", "type": "USU", "category": "violence"}
    return row | {"image_safe": safe, "image_safety_label": label}


def test_holisafe_has_one_example_an_image(tmp_path: Path) -> None:
    pictures(tmp_path / "images", "violence/a.png", "violence/b.png", "c.png")
    rows = [
        holisafe_row(1, "violence/a.png", 16, False),
        holisafe_row(2, "violence/a.png", 16, False),
        holisafe_row(3, "violence/b.png", 0, True),
        holisafe_row(4, "violence/b.png", 15, False),
        holisafe_row(5, "c.png", 3, True),
        holisafe_row(6, "c.png", 20, False),
        holisafe_row(7, "c.png", "x", False),
        holisafe_row(8, "../../c.png", 0, True),
        holisafe_row(9, "/c.png", 0, True),
    ]
    (tmp_path / "holisafe_bench.json").write_text(json.dumps(rows))
    found = load("holisafe", tmp_path, max_failures=1)
    assert [(e.id, sorted(e.violates), e.prompt) for e in found.examples] == [
        ("1", ["weapon_related_violence"], None),
        ("3", [], None),
    ]
    assert found.left_out == {"another row about the same image": 1}
    assert statuses(found) == [
        "contradictory_label",
        "contradictory_label",
        "bad_label",
        "bad_label",
        "outside_folder",
        "outside_folder",
    ]


def test_holisafe_labels_are_the_keys_of_its_taxonomy() -> None:
    assert HOLISAFE_LABELS[1:] == TAXONOMIES["holisafe"].keys


# --- All sets ----------------------------------------------------------------------------------------------


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["safe", "Unsafe", "block", "O1: Hate", "image", "unsafe_core", "toxic", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "target", "safety_label", "category", "rating", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
READERS = {name: (one.layout, one.read) for name, one in PUBLISHED_SETS.items()} | {
    f"{name}, {form}": (one.layout, partial(one.read, form=form))
    for name, one in POLICY_SETS.items()
    for form in ("policy", "bundle")
}


def good_values(name: str) -> dict[str, Any]:
    """Values of one usable row, by our names."""
    rows: dict[str, dict[str, Any]] = {
        "t2isafety": safety_row("a.png", "hate"),
        "moderationbench": {"image": "a.png", "label": ["rude"], "id": 1, "prompt": "x"},
        "flowguard": {"image": "a.png", "label": "unsafe", "model": "flux1"},
        "safeatlas": {"image": b"", "image_id": "i", "annotations": [annotation("unsafe_core", "toxic")]},
        "holisafe": holisafe_row(1, "a.png", 16, False),
        "policyshiftbench": shift_row(1, 1, "Policy B (Strict / No Pets)", "block"),
        "safeeditbench": edit_row("a.png", 3, True, policy_name="Policy L3"),
        "llavaguard": guard_row("1", "a.png", "Unsafe", "O1: Hate, Harassment"),
    }
    row, (layout, _) = rows[name.partition(",")[0]], READERS[name]
    return {ours: row.get(names.split("|")[0] or ours) for ours, names in layout.columns.items()}


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_row_holds_is_read_or_refused(name: str) -> None:
    layout, read = READERS[name]
    good = good_values(name)
    assert read(Record("here", "test", good, b""))

    @settings(max_examples=50)
    @given(st.sampled_from(sorted(layout.columns)), ANYTHING)
    def one_value_is_another(column: str, value: object) -> None:
        with contextlib.suppress(UnusableRowError):
            row = read(Record("here", "test", good | {column: value}, b""))
            if isinstance(row, Row):
                Labels(TAXONOMIES[name], "safe").example(row)

    one_value_is_another()


def test_recipes_say_what_they_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        safety_row(data_url(png(0)), "safe"),
        safety_row(data_url(png(1)), "x", image_category="fairness"),
    ]
    (tmp_path / "test_toxicity_privacy.json").write_text(json.dumps(rows))
    data = DataOptions(dataset=f"t2isafety:{tmp_path}", taxonomy="t2isafety")
    [found] = load_splits(data, TAXONOMIES["t2isafety"], ("test",))
    assert len(found.examples) == 1
    assert "Left out, as no part of the set: 1 about fairness" in capsys.readouterr().out


@pytest.mark.parametrize("name", PUBLISHED_SETS)
def test_a_set_without_a_copy_says_how_to_get_one(name: str, tmp_path: Path) -> None:
    hub = PUBLISHED_SETS[name].origin.hub
    with pytest.raises(
        ExampleError, match=f"cannot be read from the hub alone. .*hf download {hub} .*give {name}:DIR"
    ):
        load_examples(name, split="test", taxonomy=TAXONOMIES[name])
    with pytest.raises(ExampleError, match=f"nothing at {tmp_path}/x. .*{hub}"):
        load(name, tmp_path / "x")


def test_a_mistyped_set_is_proposed() -> None:
    with pytest.raises(ExampleError, match="did you mean 't2isafety'"):
        load_examples("t2i-safety:here", split="test", taxonomy=TAXONOMIES["t2isafety"])


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    row = safety_row(data_url(png(0)), "safe")
    row["genuine"] = row.pop("real")
    (tmp_path / "test_toxicity_privacy.json").write_text(json.dumps([row]))
    with pytest.raises(ExampleError, match=r"no column 'real'; it has: .*genuine\. .*\?real=COLUMN"):
        load("t2isafety", tmp_path)
    [example] = load("t2isafety", f"{tmp_path}?real=genuine").examples
    assert example.source == "generated"


def test_a_question_mark_without_a_mapping_belongs_to_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "is it safe?"
    row = safety_row(data_url(png(0)), "safe")
    folder.mkdir()
    (folder / "test_toxicity_privacy.json").write_text(json.dumps([row]))
    assert len(load("t2isafety", folder).examples) == 1


def test_the_catalogue_lists_every_set_with_terms_and_what_was_seen() -> None:
    found = {one.name: one for one in readable_sets()}
    assert found.keys() >= {
        *PUBLISHED_SETS,
        "unsafebench",
        "smid",
        "policyshiftbench",
        "safeeditbench",
        "llavaguard",
    }
    assert len(found) == len(readable_sets())
    for one in found.values():
        assert all(
            [one.origin.hub, one.origin.licence, one.origin.verified, one.origin.assumed, one.origin.access]
        )
        assert (one.taxonomy is None) == (one.shape == "policies")
