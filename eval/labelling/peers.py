"""What people do without `arbiter label`: a loop of their own over the same images, with the same model and threads.

None of them keeps one row an input through damaged images, resumes, or guards against what a decoder does.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from judge.encoders.dual import DualEncoder
from judge.student.student import Student
from prompts.taxonomy import Taxonomy

Peer = Callable[[Student, Sequence[Path], Taxonomy, int, int, Path], None]
"""Labels files under a taxonomy in batches, with so many processes that load them, into a Parquet file."""


def data_loader(
    student: Student, paths: Sequence[Path], taxonomy: Taxonomy, batch_size: int, workers: int, out: Path
) -> None:
    """A torch DataLoader that opens images in processes of its own, and `score` on each batch."""
    loader = torch.utils.data.DataLoader(
        _Files(paths), batch_size=batch_size, num_workers=workers, collate_fn=list
    )
    scores = [student.score(images, None, taxonomy) for images in loader]
    _write(out, paths, np.concatenate([one.categories for one in scores]))


def datasets_map(
    student: Student, paths: Sequence[Path], taxonomy: Taxonomy, batch_size: int, workers: int, out: Path
) -> None:
    """`datasets.Dataset.map` with `score` on each batch, in one process as there is one model."""
    import datasets

    def score(batch: dict[str, Any]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch["image"]]
        return {"scores": student.score(images, None, taxonomy).categories}

    names = {"id": [path.name for path in paths], "image": [str(path) for path in paths]}
    rows = datasets.Dataset.from_dict(names).cast_column("image", datasets.Image())
    datasets.disable_progress_bars()
    try:
        # Never from a cache of an earlier call.
        scored = rows.map(
            score, batched=True, batch_size=batch_size, remove_columns=["image"], load_from_cache_file=False
        )
        scored.to_parquet(str(out))
    finally:
        datasets.enable_progress_bars()


def pooled_head(
    student: Student, paths: Sequence[Path], taxonomy: Taxonomy, batch_size: int, workers: int, out: Path
) -> None:
    """clip-retrieval's shape: preprocessing in the DataLoader's processes, and one product on the pooled vector.

    Its head reads no definitions, so it is the least that any loop around this encoder costs.
    """
    encoder: DualEncoder = student.encoder
    head = torch.randn(encoder.width, len(taxonomy), generator=torch.Generator().manual_seed(0))
    files = _Files(paths, lambda image: encoder.pixel_values([image])[0])
    loader = torch.utils.data.DataLoader(files, batch_size=batch_size, num_workers=workers)
    with torch.inference_mode():
        scores = [(encoder.encode_pixel_values(pixels)[:, 0] @ head).sigmoid() for pixels in loader]
    _write(out, paths, torch.cat(scores).double().numpy())


PEERS: dict[str, Peer] = {
    "DataLoader and score": data_loader,
    "datasets.map and score": datasets_map,
    "DataLoader, encoder and a head on the pooled vector": pooled_head,
}


def rate(
    peer: Peer, student: Student, folder: Path, taxonomy: Taxonomy, batch_size: int, workers: int, out: Path
) -> float:
    """Images a second of a peer on all files of a folder, from their listing to the Parquet file."""
    begun = time.perf_counter()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    peer(student, paths, taxonomy, batch_size, workers, out)
    return len(paths) / (time.perf_counter() - begun)


class _Files(torch.utils.data.Dataset[Any]):
    """Files as RGB images, or what a function makes of those."""

    def __init__(
        self, paths: Sequence[Path], then: Callable[[Image.Image], Any] = lambda image: image
    ) -> None:
        self.paths, self.then = paths, then

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.then(image.convert("RGB"))

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _write(out: Path, paths: Sequence[Path], scores: Any) -> None:
    """A Parquet file of (N, K) scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [path.name for path in paths], "scores": list(scores)}), out)
