"""Policy tests of made-up judges whose numbers are known beforehand."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from eval.benchmark.policies import PolicyTests, drawn_groups, score_pairs
from eval.benchmark.policy_questions import BENCHMARK_FAMILIES, PAIRS, UNSEEN, PolicyOptions
from eval.benchmark.policy_rows import PolicyRows, read_policy_rows
from eval.benchmark.predict import ClassifierFailedError
from eval.benchmark.predictions import About, PredictionsError
from eval.metrics.judged import JudgedRow, pairs_correct
from eval.obedience.shipped import choose_families
from judge.data.images import pixels_hash
from judge.errors import ConfigError, MissingExtraError
from judge.protocol import Scores
from judge.standins.digits import digits_examples
from prompts import FlipOptions, TaxonomyError, load_taxonomy

DIGITS = load_taxonomy("digits")
EXAMPLES = digits_examples("test", count=250)
HELD_OUT = frozenset({"four", "eight"})
FLIPS = FlipOptions(group_size=4, held_out=HELD_OUT)
FAMILIES = ("nonsense_names", "negation", "unrelated_prompt")
OPTIONS = PolicyOptions(pairs=12, rows=16, families=FAMILIES, flips=FLIPS)
ABOUT = About("fake", "fake", "other", DIGITS, DIGITS.keys, "digits", ("test",))


class Fake:
    """Answers with what a function of (image's hash, policy) gives; counts the questions."""

    name = "fake"

    def __init__(self, answer=lambda image, policy: 1.0):
        self.answer, self.asked = answer, 0

    def score(self, images, prompts, taxonomy):
        self.asked += len(images)
        unsafe = np.array([self.answer(pixels_hash(image), taxonomy) for image in images])
        categories = np.repeat(unsafe[:, None], len(taxonomy), axis=1)
        reasons = tuple("no answer" if math.isnan(score) else None for score in unsafe)
        return Scores(unsafe, categories, reasons)


class Heads(Fake):
    """Fixed categories that know the truth."""

    match, scores_categories = "members", True

    def __init__(self, *keys):
        super().__init__()
        self.default_taxonomy = DIGITS.select(keys)

    def score(self, images, prompts, taxonomy):
        self.asked += len(images)
        known = {pixels_hash(example.image): example for example in EXAMPLES}
        found = [taxonomy.label(known[pixels_hash(image)]) for image in images]
        scores = np.array(found, dtype=float)
        return Scores(scores.max(axis=1), scores, (None,) * len(images))


@pytest.fixture(scope="module")
def tests():
    return PolicyTests(EXAMPLES, DIGITS, OPTIONS)


@pytest.fixture(scope="module")
def truths(tests):
    """(image's hash, policy's hash) -> truth, of every question there is."""
    rows = [q.row for part in tests.questions(DIGITS.keys).parts.values() for q in part.questions]
    return {(pixels_hash(row.example.image), row.taxonomy.hash): row.unsafe for row in rows}


@pytest.fixture
def perfect(truths):
    return Fake(lambda image, policy: float(truths[image, policy.hash]))


def numbers(found):
    return {
        name: found[name] for name in ("pair_score", "safe_to_unsafe", "unsafe_to_safe", "unjudged_share")
    }


def test_a_perfect_judge_scores_1_everywhere(tests, perfect):
    found = tests.measure(perfect)
    assert (found["pairs"], found["images"], found["reason"]) == (12, 12, None)
    assert numbers(found) == {"pair_score": 1, "safe_to_unsafe": 1, "unsafe_to_safe": 1, "unjudged_share": 0}
    assert found["pair_score_interval"][0] < 1 == found["pair_score_interval"][1]
    assert found["pes"] == 1
    obedience = found["obedience"]
    assert {obedience[name] for name in ("plain_f1", "mean_f1", "worst_f1")} == {1.0}
    assert obedience["families"] == len(FAMILIES) == len(obedience["by_family"])
    assert obedience["worst_prompt_recall_drop"] == 0
    assert found["unseen"]["f1"] == 1
    assert found["failures"] == {}
    json.dumps(found, allow_nan=False)


def test_whoever_ignores_the_policy_is_perfect_in_one_direction_and_has_no_pair(tests):
    paranoid = tests.measure(Fake(lambda image, policy: 1.0))
    assert numbers(paranoid) == {
        "pair_score": 0,
        "safe_to_unsafe": 1,
        "unsafe_to_safe": 0,
        "unjudged_share": 0,
    }
    assert paranoid["obedience"]["by_family"]["negation"]["f1"] == pytest.approx(2 / 3)
    blind = tests.measure(Fake(lambda image, policy: 0.0))
    assert numbers(blind) == {"pair_score": 0, "safe_to_unsafe": 0, "unsafe_to_safe": 1, "unjudged_share": 0}
    assert blind["obedience"]["plain_f1"] == 0
    assert blind["pes"] == pytest.approx(2 / 3)  # why it is no score of ours


def test_an_opinion_of_the_image_alone_gets_no_pair(tests):
    found = tests.measure(Fake(lambda image, policy: int(image[:4], 16) / 0xFFFF))
    assert found["pair_score"] == 0
    assert 0 < found["safe_to_unsafe"] < 1


def test_whoever_never_answers_gets_0_and_not_none(tests):
    found = tests.measure(Fake(lambda image, policy: math.nan))
    assert numbers(found) == {"pair_score": 0, "safe_to_unsafe": 0, "unsafe_to_safe": 0, "unjudged_share": 1}
    assert found["pes"] == 0
    obedience, unseen = found["obedience"], found["unseen"]
    assert [obedience[key] for key in ("plain_f1", "mean_f1", "worst_f1", "unjudged_share")] == [0, 0, 0, 1]
    assert [unseen[key] for key in ("f1", "named", "unjudged_share")] == [0, 0, 1]
    assert found["failures"] == {"no answer": tests.questions(DIGITS.keys).count}


def test_pairs_are_of_opposite_truth_and_never_about_held_out_categories(tests):
    parts = tests.questions(DIGITS.keys).parts
    for question in parts[PAIRS].questions:
        members = {member for category in question.row.taxonomy for member in category.members}
        assert not members & HELD_OUT
        assert not question.row.example.violates & HELD_OUT
    directions = Counter(question.direction for question in parts[PAIRS].questions)
    assert directions == {"safe_to_unsafe": 12, "unsafe_to_safe": 12}
    for question in parts[UNSEEN].questions:
        assert HELD_OUT & {member for category in question.row.taxonomy for member in category.members}
    assert len(parts["plain"].questions) == 16


def test_a_crash_is_a_row_with_its_reason_and_the_others_go_on(tests, truths):
    broken = pixels_hash(tests.questions(DIGITS.keys).parts[PAIRS].questions[0].row.example.image)

    def answer(image, policy):
        if image == broken:
            raise ZeroDivisionError("in the middle")
        return float(truths[image, policy.hash])

    found = tests.measure(Fake(answer))
    assert found["pair_score"] == pytest.approx(11 / 12)
    assert found["unjudged_share"] == pytest.approx(2 / 24)
    [(reason, count)] = found["failures"].items()
    assert reason == "the classifier crashed: ZeroDivisionError: in the middle"
    assert count >= 2


def test_the_worst_family_is_named_and_unseen_harms_do_not_count_in_obedience(tests, truths):
    parts = tests.questions(DIGITS.keys).parts
    changed = {q.row.taxonomy.hash for q in parts["negation"].questions}
    unseen = {q.row.taxonomy.hash for q in parts[UNSEEN].questions}

    def answer(image, policy):
        if policy.hash in unseen:
            return math.nan
        truth = truths[image, policy.hash]
        return float(not truth if policy.hash in changed else truth)

    found = tests.measure(Fake(answer))
    obedience = found["obedience"]
    assert (obedience["worst"], obedience["worst_f1"], obedience["plain_f1"]) == ("negation", 0, 1)
    assert obedience["mean_f1"] == pytest.approx(2 / 3)
    assert obedience["unjudged_share"] == 0
    assert found["unseen"]["unjudged_share"] == 1


def test_questions_outside_of_lessons_are_asked_all_the_same(tests, truths):
    class Taught(Fake):
        envelope = "two categories"

        def score(self, images, prompts, taxonomy):
            if self.envelope is None:
                return super().score(images, prompts, taxonomy)
            return Scores(
                np.full(len(images), np.nan),
                np.full((len(images), len(taxonomy)), np.nan),
                ("new",) * len(images),
            )

    taught = Taught(lambda image, policy: float(truths[image, policy.hash]))
    assert tests.measure(taught)["pair_score"] == 1
    assert taught.envelope == "two categories"


def test_scores_of_the_wrong_shape_are_a_crash(tests):
    wrong = Fake()
    wrong.score = lambda images, prompts, taxonomy: Scores(np.zeros(3), np.zeros((3, 1)), (None,) * 3)
    found = tests.measure(wrong)
    assert found["unjudged_share"] == 1
    assert "ValueError" in next(iter(found["failures"]))


def test_a_missing_package_is_said_at_once(tests):
    def answer(image, policy):
        raise MissingExtraError("pip install it")

    with pytest.raises(MissingExtraError):
        tests.measure(Fake(answer))


def test_fixed_categories_are_asked_what_they_cover_and_the_rest_is_said(tests):
    heads = Heads("zero", "one", "two", "three", "four")
    found = tests.measure(heads)
    assert found["covers"] == ["zero", "one", "two", "three", "four"]
    assert (found["pair_score"], found["pairs"]) == (1, 12)
    assert found["obedience"]["by_family"].keys() == {"nonsense_names", "unrelated_prompt"}
    assert sum(found["obedience"]["not_asked"]["negation"].values()) > 0
    assert "negation" not in found["obedience"]["by_family"]
    assert found["obedience"]["worst_f1"] == 1
    assert found["unseen"]["named"] == 1  # of those that it covers
    assert found["fixed"]
    assert not tests.measure(Fake())["fixed"]


def test_one_category_has_no_opposite_policy(tests):
    found = tests.measure(Heads("seven"))
    assert (found["pairs"], found["pair_score"]) == (0, None)
    assert "two" in found["reason"]
    assert found["obedience"]["plain_f1"] == 1
    assert found["unseen"] is None
    assert "held-out" in found["not_drawn"]["unseen"]


def test_who_covers_nothing_is_asked_nothing(tests):
    stranger = Heads("zero")
    stranger.default_taxonomy = load_taxonomy("unsafebench")
    found = tests.measure(stranger)
    assert stranger.asked == 0
    assert found["reason"] == "it covers no category of 'digits'"
    assert found["obedience"] is found["unseen"] is None


def test_categories_without_an_image_are_left_out():
    examples = [example for example in EXAMPLES if "seven" not in example.violates]
    tests = PolicyTests(examples, DIGITS, PolicyOptions(pairs=4, rows=8, families=("typos",)))
    found = tests.measure(Fake())
    assert "seven" not in found["covers"]
    assert found["not_drawn"] == {"categories": "no image violates seven"}
    assert found["pairs"] == 4


def test_images_that_violate_nothing_leave_nothing_to_ask():
    examples = [example for example in EXAMPLES if not example.violates]
    found = PolicyTests(examples, DIGITS, OPTIONS).measure(Fake())
    assert (found["pairs"], found["reason"]) == (0, "no image violates any category")
    assert found["obedience"] is found["unseen"] is None


def test_held_out_keys_have_to_exist():
    options = PolicyOptions(flips=FlipOptions(held_out=frozenset({"fuor"})))
    with pytest.raises(TaxonomyError, match="did you mean 'four'"):
        PolicyTests(EXAMPLES, DIGITS, options)


def test_a_killed_run_goes_on_with_the_next_family(tests, perfect, tmp_path):
    path = tmp_path / "fake.parquet"

    class Killed(Fake):
        def score(self, images, prompts, taxonomy):
            if self.asked >= 45:
                raise KeyboardInterrupt
            return super().score(images, prompts, taxonomy)

    killed = Killed(perfect.answer)
    with pytest.raises(KeyboardInterrupt):
        tests.measure(killed, PolicyRows(path, ABOUT))
    stored = read_policy_rows(path)[1]
    finished = sum(len(family.rows) for family in stored.values())
    assert 24 <= finished <= 45
    seen = []
    found = tests.measure(perfect, PolicyRows(path, ABOUT), lambda done, total: seen.append((done, total)))
    total = tests.questions(DIGITS.keys).count
    assert perfect.asked == total - finished
    assert seen[-1] == (total, total)
    assert found["pair_score"] == 1
    again = Fake()
    assert tests.measure(again, PolicyRows(path, ABOUT)) == found
    assert again.asked == 0
    assert tests.finished(DIGITS.keys, PolicyRows(path, ABOUT)) == found
    assert tests.finished(DIGITS.keys, PolicyRows(tmp_path / "other.parquet", ABOUT)) is None


def test_fixed_categories_stay_known_in_the_file(tests, tmp_path):
    heads = Heads("zero", "one", "two", "three")
    found = tests.measure(heads, PolicyRows(tmp_path / "heads.parquet", ABOUT))
    again = tests.finished(found["covers"], PolicyRows(tmp_path / "heads.parquet", ABOUT))
    assert again == found
    assert again["fixed"]


def test_other_questions_are_asked_again(tests, perfect, tmp_path):
    path = tmp_path / "fake.parquet"
    tests.measure(perfect, PolicyRows(path, ABOUT))
    other = PolicyTests(
        EXAMPLES, DIGITS, PolicyOptions(pairs=12, rows=16, families=FAMILIES, flips=FLIPS, seed=8)
    )
    asked = Fake()
    other.measure(asked, PolicyRows(path, ABOUT))
    assert asked.asked == other.questions(DIGITS.keys).count


def test_stored_rows_say_under_which_policy(tests, perfect, tmp_path):
    path = tmp_path / "fake.parquet"
    tests.measure(perfect, PolicyRows(path, ABOUT))
    about, families = read_policy_rows(path)
    assert about == ABOUT
    for name, part in tests.questions(DIGITS.keys).parts.items():
        assert [row.id for row in families[name].rows] == [question.id for question in part.questions]
        assert families[name].policies == tuple(q.row.taxonomy.hash for q in part.questions)
        assert all(row.correct() for row in families[name].rows)


def test_what_a_service_left_unanswered_is_asked_again(tests, truths, tmp_path):
    class Service(Fake):
        down = True

        def score(self, images, prompts, taxonomy):
            scores = super().score(images, prompts, taxonomy)
            lost = tuple(self.down and place == 0 for place in range(len(images)))
            unsafe = np.where(lost, np.nan, scores.unsafe)
            return Scores(
                unsafe, scores.categories, tuple("busy" if one else None for one in lost), unanswered=lost
            )

    service = Service(lambda image, policy: float(truths[image, policy.hash]))
    first = tests.measure(service, PolicyRows(tmp_path / "rows.parquet", ABOUT))
    assert first["unjudged_share"] > 0
    service.down = False
    assert tests.measure(service, PolicyRows(tmp_path / "rows.parquet", ABOUT))["pair_score"] == 1


def test_a_service_that_never_answers_is_given_up(tests):
    class Down(Fake):
        def score(self, images, prompts, taxonomy):
            scores = super().score(images, prompts, taxonomy)
            return Scores(scores.unsafe, scores.categories, scores.reasons, unanswered=(True,) * len(images))

    down = Down(lambda image, policy: math.nan)
    with pytest.raises(ClassifierFailedError, match="no answer"):
        tests.measure(down)
    assert down.asked == 24


def test_a_part_that_always_crashed_is_asked_again(tests, perfect, tmp_path):
    def crash(image, policy):
        raise RuntimeError("out of memory")

    tests.measure(Fake(crash), PolicyRows(tmp_path / "rows.parquet", ABOUT))
    assert tests.measure(perfect, PolicyRows(tmp_path / "rows.parquet", ABOUT))["pair_score"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"no parquet"), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read as Parquet"),
    ],
)
def test_damaged_files_are_refused(tests, perfect, tmp_path, change, message):
    path = tmp_path / "fake.parquet"
    tests.measure(perfect, PolicyRows(path, ABOUT))
    change(path)
    with pytest.raises(PredictionsError, match=message):
        PolicyRows(path, ABOUT)


