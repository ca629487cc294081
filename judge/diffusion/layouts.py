"""How the pipelines of diffusers that can be watched are laid out: a table, and why the others are refused.

A pipeline is watched through its callback at the end of a step and through hooks on its denoiser. Both leave open what
differs between pipelines: in which order the two halves of a guided batch stand, which attention layers read the text,
how latents are packed, and which tensors have to lose a row for one picture of a batch to stop.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from judge.errors import PipelineError

Guidance = Literal["negative_first", "positive_first", "two_calls_positive_first"]
"""One batch of [negative, prompt] or [prompt, negative] rows, or a call for the prompt and one for the negative."""
Attention = Literal["cross", "joint"]
"""Image tokens that attend to the text (`attn2` of a U-Net), or a sequence of both (an MMDiT's `add_k_proj`)."""


@dataclass(frozen=True)
class Layout:
    """What has to be known of a pipeline to watch it.

    What the denoiser predicts (noise, velocity, flow) is said by the scheduler: see `noise_levels.prediction_of`.
    """

    pipeline: str
    """Name of the class."""
    denoiser: Literal["unet", "transformer"]
    """Attribute of the pipeline that holds the denoiser."""
    guidance: Guidance
    """Where the rows that read the prompt are while the pipeline guides; whether it does is seen at each step."""
    attention: Attention
    inputs: tuple[str, ...]
    """Tensors for `callback_on_step_end_tensor_inputs`: all that have a row for each picture."""
    packed: bool = False
    """Whether latents are (B, T, 4 C): 2 x 2 patches of (B, C, H, W) in rows."""
    whole_batch_only: str | None = None
    """Why one picture of a batch cannot be stopped alone; None where it can, by returning fewer rows of `inputs`."""


_EMBEDS = ("latents", "prompt_embeds")
_SDXL = (*_EMBEDS, "add_text_embeds", "add_time_ids")
_IMAGES = "the pipeline keeps {} of every picture that it does not hand to the callback"


def _unet(name: str, inputs: tuple[str, ...] = _EMBEDS, whole: str | None = None) -> Layout:
    return Layout(name, "unet", "negative_first", "cross", inputs, whole_batch_only=whole)


LAYOUTS = {
    layout.pipeline: layout
    for layout in (
        _unet("StableDiffusionPipeline"),
        _unet("StableDiffusionImg2ImgPipeline"),
        _unet("StableDiffusionXLPipeline", _SDXL),
        _unet("StableDiffusionXLImg2ImgPipeline", _SDXL),
        _unet("StableDiffusionControlNetPipeline", whole=_IMAGES.format("the control image")),
        _unet("StableDiffusionXLControlNetPipeline", _SDXL, _IMAGES.format("the control image")),
        Layout(
            "StableDiffusion3Pipeline",
            "transformer",
            "negative_first",
            "joint",
            (*_EMBEDS, "pooled_prompt_embeds"),
        ),
        Layout(
            "FluxPipeline",
            "transformer",
            "two_calls_positive_first",
            "joint",
            _EMBEDS,
            packed=True,
            whole_batch_only=_IMAGES.format("the guidance and the pooled prompt"),
        ),
        Layout(
            "QwenImagePipeline",
            "transformer",
            "two_calls_positive_first",
            "joint",
            _EMBEDS,
            packed=True,
            whole_batch_only=_IMAGES.format("the mask of the prompt and the negative prompt"),
        ),
    )
}
"""Class of diffusers -> its layout, as read in diffusers 0.42.1."""


def layout_of(pipeline: Any) -> Layout:
    """The layout of a pipeline.

    Raises:
        PipelineError: it cannot be watched or stopped, or nothing is known of its class; the message says which.
    """
    kind = type(pipeline)
    refuse_unstoppable(pipeline)
    for base in kind.__mro__:
        layout = LAYOUTS.get(base.__name__)
        if layout is None or base.__module__.partition(".")[0] != "diffusers":
            continue
        if kind.__call__ is not base.__call__:
            raise PipelineError(
                f"{kind.__name__} is a {base.__name__} with a denoising loop of its own (`__call__`), which nothing is "
                "known about. Use the class of diffusers."
            )
        attention_layers(pipeline, layout)
        if getattr(_denoiser(pipeline, layout).config, "encoder_hid_dim_type", None) == "ip_image_proj":
            return replace(layout, whole_batch_only=_IMAGES.format("the image prompt of an IP-Adapter"))
        return layout
    raise PipelineError(
        f"Nothing is known of the layout of {kind.__name__}: which half of a guided batch reads the prompt, and which "
        f"attention layers read the text. Known are {', '.join(LAYOUTS)}."
    )


def refuse_unstoppable(pipeline: Any) -> None:
    """Raise `PipelineError` of a pipeline without a callback at the end of a step, or without a way to interrupt it."""
    name = type(pipeline).__name__
    if any(base.__name__ == "ModularPipeline" for base in type(pipeline).__mro__):
        raise PipelineError(
            f"{name} is a modular pipeline: those call nothing at the end of a step and cannot be interrupted. Use the "
            "pipeline of the same model."
        )
    if "callback_on_step_end" not in inspect.signature(type(pipeline).__call__).parameters:
        raise PipelineError(
            f"{name} takes no `callback_on_step_end`, so nothing can be seen of a picture before it is finished. Judge "
            "the finished picture instead."
        )
    if not hasattr(type(pipeline), "interrupt"):
        raise PipelineError(
            f"{name} has a callback but cannot be interrupted: it would go on. Judge the finished picture instead."
        )


def _denoiser(pipeline: Any, layout: Layout) -> Any:
    denoiser = getattr(pipeline, layout.denoiser, None)
    if not isinstance(denoiser, nn.Module):
        raise PipelineError(f"This {layout.pipeline} has no {layout.denoiser}; load one.")
    return denoiser


def attention_layers(pipeline: Any, layout: Layout | None = None) -> dict[str, nn.Module]:
    """Name -> attention layer of the denoiser whose image tokens can be watched, in order of depth.

    Of a U-Net the `attn2` of every transformer block; of an MMDiT the `attn` of its double blocks. Its single blocks
    are not among them: image and text are one sequence there, read by the same projections.

    Raises:
        PipelineError: the denoiser has none, so its attention is of a kind that is not known.
    """
    layout = layout or layout_of(pipeline)
    found = dict(_attention(_denoiser(pipeline, layout), layout.attention))
    if not found:
        wanted = "`attn2` with `to_k`" if layout.attention == "cross" else "`attn` with `add_k_proj`"
        raise PipelineError(
            f"The {layout.denoiser} of this {layout.pipeline} is a {type(_denoiser(pipeline, layout)).__name__} "
            f"without {wanted}: its attention is of a kind that is not known here."
        )
    if layout.denoiser == "unet":
        # Modules of a U-Net are registered down, up, mid.
        places = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
        return dict(sorted(found.items(), key=lambda item: places.get(item[0].partition(".")[0], 3)))
    return found


def _attention(denoiser: nn.Module, kind: Attention) -> Iterator[tuple[str, nn.Module]]:
    wanted = ("attn2", "to_k") if kind == "cross" else ("attn", "add_k_proj")
    for name, module in denoiser.named_modules():
        if name.rpartition(".")[2] == wanted[0] and getattr(module, wanted[1], None) is not None:
            yield name.replace("_orig_mod.", ""), module
