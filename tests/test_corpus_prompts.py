"""Prompts of a corpus: lists, words in templates, chat models; what is no prompt says so and is not drawn."""

import json
from pathlib import Path

import pytest
from fixtures_chat_server import completion, problem
from fixtures_corpus import DRAWING, TREES
from hypothesis import given
from hypothesis import strategies as st

from judge.corpus.chat_prompts import ChatWriter
from judge.corpus.ledger import Ledger
from judge.corpus.plan import Plan, Prompt, plan_pictures
from judge.corpus.prompts import Word, digit_prompts, fill_templates, read_prompts, read_words
from judge.corpus.rows import CorpusRow, Failure, Variant
from judge.errors import ConfigError
from judge.vlm.remote import parse_remote


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_prompts_with_labels_in_the_users_own_words(tmp_path: Path) -> None:
    table = 'label,prompt\noak,"An oak, in snow"\nsafe,a  meadow\n,unlabelled\nBirch;OAK,both\noak,nan\n,\nsafe,a meadow\n'
    found = read_prompts(write(tmp_path / "own.csv", table), TREES)
    assert [(p.text, p.label) for p in found[:4]] == [
        ("An oak, in snow", ("oak",)),
        ("a meadow", ()),
        ("unlabelled", None),
        ("both", ("birch", "oak")),
    ]
    assert [p.failure.status for p in found[4:] if p.failure] == ["empty", "empty", "repeated"]
    assert found[4].failure is not None
    assert found[4].failure.reason == "own.csv, row 6: no prompt, but 'nan'"
    assert found[0].written_by == {"file": "own.csv", "row": 2}


def test_the_title_of_a_column_is_no_prompt_and_no_word(tmp_path: Path) -> None:
    words = read_words(
        write(tmp_path / "own.csv", "word,kind,label\noak,noun,Oak\nsway,verb,\noak,noun,Oak\n"), TREES
    )
    assert words == [Word("oak", ("oak",), "noun"), Word("sway", None, "verb")]
    with pytest.raises(ConfigError, match="has no column 'word'"):
        read_words(write(tmp_path / "wide.csv", "adjective,noun\ngreen,oak\n"), TREES)
    with pytest.raises(ConfigError, match="row 3: 'nan' is no word"):
        read_words(write(tmp_path / "nan.csv", "word\noak\nnan\n"), TREES)


