"""Phrases: which alternatives a definition is parted into, and which definitions are better left whole."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.encoders.alternatives import alternatives
from judge.encoders.phrases import phrases
from prompts import Category, FlipOptions, load_taxonomy
from prompts.flip.policies import draw_entries


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("any 2 drawn by hand or any 9 drawn by hand", ["any 2 drawn by hand", "any 9 drawn by hand"]),
        ("any 1, any 2 or any 3", ["any 1", "any 2", "any 3"]),
        ("any 1 or any 2 or any 3", ["any 1", "any 2", "any 3"]),
        ("a gun, a knife, or a bomb.", ["a gun", "a knife", "a bomb"]),
        ("guns, knives or bombs", ["guns", "knives", "bombs"]),
        (
            "the digit 3; or the digit 5, flat top, open curve",
            ["the digit 3", "the digit 5, flat top, open curve"],
        ),
        ("the digit 3, two open curves, or the digit 5", ["the digit 3, two open curves", "the digit 5"]),
        ("guns; a sword or a spear", ["guns", "a sword", "a spear"]),
        # What both sides share goes with both.
        ("held at a knife or gun", ["held at a knife", "held at a gun"]),
        ("by a knife or gun", ["by a knife", "by a gun"]),
        ("someone with a knife or a gun", ["someone with a knife", "someone with a gun"]),
        ("a person holding a knife or a gun", ["a person holding a knife", "a person holding a gun"]),
        ("a knife or a gun shown to children", ["a knife shown to children", "a gun shown to children"]),
        ("naked children or adults", ["naked children", "naked adults"]),
        ("naked children, women or men", []),
        ("red, white or blue flags", []),
        ("a man or a woman smoking", ["a man smoking", "a woman smoking"]),
        ("a gun or a pipe bomb", ["a gun", "a pipe bomb"]),
        ("erotic or pornographic imagery", ["erotic imagery", "pornographic imagery"]),
        # Brackets and quotes are one word.
        ("weapons (knives or guns)", []),
        ("a sign saying 'guns or knives' or a flag", ["a sign saying 'guns or knives'", "a flag"]),
        # No alternatives, or none that can stand alone for sure.
        ("toy balloons of any colour", []),
        ("the digit 0, one closed round loop", []),
        ("weapons, whether or not they are toys", []),
        ("one or more people", []),
        ("guns or the like", []),
        ("people or animals being attacked", []),
        ("people or animals being killed, attacked or injured", []),
        ("knives, but not toys or kitchen knives", []),
        ("guns except toys or replicas", []),
        ("or", []),
        ("cats or", []),
    ],
)
def test_alternatives(definition, expected):
    assert alternatives(definition) == expected


@given(st.text(st.sampled_from("ab,;.()' or"), min_size=1, max_size=40))
def test_no_text_breaks_it_and_no_alternative_brings_new_words(text):
    known = set(text.replace(";", " ").replace(",", " ").rstrip(".").split())
    found = alternatives(text)
    assert len(found) != 1
    assert len(set(found)) == len(found)
    for part in found:
        assert part.strip()
        assert set(part.replace(",", " ").split()) <= known | {word.rstrip(".") for word in known}


def test_a_category_is_its_name_its_whole_definition_its_alternatives_and_its_examples():
    category = Category("list", "any 2 drawn by hand or any 9 drawn by hand", ("a wobbly 2",))
    assert [(phrase.text, phrase.kind) for phrase in phrases(category)] == [
        ("list", "name"),
        ("any 2 drawn by hand or any 9 drawn by hand", "definition"),
        ("any 2 drawn by hand", "alternative"),
        ("any 9 drawn by hand", "alternative"),
        ("a wobbly 2", "example"),
    ]


def test_the_lessons_of_digits_hold_the_phrases_they_always_held():
    """So a student that was trained before reads them as it learnt them."""
    digits, rng = load_taxonomy("digits"), Random(0)
    for _ in range(200):
        for category in draw_entries(digits, digits.keys, 4, 8, FlipOptions(), rng):
            parts = category.definition.split("; or ")
            expected = [category.name, category.definition, *(parts if len(parts) > 1 else [])]
            assert [phrase.text for phrase in phrases(category)] == list(dict.fromkeys(expected))
