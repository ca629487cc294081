"""Length and character attacks: what they hold, whose flags they take, and what the rule of the higher score saves."""

import unicodedata
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adversarial.pixels.pgd import PGD
from adversarial.texts import characters
from adversarial.texts.disguises import BURIED_IN, DISGUISES, HARMLESS, LENGTHS
from adversarial.texts.harmless import STYLES, bury, harmless_text
from adversarial.threat import ThreatModel
from eval.questions import Question
from eval.reports.robustness_tables import disguises as disguise_table
from eval.robustness.deployments import _through_paths, attack_deployment
from eval.robustness.disguises import attack_by_disguise, disguise_prompts, harmful_prompt
from eval.robustness.problems import build_problems
from eval.robustness.prompt_modes import only_adds_suspicion, with_prompt_mode
from eval.robustness.texts import attack_texts
from eval.robustness.victims import ClassifierVictim
from judge.cascade.similarity import Platt
from judge.errors import ConfigError
from judge.protocol import Scores
from judge.readings import combine_readings, highest_margins, read_prompts
from prompts import Category, Taxonomy
from prompts.example import Example
from prompts.flip.rows import Row

HARMFUL = "a picture that shows a handwritten digit seven"
MAKERS = {**HARMLESS, **DISGUISES}
POLICY = Taxonomy("bright", "1", (Category("bright", "a bright picture", key="bright"),))
WANTED = st.sampled_from(["safe", "unsafe"])


def letters(text):
    """The letters that a reader sees, however they are written."""
    plain = unicodedata.normalize("NFKD", text)
    return [letter for letter in plain if letter.isascii() and letter.isalpha()]


@settings(max_examples=15)
@given(st.none() | st.text(), WANTED, st.integers(0, 3))
def test_makers_take_any_text(prompt, target, seed):
    for name, maker in MAKERS.items():
        made = maker(prompt, target, seed)
        assert made == maker(prompt, target, seed)
        assert len(made) == len(set(made)), name
        assert prompt not in made, name
        assert all(made), name


@pytest.mark.parametrize("name", DISGUISES)
def test_disguises_hold_the_prompt(name):
    [text] = DISGUISES[name](HARMFUL, "safe", 0)
    if name == "homoglyphs":
        assert len(text) == len(HARMFUL)
        assert not any(word in text for word in HARMFUL.split() if len(word) > 3)
    elif name.startswith("buried"):
        assert HARMFUL in text
        assert BURIED_IN < len(text) <= BURIED_IN + len(HARMFUL) + 3
        assert {"start": text.startswith, "end": text.endswith}.get(name[7:], text.__contains__)(HARMFUL)
    else:
        assert HARMFUL not in text
        assert letters(text) == letters(HARMFUL)
    assert DISGUISES[name](None, "safe", 0) == DISGUISES[name](" ", "safe", 0) == []


def test_a_prompt_in_the_middle_has_as_much_before_it_as_behind():
    before, after = bury("seven", 400, "middle", Random(0)).split(" seven ")
    assert abs(len(before) - len(after)) < 20


@given(st.sampled_from(STYLES), st.integers(1, 9000), st.integers(0, 9))
def test_harmless_texts_have_the_length_asked_for(style, length, seed):
    text = harmless_text(style, length, Random(seed))
    assert len(text) == length
    assert text == text.strip()


def test_lengths_are_those_of_the_names():
    assert [
        [len(text) for text in HARMLESS[f"harmless_{length}"](HARMFUL, "safe", 0)] for length in LENGTHS
    ] == [[length] * 2 for length in LENGTHS]


def test_null_bytes_and_marks_are_what_they_are_called():
    text = characters.null_bytes("ab", Random(0))
    assert text == "a\0b\0"
    marked = characters.marked("a b", Random(0))
    assert {unicodedata.category(c) for c in marked if c not in "ab "} == {"Mn"}


