"""Paintings by a Stable Diffusion model that the user gives (UnsafeBench, section 4.1: its case study)."""

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Self

from PIL import Image

from judge.errors import CheckpointError, ConfigError, MissingExtraError, first_line

PROMPT = "in the style of oil painting"
"""As in the paper."""
STEPS = 50
"""Of the schedule, of which a strength of 0.1 takes the last tenth."""
_LIBRARIES = ("diffusers", "transformers")
"""Whose classes a pipeline may be made of."""
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")


@dataclass(frozen=True)
class DiffusionStyle:
    """Image-to-image with a fixed prompt and seed.

    The pipeline's safety checker is left out: it would replace what it flags by black squares, and pictures are
    measured here and not shown.
    """

    pipeline: Any
    """A `diffusers.StableDiffusionImg2ImgPipeline`."""
    name: str
    """The folder that it was loaded from."""
    seed: int = 0
    steps: int = STEPS

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"A style of {self.steps} steps; give at least 1.")

    @classmethod
    def load(cls, folder: Path, *, seed: int = 0, steps: int = STEPS, device: str | None = None) -> Self:
        """Load Stable Diffusion 1 or 2 from a folder with weights as safetensors.

        Args:
            folder: as `DiffusionPipeline.save_pretrained` and the hub's repositories have it.
            seed: of the noise, the same for every picture and strength.
            steps: of the schedule.
            device: such as `cpu` or `cuda`; by default a GPU where there is one.

        Raises:
            MissingExtraError: diffusers is not installed.
            CheckpointError: the folder holds no such pipeline, has no safetensors, or needs code of its own.
        """
        _check_index(folder)
        try:
            from diffusers import StableDiffusionImg2ImgPipeline
        except ImportError as error:
            raise MissingExtraError(
                "Restyling pictures needs diffusers: pip install 'arbiter-vision[diffusion]'; without --style_model a "
                "plain filter paints them."
            ) from error
        import torch

        try:
            pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder} could not be loaded as Stable Diffusion: {first_line(error)}"
            ) from error
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline, str(folder), seed, steps)

    def describe(self) -> dict[str, Any]:
        """What it is."""
        return {
            "kind": "diffusion",
            "said": f"{Path(self.name).name}, image to image, prompt {PROMPT!r}, {self.steps} steps, seed {self.seed}",
        }

    def paint(self, image: Image.Image, strength: float) -> Image.Image:
        """An RGB picture of the same size, painted at the model's own size; `strength` in [0, 1], 0 changes nothing.

        Raises:
            ConfigError: the strength is less than one step of the schedule.
        """
        if not strength:
            return image
        if int(self.steps * strength) < 1:  # the pipeline's own rounding
            raise ConfigError(
                f"A strength of {strength:g} is less than one of {self.steps} steps; take at least "
                f"{ceil(1 / strength)} steps."
            )
        import torch

        factor = self.pipeline.vae_scale_factor
        own = self.pipeline.unet.config.sample_size * factor / max(image.size)
        size = tuple(max(factor, round(side * own / factor) * factor) for side in image.size)
        painted = self.pipeline(
            prompt=PROMPT,
            image=image.resize(size, Image.Resampling.LANCZOS),
            strength=strength,
            num_inference_steps=self.steps,
            # On the CPU, so that the same seed gives the same noise on any machine.
            generator=torch.Generator("cpu").manual_seed(self.seed),
        ).images[0]
        found: Image.Image = painted.convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
        return found


def _check_index(folder: Path) -> None:
    """Check that a folder says that it holds Stable Diffusion, made of classes of the two libraries alone.

    Raises:
        CheckpointError: it does not.
    """
    index = folder / "model_index.json"
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{index} cannot be read ({first_line(error)}); give the folder of a Stable Diffusion pipeline."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{index} is not JSON: {first_line(error)}") from error
    kind = parts.get("_class_name") if isinstance(parts, dict) else None
    if kind not in _PIPELINES:
        raise CheckpointError(f"{folder} holds {kind!r}; the style takes one of {', '.join(_PIPELINES)}.")
    for name, part in parts.items():
        if name == "safety_checker" or not isinstance(part, list):  # left out; a setting
            continue
        if len(part) != 2 or part[0] not in (*_LIBRARIES, None):
            raise CheckpointError(
                f"{index}: {name} is {part!r}; only classes of {' and '.join(_LIBRARIES)} are loaded."
            )
