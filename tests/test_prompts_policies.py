"""Drawing policies and images: the parts of label flipping, each by itself."""

from collections import Counter
from random import Random

import pytest

from prompts import Category, Example, ExampleError, FlipOptions, Taxonomy, TaxonomyError
from prompts.errors import ArbiterError
from prompts.flip.options import NEUTRAL_NAMES
from prompts.flip.policies import draw_entries
from prompts.flip.pool import Pool
from prompts.flip.rows import Group, Row
from prompts.names import MAX_NAME_LENGTH, MAX_TEXT_LENGTH

LETTERS = Taxonomy(
    "letters",
    "1",
    tuple(
        Category(
            f"letter {key}",
            f"the letter {key}.",
            (f"one {key}",),
            code=f"S{key}",
            key=key,
            aliases=(f"character {key}", f"glyph {key}"),
            rewordings=(f"a drawn {key}.", f"a printed {key}."),
        )
        for key in "abcde"
    ),
)
PLAIN = {"rename": 0.0, "reword": 0.0, "custom": 0.0}


def draws(
    count: int, cover: int, times: int = 300, keys: str = "abcde", **options: object
) -> list[list[Category]]:
    chosen = FlipOptions(**{**PLAIN, **options})  # type: ignore[arg-type]
    rng = Random(0)
    return [draw_entries(LETTERS, list(keys), count, cover, chosen, rng) for _ in range(times)]


def test_without_changes_a_policy_is_a_random_choice_in_random_order() -> None:
    drawn = draws(3, 5)
    assert Counter(len(entries) for entries in drawn) == {3: 300}
    for entries in drawn:
        assert len({category.key for category in entries}) == 3
        for category in entries:
            assert category == Category(
                f"letter {category.key}",
                f"the letter {category.key}.",
                (f"one {category.key}",),
                key=category.key,
            )
    for place in range(3):
        found = Counter(entries[place].key for entries in drawn)
        assert set(found) == set("abcde")
        assert min(found.values()) > 35
    assert {category.key for entries in draws(2, 2, keys="bd") for category in entries} == {"b", "d"}


def test_renamed_and_reworded_categories_say_what_their_author_wrote() -> None:
    for entries in draws(2, 5, rename=1.0):
        assert all(category.name.split()[0] in ("character", "glyph") for category in entries)
        assert all(
            category.definition == f"the letter {category.key}." and category.examples for category in entries
        )
    for entries in draws(2, 5, reword=1.0):
        assert all(category.definition.startswith(("a drawn", "a printed")) for category in entries)
        assert all(
            category.name == f"letter {category.key}" and not category.examples for category in entries
        )
    assert all(
        (category.code, category.aliases, category.rewordings) == (None, (), ())
        for entries in draws(4, 5, rename=0.5, reword=0.5, custom=0.5)
        for category in entries
    )
    bare = Taxonomy("bare", "1", (Category("only", "a thing"),))
    everything = FlipOptions(rename=1.0, reword=1.0, custom=1.0)
    assert draw_entries(bare, ["only"], 1, 1, everything, Random(0)) == [Category("only", "a thing")]


def test_a_custom_category_covers_two_or_three_others_and_no_more_than_may_be_covered() -> None:
    drawn = draws(2, 5, custom=1.0, neutral_name=0.0)
    sizes = Counter(max(len(category.members) for category in entries) for entries in drawn)
    assert set(sizes) == {2, 3}
    assert 100 < sizes[2] < 200
    for entries in drawn:
        assert len(entries) == 2
        merged, single = sorted(entries, key=lambda category: -len(category.members))
        assert len(single.members) == 1
        assert not set(merged.members) & set(single.members)
        assert merged.key == "+".join(sorted(merged.members))
        assert merged.name == " or ".join(f"letter {key}" for key in merged.members)
        assert merged.definition == "; or ".join(f"the letter {key}" for key in merged.members)
        assert merged.examples == ()
    assert {entries[0].members == entries[0].key for entries in drawn} == {False}
    assert {max(len(c.members) for c in entries) for entries in draws(2, 3, custom=1.0)} == {2}
    assert {max(len(c.members) for c in entries) for entries in draws(3, 3, custom=1.0)} == {1}
    shares = [max(len(c.members) for c in entries) > 1 for entries in draws(2, 5, custom=0.3)]
    assert 0.2 < sum(shares) / len(shares) < 0.4


