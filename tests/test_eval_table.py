"""Tables as text and Markdown, also with names that strangers gave."""

import pytest

from eval.reports.table import Table


def test_a_table_as_text_and_as_markdown():
    table = Table(
        "F1 by category", ["rows", "F1"], [("Q16", [1200, 0.5]), ("ours", [3, None])], "Of 1,203 rows."
    )
    assert table.to_text().splitlines() == [
        "F1 by category",
        "       rows     F1",
        "Q16   1,200  0.500",
        "ours      3      –",
    ]
    assert table.to_markdown().splitlines() == [
        "### F1 by category",
        "",
        "|  | rows | F1 |",
        "|---|---:|---:|",
        "| Q16 | 1,200 | 0.500 |",
        "| ours | 3 | – |",
        "",
        "Of 1,203 rows.",
    ]


def test_names_in_tables_steer_no_terminal():
    table = Table("\x1b[2J", ["a\x07", "b"], [("runs/\x1b[2Jx", ["\u202ey", 0.5])])
    assert table.to_text().splitlines()[0] == "\\x1b[2J"
    assert table.to_text().splitlines()[1].split() == ["a\\x07", "b"]
    assert table.to_text().splitlines()[-1].split() == ["runs/\\x1b[2Jx", "\\u202ey", "0.500"]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\nb", r"a\\nb"),
        ("![x](http://x)", r"!\[x\](http://x)"),
        ("<img src=x>", r"\<img src=x\>"),
        ("LLaVA*", r"LLaVA\*"),
        ("\u202ea", r"\\u202ea"),
    ],
)
def test_no_name_breaks_a_markdown_table(name, written):
    table = Table(name, [name], [(name, [name])], name)
    assert table.to_markdown().splitlines() == [
        f"### {written}",
        "",
        f"|  | {written} |",
        "|---|---:|",
        f"| {written} | {written} |",
        "",
        written,
    ]
