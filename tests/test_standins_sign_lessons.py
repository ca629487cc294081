"""Lessons about signs: their answers are right, and they leave out what is kept for measuring."""

import re
from importlib.resources import files
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from judge.standins.batches import Group, pack
from judge.standins.shipped import base_path
from judge.standins.signs import tuning
from judge.standins.signs.glyphs import groups
from judge.standins.signs.lessons import FORMS, SignLessons
from judge.standins.signs.talk import Talk
from judge.standins.signs.tuning import fit_projector, train_lessons, yes_no_auc
from judge.standins.signs.word_pictures import NOTHING, SIDE, Mixer, places, word_picture
from judge.standins.signs.words import HELD_OUT, Thing, everyday_things, sign_meanings, signs
from judge.standins.tuning import logits_given
from judge.vlm.training.attention import register

PATCHES = 25
"""Image tokens of tiny-llava, which plays the language model here."""
LEXICON = yaml.safe_load((files("judge") / "standins" / "signs" / "lexicon.yaml").read_text(encoding="utf-8"))
"""Text -> groups or concepts that it covers."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(base_path("tiny-llava"))


@pytest.fixture(scope="module")
def model() -> Any:
    loaded = LlavaForConditionalGeneration.from_pretrained(base_path("tiny-llava"), dtype=torch.float32)
    loaded.set_attn_implementation({"text_config": register()})
    return loaded.eval()


def lessons(tokenizer: Any, seed: int = 0, **options: Any) -> SignLessons:
    talk = Talk(seed)
    return SignLessons(
        talk, tokenizer, lambda: (talk.shown(0.0), torch.randn(PATCHES, 128)), patches=PATCHES, **options
    )


def covers(text: str, concept: str) -> bool:
    """Whether the lexicon, or the concept's own names, say that a text covers it."""
    named = LEXICON.get(text, [])
    group = next(group for group, names in groups().items() if concept in names)
    one = signs()[concept]
    return concept in named or group in named or text in (*one.words, *one.unsaid)


@pytest.mark.parametrize("unsaid", [False, True])
def test_yes_is_said_of_what_is_shown_and_about_half_the_time(unsaid: bool) -> None:
    talk, said = Talk(2, unsaid=unsaid), []
    for _ in range(150):
        shown = talk.shown(0.0)
        for meaning, holds in talk.asked(shown, 12):
            said.append(holds)
            assert holds == any(covers(meaning.text, one.name) for one in shown), meaning.text
            if not unsaid:
                assert not meaning.held_out
                assert not set(LEXICON.get(meaning.text, ())) & set(HELD_OUT)
    assert 0.4 < np.mean(said) < 0.6


def test_the_entry_that_is_chosen_is_one_that_holds() -> None:
    talk, fitting = Talk(3), 0
    for _ in range(200):
        entries, shown = talk.entries(), talk.shown(0.0)
        pieces = talk.chosen(entries, shown, "<image>")
        answer = pieces[1][0].removesuffix("<|im_end|>")
        holding = [entry.name for entry in entries if not entry.things.isdisjoint(shown)]
        assert answer in (holding or ["none"])
        fitting += bool(holding)
        lines = dict(zip((p[0].strip(" :") for p in pieces[4::3]), pieces[5::3], strict=False))
        for name, (yes, _) in lines.items():
            assert yes == (" yes" if name in holding else " no")
    assert 20 < fitting < 180


def lesson_texts(count: int) -> str:
    """Many lessons as one text."""
    talk, texts = Talk(5), []
    for _ in range(count):
        shown, entries = talk.shown(), talk.entries()
        opening, lines = talk.each(shown, talk.described(shown), 12)
        rows = [*lines, talk.naming(shown, ""), talk.chosen(entries, shown, "")]
        texts += [opening, talk.listing(entries), *("".join(piece for piece, _ in row) for row in rows)]
    return "\n".join(texts).casefold()


def test_lessons_leave_out_new_words_held_out_groups_and_the_judges_own_words() -> None:
    said = lesson_texts(1500)
    new = yaml.safe_load((files("eval") / "signs" / "new_words.yaml").read_text(encoding="utf-8"))
    for word in (*new, "safe", "unsafe"):
        assert not re.search(rf"\b{re.escape(word.casefold())}\b", said), word
    assert "alcohol" in said
    assert "dice" in said  # a member of a group held out has its name


def test_equal_seeds_give_equal_lessons(tokenizer: Any) -> None:
    for (one, _), (two, _) in islice(zip(lessons(tokenizer), lessons(tokenizer), strict=True), 4):
        assert torch.equal(one.inputs["input_ids"], two.inputs["input_ids"])


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("in_words", [False, True])
def test_a_step_has_its_pictures_and_whole_answers(tokenizer: Any, form: str, in_words: bool) -> None:
    batch, pictures = lessons(tokenizer, tokens=2500).batch(form, in_words)
    ids, labels = batch.inputs["input_ids"], batch.labels
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert (ids == image).sum() == PATCHES * len(pictures)
    assert bool(pictures) == (form == "naming" or not in_words)
    assert (labels[labels != -100] == ids[labels != -100]).all()
    assert (labels != -100).any()


def test_a_picture_in_the_shared_part_is_seen_by_every_row_as_alone(tokenizer: Any, model: Any) -> None:
    course = lessons(tokenizer)
    group = course.each(in_words=False)
    seen = course.pictures[0][None]
    with torch.no_grad():
        together, wanted = logits_given(model, pack([group]), seen)
        alone = [
            logits_given(model, pack([Group(group.policy, [row], group.picture)]), seen)[0]
            for row in group.rows
        ]
        blind, _ = logits_given(model, pack([group]), seen * 0)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-3)
    assert len(wanted) == len(group.rows)
    assert (together - blind).abs().max() > 0.01


