"""Calling a pipeline under a guard, so that every picture asked for has its place in what comes out."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from judge.errors import PicturesStoppedError, PipelineError

from .guard import DiffusionGuard
from .outputs import blank_like, blank_picture, images_of, in_places, with_images, without_output
from .picture_verdicts import PictureVerdict
from .replacements import Redraw, StoppedPicture

_PER_PROMPT = ("prompt", "negative_prompt", "pooled_prompt", "negative_pooled_prompt", "image")
"""Beginnings of the names of arguments that hold something for each prompt."""


def guarded(pipeline: Any, guard: DiffusionGuard) -> Callable[..., Any]:
    """The pipeline as a function that gives no picture which the guard stopped, and none that is half-made.

    It is called as the pipeline is, in every `output_type` and with or without `return_dict`, and gives what the
    pipeline gives, with as many pictures as were asked for, in that order. In the place of a stopped one stands what
    the guard's `on_stop` says:

    - `blank`: a black picture of its size (zeros, also in latents);
    - `none`: None, and the pictures come as a list;
    - `raise`: nothing; a `PicturesStoppedError` ends the call as soon as a picture is stopped;
    - `Redraw`: the same prompt with other seeds, each under this guard, and a blank where all of them were stopped;
    - a function of a `StoppedPicture`: what it returns, of the same form as the others; None for nothing.

    A callback of the caller's own (`callback_on_step_end`) is called after the guard, with the pictures that are left.
    Modules that were moved to the device for the call are freed however it ends. In `nsfw_content_detected` a stopped
    picture is True.

    Raises (when it is called):
        PipelineError: the pipeline cannot be watched or stopped, or the call cannot be followed.
        PicturesStoppedError: with `on_stop="raise"`; or the call was interrupted before its first step.
        ConfigError: a function in `on_stop` returned a picture of another form.
    """
    return functools.partial(_call, pipeline, guard)


def _call(pipeline: Any, guard: DiffusionGuard, /, *args: Any, **kwargs: Any) -> Any:
    arguments = _by_name(pipeline, args, kwargs)
    output = _make(pipeline, guard, arguments)
    verdicts, rows = guard.verdicts, guard.kept
    stopped = [picture for picture, verdict in enumerate(verdicts) if verdict.stopped_at is not None]
    if not stopped:
        return output
    images = None if output is None else images_of(output)
    blank = blank_picture(pipeline, arguments, guard.latents) if images is None else blank_like(images[0])
    replaced = {
        picture: _replacement(pipeline, guard, arguments, picture, verdicts[picture], blank)
        for picture in stopped
    }
    images = in_places(images, rows, replaced, blank)
    if output is None:
        return without_output(pipeline, images, return_dict=arguments.get("return_dict", True))
    return with_images(output, images, rows, replaced)


def _by_name(pipeline: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(type(pipeline).__call__).bind(pipeline, *args, **kwargs)
    arguments = dict(list(bound.arguments.items())[1:])  # the first is the pipeline itself
    arguments.update(arguments.pop("kwargs", {}))
    return arguments


def _make(pipeline: Any, guard: DiffusionGuard, arguments: Mapping[str, Any]) -> Any:
    """What one call of the pipeline returns; None where it was ended or interrupted."""
    own = arguments.get("callback_on_step_end")
    if isinstance(own, DiffusionGuard):
        raise PipelineError(
            "The call has a guard already, and another as its callback. Use one guard, with a taxonomy that holds the "
            "categories of both."
        )
    own_inputs = getattr(own, "tensor_inputs", arguments.get("callback_on_step_end_tensor_inputs"))
    guard.begin(pipeline, _prompts(arguments), whole_batch_only=_why_whole_batch(arguments))
    try:
        output = pipeline(
            **{
                **arguments,
                "callback_on_step_end": functools.partial(guard, then=own),
                "callback_on_step_end_tensor_inputs": list(
                    dict.fromkeys([*guard.inputs_of(pipeline), *(own_inputs or ())])
                ),
            }
        )
    except PicturesStoppedError:
        if guard.on_stop == "raise":
            raise
        return None
    except BaseException:
        pipeline.maybe_free_model_hooks()
        raise
    finally:
        guard.close()
    if guard.ended:
        return output
    guard.interrupted()
    return None


def _replacement(
    pipeline: Any,
    guard: DiffusionGuard,
    arguments: Mapping[str, Any],
    picture: int,
    verdict: PictureVerdict,
    blank: Any,
) -> Any:
    """What takes the place of a stopped picture; None for nothing."""
    if isinstance(guard.on_stop, str):
        return None if guard.on_stop == "none" else blank_like(blank)
    if isinstance(guard.on_stop, Redraw):
        return _redraw(pipeline, guard, arguments, picture, guard.on_stop, blank)
    prompts = _prompts(arguments)
    each = len(guard.verdicts) // len(prompts) if prompts else 1
    prompt = prompts[picture // each] if prompts else None
    return guard.on_stop(StoppedPicture(picture, prompt, verdict, blank_like(blank)))


def _redraw(
    pipeline: Any,
    guard: DiffusionGuard,
    arguments: Mapping[str, Any],
    picture: int,
    redraw: Redraw,
    blank: Any,
) -> Any:
    """The first picture of the same prompt that is not stopped."""
    again = guard.copy()
    for attempt in range(redraw.times):
        one = _arguments_of_one(arguments, picture, len(guard.verdicts))
        generator = _first(arguments.get("generator"))
        device = "cpu" if generator is None else generator.device
        one["generator"] = torch.Generator(device).manual_seed(redraw.generator_seed(picture, attempt))
        output = _make(pipeline, again, one)
        guard.note_redrawn(picture, again.verdicts[0])
        if again.verdicts[0].stopped_at is None:
            return images_of(output)[0]
    return blank_like(blank)


def _arguments_of_one(arguments: Mapping[str, Any], picture: int, pictures: int) -> dict[str, Any]:
    """The arguments of a call that makes one of the pictures alone, from noise of its own."""
    one = {name: value for name, value in arguments.items() if name not in ("latents", "generator")}
    prompts = _count(arguments)
    place = picture // (pictures // prompts)
    for name, value in one.items():
        batch = isinstance(value, list | tuple | torch.Tensor) and not isinstance(value, str)
        if name.startswith(_PER_PROMPT) and batch and len(value) == prompts:
            one[name] = value[place : place + 1]
    return {**one, "num_images_per_prompt": 1, "return_dict": True}


def _count(arguments: Mapping[str, Any]) -> int:
    """How many prompts a call has."""
    prompts = _prompts(arguments)
    return len(arguments["prompt_embeds"]) if prompts is None else len(prompts)


def _prompts(arguments: Mapping[str, Any]) -> list[str] | None:
    """The prompts of a call; None where it was given embeddings."""
    prompt = arguments.get("prompt")
    return [prompt] if isinstance(prompt, str) else None if prompt is None else list(prompt)


def _first(generator: Any) -> Any:
    return generator[0] if isinstance(generator, list) else generator


def _why_whole_batch(arguments: Mapping[str, Any]) -> str | None:
    """Why the arguments of a call keep its batch together."""
    if arguments.get("skip_guidance_layers") is not None:
        return "skip-layer guidance keeps the prompts of the whole batch"
    return None
