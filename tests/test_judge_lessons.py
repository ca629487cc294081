"""What a run keeps of its lessons: how far they reached, what they showed, what was measured beyond."""

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.errors import CheckpointError
from judge.lessons.envelope import SLACK, LessonsEnvelope
from judge.lessons.evidence import Evidence, evidence_of, read_text, trained_texts
from judge.lessons.outside import beyond_lessons
from judge.lessons.record import MEASURED, Record, inherit_lessons, read_record, write_lessons, write_measured
from judge.readings import read_prompts
from judge.runs.folder import RunDir
from prompts import Category, Example, FlipOptions, Taxonomy, draw_groups

TAXONOMY = Taxonomy(
    "own",
    "1",
    tuple(
        Category(
            name, f"shows {name} of any kind", aliases=(f"{name}s",), rewordings=(f"{name} can be seen",)
        )
        for name in ("axe", "bomb", "coin")
    ),
)
EXAMPLES = [
    Example(f"{key}-{n}", None, prompt="a photo, 2024", violates=frozenset({key} if key else ()))
    for key in ("axe", "bomb", "coin", "")
    for n in range(4)
]
OPTIONS = FlipOptions(max_categories=2, group_size=4, held_out=frozenset({"coin"}))
ROWS = [
    row
    for group in draw_groups(EXAMPLES, TAXONOMY, OPTIONS, seed=0, epoch=0, groups=30)
    for row in group.rows
]
ENVELOPE = LessonsEnvelope.of_lessons(ROWS, TAXONOMY)


def of_length(categories: int, characters: int = 20) -> Taxonomy:
    entries = (Category(f"c{n}", "d" * (characters - len(f"c{n}"))) for n in range(categories))
    return Taxonomy("long", "1", tuple(entries))


def words(taxonomy: Taxonomy) -> int:
    """As a tokenizer that makes a token of each word."""
    return sum(len(f"{category.name} {category.definition}".split()) for category in taxonomy)


def test_every_drawn_row_and_the_own_taxonomy_lie_inside() -> None:
    envelope = LessonsEnvelope.of_lessons(ROWS, TAXONOMY, words)
    assert envelope.policy_tokens == max(words(policy) for policy in (TAXONOMY, *(r.taxonomy for r in ROWS)))
    for policy in (TAXONOMY, *(row.taxonomy for row in ROWS)):
        assert envelope.why_policy_outside(policy, words) is None
    assert all(envelope.why_prompt_outside(row.prompt) is None for row in ROWS if row.prompt)
    assert envelope.categories == 3
    assert (envelope.policy_scripts, envelope.prompt_scripts) == (("Latin",), ("Latin",))


@pytest.mark.parametrize(
    ("policy", "words_of_the_reason"),
    [
        (of_length(4), ("4 categories", "at most 3")),
        (of_length(1, characters=200), ("'c0' takes 200 characters",)),
        (of_length(3, characters=60), ("it has 180 characters",)),
        (Taxonomy("ru", "1", (Category("axe", "топор"),)), ("'axe' is in Cyrillic", "Latin")),
        (Taxonomy("ru", "1", (Category("топор", "shows axe"),)), ("'топор' is in Cyrillic",)),
    ],
)
def test_a_policy_outside_is_named_with_what_to_do(
    policy: Taxonomy, words_of_the_reason: tuple[str, ...]
) -> None:
    envelope = replace(ENVELOPE, category_characters=100, policy_characters=120)
    reason = envelope.why_policy_outside(policy) or ""
    assert all(part in reason for part in (*words_of_the_reason, "arbiter obedience"))


def test_tokens_are_compared_where_they_are_known() -> None:
    wordy = Taxonomy("w", "1", (Category("a", "b c d e f g h"),))
    assert ENVELOPE.why_policy_outside(wordy, words) is None
    few = replace(ENVELOPE, policy_tokens=4)
    assert few.why_policy_outside(wordy) is None
    assert "8 tokens" in (few.why_policy_outside(wordy, words) or "")


