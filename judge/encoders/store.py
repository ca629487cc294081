"""Storage of features: rows of tokens by content hash, in memory or in a folder of shards.

`judge.encoders.features` documents the folder's layout and guarantees.
"""

import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from judge.errors import CheckpointError
from judge.runs.files import write_atomically

SHARD_BYTES = 64 * 2**20
"""Size at which a shard is closed; the most that a killed run loses."""
DTYPE = torch.float16
"""Of stored features, on disk and in memory."""


class Shard:
    """n rows: `pooled` (n, D), `tokens` (M, D) and `offsets` (n + 1,), each loaded on first use."""

    def __init__(self, load: Callable[[str], Tensor]) -> None:
        self._load = load

    @cached_property
    def pooled(self) -> Tensor:
        """(n, D) token 0 of every row."""
        return self._load("pooled")

    @cached_property
    def tokens(self) -> Tensor:
        """(M, D) all other tokens of all rows, concatenated."""
        return self._load("tokens")

    @cached_property
    def offsets(self) -> list[int]:
        """Row i owns tokens[offsets[i]:offsets[i + 1]]; n + 1 numbers."""
        return [int(edge) for edge in self._load("offsets")]


class Store:
    """Rows by content hash, numbered from 0 over all shards, in memory."""

    def __init__(self, width: int, label: str) -> None:
        self.width, self.label = width, label
        self._numbers: dict[bytes, int] = {}
        self._shards: list[Shard] = []
        self._starts: list[int] = []
        self._stored = 0
        self._open_rows: list[Tensor] = []
        self._open_bytes = 0
        self._open_keys: list[tuple[bytes, bytes | None]] = []

    def __contains__(self, key: bytes) -> bool:
        return key in self._numbers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear_open()

    def contains_or_lock(self, key: bytes) -> bool:
        """Whether a row is stored; if not, this process may add it."""
        return key in self

    def number(self, key: bytes) -> int:
        """The number of the row with this content hash or file hash."""
        return self._numbers[key]

    def row(self, number: int) -> tuple[Tensor, Tensor]:
        """Pooled embedding (D,) and other tokens (T, D) of a row, float16."""
        place = bisect_right(self._starts, number) - 1  # the last shard that starts at or before it
        shard, number = self._shards[place], number - self._starts[place]
        return shard.pooled[number], shard.tokens[shard.offsets[number] : shard.offsets[number + 1]]

    def pooled(self, numbers: Tensor) -> Tensor:
        """(N, D) float32 pooled embeddings of N rows."""
        found = torch.empty(len(numbers), self.width)
        # Sorted, so that each shard is read once and in one piece.
        order = numbers.argsort()
        edges = torch.searchsorted(numbers[order], torch.tensor([*self._starts, self._stored])).tolist()
        for shard, start, first, last in zip(self._shards, self._starts, edges, edges[1:], strict=False):
            if first < last:
                mine = order[first:last]
                found[mine] = shard.pooled[numbers[mine] - start].float()
        return found

    def add(self, key: bytes, file: bytes | None, tokens: Tensor) -> None:
        """Add a row (1 + T, D) under its content hash and, if any, its file's hash; `flush` stores it.

        Raises:
            CheckpointError: values beyond the range of float16.
        """
        row = tokens.to(device="cpu", dtype=DTYPE, copy=True)
        if not row.isfinite().all():
            raise CheckpointError(f"The encoder gave {self.label} features that float16 cannot hold.")
        self._register(self._stored + len(self._open_rows), key, file)
        self._open_rows.append(row)
        self._open_keys.append((key, file))
        self._open_bytes += row.nbytes
        if self._open_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Store the open shard."""
        if not self._open_rows:
            return
        lengths = torch.tensor([0, *(len(row) - 1 for row in self._open_rows)])
        tensors = {
            "pooled": torch.stack([row[0] for row in self._open_rows]),
            "tokens": torch.cat([row[1:] for row in self._open_rows]),
            "offsets": lengths.cumsum(0),  # 0, then the end of every row
        }
        # The rows are numbered already; now they get a shard.
        self._append(self._write_shard(tensors), len(self._open_rows))
        self._clear_open()

    def _clear_open(self) -> None:
        self._open_rows, self._open_keys, self._open_bytes = [], [], 0

    def _write_shard(self, tensors: dict[str, Tensor]) -> Shard:
        return Shard(tensors.__getitem__)

    def _append(self, shard: Shard, rows: int) -> None:
        self._shards.append(shard)
        self._starts.append(self._stored)
        self._stored += rows

    def _register(self, number: int, key: bytes, file: bytes | None) -> None:
        self._numbers[key] = number
        if file is not None:
            self._numbers[file] = number


class DiskStore(Store):
    """A store in a folder, shared by processes."""

    def __init__(self, folder: Path, about: Mapping[str, Any], width: int, label: str) -> None:
        super().__init__(width, label)
        self._folder, self._about = folder, about
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"No features can be kept in {folder}: {error.strerror}.") from error
        self._lock = FileLock(folder / ".lock")
        self._end = 0
        """Bytes of the index that this process has read or written."""
        self._refresh()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._lock.release()

    def contains_or_lock(self, key: bytes) -> bool:
        """Whether a row is stored. At the first missing one, wait for the lock and read what others added meanwhile."""
        if key not in self and not self._lock.is_locked:
            try:
                self._lock.acquire()
            except OSError as error:
                raise CheckpointError(
                    f"Features are missing in {self._folder}, which cannot be written to: {error}."
                ) from error
            self._refresh()
        return key in self

    def _refresh(self) -> None:
        """Read the lines added to the index since the last call."""
        index = self._folder / "index.jsonl"
        # Check for the index first: writers create meta.json before it, so an index implies a meta.json.
        has_index, meta = index.exists(), self._folder / "meta.json"
        if meta.exists():
            self._check_meta(meta)
        elif has_index:
            raise self._refused(f"{index} has no meta.json beside it that names the encoder")
        if not has_index:
            return
        with index.open("rb") as file:
            file.seek(self._end)
            new = file.read()
        # A last line without a newline was cut off when a run was killed, or is being written.
        for line in new[: new.rfind(b"\n") + 1].splitlines(keepends=True):
            self._read_line(line)
            self._end += len(line)

    def _check_meta(self, meta: Path) -> None:
        try:
            found = json.loads(meta.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._refused(f"{meta} is not JSON ({error})") from None
        if not isinstance(found, dict):
            raise self._refused(f"{meta} holds {type(found).__name__}, not an object")
        for key, value in self._about.items():
            if key != "encoder" and found.get(key) != value:
                raise self._refused(f"{meta} has {key} {found.get(key)!r}, but this run needs {value!r}")

    def _read_line(self, line: bytes) -> None:
        """Register the rows of one shard, after checking that its file has the recorded size."""
        name = f"{len(self._shards):05}.safetensors"
        path = self._folder / name
        try:
            entry = json.loads(line)
            keys = [bytes.fromhex(key) for key in entry["rows"]]
            files = [None if file is None else bytes.fromhex(file) for file in entry["files"]]
            size, checksums = int(entry["bytes"]), {key: int(crc) for key, crc in entry["crc32"].items()}
            if entry["file"] != name or len(keys) != len(files):
                raise ValueError(f"it does not describe {name}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._refused(f"line {len(self._shards) + 1} of the index is damaged ({error!r})") from None
        if not path.is_file():
            raise self._refused(f"the index names {name}, which is missing")
        if path.stat().st_size != size:
            raise self._refused(f"{name} has {path.stat().st_size:,} bytes, and should have {size:,}")
        for place, (key, file) in enumerate(zip(keys, files, strict=True)):
            self._register(self._stored + place, key, file)
        self._append(Shard(partial(self._load, path, checksums)), len(keys))

    def _load(self, path: Path, checksums: Mapping[str, int], name: str) -> Tensor:
        """Map a tensor of a shard into memory and verify its checksum."""
        try:
            with safe_open(path, framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise self._refused(f"{path.name} cannot be read ({error})") from error
        if _checksum(tensor) != checksums.get(name):
            raise self._refused(f"{name} in {path.name} do not match their checksum")
        return tensor

    def _write_shard(self, tensors: dict[str, Tensor]) -> Shard:
        """Write a shard, then its line of the index; called with the lock held."""
        path = self._folder / f"{len(self._shards):05}.safetensors"
        if not (self._folder / "meta.json").exists():
            write_atomically(self._folder / "meta.json", json.dumps(self._about, indent=2))
        data = save(tensors)
        write_atomically(path, data)
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        entry = {
            "file": path.name,
            "bytes": len(data),
            "crc32": checksums,
            "rows": [key.hex() for key, _ in self._open_keys],
            "files": [file and file.hex() for _, file in self._open_keys],
        }
        line = json.dumps(entry).encode() + b"\n"
        with (self._folder / "index.jsonl").open("ab") as index:
            index.truncate(self._end)  # drops an unfinished line of a killed run
            index.write(line)
            index.flush()
            os.fsync(index.fileno())
        self._end += len(line)
        return Shard(partial(self._load, path, checksums))

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self._folder}: {why}. Delete this folder, or choose another cache.")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().data)
