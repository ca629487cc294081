"""Untrusted text: characters that could control a terminal or mislead a reader are escaped, all others stay."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.printable import error_line, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\x9b31mb", "a\\x9b31mb"),  # C1: CSI in one character
        ("\x7f\x00\t\r\n", "\\x7f\\x00\\t\\r\\n"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),  # read as photoexe.jpg
        ("\u2066x\u2069\u200b\ufeff", "\\u2066x\\u2069\\u200b\\ufeff"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\udcff.png", "\\udcff.png"),  # a file name that is no UTF-8
        ("\U000e0041", "\\U000e0041"),  # an invisible tag
        ("straße, 図\u3000一, می\u200cخواهم", "straße, 図\u3000一, می\u200cخواهم"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.text())
def test_no_control_or_format_character_is_left(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown if c not in "\u200c\u200d"} & {
        "Cc",
        "Cf",
        "Cs",
        "Zl",
        "Zp",
    }
    assert printable(shown) == shown
    shown.encode()  # raises if a surrogate is left


def test_line_breaks_stay_and_errors_are_one_line() -> None:
    assert printable_lines("a\x1b\nb") == "a\\x1b\nb"
    assert error_line(ValueError("first\n  second\x1b[0m")) == "first second\\x1b[0m"
    assert error_line(MemoryError()) == "MemoryError"
