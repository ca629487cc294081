"""Other people's policy questions, measured; and the tables of all policy tests."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.benchmark.policies import PolicyTests
from eval.benchmark.policy_questions import PolicyOptions
from eval.benchmark.policy_rows import PolicyRows
from eval.benchmark.policy_sets import finished_policy_set, measure_policy_set, shift_groups
from eval.benchmark.policy_tables import policy_set_table, policy_tables
from eval.benchmark.predictions import About
from eval.benchmark.sets.rows import PolicyRow, policy_set
from eval.metrics.judged import JudgedRow
from judge.data.sources import Skipped
from judge.protocol import Scores
from judge.standins.digits import digits_examples
from prompts import Category, FlipOptions, Taxonomy, load_taxonomy

DIGITS = load_taxonomy("digits")
EXAMPLES = digits_examples("test", count=200)
ABOUT = About("fake", "fake", "other", DIGITS, DIGITS.keys, "a set", ("test",))


class Fake:
    """One answer for each policy's name."""

    name = "fake"

    def __init__(self, **answers):
        self.answers, self.asked = answers, 0

    def score(self, images, prompts, taxonomy):
        self.asked += len(images)
        unsafe = np.full(len(images), self.answers.get(taxonomy.name, math.nan))
        reasons = tuple("prose" if math.isnan(one) else None for one in unsafe)
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), axis=1), reasons)


class Heads(Fake):
    match, scores_categories, default_taxonomy = "members", True, DIGITS


def question_row(image, policy, unsafe, tier, area="1"):
    taxonomy = Taxonomy(policy, "1", (Category(f"{policy} {area}", "pets indoors"),))
    return PolicyRow(
        f"{image}/{area}/{policy}",
        image,
        EXAMPLES[int(image)].image,
        "test",
        taxonomy,
        frozenset(taxonomy.keys if unsafe else ()),
        area=area,
        facts={"tier": tier},
    )


@pytest.fixture
def questions():
    """Two images under a loose and a strict policy, the second one blocked by both of one area."""
    rows = [
        question_row("0", "loose", False, "easy"),
        question_row("0", "strict", True, "easy"),
        question_row("1", "loose", False, "hard"),
        question_row("1", "strict", True, "hard"),
        question_row("1", "loose", True, "hard", "2"),
    ]
    return policy_set(rows, [Skipped("lost", "bad_row", "no label")], "petbench")


def test_a_set_is_measured_by_pairs_tiers_and_directions(questions):
    found = measure_policy_set(Fake(loose=0.1, strict=0.9), questions)
    assert (found["rows"], found["skipped"], found["name"]) == (5, 1, "petbench")
    assert (found["pair_score"], found["pairs"], found["images"]) == (1, 2, 2)
    assert (found["safe_to_unsafe"], found["unjudged_share"]) == (1, 0)
    assert found["f1"] == pytest.approx(0.8)  # of three unsafe rows one is missed
    assert found["accuracy"] == pytest.approx(0.8)
    assert {tier: one["accuracy"] for tier, one in found["by_tier"].items()} == {
        "easy": 1,
        "hard": pytest.approx(2 / 3),
    }


def test_calling_everything_unsafe_has_a_fair_f1_and_no_pair(questions):
    found = measure_policy_set(Fake(loose=0.9, strict=0.9), questions)
    assert found["f1"] == pytest.approx(0.75)
    assert (found["pair_score"], found["safe_to_unsafe"]) == (0, 1)


def test_whoever_never_answers_gets_0(questions):
    found = measure_policy_set(Fake(), questions)
    assert [found[key] for key in ("f1", "accuracy", "pair_score", "unjudged_share")] == [0, 0, 0, 1]
    assert found["failures"] == {"prose": 5}


def test_fixed_categories_are_not_asked_what_they_do_not_cover(questions):
    heads = Heads(loose=0.9, strict=0.9)
    found = measure_policy_set(heads, questions)
    assert heads.asked == found["rows"] == 0
    assert sum(found["not_asked"].values()) == 5
    assert found["f1"] is found["accuracy"] is found["pair_score"] is None


