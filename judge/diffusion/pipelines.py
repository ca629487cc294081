"""Opening a diffusion pipeline by name."""

from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, MissingExtraError, first_line
from judge.standins.shipped import SHIPPED_PIPELINES, checkpoint_path


def load_pipeline(
    name_or_path: str, *, device: str = "cpu", dtype: str = "float32", revision: str = ""
) -> Any:
    """A text-to-image pipeline of diffusers, in eval mode and without progress bars.

    Only weights in safetensors are read, never pickles.

    Args:
        name_or_path: `tiny-diffusion`, which ships; a folder that `save_pretrained` wrote; or `organisation/model` of
            the hub.
        device: where it runs, as torch names it.
        dtype: of its weights, as torch names it.
        revision: commit or tag of a model of the hub.

    Raises:
        MissingExtraError: diffusers is not installed.
        CheckpointError: there is no such pipeline, or its files are damaged.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtraError(
            "Drawing pictures needs diffusers: pip install 'arbiter-vision[diffusion]'."
        ) from error
    import torch

    shipped = name_or_path in SHIPPED_PIPELINES and not Path(name_or_path).exists()
    path = str(checkpoint_path(name_or_path)) if shipped else name_or_path
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            path, dtype=getattr(torch, dtype), revision=revision or None, use_safetensors=True
        )
    except Exception as error:  # diffusers raises whatever its parts raise
        raise CheckpointError(
            f"{name_or_path!r} cannot be opened as a diffusion pipeline ({first_line(error)}). Give "
            f"{', '.join(SHIPPED_PIPELINES)}, a folder with a model_index.json, or organisation/model of the hub."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
