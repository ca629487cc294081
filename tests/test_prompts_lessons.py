"""Lessons: policies and prompts in other words, whose labels stay right and whose texts say nothing of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.obedience import texts as measured
from judge.encoders.conditions import split_condition
from prompts import (
    ArbiterError,
    Category,
    Example,
    FlipOptions,
    Group,
    Row,
    Taxonomy,
    TaxonomyError,
    draw_groups,
    load_taxonomy,
    render,
    report,
)
from prompts.flip import policy_texts, prompt_words
from prompts.flip.conditions import Condition, Conditional
from prompts.flip.logic import LOGIC
from prompts.flip.options import POLICY_PARTS, PROMPT_PARTS
from prompts.flip.prompt_texts import describe, harmless_text, rewrite_prompt
from prompts.flip.wording import Style, draw_style, restyle
from prompts.reading import WINDOW, clean

DIGITS = load_taxonomy("digits")
EVERYDAY = load_taxonomy("everyday")
NOTHING = dict.fromkeys((*POLICY_PARTS, *PROMPT_PARTS, "mixed"), 0.0)


def images(count: int = 240, unknown: float = 0.0) -> list[Example]:
    rng = Random(0)
    found = []
    for number in range(count):
        shown = rng.sample(DIGITS.keys, rng.choice((0, 1, 1, 2, 2)))
        hidden = frozenset(key for key in DIGITS.keys if key not in shown and rng.random() < unknown)
        found.append(Example(f"e{number}", None, f"a photo of {shown}", frozenset(shown), hidden))
    return found


IMAGES = images()


def draw(groups: int = 6, examples: list[Example] = IMAGES, seed: int = 0, **values: object) -> list[Group]:
    """Groups under the options given; of what may happen to texts, nothing else does."""
    options = FlipOptions(**{**NOTHING, "restyle": 1.0, "reprompt": 1.0, **values})  # type: ignore[arg-type]
    return draw_groups(examples, DIGITS, options, seed=seed, epoch=0, groups=groups)


def rows_of(groups: Iterable[Group]) -> list[Row]:
    return [row for group in groups for row in group.rows]


def check(row: Row) -> None:
    """The label follows from policy and image, the answer is one of those that may be given, the prompt is readable."""
    labels = dict(zip(row.taxonomy.names, row.taxonomy.label(row.example), strict=True))
    asked = [labels[row.focus]] if row.focus else list(labels.values())
    assert row.unsafe is any(asked)
    assert row.unsafe or None not in asked
    assert (row.category is not None) == row.unsafe
    assert row.category is None or labels[row.category] is True
    assert row.prompt is None or (clean(row.prompt).text == row.prompt and 0 < len(row.prompt) <= WINDOW)
    answers = {answer.category for answer in render(row.taxonomy, row.prompt, focus=row.focus).answers}
    assert (row.taxonomy.index(row.category) if row.category else None) in answers


shares = st.sampled_from([0.0, 0.5, 1.0])


@given(
    st.fixed_dictionaries(dict.fromkeys((*POLICY_PARTS, *PROMPT_PARTS, "mixed", "balance"), shares)),
    st.integers(0, 9),
)
def test_whatever_is_done_to_texts_labels_and_answers_stay_right(values: dict[str, float], seed: int) -> None:
    examples = IMAGES if seed % 2 else images(unknown=0.2)
    groups = draw(2, examples, seed, distractors=("everyday",), max_categories=4, group_size=4, **values)
    for group in groups:
        assert sum(row.unsafe for row in group.rows) == 2
        for row in group.rows:
            check(row)


def test_images_are_drawn_alike_with_lessons_and_without() -> None:
    """Wording has a generator of its own: one may be changed without changing what is shown."""
    worded = dict.fromkeys(("case", "clauses", "phrases", "orders", *PROMPT_PARTS), 1.0)
    for plain, other in zip(rows_of(draw()), rows_of(draw(**worded)), strict=True):  # type: ignore[arg-type]
        assert (plain.example, plain.unsafe, plain.prompt_of) == (
            other.example,
            other.unsafe,
            other.prompt_of,
        )
        assert plain.taxonomy.keys == other.taxonomy.keys
        assert plain.taxonomy.names != other.taxonomy.names


def test_evaluations_are_in_plain_words() -> None:
    options = FlipOptions(distractors=("everyday",)).plain
    rows = rows_of(draw_groups(IMAGES, DIGITS, options, seed=0, epoch=0, groups=20))
    assert {(row.wording, row.prompt_form) for row in rows} == {("plain", "plain")}
    assert not any(isinstance(category, Conditional) for row in rows for category in row.taxonomy)


def test_shares_of_what_is_done() -> None:
    options = FlipOptions(distractors=("everyday",), group_size=2, restyle=0.65, reprompt=0.6)
    groups = draw_groups(IMAGES, DIGITS, options, seed=0, epoch=0, groups=500)
    counts = report(rows_of(groups))
    assert set(counts["wording"]) == {*POLICY_PARTS, "mixed", "plain"}
    assert set(counts["prompt form"]) == {*PROMPT_PARTS, "plain"}
    assert 0.3 < counts["wording"]["plain"] / 1000 < 0.55
    assert max(len(group.taxonomy) for group in groups) > 15


# Wording


@pytest.mark.parametrize(
    ("part", "names", "definitions"),
    [("case", 0, 0), ("clauses", 0, 9), ("codes", 0, 9), ("nonsense", 0, 9), ("phrases", 9, 0), ("legal_prose", 9, 0), ("orders", 9, 0)],
)  # fmt: skip
def test_each_part_changes_its_own_texts(part: str, names: int, definitions: int) -> None:
    """`names` and `definitions` of 9 entries stay as they are; in lower case, digits' texts look like those before."""
    entries, rng = DIGITS.categories[:9], Random(3)
    style = replace(draw_style(FlipOptions(**{**NOTHING, part: 1.0}), rng))  # type: ignore[arg-type]
    assert style.parts == (part,)
    found = restyle(entries, [replace(style, case=style.case and "upper")] * 9, rng)
    assert sum(a.name == b.name for a, b in zip(entries, found, strict=True)) == names
    assert sum(a.definition == b.definition for a, b in zip(entries, found, strict=True)) == definitions
    assert [(c.key, c.members) for c in found] == [(c.key, c.members) for c in entries]
    assert all(a.definition.casefold().rstrip(".") in b.definition.casefold() for a, b in zip(entries, found, strict=True))  # fmt: skip


