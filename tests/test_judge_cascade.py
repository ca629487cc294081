"""The cascade: what each stage settles, that misses fall with the level, and that the live path is the one calibrated."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit, logit

from judge.calibration.conformal import average_by, check_levels
from judge.calibration.envelope import Envelope
from judge.cascade.cascade import Cascade
from judge.cascade.saved import load_cascade, save_cascade
from judge.cascade.settings import SETTINGS, CascadeSettings
from judge.cascade.similarity import Platt, Similarities
from judge.cascade.stages import NEVER, STAGES, Cutoffs, StageScores, decide
from judge.cascade.tuning import (
    LEVELS,
    CascadeShape,
    CutoffFamily,
    cascade_shapes,
    choose_level,
    precise_cutoff,
    tune,
)
from judge.encoders.phrases import phrases
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Scores
from judge.runs.folder import RunDir
from prompts import Category, Taxonomy, load_taxonomy, verdict_from_scores

DIGITS = load_taxonomy("digits").select(["zero", "one", "two"])
PLAIN = Cutoffs(0.2, 0.8, 0.1, 0.9, 0.3, 0.6, 0.5)
SILENT_TEXT = Cutoffs(0, NEVER, 0.05, 0.9, 0.3, 0.6, 0.5)


def simulated(rows=800, seed=0, judge=True, unjudged=0.0):
    """Scores of four stages, each better than the one before, and the truth."""
    rng = np.random.default_rng(seed)
    unsafe = rng.random(rows) < 0.5
    columns = []
    for strength in (0.3, 3.0, 5.0, 9.0):
        column = expit(strength * (unsafe - 0.5) + rng.normal(0, 1.5, rows))
        column[rng.random(rows) < unjudged] = np.nan
        columns.append(column)
    return StageScores(*columns[:3], columns[3] if judge else None), unsafe


# One row through the stages


@pytest.mark.parametrize(
    ("row", "stage", "status"),
    [
        ((0.1, 0.05, 0.9, 0.9), "filter", "safe"),  # both filters are sure
        ((0.5, 0.05, 0.9, 0.9), "filter", "safe"),  # one is, the other does not deny it
        ((np.nan, 0.05, 0.9, 0.9), "filter", "safe"),  # no prompt
        ((0.9, 0.5, 0.1, 0.1), "filter", "unsafe"),
        ((0.8, 0.9, 0.1, 0.1), "filter", "unsafe"),  # a cutoff belongs to the unsafe side
        ((0.9, 0.05, 0.1, 0.9), "student", "safe"),  # the filters contradict each other
        ((0.1, 0.95, 0.6, 0.1), "student", "unsafe"),
        ((0.2, 0.1, 0.29, 0.9), "student", "safe"),  # below means below
        ((0.5, 0.5, 0.3, 0.4), "judge", "safe"),
        ((0.5, 0.5, 0.59, 0.5), "judge", "unsafe"),
        # What a stage could not read goes on, to be flagged or left unjudged; a missing prompt is nothing unread.
        ((np.nan, np.nan, 0.1, 0.9), "judge", "unsafe"),
        ((0.1, np.nan, 0.1, 0.1), "judge", "unjudged"),
        ((0.9, np.nan, 0.1, 0.1), "filter", "unsafe"),
        ((0.5, 0.5, np.nan, 0.1), "judge", "unjudged"),
        ((0.5, 0.5, np.nan, 0.9), "judge", "unsafe"),
        ((0.5, 0.05, np.nan, 0.9), "filter", "safe"),  # the student was not asked
        ((0.5, 0.5, 0.4, np.nan), "judge", "unjudged"),
        ((np.nan,) * 4, "judge", "unjudged"),
    ],
)
def test_who_settles_what(row, stage, status):
    decided = decide(StageScores(*(np.array([p]) for p in row)), PLAIN)
    assert STAGES[decided.stage[0]] == stage
    assert np.isnan(decided.unsafe[0]) == (status == "unjudged")
    assert decided.safe[0] == (status == "safe")


def test_without_a_judge_the_student_is_last():
    scores = StageScores(*(np.array([p, 0.5]) for p in (0.5, 0.5, 0.4)))
    decided = decide(replace(scores, student=np.array([0.4, np.nan])), PLAIN.without_judge())
    assert decided.stage.tolist() == [1, 1]
    assert decided.unsafe[0] >= 0.5  # from student_safe on
    assert np.isnan(decided.unsafe[1])


probability = st.one_of(st.just(np.nan), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 1e-17]))
cutoff = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, NEVER]))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(*[probability] * 4), min_size=1, max_size=8), st.tuples(*[cutoff] * 7), st.booleans()
)
def test_decisions_are_those_of_a_plain_loop(rows, cuts, with_judge):
    cutoffs = Cutoffs(*cuts)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    decided = decide(StageScores(*columns[:3], columns[3] if with_judge else None), cutoffs)
    for number, row in enumerate(rows):
        stage, says = by_hand(row, cutoffs, with_judge)
        assert STAGES[decided.stage[number]] == stage
        value = decided.unsafe[number]
        assert {None: np.isnan(value), True: value >= 0.5, False: value < 0.5}[says]


def by_hand(row, cutoffs, with_judge):
    def ask(p, safe, unsafe):
        return True if p >= unsafe else False if p < safe else None

    text = ask(row[0], cutoffs.text_safe, cutoffs.text_unsafe)
    image = ask(row[1], cutoffs.image_safe, cutoffs.image_unsafe)
    sure, unread = {text, image} - {None}, np.isnan(row[1])
    if len(sure) == 1 and (True in sure or not unread):
        return "filter", sure.pop()
    later = [("student", row[2], cutoffs.student_safe, cutoffs.student_unsafe)]
    later += [("judge", row[3], cutoffs.judge, cutoffs.judge)] if with_judge else []
    for stage, p, safe, unsafe in later:
        unread = unread or np.isnan(p)
        says = ask(p, safe, unsafe)
        if says or (says is False and not unread):
            return stage, says
    return stage, None


@settings(max_examples=200)
@given(st.lists(st.tuples(*[probability] * 4), min_size=1, max_size=8), st.tuples(*[cutoff] * 7))
def test_without_the_judge_nothing_is_missed_that_was_not_missed_with_it(rows, cuts):
    cutoffs = Cutoffs(*cuts)  # crossing ones too
    scores = StageScores(*(np.array(column) for column in zip(*rows, strict=True)))
    alone = decide(replace(scores, judge=None), cutoffs.without_judge())
    assert not (alone.safe & ~decide(scores, cutoffs).safe).any()
    read = ~np.isnan(scores.student) & ~np.isnan(scores.image)
    assert not np.isnan(alone.unsafe[read]).any()  # and the student's band is settled


def test_without_the_judge_what_lies_between_crossing_cutoffs_stays_unsafe():
    crossing = replace(PLAIN, student_safe=0.7, student_unsafe=0.4)
    scores = StageScores(*(np.array([p]) for p in (0.5, 0.5, 0.6)))
    assert decide(scores, crossing).unsafe[0] >= 0.5
    assert decide(scores, crossing.without_judge()).unsafe[0] >= 0.5


def test_one_half_is_the_cutoff_and_the_order_within_a_stage_stays():
    student = np.array([0.01, 0.29, 0.3, 0.6, 0.61, 0.99])
    unsure = np.full(6, 0.5)
    moved = decide(StageScores(unsure, unsure, student), PLAIN).unsafe
    assert moved[3] == 0.5
    assert moved[1] == pytest.approx(expit(logit(0.29) - logit(0.3)))
    assert moved[5] == pytest.approx(expit(logit(0.99) - logit(0.6)))
    assert (np.diff(moved[[0, 1, 3, 4, 5]]) > 0).all()


def test_where_both_filters_are_sure_the_surer_gives_the_score():
    scores = StageScores(np.array([0.19, 0.001]), np.array([0.01, 0.09]), np.full(2, 0.5))
    moved = decide(scores, PLAIN).unsafe
    assert moved[0] == pytest.approx(expit(logit(0.01) - logit(0.1)))
    assert moved[1] == pytest.approx(expit(logit(0.001) - logit(0.2)))


@pytest.mark.parametrize("value", [-0.1, 2.5, float("nan"), True, "x"])
def test_cutoffs_are_probabilities(value):
    with pytest.raises(ConfigError, match="text_safe"):
        Cutoffs(value, 1, 0, 1, 0, 1, 0.5)


# The family


shares = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(shares, shares, shares, shares, st.floats(0.4, 1.2), st.floats(0.4, 1.2), st.floats(0, 0.6)),
    st.floats(0, 0.3),
    st.booleans(),
)
def test_a_miss_can_only_disappear_as_the_level_falls(seed, shape, unjudged, judge):
    scores, unsafe = simulated(60, seed, judge, unjudged)
    family = CutoffFamily(scores, unsafe, CascadeShape(*shape))
    new, _ = simulated(60, seed + 1, judge, unjudged)
    losses = family.losses(new, (*LEVELS[::10], 1.0))
    assert (np.diff(losses.astype(int), axis=1) >= 0).all()
    assert not losses[:, 0].any()
    undecided = np.isnan(decide(new, family.at(1.0)).unsafe)
    assert not losses[undecided].any()


def test_the_family_is_not_trivial():
    scores, unsafe = simulated()
    losses = CutoffFamily(scores, unsafe, CascadeShape()).losses(scores.rows(unsafe))
    assert losses[:, -1].mean() > 0.3
    assert len(np.unique(losses.mean(axis=0))) > 50


def test_the_students_band_keeps_its_size_in_rows_at_every_level():
    scores, unsafe = simulated(1000)
    family = CutoffFamily(scores, unsafe, CascadeShape(band=0.05))
    for level in LEVELS[50:250:40]:
        cutoffs = family.at(level)
        inside = (scores.student >= cutoffs.student_safe) & (scores.student < cutoffs.student_unsafe)
        assert inside.sum() == 50


def test_safe_cutoffs_are_lower_quantiles_of_unsafe_rows():
    scores, unsafe = simulated(1000)
    family = CutoffFamily(scores, unsafe, CascadeShape(text=0.0, image=0.5, student=1.0, judge=0.25))
    cutoffs = family.at(0.2)
    assert cutoffs.text_safe == 0
    for column, cut, share in (
        (scores.image, cutoffs.image_safe, 0.1),
        (scores.student, cutoffs.student_safe, 0.2),
        (scores.judge, cutoffs.judge, 0.05),
    ):
        assert (column[unsafe] < cut).mean() == pytest.approx(share, abs=2 / unsafe.sum())


def test_a_tuning_set_needs_both_kinds():
    scores, unsafe = simulated(50)
    with pytest.raises(ConfigError, match="50 unsafe and 0 safe"):
        CutoffFamily(scores, np.ones_like(unsafe), CascadeShape())


@pytest.mark.parametrize("change", [{"image": 1.5}, {"band": -0.1}, {"text_precision": 3.0}])
def test_a_shape_is_made_of_shares(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        CascadeShape(**change)


def test_the_precise_cutoff_against_a_loop():
    scores, unsafe = simulated(400, seed=2)
    column = np.round(scores.image, 2)  # ties
    found = precise_cutoff(column, unsafe, 0.95)
    fit = [c for c in column if unsafe[column >= c].mean() >= 0.95 and (column >= c).sum() >= 20]
    assert found == min(fit)
    assert precise_cutoff(column, unsafe, 1.01) == NEVER
    assert precise_cutoff(column, ~unsafe, 0.95) == NEVER
    assert precise_cutoff(np.full(3, np.nan), unsafe[:3], 0.5) == NEVER


# The promise


def test_the_total_miss_rate_is_promised_over_draws_of_calibration_and_new_rows():
    tuning, unsafe = simulated(300, seed=1)
    family = CutoffFamily(tuning, unsafe, CascadeShape(image=0.5, student=1.0, judge=1.0))
    # A large population, of which every draw takes calibration rows; the rest of it are the new rows.
    population, truth = simulated(40000, seed=2, unjudged=0.01)
    levels = LEVELS[::15]
    table = family.losses(population.rows(truth), levels)
    truly = table.mean(axis=0)
    rng = np.random.default_rng(0)
    for promise, rows in ((0.05, 40), (0.1, 60)):
        missed = []
        for _ in range(400):
            chosen = table[rng.integers(0, len(table), rows)]
            kept = (chosen.sum(axis=0) + 1) / (rows + 1) <= promise
            missed.append(truly[np.flatnonzero(kept)[-1]])
        assert np.mean(missed) <= promise
        assert np.mean(missed) > promise / 4  # not by passing nothing


def test_choose_level_is_the_most_lenient_that_keeps_the_bound():
    tuning, unsafe = simulated(400, seed=1)
    family = CutoffFamily(tuning, unsafe, CascadeShape())
    calibration, truth = simulated(400, seed=3)
    rows = calibration.rows(truth)
    level = choose_level(family, rows, 0.05)
    place = LEVELS.index(level)

    def bound(level):
        return (decide(rows, family.at(level)).safe.sum() + 1) / (len(rows) + 1)

    assert bound(level) <= 0.05 < bound(LEVELS[place + 1])
    assert choose_level(family, rows, 0.02) <= level <= choose_level(family, rows, 0.2)


def test_rows_that_every_stage_failed_on_buy_no_laxer_level():
    tuning, unsafe = simulated(400, seed=1)
    family = CutoffFamily(tuning, unsafe, CascadeShape())
    rows = simulated(400, seed=3)[0]
    failed = StageScores(
        *(np.append(c, np.full(2000, np.nan)) for c in (rows.text, rows.image, rows.student, rows.judge))
    )
    assert choose_level(family, failed, 0.05) == choose_level(family, rows, 0.05)


def test_too_few_rows_for_a_promise_say_how_many():
    tuning, unsafe = simulated(400)
    family = CutoffFamily(tuning, unsafe, CascadeShape())
    with pytest.raises(ConfigError, match="at least 49 unsafe calibration examples"):
        choose_level(family, tuning.rows(slice(0, 30)), 0.02)


@pytest.mark.parametrize("judge", [True, False])
def test_tuning_spares_the_judge_and_keeps_the_promise_on_other_rows(judge):
    tuning, unsafe = simulated(600, seed=5, judge=judge)
    family = tune(tuning, unsafe, 0.05, judge_share=0.1, shapes=cascade_shapes(0.1, with_judge=judge)[::7])
    other, truth = simulated(2000, seed=6, judge=judge)
    level = choose_level(family, other.rows(truth), 0.05)
    decided = decide(other, family.at(level))
    assert np.mean(decided.stage == 2) < 0.13
    assert (decided.safe & truth).sum() / truth.sum() <= 0.05
    losses = average_by(family.losses(other.rows(truth)), np.arange(truth.sum()))
    assert check_levels(losses, 0.05, splits=50).mean <= 0.0505
    # Better than the image filter by itself at the same promise.
    safe_image = other.image[truth]
    threshold = np.sort(safe_image)[int(0.05 * len(safe_image)) - 1]
    assert (~decided.safe & ~truth).mean() < ((other.image >= threshold) & ~truth).mean()


def test_a_band_that_no_shape_can_keep_is_refused():
    tuning, unsafe = simulated(200)
    with pytest.raises(ConfigError, match=r"at most 0\.5%"):
        tune(tuning, unsafe, 0.05, judge_share=0.005, shapes=[CascadeShape(image=0.0, band=0.5)])


def test_means_over_images():
    losses = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 1.0]])
    assert average_by(losses, ["b", "a", "b"]).tolist() == [[0, 0, 1], [0, 1, 1]]


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


def test_platt_finds_the_logistic_curve_on_cosines_that_hardly_differ():
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.24, 0.02, 20000)
    truth = rng.random(20000) < expit(150 * cosines - 36)
    found = Platt.fit(truth, np.append(cosines, [])[:20000])
    assert found.slope == pytest.approx(150, rel=0.05)
    assert found(np.array([0.24, np.nan]))[0] == pytest.approx(0.5, abs=0.02)
    assert np.isnan(found(np.array([np.nan])))


@pytest.mark.parametrize("similarity", [[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9]])
def test_a_filter_that_knows_nothing_is_never_sure(similarity):
    found = Platt.fit([1, 1, 0, 0], similarity)
    assert found.slope == 0
    assert found(np.array([-1.0, 1.0])).tolist() == [0.5, 0.5]


def test_platt_needs_both_kinds():
    with pytest.raises(ConfigError, match="2 unsafe and 0 safe"):
        Platt.fit([1, 1, 0], [0.1, 0.2, np.nan])


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
        Platt(8, -4), Platt(8, -4), cutoffs, True, 0.02, 0.1, 400, calibrated_for=Envelope.of([DIGITS])
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
    low = cascade(replace(PLAIN, text_safe=0.97, text_unsafe=0.975))
    second = run(low, [(0, 26, 9)], ["nothing like any of them, surely"]).because[0]
    assert second.startswith("text and image filter disagree (0.")
    assert second.endswith(": student says safe at 0.10")


def test_what_the_filters_cannot_read_through_may_be_flagged_but_never_called_safe():
    found = cascade(SILENT_TEXT)
    rows = [(0, 9, 9), (0, 9, 9), (0, 9, 200), (0, 230, 9)]
    scores = run(found, rows, [None, *["zero " * 400] * 3])
    assert scores.decided_by == ("filter", "judge", "judge", "student")
    assert np.isnan(scores.unsafe).tolist() == [False, True, False, False]
    assert (scores.unsafe[2:] >= 0.5).all()
    long = "the prompt is longer than the filters read"
    assert scores.reasons[1] == f"{long}; the judge alone may flag the image, not call it safe"
    assert all(why.startswith(long) for why in scores.because[1:])
    alone = run(cascade(SILENT_TEXT, judge=False), rows[1:2], ["zero " * 400])
    assert np.isnan(alone.unsafe[0])
    assert "the student alone may flag" in alone.reasons[0]


def test_a_prompt_too_long_for_the_filters_is_not_read_by_them():
    found = cascade()
    long = "zero " * 400
    scores = run(found, [(3, 26, 9), (3, 26, 9)], [long, "some words"])
    assert found.student.encoder.read_texts.count("some words") == 1
    assert long not in found.student.encoder.read_texts
    assert np.isnan(scores.unsafe[0])


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
    found = cascade(Cutoffs(0.3, 0.9, 0.3, 0.9, 0.3, 0.6, 0.05))
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
        cascade().settings, calibrated_for=Envelope.of([DIGITS, DIGITS.select([DIGITS.names[0]])])
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
    small = replace(known, calibrated_for=Envelope.of([DIGITS.select([name]) for name in DIGITS.names]))
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
    found = cascade(Cutoffs(0.3, 0.9, 0.3, 0.9, 0.3, 0.6, 0.5))
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


# On disk


def settings_text():
    return cascade().settings.to_json()


def test_settings_come_back_from_their_text():
    chosen = cascade().settings
    assert SETTINGS == "cascade.json"
    plain = CascadeSettings(Platt(8, -4), Platt(8, -4), PLAIN, True, 0.02, 0.1, 400)
    assert plain.calibrated_for is None
    assert CascadeSettings.from_json(plain.to_json()) == plain
    made = Cascade(Fake("student", FakeEncoder()), plain)
    assert (made.name, made.batch_size, made.default_taxonomy) == ("cascade", 32, None)
    assert CascadeSettings.from_json(chosen.to_json()) == chosen


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("cutoffs"),
        lambda d: d.update(level=None),
        lambda d: d.update(level=float("nan")),
        lambda d: d.update(with_judge=1),
        lambda d: d.update(more=1),
        lambda d: d["cutoffs"].update(judge=7),
        lambda d: d["text"].update(slope="steep"),
    ],
)
def test_damaged_settings_are_refused(change):
    data = json.loads(settings_text())
    change(data)
    with pytest.raises(CheckpointError, match="no settings of a cascade"):
        CascadeSettings.from_json(json.dumps(data))


@pytest.mark.parametrize("change", [{"promise": float("inf")}, {"with_judge": 0}])
def test_numbers_that_are_none_are_told(change):
    data = json.loads(settings_text()) | change
    with pytest.raises(CheckpointError, match=r"\(a number is not finite, or with_judge is neither"):
        CascadeSettings.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "null", '"x"'])
def test_settings_that_are_no_object_are_refused(text):
    with pytest.raises(CheckpointError, match="no settings"):
        CascadeSettings.from_json(text)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A cascade's run beside a student's and a judge's, whose loading is faked."""
    for kind in ("student", "vlm"):
        made = RunDir.create(tmp_path / kind, kind=kind)
        (made.path / f"{kind}.safetensors").write_bytes(kind.encode())
    made = RunDir.create(tmp_path / "cascade", kind="cascade")
    made.write_taxonomy(DIGITS)
    save_cascade(made, cascade().settings, student=tmp_path / "student", judge=tmp_path / "vlm")
    monkeypatch.setattr(
        "judge.student.student.load_student", lambda run, **_: Fake(run.path.name, FakeEncoder())
    )
    monkeypatch.setattr("judge.classifiers.load_classifier", lambda path, **_: Fake(path.name))
    return made


