"""The detectors that are compared: built to fit a store, trained on it, and kept as folders."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from judge.diffusion.cross_attention import InLoopDetector
from judge.diffusion.first_noise import NoiseDetector
from judge.diffusion.latent_colours import FlowGuardDetector
from judge.diffusion.layouts import attention_layers
from judge.diffusion.learned import LearnedDetector
from judge.diffusion.pairs import PairStore
from judge.diffusion.saved import ABOUT, load_detector, save_detector
from judge.diffusion.text_alone import PromptOnly
from judge.diffusion.training import TrainingOptions, train_detector
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from prompts.names import nearest

from .comparison import DETECTOR, TEXT

EVERY_LAYER = "all"
Progress = Callable[[int, float, float], None]


def choose_layers(pipeline: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Names of attention layers to read: those given, `all`, or, without any, the one in the middle of the depth.

    Raises:
        ConfigError: a name that the pipeline lacks.
    """
    known = list(attention_layers(pipeline))
    if list(names) == [EVERY_LAYER]:
        return tuple(known)
    if not names:
        middle = [name for name in known if "mid_block" in name] or known
        return (middle[len(middle) // 2],)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"layers names {name!r}, which the pipeline lacks{nearest(name, known)}; there are {', '.join(known)}."
            )
    return tuple(dict.fromkeys(names))


def untrained(who: str, pipeline: Any, store: PairStore, categories: int, joint: int) -> LearnedDetector:
    """A detector of a family that fits a store.

    Args:
        who: `detector`, `text`, `flowguard` or `ndm`.
        pipeline: that made the pictures.
        store: for its sizes.
        categories: N that it will be trained on.
        joint: width of the store's features of finished pictures, where it has any.
    """
    shape = tuple(int(size) for size in store.array("final").shape[1:])  # (C, H, W)
    if who == TEXT:
        return PromptOnly(pipeline, int(store.array("text").shape[-1]), categories)
    if who == "flowguard":
        return FlowGuardDetector(pipeline, shape[0], categories)
    if who == "ndm":
        rows = int((store.done & [pair.split == "train" for pair in store.pairs]).sum())
        # No more components than there are pictures to find them in.
        components = max(1, min(32, rows - 1, int(np.prod(shape))))
        return NoiseDetector(pipeline, len(store.at), int(np.prod(shape)), categories, components=components)
    if who == DETECTOR:
        return InLoopDetector.for_pipeline(pipeline, store.layers, joint=joint)
    raise ConfigError(f"There is no family {who!r}; there are {DETECTOR}, {TEXT}, flowguard and ndm.")


def trained(
    who: str,
    pipeline: Any,
    store: PairStore,
    folder: Path,
    *,
    options: TrainingOptions,
    categories: Sequence[str] | None = None,
    encoder: DualEncoder | None = None,
    progress: Progress | None = None,
) -> LearnedDetector:
    """A detector of a family trained on the training pairs of a store; read from its folder where it is there already.

    Args:
        who: as for `untrained`.
        pipeline: that made the pictures.
        store: pairs, labels, looks.
        folder: of this detector.
        options: of the training.
        categories: names of those to train on; None for all.
        encoder: whose features of finished pictures the store has; only the detector that reads definitions uses it.
        progress: called with (epoch, training loss, loss on prompts held back) after each epoch.
    """
    if not (folder / ABOUT).is_file():
        count = len(store.taxonomy) if categories is None else len(categories)
        joint = int(store.array("features").shape[-1]) if store.has("features") else 128
        # Of the first weights, so that a run which goes on ends as one in one piece.
        torch.manual_seed(options.seed)
        detector = untrained(who, pipeline, store, count, joint)
        train_detector(
            detector,
            store,
            store.rows("train"),
            categories=categories,
            options=options,
            encoder=encoder if who == DETECTOR else None,
            progress=progress,
        )
        save_detector(detector, folder)
    # Read again, so that a run that goes on scores with the same weights, which are stored in 16 bits.
    return load_detector(folder, pipeline)


def train_all(
    lessons: Mapping[str, tuple[str, Sequence[str] | None]],
    pipeline: Any,
    store: PairStore,
    folder: Path,
    *,
    options: TrainingOptions,
    encoder: DualEncoder | None,
    show: Callable[[str, int], AbstractContextManager[Callable[..., None]]],
) -> dict[str, LearnedDetector]:
    """Detectors by name, each in a folder of its name.

    Args:
        lessons: name -> family and the names of the categories to train on, None for all.
        pipeline: that made the pictures.
        store: pairs, labels, looks.
        folder: of the folders.
        options: of the trainings.
        encoder: whose features of finished pictures the store has.
        show: makes a progress bar of a name and a number of epochs.
    """
    found: dict[str, LearnedDetector] = {}
    for name, (family, categories) in lessons.items():
        with show(f"training {name}", options.epochs) as bar:

            def progress(epoch: int, loss: float, held_back: float, bar: Callable[..., None] = bar) -> None:
                bar(epoch, loss=loss, held_back=held_back)

            found[name] = trained(
                family,
                pipeline,
                store,
                folder / name,
                options=options,
                categories=categories,
                encoder=encoder,
                progress=progress,
            )
    return found
