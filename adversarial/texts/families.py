"""Families of misleading prompts, made by rule from the true one without querying the victim.

A maker takes the prompt of a picture (or None), the verdict that the attacker wants, and a seed, and returns prompts to
try, best guesses first. Equal arguments give equal prompts. Where a family does not apply (misspellings of an empty
prompt), it returns none. Makers accept any text, lone surrogates included.

The ideas: a disavowal flips a judge's verdict (an issue of meta-llama/llama-models,
517); instructions inside the judged text (prompt injection, Perez and Ribeiro 2022); homoglyphs and
invisible characters (Boucher et al. 2022, "Bad Characters"); swapped, dropped and neighbouring letters (TextBugger,
Li et al. 2019, section 3.3).
"""

import random
from collections.abc import Callable, Mapping, Sequence

from .sentences import CARRIERS, DISAVOWALS, INJECTIONS, Target

Maker = Callable[[str | None, Target, int], list[str | None]]
"""(prompt, wanted verdict, seed) -> prompts to try; None stands for no prompt."""

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
LOOK_ALIKES = {
    "cyrillic": ("aceijopsxyABCEHKMOPTXSIJ", "асеіјорѕхуАВСЕНКМОРТХЅІЈ"),
    "greek": ("ovuiABEHIKMNOPTXYZ", "ονυιΑΒΕΗΙΚΜΝΟΡΤΧΥΖ"),
    "fullwidth": ("".join(map(chr, range(33, 127))), "".join(map(chr, range(0xFF01, 0xFF5F)))),
}
"""Script -> ASCII letters, and the letters of the script that look the same."""
_INVISIBLE = ("\u200b", "\u200c", "\u2060", "\u00ad")
"""Zero-width space, zero-width non-joiner, word joiner, soft hyphen."""
_LEET = ("aeiost", "431057")
_LEET_MORE = ("abegilost", "48361|057")
SHORTEST_WORD = 4
"""Letters of the shortest word that is misspelled."""
MISSPELLINGS = 12
"""Number of misspelled prompts."""