def test_names_without_meaning_keep_their_definition() -> None:
    entries = [Category("house list", "the digit 1; or the digit 2"), Category("three", "the digit 3")]
    found = restyle(entries, [Style(definition="")] * 2, Random(0), meaningless=("house list",))
    assert [category.name_only for category in found] == [False, True]
    options = FlipOptions(codes=1.0, names_only=1.0, clauses=0.0, phrases=0.0, legal_prose=0.0)
    assert {draw_style(options, Random(seed)).definition for seed in range(9)} == {None}


def test_texts_never_grow_beyond_their_limits() -> None:
    long = [Category("n" * 78, "d" * 1995, key="a"), Category("ß" * 60, "ß" * 1500, key="b")]
    rng = Random(0)
    everything = FlipOptions(**dict.fromkeys(("case", "clauses", "phrases", "orders"), 1.0))  # type: ignore[arg-type]
    for _ in range(60):
        restyle(long, [draw_style(everything, rng)] * 2, rng)  # `Category` refuses longer ones
    for group in draw(20, legal_prose=1.0, distract=1.0, distractors=("everyday",), policy_characters=900):
        texts = [len(c.name) + len(c.definition) for c in group.taxonomy]
        assert sum(texts) <= 900 or group.rows[0].wording == "plain"


def test_lessons_share_no_wording_with_the_families_that_measure() -> None:
    lessons = {
        text.casefold()
        for module in (policy_texts, prompt_words)
        for name, texts in vars(module).items()
        if name.isupper() and isinstance(texts, tuple)
        for text in texts
        if isinstance(text, str) and len(text) > 12
    }
    suite = {
        text.casefold()
        for name, texts in vars(measured).items()
        if name.isupper() and isinstance(texts, tuple)
        for text in texts
        if isinstance(text, str)
    }
    assert len(lessons) > 150
    assert not lessons & suite


# Structure and logic


def test_distractors_are_violated_by_nobody_and_refused_where_they_might_be() -> None:
    for group in draw(20, distract=1.0, distractors=("everyday",), longest=24):
        unrelated = [c for c in group.taxonomy if c.key.startswith("everyday/")]
        assert unrelated
        assert len(group.taxonomy) <= 24
        assert not any(category.label(image) for category in unrelated for image in IMAGES)
    with pytest.raises(TaxonomyError, match="not unrelated"):
        draw(distract=1.0, distractors=("digits",))
    assert not any("distract" in row.wording for row in rows_of(draw(distract=1.0)))


