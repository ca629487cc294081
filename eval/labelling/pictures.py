"""Small distinct images, and what `arbiter label` reads: tars, a folder, Parquet, JSON lines of them."""

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

Kind = Literal["tar", "images", "parquet", "jsonl"]
KINDS: tuple[Kind, ...] = ("tar", "images", "parquet", "jsonl")
SIDES = (48, 97)
"""Pixels: the shortest and, less one, the longest side."""
_GRAIN = 6
"""Squares of one colour along each side, before they are smoothed."""


class Picture(NamedTuple):
    """An encoded image."""

    name: str
    """With the suffix of its format."""
    data: bytes


def pictures(count: int, seed: int = 0) -> Iterator[Picture]:
    """Distinct colourful images, JPEG and PNG in turns."""
    for number in range(count):
        draw = np.random.default_rng((seed, number))
        width, height = draw.integers(*SIDES, size=2)
        coarse = Image.fromarray(draw.integers(0, 256, (_GRAIN, _GRAIN, 3), dtype=np.uint8))
        image = coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC)
        suffix = ".jpg" if number % 2 else ".png"
        yield Picture(f"{number:08d}{suffix}", encoded(image, suffix))


def encoded(image: Image.Image, suffix: str) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    if suffix == ".jpg":
        image.save(buffer, "JPEG", quality=90)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_input(kind: Kind, folder: Path, count: int, seed: int = 0, shard: int = 5000) -> None:
    """Write so many images as an input of `arbiter label`.

    Args:
        kind: what it is made of.
        folder: made anew, or filled up.
        count: images.
        seed: of the images.
        shard: images of one file (or of one folder inside the folder).
    """
    write: dict[Kind, Callable[[Path, list[Picture]], None]] = {
        "tar": write_tar,
        "images": write_files,
        "parquet": write_parquet,
        "jsonl": write_jsonl,
    }
    folder.mkdir(parents=True, exist_ok=True)
    left = pictures(count, seed)
    number = 0
    while some := list(islice(left, shard)):
        write[kind](folder / f"shard-{number:06d}", some)
        number += 1


def write_tar(path: Path, some: list[Picture]) -> None:
    """A tar of webdataset samples."""
    with tarfile.open(path.with_suffix(".tar"), "w") as tar:
        for picture in some:
            member = tarfile.TarInfo(picture.name)
            member.size = len(picture.data)
            tar.addfile(member, io.BytesIO(picture.data))


def write_files(path: Path, some: list[Picture]) -> None:
    """A folder of files."""
    path.mkdir(exist_ok=True)
    for picture in some:
        (path / picture.name).write_bytes(picture.data)


def write_parquet(path: Path, some: list[Picture]) -> None:
    """A table with columns `id` and `image`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": [picture.name for picture in some], "image": [picture.data for picture in some]}
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"), compression="none", row_group_size=1000)


def write_jsonl(path: Path, some: list[Picture]) -> None:
    """JSON lines, the images as base64."""
    with path.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for picture in some:
            row = {"id": picture.name, "image": base64.b64encode(picture.data).decode()}
            file.write(json.dumps(row) + "\n")
