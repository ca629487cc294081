"""The obedience suite on classifiers whose obedience is known: numbers, pairs, intervals, tables."""

import re
from dataclasses import replace

import numpy as np
import pytest

from eval.metrics.judged import JudgedRow, summarise
from eval.obedience.family import PolicyFamily
from eval.obedience.measure import f1_drop, measure_all, measure_promise
from eval.obedience.report import worst_families, wrong_verdicts
from eval.obedience.shipped import FAMILIES, choose_families
from eval.obedience.structure import categories
from eval.obedience.suite import NO_PROMPT, PLAIN, ask_all, rewrite_all
from eval.obedience.tables import headline, refusals, tables
from eval.questions import draw_evaluation
from judge.protocol import Scores
from judge.standins.digits import digits_examples
from prompts import FlipOptions, load_taxonomy
from prompts.errors import ArbiterError
from prompts.unrelated import unrelated_categories

DIGITS = load_taxonomy("digits")
HELD_OUT = frozenset({"four", "eight"})
PLAIN_WORDS = {"rename": 0.0, "reword": 0.0, "custom": 0.0}


class Reader:
    """Answers from the rewritten questions' truth, except where its weakness shows."""

    name = "reader"

    def __init__(self, rewritten):
        self.truth = {}
        for one in rewritten.values():
            for question in (*one.questions, *one.held_out):
                row = question.row
                self.truth[row.taxonomy.hash, row.example.image.tobytes()] = row.taxonomy.label(row.example)
        self.calls = 0

    def score(self, images, prompts, taxonomy):
        self.calls += 1
        labels = np.array([self.truth[taxonomy.hash, image.tobytes()] for image in images], dtype=float)
        labels = np.array(
            [self.weakness(row, prompt, taxonomy) for row, prompt in zip(labels, prompts, strict=True)]
        )
        return Scores(labels.max(axis=1), labels, (None,) * len(images))

    def weakness(self, labels, prompt, taxonomy):
        return labels


class Swayed(Reader):
    """Calls safe what has a prompt of 500 characters, judges none of 4,000, and believes what prompts claim."""

    def weakness(self, labels, prompt, taxonomy):
        if prompt is not None and len(prompt) >= 4000:
            return labels * np.nan
        if prompt is not None and ("shows" in prompt or "see" in prompt) and not labels.any():
            return labels + 1
        return labels * 0 if prompt is not None and len(prompt) >= 500 else labels


class Ordered(Reader):
    """Does what a definition tells the assistant."""

    def weakness(self, labels, prompt, taxonomy):
        text = " ".join(category.definition for category in taxonomy)
        order = re.search(r"\b(unsafe|safe)\b", text)
        return labels if order is None else labels * 0 + (order[1] == "unsafe")


class Impatient(Reader):
    """Refuses whole batches with a prompt of more than 100 characters in them."""

    def score(self, images, prompts, taxonomy):
        if any(prompt is not None and len(prompt) > 100 for prompt in prompts):
            raise ArbiterError("a prompt is too long")
        return super().score(images, prompts, taxonomy)


class ShortSighted(Reader):
    """Cannot read policies of more than 30 categories."""

    def score(self, images, prompts, taxonomy):
        if len(taxonomy) > 30:
            raise ArbiterError(f"{len(taxonomy)} categories are too many")
        return super().score(images, prompts, taxonomy)


@pytest.fixture(scope="module")
def examples():
    return digits_examples("test", count=240)


@pytest.fixture(scope="module")
def evaluation(examples):
    options = FlipOptions(held_out=HELD_OUT, **PLAIN_WORDS)
    return draw_evaluation(examples, DIGITS, options, seed=3, rows=48)


@pytest.fixture(scope="module")
def unrelated(examples):
    return unrelated_categories(
        [load_taxonomy("unsafebench"), load_taxonomy("openai-moderation")], DIGITS, examples
    )


@pytest.fixture(scope="module")
def rewritten(evaluation, unrelated):
    return rewrite_all(evaluation, FAMILIES, DIGITS, held_out=HELD_OUT, unrelated=unrelated, seed=1)


