"""Label flipping: what holds for every draw, whatever the data."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts import (
    ArbiterError,
    Category,
    Example,
    ExampleError,
    FlipOptions,
    Group,
    Row,
    Taxonomy,
    TaxonomyError,
    draw_groups,
    draw_pairs,
    format_report,
    load_taxonomy,
    paper_rows,
    render,
    report,
)

DIGITS = load_taxonomy("digits")


def examples_of(
    count: int, *, seed: int = 0, most: int = 2, benign: float = 0.1, unknown: float = 0.0
) -> list[Example]:
    """Images that violate one to `most` digits, or none; truthful prompts, some missing."""
    rng = Random(seed)
    examples = []
    for number in range(count):
        drawn = [] if rng.random() < benign else rng.sample(DIGITS.keys, rng.randint(1, most))
        examples.append(
            Example(
                id=f"image-{number}",
                image=None,
                prompt=None
                if rng.random() < 0.1
                else f"picture {number} of {' and '.join(drawn) or 'nothing'}",
                violates=frozenset(drawn),
                unknown=frozenset(key for key in DIGITS.keys if key not in drawn and rng.random() < unknown),
                source=rng.choice(["real", "generated"]),
            )
        )
    return examples


EXAMPLES = examples_of(300)
BY_ID = {image.id: image for image in EXAMPLES}
PLAIN = FlipOptions().plain
"""Policies and prompts in the words of taxonomy and data, and images drawn without balance."""
shares = st.sampled_from([0.0, 0.3, 1.0])
options = st.builds(
    FlipOptions,
    min_categories=st.integers(1, 3),
    max_categories=st.integers(3, 10),
    group_size=st.sampled_from([2, 4, 8]),
    rename=shares,
    reword=shares,
    custom=shares,
    neutral_name=shares,
    no_prompt=shares,
    focus=shares,
    benign=shares,
    balance=shares,
    restyle=st.just(0.0),
    reprompt=st.just(0.0),
    held_out=st.sampled_from([frozenset(), frozenset({"three"}), frozenset({"three", "eight"})]),
)


def rows_of(groups: Iterable[Group]) -> list[Row]:
    return [row for group in groups for row in group.rows]


def check_row(row: Row, held_out: frozenset[str] = frozenset()) -> None:
    """Everything a row says is true of its image and its policy."""
    labels = dict(zip(row.taxonomy.names, row.taxonomy.label(row.example), strict=True))
    asked = [labels[row.focus]] if row.focus else list(labels.values())
    assert row.unsafe is any(asked)
    assert row.unsafe or None not in asked
    assert (row.category is not None) == row.unsafe
    if row.category is not None:
        assert labels[row.category] is True
        assert row.focus in (None, row.category)
    assert row.arm.startswith("focus_") == (row.focus is not None)
    covered = {member for category in row.taxonomy for member in category.members}
    assert not covered & held_out
    assert not row.example.violates & held_out
    if row.arm in ("keep", "partial"):
        assert (row.arm == "keep") == (row.example.violates <= covered)
    if row.arm in ("benign", "focus_benign"):
        assert not row.example.violates
    if row.arm in ("flip", "focus_flip"):
        assert row.example.violates
    assert row.unsafe == (row.arm in ("keep", "partial", "focus_keep"))
    assert (row.prompt is None) == (row.prompt_of is None)
    answers = {a.category: a.text for a in render(row.taxonomy, row.prompt, focus=row.focus).answers}
    assert (row.taxonomy.index(row.category) if row.category else None) in answers


@given(options, st.integers(0, 5))
def test_groups_keep_their_promises(chosen: FlipOptions, epoch: int) -> None:
    for group in draw_groups(EXAMPLES, DIGITS, chosen, seed=1, epoch=epoch, groups=6):
        assert len(group.rows) == chosen.group_size
        assert sum(row.unsafe for row in group.rows) == chosen.group_size // 2
        assert len({row.example.id for row in group.rows}) == chosen.group_size
        assert 1 <= len(group.taxonomy) <= chosen.max_categories
        assert not any(c.aliases or c.rewordings or c.languages for c in group.taxonomy)
        members = [member for category in group.taxonomy for member in category.members]
        assert len(set(members)) == len(members)
        for row in group.rows:
            assert row.taxonomy is group.taxonomy
            check_row(row, chosen.held_out)
            assert row.prompt is None or BY_ID[row.prompt_of or ""].prompt == row.prompt


@given(options)
def test_questions_come_in_pairs_of_opposite_label(chosen: FlipOptions) -> None:
    """The same questions and the same number of prompts on both sides: nothing to learn from the text."""
    for group in draw_groups(EXAMPLES, DIGITS, chosen, seed=2, epoch=0, groups=6):
        unsafe, safe = ([row for row in group.rows if row.unsafe is side] for side in (True, False))
        assert Counter(row.focus for row in unsafe) == Counter(row.focus for row in safe)
        shown = Counter(row.prompt_of for row in group.rows if row.prompt_of)
        assert set(shown) <= {row.example.id for row in group.rows}
        assert all(number == 1 for number in shown.values())


def test_prompts_are_kept_and_exchanged_equally_often_on_both_sides() -> None:
    complete = [replace(image, prompt=f"picture {image.id}") for image in EXAMPLES]
    rows = rows_of(draw_groups(complete, DIGITS, replace(PLAIN, no_prompt=0.2), seed=0, epoch=0, groups=400))
    for side in (True, False):
        kinds = Counter(row.prompt_kind for row in rows if row.unsafe is side)
        assert kinds["lie"] / kinds.total() == pytest.approx(0.4, abs=0.04)
        assert kinds["kept"] / kinds.total() == pytest.approx(0.4, abs=0.04)
    own = Counter(row.unsafe for row in rows if row.prompt_of and BY_ID[row.prompt_of].violates)
    truth = Counter(row.unsafe for row in rows if row.prompt_of and "three" in BY_ID[row.prompt_of].violates)
    assert own[True] / own.total() == pytest.approx(0.5, abs=0.03)
    assert truth[True] / truth.total() == pytest.approx(0.5, abs=0.06)


def test_shares_are_met_and_categories_balanced() -> None:
    chosen = replace(PLAIN, focus=0.3, custom=0.4, rename=0.5, reword=0.5, no_prompt=0.2, neutral_name=0.5)
    groups = draw_groups(examples_of(600), DIGITS, chosen, seed=0, epoch=0, groups=600)
    rows = rows_of(groups)
    counts = report(rows)
    assert sum(row.focus is not None for row in rows) / len(rows) == pytest.approx(0.3, abs=0.03)
    custom = [category for group in groups for category in group.taxonomy if len(category.members) > 1]
    assert len(custom) / len(groups) == pytest.approx(0.4, abs=0.06)
    assert sum(category.name in chosen.names for category in custom) / len(custom) == pytest.approx(
        0.5, abs=0.1
    )
    single = [category for group in groups for category in group.taxonomy if len(category.members) == 1]
    assert sum(category.name != category.key for category in single) / len(single) == pytest.approx(
        0.5, abs=0.05
    )
    reworded = sum(DIGITS.categories[DIGITS.index(c.key)].definition != c.definition for c in single)
    assert reworded / len(single) == pytest.approx(0.5, abs=0.05)
    by_key = [counts["category"][key] for key in DIGITS.keys]
    assert max(by_key) < 1.35 * min(by_key)
    lengths = list(counts["policy length"].values())
    assert list(counts["policy length"]) == [str(number) for number in range(1, 10)]
    assert max(lengths) < 2 * min(lengths)
    assert set(counts["arm"]) == {
        "keep",
        "partial",
        "flip",
        "benign",
        "focus_keep",
        "focus_flip",
        "focus_benign",
    }


def test_every_category_may_stand_anywhere_in_a_policy() -> None:
    chosen = replace(PLAIN, min_categories=3, max_categories=3, custom=1.0)
    groups = draw_groups(EXAMPLES, DIGITS, chosen, seed=1, epoch=0, groups=900)
    places = Counter(
        n for group in groups for n, category in enumerate(group.taxonomy) if len(category.members) > 1
    )
    assert all(240 < places[place] < 360 for place in range(3))
    first = Counter(key for group in groups for key in group.taxonomy.categories[0].members)
    assert set(first) == set(DIGITS.keys)


def test_focused_safe_images_prefer_those_unsafe_for_another_category() -> None:
    chosen = replace(PLAIN, focus=1.0, benign=0.0, min_categories=3)
    rows = [row for row in rows_of(draw_groups(EXAMPLES, DIGITS, chosen, seed=0, epoch=0)) if not row.unsafe]
    hard = [row for row in rows if any(row.taxonomy.label(row.example))]
    assert len(hard) > 0.9 * len(rows)


def test_images_are_used_about_equally() -> None:
    examples = examples_of(400, benign=0.0)
    rows = rows_of(draw_groups(examples, DIGITS, replace(PLAIN, benign=0.0), seed=0, epoch=0))
    uses = Counter(row.example.id for row in rows)
    assert len(uses) == len(examples)
    assert max(uses.values()) <= 4
    assert len(rows) == 2 * len(examples)


def test_a_draw_depends_on_seed_and_epoch_only() -> None:
    def draw(seed: int, epoch: int) -> list[Group]:
        return draw_groups(EXAMPLES, DIGITS, FlipOptions(), seed=seed, epoch=epoch, groups=20)

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1) != draw(1, 1)
    assert {group.taxonomy.hash for group in draw(0, 0)}.isdisjoint(
        group.taxonomy.hash for group in draw(0, 1) if len(group.taxonomy) > 3
    )
    shorter = draw_groups(EXAMPLES, DIGITS, FlipOptions(), seed=0, epoch=0, groups=5)
    assert shorter == draw(0, 0)[:5]


def test_a_draw_is_the_same_in_any_process() -> None:
    code = """
