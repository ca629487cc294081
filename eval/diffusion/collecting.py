"""Making the pictures of many pairs, in this process or shared among several.

A small model leaves most of a machine idle in one process, whatever its number of threads: its operations are too short
to be shared. So on a CPU each process makes a part of the pictures with its own copy of the pipeline.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from judge.classifiers import load_classifier
from judge.diffusion.collect import collect_pairs
from judge.diffusion.pairs import Pair, PairStore
from judge.diffusion.pipelines import load_pipeline
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Making:
    """How pictures are made and labelled: names, from which another process can load everything again."""

    pipeline: str
    labeller: str
    taxonomy: Taxonomy
    steps: int
    at: tuple[int, ...]
    guidance: float
    layers: tuple[str, ...]
    encoder: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    revision: str = ""
    batch_size: int = 32

    def load_pipeline(self) -> Any:
        """The pipeline."""
        return load_pipeline(self.pipeline, device=self.device, dtype=self.dtype, revision=self.revision)

    def load_labeller(self) -> Classifier:
        """The classifier of finished pictures."""
        return load_classifier(self.labeller, device=self.device)

    def load_encoder(self) -> DualEncoder | None:
        """The image-text encoder whose view of finished pictures is kept; None for none."""
        return None if self.encoder is None else DualEncoder.load(self.encoder)


def collect(
    making: Making,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    pipeline: Any,
    labeller: Classifier,
    encoder: DualEncoder | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> PairStore:
    """Fill the store of a folder with the pictures of these pairs; what is there already is kept.

    Args:
        making: how.
        pairs: N of them.
        folder: of the store.
        pipeline: of `making`, loaded; this process makes its part with it.
        labeller: the same.
        encoder: the same.
        processes: that share the work, this one among them; the others load the pipeline anew.
        progress: called with (pictures done, N).

    Raises:
        CheckpointError: the folder holds another collection, or another process failed.
    """
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_other, args=(making, pairs, folder, (number, processes)), daemon=True)
        for number in range(1, processes)
    ]

    def check(done: int, total: int) -> None:
        if failed := [other.exitcode for other in others if other.exitcode not in (None, 0)]:
            raise CheckpointError(
                f"A process that made pictures ended with code {failed[0]}; its error stands above. What was made is "
                f"in {folder}; the same command with --resume true goes on."
            )
        if progress is not None:
            progress(done, total)

    try:
        for other in others:
            other.start()
        with _threads(processes):
            store = _make(making, pairs, folder, pipeline, labeller, encoder, (0, processes), check)
        for other in others:
            other.join()
        check(int(store.done.sum()), len(pairs))
    finally:
        for other in others:
            if other.pid is not None:
                other.terminate()
                other.join()
    return PairStore(folder)


def _make(
    making: Making,
    pairs: Sequence[Pair],
    folder: Path,
    pipeline: Any,
    labeller: Classifier,
    encoder: DualEncoder | None,
    part: tuple[int, int],
    progress: Progress,
) -> PairStore:
    return collect_pairs(
        pipeline,
        pairs,
        labeller,
        making.taxonomy,
        folder,
        steps=making.steps,
        at=making.at,
        guidance=making.guidance,
        batch_size=making.batch_size,
        layers=making.layers,
        encoder=encoder,
        part=part,
        progress=progress,
    )


def _other(making: Making, pairs: Sequence[Pair], folder: Path, part: tuple[int, int]) -> None:
    """Another process: load everything, and make a part of the pictures."""
    parent = multiprocessing.parent_process()

    def check(*_: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)  # it was killed; whoever goes on makes the rest

    with _threads(part[1]):
        loaded = making.load_pipeline(), making.load_labeller(), making.load_encoder()
        _make(making, pairs, folder, *loaded, part, check)


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """Share the threads of one process among several."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)