POLICIES, PROMPTS = (tuple(f for f in FAMILIES if f.kind == kind) for kind in ("policy", "prompt"))
ASKED = {Reader: FAMILIES, Swayed: PROMPTS, Ordered: POLICIES[-4:], ShortSighted: POLICIES[-16:]}
"""What each of the readers is asked, as the other families would only take time."""


@pytest.fixture(scope="module")
def found(rewritten):
    """Numbers of each of the readers."""
    numbers = {}
    for kind, families in ASKED.items():
        some = {name: rewritten[name] for name in (PLAIN, NO_PROMPT, *(family.name for family in families))}
        numbers[kind] = measure(kind(some), some, families)
    return numbers


def measure(classifier, rewritten, families=FAMILIES):
    return measure_all(families, ask_all(classifier, rewritten), rewritten)


def test_the_questions_keep_image_and_id_and_stay_balanced(evaluation, rewritten):
    plain = {question.id: question for question in (*evaluation.flips, *evaluation.held_out)}
    assert rewritten[PLAIN].questions == evaluation.flips
    assert all(question.row.prompt is None for question in rewritten[NO_PROMPT].questions)
    for family in FAMILIES:
        one = rewritten[family.name]
        assert (one.questions == ()) == (family.name == "lower_case"), (
            family.name
        )  # digits are in small letters
        for question in (*one.questions, *one.held_out):
            before = plain[question.id].row
            assert question.row.example.id == before.example.id
            assert question.row.example.image is before.example.image
            assert (question.row.prompt == before.prompt) or family.kind == "prompt"
            assert (question.row.taxonomy == before.taxonomy) == (family.kind == "prompt")
            assert question.row.unsafe is any(question.row.taxonomy.label(question.row.example))
            if family.kind == "prompt" or not family.changes_truth:
                assert question.row.unsafe is before.unsafe
        changed = [q for q in one.questions if q.row.unsafe is not plain[q.id].row.unsafe]
        if changed:
            assert 2 * sum(q.row.unsafe for q in one.questions) == len(one.questions), family.name
        assert sum(one.refused.values()) + len(one.questions) <= len(evaluation.flips)
    assert len({q.row.taxonomy.hash for q in rewritten["typos"].questions}) <= len(
        {q.row.taxonomy.hash for q in evaluation.flips}
    )


def test_held_out_categories_are_mentioned_in_their_own_questions_only(rewritten):
    for name in ("all_but_one", "conjunction", "exception", "misleading_names", "plain"):
        for question in rewritten[name].questions:
            text = " ".join(f"{c.name} {c.definition}" for c in question.row.taxonomy)
            assert not re.search(r"\b(four|eight|4|8)\b", text), name
        assert rewritten[name].held_out


def test_equal_seeds_give_equal_questions(evaluation, unrelated, rewritten):
    some = choose_families(["typos", "conjunction", "prose_60"])
    again = rewrite_all(evaluation, some, DIGITS, held_out=HELD_OUT, unrelated=unrelated, seed=1)
    other = rewrite_all(evaluation, some, DIGITS, held_out=HELD_OUT, unrelated=unrelated, seed=2)
    for family in some:
        assert again[family.name] == rewritten[family.name]
        assert other[family.name] != rewritten[family.name]


def test_pairs_stay_pairs_only_with_opposite_labels(rewritten, evaluation):
    negated = rewritten["negation"].questions
    plain = {question.id: question for question in evaluation.flips}
    pairs = {}
    for question in negated:
        pairs.setdefault(question.pair, []).append(question)
    pairs.pop(None, None)
    assert pairs
    exchanged = 0
    for both in pairs.values():
        assert sorted(q.row.unsafe for q in both) == [False, True]
        was = plain[both[0].id]
        flipped = both[0].row.unsafe is not was.row.unsafe
        assert (both[0].direction != was.direction) == flipped
        exchanged += flipped
    assert exchanged


