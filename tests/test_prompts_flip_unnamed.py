"""Unsafe images of which nobody recorded how: used where they decide, and never with a label that is wrong."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts import Category, Example, ExampleError, FlipOptions, Taxonomy
from prompts.example import UNSPECIFIED
from prompts.flip import draw_groups, draw_pairs, fit_group_size, names_no_category, no_pairs
from prompts.flip.conditions import Condition, Conditional
from prompts.flip.prompt_texts import describe

KEYS = ("a", "b", "c")
POLICY = Taxonomy(
    "three",
    "1",
    tuple(
        Category(f"kind {key}", f"things of kind {key}", key=key, aliases=(f"sort {key}",)) for key in KEYS
    ),
)
EVERYTHING = FlipOptions(
    restyle=1.0, negation=0.3, conjunction=0.3, exception=0.3, split=0.3, custom=0.5, reprompt=1.0
)


def unnamed(name: str) -> Example:
    return Example(name, None, violates=frozenset({UNSPECIFIED}), unknown=frozenset(KEYS))


def whole(number: int = 12) -> list[Example]:
    return [unnamed(f"u{place}") for place in range(number)] + [
        Example(f"s{place}", None) for place in range(number)
    ]


def test_what_an_unnamed_image_is_unsafe_under() -> None:
    image = unnamed("u")
    assert POLICY.unsafe(image) is True
    assert POLICY.label(image) == (None, None, None)
    assert POLICY.select(["kind a", "kind b"]).unsafe(image) is None
    merged = Category("all", "any of them", members=KEYS)
    assert merged.label(image) is True
    assert Category("two", "some of them", members=("a", "b")).label(image) is None
    # Members of a condition are what it speaks of; violating one of them is not enough.
    both = Conditional("both", "a with b and c", members=KEYS, condition=Condition(all_of=POLICY.categories))
    assert both.label(image) is None
    assert Taxonomy("t", "1", (both,)).unsafe(image) is None
    assert POLICY.unsafe(Example("safe", None)) is False
    assert POLICY.unsafe(Example("x", None, unknown=frozenset("a"))) is None


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.frozensets(st.sampled_from(KEYS)), st.booleans()), min_size=14, max_size=40),
    st.integers(0, 99),
)
def test_no_label_is_ever_wrong(images: list[tuple[frozenset[str], bool]], seed: int) -> None:
    """What is true of each image is hidden from the draw where its row names no category."""
    truth = {str(place): Example(str(place), None, violates=keys) for place, (keys, _) in enumerate(images)}
    given_labels = [
        unnamed(name) if hidden and truth[name].violates else truth[name]
        for name, (_, hidden) in zip(truth, images, strict=True)
    ]
    try:
        groups = draw_groups(given_labels, POLICY, EVERYTHING, seed=seed, epoch=0, groups=4)
    except ExampleError:
        return
    for row in (row for group in groups for row in group.rows):
        image = truth[row.example.id]
        asked = row.taxonomy if row.focus is None else row.taxonomy.select([row.focus])
        assert any(asked.label(image)) is row.unsafe, row
        if row.category is not None:
            assert row.taxonomy.select([row.category]).label(image) == (True,)
        if row.unsafe and row.focus is None:
            assert (row.arm == "unnamed") is (UNSPECIFIED in row.example.violates)


def test_labels_without_categories_are_asked_about_under_the_whole_taxonomy() -> None:
    groups = draw_groups(
        whole(), POLICY, FlipOptions(prompt_condition=0.5, min_categories=1), seed=0, epoch=0
    )
    rows = [row for group in groups for row in group.rows]
    assert all({key for c in group.taxonomy for key in c.members} >= set(KEYS) for group in groups)
    assert Counter((row.unsafe, row.arm) for row in rows) == {
        (True, "unnamed"): len(rows) / 2,
        (False, "benign"): len(rows) / 2,
    }
    assert {row.category for row in rows} == {None}
    assert {row.focus for row in rows} == {None}
    assert len({group.taxonomy.hash for group in groups}) > 1  # other orders and wordings


def test_a_larger_taxonomy_than_a_policy_usually_holds() -> None:
    many = Taxonomy(
        "many", "1", tuple(Category(f"kind {n}", f"things of kind {n}", key=str(n)) for n in range(12))
    )
    images = [
        Example(f"u{n}", None, violates=frozenset({UNSPECIFIED}), unknown=frozenset(many.keys))
        for n in range(8)
    ] + [Example(f"s{n}", None) for n in range(8)]
    [group, *_] = draw_groups(images, many, FlipOptions(max_categories=9, restyle=0.0), seed=0, epoch=0)
    assert len(group.taxonomy) == 12


def test_named_and_unnamed_images_together() -> None:
    named = [Example(f"n{key}{n}", None, violates=frozenset(key)) for key in KEYS for n in range(6)]
    rows = [
        r
        for g in draw_groups([*whole(), *named], POLICY, FlipOptions(), seed=1, epoch=0, groups=40)
        for r in g.rows
    ]
    arms = Counter(row.arm for row in rows if row.unsafe)
    assert arms["unnamed"] > 5
    assert arms["keep"] + arms["focus_keep"] > 20
    assert all(not row.example.unknown for row in rows if not row.unsafe)


def test_why_there_are_no_pairs() -> None:
    assert names_no_category(whole())
    assert not names_no_category([Example("s", None)])
    assert no_pairs(whole(), KEYS).startswith("no unsafe image names its category")
    assert no_pairs(whole(), ["a"]).startswith("the taxonomy has one category")
    assert no_pairs([*whole(), Example("n", None, violates=frozenset("a"))], KEYS) == ""
    with pytest.raises(ExampleError, match="There are no pairs: no unsafe image names its category"):
        draw_pairs(whole(), POLICY, FlipOptions(), seed=0, pairs=2)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (
            whole(),
            FlipOptions(held_out=frozenset("a")),
            "nothing can be held out. Name categories in the table",
        ),
        (
            [*whole()[:12], Example("s", None)],
            FlipOptions(),
            "1 images are safe under them and a group needs 4",
        ),
        ([Example("s", None)] * 1, FlipOptions(), "No image violates a, b, c"),
    ],
)
def test_what_cannot_be_drawn_says_what_to_add(
    images: list[Example], options: FlipOptions, message: str
) -> None:
    with pytest.raises(ExampleError, match=message):
        draw_groups(images, POLICY, options, seed=0, epoch=0)


def test_groups_are_as_small_as_the_rarest_category_needs() -> None:
    images = [
        Example(f"{key}{n}", None, violates=frozenset(key))
        for key, m in zip(KEYS, (1, 5, 9), strict=True)
        for n in range(m)
    ]
    assert fit_group_size(images, POLICY, FlipOptions()).group_size == 2
    assert fit_group_size(images, POLICY, FlipOptions(held_out=frozenset("a"))).group_size == 8
    assert fit_group_size(images[1:], POLICY.select(["kind b", "kind c"]), FlipOptions()).group_size == 8
    assert (
        fit_group_size(
            [*images[1:], Example("s", None)], POLICY, FlipOptions(held_out=frozenset("a"))
        ).group_size
        == 2
    )
    assert fit_group_size(whole(3), POLICY, FlipOptions()).group_size == 6


def test_an_unnamed_image_is_not_described_as_empty() -> None:
    from random import Random

    assert describe(unnamed("u"), POLICY.categories, Random(0)) == ""
    assert describe(Example("s", None), POLICY.categories, Random(0)) != ""