def test_names_that_say_nothing() -> None:
    def names(**options: object) -> set[str]:
        return {c.name for entries in draws(1, 5, custom=1.0, **options) for c in entries}

    assert names(neutral_name=1.0) == set(NEUTRAL_NAMES)
    assert names(neutral_name=1.0, names=("mine",)) == {"mine"}
    assert all(" or " in name for name in names(neutral_name=1.0, names=()))
    # A name that the taxonomy uses, whatever its case, is not free; without another the parts stay apart.
    assert all(name.startswith("letter") for name in names(neutral_name=1.0, names=("Glyph A",)))
    assert all(" or " not in name for name in names(neutral_name=1.0, names=("LETTER B",)))
    assert names(neutral_name=1.0, names=("Glyph A", "mine")) == {"mine"}


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_custom_names_and_definitions_end_where_texts_do(extra: int, fits: bool) -> None:
    def merged(name: int, definition: int, **options: object) -> list[Category]:
        """Two categories whose joined name and definition take that many characters."""
        pair = tuple(
            Category(f"{key}{'n' * (a - 1)}", f"{key}{'d' * (b - 1)}", key=key)
            for key, a, b in (
                ("x", name // 2 - 4, definition // 2 - 5),
                ("y", name - 4 - (name // 2 - 4), definition - 5 - (definition // 2 - 5)),
            )
        )
        chosen = FlipOptions(**{**PLAIN, "custom": 1.0, "neutral_name": 0.0, **options})  # type: ignore[arg-type]
        return draw_entries(Taxonomy("t", "1", pair), ["x", "y"], 1, 2, chosen, Random(0))

    [named] = merged(MAX_NAME_LENGTH + extra, 40, names=("mine",))
    assert (len(named.members), named.name == "mine") == (2, not fits)
    [named] = merged(MAX_NAME_LENGTH + extra, 40, names=())
    assert len(named.members) == (2 if fits else 1)
    [named] = merged(20, MAX_TEXT_LENGTH + extra)
    assert len(named.members) == (2 if fits else 1)


# Images


def image(name: str, violates: str = "", unknown: str = "") -> Example:
    return Example(name, None, None, frozenset(violates), frozenset(unknown))


def test_images_with_the_same_labels_stand_together() -> None:
    pool = Pool(
        [image("1", "a"), image("2", "a"), image("3", "a", "b"), image("4"), image("5", "ac")], "c", Random(0)
    )
    assert [example.id for example in pool.examples] == ["1", "2", "3", "4"]
    assert [(bucket.example.violates, len(bucket.heap)) for bucket in pool.buckets] == [
        (frozenset("a"), 2),
        (frozenset("a"), 1),
        (frozenset(), 1),
    ]
    assert (pool.violating("a"), pool.violating("b"), pool.violating("c")) == (3, 0, 0)
    assert pool.count(lambda example: "b" in example.unknown) == 1
    assert Pool([image("1", "a")], (), Random(0)).violating("a") == 1
    with pytest.raises(ExampleError, match="Two examples have the id '1'"):
        Pool([image("1"), image("1", "a")], (), Random(0))


def test_the_least_used_image_comes_first_and_none_twice_before_it_is_put_back() -> None:
    pool = Pool([image(str(n), "a" if n < 3 else "b") for n in range(5)], (), Random(0))
    both = pool.buckets
    first = [pool.take(both) for _ in range(5)]
    assert {example.id for example in first if example} == set("01234")
    assert pool.take(both) is None
    assert pool.take([]) is None
    pool.put_back(used=True)
    again = [pool.take(both[:1]) for _ in range(2)]
    pool.put_back(used=True)
    rest = [pool.take(both) for _ in range(3)]  # those used once, before those used twice
    assert {example.id for example in (*again, *rest) if example} == set("01234")
    pool.put_back(used=False)
    repeated = [pool.take(both) for _ in range(3)]  # as if never taken
    assert {example.id for example in repeated if example} == {example.id for example in rest if example}
    pool.put_back(used=False)
    pool.put_back(used=True)  # nothing is taken, so nothing changes
    assert [len(bucket.heap) for bucket in both] == [3, 2]


def test_ties_are_broken_by_chance() -> None:
    starts: Counter[str] = Counter()
    for seed in range(200):
        fresh = Pool([image(str(n), "a") for n in range(4)], (), Random(seed))
        taken = fresh.take(fresh.buckets)
        assert taken is not None
        starts[taken.id] += 1
    assert min(starts.values()) > 25


# Options and rows


@pytest.mark.parametrize(
    "values",
    [
        *[{name: edge} for name in ("rename", "reword", "custom", "neutral_name", "no_prompt", "focus", "benign") for edge in (0.0, 1.0)],
        {"group_size": 2},
        {"min_categories": 1, "max_categories": 1},
        {"min_categories": 3, "max_categories": 3},
    ],
)  # fmt: skip
def test_the_ends_of_every_range_are_allowed(values: dict[str, float]) -> None:
    chosen = FlipOptions(**values)  # type: ignore[arg-type]
    assert all(getattr(chosen, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"group_size": 1}, "group_size is 1"),
        ({"group_size": 5}, "group_size is 5"),
        *[
            ({name: edge}, rf"^{name} is {edge}")
            for name in ("rename", "reword", "custom", "neutral_name", "no_prompt", "focus", "benign")
            for edge in (-0.01, 1.01)
        ],
        ({"min_categories": 4, "max_categories": 3}, "Policies of 4 to 3 categories"),
        ({"held_out": 3}, "^held_out takes a list of texts, got 3"),
        ({"names": ["a", 1]}, "^names takes a list of texts"),
    ],
)
def test_options_out_of_range_are_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ArbiterError, match=said):
        FlipOptions(**values)  # type: ignore[arg-type]


