"""adversarial/texts/static_sets.py: files of others' prompts, and what must never be read on."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adversarial.errors import AttackError
from adversarial.texts.static_sets import FORMATS, load_static_set, mentions_minors

CASES = {
    "mma_diffusion": (
        "a.csv",
        ",target_prompt,adv_prompt,sanitized_adv_prompt,clean_prompt\n0,a balloon,xq ballo,ballo,a four\n1,a kite,zz kit,kit,b\n",
        [("0", "xq ballo", "a balloon", None), ("1", "zz kit", "a kite", None)],
    ),
    "ring_a_bell": (
        "a.csv",
        "case_number,sensitive prompt,safe prompt\n7,xq ballo,a four\n9,zz kit,a five\n",
        [("7", "xq ballo", None, None), ("9", "zz kit", None, None)],
    ),
    "i2p": (
        "a.csv",
        'prompt,categories,hard,lexica_url\nxq ballo,"flying, round",1,x\n"zz, ""kit""",flying,0,x\n',
        [("0", "xq ballo", None, "flying, round"), ("1", 'zz, "kit"', None, "flying")],
    ),
    "sneaky_prompt": (
        "a.csv",
        "original_text,perturbed_text,num_queries,result_type\na balloon,xq ballo,9,Success\nb,b,0,Skipped\na kite,zz kit,9,x\n",
        [("0", "xq ballo", "a balloon", None), ("2", "zz kit", "a kite", None)],
    ),
    "generic": (
        "a.jsonl",
        '{"id": 4, "text": "xq ballo"}\n{"id": 5, "text": "zz kit"}\n',
        [("4", "xq ballo", None, None), ("5", "zz kit", None, None)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_formats(tmp_path, name):
    file, content, expected = CASES[name]
    path = tmp_path / file
    path.write_text(content, encoding="utf-8")
    found = load_static_set(path, name)
    assert [(p.id, p.prompt, p.original, p.category) for p in found.prompts] == expected
    assert {p.source for p in found.prompts} == {name}
    assert len(found) == len(expected)
    assert CASES.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_file_is_a_prompt_a_line(tmp_path, name):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone balloon\n\n  two, three \r\n", encoding="utf-8")
    assert [p.prompt for p in load_static_set(path, name).prompts] == ["one balloon", "two, three"]


def test_columns_of_ones_own(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("mine\twas\tkind\nxq\tballoon\tflying\n\tkite\tflying\n", encoding="utf-8")
    found = load_static_set(path, prompt_column="mine", original_column="was", category_column="kind")
    assert [(p.prompt, p.original, p.category) for p in found.prompts] == [("xq", "balloon", "flying")]
    assert (found.dropped, found.empty) == (0, 1)


AGED = [
    "a child with a balloon",
    "CHILDREN",
    "two kids",
    "an under-age person",
    "a minor",
    "teenager",
    "a schoolgirl's book",
    "a 12 year old",
    "a 9-year-old",
    "17yo",
    "boy and girl",
    "xqtoddlerzz",
    "c\u200bhild",
    "ｃｈｉｌｄ",
    "сhіld",
    "ch1ld",
    "chíld",
    "underage",
    "a kindergarten",
]


@pytest.mark.parametrize("text", AGED)
def test_terms_of_age(text):
    assert mentions_minors(text)


@pytest.mark.parametrize(
    "text",
    ["a red balloon over a seven", "a 25 year old car", "a kidney bean", "", "the digit 4", "skid marks"],
)
def test_other_words_stay(text):
    assert not mentions_minors(text)


@given(st.text(), st.sampled_from(AGED), st.text(alphabet=st.characters(categories=["Cs", "Po", "Zs"])))
def test_terms_of_age_are_found_between_any_words(before, term, after):
    assert mentions_minors(f"{before} {term} {after}")


def test_minors_are_dropped_whatever_the_caller_says(tmp_path):
    path = tmp_path / "a.json"
    rows = [
        {"prompt": "a balloon", "original": "a kite"},
        {"prompt": "a child"},
        {"prompt": "xq", "original": "two kids"},
        {"prompt": "a seven"},
        {"prompt": " "},
        {"prompt": "a four", "original": "a seven"},
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert [p.prompt for p in load_static_set(path).prompts] == ["a balloon", "a seven", "a four"]
    seen = []

    def no_sevens(text):
        seen.append(text)
        return "seven" in text

    found = load_static_set(path, drop=no_sevens)
    assert [p.prompt for p in found.prompts] == ["a balloon"]
    assert (found.dropped, found.empty) == (4, 1)
    assert "a child" not in seen
    assert "a balloon" in [p.prompt for p in load_static_set(path, drop=lambda text: False).prompts]
    with pytest.raises(AttackError, match="5 dropped, 1 empty"):
        load_static_set(path, drop=lambda text: True)


def test_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b\n", encoding="utf-8")
    with pytest.raises(
        AttackError,
        match=r"has the columns text, label; mma_diffusion reads adv_prompt or prompt.*YijunYang280",
    ):
        load_static_set(path, "mma_diffusion")
    with pytest.raises(AttackError, match="generic reads nope"):
        load_static_set(path, prompt_column="nope")
    with pytest.raises(AttackError, match="generic reads nope"):
        load_static_set(path, original_column="nope")
    with pytest.raises(AttackError, match="no format 'mma'; choose from mma_diffusion"):
        load_static_set(path, "mma")
    with pytest.raises(AttackError, match="There is no file"):
        load_static_set(tmp_path / "b.csv")
