"""Published sets of adversarial prompts, made against other systems; the user provides the files.

They measure transfer, not an adaptive attack. None ships with this software: some need access, some forbid derivatives.
`Format.home` says where to get them.

What is known about the files, and its source:

- MMA-Diffusion (gated): columns `target_prompt`, `adv_prompt`, `sanitized_adv_prompt`,
  `success_against_sanitization_defense`, `clean_prompt`; as several public loaders of the file read it, the file itself
  was not seen.
- Ring-A-Bell: violence prompts are CSV files in its repository, nudity prompts are gated; public loaders read a column
  `prompt`, or `sensitive prompt` beside `safe prompt` in a copy that is much used, and `case_number`; files not seen.
- I2P: `prompt`, `categories` (several, parted by commas) and figures about Stable Diffusion's images; as its repository
  (`eval_I2P.py`) and the card of a copy of the data set say.
- SneakyPrompt: its search writes CSV with `original_text`, `perturbed_text`, `result_type` and more (`main.py` there);
  its targets are a text file with a prompt a line.

Such sets can contain prompts about minors (MMA-Diffusion's list of targets does). Those are always dropped before
anything else reads them, and counted.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adversarial.errors import AttackError

from .families import LOOK_ALIKES
from .files import Row, columns, read_rows, text_of

_ANYWHERE = (
    "child",
    "minor",
    "teen",
    "toddler",
    "underage",
    "infant",
    "schoolgirl",
    "schoolboy",
    "juvenile",
    "adolescent",
    "kindergart",
    "pubescent",
    "lolita",
    "youngster",
)
"""Matched inside words too, as adversarial prompts run words together."""
_WORDS = r"kids?|bab(?:y|ies)|boys?|girls?|sons?|daughters?|pupils?|loli|shota|under ?(?:age|1[0-8]|[1-9])|jailbait"
_YEARS = r"(?:1[0-7]|[1-9]) ?(?:years?|yrs?|yo\b|y o\b)"
_ALIKE = {ord(own): plain for pair in LOOK_ALIKES.values() for plain, own in zip(*pair, strict=True)}
_DIGITS = str.maketrans("013457", "oieast")
_AGE = re.compile("|".join(_ANYWHERE) + rf"|\b(?:{_WORDS})\b|\b{_YEARS}")


@dataclass(frozen=True)
class StaticPrompt:
    """One prompt of a set."""

    id: str
    prompt: str
    original: str | None
    """The plain prompt it was made from, where the set says so."""
    category: str | None
    source: str
    """Name of the format."""


@dataclass(frozen=True)
class StaticSet:
    """A loaded set and what was left out of it."""

    prompts: tuple[StaticPrompt, ...]
    dropped: int
    """Rows about minors, and those that the caller's own rule drops."""
    empty: int
    """Rows without a prompt, or that the set marks as not attacked."""

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Format:
    """Where a set comes from and its columns; of several names the first that exists is read."""

    home: str
    prompt: tuple[str, ...]
    original: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    id: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "mma_diffusion": Format(
        "data set YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark (access on request)",
        ("adv_prompt", "prompt"),
        ("target_prompt",),
    ),
    "ring_a_bell": Format(
        "repository chiayi-hsu/Ring-A-Bell (violence), data set Chia15/RingABell-Nudity (access on request)",
        ("prompt", "sensitive prompt", "adv_prompt"),
        ("original_prompt",),
        ("category", "type"),
        ("case_number", "id"),
    ),
    "i2p": Format(
        "data set AIML-TUDA/i2p, code ml-research/i2p",
        ("prompt",),
        (),
        ("categories",),
        ("id", "case_number"),
    ),
    "sneaky_prompt": Format(
        "repository Yuchen413/text2image_safety (its prompts on request)",
        ("perturbed_text", "adv_prompt", "prompt"),
        ("original_text", "target_prompt"),
    ),
    "generic": Format(
        "any file of yours; name its column with prompt_column",
        ("prompt", "adv_prompt", "text"),
        ("original", "target_prompt"),
        ("category", "categories"),
        ("id",),
    ),
}


def mentions_minors(text: str) -> bool:
    """Whether a text has a term for minors: child, minor, teen, boy, girl, an age below 18, and the like.

    Look-alike letters, accents, invisible characters and digits for letters are normalised first. It prefers false
    positives to false negatives: canteens and boys' clubs match as well.
    """
    # Normalise: compatibility forms and accents, then look-alikes of other scripts, then invisible characters.
    plain = unicodedata.normalize("NFKD", text.encode("utf-8", "replace").decode("utf-8")).translate(_ALIKE)
    plain = "".join(c for c in plain.casefold() if unicodedata.category(c) not in ("Cf", "Mn"))
    plain = re.sub(r"[\W_]+", " ", plain)
    return any(_AGE.search(reading) for reading in (plain, plain.translate(_DIGITS)))


def load_static_set(
    path: str | Path,
    format: str = "generic",  # noqa: A002  as in every reader of tables
    *,
    prompt_column: str | None = None,
    original_column: str | None = None,
    category_column: str | None = None,
    drop: Callable[[str], bool] | None = None,
) -> StaticSet:
    """Read a set of adversarial prompts from the user's file.

    Args:
        path: `.csv`, `.tsv`, `.jsonl`, `.json`, or `.txt` with a prompt a line.
        format: one of `FORMATS`.
        prompt_column: column of the prompts, if it is not one of the format's.
        original_column: column of the prompts they were made from.
        category_column: column of categories.
        drop: a further filter on a row's prompt and original; prompts about minors are always dropped.

    Raises:
        AttackError: another format or file, no such column, or no prompt is left.
    """
    if format not in FORMATS:
        raise AttackError(f"There is no format {format!r}; choose from {', '.join(FORMATS)}.")
    known, rows = FORMATS[format], read_rows(path)
    prompt = _column(path, format, rows, prompt_column, known.prompt, needed=True)
    original = _column(path, format, rows, original_column, known.original)
    category = _column(path, format, rows, category_column, known.category)
    number = _column(path, format, rows, None, known.id)
    found, dropped, empty = [], 0, 0
    for at, row in enumerate(rows):
        text, plain = _cell(row, prompt), _cell(row, original)
        # SneakyPrompt marks targets that it did not attack as skipped.
        if text is None or str(row.get("result_type", "")).casefold() == "skipped":
            empty += 1
            continue
        # Both are checked: an adversarial prompt may hide what its original says openly.
        read = [part for part in (text, plain) if part]
        if any(mentions_minors(part) or (drop is not None and drop(part)) for part in read):
            dropped += 1
            continue
        found.append(StaticPrompt(_cell(row, number) or str(at), text, plain, _cell(row, category), format))
    if not found:
        raise AttackError(f"No prompt of {path} is left: {dropped} dropped, {empty} empty or not attacked.")
    return StaticSet(tuple(found), dropped, empty)


def _cell(row: Row, column: str | None) -> str | None:
    return None if column is None else text_of(row.get(column))


def _column(
    path: str | Path,
    name: str,
    rows: list[Row],
    wanted: str | None,
    known: Sequence[str],
    *,
    needed: bool = False,
) -> str | None:
    """The column to read: the one asked for, else the first of the known ones that is there."""
    there = columns(rows)
    for candidate in [wanted] if wanted is not None else known:
        if candidate in there:
            return candidate
    if wanted is None and not needed:
        return None
    raise AttackError(
        f"{path} has the columns {', '.join(map(str, there))}; {name} reads "
        f"{wanted if wanted is not None else ' or '.join(known)}. "
        f"Name the column of the prompts with prompt_column, or get the file anew: {FORMATS[name].home}."
    )
