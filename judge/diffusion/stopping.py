"""Stopping some pictures of a batch, so that the others come out as if nothing had happened."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def keep_rows(tensors: Mapping[str, Any], kept: Sequence[int], rows: int) -> dict[str, Any]:
    """The tensors of a denoising loop with some of their rows.

    Args:
        tensors: name -> (rows, ...) tensor, (2 rows, ...) where both halves of guidance are in one, or a list of as
            many; what has another length is not a batch, and stays.
        kept: which of the rows stay, rising.
        rows: how many pictures the loop works on.
    """
    halves = [*kept, *(rows + row for row in kept)]
    smaller: dict[str, Any] = {}
    for name, value in tensors.items():
        length = len(value) if isinstance(value, list) or (isinstance(value, Tensor) and value.ndim) else -1
        chosen = {rows: list(kept), 2 * rows: halves}.get(length)
        if chosen is None:
            smaller[name] = value
        else:
            smaller[name] = [value[row] for row in chosen] if isinstance(value, list) else value[chosen]
    return smaller


class WholeBatchStep:
    """`scheduler.step` of an instance that goes on seeing the whole batch after some of it was stopped.

    A scheduler keeps what earlier steps predicted, and draws noise for all pictures at once from one generator, or from
    a list of them. With fewer rows the shapes would no longer fit, or the others would get another one's noise. So the
    denoiser, which costs time, sees the pictures that are left, and the scheduler, which costs none, all of them, with
    zeros in the place of those that were stopped. What is left is equal to the bit, as far as the denoiser computes a
    row alike in batches of any size: its kernels may round otherwise.
    """

    def __init__(self, scheduler: Any) -> None:
        """Put itself in the place of `scheduler.step`; `close` undoes it."""
        self.scheduler = scheduler
        self.rows = 0
        """How many pictures the call began with; 0 until that is known."""
        self.kept: list[int] = []
        """Which of them are left."""
        self.steps_taken = 0
        """Since the guard was last called; it sets this to 0."""
        self._replaced = vars(scheduler).get("step")
        self._step = scheduler.step

        # With the signature of the original, from which pipelines read whether a generator is to be passed.
        @functools.wraps(scheduler.step)
        def step(*args: Any, **kwargs: Any) -> Any:
            return self._run(*args, **kwargs)

        scheduler.step = step

    def begin(self, rows: int) -> None:
        """Say how many pictures the call makes; all of them are left."""
        self.rows, self.kept = rows, list(range(rows))

    def close(self) -> None:
        """Give the scheduler its own step back."""
        if self._replaced is None:
            vars(self.scheduler).pop("step", None)
        else:
            self.scheduler.step = self._replaced

    def _run(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.steps_taken += 1
        if len(self.kept) == self.rows:
            return self._step(model_output, timestep, sample, *args, **kwargs)
        result = self._step(self._whole(model_output), timestep, self._whole(sample), *args, **kwargs)
        if isinstance(result, tuple):
            return tuple(self._left(value) for value in result)
        return type(result)(**{name: self._left(value) for name, value in result.items()})

    def _whole(self, value: Tensor) -> Tensor:
        whole = value.new_zeros(self.rows, *value.shape[1:])
        whole[self.kept] = value
        return whole

    def _left(self, value: Any) -> Any:
        is_batch = isinstance(value, Tensor) and value.ndim and len(value) == self.rows
        return value[self.kept] if is_batch else value


def blank_rows(latents: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of (B, ...) latents with zeros in some rows; the latents themselves where there are none."""
    if not rows:
        return latents
    blanked = latents.clone()
    blanked[list(rows)] = 0
    return blanked


def rows_with_nan(latents: Tensor) -> list[int]:
    """Which of (B, ...) latents hold a number that is not finite."""
    return torch.nonzero(~torch.isfinite(latents).flatten(1).all(dim=1)).flatten().tolist()
