"""Wall-clock time of functions, measured in turns: whatever else slows the machine for a while slows all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

Clock = Callable[[], float]


def seconds_of(function: Callable[[], Any], *, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, including the work that it leaves to a GPU."""
    synchronise()
    # Earlier work on the GPU is done by now, and not counted.
    started = clock()
    function()
    synchronise()
    return clock() - started


def time_in_turns(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warm_up: bool = True,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each of `repeats` calls of each function; all functions are called once in every round.

    With `warm_up`, each is called once before, unmeasured: a first call compiles, allocates and fills caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(-1 if warm_up else 0, repeats):
        for name, function in functions.items():
            taken = seconds_of(function, clock=clock)
            if round_number >= 0:
                seconds[name].append(taken)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list; a mean would count interruptions by other processes."""
    return {name: median(values) for name, values in seconds.items()}


def synchronise() -> None:
    """Wait for the GPU, if there is one: its work runs on after a call has returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
