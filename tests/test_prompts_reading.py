"""Clean characters and windows of a prompt."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.errors import ArbiterError
from prompts.reading import MAX_WINDOWS, OVERLAP, WINDOW, check_prompt_mode, clean, read_prompt


@pytest.mark.parametrize(
    ("text", "clean_text", "hidden"),
    [
        ("a  red\tcat\n", "a red cat", 0),
        ("f\u200bou\u202er", "four", 2),
        ("\x00four\x07", "four", 2),
        ("ｆｏｕｒ ④", "four 4", 0),
        ("👩\u200d🚀 ok\ufe0f", "👩🚀 ok", 0),
        ("f\ufe01\U000e0141our\U000e0041", "four", 3),
        ("\ud800four", "four", 1),
        ("a" + "\u0316" * 9, "a" + "\u0316" * 4, 5),
        ("\u3164four\u2800", "four", 2),
        ("Zürich 東京 كتاب", "Zürich 東京 كتاب", 0),
    ],
)
def test_what_a_reader_would_not_see_is_removed_and_counted(text: str, clean_text: str, hidden: int) -> None:
    assert (clean(text).text, clean(text).hidden) == (clean_text, hidden)


@given(st.text(max_size=80))
def test_clean_text_is_visible_and_stays_as_it_is(text: str) -> None:
    cleaned = clean(text).text
    assert not any(unicodedata.category(c)[0] == "C" for c in cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert clean(cleaned).hidden == 0


@given(st.text(alphabet="ab cd", max_size=3000))
def test_windows_cover_the_text_and_overlap(text: str) -> None:
    found, whole = read_prompt(text), clean(text).text
    assert all(0 < len(window) <= WINDOW for window in found.windows)
    assert found.note is None
    # Every phrase of up to OVERLAP characters is whole in one window.
    for start in range(0, max(len(whole) - OVERLAP, 1), 7):
        phrase = whole[start : start + OVERLAP].strip()
        assert not phrase or any(phrase in window for window in found.windows)


@pytest.mark.parametrize("text", [" ".join(map(str, range(2000))), "\u200b" * 10**6, "x" * 10**6])
def test_a_prompt_that_is_too_long_is_not_read_and_says_so(text: str) -> None:
    found = read_prompt(text)
    assert found.windows == ()
    assert f"{len(text):,} characters" in (found.note or "")


def test_repetitions_are_read_once() -> None:
    assert len(read_prompt("x" * 5000).windows) == 2


def test_the_longest_prompt_that_is_read() -> None:
    text = " ".join(str(n) for n in range(1200))
    assert MAX_WINDOWS >= len(read_prompt(text).windows) > 15


@pytest.mark.parametrize("text", [None, "", "  ", "\u200b\u200b"])
def test_nothing_to_read(text: str | None) -> None:
    assert read_prompt(text).windows == ()
    assert read_prompt(text).note is None


def test_prompt_modes() -> None:
    assert check_prompt_mode("max") == "max"
    with pytest.raises(ArbiterError, match="No prompt mode 'maybe'; choose one of max, use, ignore"):
        check_prompt_mode("maybe")