@given(st.integers(0, 300))
def test_lengths_have_slack_and_counts_have_none(longer: int) -> None:
    policy = of_length(3, characters=100 + longer)
    envelope = LessonsEnvelope.of([of_length(3, characters=100)])
    assert (envelope.why_policy_outside(policy) is None) == (100 + longer <= 100 * SLACK)
    assert envelope.why_policy_outside(of_length(4, characters=10)) is not None


def test_a_wider_envelope_holds_both() -> None:
    other = LessonsEnvelope.of([of_length(40)], ["Оружие"], words)
    wider = ENVELOPE.widened(other)
    assert wider == other.widened(ENVELOPE)
    assert wider.categories == 40
    assert wider.policy_tokens == other.policy_tokens
    assert wider.prompt_scripts == ("Cyrillic", "Latin")
    assert wider.why_policy_outside(of_length(40)) is None
    assert ENVELOPE.widened(None) == ENVELOPE


def test_prompts_outside_are_not_read_and_the_image_is() -> None:
    latin = "a photo " * 20
    prompts = ["a photo", "фото", latin, None, ("a photo, " * 40) + "фото " * 60]
    envelope = replace(ENVELOPE, prompt_characters=300)
    readings = read_prompts(prompts, "max", envelope)
    assert readings.notes[0] is readings.notes[2] is readings.notes[3] is None
    assert (
        readings.notes[1] == "the prompt was not read: it is in Cyrillic, which no prompt of the lessons was"
    )
    assert "a part of the prompt was not read" in str(readings.notes[4])
    assert [len(readings.of_row(row)) > 1 for row in range(5)] == [True, False, True, False, True]
    assert not any("фото фото" in (text or "") for text in readings.texts)
    short = read_prompts([latin], "max", replace(ENVELOPE, prompt_characters=20))
    assert short.texts == (None,)
    assert "lessons had at most 20" in str(short.notes[0])
    silent = LessonsEnvelope.of([TAXONOMY])
    assert "held no prompts" in str(read_prompts(["a photo"], "max", silent).notes[0])


def test_evidence_is_what_lessons_showed_in_the_words_they_showed_it() -> None:
    trained = trained_texts(ROWS, TAXONOMY)
    assert {"axe", "shows axe of any kind", "axe can be seen", "bomb"} <= trained
    assert not any("coin" in text for text in trained)  # held out
    evidence = Evidence(trained, {read_text(TAXONOMY.categories[2]): 0.957})
    assert [evidence.of_category(category) for category in TAXONOMY] == [
        "trained",
        "trained",
        "measured 0.96",
    ]
    assert evidence.of_policy(TAXONOMY) == "measured 0.96"
    renamed = Taxonomy("o", "1", (Category("zzz", "SHOWS AXE of any kind."),))
    assert evidence.of_policy(renamed) == "trained"
    reworded = TAXONOMY.reword({"axe": "sharp tools"})
    assert evidence.of_policy(reworded) == "none"
    assert evidence.without(reworded) == ["axe"]
    assert evidence.of_policy(TAXONOMY.select(["axe"]).names_only()) == "trained"


def test_a_category_that_lessons_only_had_beside_others_is_not_trained() -> None:
    safe = [row for row in ROWS if row.category is None]
    assert safe
    assert not trained_texts(safe, TAXONOMY)


levels = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), max_size=4)
evidences = st.builds(Evidence, st.frozensets(st.sampled_from("abcd")), levels)


@given(evidences, evidences, st.sampled_from("abcd"))
def test_two_stages_know_no_more_than_either(one: Evidence, two: Evidence, text: str) -> None:
    def rank(evidence: Evidence) -> float:
        level = evidence.of_category(Category(text, text))
        return {"trained": 2.0, "none": -1.0}.get(level) or float(level.split()[1])

    assert rank(one.weaker(two)) == min(rank(one), rank(two))
    assert one.weaker(two) == two.weaker(one)


def test_of_an_unknown_classifier_nothing_is_known() -> None:
    assert evidence_of(object()).of_policy(TAXONOMY) == "none"


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir.create(tmp_path / "run")
    write_lessons(run, LessonsEnvelope.of_lessons(ROWS, TAXONOMY, words), trained_texts(ROWS, TAXONOMY))
    return run


