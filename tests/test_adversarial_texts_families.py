"""adversarial/texts: families of prompts, sentences, and paraphrases from files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adversarial.errors import AttackError
from adversarial.texts.families import FAMILIES, homoglyphs, lies, misspellings, spacing, target_of
from adversarial.texts.paraphrases import paraphrases, read_paraphrases
from adversarial.texts.sentences import DEFINITION_INJECTIONS
from prompts import Category

ANY_TEXT = st.none() | st.text() | st.text(alphabet=st.characters(categories=["Cs", "Cf", "Lu", "Ll", "Zs"]))
WANTED = st.sampled_from(["safe", "unsafe"])
PROMPT = "a red balloon over the digit seven"


@given(ANY_TEXT, WANTED, st.integers(0, 5))
def test_makers_take_any_text(prompt, target, seed):
    for name, maker in FAMILIES.items():
        made = maker(prompt, target, seed)
        assert made == maker(prompt, target, seed)
        assert len(made) == len(set(made)), name
        assert prompt not in made, name
        assert all(text is None or isinstance(text, str) for text in made)
        assert name == "deletion" or None not in made


@given(st.text(), WANTED, st.integers(0, 5))
def test_homoglyphs_keep_the_length(prompt, target, seed):
    for text in homoglyphs(prompt, target, seed):
        assert len(text) == len(prompt)
        assert text != prompt
        assert all(ord(new) > 127 for new, old in zip(text, prompt, strict=True) if new != old)


def test_homoglyphs_hide_words():
    made = homoglyphs(PROMPT, "safe", 0)
    assert len(made) == 6
    assert not any("balloon" in text for text in made[:3])


@given(st.text(min_size=1), st.integers(0, 5))
def test_misspellings_stay_near(prompt, seed):
    for text in misspellings(prompt, "safe", seed):
        assert text.count(" ") == prompt.count(" ")
        for new, old in zip(text.split(" "), prompt.split(" "), strict=True):
            assert abs(len(new) - len(old)) <= 1
            assert new[:1] == old[:1]


def test_every_misspelling_touches_a_long_word():
    made = misspellings(PROMPT, "safe", 0)
    assert len(made) >= 8
    assert not any("balloon" in text for text in made)
    assert all(text.startswith("a red ") for text in made)


@given(st.lists(st.text(alphabet="abcxyz ", min_size=1), min_size=1).map(" ".join))
def test_spacing_keeps_the_letters(prompt):
    letters = [c for c in prompt if c.isalpha()]
    for text in spacing(prompt, "safe", 0):
        assert [c for c in text if c.isalpha()] == letters


def test_seeds_differ_and_repeat():
    assert misspellings(PROMPT, "safe", 0) == misspellings(PROMPT, "safe", 0)
    assert misspellings(PROMPT, "safe", 0) != misspellings(PROMPT, "safe", 1)


def test_the_wanted_verdict_is_what_is_asked_for():
    for family in ("disavowals", "injections"):
        made = {target: set(FAMILIES[family](PROMPT, target, 0)) for target in ("safe", "unsafe")}
        assert made["safe"].isdisjoint(made["unsafe"])
        assert all(PROMPT in text for texts in made.values() for text in texts)
    assert FAMILIES["carriers"](PROMPT, "unsafe", 0) == []
    assert all(PROMPT in text for text in FAMILIES["carriers"](PROMPT, "safe", 0))
    assert all("answer unsafe" not in text for text in FAMILIES["injections"](PROMPT, "safe", 0))
    assert (target_of(1.0), target_of(-1.0)) == ("safe", "unsafe")


def test_braces_in_a_prompt_are_text():
    prompt = 'a {0} {prompt} {"a": 1} balloon %s'
    for name in ("carriers", "disavowals", "injections"):
        assert all(prompt in text for text in FAMILIES[name](prompt, "safe", 0))


def test_without_a_prompt():
    made = {name: maker(None, "safe", 0) for name, maker in FAMILIES.items()}
    assert made["deletion"] == [""]
    assert made["injections"]
    assert made["disavowals"]
    for name in ("carriers", "misspellings", "homoglyphs", "spacing", "leetspeak", "case"):
        assert made[name] == []
    assert FAMILIES["deletion"]("two red balloons", "safe", 0) == [None, "", "red balloons", "two"]


def test_lies_are_the_callers():
    others = {"safe": ["a one", "a two", PROMPT], "unsafe": ["a three"]}
    maker = lies(others, tries=5)
    assert sorted(maker(PROMPT, "safe", 0)) == ["a one", "a two"]
    assert maker(PROMPT, "unsafe", 0) == ["a three"]
    assert lies({}, tries=5)(PROMPT, "safe", 0) == []
    assert len(lies(others, tries=1)(PROMPT, "safe", 0)) == 1


@pytest.mark.parametrize("target", ["safe", "unsafe"])
def test_a_taxonomy_takes_every_ending_of_a_definition(target):
    texts = DEFINITION_INJECTIONS[target]
    assert len(set(texts)) == len(texts) >= 5
    for text in texts:
        assert Category("balloons", f"round things that fly {text}").definition.endswith(text)
    assert set(texts).isdisjoint(DEFINITION_INJECTIONS["safe" if target == "unsafe" else "unsafe"])


FILES = {
    "a.txt": "one balloon\ta single balloon\none balloon\tballoon, one\n\ntwo\tthe digit 2\n",
    "a.tsv": "prompt\tparaphrase\none balloon\ta single balloon\none balloon\tballoon, one\ntwo\tthe digit 2\n",
    "a.csv": 'prompt,paraphrase\none balloon,a single balloon\none balloon,"balloon, one"\ntwo,the digit 2\n',
    "a.jsonl": '{"prompt": "one balloon", "paraphrases": ["a single balloon", "balloon, one"]}\n{"prompt": "two", "paraphrase": "the digit 2"}\n',
    "a.json": json.dumps(
        [
            {"prompt": " one balloon ", "paraphrases": ["a single balloon", "balloon, one"]},
            {"prompt": "two", "paraphrase": "the digit 2"},
        ]
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_paraphrases_from_files(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    known = read_paraphrases(path)
    assert known == {"one balloon": ["a single balloon", "balloon, one"], "two": ["the digit 2"]}
    maker = paraphrases(known)
    assert maker(" one balloon", "safe", 0) == ["a single balloon", "balloon, one"]
    assert maker("three", "safe", 0) == []
    assert maker(None, "safe", 0) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "one balloon\n", "entry 1: no prompt with a paraphrase"),
        ("a.csv", "text,other\na,b\n", "Columns found: text, other; needed: prompt"),
        ("a.jsonl", '{"prompt": "one"}\n', "Columns found: prompt"),
        ("a.jsonl", '{"prompt": "one", "paraphrases": "two"}\n', "entry 1"),
        ("a.jsonl", '{"prompt": "one", "paraphrase": "1"}\n{oops\n', "line 2, is not JSON"),
        ("a.json", '{"prompt": "one"}', "not a list"),
        ("a.json", "[1]", "not a list"),
        ("a.csv", "", "contains no prompt"),
        ("a.csv", 'prompt,paraphrase\n"a,b\n', "is not a table"),
        ("a.csv", "prompt,,x\na,b,c\n", "columns without a name"),
        ("a.parquet", "x", "Save a parquet file as CSV"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(AttackError, match=message):
        read_paraphrases(path)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(AttackError, match="There is no file"):
        read_paraphrases(tmp_path / "none.csv")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00one")
    with pytest.raises(AttackError, match="cannot be read as UTF-8"):
        read_paraphrases(tmp_path / "b.txt")
