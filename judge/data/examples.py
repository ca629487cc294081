"""Data sources -> examples: UnsafeBench and its external sets, folders, any data set of the hub, digits and signs.

Nothing is dropped silently. A row that cannot be used (no label, an unknown category, an image that cannot be opened)
is listed with its reason in `ExampleSet.skipped`; when there are too many, loading stops.

`judge.data.labels` defines what is known of each image's categories.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from judge.errors import ImageError
from judge.runs.files import nearest_path, write_atomically
from prompts.errors import ExampleError
from prompts.example import Example
from prompts.names import nearest
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .folder_splits import FolderSplits, draw_folder_splits
from .folders import TABLES as FOLDER_TABLES
from .folders import FolderReader, holds_table
from .images import DEFAULT_LIMITS, ImageLimits, open_image, pixels_hash, read_bytes
from .labels import Labels, UnusableRowError
from .published import PublishedReader
from .published_sets import PUBLISHED_SETS
from .sources import (
    COLUMNS,
    UNDECLARED,
    DatasetReader,
    LeftOut,
    Reader,
    Row,
    Skipped,
    UnusableRowsError,
)
from .tar_shards import TarReader

SPLITS = ("train", "validation", "test")
EXTERNAL_SETS: Mapping[str, tuple[str, str | None]] = {
    "smid": ("yiting/SMID", None),
    "nsfw": ("yiting/NSFWDataset", "Sexual"),
    "multiheaded": ("yiting/MultiHeaded_Dataset", None),
    "violence": ("yiting/Violence_Dataset", "Violence"),
    "self-harm": ("yiting/Self-harm_Dataset", "Self-harm"),
}
"""UnsafeBench's external sets: name -> (name on the hub, the one category of its unsafe images, if known)."""
SPECS = ("digits", "signs", "unsafebench", *EXTERNAL_SETS, *PUBLISHED_SETS, "folder", "dataset", "webdataset")

_PLAIN_COLUMNS = {name: name for name in ("image", *COLUMNS[1:])}
_UNSAFEBENCH_COLUMNS = {
    "image": "image",
    "label": "safety_label",
    "categories": "category",
    "source": "source",
    "prompt": "text",
}
_EXTERNAL_COLUMNS = {"image": "image", "label": "label", "id": "index"}


@dataclass(frozen=True)
class ExampleSet:
    """The usable rows of one split, and the others with their reasons."""

    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()
    name: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """`pixels_hash` by example id, where images were verified."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that are about something else than one image, by reason; no failures."""
    notes: tuple[str, ...] = ()
    """What was understood or decided on the way, such as splits that were drawn; a run should say so."""

    def write_skipped(self, path: Path) -> None:
        """Write the skipped rows as JSON lines; an empty file where there are none."""
        write_skipped_rows(path, self.skipped)


