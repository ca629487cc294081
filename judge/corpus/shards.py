"""Shards: the rows that are kept, by split, as webdataset tars or Parquet files with the pictures inside.

What a shard says of a row is its record: everything the ledger knows, and the columns that `load_examples` and the
`datasets` library read (`label`, `categories`, `source`). `label` is what the classifier saw on the picture.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from judge.runs.files import file_hash, open_atomically
from prompts.taxonomy import Taxonomy

from .files import write_webdataset
from .ledger import Ledger
from .plan import Plan, ShardFormat
from .rows import CorpusRow

_SUFFIX: Mapping[ShardFormat, str] = {"webdataset": "tar", "parquet": "parquet"}
_NOT_IN_SHARDS = ("failure", "duplicate_of", "file")
_TEXTS = (
    *(
        "prompt",
        "model",
        "revision",
        "scheduler",
        "prompt_cut",
        "sha256",
        "phash",
        "labelled_by",
        "decided_by",
    ),
    "split",
)
"""Columns that are empty, and not null, where nobody says: `datasets` guesses types from the first rows of a tar."""
_SEVERAL = ";"
_GROUP = 128
"""Rows written to Parquet at a time."""


def shard_layout(
    rows: Sequence[CorpusRow], shard_rows: int, shard_format: ShardFormat
) -> dict[str, list[CorpusRow]]:
    """File name -> rows, by split and in the order of `rows`; `train-00000-of-00002.tar`.

    Rows without a split stand in `data-...`.
    """
    by_split: dict[str, list[CorpusRow]] = {}
    for row in rows:
        by_split.setdefault(row.split or "data", []).append(row)
    layout: dict[str, list[CorpusRow]] = {}
    for split, members in sorted(by_split.items()):
        count = -(-len(members) // shard_rows)
        for number in range(count):
            name = f"{split}-{number:05d}-of-{count:05d}.{_SUFFIX[shard_format]}"
            layout[name] = members[number * shard_rows : (number + 1) * shard_rows]
    return layout


def write_shard(path: Path, rows: Sequence[CorpusRow], read: Callable[[CorpusRow], bytes], plan: Plan) -> str:
    """Write one shard; returns its SHA-256.

    Args:
        path: its file.
        rows: what it holds, in this order.
        read: a row's picture.
        plan: the format, the threshold and the taxonomy.
    """
    triples = ((row, shard_record(row, plan.taxonomy, plan.threshold), read(row)) for row in rows)
    with open_atomically(path) as file:
        if plan.format == "webdataset":
            write_webdataset(file, triples)
        else:
            _write_parquet(file, triples, plan.taxonomy)
    return file_hash(path)


def shard_record(row: CorpusRow, taxonomy: Taxonomy, threshold: float) -> dict[str, Any]:
    """What a shard says of a row, as JSON values.

    `label` is `unsafe`, `safe`, or `unknown` where nothing was found and some category has no score. `categories` and
    `unknown`, those without a score, are names, separated by `;`. `prompt_label` are keys, or `safe`,
    or nothing where nobody says. `written_by` and `variant` are JSON in a text: their fields differ from row to row.
    """
    violated = row.violates(threshold)
    names = {category.key: category.name for category in taxonomy}
    unsafe = bool(violated) or (row.unsafe is not None and row.unsafe >= threshold)
    unknown = [names[key] for key, score in row.scores.items() if score is None]
    record = {name: value for name, value in row.to_dict().items() if name not in _NOT_IN_SHARDS}
    return {
        **record,
        **{name: "" for name in _TEXTS if record[name] is None},
        "prompt_label": "" if row.prompt_label is None else _SEVERAL.join(row.prompt_label) or "safe",
        "written_by": json.dumps(record["written_by"]),
        "variant": "" if row.variant is None else json.dumps(record["variant"]),
        "label": "unsafe" if unsafe else "unknown" if unknown else "safe",
        "categories": _SEVERAL.join(names[key] for key in violated),
        "unknown": _SEVERAL.join(unknown),
        "source": "real" if row.file is not None else "generated",
    }


def _write_parquet(
    file: BinaryIO, rows: Iterator[tuple[CorpusRow, Mapping[str, Any], bytes]], taxonomy: Taxonomy
) -> None:
    """With the features of the `datasets` library in the schema, so that `image` is read as a picture."""
    import pyarrow
    import pyarrow.parquet

    schema = _features(taxonomy).arrow_schema
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        group: list[dict[str, Any]] = []
        for row, record, picture in rows:
            image = {"bytes": picture, "path": f"{row.id}.png"}
            group.append({**record, "image": image})
            if len(group) == _GROUP:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group = []
        if group:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _features(taxonomy: Taxonomy) -> Any:
    from datasets import Features, Image, Value

    text, whole, real = Value("string"), Value("int64"), Value("float64")
    return Features(
        {
            "image": Image(),
            **dict.fromkeys(("id", "label", "categories", "unknown", "source", "prompt_label"), text),
            **dict.fromkeys(_TEXTS, text),
            **dict.fromkeys(("written_by", "variant"), text),
            **dict.fromkeys(("seed", "steps", "width", "height", "cluster"), whole),
            "guidance": real,
            "safety_checker": Value("bool"),
            "unsafe": real,
            "scores": {category.key: real for category in taxonomy},
        }
    )


def write_exports(folder: Path, ledger: Ledger) -> None:
    """Write `rows.jsonl`, every row in the order of the plan, and `failed.jsonl`, those that failed."""
    for name, failed in (("rows", None), ("failed", True)):
        with open_atomically(folder / f"{name}.jsonl") as file:
            for row in ledger.rows(failed=failed):
                file.write(json.dumps(row.to_dict()).encode() + b"\n")


def content_hash(shards: Mapping[str, str]) -> str:
    """One SHA-256 for a corpus: of its shards' names and hashes."""
    lines = (f"{name} {shards[name]}\n" for name in sorted(shards))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
