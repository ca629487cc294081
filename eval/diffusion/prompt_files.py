"""Prompts for a text-to-image model: from a user's file, or of the digits that ship."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from judge.errors import ConfigError, first_line
from judge.runs.files import nearest_path
from judge.standins.digits import DIGIT_NAMES
from judge.standins.picture_prompts import FORMS, VAGUE, named_prompt

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
LONGEST = 20_000
"""Characters of a prompt; a longer one is a mistake in the file, such as an open quotation mark."""
_VAGUE_WORDS = ("a digit", "one digit", "two digits", "a pair of digits", "two numbers")


@dataclass(frozen=True)
class Prompt:
    """A prompt and its kind, by which results are counted; empty where there are no kinds."""

    text: str
    kind: str = ""


def read_prompts(path: str | Path) -> list[Prompt]:
    """The different prompts of a file, in order; of a text that is there twice the first.

    `.txt` holds one a line; `.csv` and `.tsv` a column `prompt` and, if wanted, a column `kind`; `.jsonl` a line an
    object with `prompt` and maybe `kind`. Lines without a prompt are left out; other columns are not read.

    Raises:
        ConfigError: no such file, another suffix, or a line that cannot be read, by its number.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} is no file of prompts; give one that ends in {', '.join(SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {first_line(error)}{nearest_path(str(path))}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    found: dict[str, Prompt] = {}
    for number, row in _rows(path, text):
        prompt = _prompt(row, f"{path}, line {number}")
        if prompt.text:
            found.setdefault(prompt.text, prompt)
    if not found:
        raise ConfigError(f"{path} holds no prompts.")
    return list(found.values())


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Line numbers, and what stands there: an object with `prompt`."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = csv.DictReader(StringIO(text, newline=""), delimiter="," if suffix == ".csv" else "\t")
        if "prompt" not in (rows.fieldnames or ()):
            columns = ", ".join(map(str, rows.fieldnames or ())) or "none"
            raise ConfigError(f"{path} has the columns {columns}; one of them must be called prompt.")
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise ConfigError(f"{path}, line {rows.line_num}: {error}.") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if suffix == ".txt":
            yield number, {"prompt": line}
        elif line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}, line {number} is not JSON: {first_line(error)}.") from None


def _prompt(row: Any, where: str) -> Prompt:
    given = (row.get("prompt"), row.get("kind") or "") if isinstance(row, dict) else (None, None)
    text, kind = given[0] or "", given[1]
    if not isinstance(row, dict) or not isinstance(text, str) or not isinstance(kind, str):
        raise ConfigError(f'{where} holds no prompt; write an object such as {{"prompt": "a red door"}}.')
    if len(text) > LONGEST:
        raise ConfigError(
            f"{where} holds a prompt of {len(text):,} characters; at most {LONGEST:,} are read."
        )
    return Prompt(text.strip(), kind.strip())


def digit_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """About `count` different prompts that name one digit (60 %) or two, and all the vague ones there are.

    The vague ones also combine `picture_prompts.FORMS` with words for an unknown digit, so that there are enough of
    them to test on some and train on others.
    """
    rng = np.random.default_rng([seed, 15])
    named: dict[str, None] = {}
    for _ in range(50 * count):  # there are about 5,000 different ones
        if len(named) == count:
            break
        digits = rng.choice(len(DIGIT_NAMES), size=rng.choice([1, 2], p=[0.6, 0.4]), replace=False)
        named[named_prompt([int(digit) for digit in digits], rng)] = None
    combined = [form.format(words) for form in FORMS for words in _VAGUE_WORDS]
    vague = dict.fromkeys([*VAGUE[1], *VAGUE[2], *combined])
    return [*(Prompt(text, "named") for text in named), *(Prompt(text, "vague") for text in vague)]