def load_examples(
    spec: str | Path,
    *,
    split: str,
    taxonomy: Taxonomy,
    max_failures: float = 0.01,
    limit: int | None = None,
    others: Literal["safe", "unknown"] = "safe",
    verify: bool = True,
    limits: ImageLimits = DEFAULT_LIMITS,
    ledger: Path | None = None,
) -> ExampleSet:
    """Read one split of a data source.

    Declared splits are used as they are. Rows of a folder without any are divided 70 : 15 : 15, by category and with
    copies together (`judge.data.splits`); without `validation`, 15 % of `train` becomes it. Of other data sets it is
    80 : 10 : 10 and a tenth of `train`, by the content of the image files alone, so that exact copies stay in one
    split. The external sets are for testing only.

    Args:
        spec: `digits` or `signs`, or `digits:COUNT` for a number of pictures in each split; `unsafebench`, or
            `unsafebench:PATH` for a local copy (Parquet or saved); an external set (`smid`, `nsfw`,
            `multiheaded`, `violence`, `self-harm`), also with a path; a published set (`t2isafety:PATH` and others,
            see `judge.data.published_sets`); `folder:PATH` (images with a CSV or JSON-lines table);
            `dataset:NAME` (hub name or path); `webdataset:PATH` (tar shards, as `arbiter corpus` writes them). A bare
            path or `owner/name` works.
        split: `train`, `validation`, `test`, another declared one, or `all`.
        taxonomy: what category strings are matched to: names, aliases, codes and keys, case ignored.
        max_failures: largest share of rows, 0 to 1, that may be unusable.
        limit: largest number of usable rows, in the order of the data.
        others: whether categories that an unsafe row does not name count as `safe` (as in the paper)
            or `unknown`; see `judge.data.labels`.
        verify: decode each image once now, so that a broken one is found before the run.
        limits: passed to `open_image`.
        ledger: JSON-lines file to list skipped rows in, written even when loading stops.

    Raises:
        ExampleError: unknown source or split, or missing columns.
        UnusableRowsError: more rows are unusable than allowed, or none is usable.
    """
    if others not in ("safe", "unknown"):
        raise ExampleError(f"others is {others!r}; use 'safe' or 'unknown'.")
    opened = open_reader(spec, taxonomy, others)
    if opened is None:
        kind, where = _parse(str(spec))
        return _drawn(kind, split, where, limit)
    reader, labels = opened
    name = f"{spec}/{split}"
    drawn = draw_folder_splits(reader, split, limits) if isinstance(reader, FolderReader) else None
    examples: list[Example] = []
    skipped: list[Skipped] = []
    fingerprints: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    ids: set[str] = set()
    for row in _rows(reader, split, limits, name, drawn):
        # Before the row is opened, so that a limit bounds the work too.
        if limit is not None and len(examples) >= limit:
            break
        if isinstance(row, Skipped):
            skipped.append(row)
            continue
        if isinstance(row, LeftOut):
            left_out[row.reason] += 1
            continue
        try:
            # Caches and reports are keyed by id, so a second row with the same one would overwrite the first.
            if row.id in ids:
                raise UnusableRowError("duplicate_id", "an earlier row has the same id")
            ids.add(row.id)
            example = labels.example(row)
            if drawn is not None and example.id in drawn.pixels:
                fingerprints[example.id] = drawn.pixels[example.id]
            elif verify:
                fingerprints[example.id] = pixels_hash(open_image(example.image, limits))
            examples.append(example)
        except (UnusableRowError, ImageError) as error:
            skipped.append(Skipped(row.id, error.status, error.reason))
    if ledger is not None:
        write_skipped_rows(ledger, skipped)
    check_failures(name, len(examples), skipped, max_failures, ledger)
    notes = (*getattr(reader, "notes", ()), *((drawn.note,) if drawn else ()))
    return ExampleSet(tuple(examples), tuple(skipped), name, fingerprints, dict(left_out), notes)


def check_splits(*sets: ExampleSet) -> None:
    """Check that no image is in two splits, whatever its file, name or data set.

    Compares decoded pixels, so re-encoded copies are found if no pixel changed; near copies are not.

    Raises:
        ExampleError: some are; the message names the first pairs.
    """
    seen: dict[str, tuple[str, str]] = {}
    shared: list[str] = []
    for examples in sets:
        for example in examples.examples:
            where = f"{examples.name}: {example.id}"
            # By content and by name: the same id in two splits is a mistake too, whatever its pixels.
            for identity in (_fingerprint(example, examples), where):
                other_split, other = seen.setdefault(identity, (example.split, where))
                if other_split != example.split:
                    shared.append(f"{other} ({other_split}) and {where} ({example.split})")
                    break
    if shared:
        raise ExampleError(
            f"{len(shared)} images are in two splits, so a score would measure memorisation: "
            f"{'; '.join(shared[:3])}{' ...' if shared[3:] else ''}. Remove one of each pair."
        )


def _fingerprint(example: Example, examples: ExampleSet) -> str:
    try:
        return examples.fingerprints.get(example.id) or pixels_hash(open_image(example.image))
    except ImageError as error:
        raise ExampleError(f"{examples.name}: {example.id} cannot be compared: {error}") from error