from random import Random
from typing import Any
from prompts import *
taxonomy = load_taxonomy("digits")
rng = Random(0)
images = [Example(str(n), None, str(n), frozenset(rng.sample(taxonomy.keys, 2))) for n in range(60)]
for group in draw_groups(images, taxonomy, FlipOptions(held_out=frozenset({"one", "two"})), seed=0, epoch=3):
    print(group.taxonomy.short_hash, [(r.example.id, r.prompt, r.unsafe, r.category, r.focus) for r in group.rows])
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert next(iter(outputs)).count("\n") > 5


def test_images_with_unknown_labels_are_never_safe_rows_for_them() -> None:
    examples = examples_of(300, most=1, benign=0.3, unknown=0.3)
    for group in draw_groups(examples, DIGITS, FlipOptions(max_categories=4), seed=0, epoch=0, groups=40):
        for row in group.rows:
            check_row(row)


@given(options)
def test_pairs_flip_the_label_of_one_image(chosen: FlipOptions) -> None:
    pairs = draw_pairs(EXAMPLES, DIGITS, chosen, seed=3, pairs=17)
    assert len(pairs) == 17
    assert [pair.direction for pair in pairs[:2]] == ["safe_to_unsafe", "unsafe_to_safe"]
    for pair in pairs:
        assert (pair.unsafe.unsafe, pair.safe.unsafe) == (True, False)
        assert pair.unsafe.example is pair.safe.example
        assert (pair.unsafe.prompt, pair.unsafe.prompt_of) == (pair.safe.prompt, pair.safe.prompt_of)
        assert len(pair.unsafe.taxonomy) == len(pair.safe.taxonomy)
        shared = set(pair.unsafe.taxonomy.categories) & set(pair.safe.taxonomy.categories)
        assert len(shared) == len(pair.unsafe.taxonomy) - 1
        for row in (pair.unsafe, pair.safe):
            check_row(row, chosen.held_out)