def test_training_lowers_the_loss_and_saves_on_the_way(
    tokenizer: Any, model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    head = model.model.language_model.norm
    model.requires_grad_(False)
    head.requires_grad_(True)
    saved: list[int] = []
    before = head.weight.clone()
    train_lessons(
        model, lessons(tokenizer, in_words=1.0, tokens=800), torch.nn.Identity(), name="words", steps=6,
        rate=0.05, every=3, saved=lambda: saved.append(1),
    )  # fmt: skip
    head.requires_grad_(False)
    losses = [float(found) for found in re.findall(r"right ([\d.]+)", capsys.readouterr().out)]
    assert len(saved) == len(losses) == 2
    assert losses[1] < losses[0]
    head.weight.data.copy_(before)


@pytest.mark.parametrize(("sign", "auc"), [(1.0, 1.0), (-1.0, 0.0)])
def test_auc_is_one_for_who_knows_and_nothing_for_who_says_the_opposite(
    tokenizer: Any, model: Any, monkeypatch: pytest.MonkeyPatch, sign: float, auc: float
) -> None:
    yes = tokenizer(" yes", add_special_tokens=False).input_ids[0]
    no = tokenizer(" no", add_special_tokens=False).input_ids[0]

    def known(model: Any, batch: Any, pictures: Any, project: Any) -> tuple[torch.Tensor, torch.Tensor]:
        kept = batch.labels[(batch.labels == yes) | (batch.labels == no)]
        logits = torch.zeros(len(kept), len(tokenizer))
        logits[torch.arange(len(kept)), kept] = sign
        return logits, kept

    monkeypatch.setattr(tuning, "answers_of", known)
    found = yes_no_auc(model, tokenizer, None, torch.nn.Identity(), pictures=20)
    assert set(found) == {"names", "texts", "new names", "new texts", "new held-out texts"}
    assert set(found.values()) == {auc}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 4), st.integers(0, 2**32))
def test_every_sign_covers_patches_of_its_own(count: int, seed: int) -> None:
    grid = places(count, np.random.default_rng(seed))
    assert grid.shape == (SIDE * SIDE,)
    assert set(grid.tolist()) - {-1} == set(range(count))
    assert (grid == -1).any()


def mixer(width: int = 64) -> Mixer:
    """Words in orthogonal directions."""
    return Mixer(torch.eye(width)[:40], torch.randn(41, 16, generator=torch.Generator().manual_seed(0)))


def test_a_patch_becomes_the_words_it_is_like() -> None:
    mixed = mixer()
    direction = torch.eye(64)[[7]]
    torch.testing.assert_close(mixed.mixture(mixed.likeness(direction)), mixed.embeddings[[7]])
    between = mixed.mixture(mixed.likeness(torch.eye(64)[[3]] + torch.eye(64)[[4]]))
    torch.testing.assert_close(between, mixed.embeddings[3:5].mean(0, keepdim=True), rtol=1e-4, atol=1e-4)
    shares = torch.softmax(40 * torch.tensor([0.0] * 40 + [NOTHING]), 0)
    nothing = mixed.mixture(mixed.likeness(torch.eye(64)[[50]]))
    torch.testing.assert_close(nothing, shares[None] @ mixed.embeddings)
    assert shares[-1] > 0.9


def test_pictures_of_words_show_their_things_where_these_are() -> None:
    mixed = mixer(400)
    like = mixed.likeness(torch.eye(400)[[3, 9]])
    rng = Random(0)
    right = []
    for _ in range(20):
        seed = rng.randrange(2**32)
        picture = word_picture(like, np.random.default_rng(seed))
        assert picture.shape == (SIDE * SIDE, 40)
        assert torch.equal(picture, word_picture(like, np.random.default_rng(seed)))
        nothing = torch.full((SIDE * SIDE, 1), NOTHING)
        likest = torch.cat([picture, nothing], dim=1).argmax(1)
        found = set(likest.tolist()) - {40}
        right.append(found == {3, 9})
    assert np.mean(right) > 0.7


def test_a_picture_of_nothing_has_patches_all_the_same() -> None:
    assert word_picture(torch.zeros(0, 40), np.random.default_rng(0)).abs().max() < 0.2


def test_a_projector_is_fitted_to_what_patches_should_become() -> None:
    torch.manual_seed(0)
    config = LlavaForConditionalGeneration.config_class(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 16, "num_attention_heads": 2},
        text_config={"model_type": "llama", "hidden_size": 24, "num_attention_heads": 2},
    )
    projector = LlavaMultiModalProjector(config)
    features = torch.randn(4000, 16)
    targets = features @ torch.randn(16, 24)
    assert fit_projector(projector, features, targets, 1) < 0.3
    assert fit_projector(projector, features, targets, 150, rate=1e-2) > 0.9


def test_things_have_names_and_meanings_cover_things() -> None:
    for one in (*signs().values(), *everyday_things().values()):
        assert isinstance(one, Thing)
        assert one.words or one.unsaid
        assert not set(one.words) & set(one.unsaid)
    assert all(meaning.things for meaning in sign_meanings())
    assert any(meaning.held_out for meaning in sign_meanings())
    assert {"forest", "singing"}.isdisjoint(everyday_things())
