"""The scripts that texts are written in."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.scripts import scripts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Weapons, 4.2 (S1)", {"Latin"}),
        ("Größe, naïve, ß", {"Latin"}),
        ("Оружие", {"Cyrillic"}),
        ("όπλα", {"Greek"}),
        ("武器", {"Han"}),
        ("ぶき ブキ", {"Kana"}),
        ("무기", {"Hangul"}),
        ("أسلحة", {"Arabic"}),
        ("נשק", {"Hebrew"}),
        ("हथियार", {"Devanagari"}),
        ("อาวุธ", {"Thai"}),
        ("guns и пушки", {"Latin", "Cyrillic"}),
        ("4.2 - §!? 100 % €", set()),
        ("🔫 🙈 ❤️", set()),
        ("", set()),
        ("Ｇｕｎ 𝐠𝐮𝐧 ﬁ", {"Latin"}),  # compatibility forms
    ],
)
def test_scripts_of_a_text(text: str, expected: set[str]) -> None:
    assert scripts(text) == expected


def test_a_few_letters_of_another_script_make_no_other_script() -> None:
    assert scripts("a photo of α-particles in a chamber of clouds") == {"Latin"}
    assert scripts("wеapоns") == {"Latin", "Cyrillic"}  # two of seven letters only look Latin


@given(st.text())
def test_only_letters_count(text: str) -> None:
    letters = [c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c)[0] == "L"]
    assert scripts("".join(letters)) == scripts(text)
    assert bool(scripts(text)) <= bool(letters)
