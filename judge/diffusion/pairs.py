"""Pairs of a prompt and a seed, and what was seen while their pictures were made: the data that detectors learn from.

    pairs.jsonl       one pair a line: prompt, seed, kind, split
    store.json        pipeline, steps, layers, taxonomy, who labelled, shapes; written before any row
    labels.npy        (N, K) float32 scores of the finished pictures, NaN where unknown
    done.npy          (N,) bool, whether a row is complete
    text.npy          (P, L, E) float16 embeddings of the P different prompts, in order of their first pair
    final.npy         (N, C, H, W) float16 finished latents
    features.npy      (N, 1 + P, D) float16 tokens of the finished pictures, where an image encoder was given
    step_SS.X.npy     (N, ...) float16 of the look after step SS: `clean`, `noise`, the tokens of each layer, and, where
                      asked for, `perceived`: tokens of the predicted picture in the image encoder

Arrays are mapped, and rows are read as they are asked for, unless `load` was called. A row's flag in `done.npy` is set
after everything else of it has been written, so a store that was killed goes on where it stopped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from judge.errors import CheckpointError, ConfigError
from judge.runs.files import write_atomically
from prompts.taxonomy import taxonomy_from_data

from .look import Look

PAIRS, STORE = "pairs.jsonl", "store.json"
FORMAT = 1


@dataclass(frozen=True)
class Pair:
    """One picture to make: its noise comes from its own seed alone."""

    prompt: str
    seed: int
    kind: str = "named"
    """What the prompt tells of the picture, such as `named` or `vague`; results are counted by it."""
    split: str = "train"
    """`train` or `test`; all pairs of a prompt have the same."""


def split_by_prompt(pairs: Sequence[Pair], split: str) -> list[int]:
    """Rows of a split.

    Raises:
        ConfigError: a prompt has pairs in several splits, so that testing would reward its memory.
    """
    splits: dict[str, str] = {}
    for pair in pairs:
        if splits.setdefault(pair.prompt, pair.split) != pair.split:
            raise ConfigError(
                f"The prompt {pair.prompt!r} is in the splits {splits[pair.prompt]!r} and {pair.split!r}; "
                "put all pairs of a prompt into one."
            )
    return [row for row, pair in enumerate(pairs) if pair.split == split]


class PairStore:
    """A folder of pairs, labels and looks. `collect.collect_pairs` fills it; the constructor opens it.

    Raises:
        CheckpointError: the folder holds no store, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / STORE).read_text(encoding="utf-8"))
            lines = (self.folder / PAIRS).read_text(encoding="utf-8").splitlines()
            self.pairs = tuple(Pair(**json.loads(line)) for line in lines)
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
            self.taxonomy = taxonomy_from_data(about["taxonomy"], str(self.folder / STORE))
            self.steps = int(about["steps"])
            self.timesteps = int(about.get("timesteps", self.steps))
            """Steps that were made; some schedulers make more than they are asked for."""
            self.at = tuple(int(step) for step in about["at"])
            self.layers = tuple(str(layer) for layer in about["layers"])
            self.log_snrs = {int(step): float(value) for step, value in about["log_snrs"].items()}
            self.about: dict[str, Any] = about
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder} holds no readable store of pairs: {error}.") from error
        places: dict[str, int] = {}
        self._texts = np.array([places.setdefault(pair.prompt, len(places)) for pair in self.pairs], np.int64)

    def __len__(self) -> int:
        return len(self.pairs)

    def array(self, name: str, *, write: bool = False) -> "np.memmap[Any, Any]":
        """A mapped array of the store, such as `labels` or `step_04.clean`.

        Raises:
            CheckpointError: there is none of this name.
        """
        try:
            found: np.memmap[Any, Any] = np.load(
                self.folder / f"{name}.npy", mmap_mode="r+" if write else "r", allow_pickle=False
            )
            return found
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.folder} has no array {name!r}: {error}.") from error

    @property
    def labels(self) -> NDArray[np.float32]:
        """(N, K) scores of the finished pictures in [0, 1]; NaN where unknown, never taken from the prompt."""
        return np.array(self.array("labels"))

    @property
    def done(self) -> NDArray[np.bool_]:
        """(N,) whether a row is complete."""
        return np.array(self.array("done"))

    def has(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return (self.folder / f"{name}.npy").exists()

    def rows(self, split: str | None = None, kind: str | None = None) -> NDArray[np.int64]:
        """Complete rows of a split and a kind, or of all."""
        wanted = [
            (split is None or pair.split == split) and (kind is None or pair.kind == kind)
            for pair in self.pairs
        ]
        return np.flatnonzero(np.array(wanted, bool) & self.done)

    def look(self, rows: Sequence[int] | NDArray[np.int64], step: int) -> Look:
        """What some pictures showed after a step, as float32.

        Raises:
            ConfigError: nothing was kept of this step.
        """
        if step not in self.at:
            raise ConfigError(f"This store looked after the steps {self.at}, not after step {step}.")
        rows = np.asarray(rows, np.int64)
        clean, noise = self._floats(f"{_step(step)}.clean", rows), self._floats(f"{_step(step)}.noise", rows)
        log_snr = self.log_snrs[step]
        # Signal power + noise power = 1, so the latents that entered the step follow from both predictions.
        signal = torch.sigmoid(torch.tensor(log_snr))
        return Look(
            step=step,
            steps=self.timesteps,
            log_snr=log_snr,
            noisy=signal.sqrt() * clean + (1 - signal).sqrt() * noise,
            noise=noise,
            clean=clean,
            tokens={name: self._floats(f"{_step(step)}.{name}", rows) for name in self.layers},
            text=self.floats_of_prompts(rows),
            prompts=tuple(self.pairs[row].prompt for row in rows),
        )

    def floats(self, name: str, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Some rows of an array, such as `final`, as float32."""
        return self._floats(name, np.asarray(rows, np.int64))

    def floats_of_prompts(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(R, L, E) embeddings of some rows' prompts."""
        return self._floats("text", self._texts[np.asarray(rows, np.int64)])

    def _floats(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        if name not in self._arrays:
            self._arrays[name] = self.array(name)
        return torch.from_numpy(np.asarray(self._arrays[name][rows], np.float32))

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def load(self) -> None:
        """Keep all arrays in memory, where half of what is free is enough; else they stay mapped.

        Rows that are drawn at random from a disk take ten times as long as learning from them.
        """
        files = sorted(self.folder.glob("*.npy"))
        if 2 * sum(file.stat().st_size for file in files) <= psutil.virtual_memory().available:
            self._arrays.update({file.stem: np.load(file, allow_pickle=False) for file in files})

    def write(self, rows: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays of some rows by name, and then mark these rows as done."""
        for name, value in values.items():
            array = self.array(name, write=True)
            array[self._texts[rows] if name == "text" else rows] = value
            array.flush()
        done = self.array("done", write=True)
        done[rows] = True
        done.flush()


def create_store(folder: Path, pairs: Sequence[Pair], about: Mapping[str, Any]) -> None:
    """Write what describes a store; `store.json` last, so that a folder with one is whole.

    Args:
        folder: made if it is not there.
        pairs: N of them.
        about: as `collect.collect_pairs` describes it, with `shapes`: name of an array -> shape of a row and dtype.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split_by_prompt(pairs, "train")
    lines = "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    write_atomically(folder / PAIRS, lines)
    for name, (shape, dtype) in about["shapes"].items():
        rows = len({pair.prompt for pair in pairs}) if name == "text" else len(pairs)
        array = np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.dtype(dtype), shape=(rows, *shape)
        )
        if name == "labels":
            array[:] = np.nan
        array.flush()
    write_atomically(folder / STORE, json.dumps({"format": FORMAT, **about}, indent=2, ensure_ascii=False))


def same_pairs(folder: Path, pairs: Sequence[Pair]) -> bool:
    """Whether the store in a folder is of these pairs, in this order."""
    return PairStore(folder).pairs == tuple(pairs)


def _step(step: int) -> str:
    return f"step_{step:02d}"