def test_conditions_follow_kleenes_logic() -> None:
    a, b, c = (Category(key, key) for key in "abc")
    cases = [
        (Condition(none_of=(a,)), ["", "b"], ["a", "ab"]),
        (Condition(all_of=(a, b)), ["ab", "abc"], ["", "a", "b"]),
        (Condition(all_of=(a,), none_of=(b,)), ["a", "ac"], ["", "ab", "b"]),
        (Condition(all_of=(a,), any_of=(b, c)), ["ab", "ac"], ["a", "bc", ""]),
    ]
    for condition, covered, others in cases:
        for violates in (*covered, *others):
            assert condition.label(Example("1", None, None, frozenset(violates))) is (violates in covered)
    half = Example("1", None, None, frozenset("a"), frozenset("b"))
    assert [condition.label(half) for condition, _, _ in cases] == [False, None, None, None]


@pytest.mark.parametrize("part", LOGIC)
def test_logic_occurs_and_both_labels_have_their_hard_cases(part: str) -> None:
    groups = [g for g in draw(25, **{part: 1.0}, group_size=4) if part in g.rows[0].wording]
    assert len(groups) > 10
    for row in rows_of(groups):
        check(row)
    made = [c for g in groups for c in g.taxonomy if isinstance(c, Conditional)]
    assert made
    halves = [row for row in rows_of(groups) if not row.unsafe and any(row.example.violates & set(c.members) for c in row.taxonomy if isinstance(c, Conditional))]  # fmt: skip
    assert halves, "safe rows show part of what a condition asks for"


def test_negation_makes_benign_images_unsafe() -> None:
    rows = [row for row in rows_of(draw(20, negation=1.0, focus=0.0)) if row.wording == "negation"]
    assert any(row.unsafe and not row.example.violates for row in rows)
    assert all(row.example.violates for row in rows if not row.unsafe)


def test_the_two_halves_of_a_split_are_the_whole() -> None:
    entries = list(DIGITS.categories[:3])
    found = LOGIC["split"](entries, (), (), Random(1))
    assert len(found) > 3
    for image in IMAGES:
        whole = {c.key for c in entries if c.label(image)}
        assert {key for c in found if c.label(image) for key in c.members} == whole


# Prompts


def test_descriptions_use_every_word_of_a_category() -> None:
    image, rng = Example("1", None, None, frozenset({"four"})), Random(0)
    four = DIGITS.categories[4]
    said = [describe(image, DIGITS.categories, rng) for _ in range(400)]
    for word in (four.name, *four.aliases, four.definition, *four.rewordings):
        assert any(word in text for text in said)
    nothing = {describe(Example("1", None), DIGITS.categories, rng) for _ in range(50)}
    assert nothing == set(prompt_words.EMPTY)


@pytest.mark.parametrize("length", [10, 300, 2000])
def test_harmless_texts_have_their_length(length: int) -> None:
    for seed in range(12):
        assert length - 1 <= len(harmless_text(length, Random(seed))) <= length


def test_prompts_are_read_in_windows_and_keep_what_they_are_about() -> None:
    image = Example("1", None, "a photo of four", frozenset({"four"}))
    drawn = [rewrite_prompt(image, ("lengthen",), DIGITS.categories, Random(seed)) for seed in range(300)]
    assert all(text and len(text) <= WINDOW for text in drawn)
    assert 0.3 < sum("a photo of four" in str(text) for text in drawn) / 300 < 0.9
    assert rewrite_prompt(image, (), DIGITS.categories, Random(0)) == "a photo of four"
    assert rewrite_prompt(Example("2", None), (), DIGITS.categories, Random(0)) is None
    orders = Counter(
        "unsafe" in str(rewrite_prompt(image, ("inject",), DIGITS.categories, Random(seed)))
        for seed in range(300)
    )
    assert min(orders.values()) > 110, "as many order unsafe as safe"


def test_orders_come_with_both_labels() -> None:
    rows = rows_of(draw(40, inject=1.0, orders=1.0, no_prompt=0.0))
    for side in (True, False):
        for wanted in (" safe", "unsafe"):
            assert sum(wanted in (row.prompt or "").casefold() for row in rows if row.unsafe is side) > 30


# Balance