def test_lines_of_text_and_of_json(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(write(tmp_path / "a.txt", "one\n\n two words \n"), TREES)] == [
        "one",
        "two words",
    ]
    lines = '{"prompt": "x", "label": ["Oak"]}\n{"prompt": "y", "label": []}\n{"prompt": null}\n'
    found = read_prompts(write(tmp_path / "a.jsonl", lines), TREES)
    assert [(p.text, p.label) for p in found] == [("x", ("oak",)), ("y", ()), ("", None)]
    assert found[2].failure is not None


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.csv",
            "prompt,label\nx,okk\n",
            "row 2: the label 'okk' is no category of trees .did you mean 'Oak'",
        ),
        ("a.jsonl", '{"text": "x"}\n', "row 1: no field 'prompt'"),
        ("a.jsonl", "{\n", "row 1: no JSON"),
        ("a.txt", "\n", "holds no prompt"),
        ("a.pdf", "x", "is no .txt, .csv or .jsonl"),
    ],
)
def test_lists_that_cannot_be_read_say_where(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_prompts(write(tmp_path / name, text), TREES)
    with pytest.raises(ConfigError, match="no such file"):
        read_prompts(tmp_path / "missing.csv", TREES)


WORDS = [
    Word("oak", ("oak",), "noun"),
    Word("meadow", (), "noun"),
    Word("sways", None, "verb"),
    Word("stands", (), "verb"),
]


def test_templates_are_filled_with_words_of_their_kind_and_take_their_labels() -> None:
    found = {p.text: p for p in fill_templates(WORDS, ["a {noun} {verb}"], 4)}
    assert set(found) == {"a oak sways", "a oak stands", "a meadow sways", "a meadow stands"}
    assert found["a oak sways"].label == ("oak",)
    assert found["a meadow stands"].label == ()
    assert found["a meadow sways"].label is None, "nobody said what 'sways' stands for"
    assert found["a oak sways"].written_by == {"template": "a {noun} {verb}", "words": ["oak", "sways"]}
    assert len(fill_templates(WORDS, ["a {noun} {verb}"], 50)) == 4


@given(count=st.integers(1, 12), seed=st.integers(0, 5))
def test_more_prompts_keep_those_that_fewer_had(count: int, seed: int) -> None:
    few, many = (fill_templates(WORDS, ["{word} {word}", "a {noun}"], n, seed=seed) for n in (count, 12))
    assert many[: len(few)] == few
    assert len({p.text for p in many}) == len(many)
    assert all(len(set(p.written_by["words"])) == len(p.written_by["words"]) for p in many)


def test_templates_that_cannot_be_filled() -> None:
    with pytest.raises(ConfigError, match="has no slot"):
        fill_templates(WORDS, ["a tree"], 1)
    with pytest.raises(ConfigError, match=r"asks for 1 of 'nouns' .did you mean 'noun'"):
        fill_templates(WORDS, ["a {nouns}"], 1)
    with pytest.raises(ConfigError, match="asks for 3 of 'verb'"):
        fill_templates(WORDS, ["{verb} {verb} {verb}"], 1)


def test_prompts_for_digits_name_theirs_or_nothing() -> None:
    found = digit_prompts(60, seed=1)
    assert len(found) == len({p.text for p in found}) == 60
    assert found == digit_prompts(60, seed=1)
    assert {len(p.label) for p in found if p.label is not None} == {1, 2}
    assert 3 <= sum(p.label is None for p in found) <= 20


# --- chat models -------------------------------------------------------------------------------------------


def ask(stub, tmp_path, count=6, seed=0, **options):
    with (
        parse_remote(f"{stub.url}#m", concurrency=2, retries=1) as server,
        Ledger(tmp_path / "ledger") as ledger,
    ):
        return ChatWriter(server, words=2, **options).write(WORDS, count, ledger, seed=seed)


def test_a_chat_model_is_asked_with_words_and_what_it_was_asked_is_recorded(stub, tmp_path) -> None:
    stub.answer = lambda request: completion(f'Prompt: "scene {request["seed"]}"')
    found = ask(stub, tmp_path, temperature=0.5)
    assert [p.text for p in found] == [f"scene {number}" for number in range(6)]
    for prompt, request in zip(found, sorted(stub.asked, key=lambda r: r["seed"]), strict=True):
        assert request["temperature"] == prompt.written_by["temperature"] == 0.5
        assert request["seed"] == prompt.written_by["seed"]
        assert prompt.written_by["chat"] == request["model"] == "m"
        assert ", ".join(prompt.written_by["words"]) in request["messages"][0]["content"]


def test_refusals_and_empty_answers_are_failed_prompts_with_the_models_words(stub, tmp_path) -> None:
    answers = {
        0: completion("I'm sorry, but I can't help with that."),
        1: completion("  "),
        2: completion("", refusal="no"),
        3: completion("a scene that goes on", finish="length"),
        4: problem(400, "bad words"),
        5: completion("an oak"),
        6: completion("an oak"),
        7: completion(None),
    }
    stub.answer = lambda request: answers[request["seed"]]
    found = ask(stub, tmp_path, count=8)
    statuses = [p.failure and p.failure.status for p in found]
    assert statuses == ["refused", "empty", "refused", "cut", "failed", None, "repeated", "empty"]
    assert found[0].failure is not None
    assert "can't help" in found[0].failure.reason
    rows = plan_pictures(found, DRAWING, seeds=2)
    assert [row.failure and row.failure.status for row in rows] == [*statuses[:5], None, None, *statuses[6:]]
    assert len({row.id for row in rows}) == len(rows)


def test_what_was_answered_is_never_asked_again(stub, tmp_path) -> None:
    stub.answer = lambda request: (
        completion(f"scene {request['seed']}") if request["seed"] < 3 else problem(401)
    )
    with pytest.raises(ConfigError, match="refuses the key"):
        ask(stub, tmp_path, count=6)
    with Ledger(tmp_path / "ledger") as ledger:
        known = {record["text"] for record in ledger.prompt_records().values()}
    stub.asked.clear()
    stub.answer = lambda request: completion(f"later {request['seed']}")
    found = ask(stub, tmp_path, count=6)
    assert len(stub.asked) == 6 - len(known)
    assert {p.text for p in found if p.text.startswith("scene")} == known
    stub.asked.clear()
    assert ask(stub, tmp_path, count=6) == found
    assert not stub.asked
    other = ask(stub, tmp_path, count=2, temperature=1.0)
    assert len(stub.asked) == 2, "another temperature is another request"
    assert len(other) == 2


def test_a_chat_model_needs_its_words(stub, tmp_path) -> None:
    with pytest.raises(ConfigError, match="says not where the words go"):
        ask(stub, tmp_path, instruction="write a prompt")
    with (
        parse_remote(f"{stub.url}#m") as server,
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(ConfigError, match="cannot be drawn from 1"),
    ):
        ChatWriter(server, words=2).write(WORDS[:1], 3, ledger)


# --- the plan ----------------------------------------------------------------------------------------------


def test_a_plan_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="The plan has no rows"):
        Plan([], TREES)
    with pytest.raises(ConfigError, match="seeds is 0"):
        plan_pictures([Prompt("x")], DRAWING, seeds=0)


@pytest.mark.parametrize(
    "option", [{"chunk_size": 0}, {"max_failures": 2}, {"threshold": 0}, {"format": "zip"}]
)
def test_numbers_out_of_range_are_named(option) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        Plan(plan_pictures([Prompt("x")], DRAWING), TREES, **option)


def test_a_rows_id_follows_from_what_it_is_made_of_and_nothing_else() -> None:
    few = plan_pictures([Prompt("x"), Prompt("y")], DRAWING, seeds=2)
    more = plan_pictures([Prompt("w", ("oak",)), Prompt("y", ("oak",)), Prompt("x")], DRAWING, seeds=3)
    assert {row.id for row in few} < {row.id for row in more}
    assert len({row.seed for row in more}) == 9
    other = plan_pictures([Prompt("x")], type(DRAWING)(**{**vars(DRAWING), "steps": 3}))
    assert other[0].id not in {row.id for row in few}


@given(
    prompt=st.none() | st.text(st.characters()),
    label=st.none() | st.tuples() | st.tuples(st.text(max_size=5)),
    score=st.none() | st.floats(0, 1),
)
def test_a_row_survives_json(prompt, label, score) -> None:
    row = CorpusRow(
        "id",
        prompt=prompt,
        prompt_label=label,
        scores={"oak": score},
        variant=Variant("a", "b", {"c": 1}, "d"),
        failure=Failure("pictures", "black", "r"),
    )
    assert CorpusRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row