def _parse(spec: str) -> tuple[str, str | None]:
    """`kind:where`, a bare kind, a path that exists, or a name on the hub."""
    kind, _, where = spec.partition(":")
    if kind in SPECS:
        if kind in ("folder", "dataset", "webdataset") and not where:
            raise ExampleError(f"{spec!r} says not which; write {kind}:PATH.")
        return kind, where or None
    path = Path(spec)
    # A bare path: a folder with a table, else what the `datasets` library reads, else a name on the hub.
    if "::" in spec or path.suffix.lower() in FOLDER_TABLES or holds_table(path):
        return "folder", spec
    if path.suffix == ".tar" or any(path.glob("*.tar")):
        return "webdataset", spec
    if path.exists() or spec.count("/") == 1:
        return "dataset", spec
    raise ExampleError(
        f"No data source {spec!r}{nearest(kind, SPECS)}. Use one of {', '.join(SPECS)} "
        "(kind:PATH for local copies), a path, or a hub name owner/name."
    )


def open_reader(
    spec: str | Path, taxonomy: Taxonomy, others: Literal["safe", "unknown"] = "safe"
) -> tuple[Reader, Labels] | None:
    """What reads the rows of a data source, and what their labels mean; None for pictures that are drawn here.

    Args: as of `load_examples`.

    Raises:
        ExampleError: no such source, or it cannot be read.
    """
    kind, where = _parse(str(spec))
    return None if kind in ("digits", "signs") else _open(kind, where, taxonomy, others)


def _open(
    kind: str, where: str | None, taxonomy: Taxonomy, others: Literal["safe", "unknown"]
) -> tuple[Reader, Labels]:
    reader: Reader
    if kind == "folder":
        return FolderReader(str(where)), Labels(taxonomy, others)
    if kind == "webdataset":
        return TarReader(str(where)), Labels(taxonomy, others)
    if kind in PUBLISHED_SETS:
        published = PUBLISHED_SETS[kind]
        known = load_taxonomy(published.taxonomy)
        return PublishedReader(kind, where, published), Labels(taxonomy, others, known=known)
    if kind == "dataset":
        return DatasetReader(str(where), _PLAIN_COLUMNS), Labels(taxonomy, others)
    # The vocabulary that these sets were labelled with, whatever taxonomy is asked about.
    known = load_taxonomy("unsafebench")
    if kind == "unsafebench":
        reader = _open_copy(kind, where, "yiting/UnsafeBench", _UNSAFEBENCH_COLUMNS)
        return reader, Labels(taxonomy, others, known=known, safe_names=True)
    hub_name, category = EXTERNAL_SETS[kind]
    # Published as `train`, although the paper only tests on them.
    rename = {"train": "test", UNDECLARED: "test"}
    reader = _open_copy(kind, where, hub_name, _EXTERNAL_COLUMNS, rename)
    return reader, Labels(taxonomy, others, known=known, only=category)


def _open_copy(
    kind: str,
    where: str | None,
    hub: str,
    columns: Mapping[str, str],
    rename: Mapping[str, str] | None = None,
) -> DatasetReader:
    """UnsafeBench or an external set of it: a local copy, or the hub's; an error says how to get one."""
    advice = (
        f"{kind} is {hub} on the hub and may be gated: ask for access and accept its terms there, then `hf auth login` "
        f"here. Or `hf download {hub} --repo-type dataset --local-dir DIR` where you have access, and give {kind}:DIR."
    )
    if where is not None and not Path(where).exists() and where.count("/") != 1:
        raise ExampleError(f"{kind}: there is nothing at {where}{nearest_path(where)}. {advice}")
    try:
        return DatasetReader(where or hub, columns, rename)
    except ExampleError as error:
        if where is not None and Path(where).exists():
            raise
        raise ExampleError(f"{error} {advice}") from error