def test_a_finished_set_is_not_asked_again(questions, tmp_path):
    path = tmp_path / "fake.parquet"
    first = measure_policy_set(Fake(loose=0.1, strict=0.9), questions, PolicyRows(path, ABOUT))
    later = Fake()
    assert measure_policy_set(later, questions, PolicyRows(path, ABOUT)) == first
    assert later.asked == 0
    assert finished_policy_set(questions, PolicyRows(path, ABOUT)) == first
    assert finished_policy_set(questions, PolicyRows(tmp_path / "other.parquet", ABOUT)) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.booleans(), st.sampled_from((0.1, 0.9, math.nan))), max_size=12
    )
)
def test_every_two_rows_of_a_group_with_opposite_labels_are_a_pair(answers):
    rows = [JudgedRow(str(n), truth, unsafe) for n, (_, truth, unsafe) in enumerate(answers)]
    groups = {str(n): group for n, (group, _, _) in enumerate(answers)}
    expected = {}
    for one in rows:
        for two in rows:
            if groups[one.id] == groups[two.id] and one.truth and not two.truth:
                expected.setdefault(groups[one.id], []).append(one.unsafe == 0.9 and two.unsafe == 0.1)
    assert {group: sorted(right) for group, right in shift_groups(rows, groups).items()} == {
        group: sorted(right) for group, right in expected.items()
    }


@pytest.fixture(scope="module")
def records():
    options = PolicyOptions(
        pairs=4, rows=8, families=("typos", "negation", "unrelated_prompt"),
        flips=FlipOptions(group_size=4, held_out=frozenset({"four"})),
    )  # fmt: skip
    tests = PolicyTests(EXAMPLES, DIGITS, options)
    seven = Heads(digits=0.9)
    seven.default_taxonomy = DIGITS.select(["seven"])
    return {"reads": tests.measure(Fake(digits=0.9)), "seven": tests.measure(seven)}


def test_classifiers_are_lines(records):
    found = {table.title: table for table in policy_tables(records)}
    assert list(found) == [
        "Opposite policies",
        "Obedience",
        "Obedience: F1 by family",
        "Unseen harms",
        "Policy questions that were not asked",
    ]
    for table in found.values():
        assert all(len(cells) == len(table.heads) for _, cells in table.lines)
        assert table.to_text()
        assert table.to_markdown()
    assert [name for name, _ in found["Opposite policies"].lines] == ["reads", "seven"]
    flips = dict(zip(found["Opposite policies"].heads, found["Opposite policies"].lines[0][1], strict=True))
    assert (flips["categories"], flips["fixed"], flips["pairs"]) == (10, False, 4)
    assert (flips["pair score"], flips["s→u"], flips["u→s"]) == (0, 1, 0)
    assert [name for name, _ in found["Unseen harms"].lines] == ["reads"]
    said = found["Policy questions that were not asked"].lines
    assert ("seven", "pairs") in {(name, cells[0]) for name, cells in said}
    assert ("seven", "negation") in {(name, cells[0]) for name, cells in said}


def test_a_family_that_was_not_asked_is_a_dash(records):
    [table] = [table for table in policy_tables(records) if table.title == "Obedience: F1 by family"]
    place = table.heads.index("negation")
    assert table.lines[0][1][place] is not None
    assert table.lines[1][1][place] is None


def test_sets_have_a_table(questions):
    records = {name: measure_policy_set(fake, questions) for name, fake in (
        ("obeys", Fake(loose=0.1, strict=0.9)), ("mute", Fake()), ("heads", Heads())
    )}  # fmt: skip
    table = policy_set_table(records)
    assert table.title == "Policies of petbench"
    assert all(len(cells) == len(table.heads) for _, cells in table.lines)
    assert {"easy", "hard"} < set(table.heads)
    lines = dict(table.lines)
    assert lines["obeys"][table.heads.index("pair score")] == 1
    assert lines["heads"][table.heads.index("not asked")] == 5
    assert "–" in table.to_text()