def test_each_policy_of_pairs_has_both_labels_and_several_images() -> None:
    pairs = draw_pairs(EXAMPLES, DIGITS, FlipOptions(group_size=6), seed=0, pairs=120)
    labels: dict[int, list[bool]] = {}
    for pair in pairs:
        for row in (pair.unsafe, pair.safe):
            labels.setdefault(id(row.taxonomy), []).append(row.unsafe)
    assert len(labels) == 40
    assert all(len(found) == 6 and sum(found) == 3 for found in labels.values())
    same_place = [
        [c.key for c in p.unsafe.taxonomy if c in p.safe.taxonomy.categories] == [c.key for c in p.safe.taxonomy if c in p.unsafe.taxonomy.categories]
        for p in pairs if len(p.safe.taxonomy) > 4
    ]  # fmt: skip
    assert 0.2 < sum(same_place) / len(same_place) < 0.8


def test_policies_stay_short_enough_to_leave_safe_images() -> None:
    every = [
        Example(str(n), None, None, frozenset({key}))
        for key in DIGITS.keys
        for n in [f"{key}{i}" for i in range(8)]
    ]
    groups = draw_groups(
        every, DIGITS, replace(PLAIN, max_categories=10, group_size=4), seed=0, epoch=0, groups=100
    )
    assert max(sum(len(c.members) for c in group.taxonomy) for group in groups) == 9
    benign = [Example(f"none{n}", None) for n in range(5)]
    groups = draw_groups(
        [*every, *benign],
        DIGITS,
        replace(PLAIN, max_categories=10, group_size=4),
        seed=0,
        epoch=0,
        groups=100,
    )
    assert max(sum(len(c.members) for c in group.taxonomy) for group in groups) == 10