def test_a_cascade_comes_back_with_its_student_and_judge_also_when_all_were_moved(runs, tmp_path):
    there = tmp_path / "elsewhere"
    there.mkdir()
    for name in ("student", "vlm", "cascade"):
        (tmp_path / name).rename(there / name)
    found = load_cascade(RunDir.open(there / "cascade"), device="cpu")
    assert (found.name, found.student.name, found.judge.name) == ("cascade", "student", "vlm")
    assert found.settings == cascade().settings
    assert found.default_taxonomy == DIGITS


def test_a_cascade_without_a_judge_loads_none(runs, tmp_path):
    alone = replace(cascade().settings, with_judge=False, cutoffs=PLAIN.without_judge())
    save_cascade(runs, alone, student=tmp_path / "student", judge=None)
    assert load_cascade(runs).judge is None


@pytest.mark.parametrize("kind", ["student", "vlm"])
def test_a_stage_that_was_trained_again_is_refused(runs, tmp_path, kind):
    (tmp_path / kind / f"{kind}.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"is not what .* was calibrated with"):
        load_cascade(runs)


def test_a_stage_that_is_gone_or_not_named_is_refused(runs, tmp_path):
    (tmp_path / "vlm").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_cascade(runs)
    runs.update_manifest(judge=None)
    with pytest.raises(CheckpointError, match="names no judge"):
        load_cascade(runs)
    (runs.path / SETTINGS).unlink()
    with pytest.raises(CheckpointError, match=SETTINGS):
        load_cascade(runs)