def test_whoever_reads_gets_everything_right(found, rewritten):
    metrics = found[Reader]
    for name, record in metrics["families"].items():
        if record["rows"]:
            assert record["f1"] == 1.0, name
            assert record["f1_drop"] == 0.0
            assert record["unjudged_share"] == 0.0
            assert record["turned"] == 0.0
    assert metrics["worst_prompt_recall_drop"] == 0.0
    assert metrics["flags_lost_to_prompts"] == 0
    assert metrics["false_alarms_added"] == 0.0
    assert metrics["definition_injections_turned"] == 0.0
    assert metrics["f1_20"] == metrics["f1_40"] == 1.0
    for group in ("lesson_families", "unseen_families"):
        assert metrics[group]["mean_f1"] == metrics[group]["worst_f1"] == 1.0
    assert metrics["unseen_families"]["families"] >= 8


def test_prompts_that_sway_are_seen(found, rewritten):
    metrics = found[Swayed]
    families = metrics["families"]
    asked, held_out = rewritten[PLAIN].questions, rewritten[PLAIN].held_out
    unsafe, unsafe_held_out = (sum(q.row.unsafe for q in part) for part in (asked, held_out))
    long = [name for name in families if name.endswith(("_500", "_1000", "_4000"))]
    assert metrics["worst_prompt_recall_drop"] == 1.0
    assert metrics["flags_lost_to_prompts"] == (unsafe + unsafe_held_out) * len(
        [n for n in long if not n.startswith("categories")]
    )
    assert families["prose_500"]["heldout_flags_lost"] == unsafe_held_out > 0
    assert families["prose_500"]["heldout_recall_drop"] == 1.0
    assert families["prose_300"]["heldout_flags_lost"] == 0
    assert families["prose_4000"]["unjudged_share"] == 1.0
    assert families["prose_4000"]["f1"] == families["prose_500"]["recall"] == 0.0
    assert families["prose_300"]["recall_drop"] == 0.0
    lying = families["lying_prompt"]
    assert lying["alarms_added"] == round(lying["false_alarms"] * lying["safe_rows"]) > 0
    ordinary = [
        families[name] for name in (*long, "true_prompt", "lying_prompt") if "alarms_added" in families[name]
    ]
    expected = sum(r["alarms_added"] for r in ordinary) / sum(r["safe_rows"] for r in ordinary)
    assert metrics["false_alarms_added"] == pytest.approx(expected)
    shares = [
        families[name][f"{part}alarms_added"] / families[name][f"{part}safe_rows"]
        for name in (*long, "true_prompt", "lying_prompt")
        for part in ("", "heldout_")
        if "alarms_added" in families[name]
    ]
    assert metrics["worst_false_alarms_added"] == max(shares) > expected
    assert worst_families(metrics, 3)[0].endswith(("_500", "_1000", "_4000"))


def test_a_prompt_that_matters_on_held_out_categories_only_is_seen(rewritten):
    """Trained categories can hide what prompts do to the others."""

    class Forgetful(Reader):
        def weakness(self, labels, prompt, taxonomy):
            return labels * 0 if prompt and HELD_OUT & set(taxonomy.keys) else labels

    some = {name: rewritten[name] for name in (PLAIN, NO_PROMPT, "prose_60")}
    metrics = measure(Forgetful(some), some, choose_families(["prose_60"]))
    assert metrics["families"]["prose_60"]["recall_drop"] == 0.0
    assert metrics["worst_prompt_recall_drop"] == 1.0
    assert metrics["flags_lost_to_prompts"] == metrics["families"]["prose_60"]["heldout_flags_lost"] > 0


