"""One call of a pipeline under a guard: which pictures are left, and what was seen of each."""

import math
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from judge.errors import PipelineError
from prompts.verdict import Verdict

from .layouts import layout_of
from .noise_levels import SchedulerStep, noise_level
from .observer import Observer
from .picture_verdicts import LookVerdict, PictureVerdict
from .stopping import WholeBatchStep

_WATCHED: "WeakKeyDictionary[Any, WatchedCall]" = WeakKeyDictionary()
"""Scheduler -> the call that it takes steps for; a scheduler serves one call at a time."""


class WatchedCall:
    """From before the first step of a call, or the end of it, to the end of the last one."""

    def __init__(
        self, pipeline: Any, layers: Sequence[str], prompts: Sequence[str | None] | None, *, begun: bool
    ) -> None:
        """Set the hooks.

        Args:
            pipeline: of diffusers.
            layers: names of attention layers whose tokens are wanted.
            prompts: of the call, or None where they are not known.
            begun: whether the call has made its first step already, so that nothing was seen of it.

        Raises:
            PipelineError: the pipeline cannot be watched, or another guard watches it.
        """
        self.layout = layout_of(pipeline)
        refuse_second(pipeline, begun=begun)
        self.pipeline, self.prompts, self.begun = pipeline, prompts, begun
        self.thread = threading.current_thread()
        self.observer = Observer(pipeline, layers)
        # The observer takes the scheduler's step at the next call of the denoiser only, and so stands in front of this:
        # it sees what the pipeline gives and gets, the pictures that are left.
        self.whole_batch = WholeBatchStep(pipeline.scheduler)
        self.index = -1
        """Of the step that ended last, as the pipeline counts; -1 before the first."""
        self.closed = False
        self.whole_batch_only: str | None = None
        """Why this call has to keep its batch together, where that is known from its arguments."""
        self.example: torch.Tensor | None = None
        """Latents of one picture, without a batch: zeros."""
        self.left: list[int] = []
        """Pictures that the pipeline works on, in the order of its rows."""
        self.blank: set[int] = set()
        """Those among them that were stopped and come out as zeros, because the pipeline cannot drop them."""
        self.looks: list[list[LookVerdict]] = []
        self.stopped_at: list[int | None] = []
        self.taken: set[int] = set()
        """Which of the looks were taken, by their place."""
        _WATCHED[pipeline.scheduler] = self

    @property
    def steps(self) -> int:
        """How many steps the call makes."""
        return int(self.pipeline.num_timesteps)

    @property
    def going(self) -> list[int]:
        """Pictures that were not stopped."""
        return [picture for picture in self.left if picture not in self.blank]

    def rows_of(self, pictures: Sequence[int]) -> list[int]:
        """The rows in which the pipeline works on some pictures."""
        return [self.left.index(picture) for picture in pictures]

    def arrive(self, index: int, latents: torch.Tensor) -> None:
        """A step has ended with (R, ...) latents.

        Raises:
            PipelineError: not the next step, or not the pictures that are left.
        """
        rows = len(latents)
        if self.index < 0 and index > 0:
            raise PipelineError(
                f"The guard was first called at the end of step {index + 1}; it has to be called from the first on."
            )
        if self.index < 0:
            self.left = list(range(rows))
            self.whole_batch.begin(rows)
            self.example = torch.zeros_like(latents[0])
            self.looks, self.stopped_at = [[] for _ in range(rows)], [None] * rows
        elif index != self.index + 1:
            raise PipelineError(
                f"Step {index + 1} came after step {self.index + 1}: another call uses this guard at the same time, or "
                "its callback is not called at every step. Use a guard for each call."
            )
        elif rows != len(self.left):
            raise PipelineError(
                f"{rows} pictures came out of step {index + 1} and {len(self.left)} were expected: another callback "
                "changes the batch. A guard has to know which picture is which; let it be the only one that drops any."
            )
        self.index = index
        self.whole_batch.steps_taken = 0

    def log_snr(self, timestep: Any, latents: torch.Tensor) -> float:
        """Of the latents that entered the step that just ended."""
        step = SchedulerStep(latents, timestep, latents, midway=False)
        return noise_level(self.pipeline.scheduler, step).log_snr

    def why_whole_batch(self, offered: Sequence[str]) -> str | None:
        """Why a picture cannot be dropped alone, given which tensors the callback was offered; None where it can."""
        together = self.whole_batch_only or self.layout.whole_batch_only
        if together is not None:
            return together
        missing = [name for name in self.layout.inputs if name not in offered]
        if missing:
            return f"the callback was not given {', '.join(missing)}; pass the guard's `inputs`"
        denoiser = getattr(self.pipeline, self.layout.denoiser)
        if getattr(denoiser.config, "time_cond_proj_dim", None) is not None:
            return "the denoiser reads the guidance scale of every picture, which the callback is not given"
        if self.whole_batch.scheduler is not self.pipeline.scheduler:
            return "the scheduler was replaced during the call"
        return None

    def prompts_left(self) -> tuple[str | None, ...] | None:
        """Prompts of the pictures that the pipeline works on; None where they are not known."""
        if self.prompts is None:
            return None
        each, odd = divmod(len(self.stopped_at), len(self.prompts))
        if odd:
            raise PipelineError(f"{len(self.prompts)} prompts for {len(self.stopped_at)} pictures.")
        return tuple(self.prompts[picture // each] for picture in self.left)

    def drop(self, pictures: Sequence[int]) -> None:
        """The pipeline goes on without some pictures."""
        self.left = [picture for picture in self.left if picture not in pictures]
        self.whole_batch.kept = list(self.left)

    def note(self, picture: int, look: LookVerdict, *, stops: bool) -> None:
        """Add a look at a picture, which may stop it here."""
        self.looks[picture].append(look)
        if stops and self.stopped_at[picture] is None:
            self.stopped_at[picture] = self.index + 1

    def give_up(self, verdict: Verdict) -> None:
        """The call ends here: no picture that was going on is finished, and none is judged; the verdict says why."""
        for picture in self.going:
            if self.stopped_at[picture] is None:
                self.note(picture, LookVerdict(0, math.nan, verdict, 0.0), stops=True)

    def why(self, stopped: Sequence[int]) -> str:
        """Where some pictures were stopped, and why, on one line."""
        reasons = []
        for picture, verdict in enumerate(self.verdicts()):
            if picture in stopped and verdict.deciding is not None:
                about = verdict.reason if verdict.status == "unjudged" else verdict.deciding.verdict.category
                reasons.append(f"picture {picture} is {verdict.status} ({about})")
        return f"Stopped after step {self.index + 1} of {self.steps}: {'; '.join(reasons)}."

    def verdicts(self) -> tuple[PictureVerdict, ...]:
        """What is known of each picture."""
        return tuple(
            PictureVerdict(tuple(looks), stopped)
            for looks, stopped in zip(self.looks, self.stopped_at, strict=True)
        )

    def close(self) -> None:
        """Remove the hooks; the pipeline is as it was before."""
        if self.closed:
            return
        self.closed = True
        self.observer.close()
        self.whole_batch.close()
        if _WATCHED.get(self.whole_batch.scheduler) is self:
            del _WATCHED[self.whole_batch.scheduler]


def refuse_second(pipeline: Any, *, begun: bool) -> None:
    """Raise `PipelineError` where another guard watches the call; end what a failed call left behind."""
    other = _WATCHED.get(pipeline.scheduler)
    if other is None:
        return
    if other.thread is not threading.current_thread() and other.thread.is_alive():
        raise PipelineError(
            "A call in another thread uses this pipeline under a guard. A pipeline makes one call at a time."
        )
    if begun and other.index >= 0 and other.whole_batch.steps_taken == 0:
        raise PipelineError(
            "Another guard watches this call. Use one guard for it, with a taxonomy that holds the categories of both."
        )
    other.close()
