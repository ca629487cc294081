"""Hooks that let one see what a pipeline's denoiser reads and predicts, without changing what it does."""

import functools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from judge.errors import PipelineError

from .layouts import attention_layers, layout_of
from .look import Look
from .noise_levels import SchedulerStep, check_scheduler, noise_level, prediction_of, recovered


class Observer:
    """Watches a pipeline; ask `look` inside `callback_on_step_end`, and `close` it afterwards.

    Between looks it keeps references to what the last step read and predicted, and copies nothing. It hooks the
    denoiser, the attention layers asked for, and `step` of the scheduler that the pipeline has when it is called
    (another one may be put into the pipeline at any time).
    """

    def __init__(self, pipeline: Any, layers: Sequence[str] = ()) -> None:
        """Hook the pipeline.

        Args:
            pipeline: of diffusers.
            layers: names of attention layers (`attention_layers`) whose image tokens are wanted.

        Raises:
            PipelineError: a pipeline that cannot be watched, or a layer that it does not have.
        """
        self.layout = layout_of(pipeline)
        check_scheduler(pipeline.scheduler)
        known = attention_layers(pipeline, self.layout)
        for name in layers:
            if name not in known:
                raise PipelineError(
                    f"This {self.layout.pipeline} has no attention layer {name!r}; it has {', '.join(known)}."
                )
        self.layers = tuple(layers)
        self._pipeline = pipeline
        self._denoiser: nn.Module = getattr(pipeline, self.layout.denoiser)
        self._scheduler: Any = None
        self._own_step: Any = None
        self._replaced: Any = None
        self._calls: list[_Call] = []
        self._step: SchedulerStep | None = None
        self._handles: list[RemovableHandle] = [
            self._denoiser.register_forward_pre_hook(self._on_denoiser, with_kwargs=True)
        ]
        for name in self.layers:
            hook = functools.partial(self._on_layer, name)
            self._handles.append(known[name].register_forward_pre_hook(hook, with_kwargs=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook; the pipeline is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._release_scheduler()
        self._calls, self._step = [], None

    def look(self, pipeline: Any, step: int, prompts: Sequence[str | None] | None) -> Look:
        """What the step that just ended shows.

        Args:
            pipeline: as the callback is given it.
            step: number of the step as the callback is given it, from 0.
            prompts: of the B pictures that the step made, or fewer of which each made the same number of pictures
                (`num_images_per_prompt`); None where they are not known.

        Raises:
            PipelineError: called elsewhere than in the callback, or what was seen does not fit the layout.
        """
        if pipeline is not self._pipeline:
            raise PipelineError("This observer watches another pipeline; make one for this.")
        if self._step is None or not self._calls:
            raise PipelineError(
                f"No step of the {self.layout.denoiser} was seen. Call `look` inside `callback_on_step_end`; if the "
                f"{self.layout.denoiser} of the pipeline was replaced, make a new observer."
            )
        call, taken = self._calls[0], self._step
        rows = taken.sample.shape[0]
        level = noise_level(self._scheduler, taken)
        noisy, noise, clean = recovered(
            call.unpack(taken.sample, self.layout.packed),
            call.unpack(taken.output, self.layout.packed),
            level,
            prediction_of(self._scheduler),
        )
        half = self._half(call, rows)
        missing = [name for name in self.layers if name not in call.tokens]
        if missing:
            raise PipelineError(
                f"Attention layers {', '.join(missing)} were not seen to run in this step. If they were replaced, make "
                f"a new observer; if the {self.layout.denoiser} is compiled, make it before the first call."
            )
        return Look(
            step=step + 1,
            steps=int(pipeline.num_timesteps),
            log_snr=level.log_snr,
            noisy=noisy,
            noise=noise,
            clean=clean,
            tokens={name: call.tokens[name][half] for name in self.layers},
            text=call.text[half],
            prompts=_per_picture(prompts, rows),
        )

    def _half(self, call: "_Call", rows: int) -> slice:
        """The rows of a call of the denoiser that read the prompt."""
        seen = len(call.text)
        if seen == rows:
            return slice(0, rows)
        if seen == 2 * rows and self.layout.guidance != "two_calls_positive_first":
            return slice(rows, None) if self.layout.guidance == "negative_first" else slice(0, rows)
        raise PipelineError(
            f"The {self.layout.denoiser} was given {seen} prompts for {rows} pictures; {rows} without guidance or "
            f"{2 * rows} with it were expected of a {self.layout.pipeline}."
        )

    def _on_denoiser(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pipeline.scheduler is not self._scheduler:
            self._watch_scheduler(self._pipeline.scheduler)
        call = _Call(args, kwargs)
        if self._step is not None or not (self._calls and call.goes_on(self._calls[0])):
            self._calls, self._step = [], None
        self._calls.append(call)

    def _on_layer(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._calls:
            self._calls[-1].tokens[name] = args[0] if args else kwargs["hidden_states"]

    def _watch_scheduler(self, scheduler: Any) -> None:
        check_scheduler(scheduler)
        self._release_scheduler()
        self._scheduler, self._replaced = scheduler, vars(scheduler).get("step")
        whole = scheduler.step

        # With the signature of the original, from which pipelines read whether a generator is to be passed.
        @functools.wraps(whole)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            midway = hasattr(scheduler, "sigmas_interpol") and scheduler.sample is not None
            result = whole(model_output, timestep, sample, *args, **kwargs)
            if self._scheduler is scheduler:
                if self._step is not None:
                    # Another denoiser than ours predicted this.
                    self._calls = []
                self._step = SchedulerStep(model_output, timestep, sample, midway)
            return result

        scheduler.step = self._own_step = step

    def _release_scheduler(self) -> None:
        # Where somebody has put another step over ours since, ours stays below it and does nothing.
        if self._scheduler is not None and vars(self._scheduler).get("step") is self._own_step:
            if self._replaced is None:
                del self._scheduler.step
            else:
                self._scheduler.step = self._replaced
        self._scheduler = None


class _Call:
    """What one call of the denoiser was given, by reference."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._kwargs = kwargs
        self._latents: Tensor = args[0] if args else kwargs["hidden_states"]
        self.text: Tensor = kwargs["encoder_hidden_states"]
        self.tokens: dict[str, Tensor] = {}

    def goes_on(self, first: "_Call") -> bool:
        """Whether it is of the same step as the first: the negative prompt's, or that of SD3's skipped layers.

        If not, the first is what a call of the pipeline left behind that failed between denoiser and scheduler.
        """
        return self._latents is first._latents or self._kwargs.get("skip_layers") is not None

    def unpack(self, latents: Tensor, packed: bool) -> Tensor:
        """Rows of 2 x 2 patches (B, T, 4 C) -> (B, C, H, W); other latents as they are."""
        if not packed:
            return latents
        if "img_ids" in self._kwargs:
            # (T, 3): 0, row, column.
            height, width = (int(size) + 1 for size in self._kwargs["img_ids"][:, 1:].amax(dim=0))
        else:
            height, width = self._kwargs["img_shapes"][0][0][1:]
        count, _, depth = latents.shape
        patches = latents.view(count, height, width, depth // 4, 2, 2)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(count, depth // 4, 2 * height, 2 * width)


def _per_picture(prompts: Sequence[str | None] | None, rows: int) -> tuple[str | None, ...]:
    """A prompt of each picture: prompts stand in blocks of as many pictures as each of them makes."""
    if prompts is None:
        return (None,) * rows
    if not prompts or rows % len(prompts):
        raise PipelineError(f"{len(prompts)} prompts were given for {rows} pictures; give one for each.")
    return tuple(prompt for prompt in prompts for _ in range(rows // len(prompts)))
