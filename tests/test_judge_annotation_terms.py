"""Search terms: in the taxonomy's own words, and from a chat server whose answer is not trusted."""

import json
from typing import Any

import pytest
from fixtures_chat_server import completion, problem
from hypothesis import given
from hypothesis import strategies as st

from judge.annotation.suggestions import LONGEST_TERM, read_entries, suggest_terms
from judge.annotation.terms import Term, candidate_terms, split_definition
from judge.errors import ConfigError
from judge.vlm.remote import RemoteJudge, parse_remote
from judge.vlm.replies import UnjudgedError
from prompts import Category, Taxonomy, load_taxonomy

POLICY = Taxonomy(
    "mine",
    "1",
    (
        Category(
            "Fire",
            "Open flames, sparks, or otherwise burning things (but not candles); such as a wildfire and the like.",
            examples=("a house on fire", "SPARKS"),
            aliases=("Blaze", "fire"),
        ),
        Category("Driving", "alcohol, if the prompt speaks of driving"),
    ),
)


def test_the_terms_of_a_category() -> None:
    assert candidate_terms(POLICY) == [
        Term("Fire", "Fire", "name"),
        Term("Fire", "Open flames", "definition"),
        Term("Fire", "sparks", "definition"),
        Term("Fire", "burning things", "definition"),
        Term("Fire", "wildfire and the like", "definition"),
        Term("Fire", "a house on fire", "example"),
        Term("Fire", "Blaze", "alias"),
        # What a prompt has to speak of cannot be searched for among images.
        Term("Driving", "alcohol", "definition"),
    ]


@pytest.mark.parametrize(
    ("definition", "parts"),
    [
        (
            "Drug use, theft, vandalism, and other illegal activities.",
            ["Drug use", "theft", "vandalism", "illegal activities"],
        ),
        ("Suicide, cutting, or the like", ["Suicide", "cutting"]),
        ("blades of any kind", ["blades of any kind"]),
        ("guns, e.g. rifles; an axe", ["guns", "rifles", "axe"]),
        ("someone with a knife, but not in a kitchen", ["someone with a knife"]),
        ("or", []),
    ],
)
def test_definitions_in_parts(definition: str, parts: list[str]) -> None:
    assert split_definition(definition) == parts


def test_shipped_taxonomies_have_about_as_many_terms_as_the_paper() -> None:
    """UnsafeBench had 12 to 16 keywords of each category."""
    terms = candidate_terms(load_taxonomy("unsafebench"))
    counts = [sum(term.category == name for term in terms) for name in load_taxonomy("unsafebench").names]
    assert min(counts) >= 12


# --- a model's examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "entries", "refused"),
    [
        ('["a gun", "A GUN", "gun\\u200b smoke"]', ["a gun", "gun smoke"], 0),
        ('Sure!\n```json\n["a gun",\n "an axe"]\n```', ["a gun", "an axe"], 0),
        (
            "Here you are:\n1. a gun\n2) an axe.\n- **a bomb**\nHope it helps!",
            ["a gun", "an axe", "a bomb"],
            0,
        ),
        (json.dumps(["x" * (LONGEST_TERM + 1), "ok", 3, "<|im_end|>", "=cmd()", ""]), ["ok"], 5),
    ],
)
def test_only_entries_of_a_list_are_taken(text: str, entries: list[str], refused: int) -> None:
    assert read_entries(text) == (entries, refused)


@pytest.mark.parametrize(
    "text", ["I'm sorry, I can't help with that.", "", "[]", "[1, 2", '{"a": 1}', "[" * 9999]
)
def test_prose_and_refusals_are_no_terms(text: str) -> None:
    with pytest.raises(UnjudgedError, match="is no list"):
        read_entries(text)


@given(st.text() | st.lists(st.text()).map(json.dumps))
def test_an_entry_is_short_plain_text(text: str) -> None:
    try:
        entries, _ = read_entries(text)
    except UnjudgedError:
        return
    assert all(
        0 < len(entry) <= LONGEST_TERM and entry.isprintable() and entry[0].isalnum() for entry in entries
    )
    assert len({entry.casefold() for entry in entries}) == len(entries)


def remote(stub: Any) -> RemoteJudge:
    return parse_remote(f"{stub.url}#m", retries=0)


def test_a_server_names_examples_of_each_category(stub: Any) -> None:
    stub.script = [completion('["a wildfire", "a bonfire", "a torch"]'), completion("No.", finish="stop")]
    with remote(stub) as server:
        found = list(suggest_terms(server, POLICY, 2))
    assert found[0] == ([Term("Fire", "a wildfire", "model m"), Term("Fire", "a bonfire", "model m")], None)
    assert found[1][0] == []
    assert "no list" in str(found[1][1])
    [request, _] = stub.asked
    assert request["temperature"] == 0
    assert "Category: Fire\nDefinition: Open flames" in request["messages"][0]["content"]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (completion('["a", "b"', finish="length"), "cut off"),
        (completion(None, refusal="I will not"), "the model refused"),
        (completion("  "), "empty"),
        (problem(400, "no such thing"), "refused the request"),
        ((200, {}, b"<html>"), "no chat completion"),
    ],
)
def test_what_a_server_does_not_name_is_told(stub: Any, reply: Any, message: str) -> None:
    stub.script = [reply, completion('["a bottle"]')]
    with remote(stub) as server:
        first, second = suggest_terms(server, POLICY, 10)
    assert first[0] == []
    assert message in str(first[1])
    assert second == ([Term("Driving", "a bottle", "model m")], None)


@pytest.mark.parametrize("count", [0, 51])
def test_how_many_can_be_asked_for(stub: Any, count: int) -> None:
    with remote(stub) as server, pytest.raises(ConfigError, match="ask for 1 to 50"):
        list(suggest_terms(server, POLICY, count))