def family(envelope: LessonsEnvelope, **changed: object) -> dict[str, object]:
    about = {"rows": 240, "f1": 0.93, "f1_drop_interval": [0.01, 0.08], "envelope": envelope.to_dict()}
    return about | changed


def test_a_run_gives_back_what_was_written(run: RunDir) -> None:
    record = read_record(run)
    assert record == Record(
        LessonsEnvelope.of_lessons(ROWS, TAXONOMY, words), Evidence(trained_texts(ROWS, TAXONOMY))
    )
    write_lessons(run, None, ["axe"])
    assert read_record(run).envelope is None
    assert read_record(run).known


@pytest.mark.parametrize(
    ("changed", "widens"),
    [
        ({}, True),
        ({"f1": 0.6}, False),
        ({"f1": None}, False),
        ({"f1_drop_interval": [0.05, 0.12]}, False),
        ({"f1_drop_interval": [None, None]}, False),
        ({"rows": 20}, False),
    ],
)
def test_what_was_measured_well_widens(run: RunDir, changed: dict[str, object], widens: bool) -> None:
    forty = LessonsEnvelope.of([of_length(40)])
    write_measured(run, families={"categories_40": family(forty, **changed)})
    assert (read_record(run).envelope or forty).categories == (40 if widens else 3)


def test_measurements_add_up_and_the_last_one_of_a_kind_counts(run: RunDir) -> None:
    forty, hundred = (LessonsEnvelope.of([of_length(n)]) for n in (40, 100))
    coin = TAXONOMY.categories[2]
    write_measured(run, [(coin, 0.5, 80)], {"forty": family(forty), "hundred": family(hundred)})
    write_measured(run, families={"hundred": family(hundred, f1=0.1)})
    record = read_record(run)
    assert record.envelope is not None
    assert record.evidence is not None
    assert record.envelope.categories == 40
    assert record.evidence.of_category(coin) == "measured 0.50"
    write_measured(run, [(coin, 0.8, 80)])
    assert read_record(run).evidence.of_category(coin) == "measured 0.80"


def test_a_run_that_goes_on_from_another_inherits(run: RunDir, tmp_path) -> None:
    second = RunDir.create(tmp_path / "second")
    assert read_record(second) == Record()
    inherit_lessons(second, run)
    assert read_record(second) == read_record(run)
    inherit_lessons(second, RunDir.create(tmp_path / "old"))
    assert not read_record(second).known


def test_damaged_records_are_refused(run: RunDir) -> None:
    good = run.manifest["lessons"]
    for damaged in (
        [],
        {},
        good | {"trained": [3]},
        good | {"envelope": []},
        good | {"envelope": good["envelope"] | {"categories": "many"}},
        good | {"envelope": good["envelope"] | {"policy_scripts": [4]}},
        good | {"envelope": good["envelope"] | {"colour": 4}},
    ):
        run.update_manifest(lessons=damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            read_record(run)
    run.update_manifest(lessons=good)
    for text in ("{", "[]", json.dumps({"categories": {"a": {}}, "families": {}})):
        (run.path / MEASURED).write_text(text)
        with pytest.raises(CheckpointError):
            read_record(run)


def test_beyond_lessons_reaches_the_stages_and_ends() -> None:
    class Stage:
        envelope = ENVELOPE

    class Both:
        def stages(self):
            return stages

    stages = [Stage(), object(), Stage()]
    with beyond_lessons(Both()):
        assert stages[0].envelope is stages[2].envelope is None
    assert stages[0].envelope is stages[2].envelope is ENVELOPE


def test_the_order_of_the_rows_does_not_matter() -> None:
    shuffled = Random(0).sample(ROWS, len(ROWS))
    assert LessonsEnvelope.of_lessons(shuffled, TAXONOMY) == ENVELOPE
    assert trained_texts(shuffled, TAXONOMY) == trained_texts(ROWS, TAXONOMY)
