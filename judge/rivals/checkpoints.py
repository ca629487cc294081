"""Load other people's vision-language checkpoints: safetensors only, no remote code, image processors on Pillow.

Unlike `judge.vlm.load`, nothing is asked of a base but what its own processor does: rivals are measured as published.
torchvision is never needed: where transformers has no image processor on Pillow, as for Llama 4, there is one here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, first_line
from judge.runs.references import HUB
from judge.standins.shipped import base_path
from judge.vlm.processor import load_processor
from prompts.errors import ArbiterError


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is, and how it is loaded."""

    path: str
    """A folder, or `hf:` and a hub id; a bare hub id is taken as well."""
    device: str | None = None
    """By default a GPU where there is one."""
    dtype: str = "auto"
    """As saved, or a name such as `bfloat16`."""
    revision: str = "main"

    @property
    def source(self) -> str:
        """What transformers is given."""
        return base_path(self.path.removeprefix(HUB))


def load_checkpoint(checkpoint: Checkpoint, kind: str = "AutoModelForImageTextToText") -> tuple[Any, Any]:
    """Load a model in evaluation mode, and its processor.

    Args:
        checkpoint: where.
        kind: name of a class of transformers.

    Raises:
        CheckpointError: it cannot be loaded as such a model, or has weights that are no safetensors.
        MissingExtraError: its image processor exists for torchvision only, which is not installed.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    common = {"revision": checkpoint.revision, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.source, **common)
        load = _PROCESSORS.get(config.model_type, load_processor)
        processor = load(checkpoint.source, checkpoint.revision)
        model, told = getattr(transformers, kind).from_pretrained(
            checkpoint.source,
            dtype=checkpoint.dtype,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
    except ArbiterError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        AttributeError,
        TypeError,
        SafetensorError,
    ) as error:
        raise CheckpointError(
            f"{checkpoint.path!r} could not be loaded as {kind}: {first_line(error)} "
            "Give a folder or hub id with config.json and safetensors."
        ) from error
    # transformers fills what a checkpoint lacks with random weights, and only warns.
    lacking = [*told["missing_keys"], *told["mismatched_keys"]]
    if lacking:
        raise CheckpointError(
            f"{checkpoint.path!r} lacks {len(lacking)} weights of a {type(model).__name__}, such as {lacking[0]}; "
            "it is damaged, or a checkpoint of another kind."
        )
    device = checkpoint.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), processor


def _instructblip_processor(path: str, revision: str) -> Any:
    """InstructBLIP's processor, which has a second tokenizer, in a folder of its own."""
    from transformers import AutoImageProcessor, AutoTokenizer, InstructBlipProcessor

    common = {"revision": revision, "trust_remote_code": False}
    settings, _ = InstructBlipProcessor.get_processor_dict(path, **common)
    return InstructBlipProcessor(
        AutoImageProcessor.from_pretrained(path, backend="pil", **common),
        AutoTokenizer.from_pretrained(path, **common),
        AutoTokenizer.from_pretrained(path, subfolder="qformer_tokenizer", **common),
        num_query_tokens=settings.get("num_query_tokens"),
    )


def _llama4_processor(path: str, revision: str) -> Any:
    """Llama 4's processor around our image processor on Pillow."""
    from transformers import AutoTokenizer, Llama4Processor
    from transformers.image_processing_utils import BaseImageProcessor

    from .llama4_images import Llama4ImagesPil

    common = {"revision": revision, "trust_remote_code": False}
    settings, _ = Llama4Processor.get_processor_dict(path, **common)
    images, _ = BaseImageProcessor.get_image_processor_dict(path, **common)
    known = {name: images[name] for name in ("size", "max_patches", "resize_to_max_canvas") if name in images}
    tokenizer = AutoTokenizer.from_pretrained(path, **common)
    return Llama4Processor.from_args_and_dict([Llama4ImagesPil(**known), tokenizer], settings)


_PROCESSORS = {"instructblip": _instructblip_processor, "llama4": _llama4_processor}
"""What loads a processor, by type of model, where `load_processor` cannot."""


def checkpoint_name(path: str | Path) -> str:
    """What verdicts call a model: the last part of its path or hub id."""
    return str(path).rstrip("/").rsplit("/", 1)[-1]
