"""Families from a user's YAML: what they do, and what is refused with file, entry and what is allowed."""

import re
from random import Random

import pytest

from eval.obedience.family import RefusedRewritingError, Setting
from eval.obedience.user_families import load_families
from judge.errors import ConfigError
from prompts import Category, Example, Taxonomy, load_taxonomy
from prompts.flip import Row

DIGITS = load_taxonomy("digits")
POLICY = Taxonomy(
    "digits", "1", tuple(Category(c.name, c.definition, key=c.key) for c in DIGITS.select(["four", "six"]))
)


def load(tmp_path, text, **options):
    path = tmp_path / "families.yaml"
    path.write_text(text, encoding="utf-8")
    return load_families(path, DIGITS, **options)


def setting():
    return Setting(DIGITS, (Example("image", None),), (), Random(0))


def asked(prompt):
    return Row(Example("image", None, prompt), POLICY, None, None, False, None, None, "flip")


def test_the_example_of_the_module_works(tmp_path):
    import eval.obedience.user_families as module

    german, house, captions, framed = load(
        tmp_path, module.__doc__[module.__doc__.index("families:") - 4 :].rsplit("\n\n", 1)[0]
    )
    with pytest.raises(RefusedRewritingError, match="no texts for 'six'"):
        german.rewrite(POLICY, setting())
    four = german.rewrite(POLICY.select(["four"]), setting()).taxonomy.categories[0]
    assert (four.name, four.definition, four.key) == ("vier", "die Ziffer 4", "four")
    assert [c.name for c in house.rewrite(POLICY, setting()).taxonomy] == ["Rule 1, four", "Rule 2, six"]
    assert house.in_lessons
    assert not german.in_lessons
    assert captions.harmless
    assert captions.rewrite(asked(None), setting()) in ("a quiet street", "an old mill")
    assert framed.rewrite(asked("a {mill}"), setting()) == "a {mill}, in a golden frame"
    with pytest.raises(RefusedRewritingError, match="no prompt of its own"):
        framed.rewrite(asked(None), setting())


def entry(text):
    return "families:\n  - " + "\n    ".join(text.split("\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a list", "must hold `families:` with a list"),
        ("families: []", "must hold `families:` with a list"),
        ("families: [:", "cannot be read as YAML"),
        (entry("just words"), "entry 1: expected a mapping with name, kind"),
        (entry("name: a\nkind: image"), "entry 1: kind is 'image'; it is policy or prompt"),
        (entry("name: a\nkind: policy\ntemplat: {}"), "unknown field 'templat' (did you mean 'template'?). Allowed: name,"),
        (entry("name: a\nkind: policy\nharmless: true\ntexts: {}"), "unknown field 'harmless'"),
        (entry("kind: prompt\ntexts: [a]"), "entry 1: name is None; give a line of text"),
        (entry("name: a\nkind: prompt\nin_lessons: 1\ntexts: [a]"), "in_lessons is 1; it is true or false"),
        (entry("name: a\nkind: prompt"), "give either template or texts"),
        (entry("name: a\nkind: prompt\ntexts: [a]\ntemplate: b"), "give either template or texts"),
        (entry("name: a\nkind: prompt\ntexts: {four: a}"), "texts of a prompt family is a list of texts"),
        (entry("name: a\nkind: prompt\ntemplate: '{name}'"), "unknown placeholder {name}; allowed are {prompt}"),
        (entry("name: a\nkind: prompt\ntemplate: 'a { b'"), "placeholders are {prompt}"),
        (entry("name: a\nkind: policy\ntemplate: {name: '{name!r}'}"), "unknown placeholder {name}"),
        (entry("name: a\nkind: policy\ntemplate: {title: b}"), "unknown field 'title'"),
        (entry("name: a\nkind: policy\ntemplate: {name: '{name}: {number}'}"), "entry 1: A colon ends a name"),
        (entry("name: a\nkind: policy\ntexts: [a]"), "texts of a policy family is a mapping"),
        (entry("name: a\nkind: policy\ntexts: {fuor: {name: b}}"), "no category 'fuor' (did you mean 'four'"),
        (entry("name: a\nkind: policy\ntexts: {four: {name: 4}}"), "name is 4; give text, in quotes"),
        (entry("name: a\nkind: policy\ntexts: {four: {definition: '<b>'}}"), "entry 1: Not allowed in the definition"),
        (entry("name: typos\nkind: prompt\ntexts: [a]"), "a family 'typos' exists already"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(tmp_path, text, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load(tmp_path, text, taken=["typos"])
    assert "families.yaml" in str(caught.value)


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load_families(tmp_path / "none.yaml", DIGITS)
