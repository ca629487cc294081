"""Features of a frozen encoder, computed once and cached on disk.

    CACHE/<first 16 digits of the encoder's fingerprint>/image/      (and text/)
        meta.json            encoder, width and dtype of these features
        index.jsonl          one line per shard: its file, size, checksums, and the content hash of every row
        00000.safetensors    pooled (n, D), tokens (M, D), offsets (n + 1,), in the order of the index

Rows are addressed by content: `judge.data.images.pixels_hash` of an image, SHA-256 of a text. A shard is written to a
temporary file, synchronised and renamed, and then entered in the index: a killed run loses only the shard it was
filling. A process that misses a row takes the folder's lock and encodes it; other processes (of `accelerate launch`,
say) wait for the lock and find the row. A cache of another encoder or format is refused.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

from judge.data.images import open_image, pixels_hash, read_bytes
from judge.errors import ImageError
from prompts.example import Example

from .dual import DualEncoder
from .store import DTYPE, DiskStore, Store

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 1
"""Version of the folder's layout; others are refused."""
Wanted = tuple[bytes, bytes | None, Any]
"""Content hash of a row, hash of the file it came from (if any), and what to encode (None if it is cached)."""


class TokenTable:
    """N rows of tokens in the joint space; those on disk are memory-mapped."""

    def __init__(self, store: Store, rows: Sequence[int]) -> None:
        """`rows` are numbers in the store; `encode_images` and `encode_texts` build tables."""
        self._store = store
        self._rows = torch.tensor(rows, dtype=torch.long)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of B rows: (B, T, D) float32, zeros at padding, and mask (B, T) bool.

        Token 0 of a row is its pooled embedding.

        Raises:
            IndexError: no such row.
            CheckpointError: a shard is damaged.
        """
        index = torch.as_tensor(indices).flatten()
        if index.dtype is torch.bool:
            raise IndexError("Rows are taken by number, not by a mask; use mask.nonzero().")
        chosen = self._rows[index.long().cpu()].tolist()
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for row in sorted(set(chosen)):  # duplicates once, in the order on disk
            found[row] = self._store.row(row)
        # The pooled embedding and the row's tokens, (1 + T, D), padded to the longest row of the batch.
        lengths = torch.tensor([1 + len(found[row][1]) for row in chosen], dtype=torch.long)
        longest = int(lengths.max()) if chosen else 1
        tokens = torch.zeros(len(chosen), longest, self._store.width)
        for place, row in enumerate(chosen):
            tokens[place, 0], tokens[place, 1 : lengths[place]] = found[row]
        return tokens, torch.arange(longest) < lengths[:, None]

    @cached_property
    def pooled(self) -> Tensor:
        """(N, D) float32: token 0 of every row."""
        return self._store.pooled(self._rows)


def encode_images(
    encoder: DualEncoder,
    examples: Sequence[Example],
    *,
    cache: Path | None,
    batch_size: int = 64,
    progress: bool = True,
) -> TokenTable:
    """Pooled embedding and patches of the examples' images, cached ones without encoding.

    Equal images are encoded and stored once. Files of cached rows are recognised by their bytes and not decoded again.

    Args:
        encoder: a loaded encoder. Features are tied to its fingerprint, whatever dtype it computes in.
        examples: in the order of the table's rows.
        cache: folder for the caches of all encoders; None keeps the features in memory.
        batch_size: images in one forward pass.
        progress: show a progress bar.

    Raises:
        ImageError: an image cannot be opened; the reason names the example. `load_examples` skips such examples.
        CheckpointError: the cache is damaged or belongs to something else.
    """
    store = _open(encoder, cache, "image")

    def encode(images: "list[Image]") -> Iterator[Tensor]:
        yield from encoder.encode_images(images)

    wanted = (_picture(example, store) for example in examples)
    return _table(store, wanted, len(examples), encode, batch_size, progress)


def encode_texts(
    encoder: DualEncoder,
    texts: Sequence[str],
    *,
    cache: Path | None,
    batch_size: int = 256,
    progress: bool = False,
) -> TokenTable:
    """Pooled embedding and tokens of texts, like `encode_images`; equal texts share a row.

    A call with a missing text writes at least one shard, so pass many texts at once.

    Raises:
        CheckpointError: as for images; or a text is longer than `MAX_WINDOWS` windows.
    """
    store = _open(encoder, cache, "text")

    def encode(batch: list[str]) -> Iterator[Tensor]:
        tokens, mask = encoder.encode_texts(batch)
        for row, own in zip(tokens, mask, strict=True):
            yield row[own]

    wanted = ((hashlib.sha256(t.encode("utf-8", "surrogatepass")).digest(), None, t) for t in texts)
    return _table(store, wanted, len(texts), encode, batch_size, progress)


def _picture(example: Example, store: Store) -> Wanted:
    """Hash and open an example's image; a file whose row is cached is not opened."""
    try:
        if not hasattr(example.image, "mode"):  # a path or encoded bytes, no PIL image
            data = read_bytes(example.image)
            file = hashlib.sha256(b"file\n" + data).digest()  # prefixed: never equal to a hash of pixels
            if file in store:
                return file, None, None
            image = open_image(data)
            return bytes.fromhex(pixels_hash(image)), file, image
        image = open_image(example.image)
        return bytes.fromhex(pixels_hash(image)), None, image
    except ImageError as error:
        raise ImageError(error.status, f"{error.reason} (example {example.id})") from error


def _table(
    store: Store,
    wanted: Iterable[Wanted],
    count: int,
    encode: Callable[[list[Any]], Iterator[Tensor]],
    batch_size: int,
    progress: bool,
) -> TokenTable:
    """Encode the rows that the store lacks, and return the table of all `wanted` rows."""
    keys: list[bytes] = []
    batch: dict[bytes, tuple[bytes | None, Any]] = {}

    def encode_batch() -> None:
        rows = encode([item for _, item in batch.values()])
        for (key, (file, _)), row in zip(batch.items(), rows, strict=True):
            store.add(key, file, row)
        batch.clear()

    bar = tqdm(total=count, desc=f"encoding {store.label}", disable=not progress, leave=False, delay=1)
    with store, bar:  # leaving the store releases its lock
        for key, file, item in wanted:
            keys.append(key)
            if not store.contains_or_lock(key):  # a duplicate within the batch overwrites itself
                batch[key] = file, item
                if len(batch) >= batch_size:
                    encode_batch()
            bar.update()
        if batch:
            encode_batch()
        store.flush()
    return TokenTable(store, [store.number(key) for key in keys])


def _open(encoder: DualEncoder, cache: Path | None, kind: str) -> Store:
    label = {"image": "images", "text": "texts"}[kind]
    if cache is None:
        return Store(encoder.width, label)
    about = {
        "format": FORMAT,
        "kind": kind,
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "width": encoder.width,
        "dtype": str(DTYPE).removeprefix("torch."),
    }
    return DiskStore(Path(cache) / encoder.fingerprint[:16] / kind, about, encoder.width, label)
