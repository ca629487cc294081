"""Phrases: which alternatives a definition is parted into, and which definitions are better left whole."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.encoders.alternatives import alternatives
from judge.encoders.conditions import split_condition
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


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("alcohol, if the prompt speaks of driving", ("alcohol", "driving")),
        ("a beer or a wine when the caption mentions cars.", ("a beer or a wine", "cars")),
        ("beer, but only if its text is about work or school", ("beer", "work or school")),
        ("knives where the user's description refers to children", ("knives", "children")),
        ("a gun, and the prompt also talks about a party", ("a gun", "a party")),
        ("a syringe while the text asks for help", ("a syringe", "help")),
        ("a cigarette with a caption about school", ("a cigarette", "school")),
        ("dice with a prompt that mentions money", ("dice", "money")),
        ("any flag whose caption names a war", ("any flag", "a war")),
        ("If the prompt mentions driving: beer, wine or cocktails", ("beer, wine or cocktails", "driving")),
        ("Only when the title is about war, a gun", ("a gun", "war")),
        ("if the prompt speaks of cars, buses or trucks: alcohol", ("alcohol", "cars, buses or trucks")),
        # Not clear, or no condition on the prompt.
        ("alcohol", None),
        ("a car, if it is red", None),
        ("a poster with a title about money", None),
        ("a sign whose writing mentions driving", None),
        ("alcohol, unless the prompt speaks of driving", None),
        ("alcohol, if the prompt does not speak of driving", None),
        ("alcohol, if the prompt speaks of driving, but not of buses", None),
        ("alcohol, if the prompt speaks of driving and the text mentions a party", None),
        ("knives; alcohol, if the prompt speaks of driving", None),
        ("alcohol, if the prompt speaks of driving; or knives", None),
        ("alcohol, if the prompt speaks of driving. Guns are fine", None),
        ("If the prompt mentions cars, buses or trucks", ("buses or trucks", "cars")),
        ("alcohol, if the prompt speaks of " + "very " * 16 + "fast driving", None),
        ("if the prompt mentions driving", None),
        ("", None),
    ],
)
def test_conditions_on_the_prompt(definition, expected):
    assert split_condition(definition) == expected


def test_a_condition_is_a_kind_of_its_own_and_stands_without_what_mixes_both_halves():
    definition = "a beer or a wine, if the prompt speaks of cars, buses or beer"
    category = Category("Drink and drive", definition, ("a beer on the way home",), aliases=("drunk",))
    assert [(phrase.text, phrase.kind) for phrase in phrases(category)] == [
        ("a beer or a wine", "definition"),
        ("a beer", "alternative"),
        ("a wine", "alternative"),
        ("cars, buses or beer", "condition"),
        ("cars", "condition"),
        ("buses", "condition"),
        ("beer", "condition"),
    ]
    shown = Category("beer if the text mentions beer", "x", name_only=True)
    assert [(phrase.text, phrase.kind) for phrase in phrases(shown)] == [
        ("beer", "name"),
        ("beer", "condition"),
    ]


@given(st.text(max_size=80), st.text(max_size=40))
def test_any_text_can_be_asked_for_its_condition(subject, topic):
    halves = split_condition(f"{subject}, if the prompt mentions {topic}")
    assert halves is None or all(half.strip() == half and half for half in halves)
