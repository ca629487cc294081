"""What `arbiter taxonomy check` warns about: relations in a definition that are often read over."""

import pytest

from judge.serve.cli import main
from prompts import Category, load_taxonomy, shipped_taxonomies
from prompts.cautions import cautions, relations


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("knives, not toys", {"negates"}),
        ("a street without people", {"negates"}),
        ("whatever isn't a toy", {"negates"}),
        ("guns except toy guns", {"excepts"}),
        ("guns unless they are holstered", {"excepts"}),
        ("animals other than pets", {"excepts"}),
        ("knives, but no toys", {"negates", "excepts"}),
        ("a child and a weapon together", {"conjoins"}),
        ("both a gun and money", {"conjoins"}),
        ("alcohol only when minors are present", {"conjoins"}),
        ("weapons, whether or not they are toys", set()),
        ("not only guns", set()),
        ("buttons, notes, notably everything about an exception", set()),
        ("any 2 drawn by hand or any 9 drawn by hand", set()),
    ],
)
def test_relations(text, kinds):
    assert set(relations(text)) == kinds


def test_a_name_alone_has_no_definition_to_warn_about():
    assert cautions(Category("x", "guns except toys")) != []
    assert cautions(Category("x", "guns except toys", name_only=True)) == []


def test_the_taxonomies_that_ship_give_no_warning():
    for name in shipped_taxonomies():
        assert [line for category in load_taxonomy(name) for line in cautions(category)] == []


def test_taxonomy_check_warns_and_still_says_that_the_file_is_fine(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    mine = load_taxonomy("digits").select(["three"]).extend({"odd": "any digit except 3 and 5 together"})
    path.write_text(mine.to_yaml())
    assert main(["taxonomy", "check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "2 categories" in out
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: odd: the definition excepts ('except')")
    assert "conjoins ('together')" in lines[1]
