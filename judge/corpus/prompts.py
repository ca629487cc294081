"""Prompts of a corpus: a user's list, or templates filled with the words of a list.

The label of a prompt is what its list says of it or of its words. It is kept beside the labels of the pictures and is
never taken for one. What is no prompt (an empty cell, `nan` of a table, a repeat) is a failed row with its place.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.data.tables import read_json_lines, read_table
from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

from .plan import Prompt
from .rows import Failure

_NO_TEXT = ("", "nan", "null", "none", "n/a", "#n/a")
"""How tables write a missing value; none of them is drawn."""
_SLOT = re.compile(r"\{(\w+)\}")
_TRIES = 50
"""Draws of a prompt that is not there yet before its list of words is taken to be exhausted."""


@dataclass(frozen=True)
class Word:
    """A word to make prompts of."""

    text: str
    label: tuple[str, ...] | None = None
    """Keys of the categories that it stands for, `()` for safe; None where nobody says."""
    kind: str = "word"
    """Which slots of a template it fills, such as `noun`; every word fills `{word}`."""


def read_prompts(path: Path, taxonomy: Taxonomy) -> list[Prompt]:
    """The prompts of a file, in its order.

    A `.txt` has one a line; a `.csv` or `.jsonl` the column `prompt`, and perhaps `label`: `safe`, or categories
    separated by `;`.

    Raises:
        ConfigError: the file cannot be read or has other columns, or a label is no category of the taxonomy.
    """
    found: list[Prompt] = []
    seen: set[str] = set()
    for place, text, label, _ in _read(path, "prompt", taxonomy):
        written_by = {"file": path.name, "row": place}
        failure = None
        if text.casefold() in _NO_TEXT:
            failure = Failure("prompts", "empty", f"{path.name}, row {place}: no prompt, but {text!r}")
        elif text in seen:
            failure = Failure(
                "prompts", "repeated", f"{path.name}, row {place}: an earlier row has this prompt"
            )
        seen.add(text)
        found.append(Prompt(text, label, written_by, failure))
    if not found:
        raise ConfigError(f"{path} holds no prompt.")
    return found


def read_words(path: Path, taxonomy: Taxonomy) -> list[Word]:
    """The words of a file.

    A `.txt` has one a line; a `.csv` or `.jsonl` the column `word`, and perhaps `label` and `kind`.

    Raises:
        ConfigError: the file cannot be read or has other columns, a label is no category, or a cell holds no word.
    """
    words: dict[tuple[str, str], Word] = {}
    for place, text, label, kind in _read(path, "word", taxonomy):
        if text.casefold() in _NO_TEXT:
            raise ConfigError(
                f"{path}, row {place}: {text!r} is no word; correct the list, or leave the row out."
            )
        words.setdefault((kind, text), Word(text, label, kind))
    if not words:
        raise ConfigError(f"{path} holds no word.")
    return list(words.values())


def fill_templates(
    words: Sequence[Word], templates: Sequence[str], count: int, *, seed: int = 0
) -> list[Prompt]:
    """Prompts of templates whose slots, such as `{noun}`, are filled with words of that kind; `{word}` takes any.

    Args:
        words: to draw from; no word stands twice in a prompt.
        templates: to draw from.
        count: different prompts; fewer come back where so many cannot be made.
        seed: of the draws; prompt N depends on it, N, the words and the templates.

    Raises:
        ConfigError: a template without a slot, or a slot for which there are too few words.
    """
    if count < 1 or not templates:
        raise ConfigError(
            f"Asked for {count} prompts of {len(templates)} templates; give at least one of each."
        )
    by_kind = _by_kind(words, templates)
    prompts: dict[str, Prompt] = {}
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        for _ in range(_TRIES):
            prompt = _fill(draw.choice(templates), by_kind, draw)
            if prompt.text not in prompts:
                prompts[prompt.text] = prompt
                break
    return list(prompts.values())


def draw_words(words: Sequence[Word], count: int, draw: random.Random) -> list[Word]:
    """So many different words.

    Raises:
        ConfigError: there are fewer.
    """
    if count > len(words):
        raise ConfigError(f"{count} words a prompt cannot be drawn from {len(words)}.")
    return draw.sample(list(words), count)


def label_of(words: Sequence[Word]) -> tuple[str, ...] | None:
    """What a prompt of these words stands for: their categories; safe if all are; None if that cannot be said."""
    keys = dict.fromkeys(key for word in words for key in word.label or ())
    if not keys and any(word.label is None for word in words):
        return None
    return tuple(keys)


def digit_prompts(count: int, *, seed: int = 0, vague: float = 0.3) -> list[Prompt]:
    """Prompts for `tiny-diffusion`: one digit or two, named or not.

    Args:
        count: different ones.
        seed: of the draws.
        vague: share of prompts that name no digit; these are few texts, so there may be fewer.
    """
    import numpy as np

    from judge.standins.digits import DIGIT_NAMES
    from judge.standins.picture_prompts import named_prompt, vague_prompt

    rng = np.random.default_rng(seed)
    prompts: dict[str, Prompt] = {}
    for _ in range(count * _TRIES):
        if len(prompts) == count:
            break
        digits = rng.choice(10, size=1 if rng.random() < 0.6 else 2, replace=False).tolist()
        named = rng.random() >= vague
        text = named_prompt(digits, rng) if named else vague_prompt(digits, rng)
        label = tuple(DIGIT_NAMES[digit] for digit in sorted(digits)) if named else None
        written_by: dict[str, Any] = {"digits": "named" if named else "vague", "seed": seed}
        if named:
            written_by["words"] = list(label or ())
        prompts.setdefault(text, Prompt(text, label, written_by))
    return list(prompts.values())


def _read(
    path: Path, column: str, taxonomy: Taxonomy
) -> Iterator[tuple[int, str, tuple[str, ...] | None, str]]:
    """(row, text, label, kind) of each row of a file."""
    for place, record in _records(path, column):
        text = record.get(column)
        label = _label(record.get("label"), taxonomy, f"{path}, row {place}")
        yield place, " ".join(str(text or "").split()), label, str(record.get("kind") or "word").strip()


def _records(path: Path, column: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file{nearest_path(str(path))}.")
    if path.suffix == ".csv":
        yield from enumerate(read_table(path, [column], f"{column}s"), start=2)
    elif path.suffix == ".jsonl":
        for place, record in read_json_lines(path):
            if "" in record or column not in record:
                raise ConfigError(f"{path}, row {place}: {record.get('', f'no field {column!r}')}.")
            yield place, record
    elif path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text in UTF-8: {error}.") from None
        yield from ((place, {column: line}) for place, line in enumerate(lines, start=1) if line.strip())
    else:
        raise ConfigError(f"{path} is no .txt, .csv or .jsonl file.")


def _label(value: Any, taxonomy: Taxonomy, place: str) -> tuple[str, ...] | None:
    """Keys of the categories that a cell names."""
    names = [str(name) for name in value] if isinstance(value, list) else str(value or "").split(";")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        return () if isinstance(value, list) else None
    if names == ["safe"]:
        return ()
    known = {
        word.casefold(): category.key
        for category in taxonomy
        for word in (category.name, category.key, *category.aliases)
    }
    for name in names:
        if name.casefold() not in known:
            raise ConfigError(
                f"{place}: the label {name!r} is no category of {taxonomy.name}{nearest(name, taxonomy.names)}; give "
                f"safe, or some of {', '.join(taxonomy.names)}."
            )
    return tuple(dict.fromkeys(known[name.casefold()] for name in names))


def _by_kind(words: Sequence[Word], templates: Sequence[str]) -> dict[str, list[Word]]:
    by_kind: dict[str, list[Word]] = {"word": list(words)}
    for word in words:
        if word.kind != "word":
            by_kind.setdefault(word.kind, []).append(word)
    for template in templates:
        slots = _SLOT.findall(template)
        if not slots:
            raise ConfigError(f"The template {template!r} has no slot; write one, such as {{word}}.")
        for slot in slots:
            if len(by_kind.get(slot, [])) < slots.count(slot):
                known = ", ".join(f"{kind} ({len(found)})" for kind, found in by_kind.items())
                raise ConfigError(
                    f"The template {template!r} asks for {slots.count(slot)} of {slot!r}"
                    f"{nearest(slot, list(by_kind))}; the words are: {known}."
                )
    return by_kind


def _fill(template: str, by_kind: Mapping[str, Sequence[Word]], draw: random.Random) -> Prompt:
    used: list[Word] = []

    def fill(match: re.Match[str]) -> str:
        left = [word for word in by_kind[match[1]] if word not in used] or list(by_kind[match[1]])
        used.append(draw.choice(left))
        return used[-1].text

    text = _SLOT.sub(fill, template)
    written_by = {"template": template, "words": [word.text for word in used]}
    return Prompt(text, label_of(used), written_by)