def test_data_without_one_side_is_refused_by_name() -> None:
    single = [Example(str(n), None, None, frozenset({"three"})) for n in range(20)]
    with pytest.raises(ExampleError, match="No image violates zero, one, two, four"):
        draw_groups(single, DIGITS, FlipOptions(), seed=0, epoch=0)
    with pytest.raises(ExampleError, match="leaves 0 safe images"):
        draw_groups(single, DIGITS.select(["three"]), FlipOptions(), seed=0, epoch=0)
    few = [*single, Example("rare", None, None, frozenset({"seven"}))]
    with pytest.raises(ExampleError, match=r"seven 1, three 20.*Add images of 'seven'"):
        draw_groups(few, DIGITS.select(["three", "seven"]), FlipOptions(), seed=0, epoch=0)
    with pytest.raises(ExampleError, match="No image violates"):
        draw_groups([], DIGITS, FlipOptions(), seed=0, epoch=0)
    with pytest.raises(ExampleError, match="at least two"):
        draw_pairs(
            [*single, *[Example(f"b{n}", None) for n in range(9)]],
            DIGITS.select(["three"]),
            FlipOptions(),
            seed=0,
            pairs=1,
        )
    unknown = [
        replace(image, unknown=frozenset(DIGITS.keys) - image.violates)
        for image in EXAMPLES
        if image.violates
    ]
    with pytest.raises(ExampleError, match=r"known for every category: 0 of"):
        draw_groups(unknown, DIGITS, FlipOptions(), seed=0, epoch=0)
    with pytest.raises(ExampleError, match="Two examples have the id '1'"):
        draw_groups([Example("1", None), Example("1", None)], DIGITS, FlipOptions(), seed=0, epoch=0)


@pytest.mark.parametrize(
    "values",
    [
        {"group_size": 3}, {"group_size": 0}, {"min_categories": 0}, {"min_categories": 5, "max_categories": 4},
        {"rename": 1.5}, {"focus": -0.1}, {"held_out": "three"}, {"names": "abc"}, {"benign": float("nan")},
    ],
)  # fmt: skip
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ArbiterError):
        FlipOptions(**values)  # type: ignore[arg-type]


def test_lists_from_yaml_are_accepted_and_held_out_keys_checked() -> None:
    chosen = FlipOptions(held_out=["three"], names=["a", "b"])  # type: ignore[arg-type]
    assert (chosen.held_out, chosen.names) == (frozenset({"three"}), ("a", "b"))
    with pytest.raises(TaxonomyError, match="did you mean 'three'"):
        draw_groups(EXAMPLES, DIGITS, FlipOptions(held_out=frozenset({"thre"})), seed=0, epoch=0)
    with pytest.raises(TaxonomyError, match="held out"):
        draw_groups(EXAMPLES, DIGITS.select(["three"]), chosen, seed=0, epoch=0)


def test_long_names_and_texts_are_not_merged_beyond_their_limits() -> None:
    wordy = Taxonomy.from_dict(
        {"name": "wordy", "version": 1, "categories": [{"name": f"{key} {'x' * 40}", "definition": f"{key} {'y' * 900}", "key": key} for key in DIGITS.keys]}
    )  # fmt: skip
    groups = draw_groups(EXAMPLES, wordy, replace(PLAIN, custom=1.0), seed=0, epoch=0, groups=20)
    custom = [c for group in groups for c in group.taxonomy if len(c.members) > 1]
    assert custom
    assert all(len(c.members) == 2 and c.name in FlipOptions().names for c in custom)