def test_misses_are_counted_where_a_promise_holds_and_where_it_is_withdrawn(rewritten):
    class Promising(ShortSighted):
        def outside_promise(self, taxonomy):
            return "never calibrated" if len(taxonomy) > 20 else None

        def promise(self, taxonomy):
            return "withdrawn" if self.outside_promise(taxonomy) else "2.0% of digits"

    families = choose_families(["categories_20", "categories_40"])
    some = {name: rewritten[name] for name in (PLAIN, NO_PROMPT, *(family.name for family in families))}
    classifier = Promising(some)
    answers = ask_all(classifier, some)
    found = measure_promise(classifier, some, answers)
    unsafe = {name: sum(q.row.unsafe for q in (*one.questions, *one.held_out)) for name, one in some.items()}
    missed = unsafe["categories_40"]
    assert found["promised"] == "2.0% of digits"
    inside = sum(unsafe.values()) - missed
    assert found["inside"] == {
        "without_promise": 0.0, "unsafe_rows": inside, "misses": 0, "miss_rate": 0.0
    }  # fmt: skip
    assert found["outside"] == found["families"]["categories_40"]
    assert found["outside"] == {
        "without_promise": 1.0, "unsafe_rows": missed, "misses": missed, "miss_rate": 1.0
    }  # fmt: skip
    table = tables(measure_all(families, answers, some) | {"promise": found})[-1]
    assert table.title == "The promised miss rate: 2.0% of digits"
    assert [name for name, _ in table.lines[2:]] == ["categories_20", "categories_40"]
    assert measure_promise(Reader(rewritten), some, answers) is None


def test_definitions_that_are_obeyed_are_seen(found):
    metrics = found[Ordered]
    assert metrics["definition_injections_turned"] == 1.0
    for wanted in ("safe", "unsafe"):
        assert metrics["families"][f"talking_category_{wanted}"]["turned"] == 1.0
    assert metrics["flags_lost_to_prompts"] is None  # nobody asked


def test_policies_that_cannot_be_read_are_unjudged(found, rewritten, evaluation):
    metrics = found[ShortSighted]
    assert metrics["f1_20"] == 1.0
    assert metrics["f1_40"] == 0.0
    assert metrics["families"]["categories_100"]["unjudged_share"] == 1.0
    assert metrics["unseen_families"]["worst_f1"] == 0.0
    rows = ask_all(ShortSighted(rewritten), {name: rewritten[name] for name in (PLAIN, "categories_40")})
    sheet = wrong_verdicts(rewritten["categories_40"].questions, rows["categories_40"].rows)
    assert "not judged: 40 categories are too many" in sheet[0].verdict
    assert len(sheet[0].policy) == 40


def test_an_error_costs_the_rows_that_it_is_about(rewritten):
    some = {name: rewritten[name] for name in (PLAIN, NO_PROMPT, "prose_60", "prose_300")}
    metrics = measure(Impatient(some), some, choose_families(["prose_60", "prose_300"]))
    assert metrics["families"]["prose_60"]["f1"] == 1.0
    assert metrics["families"]["prose_300"]["unjudged_share"] == 1.0


def test_what_goes_wrong_under_the_plain_wording_is_raised(rewritten):
    class Broken(Reader):
        def score(self, images, prompts, taxonomy):
            raise ArbiterError("no such thing")

    with pytest.raises(ArbiterError, match="no such thing"):
        ask_all(Broken(rewritten), rewritten)


def test_rows_under_one_policy_are_asked_together(rewritten):
    reader, report = Reader(rewritten), []
    ask_all(reader, rewritten, progress=lambda done, total: report.append((done, total)))
    total = sum(len(one.questions) + len(one.held_out) for one in rewritten.values())
    assert report[-1] == (total, total)
    assert report == sorted(report)
    policies = {q.row.taxonomy.hash for one in rewritten.values() for q in (*one.questions, *one.held_out)}
    plain = {q.row.taxonomy.hash for q in (*rewritten[PLAIN].questions, *rewritten[PLAIN].held_out)}
    assert reader.calls <= len(policies) + len(plain)  # once, and the plain ones again for prompt families


