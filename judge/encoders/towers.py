"""Image towers: pixels -> pooled embedding and patches, before a projection into the joint space.

Patches take the path of the pooled embedding, so that both lie in one space: those of a CLIP go through its last norm
(MaskCLIP, Zhou et al. 2022, section 3.2), those of a SigLIP or ViT one by one through its pooling head. For a single
patch SigLIP's attention pooling is the value and output projection and the MLP.
"""

from typing import Any

import torch
from torch import Tensor

from judge.errors import CheckpointError

IMAGE_TOWERS = ("clip_vision_model", "siglip_vision_model", "vit")
"""Supported values of `vision_config.model_type` in a vision-text dual encoder."""
TEXT_TOWERS = ("bert", "roberta", "xlm-roberta")
"""Supported values of `text_config.model_type` in one."""


def image_tokens(tower: Any, pixel_values: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1 + P, width of the tower): the pooled embedding, then the patches in row order."""
    output = tower(pixel_values)
    hidden, kind = output.last_hidden_state, tower.config.model_type
    if kind == "clip_vision_model":
        patches = tower.post_layernorm(hidden[:, 1:])  # without CLS
    else:
        own = hidden if kind == "siglip_vision_model" else hidden[:, 1:]
        pool = tower.head if kind == "siglip_vision_model" else tower.pooler
        # (B, P, W) -> (B * P, 1, W): the pooling head takes every patch as a sequence of its own.
        patches = pool(own.flatten(0, 1)[:, None]).view_as(own)
    return torch.cat([output.pooler_output[:, None], patches], dim=1)


def check_towers(model: Any, *, name: str, pooler: bool) -> None:
    """Check the towers of a vision-text dual encoder.

    Args:
        model: a `VisionTextDualEncoderModel`.
        name: of the encoder, for messages.
        pooler: whether texts are embedded by the text model's pooler.

    Raises:
        CheckpointError: another tower, or one without what pools its tokens.
    """
    image, text = model.vision_model, model.text_model
    for what, kind, allowed in (
        ("image", image.config.model_type, IMAGE_TOWERS),
        ("text", text.config.model_type, TEXT_TOWERS),
    ):
        if kind not in allowed:
            raise CheckpointError(
                f"{name!r} has a {kind!r} as {what} tower; supported are {', '.join(allowed)}."
            )
    needed = {"siglip_vision_model": "head", "vit": "pooler"}.get(image.config.model_type)
    if needed is not None and getattr(image, needed, None) is None:
        raise CheckpointError(
            f"{name!r} has an image tower without a pooled embedding ({needed}); supported are "
            f"{', '.join(IMAGE_TOWERS)}, each with one."
        )
    if pooler and getattr(text, "pooler", None) is None:
        raise CheckpointError(
            f"{name!r} has a text tower without a pooler; declare text_pooling of mode mean or cls in its config.json."
        )


def text_context(config: Any, tokenizer: Any) -> int:
    """Most tokens that a BERT-like text model reads at once, special ones included: its limit or the tokenizer's."""
    positions = int(config.max_position_embeddings)
    if config.model_type != "bert":  # a RoBERTa counts positions from behind its padding token's id
        positions -= int(config.pad_token_id) + 1
    return min(positions, int(tokenizer.model_max_length))