def _rows(
    reader: Reader, split: str, limits: ImageLimits, name: str, drawn: FolderSplits | None
) -> Iterator[Row | Skipped | LeftOut]:
    """The rows of the requested split, which may be a part of a declared one."""
    declared, reachable = reader.splits, reachable_splits(reader)
    if split != "all" and split not in reachable:
        raise ExampleError(
            f"{name}: no such split; there are: {', '.join(reachable)}, all.{_advice(split, reader)}"
        )
    for source in declared:
        shared_out = source == UNDECLARED or (source == "train" and "validation" not in declared)
        if split not in ("all", source) and not (shared_out and split in SPLITS):
            continue
        if source == "train" and split not in ("all", "train", "validation"):
            continue
        for row in reader.rows(source):
            if not isinstance(row, Row) or not shared_out:
                yield row
                continue
            if drawn is not None:
                # What is in no split, as it cannot be used, is reported by each.
                part = drawn.splits.get(row.id, split)
                if split in ("all", part):
                    yield drawn.skipped.get(row.id) or replace(row, split=part)
                continue
            try:
                # By the file's bytes and not by the row's number, so that adding rows moves no row to another split.
                share = _share(read_bytes(row.image, limits))
            except ImageError as error:  # in no split, so reported by every one
                yield Skipped(row.id, error.status, error.reason)
                continue
            part = "validation" if 0.8 <= share < 0.9 else "test" if share >= 0.9 else "train"
            # A declared `train` without `validation` has a test set elsewhere; its last tenth stays in training.
            if source == "train" and part == "test":
                part = "train"
            if split in ("all", part):
                yield replace(row, split=part)


def reachable_splits(reader: Reader) -> list[str]:
    """The splits that can be asked for: those declared, and those made of them."""
    made = SPLITS if UNDECLARED in reader.splits else ("validation",) if "train" in reader.splits else ()
    return sorted({*reader.splits, *made} - {UNDECLARED})


def _advice(split: str, reader: Reader) -> str:
    if split not in SPLITS or not isinstance(reader, FolderReader):
        return ""
    return (
        f" Write {split!r} in the column split of some rows, or leave the column out, and splits are drawn."
    )


def _share(data: bytes) -> float:
    """A number from 0 to 1, uniform over files, that depends on the content alone."""
    return int.from_bytes(hashlib.sha256(data).digest()[:7]) / 2**56


def _drawn(kind: str, split: str, asked: str | None, limit: int | None) -> ExampleSet:
    """Pictures of one split that are drawn here: `asked` of them, else the default, and never more than `limit`."""
    from judge.standins import digits
    from judge.standins.signs import examples as signs

    if asked is not None and not (asked.isdecimal() and int(asked)):
        raise ExampleError(
            f"{kind}:{asked} is no count; write {kind}, or {kind}:2000 for 2000 pictures a split."
        )
    defaults = {"digits": digits.DEFAULT_COUNTS, "signs": signs.DEFAULT_COUNTS}[kind]
    draw = {"digits": digits.digits_examples, "signs": signs.signs_examples}[kind]
    examples: list[Example] = []
    for part in SPLITS if split == "all" else (split,):
        count = int(asked) if asked else defaults.get(part)
        if limit is not None and count is not None:
            count = min(count, limit - len(examples))
        examples += draw(part, count=count)
    return ExampleSet(tuple(examples), name=f"{kind}/{split}")


def check_failures(
    name: str, usable: int, skipped: Sequence[Skipped], max_failures: float, ledger: Path | None
) -> None:
    """Stop where too many rows of a data set are unusable, or all of them.

    Args:
        name: of the data set, for the message.
        usable: number of rows that can be used.
        skipped: the others.
        max_failures: largest share of them, 0 to 1.
        ledger: where they are listed, for the message.

    Raises:
        UnusableRowsError: too many are.
    """
    total = usable + len(skipped)
    if total == 0:
        raise UnusableRowsError(f"{name} has no rows.")
    # No usable row is an error even where every failure is allowed.
    if usable and len(skipped) <= max_failures * total:
        return
    first = "; ".join(f"{row.id}: {row.status}, {row.reason}" for row in skipped[:3])
    raise UnusableRowsError(
        f"{name}: {len(skipped)} of {total} rows cannot be used ({len(skipped) / total:.1%}, "
        f"allowed {max_failures:.1%}): {first}{' ...' if skipped[3:] else ''}. "
        f"The whole list is in {ledger or 'the error, `error.skipped`; pass ledger=PATH to keep it'}.",
        tuple(skipped),
    )


def write_skipped_rows(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write skipped rows as JSON lines; an empty file where there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": row.id, "status": row.status, "reason": row.reason}) for row in skipped]
    write_atomically(path, "".join(f"{line}\n" for line in lines))
