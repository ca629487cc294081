"""Decisions -> training rows: images and a table that the data source `folder:PATH` reads, as does `arbiter calibrate`.

    images/SHA256.png ...
    labels.csv, taxonomy.yaml                    of decisions under one taxonomy; under several, for each of them
    labels-HASH.csv, taxonomy-HASH.yaml          these, and `folder:PATH/labels-HASH.csv` names one
    export.json                                  what was exported, and what was left out and why

- **The latest decision counts**, of all about the same pixels with the same prompt under the same taxonomy.
- **Skipped images are left out**, and those whose files were deleted or cannot be opened for training.
- **Equal pixels never straddle splits.** The split follows from the decoded pixels, so that a copy in another file
  format, or in a later export, is in the same one: 80 % train, 10 % validation, 10 % test. Copies are one file.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from judge.data.images import format_of, open_image, pixels_hash
from judge.errors import ConfigError, ImageError, first_line
from judge.runs.machine import now
from judge.verdicts.rows import package_version
from prompts.taxonomy import Category, Taxonomy

from .decision_table import begins_formula
from .entries import Decision
from .errors import NotFoundError
from .images import make_private_folder
from .records import Records

COLUMNS = ("path", "prompt", "label", "categories", "source", "split", "id")
"""Columns of the table that training reads, a part of `judge.data.sources.COLUMNS`."""
EXTRA_COLUMNS = ("action", "judged", "decision")
"""Columns that no training reads: agree or overrule, what the judge had said, and the id of the decision."""
Write = Callable[[str, bytes], object]
"""Writes a file, by its path inside of the export."""


SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Exported:
    """What an export holds."""

    tables: dict[str, dict[str, int]]
    """Name of a table -> split -> its rows."""
    left_out: list[dict[str, Any]]
    """`decision`, `name` and `reason` of decisions that count and are no rows."""

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(sum(counts.values()) for counts in self.tables.values())


@dataclass(frozen=True)
class _Row:
    """A decision that counts."""

    decision: Decision
    policy: str
    """Hash of the taxonomy that the verdict was made by."""
    file: str
    split: str


def decoded_pixels(data: bytes) -> str:
    """`pixels_hash` of an encoded image.

    Raises:
        ImageError: it cannot be opened as training does.
    """
    return pixels_hash(open_image(data))


def export_folder(records: Records, folder: Path) -> Exported:
    """Export into a new folder, or an empty one.

    Raises:
        ConfigError: there is something in it, or nothing to export.
        RecordsError: an image or the database cannot be read, or the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} exists and is no empty folder; name a new one.")
    make_private_folder(folder)

    def write(name: str, content: bytes) -> None:
        (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
        (folder / name).write_bytes(content)

    try:
        return export_training_rows(records, write)
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} cannot be written: {first_line(error)}.") from error


def export_training_rows(
    records: Records, write: Write, pixels_of: Callable[[bytes], str] = decoded_pixels
) -> Exported:
    """Write the decisions that count as training rows.

    Args:
        records: what was decided.
        write: receives each file of the export once.
        pixels_of: an encoded image -> its `pixels_hash`; raises `ImageError` where training could not open it.
    """
    left_out: list[dict[str, Any]] = []
    by_policy: dict[str, list[_Row]] = {}
    for row in _rows(records, _Images(records, write, pixels_of), left_out):
        by_policy.setdefault(row.policy, []).append(row)
    tables = {}
    for policy, rows in by_policy.items():
        ending = f"-{policy[:16]}" if len(by_policy) > 1 else ""
        taxonomy = label_keys(records.policy(policy))
        write(f"taxonomy{ending}.yaml", taxonomy.to_yaml().encode())
        write(f"labels{ending}.csv", _table(rows, taxonomy).encode())
        tables[f"labels{ending}.csv"] = {split: sum(row.split == split for row in rows) for split in SPLITS}
    about = {"arbiter": package_version(), "time": now(), "tables": tables, "left_out": left_out}
    write("export.json", json.dumps(about, indent=2, ensure_ascii=False).encode())
    return Exported(tables, left_out)


