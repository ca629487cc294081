"""Making the pictures of many pairs, in this process or shared among several.

A small model leaves most of a machine idle in one process, whatever its number of threads: its operations are too short
to be shared. So on a CPU each process makes a part of the pictures with its own copy of the pipeline.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from judge.classifiers import load_classifier
from judge.diffusion.collect import collect_pairs
from judge.diffusion.pairs import Pair, PairStore
from judge.diffusion.pipelines import load_pipeline
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

from .contestants import choose_layers

Progress = Callable[[int, int], None]


class Loaded(NamedTuple):
    """What makes pictures and labels them."""

    pipeline: Any
    labeller: Classifier
    encoder: DualEncoder | None


@dataclass(frozen=True)
class Making:
    """How pictures are made and labelled: names, from which another process can load everything again."""

    pipeline: str
    labeller: str
    taxonomy: Taxonomy
    steps: int
    at: tuple[int, ...]
    guidance: float
    layers: tuple[str, ...] = ()
    """As `contestants.choose_layers` reads it."""
    encoder: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    revision: str = ""
    batch_size: int = 32

    def load(self) -> Loaded:
        """Everything, in this process."""
        return Loaded(
            load_pipeline(self.pipeline, device=self.device, dtype=self.dtype, revision=self.revision),
            load_classifier(self.labeller, device=self.device),
            None if self.encoder is None else DualEncoder.load(self.encoder),
        )


def collected_before(folder: str | Path, taxonomy: Taxonomy, at: Sequence[int]) -> PairStore:
    """A store that is there already.

    Raises:
        CheckpointError: there is none.
        ConfigError: it was labelled under another taxonomy, or nobody looked after one of the steps `at`.
    """
    store = PairStore(folder)
    if store.taxonomy.hash != taxonomy.hash:
        raise ConfigError(
            f"{folder} was labelled under {store.taxonomy.name!r}, or another version of it, not under "
            f"{taxonomy.name!r}; give its taxonomy, or collect anew."
        )
    if missing := [step for step in at if step not in store.at]:
        looked = ", ".join(map(str, store.at))
        raise ConfigError(f"at names step {missing[0]}; {folder} holds looks after the steps {looked}.")
    return store


def collect(
    making: Making,
    pairs: Sequence[Pair],
    folder: Path,
    loaded: Loaded,
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> PairStore:
    """Fill the store of a folder with the pictures of these pairs; what is there already is kept.

    Args:
        making: how.
        pairs: N of them.
        folder: of the store.
        loaded: by `making`; this process makes its part with it.
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
            store = _make(making, pairs, folder, loaded, (0, processes), check)
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
    loaded: Loaded,
    part: tuple[int, int],
    progress: Progress,
) -> PairStore:
    return collect_pairs(
        loaded.pipeline,
        pairs,
        loaded.labeller,
        making.taxonomy,
        folder,
        steps=making.steps,
        at=making.at,
        guidance=making.guidance,
        batch_size=making.batch_size,
        layers=choose_layers(loaded.pipeline, making.layers),
        encoder=loaded.encoder,
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
        _make(making, pairs, folder, making.load(), part, check)


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """Share the threads of one process among several."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)
