"""What each piece of work around a generator costs for one picture: seconds, measured in one run on the same batch."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from eval.timing import medians, seconds_of, time_in_turns
from judge.cascade.generation_work import Prices
from judge.cascade.prompt_filter import PromptFilter
from judge.diffusion.detector import Detector
from judge.diffusion.observer import Observer
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

REPEATS = 5
LOOKS = 10
"""Calls of a detector that are timed together, as one is short."""


def measure_prices(
    pipeline: Any,
    prompts: Sequence[str],
    taxonomy: Taxonomy,
    *,
    detector: Detector | None = None,
    prompt_filter: PromptFilter | None = None,
    student: Classifier | None = None,
    steps: int = 20,
    guidance: float = 5.0,
    at: int | None = None,
    repeats: int = REPEATS,
) -> Prices:
    """Seconds for one picture of each piece of work, as medians of repeats, taken in turns.

    On a CPU these are the process's own seconds, so that another process does not count; on a GPU those of the clock.
    A step holds its part of encoding the prompt; decoding includes making a picture of the numbers.

    Args:
        pipeline: a diffusers pipeline.
        prompts: B of them, drawn together.
        taxonomy: what detector, filter and student are asked.
        detector: timed with what the observer does for it.
        prompt_filter: timed on the prompts.
        student: timed on the finished pictures.
        steps: of a picture.
        guidance: scale of classifier-free guidance.
        at: the step whose look is timed; by default the middle one.
        repeats: of each measurement.
    """
    names, rows = list(prompts), len(prompts)
    clock = time.process_time if torch.device(pipeline.device).type == "cpu" else time.perf_counter
    pictures = _draw(pipeline, names, steps, guidance, "pil").images
    latents = _draw(pipeline, names, steps, guidance, "latent").images
    timed: dict[str, Callable[[], Any]] = {
        "draw": lambda: _draw(pipeline, names, steps, guidance, "latent"),
        "decode": lambda: _decode(pipeline, latents),
    }
    if prompt_filter is not None:
        timed["prompt"] = lambda: prompt_filter.score(names, taxonomy)
    if student is not None:
        timed["student"] = lambda: student.score(pictures, names, taxonomy)
    taken = medians(time_in_turns(timed, repeats=repeats, clock=clock))
    seconds = {name: value / rows for name, value in taken.items()}
    seconds["step"] = seconds.pop("draw") / steps
    if detector is not None:
        one = _look_seconds(
            pipeline, names, taxonomy, detector, steps, guidance, at or (steps + 1) // 2, clock
        )
        seconds["look"] = one / rows
    return Prices.from_dict(seconds)


def _draw(pipeline: Any, prompts: list[str], steps: int, guidance: float, form: str, **more: Any) -> Any:
    return pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(number) for number in range(len(prompts))],
        output_type=form,
        **more,
    )


def _decode(pipeline: Any, latents: Any) -> Any:
    """What a pipeline does after its last step; for unpacked latents, as those of Stable Diffusion."""
    with torch.no_grad():
        config = pipeline.vae.config
        moved = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return pipeline.image_processor.postprocess(pipeline.vae.decode(moved, return_dict=False)[0])


def _look_seconds(
    pipeline: Any,
    prompts: list[str],
    taxonomy: Taxonomy,
    detector: Detector,
    steps: int,
    guidance: float,
    at: int,
    clock: Callable[[], float],
) -> float:
    """Seconds of one look at a batch; the first, which encodes the taxonomy, is not counted."""
    found: list[float] = []

    def watch(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        def look() -> None:
            for _ in range(LOOKS):
                detector.score(observer.look(pipe, index, prompts), taxonomy)

        if index + 1 == at:
            look()
            found.append(seconds_of(look, clock=clock) / LOOKS)
        return tensors

    with Observer(pipeline, detector.layers) as observer:
        _draw(pipeline, prompts, steps, guidance, "latent", callback_on_step_end=watch)
    return found[0]
