"""What watching a pipeline costs, as shares of one denoising step, measured in one run."""

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from eval.timing import Clock, synchronise
from judge.diffusion.detector import Detector
from judge.diffusion.observer import Observer
from prompts.taxonomy import Taxonomy


def measure_overheads(
    pipeline: Any,
    detector: Detector,
    taxonomy: Taxonomy,
    prompts: Sequence[str],
    *,
    at: Sequence[int],
    steps: int,
    guidance: float,
    turns: int = 6,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Time the steps of `turns` calls: every second one is watched by hooks, the others are not.

    Watched and unwatched steps alternate within a call, and change places from call to call, so that whatever else
    slows the machine slows both. Medians are compared. On a GPU the clock is the wall's, after its work is done; on a
    CPU it is processor time, which other processes change little.

    Args:
        pipeline: of diffusers.
        detector: whose layers are watched, and which scores the looks.
        taxonomy: of K categories.
        prompts: of one call.
        at: steps after which a look is taken, from 1.
        steps: of a call.
        guidance: scale of classifier-free guidance.
        turns: calls that are measured, after one that is not.
        clock: in seconds.

    Returns:
        `step_ms`, of an unwatched step; `look`, a look and its scores over such a step; `idle`, how much longer a
        watched step is without any look, over such a step; `pictures`, made in one call.
    """
    clock = clock or (time.perf_counter if torch.cuda.is_available() else time.process_time)
    seconds: dict[str, list[float]] = {"plain": [], "watched": [], "look": []}
    for turn in range(turns + 1):
        found = _one_call(pipeline, detector, taxonomy, prompts, frozenset(at), steps, guidance, turn, clock)
        if turn:
            for name, values in found.items():
                seconds[name] += values
    step = median(seconds["plain"])
    return {
        "step_ms": 1000 * step,
        "look": median(seconds["look"]) / step,
        "idle": median(seconds["watched"]) / step - 1,
        "pictures": len(prompts),
        "steps_timed": len(seconds["plain"]),
    }


def overheads_by_batch(
    pipeline: Any,
    detector: Detector,
    taxonomy: Taxonomy,
    prompts: Sequence[str],
    *,
    batch_size: int,
    at: Sequence[int],
    steps: int,
    guidance: float,
) -> dict[str, Any]:
    """`measure_overheads` of one picture a call and of a batch; arguments are the same.

    Returns:
        `overheads`: both; `look_overhead` and `idle_overhead`: shares of a step, of the batch.
    """
    found = [
        measure_overheads(
            pipeline,
            detector,
            taxonomy,
            [prompts[number % len(prompts)] for number in range(count)],
            at=at,
            steps=steps,
            guidance=guidance,
        )
        for count in dict.fromkeys((1, batch_size))
    ]
    return {"overheads": found, "look_overhead": found[-1]["look"], "idle_overhead": found[-1]["idle"]}


def _one_call(
    pipeline: Any,
    detector: Detector,
    taxonomy: Taxonomy,
    prompts: Sequence[str],
    at: frozenset[int],
    steps: int,
    guidance: float,
    turn: int,
    clock: Clock,
) -> Mapping[str, list[float]]:
    """Seconds of the steps of one call that were watched, of those that were not, and of looks."""
    seconds: dict[str, list[float]] = {"plain": [], "watched": [], "look": []}
    observer: Observer | None = None
    began = 0.0

    def end_of_step(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal observer, began
        synchronise()
        if index:  # what lies before the first step is not one
            seconds["plain" if observer is None else "watched"].append(clock() - began)
        if observer is not None and index + 1 in at:
            started = clock()
            detector.score(observer.look(pipeline, index, prompts), taxonomy)
            synchronise()
            seconds["look"].append(clock() - started)
        if observer is not None:
            observer.close()
        # A look needs a watched step before it; the others alternate.
        watched = index + 2 in at or (index + turn) % 2 == 0
        observer = Observer(pipeline, detector.layers) if watched else None
        began = clock()
        return tensors

    try:
        pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(number) for number in range(len(prompts))],
            output_type="latent",
            callback_on_step_end=end_of_step,
        )
    finally:
        if observer is not None:
            observer.close()
    return seconds