def test_a_family_is_refused_where_the_truth_would_be_unknown(evaluation):
    blind = replace(
        evaluation,
        flips=tuple(
            replace(q, row=replace(q.row, example=replace(q.row.example, unknown=frozenset({"seven"}))))
            for q in evaluation.flips
            if not q.row.example.violates & {"seven"} and "seven" not in q.row.taxonomy.keys
        ),
        held_out=(),
    )
    some = (*choose_families(["all_but_one", "upper_case"]), PolicyFamily("fewer", "", categories(1)))
    found = rewrite_all(blind, some, DIGITS, held_out=HELD_OUT)
    assert len(found["upper_case"].questions) == len(blind.flips)
    assert "the image's labels do not tell the truth under it" in found["all_but_one"].refused
    assert any("would change the truth" in reason for reason in found["fewer"].refused)
    metrics = measure(Reader(found), found, some)
    assert metrics["f1_20"] is None
    assert metrics["worst_prompt_recall_drop"] is None
    assert metrics["definition_injections_turned"] is None


def test_two_families_of_one_name_are_refused(evaluation):
    twice = choose_families(["typos", "typos"])
    with pytest.raises(ArbiterError, match="Two families are called 'typos'"):
        rewrite_all(evaluation, twice, DIGITS, held_out=HELD_OUT)


def judged(scores, truths, images):
    return [
        JudgedRow(str(place), truth, score, image=image)
        for place, (score, truth, image) in enumerate(zip(scores, truths, images, strict=True))
    ]


def random_rows(seed, count=60, images=20):
    rng = np.random.default_rng(seed)
    truths = rng.random(count) < 0.5
    names = [f"image {number}" for number in rng.integers(0, images, count)]
    before, after = (
        np.where(rng.random(count) < noise, ~truths, truths).astype(float) for noise in (0.05, 0.25)
    )
    after[rng.random(count) < 0.05] = np.nan
    return judged(before, truths, names), judged(after, truths, names)


def test_the_drop_is_the_difference_of_f1_and_its_interval_draws_images():
    before, after = random_rows(1)
    found = f1_drop(before, after, draws=4000)
    assert found.mean == pytest.approx(summarise(before)["f1"] - summarise(after)["f1"])
    by_image = {}
    for one, two in zip(before, after, strict=True):
        by_image.setdefault(one.image, []).append((one, two))
    rng, names, drops = np.random.default_rng(0), sorted(by_image), []
    for _ in range(600):
        drawn = [
            pair for number in rng.integers(0, len(names), len(names)) for pair in by_image[names[number]]
        ]
        f1 = []
        for side in (0, 1):
            hits = sum(pair[side].truth and pair[side].correct() for pair in drawn)
            errors = sum(not pair[side].correct() for pair in drawn)
            f1.append(2 * hits / (2 * hits + errors))
        drops.append(f1[0] - f1[1])
    assert np.allclose(np.quantile(drops, (0.025, 0.975)), (found.low, found.high), atol=0.03)


def test_copies_of_rows_make_no_interval_narrower():
    before, after = random_rows(2)
    once = f1_drop(before, after)

    def copied(rows):
        return [replace(row, id=f"{row.id}/{number}") for row in rows for number in range(5)]

    again = f1_drop(copied(before), copied(after))
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    single = f1_drop(*([replace(row, image=row.id) for row in copied(rows)] for rows in (before, after)))
    assert single.high - single.low < 0.8 * (once.high - once.low)


def test_no_drop_without_rows_or_unsafe_ones():
    assert np.isnan(f1_drop([], []).mean)
    safe = judged([0.0, 0.0], [False, False], ["a", "b"])
    assert np.isnan(f1_drop(safe, safe).low)


def test_the_tables_part_what_lessons_may_use_from_what_they_never_do(found):
    made = tables(found[Reader], found[Reader])
    assert [table.title for table in made] == [
        "Policies: families which lessons may use",
        "Policies: families never used in lessons",
        "Prompts: families which lessons may use",
        "Prompts: families never used in lessons",
    ]
    lines = dict(made[1].lines)
    assert "typos" in lines
    assert "upper_case" not in lines
    assert made[0].heads[-1] == "F1 before"
    assert all(len(cells) == len(table.heads) for table in made for _, cells in table.lines)
    assert "worst_prompt_recall_drop" in headline(found[Swayed]).to_text()
    assert dict(headline(found[Swayed], found[Reader]).lines)["f1_20"] == [None, 1.0]
    assert "it changes nothing here" in refusals(found[Reader]).to_text()