class Diluted:
    """Unsafe where the picture is bright, less so with every character of a prompt; `swayed` by the word bright."""

    name = "diluted"

    def __init__(self, mode="max", swayed=0.0):
        self.prompt_mode, self.swayed, self.asked = mode, swayed, 0

    def score(self, images, prompts, taxonomy):
        self.asked += len(images)
        readings = read_prompts(prompts or [None] * len(images), self.prompt_mode)
        logits = np.array(
            [
                (np.asarray(images[row]).mean() - 128) / 8
                - 0.1 * len(text or "")
                + (self.swayed if text and "bright" in text else 0)
                for row, text in zip(readings.rows, readings.texts, strict=True)
            ]
        )
        unsafe = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
        found = Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), 1), (None,) * len(readings))
        return combine_readings(found, readings)


def question(number, level, prompt="a room", unsafe=None):
    unsafe = level > 127 if unsafe is None else unsafe
    picture = Image.new("RGB", (8, 8), (level, level, level))
    example = Example(f"image-{number}", picture, prompt, frozenset({"bright"} if unsafe else ()))
    row = Row(
        example, POLICY, prompt, example.id, unsafe, "bright" if unsafe else None, None, "keep" if unsafe else "benign"
    )  # fmt: skip
    return Question(f"q-{number}", row, None)


QUESTIONS = [question(0, 200), question(1, 255), question(2, 0), question(3, 120)]


def test_nothing_is_lost_by_the_rule_and_everything_to_length_without_it():
    found = attack_by_disguise({"diluted": ClassifierVictim(Diluted())}, {}, QUESTIONS)
    assert list(found["classifiers"]) == ["diluted", "diluted, use"]
    kept, alone = found["classifiers"].values()
    assert set(kept["lost"].values()) == {0.0}
    assert (kept["rows"], kept["any"], kept["unjudged"]) == (2, 0.0, 0.0)
    # 60 characters take 6 off logits of 9 and 15.9, a window of 260 to 300 characters 26 or more.
    assert alone["lost"]["harmless_60"] == 0.0
    assert alone["lost"]["harmless_300"] == alone["lost"]["buried_end"] == alone["any"] == 1.0
    assert alone["lost"]["harmless_8000"] == 0.0  # too long to be read, so unjudged and not safe
    assert alone["unjudged"] > 0
    table = disguise_table(found)
    assert all(len(cells) == len(table.heads) for _, cells in table.lines)


class Plain:
    name = "plain"

    def score(self, images, prompts, taxonomy):
        return Diluted("use").score(images, prompts, taxonomy)


def test_a_classifier_without_a_mode_has_one_line_and_no_rule():
    victim = ClassifierVictim(Plain())
    assert with_prompt_mode(victim, "use") is None
    assert not only_adds_suspicion(victim)
    assert list(attack_by_disguise({"plain": victim}, {}, QUESTIONS)["classifiers"]) == ["plain"]
    with pytest.raises(ConfigError, match="need unsafe questions"):
        attack_by_disguise({"plain": victim}, {}, QUESTIONS[2:])


def test_modes_share_the_classifier_and_leave_it_as_it_was():
    victim = ClassifierVictim(Diluted())
    other = with_prompt_mode(victim, "use")
    assert (victim.classifier.prompt_mode, other.classifier.prompt_mode) == ("max", "use")
    assert only_adds_suspicion(victim)
    assert not only_adds_suspicion(other)


def test_what_is_flagged_without_a_prompt_is_not_attacked_and_counts_as_withstood():
    named = question(9, 120, prompt="bright", unsafe=True)  # flagged for its prompt only
    ruled, unruled = Diluted(swayed=9.0), Diluted("use", swayed=9.0)
    found = attack_texts(ClassifierVictim(ruled), [*QUESTIONS[:2], named])
    assert (found["any"]["rows"], found["any"]["rate"]) == (3, pytest.approx(1 / 3))
    assert found["families"]["deletion"]["asr_n"] == pytest.approx(1 / 3)
    assert found["families"]["deletion"]["rows"] == 3
    asked = ruled.asked
    near = [question(0, 150), question(1, 160)]
    found = attack_texts(ClassifierVictim(ruled), near)
    assert (found["any"]["rows"], found["any"]["rate"]) == (2, 0.0)
    assert ruled.asked - asked < 40  # as they are, without a prompt, and under texts in definitions
    assert attack_texts(ClassifierVictim(unruled), near)["any"]["rate"] == 1.0
    assert unruled.asked > 100