class _Images:
    """The images of an export: each is decoded once, and written when the first row names it."""

    def __init__(self, records: Records, write: Write, pixels_of: Callable[[bytes], str]) -> None:
        self._records, self._write, self._pixels_of = records, write, pixels_of
        self._pixels: dict[str, str | Exception] = {}
        self._written: dict[str, str] = {}  # pixels -> path

    def pixels(self, sha256: str) -> str:
        """`pixels_hash` of an image.

        Raises:
            NotFoundError, ImageError: it is gone, or cannot be opened for training.
        """
        if sha256 not in self._pixels:
            try:
                self._pixels[sha256] = self._pixels_of(self._records.image(sha256))
            except (NotFoundError, ImageError) as error:
                self._pixels[sha256] = error
        found = self._pixels[sha256]
        if isinstance(found, Exception):
            raise found
        return found

    def write(self, sha256: str) -> str:
        """Write an image, unless one of the same pixels is written, and return the path inside of the export."""
        pixels = self.pixels(sha256)
        if pixels not in self._written:
            data = self._records.image(sha256)
            kind = format_of(data[:32]) or "bin"
            self._written[pixels] = f"images/{sha256}.{_SUFFIXES.get(kind, kind.lower())}"
            self._write(self._written[pixels], data)
        return self._written[pixels]


_SUFFIXES = {"JPEG": "jpg"}


def _rows(records: Records, images: _Images, left_out: list[dict[str, Any]]) -> Iterator[_Row]:
    """The decisions that count, newest first; the others of the newest ones end up in `left_out`."""
    seen = set[tuple[str, str, str | None]]()
    for decision in records.each_decision(newest_first=True):
        item, policy = decision.item, decision.verdict["taxonomy"]["hash"]
        try:
            if item.state == "deleted":
                raise NotFoundError("its item was deleted")
            pixels = images.pixels(item.sha256)
        except (NotFoundError, ImageError) as error:
            if decision.ruling.status is not None:
                left_out.append({"decision": decision.id, "name": item.name, "reason": str(error)})
            continue
        # By pixels and not by bytes: two encodings of one picture must not carry two labels.
        about = (policy, pixels, item.prompt)
        if about in seen:
            continue
        seen.add(about)
        if decision.ruling.status is not None:
            yield _Row(decision, policy, images.write(item.sha256), split_of(pixels))


def split_of(pixels: str) -> str:
    """The split of an image: 80 % train, 10 % validation, 10 % test, by its `pixels_hash`."""
    share = int(pixels[:14], 16) / 16**14
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def label_keys(taxonomy: Taxonomy) -> Taxonomy:
    """The taxonomy with keys that its labels can be read by: without `;`, and no word of another category.

    Its hash stays: keys are no part of it. A category that merges others becomes one of its own, as moderators decided
    about the whole.
    """
    words = [
        {word.casefold() for word in (category.name, *category.aliases, category.code or category.name)}
        for category in taxonomy
    ]
    keys: list[str] = []
    for place, category in enumerate(taxonomy):
        taken = {key.casefold() for key in keys}.union(*words[:place], *words[place + 1 :])
        wanted = [_plain(category.key), _plain(category.name)]
        numbered = (f"{wanted[1]} {number}" for number in count(2))
        keys.append(next(key for key in chain(wanted, numbered) if key.casefold() not in taken))
    return replace(
        taxonomy,
        categories=tuple(
            replace(category, key=key, members=(key,)) for category, key in zip(taxonomy, keys, strict=True)
        ),
    )


def label_word(category: Category) -> str:
    """What a table calls a category of `label_keys`: it separates categories with semicolons."""
    return category.key if ";" in category.name else category.name


def _plain(text: str) -> str:
    return text.replace(";", ",")


def _table(rows: Sequence[_Row], taxonomy: Taxonomy) -> str:
    """The rows as CSV; the categories in the words of `label_keys(taxonomy)`."""
    words = {category.name: label_word(category) for category in taxonomy}
    written = io.StringIO()
    # Lines end in CR LF: with another end, Python 3.11 would not quote a prompt for its CR.
    table = csv.DictWriter(written, (*COLUMNS, *EXTRA_COLUMNS), lineterminator="\r\n")
    table.writeheader()
    for row in sorted(rows, key=lambda row: row.decision.id):
        ruling = row.decision.ruling
        table.writerow(
            {
                "path": row.file,
                "prompt": _text(row.decision.item.prompt or ""),
                "label": ruling.status,
                "categories": _text(";".join(words[name] for name in ruling.categories)),
                "source": "",
                "split": row.split,
                "id": f"decision-{row.decision.id}",
                "action": ruling.action,
                "judged": row.decision.verdict["status"],
                "decision": row.decision.id,
            }
        )
    return written.getvalue()


def _text(text: str) -> str:
    """The text, behind a space where a spreadsheet would take it for a formula: training reads it without."""
    return f" {text}" if begins_formula(text) else text
