"""A guard inside the denoising loop: looks at pictures while they are made, and stops those that will be unsafe.

    guard = DiffusionGuard(detector, taxonomy, thresholds)
    images = guarded(pipeline, guard)(prompts).images      # stopped pictures are blank
    guard.verdicts                                         # of every picture: its looks, and where it was stopped

`guarded` is the way to use it. The pipeline may also be called plainly:

    pipeline(prompts, callback_on_step_end=guard, callback_on_step_end_tensor_inputs=guard.inputs)

Then what comes out has fewer pictures than were asked for (`guard.kept` says which), or the call raises
`PicturesStoppedError` when none is left; where a pipeline cannot make fewer pictures, the stopped ones come out as
latents of zeros. Two things are weaker: hooks are set at the end of the first step, so that no look can be taken there;
and a call that another thread interrupts (`pipeline._interrupt`) hands out what it has, which `guarded` would not.

**A failure stops the picture.** A look that could not be taken, that lies outside what the detector was trained for, or
that came to no score leaves the picture unjudged, and an unjudged picture is stopped, unless `on_failure="go on"`.
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from judge.calibration.thresholds import Thresholds
from judge.errors import ConfigError, PicturesStoppedError, PipelineError, first_line
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict

from .detector import Detector
from .layouts import layout_of
from .look import Look
from .look_times import limits_of_looks, strictest, times_of_looks
from .look_verdicts import NOT_FINITE, not_judged, verdicts_of_look
from .looks_promise import LooksPromise, Sampling
from .picture_verdicts import LookVerdict, PictureVerdict
from .replacements import Redraw, StoppedPicture
from .stopping import blank_rows, keep_rows, rows_with_nan
from .watched_call import WatchedCall

Stop = Literal["image", "call"]
OnFailure = Literal["stop", "go on"]
Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
OnStop = Literal["blank", "none", "raise"] | Redraw | Callable[[StoppedPicture], Any]


class DiffusionGuard:
    """Looks at the pictures of a call, one call at a time, and stops those that a taxonomy forbids."""

    def __init__(
        self,
        detector: Detector,
        taxonomy: Taxonomy,
        thresholds: float | Mapping[str, float] | Thresholds | LooksPromise = DEFAULT_THRESHOLD,
        *,
        at: Sequence[int] | Sequence[float] | None = None,
        stop: Stop = "image",
        keep_batch: bool = False,
        on_stop: OnStop = "blank",
        on_failure: OnFailure = "stop",
        pipeline: Any = None,
        callback: Callback | None = None,
        callback_inputs: Sequence[str] = (),
    ) -> None:
        """A guard for any number of calls, one after the other.

        Args:
            detector: scores looks; it belongs to the pipeline that will be called.
            taxonomy: which categories are forbidden in this call.
            thresholds: one number in [0, 1], one for some categories (others keep 0.5), fitted ones, or cutoffs that
                keep a promise over all looks (`calibrate_looks`).
            at: when to look. Integers are numbers of steps, from 1 on. Floats are log-SNRs, which mean the same under
                every scheduler: a look is taken after the first step whose latents had at least that log-SNR, and one
                look may answer several of them. None: those of the promise, or a quarter, half and three quarters of
                the detector's range.
            stop: `image` goes on with the other pictures of the batch; `call` ends it at the first stopped picture.
            keep_batch: whether stopped pictures stay in the batch as zeros, which saves nothing. Then the others are
                equal to the bit; else they are as far as kernels compute a row alike in batches of any size.
            on_stop: what takes the place of a stopped picture (by `guarded`; a plain call only knows `raise`): `blank`,
                `none`, `raise` (a `PicturesStoppedError`), `Redraw`, or a function of a `StoppedPicture`.
            on_failure: whether a picture that could not be judged is stopped, or goes on and is called unjudged.
            pipeline: that will be called; only `inputs` needs it, where the detector has no `pipeline`.
            callback: another callback, which is called after this one with the pictures that are left.
            callback_inputs: tensors that it needs.

        Raises:
            ConfigError: an argument is of none of these forms, or a threshold is off.
        """
        if stop not in get_args(Stop) or on_failure not in get_args(OnFailure):
            raise ConfigError(
                f"stop is image or call, on_failure stop or go on; got {stop!r} and {on_failure!r}."
            )
        if not (on_stop in ("blank", "none", "raise") or callable(on_stop) or isinstance(on_stop, Redraw)):
            raise ConfigError(f"on_stop is blank, none, raise, a Redraw or a function; got {on_stop!r:.80}.")
        self.detector, self.taxonomy = detector, taxonomy
        self.promise = thresholds if isinstance(thresholds, LooksPromise) else None
        self.at = times_of_looks(at, self.promise, detector)
        self._limits = limits_of_looks(thresholds, taxonomy, len(self.at))
        self.stop, self.keep_batch, self.on_stop, self.on_failure = stop, keep_batch, on_stop, on_failure
        self.pipeline = pipeline if pipeline is not None else getattr(detector, "pipeline", None)
        self.callback, self._callback_inputs = callback, tuple(callback_inputs)
        self._call: WatchedCall | None = None
        self._redrawn: dict[int, tuple[PictureVerdict, ...]] = {}
        self.ended = False
        """Whether the last call made all its steps."""

    @property
    def inputs(self) -> list[str]:
        """For `callback_on_step_end_tensor_inputs`."""
        return self.inputs_of(self.pipeline)

    def inputs_of(self, pipeline: Any) -> list[str]:
        """The tensors that a guard needs of a pipeline to drop pictures, and those that its other callback needs."""
        known = ("latents", "prompt_embeds") if pipeline is None else layout_of(pipeline).inputs
        return list(dict.fromkeys([*known, *self._callback_inputs]))

    @property
    def verdicts(self) -> tuple[PictureVerdict, ...]:
        """What is known of each picture of the last call, in the order in which they were asked for."""
        if self._call is None:
            return ()
        found = self._call.verdicts()
        return tuple(
            replace(picture, redrawn=self._redrawn.get(row, ())) for row, picture in enumerate(found)
        )

    @property
    def kept(self) -> tuple[int, ...]:
        """Which pictures come out of a plain call, in its order."""
        return tuple(self._call.left) if self._call else ()

    @property
    def latents(self) -> torch.Tensor:
        """Those of one picture of the last call, without a batch and with nothing in them."""
        if self._call is None or self._call.example is None:
            raise PicturesStoppedError("The call ended before its first step; no picture was begun.")
        return self._call.example

    def copy(self) -> "DiffusionGuard":
        """A guard with the same settings, for another call."""
        other = copy.copy(self)
        other._call, other._redrawn, other.ended = None, {}, False
        return other

    def note_redrawn(self, picture: int, verdict: PictureVerdict) -> None:
        """A picture was drawn again, and this is what was seen of it."""
        self._redrawn[picture] = (*self._redrawn.get(picture, ()), verdict)

    def interrupted(self) -> None:
        """The last call ended without all its steps: none of its pictures was finished, and none is judged.

        Raises:
            PicturesStoppedError: it did not even make the first one, so that nothing is known of it.
        """
        if self._call is None or not self._call.left:
            raise PicturesStoppedError("The call was interrupted before its first step; no picture was made.")
        self._call.give_up(self._unjudged(f"the call was interrupted after step {self._call.index + 1}"))

    def begin(
        self, pipeline: Any, prompts: Sequence[str | None] | None = None, whole_batch_only: str | None = None
    ) -> None:
        """Set the hooks before a call, so that its first step is seen; `guarded` does this.

        Args:
            pipeline: that will be called.
            prompts: of the call, None where they are not known.
            whole_batch_only: why this call has to keep its batch together, if it has to.

        Raises:
            PipelineError: the pipeline cannot be watched, or it or this guard is in use.
        """
        if self._call is not None and not self._call.closed:
            self._refuse_other_thread(self._call)
            self._call.close()
        self._start(pipeline, prompts, begun=False).whole_batch_only = whole_batch_only

    def close(self) -> None:
        """Remove all hooks; verdicts stay. Needed only where a plain call failed for reasons of its own."""
        if self._call is not None:
            self._call.close()

    def __call__(
        self,
        pipeline: Any,
        step_index: int,
        timestep: Any,
        callback_kwargs: dict[str, Any],
        *,
        then: Callback | None = None,
    ) -> dict[str, Any]:
        """The callback at the end of a step.

        Args:
            pipeline: that was called.
            step_index: of the step, from 0.
            timestep: of the step.
            callback_kwargs: the pipeline's tensors.
            then: called afterwards, in the place of the guard's own `callback`.

        Returns:
            The tensors, with fewer rows where pictures were stopped.

        Raises:
            PicturesStoppedError: no picture is left, or the guard was told to end the call.
            PipelineError: the call cannot be followed.
        """
        try:
            return self._end_of_step(pipeline, int(step_index), timestep, dict(callback_kwargs), then)
        except BaseException:
            # The pipeline frees its modules at the end of a call only.
            self.close()
            pipeline.maybe_free_model_hooks()
            raise

    def _start(self, pipeline: Any, prompts: Sequence[str | None] | None, *, begun: bool) -> WatchedCall:
        layout = layout_of(pipeline)
        own = getattr(self.pipeline, layout.denoiser, None)
        if self.pipeline is not None and own is not getattr(pipeline, layout.denoiser):
            raise PipelineError(
                f"{self.detector.name} belongs to another pipeline ({type(self.pipeline).__name__}) than the "
                f"{type(pipeline).__name__} that was called: their denoisers differ. Load the detector for this one."
            )
        self._redrawn, self.ended = {}, False
        self._call = WatchedCall(pipeline, self.detector.layers, prompts, begun=begun)
        return self._call

    def _refuse_other_thread(self, call: WatchedCall) -> None:
        if call.thread is not threading.current_thread() and call.thread.is_alive():
            raise PipelineError(
                "A call in another thread uses this guard. Make a guard for each call; if that call failed, `close` it."
            )

    def _call_of(self, pipeline: Any, index: int) -> WatchedCall:
        """The call that a step belongs to; a new one where it is the first step."""
        call = self._call
        if call is not None and not call.closed:
            self._refuse_other_thread(call)
            if call.pipeline is pipeline and (index > 0 or call.index < 0):
                return call
            call.close()
        if call is not None and index > 0:
            raise PipelineError(
                f"The call of this guard ended before step {index + 1}: it was closed, or another guard took the "
                "pipeline."
            )
        return self._start(pipeline, None, begun=True)

    def _end_of_step(
        self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any], then: Callback | None
    ) -> dict[str, Any]:
        latents = tensors.get("latents")
        if not isinstance(latents, torch.Tensor):
            raise PipelineError(
                "The callback was given no latents; pass callback_on_step_end_tensor_inputs=guard.inputs."
            )
        call = self._call_of(pipeline, index)
        call.arrive(index, latents)
        if index == 0:
            self._check_steps(call)
        last = index + 1 >= call.steps
        self._look(call, timestep, latents)
        if last:
            self._settle(call, latents)
        tensors = self._leave_out(call, tensors)
        tensors = self._go_on(call, timestep, tensors, then or self.callback, last)
        if last:
            self.ended = True
            self.close()
        return tensors

    def _check_steps(self, call: WatchedCall) -> None:
        """Refuse numbers of steps that the call never reaches."""
        beyond = [place for place in self.at if isinstance(place, int) and place > call.steps]
        if beyond and self.on_failure == "stop":
            raise PipelineError(
                f"A look at step {beyond[0]} was asked for and the call makes {call.steps} steps. Give numbers up to "
                "that, or log-SNRs (floats), which mean the same for any number of steps."
            )

    def _due(self, call: WatchedCall, timestep: Any, latents: torch.Tensor) -> list[int]:
        """Which looks to take after this step, by their place; one look answers all of them."""
        open_places = [place for place in range(len(self.at)) if place not in call.taken]
        if not open_places or isinstance(self.at[0], int):
            return [place for place in open_places if self.at[place] == call.index + 1]
        log_snr = call.log_snr(timestep, latents)
        return [place for place in open_places if self.at[place] <= log_snr]

    def _look(self, call: WatchedCall, timestep: Any, latents: torch.Tensor) -> None:
        """Take the looks that are due, and note which pictures they stop."""
        due = self._due(call, timestep, latents)
        if not due:
            return
        call.taken.update(due)
        going = call.going
        if latents.is_cuda:
            torch.cuda.synchronize(latents.device)  # or the look would be billed for the step before it
        began = time.perf_counter()
        log_snr, promise = math.nan, None
        try:
            look = self._see(call)
            log_snr = look.log_snr
            if self.promise is not None:
                sampling = Sampling.of(call.pipeline)
                promise = self.promise.text(self.taxonomy, sampling, self.detector.name)
            verdicts = verdicts_of_look(
                self.detector, self.taxonomy, look, limits=strictest(self._limits, due), promise=promise
            )
        except Exception as error:
            # Whatever went wrong, the pictures were not judged, and that is never safe.
            reason = f"the look failed: {type(error).__name__}: {first_line(error)}"
            verdicts = [self._unjudged(reason) for _ in going]
        milliseconds = (time.perf_counter() - began) * 1000 / len(going)
        step = call.index + 1
        for picture, verdict in zip(going, verdicts, strict=True):
            self._note(call, picture, LookVerdict(step, log_snr, verdict, milliseconds))

    def _see(self, call: WatchedCall) -> Look:
        """What the step shows of the pictures that go on."""
        if call.begun and call.index == 0:
            raise PipelineError(
                "the hooks were set at the end of the first step, of which nothing is known; call the pipeline through "
                "`guarded`, or look later"
            )
        look = call.observer.look(call.pipeline, call.index, call.prompts_left())
        return look.rows(torch.tensor(call.rows_of(call.going))) if call.blank else look

    def _settle(self, call: WatchedCall, latents: torch.Tensor) -> None:
        """After the last step: what was never looked at, or holds no numbers, is unjudged."""
        step = call.index + 1
        broken = set(rows_with_nan(latents))
        reasons = [
            f"no look at {'step' if isinstance(self.at[place], int) else 'log-SNR'} {self.at[place]:g}: the call ended "
            f"after step {step}"
            for place in range(len(self.at))
            if place not in call.taken
        ]
        for picture in call.going:
            found = list(reasons)
            if call.left.index(picture) in broken:
                found.append(NOT_FINITE)
            for reason in found:
                self._note(call, picture, LookVerdict(0, math.nan, self._unjudged(reason), 0.0))

    def _note(self, call: WatchedCall, picture: int, look: LookVerdict) -> None:
        unjudged_stops = look.verdict.status == "unjudged" and self.on_failure == "stop"
        call.note(picture, look, stops=look.verdict.status == "unsafe" or unjudged_stops)

    def _leave_out(self, call: WatchedCall, tensors: dict[str, Any]) -> dict[str, Any]:
        """The tensors without the pictures that were stopped after this step."""
        stopped = [picture for picture in call.going if call.stopped_at[picture] is not None]
        if not stopped:
            return tensors
        going = [picture for picture in call.going if picture not in stopped]
        if not going or self.stop == "call" or self.on_stop == "raise":
            why = call.why(stopped)
            call.give_up(self._unjudged("the call was ended because of another picture"))
            raise PicturesStoppedError(why)
        if self.keep_batch or call.why_whole_batch(list(tensors)) is not None:
            call.blank.update(stopped)
            return tensors
        kept = call.rows_of(going)
        tensors = keep_rows(tensors, kept, len(call.left))
        call.drop(stopped)
        return tensors

    def _go_on(
        self, call: WatchedCall, timestep: Any, tensors: dict[str, Any], then: Callback | None, last: bool
    ) -> dict[str, Any]:
        """Call the other callback, and keep what it gives within bounds."""
        blank = call.rows_of(sorted(call.blank))
        tensors["latents"] = blank_rows(tensors["latents"], blank)
        if then is not None:
            given = then(call.pipeline, call.index, timestep, dict(tensors))
            if not isinstance(given, dict):
                raise PipelineError(
                    f"The other callback returned {type(given).__name__}; return its tensors."
                )
            tensors.update(given)
            if len(tensors["latents"]) != len(call.left):
                raise PipelineError(
                    f"The other callback returned {len(tensors['latents'])} pictures of {len(call.left)}; a guard has "
                    "to be the only one that drops any."
                )
            tensors["latents"] = blank_rows(tensors["latents"], blank)
        if not last and getattr(call.pipeline, "interrupt", False):
            call.give_up(self._unjudged(f"the call was interrupted after step {call.index + 1}"))
            raise PicturesStoppedError(
                f"The call was interrupted after step {call.index + 1} of {call.steps}; its pictures are half-made."
            )
        return tensors

    def _unjudged(self, reason: str) -> Verdict:
        return not_judged(reason, self.taxonomy, self.detector)
