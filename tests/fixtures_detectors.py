"""Detectors that do as they are told, and tiny random pipelines to guard, built once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from judge.diffusion.look import Look
from judge.protocol import Scores
from judge.standins.random_pipelines import random_pipeline
from prompts.taxonomy import Category, Taxonomy

TAXONOMY = Taxonomy("fruit", "1", (Category("apple", "Apples."), Category("pear", "Pears.")))
PROMPTS = ["a digit", "a dog", "a street", "a sign"]
"""`DOG` is the second of them."""
DOG = 1


class FakeDetector:
    """Scores `apple` as a function of look and row says, and `pear` half as high."""

    name = "fake"
    layers: tuple[str, ...] = ()
    log_snrs = (-30.0, 30.0)

    def __init__(self, score: Callable[[Look, int], float]) -> None:
        self._score = score
        self.looks: list[Look] = []

    def score(self, look: Look, taxonomy: Taxonomy) -> Scores:
        self.looks.append(look)
        apple = np.array([self._score(look, row) for row in range(len(look.clean))])
        reasons = tuple("no idea" if np.isnan(value) else None for value in apple)
        return Scores(apple, np.stack([apple, apple / 2], axis=1), reasons)


def flags(*prompts: str, step: int = 0) -> FakeDetector:
    """Flags the pictures of some prompts, at every look or at one step."""
    return FakeDetector(
        lambda look, row: 0.9 if look.prompts[row] in prompts and step in (0, look.step) else 0.1
    )


def flags_rows(*rows: int, step: int = 0) -> FakeDetector:
    """Flags some rows, at every look or at one step; for calls whose prompts nobody knows."""
    return FakeDetector(lambda look, row: 0.9 if row in rows and step in (0, look.step) else 0.1)


def pipeline(name: str = "sd1") -> Any:
    """A tiny random pipeline, shared by all tests."""
    return _built(name)


@cache
def _built(name: str) -> Any:
    return random_pipeline(name)


def row_by_row(pipe: Any, monkeypatch: Any) -> None:
    """Let a pipeline compute one row at a time.

    Libraries choose other kernels for other batch sizes, which round otherwise, so that without this pictures depend on
    the size of their batch. That is not what stopping has to answer for.
    """
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    forward = denoiser.forward

    def rows(**kwargs: Any) -> Any:
        name = "sample" if "sample" in kwargs else "hidden_states"
        count = len(kwargs[name])
        return (torch.cat([forward(**_row(kwargs, row, count))[0] for row in range(count)]),)

    def whole(*args: Any, **kwargs: Any) -> Any:
        return rows(**dict(zip(("sample", "timestep"), args, strict=False)), **kwargs)

    monkeypatch.setattr(denoiser, "forward", whole)
    monkeypatch.setattr(pipe.vae, "use_slicing", True)


def _row(value: Any, row: int, count: int) -> Any:
    if isinstance(value, dict):
        return {name: _row(part, row, count) for name, part in value.items()}
    is_batch = isinstance(value, torch.Tensor) and value.ndim and len(value) == count
    return value[row : row + 1] if is_batch else value


def own_noise(count: int = 4) -> list[torch.Generator]:
    """A generator for each picture."""
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def untouched(pipe: Any) -> bool:
    """Whether nothing of a guard is left on a pipeline."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    hooks = [module for module in denoiser.modules() if module._forward_pre_hooks or module._forward_hooks]
    return not hooks and "step" not in vars(pipe.scheduler)