def test_lists_of_any_kind_hold_keys_out() -> None:
    for given in (["a"], ("a",), {"a"}, frozenset("a")):
        chosen = FlipOptions(held_out=given)  # type: ignore[arg-type]
        assert chosen.held_out == frozenset("a")
        assert chosen.training_keys(LETTERS) == ["b", "c", "d", "e"]
    with pytest.raises(
        TaxonomyError, match=r"Cannot hold out 'letter a': not a key of 'letters'.*: a, b, c, d, e"
    ):
        FlipOptions(held_out=frozenset({"letter a"})).training_keys(LETTERS)
    with pytest.raises(TaxonomyError, match="Every category of 'letters' is held out"):
        FlipOptions(held_out=frozenset("abcde")).training_keys(LETTERS)


def test_the_defaults_of_label_flipping() -> None:
    """Recipes that leave an option out are promised these."""
    chosen = FlipOptions()
    assert (chosen.min_categories, chosen.max_categories, chosen.group_size) == (1, 9, 8)
    assert (chosen.rename, chosen.reword, chosen.custom, chosen.neutral_name) == (0.25, 0.25, 0.25, 0.5)
    assert (chosen.no_prompt, chosen.focus, chosen.benign, chosen.balance) == (0.25, 0.25, 0.2, 1.0)
    assert (chosen.restyle, chosen.reprompt, chosen.distractors) == (0.25, 0.3, ())
    assert (chosen.names, chosen.held_out) == (NEUTRAL_NAMES, frozenset())
    assert NEUTRAL_NAMES == ("house list", "own rule", "local rule", "our list")


def test_rows_know_whose_prompt_they_show() -> None:
    def row(prompt_of: str | None, unsafe: bool = True) -> Row:
        return Row(
            image("1"), LETTERS, None if prompt_of is None else "x", prompt_of, unsafe, None, None, "keep"
        )

    assert [row(of).prompt_kind for of in (None, "1", "2")] == ["none", "kept", "lie"]
    unsafe = row(None)
    assert Group(LETTERS, (unsafe,)).rows[0].unsafe
