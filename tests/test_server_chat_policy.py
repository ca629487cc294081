"""A policy text as a taxonomy: forms, and that nothing of a text is ever dropped."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from judge.server.chat_policy import read_policy
from judge.server.errors import ApiError
from prompts import Category, Taxonomy
from prompts.errors import TaxonomyError

WHERE = "messages[0].content"


def pairs(text: str) -> list[tuple[str, str]]:
    return [(category.name, category.definition) for category in read_policy(text, WHERE).taxonomy]


WANTED = [("Weapons", "Knives and guns."), ("Fights", "People who hurt each other: badly.")]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("- Weapons: Knives and guns.\n- Fights: People who hurt each other: badly.", "list"),
        ("\n* Weapons: Knives and\n  guns.\n\n* Fights: People who hurt each other: badly.\n", "list"),
        ("1. **Weapons**: Knives and guns.\n2. **Fights:** People who hurt each other: badly.", "list"),
        ("1) Weapons: Knives and guns.\n2) Fights: People who hurt each other: badly.", "list"),
        ("• Weapons: Knives and guns.\r\n• Fights: People who hurt each other: badly.", "list"),
        ("## Weapons\nKnives\nand guns.\n\n## Fights\nPeople who hurt each other: badly.", "headings"),
        ("# 1. Weapons:\nKnives and guns.\n# 2. Fights #\nPeople who hurt each other: badly.", "headings"),
        ("S1: Weapons.\nKnives and guns.\nS2: Fights.\nPeople who hurt each other: badly.", "codes"),
        ("O1: Weapons: Knives and guns.\nO2: Fights: People who hurt each other: badly.", "codes"),
        ("- S1: Weapons: Knives and guns.\n- S2: Fights: People who hurt each other: badly.", "list"),
        (json.dumps([{"name": name, "definition": text} for name, text in WANTED]), "json"),
        (json.dumps({"categories": [{"name": name, "definition": text} for name, text in WANTED]}), "json"),
        ("categories:\n- {name: Weapons, definition: Knives and guns.}\n"
         "- {name: Fights, definition: 'People who hurt each other: badly.'}", "yaml"),
        (Taxonomy("mine", "3", tuple(Category(*pair) for pair in WANTED)).to_yaml(), "yaml"),
    ],
)  # fmt: skip
def test_forms(text: str, form: str) -> None:
    assert pairs(text) == WANTED
    assert read_policy(text, WHERE).form == form


def test_codes_are_kept_and_may_stand_for_a_bare_name() -> None:
    first, second = read_policy("S1: Violent Crimes.\nS2: Hate.\n", WHERE).taxonomy
    assert (first.code, first.name, first.name_only) == ("S1", "Violent Crimes", True)
    assert (second.code, second.name) == ("S2", "Hate")
    [block] = read_policy("O1: Hate, Harassment\nShould not:\n- show slurs.\nCan:\n- teach.", WHERE).taxonomy
    assert (block.code, block.definition) == ("O1", "Should not: - show slurs. Can: - teach.")


@pytest.mark.parametrize(
    "text",
    [
        "Weapons: knives and guns.",
        "Allowed, never flag these:\n- Weapons: knives\n- Fights: boxing",
        "- Weapons: knives\n- anything else that hurts",
        "- Weapons: knives\nExcept in kitchens.",
        "- Weapons: knives\n* Fights: boxing",
        "# Allowed\n## Weapons\nKnives.",
        "Say this:\nS1: Weapons.",
        "## Weapons",
        "- Weapons: knives - Fights: boxing and more - and so on",
    ],
)
def test_what_is_not_a_list_throughout_is_one_category_and_nothing_is_lost(text: str) -> None:
    read = read_policy(text, WHERE)
    shown = " ".join(f"{c.name}: {c.definition}" for c in read.taxonomy)
    words = [word for word in text.replace(":", "").split() if word.strip("-*#")]
    assert [word for word in words if word not in shown.replace(":", "")] == []
    assert len(read.taxonomy) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("{", "starts like JSON"),
        ("[]", "array of"),
        ("[1]", "name, definition"),
        ('[{"name": "A", "definition": "x", "examples": 3}]', "list of texts"),
        ("[" * 49_000, "JSON"),
        ("categories: " + "[" * 3_000, "The policy"),
        ("categories: &a [*a]", "alias"),
        ("categories: 3", "must be a list"),
        ('say "safe"', "round brackets"),
        ("a\u202eb", "U\\+202E"),
        ("a\x00b", "U\\+0000"),
        ("<image> </s>", "round brackets"),
        ("x" * 2001, "at most 2000"),
        ("- safe: x", "word of the answers"),
        ("- A: x\n- a: y", "whatever their case"),
        ("\n".join(f"- N{n}n: x" for n in range(101)), "at most 100"),
    ],
)
def test_what_may_not_stand_in_a_policy_is_refused(text: str, said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        read_policy(text, WHERE)
    assert caught.value.status == 400
    assert str(caught.value.param).startswith(WHERE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"categories": [{"name": "A", "definition": "x"}], "categories": []}',
            "'categories' is given twice",
        ),
        ('[{"name": "A", "definition": "x", "name": "B"}]', "'name' is given twice"),
        ("categories:\n- {name: A, definition: x, name: B}", "'name' is given twice"),
    ],
)
def test_a_category_that_is_overwritten_is_not_dropped_unseen(text: str, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        read_policy(text, WHERE)


@pytest.mark.timeout(60)  # minutes before; a second now
def test_no_text_keeps_the_server_busy() -> None:
    """Pattern matching holds up every request of the server while it lasts."""
    assert pairs(f"# a{' ' * 49_000}x\nbody") == [("a x", "body")]
    assert pairs("# C#\nbody\n# D ##\nbody") == [("C#", "body"), ("D", "body")]
    endless = (f"# a{'#' * 49_000}x\nb", "# a\n" + "b\n" * 24_000, "categories: " + "[" * 20_000)
    for text in endless:
        with pytest.raises(ApiError):
            read_policy(text, WHERE)


def accepted(make: type[Category], *texts: str) -> bool:
    try:
        make(*texts)
    except TaxonomyError:
        return False
    return True


WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters=':*_`.#\\"<>[]{}|', exclude_categories=["C", "Z"]),
    min_size=1,
    max_size=12,
)
LINES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
CATEGORIES = st.lists(
    st.tuples(LINES, LINES), min_size=1, max_size=5, unique_by=lambda pair: pair[0].casefold()
)


@given(
    CATEGORIES,
    st.sampled_from(["- {}: {}", "* {}: {}", "• **{}**: {}", "1. {}: {}", "## {}\n{}", "A{n}: {}\n{}"]),
)
def test_lists_of_any_style_come_back(categories: list[tuple[str, str]], style: str) -> None:
    assume(all(accepted(Category, *pair) for pair in categories))
    # A line of a definition that looks like the start of the next category is one.
    assume(
        style[0] not in "#A"
        or not any(text[0] in "-#•" or (text[:1].isalpha() and text[1:2].isdigit()) for _, text in categories)
    )
    text = "\n".join(style.replace("{n}", str(n)).format(*pair) for n, pair in enumerate(categories, start=1))
    assert pairs(text) == categories


@given(st.text(max_size=300))
def test_any_text_is_a_policy_or_refused_and_never_loses_a_letter(text: str) -> None:
    try:
        read = read_policy(text, WHERE)
    except ApiError:
        return
    kept = "".join(f"{c.code or ''}{c.name}{c.definition}" for c in read.taxonomy)
    assert not {letter for letter in text if letter.isalpha()} - {*kept, *"policy"}
