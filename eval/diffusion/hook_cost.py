"""What the hooks of an `Observer` cost while nobody looks, as a share of one call of the denoiser.

The hooks take microseconds and a call of the denoiser milliseconds, which vary by more than the hooks take. So both are
measured apart, in one run: the denoiser on what it was given in a real step; and the hooks around modules that do
nothing, with torch's own cost of calling hooked modules.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from eval.timing import Clock, seconds_of, time_in_turns
from judge.diffusion.layouts import attention_layers, layout_of
from judge.diffusion.observer import Observer


def hook_cost(
    pipeline: Any,
    layers: Sequence[str],
    prompts: Sequence[str],
    *,
    repeats: int = 15,
    turns: int = 500,
    clock: Clock | None = None,
    **options: Any,
) -> dict[str, float]:
    """Measure a pipeline's denoiser, and the hooks of an observer that is not asked to look.

    Args:
        pipeline: of diffusers.
        layers: attention layers that are watched.
        prompts: of the call whose first step is measured.
        repeats: measurements of each, in turns; the denoiser's median counts, and the least of the hooks, which other
            work on the machine can only add to.
        turns: steps of modules that do nothing in each measurement.
        clock: in seconds; the wall's on a GPU, processor time on a CPU, unless given.
        **options: of the call.

    Returns:
        `step_ms`, of one call of the denoiser; `hooks_us`, of the hooks in one step; `idle_overhead`, their ratio.
    """
    clock = clock or (time.perf_counter if torch.cuda.is_available() else time.process_time)
    denoiser: nn.Module = getattr(pipeline, layout_of(pipeline).denoiser)
    known = attention_layers(pipeline)
    modules = [denoiser, *(known[name] for name in layers)]
    given = _first_step(pipeline, modules, list(prompts), options)
    with torch.no_grad():
        args, kwargs = given[denoiser]
        steps = [seconds_of(lambda: denoiser(*args, **kwargs), clock=clock) for _ in range(repeats + 1)][1:]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "forward", _nothing))
        stack.enter_context(patch.object(pipeline.scheduler, "step", _nothing))

        def watched() -> None:
            with Observer(pipeline, layers):
                _empty_steps(pipeline, modules, given, turns)

        kinds: dict[str, Callable[[], None]] = {
            "plain": lambda: _empty_steps(pipeline, modules, given, turns),
            "watched": watched,
        }
        seconds = time_in_turns(kinds, repeats=repeats, clock=clock)
    hooks = max(0.0, (min(seconds["watched"]) - min(seconds["plain"])) / turns)
    step = median(steps)
    return {"step_ms": 1e3 * step, "hooks_us": 1e6 * hooks, "idle_overhead": hooks / step}


_Given = dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]
"""Module -> the arguments of its first call."""


def _first_step(
    pipeline: Any, modules: Sequence[nn.Module], prompts: list[str], options: dict[str, Any]
) -> _Given:
    given: _Given = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.setdefault(module, (args, kwargs))

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        pipeline(prompts, num_inference_steps=2, output_type="latent", **options)
    finally:
        for handle in handles:
            handle.remove()
    return given


def _empty_steps(pipeline: Any, modules: Sequence[nn.Module], given: _Given, turns: int) -> None:
    latents = torch.zeros(1)
    for _ in range(turns):
        for module in modules:
            args, kwargs = given[module]
            module(*args, **kwargs)
        pipeline.scheduler.step(latents, 0, latents)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for a module's forward and a scheduler's step."""