def test_files_of_another_version_or_kind_are_refused(tests, perfect, tmp_path, monkeypatch):
    path = tmp_path / "fake.parquet"
    monkeypatch.setattr("eval.benchmark.policy_rows.VERSION", 2)
    tests.measure(perfect, PolicyRows(path, ABOUT))
    monkeypatch.undo()
    with pytest.raises(PredictionsError, match="version 2"):
        PolicyRows(path, ABOUT)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(PredictionsError, match="no answers to policy questions"):
        PolicyRows(path, ABOUT)


def test_files_of_another_classifier_are_refused(tests, perfect, tmp_path):
    path = tmp_path / "fake.parquet"
    tests.measure(perfect, PolicyRows(path, ABOUT))
    other = About("other", "other", "other", DIGITS, DIGITS.keys, "digits", ("test",))
    with pytest.raises(ConfigError, match="classifier 'fake', not 'other'"):
        PolicyRows(path, other)


def test_the_families_of_the_benchmark_are_of_every_kind_and_some_are_in_no_lesson():
    chosen = choose_families(BENCHMARK_FAMILIES)
    assert {family.kind for family in chosen} == {"policy", "prompt"}
    assert {family.aims for family in chosen} == {None, "safe", "unsafe"}
    assert any(family.kind == "policy" and family.changes_truth for family in chosen)
    assert any(family.kind == "prompt" and family.harmless for family in chosen)  # worst_prompt_recall_drop
    unseen = {family.name for family in chosen if not family.in_lessons}
    assert len(unseen) * 2 >= len(chosen) - 1