def test_report_counts_every_row_and_goes_to_json() -> None:
    rows = rows_of(draw_groups(EXAMPLES, DIGITS, FlipOptions(), seed=0, epoch=0))
    counts = json.loads(json.dumps(report(rows)))
    for name in ("label", "arm", "policy length", "prompt", "source"):
        assert sum(counts[name].values()) == len(rows) == counts["rows"]
    assert sum(counts["category"].values()) == sum(counts["called"].values()) == counts["label"]["unsafe"]
    assert counts["label"] == {"safe": len(rows) // 2, "unsafe": len(rows) // 2}
    assert counts["images"] == len({row.example.id for row in rows})
    table = format_report(counts)
    assert f"{len(rows)} rows" in table
    assert all(value in table for name in ("arm", "category", "source") for value in counts[name])
    assert format_report(report([])).startswith("0 rows")


def test_published_scheme_tells_negatives_by_their_form() -> None:
    rows = paper_rows(EXAMPLES, DIGITS, seed=0)
    assert rows == paper_rows(EXAMPLES, DIGITS, seed=0) != paper_rows(EXAMPLES, DIGITS, seed=1)
    assert {row.arm for row in rows} == {"paper_keep", "paper_flip", "paper_safe"}
    assert sum(row.unsafe for row in rows) * 2 == len(rows)
    for row in rows:
        labels = row.taxonomy.label(row.example)
        assert row.unsafe is any(labels)
        bare = all(category.name_only for category in row.taxonomy)
        assert bare == (row.arm == "paper_flip")
        text = render(row.taxonomy, row.prompt).messages[0]["content"][0]["text"]
        assert ("the digit" in text) != bare
    fixed = paper_rows(EXAMPLES, DIGITS, seed=0, definitions_in_negatives=True)
    assert not any(category.name_only for row in fixed for category in row.taxonomy)
    with pytest.raises(ExampleError, match="at least two"):
        paper_rows(EXAMPLES, DIGITS.select(["one"]), seed=0)
    with pytest.raises(ExampleError, match="No image violates"):
        paper_rows([Example("1", None)], DIGITS, seed=0)


OWN = Taxonomy.from_dict(
    {
        "name": "own",
        "version": 1,
        "categories": [{"name": f"the {key}", "definition": key, "key": key} for key in ("a", "b", "c")],
    }
)


def question(name: str, violates: str, category: str | None, arm: str, **more: Any) -> Row:
    """A row about an image under the whole of `OWN`; `category` is a name in it."""
    image = Example(name, None, None, frozenset(violates), source=more.pop("source", "real"))
    values = {"prompt": None, "prompt_of": None, "focus": None, "taxonomy": OWN} | more
    return Row(image, unsafe=category is not None, category=category, arm=arm, **values)


def test_a_report_counted_by_hand() -> None:
    """Five rows of four images, one of them drawn twice; names tell whether a category was renamed or merged."""
    renamed = OWN.rename({"the a": "a"})  # called by its key: its own name
    merged = Taxonomy("own", "1", (Category("list", "a; or b", key="a+b", members=("a", "b")),))
    rows = [
        question("one", "a", "the a", "keep", prompt="x", prompt_of="one"),
        question("one", "a", "a", "focus_keep", taxonomy=renamed, focus="a", prompt="y", prompt_of="two"),
        question("two", "b", "list", "keep", taxonomy=merged, source="generated"),
        question("three", "", None, "benign"),
        replace(
            question("four", "c", None, "focus_flip", focus="the b", source="generated"),
            wording="case+codes",
            prompt_form="odd",
        ),
    ]
    assert report(rows) == {
        "rows": 5,
        "policies": 3,
        "images": 4,
        "uses": {"min": 1, "max": 2},
        "label": {"safe": 2, "unsafe": 3},
        "arm": {"benign": 1, "focus_flip": 1, "focus_keep": 1, "keep": 2},
        "category": {"a": 2, "custom": 1},
        "called": {"custom": 1, "own": 1, "renamed": 1},
        "focus": {"a": 1, "b": 1},
        "policy length": {"1": 1, "3": 4},
        "prompt": {"kept": 1, "lie": 1, "none": 3},
        "wording": {"case": 1, "codes": 1, "plain": 4},
        "prompt form": {"odd": 1, "plain": 4},
        "source": {"generated": 2, "real": 3},
    }
    assert "wording        plain                           4   80.0%" in format_report(report(rows))
    assert list(report(rows)["arm"]) == ["benign", "focus_flip", "focus_keep", "keep"]
    lines = format_report(report(rows)).split("\n")
    assert lines[0] == "5 rows, 3 policies, 4 images used 1 to 2 times"
    assert lines[1:3] == [
        "label          safe                            2   40.0%",
        "label          unsafe                          3   60.0%",
    ]
    assert (
        len(lines) == 1 + sum(len(values) for values in report(rows).values() if isinstance(values, dict)) - 2
    )
    assert report([])["uses"] == {"min": 0, "max": 0}


def test_policy_lengths_are_listed_by_size() -> None:
    digits = [
        question(str(n), "", None, "benign", taxonomy=DIGITS.select(DIGITS.names[:n])) for n in (10, 9, 2)
    ]
    assert list(report(digits)["policy length"]) == ["2", "9", "10"]


def test_the_published_scheme_in_detail() -> None:
    """Section 5.2: a violated category and 1 to 10 others; 1 to 10 that are not violated; 2 to 11 random ones."""
    wide = Taxonomy.from_dict(
        {
            "name": "wide",
            "version": 1,
            "categories": [{"name": f"c{n}", "definition": f"d{n}"} for n in range(14)],
        }
    )
    images = [
        Example(f"u{n}", None, "text", frozenset({f"c{n % 14}", f"c{(n + 5) % 14}"})) for n in range(150)
    ]
    images += [Example(f"s{n}", None, "text") for n in range(150)]
    images += [Example("unknown", None, None, frozenset({"c1"}), frozenset({"c2"}))]
    rows = paper_rows(images, wide, seed=0)
    lengths: dict[str, Counter[int]] = {
        "paper_keep": Counter(),
        "paper_flip": Counter(),
        "paper_safe": Counter(),
    }
    for row in rows:
        lengths[row.arm][len(row.taxonomy)] += 1
        assert (row.prompt, row.prompt_of, row.focus) == (None, None, None)
        assert (row.category is not None) == row.unsafe == (row.arm == "paper_keep")
        assert row.category is None or row.category in row.example.violates
        assert (row.arm == "paper_safe") == (row.example.id[0] == "s")
    assert {arm: (min(found), max(found)) for arm, found in lengths.items()} == {
        **{"paper_keep": (2, 11), "paper_flip": (1, 10), "paper_safe": (2, 11)},
    }
    assert "unknown" not in {row.example.id for row in rows}
    assert {arm: found.total() for arm, found in lengths.items()} == {
        **{"paper_keep": 300, "paper_flip": 150, "paper_safe": 150},
    }
    assert Counter(row.example.id for row in rows if not row.unsafe) == dict.fromkeys(
        [i.id for i in images[:-1]], 1
    )
    first = [
        row.taxonomy.names.index(row.category) for row in rows if row.category and len(row.taxonomy) == 6
    ]
    assert set(first) == set(range(6))  # the answer may stand anywhere
    assert [row.unsafe for row in rows[:40]] not in ([True] * 40, [False] * 40)


def test_an_image_that_violates_everything_gives_no_published_negative() -> None:
    two = DIGITS.select(["one", "two"])
    rows = paper_rows([Example("all", None, None, frozenset({"one", "two"}))], two, seed=0)
    assert [(row.arm, len(row.taxonomy)) for row in rows] == [("paper_keep", 2)]


def test_pairs_depend_on_their_seed_only() -> None:
    first, again, other = (
        draw_pairs(EXAMPLES, DIGITS, FlipOptions(), seed=seed, pairs=8) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(("benign", "longest"), [(1, 2), (2, 3)])
def test_a_policy_of_every_category_needs_as_many_harmless_images_as_a_group_has_safe_rows(
    benign: int, longest: int
) -> None:
    three = DIGITS.select(["one", "two", "three"])
    images = [Example(f"{key}{n}", None, None, frozenset({key})) for key in three.keys for n in range(6)]
    images += [Example(f"none{n}", None) for n in range(benign)]
    chosen = replace(PLAIN, group_size=4, custom=0.0)
    groups = draw_groups(images, three, chosen, seed=0, epoch=0, groups=60)
    assert max(len(group.taxonomy) for group in groups) == longest