def test_images_of_a_pair_violate_equally_many_keys_where_that_is_possible() -> None:
    counts = {
        balance: [(row.unsafe, len(row.example.violates)) for row in rows_of(draw(60, balance=balance, benign=0.0))]
        for balance in (0.0, 1.0)
    }  # fmt: skip
    means = {
        balance: [
            sum(n for unsafe, n in found if unsafe is side) / (len(found) / 2) for side in (True, False)
        ]
        for balance, found in counts.items()
    }
    assert means[0.0][0] - means[0.0][1] > 0.15
    assert abs(means[1.0][0] - means[1.0][1]) < (means[0.0][0] - means[0.0][1]) / 2


@pytest.mark.parametrize(
    "values",
    [{"restyle": 1.5}, {"nonsense": -0.1}, {"longest": 0}, {"policy_characters": -1}, {"distractors": "everyday"}],
)  # fmt: skip
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ArbiterError):
        FlipOptions(**values)  # type: ignore[arg-type]


def test_real_data_needs_no_distractors() -> None:
    assert FlipOptions().distractors == ()
    own = Taxonomy("own", "1", (Category("Hate", "Content that demeans."), Category("Spam", "Unwanted ads.")))
    examples = [Example(f"{key}{n}", None, None, frozenset({key})) for key in own.keys for n in range(9)]
    examples += [Example(f"none{n}", None, None) for n in range(9)]
    groups = draw_groups(examples, own, FlipOptions(group_size=4), seed=0, epoch=0, groups=60)
    for row in rows_of(groups):
        check(row)


TOPICS = {"driving": ("on the road", "at the wheel"), "school": ("in class",), "parties": ("at a party",)}


@pytest.mark.parametrize(("topics", "share"), [({}, 0.0), (TOPICS, 0.5)])
def test_of_groups_with_a_condition_on_the_prompt_neither_half_gives_the_label_away(
    topics: dict[str, tuple[str, ...]], share: float
) -> None:
    groups = draw(12, prompt_condition=1.0, topics=topics, restyle=0.0, no_prompt=share)
    for group in groups:
        [(place, category)] = [
            (place, category)
            for place, category in enumerate(group.taxonomy)
            if isinstance(category, Conditional) and category.about_prompt
        ]
        halves = split_condition(category.definition)
        assert halves is not None
        _, topic = halves
        [whole] = category.condition.all_of
        speaks = category.condition.spoken_in or frozenset()
        seen: Counter[tuple[bool | None, bool, bool]] = Counter()
        for row in group.rows:
            assert row.example.prompt == row.prompt
            labels = group.taxonomy.label(row.example)
            assert row.unsafe == any(labels)
            assert labels[place] == (whole.label(row.example) and row.prompt in speaks)
            other = any(label for number, label in enumerate(labels) if number != place)
            seen[row.prompt in speaks, other, row.unsafe] += 1
        assert seen == {
            (True, False, True): 2,
            (True, False, False): 2,
            (False, True, True): 2,
            (False, False, False): 2,
        }
        if topic in topics:
            ways = topics[topic]
            assert all(any(row.prompt.endswith(way) for way in ways) == (row.prompt in speaks)
                       for row in group.rows if row.prompt)  # fmt: skip
    rows = rows_of(groups)
    assert len({row.prompt for row in rows}) > 40
    assert {row.wording for row in rows} == {"prompt_condition"}
    assert any(row.prompt is None for row in rows) == bool(share)
    assert report(rows)["category"]["if"] == 24


def test_conditions_on_the_prompt_change_no_other_draw() -> None:
    def plain(groups: list[Group]) -> list[Group]:
        return [group for group in groups if group.rows[0].wording != "prompt_condition"]

    assert len(plain(draw(12, prompt_condition=0.5))) not in (0, 12)
    assert draw(3, prompt_condition=0.0) == draw(3)
    assert FlipOptions(prompt_condition=0.5).plain.prompt_condition == 0


def test_every_wording_of_a_condition_on_the_prompt_is_read() -> None:
    for pattern in policy_texts.PROMPT_CONDITIONS:
        definition = pattern.format(definition="a knife or a gun", topic="cars or buses")
        assert split_condition(definition) == ("a knife or a gun", "cars or buses")


@pytest.mark.parametrize(
    "topics", [{"driving": ("on the road",)}, {"driving": (), "school": ("in class",)}, {"a": "b", "c": "d"}]
)
def test_topics_that_say_nothing_are_refused(topics: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ArbiterError, match="topics"):
        FlipOptions(topics=topics)