@pytest.mark.parametrize("options", [{"pairs": 0}, {"rows": 2}, {"families": ("typo",)}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        PolicyOptions(**options)


def pair_rows(answers):
    """Rows of pairs: (image, right on the unsafe side, right on the safe side); None is unjudged."""
    rows = []
    for number, (image, *sides) in enumerate(answers):
        for truth, right in zip((True, False), sides, strict=True):
            unsafe = math.nan if right is None else float(right is truth)
            direction = ("safe_to_unsafe", "unsafe_to_safe")[number % 2]
            rows.append(
                JudgedRow(
                    f"{number}-{truth}", truth, unsafe, pair=str(number), direction=direction, image=image
                )
            )
    return rows


RIGHT = st.sampled_from((True, False, None))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), RIGHT, RIGHT), min_size=1, max_size=20))
def test_the_pair_score_is_the_mean_over_images_of_their_shares(answers):
    rows = pair_rows(answers)
    found = score_pairs(rows, drawn_groups(rows))
    shares = {}
    for image, *sides in answers:
        shares.setdefault(image, []).append(sides == [True, True])
    expected = np.mean([np.mean(right) for right in shares.values()])
    assert found["pair_score"] == pytest.approx(expected)
    low, high = proportion_confint(expected * len(shares), len(shares), method="wilson")
    assert found["pair_score_interval"] == pytest.approx([low, high])
    if len(shares) == len(answers):  # one pair an image
        right, total = pairs_correct(rows)
        assert found["pair_score"] == pytest.approx(right / total)
    assert found["pairs"] == len(answers)