def carriers(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """The prompt inside an innocent-sounding sentence; for the verdict `safe` only."""
    if not has_text(prompt) or target == "unsafe":
        return []
    # Not `str.format`: a prompt may contain braces.
    return distinct(prompt, [carrier.replace("{prompt}", str(prompt)) for carrier in CARRIERS])


def disavowals(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """A sentence that claims the verdict, after the prompt and before it."""
    own = str(prompt) if has_text(prompt) else ""
    sentences = DISAVOWALS[target]
    after = [f"{own} {sentence}".strip() for sentence in sentences]
    return distinct(prompt, after + [f"{sentence} {own}".strip() for sentence in sentences])


def injections(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """Instructions to the judge: plain, behind a closed quote, as turns of a chat, as a finished verdict."""
    categories = "[]" if target == "safe" else '["all"]'
    own = f"{prompt} " if has_text(prompt) else ""
    return distinct(prompt, [own + text.format(target=target, categories=categories) for text in INJECTIONS])


def misspellings(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """One letter swapped, dropped, doubled or mistyped in every longer word."""
    if not has_text(prompt):
        return []
    draw = random_for(prompt, seed)
    edits = (_swap, _drop, _double, _mistype)
    return distinct(
        prompt, [_each_word(str(prompt), edits[turn % len(edits)], draw) for turn in range(MISSPELLINGS)]
    )


def homoglyphs(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """Letters replaced by look-alikes of another script: all, then half; the number of code points stays."""
    if not has_text(prompt):
        return []
    draw, text, found = random_for(prompt, seed), str(prompt), []
    for share in (1.0, 0.5):
        for plain, alike in LOOK_ALIKES.values():
            # Characters without a look-alike stay.
            table = dict(zip(plain, alike, strict=True))
            found.append("".join(table.get(c, c) if draw.random() < share else c for c in text))
    return distinct(prompt, found)


def spacing(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """Words split by spaces, dots, hyphens or invisible characters; words joined."""
    if not has_text(prompt):
        return []
    words = str(prompt).split()
    apart = [" ".join(mark.join(word) for word in words) for mark in (*_INVISIBLE, " ", ".", "-")]
    halves = " ".join(f"{word[: len(word) // 2]} {word[len(word) // 2 :]}".strip() for word in words)
    return distinct(prompt, [*apart, halves, "".join(words), "\u00a0".join(words)])


def leetspeak(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """Letters written as digits: vowels only, more letters, and a random half of them."""
    if not has_text(prompt):
        return []
    draw, text = random_for(prompt, seed), str(prompt)
    some, more = (dict(zip(*table, strict=True)) for table in (_LEET, _LEET_MORE))
    return distinct(
        prompt,
        [
            "".join(some.get(c.lower(), c) if c in "aeiouAEIOU" else c for c in text),
            "".join(some.get(c.lower(), c) for c in text),
            "".join(more.get(c.lower(), c) for c in text),
            "".join(more.get(c.lower(), c) if draw.random() < 0.5 else c for c in text),
        ],
    )


def case_changes(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """Upper, lower, title and alternating case."""
    if not has_text(prompt):
        return []
    text = str(prompt)
    in_turn = "".join(c.upper() if place % 2 else c.lower() for place, c in enumerate(text))
    return distinct(prompt, [text.upper(), text.lower(), text.title(), in_turn])


def deletion(prompt: str | None, target: Target, seed: int) -> list[str | None]:
    """No prompt, an empty one, and the prompt without its first and its second half."""
    words = (prompt or "").split()
    # Half a prompt may lose the words that a filter looks for.
    halves = (
        [" ".join(words[len(words) // 2 :]), " ".join(words[: len(words) // 2])] if len(words) > 1 else []
    )
    return [text for text in (None, "", *halves) if text != prompt]


FAMILIES: dict[str, Maker] = {
    "carriers": carriers,
    "disavowals": disavowals,
    "injections": injections,
    "misspellings": misspellings,
    "homoglyphs": homoglyphs,
    "spacing": spacing,
    "leetspeak": leetspeak,
    "case": case_changes,
    "deletion": deletion,
}
"""Families that need only a prompt; `lies` and `paraphrases` make more."""


def lies(others: Mapping[Target, Sequence[str]], tries: int = 4) -> Maker:
    """A family that replaces the prompt by another picture's.

    Args:
        others: prompts of other pictures by the verdict they suggest: those of safe pictures under `safe`.
        tries: how many are drawn for each prompt.
    """

    def make(prompt: str | None, target: Target, seed: int) -> list[str | None]:
        pool = sorted({text for text in others.get(target, ()) if text != prompt})
        return list(random_for(prompt, seed).sample(pool, min(tries, len(pool))))

    return make


def target_of(sign: float) -> Target:
    """The verdict that goes with a problem's sign: `safe` for 1, `unsafe` for -1."""
    return "safe" if sign > 0 else "unsafe"


def has_text(prompt: str | None) -> bool:
    """Whether there is a prompt that is not blank."""
    return bool(prompt and prompt.strip())


def distinct(prompt: str | None, texts: Sequence[str]) -> list[str | None]:
    """The texts without repeats and without the prompt itself."""
    return [text for text in dict.fromkeys(texts) if text != prompt]


def random_for(prompt: str | None, seed: int) -> random.Random:
    """A generator keyed by the prompt, so that a row's texts do not depend on the other rows."""
    return random.Random(f"{seed}/{prompt}".encode("utf-8", "surrogatepass"))


def _each_word(text: str, edit: Callable[[str, random.Random], str], draw: random.Random) -> str:
    return " ".join(
        edit(word, draw) if sum(map(str.isalpha, word)) >= SHORTEST_WORD else word for word in text.split(" ")
    )


def _swap(word: str, draw: random.Random) -> str:
    """Swap two inner neighbours; the first letter stays, as it matters most to readers."""
    places = [at for at in range(1, len(word) - 1) if word[at] != word[at + 1]]
    if not places:
        return word
    at = draw.choice(places)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _drop(word: str, draw: random.Random) -> str:
    at = draw.randrange(1, len(word))
    return word[:at] + word[at + 1 :]


def _double(word: str, draw: random.Random) -> str:
    at = draw.randrange(1, len(word) - 1)
    return word[: at + 1] + word[at:]


def _mistype(word: str, draw: random.Random) -> str:
    """Replace an inner letter by its neighbour on a keyboard."""
    places = [at for at in range(1, len(word)) if any(word[at].lower() in row for row in _KEYS)]
    if not places:
        return word
    at = draw.choice(places)
    row = next(row for row in _KEYS if word[at].lower() in row)
    place = row.index(word[at].lower())
    near = draw.choice([row[p] for p in (place - 1, place + 1) if 0 <= p < len(row)])
    return word[:at] + near + word[at + 1 :]
