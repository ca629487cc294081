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

from .hook_cost import hook_cost


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
    """Time the steps of `turns` calls, and the looks in between; medians are compared.

    On a GPU the clock is the wall's, after its work is done; on a CPU it is processor time, which other processes
    change little. Hooks cost less than steps differ from each other, so `hook_cost` measures them apart.

    Args:
        pipeline: of diffusers.
        detector: whose layers are watched, and which scores the looks.
        taxonomy: of K categories.
        prompts: of one call.
        at: steps after which a look is taken, from 1.
        steps: of a call.
        guidance: scale of classifier-free guidance.
        turns: calls that are timed, after one that is not.
        clock: in seconds.

    Returns:
        `step_ms`, of a step; `look`, a look and its scores over a step; `idle`, hooks that nobody looks through over a
        call of the denoiser; `pictures`, made in one call.
    """
    clock = clock or (time.perf_counter if torch.cuda.is_available() else time.process_time)
    seconds: dict[str, list[float]] = {"step": [], "look": []}
    for turn in range(turns + 1):
        found = _one_call(pipeline, detector, taxonomy, prompts, frozenset(at), steps, guidance, clock)
        if turn:
            for name, values in found.items():
                seconds[name] += values
    step = median(seconds["step"])
    hooks = hook_cost(
        pipeline,
        detector.layers,
        prompts,
        clock=clock,
        guidance_scale=guidance,
    )
    return {
        "step_ms": 1000 * step,
        "look": median(seconds["look"]) / step,
        "idle": hooks["idle_overhead"],
        "pictures": len(prompts),
        "steps_timed": len(seconds["step"]),
    }


def batch_overheads(
    pipeline: Any,
    detector: Detector,
    taxonomy: Taxonomy,
    prompts: Sequence[str],
    *,
    size: int,
    at: Sequence[int],
    steps: int,
    guidance: float,
) -> dict[str, Any]:
    """`measure_overheads` of calls for one picture, eight and `size`; other arguments are the same.

    Returns:
        `overheads`: each; `look_overhead` and `idle_overhead`: shares of a step, of the batch.
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
        for count in dict.fromkeys((1, min(8, size), size))
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
    clock: Clock,
) -> Mapping[str, list[float]]:
    """Seconds of the steps of one call, and of its looks."""
    seconds: dict[str, list[float]] = {"step": [], "look": []}
    began = 0.0

    def end_of_step(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal began
        synchronise()
        if index:  # what lies before the first step is not one
            seconds["step"].append(clock() - began)
        if index + 1 in at:
            started = clock()
            detector.score(observer.look(pipeline, index, prompts), taxonomy)
            synchronise()
            seconds["look"].append(clock() - started)
        began = clock()
        return tensors

    with Observer(pipeline, detector.layers) as observer:
        pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(number) for number in range(len(prompts))],
            output_type="latent",
            callback_on_step_end=end_of_step,
        )
    return seconds
