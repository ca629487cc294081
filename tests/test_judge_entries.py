"""Entries of generic lists: what they say is when they fit, and everyday things speak of no digit."""

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.standins.digits import DIGIT_NAMES
from judge.standins.entries import Entries, Form
from judge.standins.everyday import THINGS, made_up_word, prose, sentence, tags, thing
from prompts import load_taxonomy

WORDS = {
    word: number
    for number, category in enumerate(load_taxonomy("digits"))
    for word in (*category.name.split(), *(alias.split()[-1] for alias in category.aliases))
}


def spoken_of(text: str) -> list[int]:
    """Digits named by figures, or by the words that follow "number", "figure" and the like; in their order."""
    tokens = re.findall(r"\d|[a-z]+", text.lower())
    figures = [int(token) for token in tokens if token.isdigit()]
    before = ("number", "figure", "digit", "numeral", "written", "a")
    words = [
        WORDS[token]
        for token, previous in zip(tokens[1:], tokens, strict=False)
        if token in WORDS and previous in before
    ]
    return figures + words


@given(st.integers(0, 10_000), st.sets(st.integers(0, 9), max_size=2))
def test_an_entry_fits_when_its_description_says_so(seed, shown):
    shown = frozenset(shown)
    drawn = Entries(Random(seed))
    one, two = drawn.random.sample(range(10), 2)
    both, unless, without = drawn.conjunction(one, two), drawn.exception(one, two), drawn.negation(one)
    assert both.holds(shown) == ({one, two} <= shown)
    assert unless.holds(shown) == (one in shown and two not in shown)
    assert set(spoken_of(both.meaning)) == set(spoken_of(unless.meaning)) == {one, two}
    (absent,) = set(spoken_of(without.meaning))
    assert without.holds(shown) == (absent not in shown)
    for entry in drawn.draw(9, 3, form=Form("code")):
        named = set() if entry.kind == "thing" else set(spoken_of(entry.meaning))
        assert entry.holds(shown) == bool(named & shown)


@pytest.mark.parametrize("logic", [None, "not", "both", "unless"])
def test_lists_have_no_name_twice_and_at_most_as_many_entries(logic):
    drawn = Entries(Random(0))
    for _ in range(100):
        entries = drawn.draw(6, 9, logic)
        assert len({entry.name for entry in entries}) == len(entries) <= 15
        assert not any(
            entry.holds(frozenset({d})) for entry in entries if entry.kind == "thing" for d in range(10)
        )


def test_everyday_texts_name_no_digit():
    rng = Random(0)
    texts = [text for _ in range(300) for text in (*thing(rng), sentence(rng), tags(rng), prose(rng, 80))]
    texts += [noun for nouns, _ in THINGS.values() for noun in nouns]
    words = set(re.findall(r"\w+", " ".join(texts).lower()))
    assert not words & {*DIGIT_NAMES, *WORDS, "safe", "unsafe"}
    assert not any(word.isdigit() for word in words)


def test_made_up_words_are_many():
    rng = Random(0)
    assert len({made_up_word(rng) for _ in range(1000)}) > 950
