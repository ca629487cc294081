"""Signs: pictograms, scenes, captions, and words that no lesson may hold."""

import re
from importlib.resources import files

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.data.examples import load_examples
from judge.errors import CheckpointError
from judge.standins.signs.captions import TEMPLATES, TOPICS, WORDLESS, caption, describe
from judge.standins.signs.examples import shown_concepts, signs_examples, signs_scene
from judge.standins.signs.glyphs import (
    NEW_STYLES,
    TRAINED_STYLES,
    concepts,
    draw_glyph,
    drawings,
    groups,
)
from judge.standins.signs.scenes import CANVAS, compose
from prompts import ExampleError, load_taxonomy


def test_every_glyph_is_in_its_font_and_has_ink() -> None:
    for concept in concepts().values():
        assert drawings(concept.name, TRAINED_STYLES), concept.name
        for style, names in concept.glyphs.items():
            for name in names:
                assert np.asarray(draw_glyph(style, name)).mean() > 8, (style, name)


def test_a_glyph_that_the_font_lacks_is_named() -> None:
    with pytest.raises(CheckpointError, match="lacks the glyph 'knife-of-cheese'"):
        draw_glyph("mdi", "knife-of-cheese")


def test_the_taxonomy_has_a_category_for_every_group() -> None:
    assert set(groups()) == set(load_taxonomy("signs").keys)
    assert set(TRAINED_STYLES).isdisjoint(NEW_STYLES)
    assert {style for concept in concepts().values() for style in concept.glyphs} == {
        *TRAINED_STYLES,
        *NEW_STYLES,
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(sorted(concepts())), max_size=4, unique=True), st.integers(0, 2**32))
def test_signs_lie_inside_the_canvas_and_hardly_overlap(shown: list[str], seed: int) -> None:
    scene = compose(shown, np.random.default_rng(seed))
    assert [sign.concept for sign in scene.signs] == shown
    covered = np.asarray(scene.coverage)
    assert (covered.max() > 100) == bool(shown)
    count = np.zeros((CANVAS, CANVAS), int)
    for sign in scene.signs:
        assert min(sign.left, sign.top) >= 0
        assert max(sign.left, sign.top) + sign.side <= CANVAS
        count[sign.top : sign.top + sign.side, sign.left : sign.left + sign.side] += 1
    assert (count > 1).mean() < 0.08
    assert covered[count == 0].max(initial=0) == 0


def test_examples_are_the_same_each_time_and_their_labels_are_what_is_drawn() -> None:
    first, again = signs_examples("test", count=12), signs_examples("test", count=20)[:12]
    for one, two in zip(first, again, strict=True):
        assert (one.id, one.prompt, one.violates, one.image.tobytes()) == (
            two.id, two.prompt, two.violates, two.image.tobytes(),
        )  # fmt: skip
        assert {concepts()[name].group for name in shown_concepts(one.id)} == one.violates
    others = signs_examples("validation", count=12)
    assert not {one.image.tobytes() for one in first} & {one.image.tobytes() for one in others}


def test_new_styles_are_in_a_split_of_their_own() -> None:
    styles = {sign.style for index in range(30) for sign in signs_scene("new_styles", index).signs}
    assert styles
    assert styles <= set(NEW_STYLES)
    assert {one.source for one in signs_examples("new_styles", count=3)} == {"generated"}
    with pytest.raises(ExampleError, match="no split 'tests'; use one of train"):
        signs_examples("tests")


def test_the_data_source_takes_a_count_and_a_limit() -> None:
    taxonomy = load_taxonomy("signs")
    assert len(load_examples("signs:5", split="test", taxonomy=taxonomy).examples) == 5
    assert len(load_examples("signs", split="train", taxonomy=taxonomy, limit=4).examples) == 4
    with pytest.raises(ExampleError, match="signs:many is no count"):
        load_examples("signs:many", split="test", taxonomy=taxonomy)


def test_a_caption_tells_the_truth_lies_or_says_nothing() -> None:
    rng = np.random.default_rng(0)
    drawn = [caption(("knife",), rng) for _ in range(600)]
    true = sum(any(word in (text or "") for word in concepts()["knife"].words) for text in drawn)
    assert 0.55 < true / len(drawn) < 0.75  # also a long blade and other words that hold a word of it
    assert 0.02 < drawn.count(None) / len(drawn) < 0.09
    assert "driv" in describe(("beer",), rng, "driving") or "wheel" in describe(("beer",), rng, "driving")


def test_no_text_that_anything_is_taught_holds_a_new_word() -> None:
    new = yaml.safe_load((files("eval") / "signs" / "new_words.yaml").read_text())
    assert len(new) == 60
    assert all(set(covered) <= set(concepts()) for covered in new.values())
    taught = [*TEMPLATES, *WORDLESS, *(text for texts in TOPICS.values() for text in texts)]
    taught += [
        word for concept in concepts().values() for word in (concept.name, concept.group, *concept.words)
    ]
    taught += list(yaml.safe_load((files("judge") / "standins/signs/lexicon.yaml").read_text()))
    for category in load_taxonomy("signs"):
        taught += [category.name, category.definition, *category.aliases, *category.rewordings]
    said = "\n".join(taught).casefold()
    assert not [word for word in new if re.search(rf"\b{re.escape(word.casefold())}\b", said)]
