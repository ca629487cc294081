"""What a pipeline returns, with something else in the place of some pictures."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from judge.errors import ConfigError, PipelineError


def images_of(output: Any) -> Any:
    """The pictures in what a pipeline returned: a list of PIL images, an array or a tensor, (N, ...).

    Raises:
        PipelineError: there are none.
    """
    images = output[0] if isinstance(output, tuple) else getattr(output, "images", None)
    if not isinstance(images, list | np.ndarray | torch.Tensor):
        raise PipelineError(f"The pipeline returned a {type(output).__name__} without pictures.")
    return images


def blank_like(picture: Any) -> Any:
    """A black picture like another one: PIL image, array or tensor (zeros in both)."""
    if isinstance(picture, Image.Image):
        return Image.new(picture.mode, picture.size)
    return np.zeros_like(picture) if isinstance(picture, np.ndarray) else torch.zeros_like(picture)


def blank_picture(pipeline: Any, arguments: Mapping[str, Any], latents: torch.Tensor) -> Any:
    """A black picture of the size and form that a call would have given.

    Args:
        pipeline: that was called.
        arguments: of the call, by name.
        latents: those of one picture, without a batch; (C, H, W), or (T, D) where a transformer packs them.
    """
    kind = arguments.get("output_type") or "pil"
    if kind == "latent":
        return torch.zeros_like(latents)
    factor = int(pipeline.vae_scale_factor)
    if latents.ndim == 3:
        height, width = (side * factor for side in latents.shape[1:])
    else:
        default = int(pipeline.default_sample_size) * factor
        # Packed latents hold 2 x 2 patches, to which sizes are rounded down.
        height, width = (
            int(arguments.get(name) or default) // (2 * factor) * 2 * factor for name in ("height", "width")
        )
    if kind == "np":
        return np.zeros((height, width, 3), dtype=np.float32)
    return latents.new_zeros(3, height, width) if kind == "pt" else Image.new("RGB", (width, height))


def in_places(images: Any, rows: Sequence[int], replaced: Mapping[int, Any], example: Any) -> Any:
    """The pictures of a call in their places, and others in the place of those that were stopped.

    Args:
        images: (R, ...) pictures that came out; None where none did.
        rows: which picture of the call each of them is.
        replaced: picture -> what takes its place, None for nothing.
        example: a picture of the form that all have to have.

    Raises:
        ConfigError: a replacement has another form.
    """
    for picture, replacement in replaced.items():
        if replacement is not None and _form(replacement) != _form(example):
            raise ConfigError(
                f"In the place of picture {picture} came {_form(replacement)} and {_form(example)} was expected."
            )
    places = dict(replaced)
    places.update({picture: images[row] for row, picture in enumerate(rows) if picture not in replaced})
    ordered = [places[picture] for picture in sorted(places)]
    if isinstance(example, Image.Image) or any(picture is None for picture in ordered):
        return ordered
    return np.stack(ordered) if isinstance(example, np.ndarray) else torch.stack(ordered)


def with_images(output: Any, images: Any, rows: Sequence[int], replaced: Mapping[int, Any]) -> Any:
    """What the pipeline returned, with other pictures.

    Flags of its own checker move with their pictures, and are True for those that were stopped.
    """
    if isinstance(output, tuple):
        return (images, *(_in_places_of_flags(value, rows, replaced) for value in output[1:]))
    fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    fields = {name: _in_places_of_flags(value, rows, replaced) for name, value in fields.items()}
    return type(output)(**{**fields, "images": images})


def without_output(pipeline: Any, images: Any, *, return_dict: bool) -> Any:
    """What the pipeline would have returned, of a call that the guard ended."""
    kind = _output_class(pipeline)
    names = [field.name for field in dataclasses.fields(kind)]
    values = {name: [True] * len(images) if name == "nsfw_content_detected" else None for name in names}
    values["images"] = images
    return kind(**values) if return_dict else tuple(values[name] for name in names)


def _output_class(pipeline: Any) -> Any:
    """The class of what a pipeline returns, as its module imports it; diffusers' general one where it has none."""
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
    from diffusers.utils import BaseOutput

    for base in type(pipeline).__mro__:
        for name, value in vars(sys.modules[base.__module__]).items():
            if name.endswith("PipelineOutput") and isinstance(value, type) and issubclass(value, BaseOutput):
                return value
    return ImagePipelineOutput


def _in_places_of_flags(value: Any, rows: Sequence[int], replaced: Mapping[int, Any]) -> Any:
    if (
        not isinstance(value, list)
        or len(value) != len(rows)
        or not all(isinstance(flag, bool) for flag in value)
    ):
        return value
    flags = dict.fromkeys(replaced, True)
    flags.update({picture: value[row] for row, picture in enumerate(rows) if picture not in replaced})
    return [flags[picture] for picture in sorted(flags)]


def _form(picture: Any) -> str:
    if isinstance(picture, Image.Image):
        return f"a PIL image of {picture.width} x {picture.height}"
    return f"{type(picture).__name__} of shape {tuple(np.shape(picture))}"
