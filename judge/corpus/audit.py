"""Read a corpus back: whether every row of its plan is there, once, with the picture that its label is about."""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from judge.errors import CorpusError

from .builder import LEDGER, SHARDS
from .ledger import Ledger


@dataclass(frozen=True)
class Audit:
    """What became of the rows of a corpus."""

    rows: int
    """In the ledger, adversarial variants among them."""
    in_shards: int
    failed: int
    """Left out, with a reason."""
    duplicates: int
    """Left out, as another row has nearly the same picture."""
    lost: tuple[str, ...]
    """Ids in no shard, and without a reason for it."""
    doubled: tuple[str, ...]
    """Ids that are in the shards twice, or there although they failed or are duplicates."""
    damaged: tuple[str, ...]
    """Ids whose picture is another one than was labelled."""


def audit_corpus(folder: str | Path) -> Audit:
    """Compare what is in the shards of a corpus, read anew, with its ledger.

    Raises:
        CorpusError: the folder holds no corpus.
    """
    folder = Path(folder)
    if not (folder / LEDGER).is_file():
        raise CorpusError(f"{folder} holds no {LEDGER}; give a folder that `arbiter corpus` wrote.")
    expected, left_out = dict[str, str | None](), Counter[str]()
    with Ledger(folder / LEDGER) as ledger:
        for row in ledger.rows():
            if row.kept:
                expected[row.id] = row.sha256
            else:
                left_out["duplicates" if row.failure is None else "failed"] += 1
    found: Counter[str] = Counter()
    damaged = []
    for path in sorted((folder / SHARDS).iterdir()):
        for row_id, sha256 in _read(path):
            found[row_id] += 1
            if sha256 != expected.get(row_id, sha256):
                damaged.append(row_id)
    return Audit(
        rows=len(expected) + left_out.total(),
        in_shards=found.total(),
        failed=left_out["failed"],
        duplicates=left_out["duplicates"],
        lost=tuple(row_id for row_id in expected if row_id not in found),
        doubled=tuple(row_id for row_id, count in found.items() if count > 1 or row_id not in expected),
        damaged=tuple(damaged),
    )


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """(id, SHA-256 of the picture) of each row of a shard; the id is the record's."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(64, columns=["id", "image"]):
            for record in batch.to_pylist():
                yield record["id"], hashlib.sha256(record["image"]["bytes"]).hexdigest()
        return
    with tarfile.open(path, "r:") as tar:
        row_id = ""
        for member in tar:
            content = tar.extractfile(member)
            data = b"" if content is None else content.read()
            if member.name.endswith(".json"):  # stands before its picture
                row_id = json.loads(data)["id"]
            else:
                yield row_id, hashlib.sha256(data).hexdigest()
