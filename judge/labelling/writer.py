"""The output of a labelling run: Parquet files of one row an input, and the verdict rows that they hold.

    part-0000012-00003.parquet         rows 3 * part_rows up to 4 * part_rows of shard 12
    part-0000012-00004-end.parquet     its last rows; after it, the shard is finished

A file that has its name is whole: it is written under another one, synchronised and renamed. Readers of folders
(pyarrow, pandas, DuckDB, Spark) skip names that start with `_` or `.`, so the folder is read as one table.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from judge.errors import ConfigError
from judge.runs.files import open_atomically
from prompts.taxonomy import Taxonomy

ABOUT = b"arbiter"
"""Key of a file's metadata: JSON with the plan's `identity`, `time`, `counts`, and by taxonomy what its verdict rows
have in common."""
_NAME = re.compile(r"part-(\d{7,})-(\d{5,})(-end)?\.parquet")


class Part(NamedTuple):
    """One file of the output."""

    shard: int
    number: int
    """Within the shard, from 0."""
    end: bool
    """Whether the shard ends with it."""

    @property
    def name(self) -> str:
        """The file's name."""
        return f"part-{self.shard:07d}-{self.number:05d}{'-end' if self.end else ''}.parquet"


def parts_in(folder: Path) -> list[Part]:
    """The parts that a folder holds, in order."""
    names = filter(None, (_NAME.fullmatch(path.name) for path in folder.iterdir()))
    return sorted(Part(int(name[1]), int(name[2]), bool(name[3])) for name in names)


def remove_parts(folder: Path, parts: Iterable[Part], shard: int) -> None:
    """Remove those of the parts that are of a shard."""
    for part in parts:
        if part.shard == shard:
            (folder / part.name).unlink(missing_ok=True)


def schema(taxonomies: Iterable[Taxonomy]) -> Any:
    """The `pyarrow.Schema` of the output for these taxonomies, whose names differ."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            pa.field("id", text, nullable=False),
            pa.field("source", text, nullable=False),
            pa.field("sha256", text),
            pa.field("status", text, nullable=False),
            pa.field("reason", text),
            pa.field("verdicts", pa.struct([(one.name, verdict_type(one)) for one in taxonomies])),
        ]
    )


def verdict_type(taxonomy: Taxonomy) -> Any:
    """The `pyarrow` type of a verdict under a taxonomy: keys of a verdict row; scores are null where unjudged."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    return pa.struct(
        [
            ("status", text),
            ("flagged", pa.bool_()),
            ("unsafe", number),
            ("category", text),
            ("scores", pa.struct([(name, number) for name in taxonomy.names])),
            ("decided_by", text),
            ("because", text),
            ("reason", text),
            ("note", text),
            ("frame", text),
        ]
    )


class Counts(NamedTuple):
    """Rows by what became of them."""

    statuses: Counter[str]
    verdicts: dict[str, Counter[str]]
    """Taxonomy -> rows by verdict: safe, unsafe, unjudged."""

    def update(self, other: "Counts") -> None:
        """Add other counts."""
        self.statuses.update(other.statuses)
        for name, counts in other.verdicts.items():
            self.verdicts.setdefault(name, Counter()).update(counts)


def count_rows(table: Any) -> Counts:
    """The counts of a `pyarrow.Table` of `schema`."""
    verdicts: dict[str, Counter[str]] = {
        field.name: Counter() for field in table.schema.field("verdicts").type
    }
    for chunk in table["verdicts"].chunks:
        for name, counts in verdicts.items():
            counts.update(chunk.field(name).field("status").to_pylist())
    return Counts(Counter(table["status"].to_pylist()), verdicts)


def write_part(folder: Path, part: Part, tables: Sequence[Any], about: Mapping[str, Any]) -> Counts:
    """Write a part: after this returns it is there whatever happens, before it is not there at all.

    It replaces one of its number, also where one of them is the last of the shard and the other is not.

    Raises:
        OSError: the disk is full, say; nothing is left of the part then.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables(tables)
    counts = count_rows(table)
    table = table.replace_schema_metadata({ABOUT: json.dumps({**about, "counts": counts._asdict()})})
    # Before, so that there is never a moment, or a power cut, with both.
    (folder / part._replace(end=not part.end).name).unlink(missing_ok=True)
    with open_atomically(folder / part.name) as file:
        pq.write_table(table, file, compression="zstd")
    return counts


def read_about(path: Path) -> tuple[dict[str, Any], Counts] | None:
    """The metadata of a part and its counts, which its end says; None where that is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = json.loads(pq.read_schema(path).metadata[ABOUT])
        counts = about["counts"]
        verdicts = {name: Counter(some) for name, some in counts["verdicts"].items()}
        return about, Counts(Counter(counts["statuses"]), verdicts)
    except (OSError, pa.ArrowException, AttributeError, TypeError, LookupError, ValueError):
        return None


def verdict_rows(folder: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The labels as rows of `docs/verdict_row.schema.json`, with the name of the taxonomy that each is about.

    Args:
        folder: the output of `arbiter label`, finished or not.

    Raises:
        ConfigError: the folder holds no labels.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    parts = parts_in(folder) if folder.is_dir() else []
    if not parts:
        raise ConfigError(f"{folder} holds no labels; give the output folder of `arbiter label`.")
    for part in parts:
        with pq.ParquetFile(folder / part.name) as file:
            about = json.loads(file.schema_arrow.metadata[ABOUT])
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    for name, verdict in row["verdicts"].items():
                        yield name, _verdict_row(row, verdict, about["time"], about["taxonomies"][name])


def _verdict_row(
    row: Mapping[str, Any], verdict: dict[str, Any], time: str, common: Mapping[str, Any]
) -> dict[str, Any]:
    scores = {name: score for name, score in verdict["scores"].items() if score is not None}
    frame = verdict.pop("frame")
    # Of an image that no model saw, nothing is known of the model's answers.
    unseen = row["status"] not in ("ok", "model_error")
    return {
        **common,
        **(dict.fromkeys(("evidence", "promise")) if unseen else {}),
        **verdict,
        "time": time,
        "image": {"path": row["id"], "sha256": row["sha256"], "frame": frame},
        "scores": scores,
        "flags": {name: score >= common["thresholds"][name] for name, score in scores.items()},
    }