def test_cascades_are_attacked_without_a_prompt_which_no_text_improves_on():
    threat = ThreatModel(0.0, goal="safe", after=("8bit",))
    named = question(9, 120, prompt="bright", unsafe=True)
    made = []

    def maker(prompt, target, seed):
        made.append(prompt)
        return ["a room"]

    for mode, asked in (("max", 0), ("use", 1)):
        victim = ClassifierVictim(Diluted(mode, swayed=9.0))
        [part] = build_problems(victim, [named], threat)
        found = _through_paths([victim], part.problem, None, "text", {"one": maker})
        assert found.contexts[0].prompt == (None if mode == "max" else "a room")
        assert found.passed[0].any()
        assert len(made) == asked


@dataclass
class Words:
    """A text filter that knows a word, beside an image filter that must not be asked."""

    text: Platt
    image: Platt

    def score(self, images, prompts, taxonomy):
        assert self.image(np.ones(1)) < 1e-9
        unsafe = self.text(np.array([1.0 if "bright" in prompt else -1.0 for prompt in prompts]))
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), 1), (None,) * len(images))


def test_a_text_filter_loses_what_it_no_longer_finds():
    assert harmful_prompt(QUESTIONS[0]) == "a picture that shows a bright picture"
    found = disguise_prompts(Words(Platt(0.0, 0.0), Platt(9.0, 9.0)), QUESTIONS[:2], 0)
    whole = {"buried_start", "buried_middle", "buried_end", "bidi", "emoji"}
    assert found["lost"] == {name: float(name not in whole) for name in DISGUISES}
    assert found["false_alarms"] == dict.fromkeys(HARMLESS, 0.0)
    assert (found["rows"], found["any"]) == (2, 1.0)
    table = disguise_table({"classifiers": {}, "text_filters": {"cascade": found}})
    names = [name for name, _ in table.lines]
    assert names == ["text filter of cascade", "text filter of cascade: false alarms"]
    assert all(len(cells) == len(table.heads) for _, cells in table.lines)


def test_the_image_arm_attacks_only_what_passed_without_its_prompt():
    """Without prompts, the rows 2 and 6 levels up pass at 4 levels and at 8; the prompt of the second gives it away."""
    tried = []

    class Recorded(PGD):
        def run(self, problem):
            tried.append([(context.prompt, len(problem)) for context in problem.contexts])
            return super().run(problem)

    rows = [question(0, 130, "a"), question(1, 131, "bright"), question(2, 240, "a"), question(3, 100)]
    victim = ClassifierVictim(Sloped(swayed=20.0))
    threat = ThreatModel(6 / 255, goal="safe", after=("8bit",))
    found = attack_deployment([victim], rows, threat, Recorded(steps=3), arms=("image", "both"))
    assert [prompt for prompt, _ in tried[0]] == [None, None, None]
    assert tried[1:] == [[("bright", 1)]]
    assert list(found) == ["image", "both"]
    assert found["both"].rates.asr_n.value == pytest.approx(2 / 3)
    assert found["image"].rates.asr_n.value == pytest.approx(1 / 3)


class Sloped(Diluted):
    """The same, with gradients."""

    def pixel_margins(self, pixels, prompts, taxonomy, *, category=None):
        readings = read_prompts(prompts, self.prompt_mode)
        margins = (255 * pixels[list(readings.rows)].flatten(1).mean(1) - 128) / 8
        texts = [
            -0.1 * len(text or "") + (self.swayed if text and "bright" in text else 0)
            for text in readings.texts
        ]
        return highest_margins(margins + torch.tensor(texts), readings)
