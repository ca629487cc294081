"""Where the rules of taxonomies begin and end, and what errors say."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from prompts import Category, Example, Taxonomy, TaxonomyError, load_taxonomy, shipped_taxonomies
from prompts.names import MAX_NAME_LENGTH, MAX_TEXT_LENGTH, is_markup, nearest
from prompts.taxonomy import Translation

FULL = Category(
    "arms",
    "guns, knives",
    ("a gun", "a knife"),
    "S1",
    "weapons",
    ("weaponry",),
    ("things to hurt with",),
    ("w1", "w2"),
)
OWN = Taxonomy("own", "2", (FULL, Category("pets", "tame animals")))


@pytest.mark.parametrize(
    "values",
    [{"name": "n" * MAX_NAME_LENGTH}, {"code": "c" * MAX_NAME_LENGTH}, {"aliases": ("a" * MAX_NAME_LENGTH,)}],
)
def test_names_end_at_eighty_characters(values: dict[str, str]) -> None:
    assert MAX_NAME_LENGTH == 80
    fields: dict[str, object] = {"name": "n", "definition": "d", **values}
    Category(**fields)  # type: ignore[arg-type]
    [(key, value)] = values.items()
    longer = {key: (value[0] + "x",) if isinstance(value, tuple) else value + "x"}
    with pytest.raises(TaxonomyError, match="has 81 characters, at most 80 are allowed"):
        Category(**fields | longer)  # type: ignore[arg-type]


def test_texts_end_at_two_thousand_characters() -> None:
    assert MAX_TEXT_LENGTH == 2000
    long = "d" * 2000
    Category("n", long, examples=(long,), rewordings=(long,))
    for values in ({"definition": long + "d"}, {"examples": (long + "d",)}, {"rewordings": (long + "d",)}):
        with pytest.raises(TaxonomyError, match="has 2001 characters, at most 2000 are allowed"):
            Category(**{"name": "n", "definition": "d"} | values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "a: b"}, "in one: a category name, 'a: b'"),
        ({"name": "None"}, "'None' is a word of the answers and cannot be a category name"),
        ({"name": 3}, "Expected text for a category name, got 3"),
        ({"name": ""}, "^Empty text for a category name"),
        ({"aliases": ("safe",)}, "cannot be an alias of category 'n'"),
        ({"code": "unsafe"}, "cannot be the code of category 'n'"),
        ({"definition": " d"}, "stray spaces in the definition of category 'n': ' d'"),
        ({"examples": ("a\tb",)}, "tabs or stray spaces in an example or rewording of category 'n'"),
        (
            {"rewordings": ("<b>",)},
            r"an example or rewording of category 'n': '<' \(U\+003C\), '>' \(U\+003E\)\. Markup",
        ),
    ],
)
def test_errors_name_the_text_and_what_is_wrong_with_it(values: dict[str, object], said: str) -> None:
    with pytest.raises(TaxonomyError, match=said):
        Category(**{"name": "n", "definition": "d"} | values)  # type: ignore[arg-type]


def test_a_category_is_its_own_only_member_unless_it_says_otherwise() -> None:
    plain = Category("pets", "tame animals")
    assert (plain.key, plain.members) == ("pets", ("pets",))
    keyed = Category("pets", "tame animals", key="p")
    assert (keyed.key, keyed.members) == ("p", ("p",))
    assert FULL.members == ("w1", "w2")
    assert FULL.label(Example("1", None, violates=frozenset({"weapons", "arms"}))) is False


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert Category("pets", "tame").to_dict() == {"name": "pets", "definition": "tame"}
    assert FULL.to_dict() == {
        "name": "arms",
        "definition": "guns, knives",
        "examples": ["a gun", "a knife"],
        "aliases": ["weaponry"],
        "rewordings": ["things to hurt with"],
        "code": "S1",
        "key": "weapons",
        "members": ["w1", "w2"],
    }
    assert Category("pets", "tame", name_only=True).to_dict()["name_only"] is True
    spoken = Taxonomy(
        "own", "1", (Category("pets", "tame", languages=(Translation("de", "Haustiere", "zahm"),)),)
    )
    assert spoken.to_dict()["categories"][0]["languages"] == {
        "de": {"name": "Haustiere", "definition": "zahm"}
    }
    assert Taxonomy.from_dict(spoken.to_dict()) == spoken
    with pytest.raises(TaxonomyError, match="give each of them once"):
        replace(spoken.categories[0], languages=spoken.categories[0].languages * 2)
    assert OWN.to_dict()["version"] == "2"
    assert OWN.to_yaml().startswith(
        "name: own\nversion: '2'\ncategories:\n- name: arms\n  definition: guns, knives\n"
    )
    umlaut = Taxonomy("ü", "1", (Category("Gewalt", "Schläge " * 30 + "und Tritte"),))
    assert "Schläge" in umlaut.to_yaml()
    assert 100 < max(map(len, umlaut.to_yaml().splitlines())) < 120


def test_the_hash_is_that_of_one_line_of_json() -> None:
    """Runs keep it: the same policy must have the same hash in every version of this code."""
    seen = '[["arms","guns, knives",["a gun","a knife"],"S1"],["pets","tame animals",[],null]]'
    assert OWN.hash == hashlib.sha256(seen.encode()).hexdigest()
    assert OWN.short_hash == OWN.hash[:16]
    bare = '[["arms",null,null,"S1"],["pets",null,null,null]]'
    assert OWN.names_only().hash == hashlib.sha256(bare.encode()).hexdigest()


def test_errors_about_categories_that_are_not_there() -> None:
    """Codes and aliases are known too; what is proposed is the name."""
    for got in ("weaponri", "S1x", "armss"):
        with pytest.raises(
            TaxonomyError, match=rf"no category '{got}' \(did you mean 'arms'\?\)\. It has: arms, pets\."
        ):
            OWN.index(got)
    with pytest.raises(TaxonomyError, match=r"'own' has no category 'xyzzy'\. It has: arms, pets\."):
        OWN.index("xyzzy")
    with pytest.raises(TaxonomyError, match=r"no category None\. It has"):
        OWN.index(None)  # type: ignore[arg-type]
    assert (OWN.index("PETS"), OWN.index("arms")) == (1, 0)
    assert nearest("digit", ["Digits", "signs"]) == " (did you mean 'Digits'?)"
    assert nearest("DIGIT", {"digits": "Zahlen"}) == " (did you mean 'Zahlen'?)"
    assert nearest("xyz", ["digits"]) == ""
    assert nearest("abcde", ["abcxy"]) == " (did you mean 'abcxy'?)"  # three of five letters
    assert nearest("abcde", ["abxyz"]) == ""


def test_names_aliases_and_codes_must_differ_between_categories_only() -> None:
    Taxonomy("own", "1", (Category("arms", "guns", code="ARMS", aliases=("Arms",)),))
    for other in (
        Category("S1", "x"),
        Category("x", "x", code="WEAPONRY"),
        Category("x", "x", aliases=("ARMS",)),
    ):
        with pytest.raises(TaxonomyError, match=rf"stands for both 'arms' and '{other.name}'"):
            Taxonomy("own", "1", (FULL, other))
    with pytest.raises(TaxonomyError, match="'own': two categories have the key 'weapons'"):
        Taxonomy("own", "1", (Category("a", "b"), FULL, Category("x", "x", key="weapons")))


def test_changed_taxonomies_keep_name_and_version() -> None:
    changed = [
        OWN.select(["pets"]), OWN.drop(["pets"]), OWN.extend({"cars": "fast"}), OWN.reword({"pets": "cats"}),
        OWN.rename({"pets": "beasts"}), OWN.names_only(),
    ]  # fmt: skip
    assert {(taxonomy.name, taxonomy.version) for taxonomy in changed} == {("own", "2")}
    assert OWN.reword({"arms": "swords"}).categories[0].examples == ()
    assert OWN.reword({"pets": "cats"}).categories[0] == FULL
    assert OWN.rename({"pets": "beasts"}).categories[1].key == "pets"
    with pytest.raises(TaxonomyError, match=r"list of category names, got the text 'pets'; pass \['pets'\]"):
        OWN.drop("pets")
    with pytest.raises(TaxonomyError, match=r"Nothing selected from taxonomy 'own'; it has: arms, pets"):
        OWN.select(iter(()))


@pytest.mark.parametrize(
    ("character", "is_one"),
    [(c, True) for c in '<>[]{}|\\"\n\x7f\x00\u2028\u2029\u200b\ufeff\ud800\uff1c\u226e\u0085\U000e0041']
    + [(c, False) for c in "aZ0 ~!#'()*+,-./:;=?@^_`&%$éß中😀\u00a0\u0301"],
)
def test_markup_character_by_character(character: str, is_one: bool) -> None:
    assert is_markup(character) is is_one


# Files


def test_what_ships_is_listed_by_name() -> None:
    published = ("holisafe", "moderationbench", "openai-moderation", "safeatlas", "t2isafety", "unsafebench")
    assert shipped_taxonomies() == tuple(sorted(("digits", "everyday", "signs", *published)))


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "mine"])
def test_files_are_found_by_suffix_folder_or_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(OWN.to_yaml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_taxonomy(Path(name)) == load_taxonomy(f"./{name}") == OWN
    if name != "mine":
        assert load_taxonomy(name) == OWN
    with pytest.raises(
        TaxonomyError,
        match=r"No taxonomy 'mine2' ships\. Those that do: digits, everyday, holisafe, ",
    ):
        load_taxonomy("mine2")


def data(**category: object) -> dict[str, object]:
    return {"name": "own", "version": 1, "categories": [{"name": "a", "definition": "b"} | category]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"key": ""}, "category 1: 'key' must be text, got ''"),
        ({"key": 3}, "category 1: 'key' must be text, got 3"),
        ({"name_only": 1}, "category 1: 'name_only' must be true or false, got 1"),
        ({"examples": ["a", 1]}, "category 1: 'examples' must be a list of texts"),
        ({"aliases": "a"}, "category 1: 'aliases' must be a list of texts, got 'a'"),
        (
            {"colour": 1},
            "category 1: unknown field 'colour'.*Allowed: name, definition, code, key, name_only, examples",
        ),
        ({"definition": None}, "category 1: missing definition"),
        ({"languages": ["de"]}, r"category 1: 'languages' must map codes .*, got \['de'\]"),
        ({"languages": {"de": "a"}}, "category 1, language 'de': expected fields"),
        ({"languages": {"de": {"name": "a"}}}, "category 1, language 'de': missing definition"),
        (
            {"languages": {"de": {"name": "a", "definition": "b", "code": "c"}}},
            "category 1, language 'de': unknown field 'code'.*Allowed: name, definition",
        ),
        ({"languages": {"German": {"name": "a", "definition": "b"}}}, "category 1: 'German' is no code"),
        ({"languages": {False: {"name": "a", "definition": "b"}}}, "category 1: False is no code"),
        ({"languages": {"de": {"name": "a: b", "definition": "c"}}}, "category 1: A colon ends a name"),
        (
            {"languages": {"de": {"name": "a", "definition": "<b>"}}},
            "category 1: Not allowed in the definition",
        ),
    ],
)
def test_entries_are_checked_field_by_field(values: dict[str, object], said: str) -> None:
    with pytest.raises(TaxonomyError, match=rf"^taxonomy, {said}"):
        Taxonomy.from_dict(data(**values))
    with pytest.raises(TaxonomyError, match=rf"^mine, {said}"):
        Taxonomy.from_dict(data(**values), "mine")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": " "}, "the taxonomy's name must be text, got ' '"),
        ({"version": True}, "the version must be text or a number, got True"),
        ({"version": " "}, "the version must be text or a number, got ' '"),
        ({"version": [1]}, r"the version must be text or a number, got \[1\]"),
        ({"categories": None}, "missing categories"),
        ({"name": None, "version": None}, r"missing name, version\."),
        (
            {"catgories": 1},
            r"unknown field 'catgories' \(did you mean 'categories'\?\). Allowed: name, version, categories",
        ),
        ({"categories": "ab"}, "'categories' must be a list with at least one entry, got 'ab'"),
    ],
)
def test_taxonomies_are_checked_field_by_field(change: dict[str, object], said: str) -> None:
    with pytest.raises(TaxonomyError, match=rf"^taxonomy: {said}"):
        Taxonomy.from_dict(data() | change)


def test_empty_fields_are_as_if_left_out_and_lines_are_joined() -> None:
    bare = Taxonomy.from_dict(data())
    empty = dict.fromkeys(("examples", "aliases", "rewordings", "members", "key", "code", "languages"))
    assert Taxonomy.from_dict(data(**empty)) == bare
    folded = Taxonomy.from_dict(data(definition=" b\n c ", examples=["d\n  e"], name_only=True, key="k"))
    assert folded.categories == (Category("a", "b c", ("d e",), key="k", name_only=True),)
    assert [Taxonomy.from_dict(data() | {"version": v}).version for v in (1, 1.5, "1b")] == ["1", "1.5", "1b"]
    with pytest.raises(TaxonomyError, match=r"expected fields \(name, version, categories, \.\.\.\), got 3"):
        Taxonomy.from_dict(3)  # type: ignore[arg-type]


def test_a_field_given_twice_is_found_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: x\nversion: 1\nname: y\ncategories: []\n", encoding="utf-8")
    with pytest.raises(TaxonomyError, match=r"twice\.yaml, line 3: 'name' is given twice in one entry"):
        load_taxonomy(path)


def test_what_is_not_said_of_an_image() -> None:
    image = Example("1", b"pixels")
    assert (image.prompt, image.violates, image.unknown) == (None, frozenset(), frozenset())
    assert (image.source, image.split) == ("real", "train")
