"""The cascade as a classifier: what it answers, with which reason, and that it decides as it was calibrated."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit, logit

from judge.calibration.envelope import Envelope
from judge.cascade.cascade import Cascade
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt, Similarities
from judge.cascade.stages import NEVER, STAGES, Cutoffs, StageScores, decide
from judge.encoders.phrases import phrases
from judge.errors import ConfigError
from judge.protocol import Scores
from prompts import Category, Taxonomy, load_taxonomy, verdict_from_scores

DIGITS = load_taxonomy("digits").select(["zero", "one", "two"])
PLAIN = Cutoffs(0.8, 0.1, 0.9, 0.3, 0.6, 0.5)
SILENT_TEXT = Cutoffs(NEVER, 0.05, 0.9, 0.3, 0.6, 0.5)


# Filters


class FakeEncoder:
    """Every word has a direction; an image's is its red value's word, and a patch keeps its green value. Counts what it is asked."""

    width, context, device = 8, 10, torch.device("cpu")

    def too_long(self, text):
        return len(text) > 1000

    def __init__(self):
        self.seen, self.read_texts = 0, []

    def direction(self, text):
        rng = np.random.default_rng([*text.encode()])
        return torch.tensor(rng.normal(size=self.width), dtype=torch.float32)

    def token_count(self, text):
        return len(text.split())

    def encode_texts(self, texts):
        self.read_texts += texts
        tokens = torch.stack([self.direction(text) * 3 for text in texts])[:, None].expand(-1, 2, -1)
        return tokens, torch.ones(len(texts), 2, dtype=torch.bool)

    def encode_images(self, images):
        self.seen += len(images)
        words = ["zero", "one", "two", "nothing of it"]
        pooled = [self.direction(words[image.getpixel((0, 0))[0] % 4]) * 2 for image in images]
        tokens = torch.stack(pooled)[:, None].repeat(1, 5, 1)
        tokens[:, 1, 0] = torch.tensor([float(image.getpixel((0, 0))[1]) for image in images])
        return tokens


def test_a_similarity_is_the_largest_cosine_over_phrases():
    encoder = FakeEncoder()
    found = Similarities(encoder).prompt_similarities(["zero", None, " ", "the digit 0"], DIGITS)
    assert np.isnan(found[1:3]).all()
    for row, text in ((0, "zero"), (3, "the digit 0")):
        for column, category in enumerate(DIGITS):
            mine = encoder.direction(text).double()
            cosines = [
                float(torch.cosine_similarity(mine, encoder.direction(phrase.text).double(), dim=0))
                for phrase in phrases(category)
            ]
            assert found[row, column] == pytest.approx(max(cosines), abs=1e-5)
    assert found[0, 0] == pytest.approx(1)


def test_phrases_are_read_once_a_taxonomy_and_repeated_prompts_once_a_batch():
    encoder = FakeEncoder()
    similarities = Similarities(encoder)
    similarities.prompt_similarities(["a", "a", "b"], DIGITS)
    count = len(encoder.read_texts)
    similarities.prompt_similarities(["a"], DIGITS)
    assert encoder.read_texts[count:] == ["a"]
    assert encoder.read_texts.count("b") == 1


def test_an_order_of_categories_is_an_order_of_similarities():
    encoder = FakeEncoder()
    other = Taxonomy("x", "1", DIGITS.categories[::-1])
    tokens = encoder.encode_images([Image.new("RGB", (2, 2), (1, 0, 0))])
    forward = Similarities(encoder).image_similarities(tokens, DIGITS)
    assert Similarities(encoder).image_similarities(tokens, other) == pytest.approx(forward[:, ::-1])


def test_only_a_phrase_that_no_number_of_windows_holds_is_refused():
    wordy, endless = (Taxonomy("x", "1", (Category("long", "word " * n + "end"),)) for n in (20, 250))
    assert Similarities(FakeEncoder()).prompt_similarities(["a"], wordy).shape == (1, 1)
    with pytest.raises(ConfigError, match="251 tokens"):
        Similarities(FakeEncoder()).prompt_similarities(["a"], endless)


# The classifier


@dataclass
class Fake:
    """Answers the green value (as a student) or the blue one (as a judge) of the image; NaN for 0."""

    name: str
    encoder: FakeEncoder | None = None
    asked: int = 0
    heard: list[str | None] = field(default_factory=list)

    def answers(self, values, taxonomy):
        self.asked += len(values)
        unsafe = np.array([np.nan if v == 0 else v / 255 for v in values])
        reasons = tuple(f"{self.name} failed" if np.isnan(p) else None for p in unsafe)
        return Scores(unsafe, np.repeat(unsafe[:, None] / 2, len(taxonomy), axis=1), reasons)

    def score(self, images, prompts, taxonomy):
        self.heard += prompts
        return self.answers([image.getpixel((0, 0))[2] for image in images], taxonomy)

    def score_tokens(self, tokens, prompts, taxonomy):
        self.heard += prompts
        return self.answers(tokens[:, 1, 0].tolist(), taxonomy)


def cascade(cutoffs=PLAIN, judge=True, batch_size=4):
    student = Fake("student", FakeEncoder())
    chosen = CascadeSettings(
        Platt(8, -4),
        Platt(8, -4),
        cutoffs,
        True,
        0.02,
        0.1,
        400,
        calibrated_for=Envelope.from_policies([DIGITS]),
    )
    return Cascade(student, chosen, Fake("judge") if judge else None, batch_size=batch_size)


def picture(red, green, blue):
    return Image.new("RGB", (4, 4), (red, green, blue))


def run(found, rows, prompts=None):
    """Judge pictures (red: what the filters see, green: student, blue: judge)."""
    return found.score([picture(*row) for row in rows], prompts, DIGITS)


def test_each_answer_says_who_decided_and_why():
    rows = [(0, 9, 9), (3, 26, 9), (3, 230, 9), (3, 115, 230), (3, 115, 26), (3, 115, 0), (3, 0, 26)]
    found = cascade(SILENT_TEXT)
    image = found.settings.image(
        found.similarities.image_similarities(FakeEncoder().encode_images([picture(3, 0, 0)]), DIGITS)
    ).max()
    assert 0.05 < image < 0.9, "the fake's fourth direction is one that the image filter is unsure of"
    scores = run(found, rows)
    assert scores.decided_by == ("filter", "student", "student", "judge", "judge", "judge", "judge")
    unsure = f"text and image filter unsure (-, {image:.2f})"
    assert scores.because == (
        "image filter alone is sure: unsafe (-, 0.98)",
        f"{unsure}: student says safe at 0.10",
        f"{unsure}: student says unsafe at 0.90",
        "student unsure at 0.45: judge says unsafe at 0.90",
        "student unsure at 0.45: judge says safe at 0.10",
        "student unsure at 0.45: judge could not judge",
        f"{unsure}: student could not judge: judge says safe at 0.10, which does not count",
    )
    blind = "student failed; the judge alone may flag the image, not call it safe"
    assert scores.reasons == (None, None, None, None, None, "judge failed", blind)
    assert (scores.unsafe >= 0.5).tolist() == [True, False, True, True, False, False, False]
    assert np.isnan(scores.unsafe).tolist() == [False] * 5 + [True, True]
    assert np.isnan(scores.categories[5:]).all()
    assert np.isnan(scores.separate[5:]).all()
    assert {column.dtype for column in (scores.unsafe, scores.categories, scores.separate)} == {
        np.dtype("float64")
    }
    assert scores.separate[1] == pytest.approx(26 / 255 / 2)  # the student's own, not moved
    assert scores.separate[0, 0] == pytest.approx(expit(4), abs=1e-5)  # the filter's, through Platt
    assert (scores.categories[:5].max(axis=1) == scores.unsafe[:5]).all()


def test_a_score_on_a_cutoff_is_told_as_it_is_taken():
    because = run(cascade(SILENT_TEXT), [(3, 153, 9), (3, 152, 200), (3, 77, 200)]).because
    assert because[0].endswith("student says unsafe at 0.60")
    assert because[1:] == (
        "student unsure at 0.60: judge says unsafe at 0.78",
        "student unsure at 0.30: judge says unsafe at 0.78",
    )
    low = run(cascade(replace(SILENT_TEXT, student_safe=0.2)), [(3, 51, 200)]).because[0]
    assert low == "student unsure at 0.20: judge says unsafe at 0.78"


def test_a_row_that_the_text_filter_settles_has_its_scores():
    found = cascade()
    scores = run(found, [(3, 26, 9), (0, 26, 9)], ["zero", None])
    text = found.settings.text(found.similarities.prompt_similarities(["zero"], DIGITS))[0]
    assert scores.because[0].startswith("text filter alone is sure: unsafe (0.98, 0.")
    assert scores.separate[0] == pytest.approx(text, abs=1e-6)
    assert scores.categories[0] == pytest.approx(expit(logit(text) - logit(0.8)), abs=1e-6)
    assert scores.categories[1, 0] == pytest.approx(expit(4 - logit(0.9)), abs=1e-5)


def test_each_stage_hears_the_prompts_of_the_rows_it_is_asked_about():
    found = cascade(SILENT_TEXT, batch_size=3)
    rows = [(0, 9, 9), (3, 26, 9), (0, 9, 9), (3, 115, 26), (0, 9, 9), (3, 115, 26), (3, 115, 26)]
    run(found, rows, list("abcdefg"))
    assert found.student.heard == list("bdfg")
    assert found.judge.heard == list("dfg")


def test_agreement_and_disagreement_of_the_filters_are_told():
    scores = run(cascade(), [(0, 26, 9), (0, 26, 9)], ["zero", "nothing like any of them, surely"])
    assert scores.because[0] == "text and image filter agree: unsafe (0.98, 0.98)"
    trusting = cascade(replace(PLAIN, image_safe=0.9, image_unsafe=NEVER))
    second = run(trusting, [(3, 26, 9)], ["zero"]).because[0]
    assert second.startswith("text and image filter disagree (0.98, 0.")
    assert second.endswith(": student says safe at 0.10")


def test_hidden_characters_take_a_row_past_the_filters():
    trusting = cascade(replace(SILENT_TEXT, image_safe=0.9, image_unsafe=NEVER))
    scores = run(trusting, [(3, 26, 9)] * 2, ["some words", "so\u200bme words"])
    assert scores.decided_by == ("filter", "student")
    assert scores.because[1] == "hidden characters in the prompt: student says safe at 0.10"
    assert scores.notes is None


def test_a_prompt_that_is_not_read_leaves_the_image_alone_to_every_stage():
    found = cascade(PLAIN)
    rows = [(0, 9, 9), (3, 26, 9), (3, 115, 200), (3, 115, 26)]
    long = "zero " * 2000
    scores, alone = run(found, rows, [long] * 4), run(found, rows)
    assert scores.unsafe == pytest.approx(alone.unsafe, abs=0)
    assert scores.decided_by == alone.decided_by == ("filter", "student", "judge", "judge")
    assert scores.because == alone.because
    assert (
        scores.notes
        == ("the prompt was not read: it has 10,000 characters, and about 6,280 are read at most",) * 4
    )
    assert alone.notes is None
    assert not any(text.startswith("zero zero") for text in found.student.encoder.read_texts)


class HalfBlind(FakeEncoder):
    """Its numbers for the first image of a batch are not finite; patches are."""

    def encode_images(self, images):
        tokens = super().encode_images(images)
        tokens[0, 0] = torch.nan
        return tokens


def test_an_image_that_the_filter_has_no_number_for_may_be_flagged_but_never_called_safe():
    found = cascade(SILENT_TEXT, judge=False)
    blind = Cascade(Fake("student", HalfBlind()), found.settings, batch_size=1)
    scores = run(blind, [(3, 26, 9), (3, 230, 9)])
    assert scores.decided_by == ("student", "student")
    assert np.isnan(scores.unsafe[0])
    assert scores.unsafe[1] > 0.5
    assert scores.reasons == (
        "the image filter gave no finite score; the student alone may flag the image, not call it safe",
        None,
    )
    assert scores.because[0] == (
        "text and image filter unsure (-, -): student says safe at 0.10, which does not count"
    )


def test_a_margin_is_asked_with_all_that_was_given(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "judge.cascade.cascade.cascade_margins",
        lambda *given, **named: asked.append((*given, named)) or "margins",
    )
    found, pixels = cascade(), torch.zeros(2, 3, 4, 4)
    assert found.pixel_margins(pixels, ["a", None], DIGITS) == "margins"
    found.pixel_margins(pixels, None, DIGITS, path="judge")
    assert asked == [
        (found, pixels, ["a", None], DIGITS, {"path": "any"}),
        (found, pixels, None, DIGITS, {"path": "judge"}),
    ]
    with pytest.raises(ConfigError, match="no margin for 'one' alone"):
        found.pixel_margins(pixels, None, DIGITS, category="one")


def test_categories_are_moved_with_the_whole_so_promised_cutoffs_hold_for_each():
    rng = np.random.default_rng(1)
    found = cascade(Cutoffs(0.9, 0.3, 0.9, 0.3, 0.6, 0.05))
    rows = [tuple(int(v) for v in rng.integers(1, 256, 3)) for _ in range(80)]
    scores = run(found, rows, [[None, "zero", "something"][i] for i in rng.integers(0, 3, 80)])
    judged = ~np.isnan(scores.unsafe)
    assert judged.sum() > 60
    assert (scores.categories[judged].max(axis=1) == scores.unsafe[judged]).all()
    # One threshold and the same threshold for every category give one verdict (DIGITS: some have none of their own).
    for row in np.flatnonzero(judged):
        verdicts = [
            verdict_from_scores(
                scores.unsafe[row], scores.categories[row], DIGITS, threshold=threshold
            ).status
            for threshold in (0.5, dict.fromkeys(DIGITS.names, 0.5), {DIGITS.names[0]: 0.5})
        ]
        assert set(verdicts) == {"unsafe" if scores.unsafe[row] >= 0.5 else "safe"}
    order = np.argsort(scores.separate, axis=1, kind="stable")
    moved = np.take_along_axis(scores.categories, order, axis=1)
    assert (np.diff(moved[judged], axis=1) >= 0).all()


def test_a_cascade_says_where_its_promise_does_not_reach():
    known = replace(
        cascade().settings, calibrated_for=Envelope.from_policies([DIGITS, DIGITS.select([DIGITS.names[0]])])
    )
    found = Cascade(Fake("student", FakeEncoder()), known, Fake("judge"))
    assert found.outside_promise(DIGITS) is None
    assert (
        found.outside_promise(DIGITS.select(DIGITS.names[::-1][:2])) is None
    )  # drawn from the same categories
    withdrawn = "the promised miss rate of 2.0% does not hold: "
    other = DIGITS.drop([DIGITS.names[0]]).extend({"balloons": "toy balloons"})
    assert found.outside_promise(other) == f"{withdrawn}not calibrated for 'balloons', worded so"
    many = DIGITS.extend({f"new {place}": "something else" for place in range(100)})
    assert found.outside_promise(many).endswith("for 'new 0', 'new 1', 'new 2' and 97 more, worded so")
    reworded = DIGITS.reword({DIGITS.names[0]: "something else"})
    assert f"{DIGITS.names[0]!r}, worded so" in found.outside_promise(reworded)
    small = replace(
        known, calibrated_for=Envelope.from_policies([DIGITS.select([name]) for name in DIGITS.names])
    )
    more = Cascade(Fake("student", FakeEncoder()), small).outside_promise(DIGITS)
    assert more == f"{withdrawn}calibrated for at most 1 categories at a time, not {len(DIGITS)}"
    because = found.score([picture(3, 26, 9)], None, other).because[0]
    assert because.endswith(f"student says safe at 0.10; {withdrawn}not calibrated for 'balloons', worded so")
    older = Cascade(Fake("student", FakeEncoder()), replace(known, calibrated_for=None))
    assert older.outside_promise(DIGITS) == f"{withdrawn}the calibrated taxonomy is not known"
    assert CascadeSettings.from_json(known.to_json()) == known


def test_the_live_path_decides_as_the_calibrated_arithmetic_does():
    rng = np.random.default_rng(0)
    rows = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(60)]
    texts = [[None, "zero", "one", "something", "a b"][i] for i in rng.integers(0, 5, 60)]
    found = cascade(Cutoffs(0.9, 0.3, 0.9, 0.3, 0.6, 0.5))
    live = run(found, rows, texts)
    tokens = FakeEncoder().encode_images([picture(*row) for row in rows])
    kept = found.settings
    offline = decide(
        StageScores(
            kept.text(found.similarities.prompt_similarities(texts, DIGITS)).max(axis=1),
            kept.image(found.similarities.image_similarities(tokens, DIGITS)).max(axis=1),
            found.student.answers([row[1] for row in rows], DIGITS).unsafe,
            found.judge.answers([row[2] for row in rows], DIGITS).unsafe,
        ),
        kept.cutoffs,
    )
    assert live.decided_by == tuple(STAGES[stage] for stage in offline.stage)
    assert live.unsafe == pytest.approx(offline.unsafe, nan_ok=True, abs=1e-5)
    assert len(set(live.decided_by)) == 3


def test_the_encoder_sees_an_image_once_and_later_stages_only_what_is_left():
    found = cascade(SILENT_TEXT)
    encoder = found.student.encoder
    run(found, [(0, 9, 9)] * 6 + [(3, 26, 9)] * 3 + [(3, 115, 9)])
    assert encoder.seen == 10
    assert found.student.asked == 4
    assert found.judge.asked == 1


def test_a_text_filter_without_a_say_reads_no_prompt():
    found = cascade(SILENT_TEXT)
    run(found, [(3, 26, 9)], ["a prompt"])
    assert "a prompt" not in found.student.encoder.read_texts


def test_without_the_judge_it_was_calibrated_with_the_band_is_flagged():
    scores = run(cascade(judge=False), [(3, 26, 9), (3, 115, 9), (3, 0, 9)])
    assert scores.decided_by == ("student",) * 3
    assert (scores.unsafe[:2] >= 0.5).tolist() == [False, True]
    assert np.isnan(scores.unsafe[2])
    assert scores.reasons == (None, None, "student failed")


def test_a_judge_that_the_settings_do_not_know_is_refused():
    chosen = replace(cascade().settings, with_judge=False)
    with pytest.raises(ConfigError, match="calibrated without a judge"):
        Cascade(Fake("student", FakeEncoder()), chosen, Fake("judge"))


def test_no_images_and_too_few_prompts():
    found = cascade()
    scores = found.score([], None, DIGITS)
    assert scores.categories.shape == (0, 3)
    assert scores.decided_by == ()
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        found.score([picture(0, 0, 0)] * 2, ["a"], DIGITS)
