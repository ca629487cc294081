"""Categories, taxonomies and their files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prompts
from prompts import Category, Example, Taxonomy, TaxonomyError, load_taxonomy, shipped_taxonomies
from prompts.taxonomy import Translation

SIZES = {
    "signs": 20,
    "digits": 10,
    "everyday": 64,
    "openai-moderation": 13,
    "unsafebench": 11,
    "t2isafety": 9,
    "moderationbench": 9,
    "safeatlas": 15,
    "holisafe": 19,
}
DIGITS = load_taxonomy("digits")


def taxonomy_of(*names: str) -> Taxonomy:
    return Taxonomy("own", "1", tuple(Category(name, f"things called {name}") for name in names))


def test_shipped_taxonomies_have_their_categories() -> None:
    assert {name: len(load_taxonomy(name)) for name in shipped_taxonomies()} == SIZES
    assert load_taxonomy("unsafebench").names == (
        "Hate", "Harassment", "Violence", "Self-harm", "Sexual", "Shocking", "Illegal activity", "Deception",
        "Political", "Public and personal health", "Spam",
    )  # fmt: skip
    assert set(load_taxonomy("openai-moderation").names) == {
        "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
        "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"everyday"}))  # which only fills policies up
def test_shipped_categories_can_be_varied(name: str) -> None:
    taxonomy = load_taxonomy(name)
    texts = [text for c in taxonomy for text in (c.definition, *c.rewordings)]
    assert len({text.casefold() for text in texts}) == len(texts)
    assert all(len(c.aliases) >= 2 and len(c.rewordings) >= 2 for c in taxonomy)


def test_digit_definitions_name_their_numeral_in_few_words() -> None:
    for value, category in enumerate(DIGITS):
        for text in (category.definition, *category.rewordings):
            assert [letter for letter in text if letter.isdigit()] == [str(value)]
            assert text == text.lower()
        assert 5 <= len(category.definition.split()) <= 8
    words = {
        word.strip(",()") for c in DIGITS for text in (c.definition, *c.rewordings) for word in text.split()
    }
    assert len(words) < 85


@pytest.mark.parametrize("name", SIZES)
def test_files_and_dicts_are_lossless(name: str, tmp_path: Path) -> None:
    taxonomy = load_taxonomy(name).names_only() if name == "digits" else load_taxonomy(name)
    path = tmp_path / "copy.yaml"
    path.write_text(taxonomy.to_yaml(), encoding="utf-8")
    assert (
        Taxonomy.from_dict(taxonomy.to_dict()) == load_taxonomy(path) == load_taxonomy(str(path)) == taxonomy
    )


@given(st.permutations(list(DIGITS.names)), st.integers(1, 9))
def test_select_and_drop_part_a_taxonomy(order: list[str], count: int) -> None:
    chosen = DIGITS.select(order[:count])
    assert list(chosen.names) == order[:count]
    assert set(DIGITS.drop(order[:count]).names) == set(order[count:])
    assert DIGITS.drop(order[:count]).names == tuple(
        name for name in DIGITS.names if name not in order[:count]
    )
    assert (chosen.hash == DIGITS.hash) is False


def test_names_are_found_whatever_their_case() -> None:
    assert DIGITS.select(["SEVEN", "Three"]).names == ("seven", "three")


@pytest.mark.parametrize(
    ("got", "meant"), [("sevn", "seven"), ("trio", "three"), ("Numeral Six", "six"), ("thre", "three")]
)
def test_did_you_mean(got: str, meant: str) -> None:
    with pytest.raises(TaxonomyError, match=f"no category '{got}' .did you mean '{meant}'"):
        DIGITS.select([got])


def test_selecting_badly_is_refused() -> None:
    with pytest.raises(TaxonomyError, match=r"pass \['three'\]"):
        DIGITS.select("three")
    with pytest.raises(TaxonomyError, match="Nothing selected"):
        DIGITS.select([])
    with pytest.raises(TaxonomyError, match="three"):
        DIGITS.select(["three", "Three"])
    with pytest.raises(TaxonomyError, match="leaves no policy"):
        DIGITS.drop(DIGITS.names)
    with pytest.raises(TaxonomyError, match="no category 7"):
        DIGITS.select([7])  # type: ignore[list-item]


def test_extend_reword_rename_keep_what_they_should() -> None:
    image = Example("1", None, violates=frozenset({"three"}))
    own = DIGITS.extend({"cat": "a cat, drawn or real"})
    assert own.names[-1] == "cat"
    assert own.categories[-1].definition == "a cat, drawn or real"
    renamed = own.rename({"three": "tre"}).reword({"tre": "two bows"})
    category = renamed.categories[renamed.index("tre")]
    assert (category.key, category.definition, category.label(image)) == ("three", "two bows", True)
    assert own.index("three") == renamed.index("tre")
    with pytest.raises(TaxonomyError, match="both"):
        DIGITS.extend([Category("Trio", "another trio")])
    with pytest.raises(TaxonomyError, match="both"):
        DIGITS.rename({"three": "seven"})


def test_label_is_unknown_only_where_nobody_knows() -> None:
    merged = Category("a or b", "a; or b", key="a+b", members=("a", "b"))
    cases = [({"a"}, {"b"}, True), ({"c"}, {"b"}, None), ({"c"}, {"d"}, False), (set(), set(), False)]
    for violates, unknown, label in cases:
        example = Example("1", None, violates=frozenset(violates), unknown=frozenset(unknown))
        assert merged.label(example) is label
    example = Example("1", None, violates=frozenset({"seven"}), unknown=frozenset({"two"}))
    assert DIGITS.select(["two", "seven", "one"]).label(example) == (None, True, False)


def test_hash_follows_what_is_rendered_and_nothing_else() -> None:
    base = DIGITS.hash
    assert Taxonomy("other", "7", DIGITS.categories).hash == base
    assert len(base) == 64
    assert base.startswith(DIGITS.short_hash)
    changed = [
        DIGITS.rename({"one": "uno"}), DIGITS.reword({"one": "a stroke"}), DIGITS.shuffled(Random(0)),
        DIGITS.names_only(), DIGITS.drop(["one"]),
    ]  # fmt: skip
    assert len({taxonomy.hash for taxonomy in changed} | {base}) == 6


def test_hash_covers_examples_and_codes() -> None:
    plain = Category("red", "red things")
    variants = [plain, replace(plain, examples=("a rose",)), replace(plain, code="S1")]
    assert len({Taxonomy("own", "1", (category,)).hash for category in variants}) == 3
    spoken = (Translation("de", "rot", "rote Dinge"),)
    spare = replace(plain, aliases=("crimson",), rewordings=("crimson things",), key="r", languages=spoken)
    assert Taxonomy("own", "1", (spare,)).hash == Taxonomy("own", "1", (plain,)).hash


def test_hash_is_the_same_in_another_process() -> None:
    code = "from prompts import load_taxonomy; print(load_taxonomy('digits').hash)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert run.stdout.strip() == DIGITS.hash


def test_shuffled_depends_on_the_generator_only() -> None:
    assert DIGITS.shuffled(Random(3)) == DIGITS.shuffled(Random(3)) != DIGITS
    assert sorted(DIGITS.shuffled(Random(3)).names) == sorted(DIGITS.names)


BAD_TEXTS = {
    "control token": "red <|im_end|>",
    "image token": "<image>",
    "end of text": "red </s>",
    "instruction marker": "[INST] red",
    "turn marker": "<start_of_turn>model",
    "template braces": "red {{ x }}",
    "line break": "red\nassistant",
    "carriage return": "red\rblue",
    "line separator": "red\u2028blue",
    "next line": "red\x85blue",
    "bidi override": "red\u202eblue",
    "zero width": "red\u200bblue",
    "tag character": "red\U000e0041",
    "lone surrogate": "red\ud800",
    "null": "red\0",
    "full-width bracket": "red ＜image＞",
    "double quote": 'red "blue',
    "stray space": " red",
    "two spaces": "red  blue",
    "empty": "",
    "blank": "  ",
    "endless": "a" * 3000,
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
def test_bad_texts_are_refused_everywhere(text: str) -> None:
    fields = [
        {"name": text, "definition": "d"}, {"name": "n", "definition": text},
        {"name": "n", "definition": "d", "aliases": (text,)}, {"name": "n", "definition": "d", "examples": (text,)},
        {"name": "n", "definition": "d", "rewordings": (text,)}, {"name": "n", "definition": "d", "code": text},
    ]  # fmt: skip
    for values in fields:
        with pytest.raises(TaxonomyError):
            Category(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["safe", "Unsafe", "NONE", "red: blue", "x" * 81])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(TaxonomyError):
        Category(name, "red things")


def test_other_languages_are_welcome() -> None:
    assert (
        taxonomy_of("暴力", "Gewalt & Krieg", "العنف", "violência", "kids' toys (small)").names[0] == "暴力"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected fields"),
        ("- a\n- b", "expected fields"),
        ("name: x\nversion: 1", "missing categories"),
        ("name: x\nversion: 1\ncategories: []", "at least one"),
        ("name: x\nversion: 1\ncategories: {a: b}", "must be a list"),
        ("name: x\nversion: true\ncategories: [{name: a, definition: b}]", "version"),
        ("name: 3\nversion: 1\ncategories: [{name: a, definition: b}]", "must be text"),
        ("name: x\nversion: 1\nextra: 2\ncategories: [{name: a, definition: b}]", "unknown field 'extra'"),
        ("name: x\nversion: 1\ncategories: [{name: a, definiton: b}]", "did you mean 'definition'"),
        ("name: x\nversion: 1\ncategories: [{name: a}]", "category 1: missing definition"),
        ("name: x\nversion: 1\ncategories: [{name: a, definition: ''}]", "category 1: Empty"),
        ("name: x\nversion: 1\ncategories: [{name: a, definition: b}, {name: no, definition: b}]", "category 2.*quotes"),
        ("name: x\nversion: 1\ncategories: [{name: a, definition: b}, {name: A, definition: c}]", "both 'a' and 'A'"),
        ("name: x\nversion: 1\ncategories: [{name: a, definition: b, key: k}, {name: c, definition: d, key: k}]", "key 'k'"),
        ("name: x\nversion: 1\ncategories: [{name: a, definition: b, examples: c}]", "list of texts"),
        ("name: x\nversion: 1\ncategories:\n- name: a\n  definition: b\n  name: c\n  definition: d", "line 6: 'name' is given twice"),
        ("name: x\nversion: 1\ncategories: [plain]", "category 1: expected fields"),
        ("name: x\nversion: 1\ncategories: [{name: a, definition: b, key: \"k\\e[2J\"}]", "control characters"),
        ("name: \"x\\e[31m\"\nversion: 1\ncategories: [{name: a, definition: b}]", "control characters"),
        ("name: x\nversion: \"1\\u202e\"\ncategories: [{name: a, definition: b}]", "control characters"),
        ("name: &a [*a]", r"\*a is an alias"),
        ("x: &x [y, y]\nz: [*x, *x]", r"\*x is an alias"),
        ("? [name]\n: x", "line 1: the name of a field"),
        ("name: [", "not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("name: x\nversion: 1\ncategories: [{name: a, definition: 'b <image>'}]", "category 1: Not allowed"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_by_file_and_entry(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TaxonomyError, match=message) as caught:
        load_taxonomy(path)
    assert "mine.yaml" in str(caught.value)


def test_missing_files_and_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="Cannot read"):
        load_taxonomy(tmp_path / "none.yaml")
    with pytest.raises(TaxonomyError, match="did you mean 'digits'"):
        load_taxonomy("digit")
    with pytest.raises(TaxonomyError, match="Cannot read"):
        load_taxonomy(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaxonomyError, match="Cannot read"):
        load_taxonomy(tmp_path / "bytes.yaml")


def test_folded_definitions_become_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: x\nversion: 1.0\ncategories:\n- name: a\n  definition: >\n    one\n    two\n", encoding="utf-8"
    )
    taxonomy = load_taxonomy(path)
    assert (taxonomy.categories[0].definition, taxonomy.version) == ("one two", "1.0")


def test_empty_taxonomy_is_refused() -> None:
    with pytest.raises(TaxonomyError, match="at least one"):
        Taxonomy("own", "1", ())


def test_import_is_light_and_exports_are_complete() -> None:
    code = "import sys, prompts; print(sorted(sys.modules.keys() & {'torch', 'transformers', 'numpy', 'sklearn', 'PIL', 'yaml'}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert prompts.__all__ == sorted(
        prompts.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert all(hasattr(prompts, name) for name in prompts.__all__)


def test_what_ships_is_parsed_once_and_files_are_read_anew(tmp_path):
    assert load_taxonomy("digits") is load_taxonomy("digits")
    path = tmp_path / "own.yaml"
    for definition in ("a knife", "a knife that is held"):
        path.write_text(Taxonomy("own", "1", (Category("Knives", definition),)).to_yaml())
        assert load_taxonomy(path).categories[0].definition == definition
