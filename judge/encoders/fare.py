"""A robust image encoder: FARE fine-tuning on unlabelled images.

A head on a frozen ordinary CLIP cannot be made robust to L-inf changes, because the encoder's tokens already move. FARE
(Schlarmann et al. 2024, "Robust CLIP", section 3.2) fine-tunes the image tower so that its tokens at attacked pixels
equal the frozen original's at clean ones. Text tower and joint space stay, so heads, filters and categories made for
the original keep working. Our heads use patch tokens as well, so the loss includes them.

Pixels are those at the model's input, float32 in [0, 1], as in `adversarial.threat`.
"""

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from judge.data.images import open_image
from judge.errors import CheckpointError, ConfigError
from judge.runs.checkpoint import TrainingState
from judge.runs.files import share_files
from prompts.example import Example

from .dual import DualEncoder
from .perturb import as_pixels, cosine_with_warmup, perturb


def fare_loss(tokens: Tensor, original: Tensor, patch_weight: float) -> Tensor:
    """Squared L2 distance to the frozen original's clean tokens, mean over images.

    The pooled token's distance is L_FARE (Robust CLIP, eq. 3); the patches' mean is added with `patch_weight`.

    Args:
        tokens: (B, 1 + P, D) of `DualEncoder.encode_pixel_values` at attacked pixels.
        original: (B, 1 + P, D) of the encoder before fine-tuning, at clean pixels.
        patch_weight: at least 0; 0 is FARE as published.
    """
    distance = (tokens - original).square().sum(-1)  # (B, 1 + P)
    return (distance[:, 0] + patch_weight * distance[:, 1:].mean(-1)).mean()


def resize_to_input(encoder: DualEncoder, examples: Sequence[Example]) -> Tensor:
    """(N, 3, h, w) bytes: images as the image processor resizes and crops them, before it normalises.

    So training perturbs images of one size, whatever the size of the files. One byte a value: 8,000 images of 224 x 224
    take 1.2 GB.
    """
    processor = copy(encoder.image_processor)
    processor.do_rescale = processor.do_normalize = False  # on a copy: values stay 0 to 255
    parts = []
    for start in range(0, len(examples), 256):  # few decoded images in memory at a time
        images = [open_image(example.image) for example in examples[start : start + 256]]
        values = processor(images=images, return_tensors="pt")["pixel_values"]
        parts.append(values.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def unfreeze_image_tower(encoder: DualEncoder, blocks: int | None = None) -> list[nn.Parameter]:
    """Make the image tower trainable, in place; everything else stays frozen.

    Args:
        encoder: the encoder to train; pass a copy (`copy_encoder`) to keep the original.
        blocks: train only the embeddings and this many first blocks, which matter most for robustness (R-Adapt, arXiv
            2603.12799); by default the whole tower with its projection.

    Returns:
        The trainable parameters.

    Raises:
        ConfigError: more blocks than there are.
    """
    tower = encoder.model.vision_model
    layers = tower.layers if hasattr(tower, "layers") else tower.encoder.layers  # the first in ViT
    if blocks is not None and not 1 <= blocks <= len(layers):
        raise ConfigError(
            f"blocks is {blocks}; {encoder.name!r} has 1 to {len(layers)}, or none for all of it."
        )
    parts = [tower] if blocks is None else [tower.embeddings, *layers[:blocks]]
    if blocks is not None and hasattr(tower, "pre_layrnorm"):  # so spelt in CLIP
        parts.append(tower.pre_layrnorm)
    if blocks is None and encoder.family != "siglip":
        parts.append(encoder.model.visual_projection)
    encoder.model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]


def copy_encoder(encoder: DualEncoder) -> DualEncoder:
    """A copy with weights of its own; tokenizer and image processor are shared."""
    twin = copy(encoder)
    twin.model = deepcopy(encoder.model)
    return twin


def save_encoder(encoder: DualEncoder, folder: Path) -> DualEncoder:
    """Write the encoder in the hub's layout, and load it back: frozen, with its new name and fingerprint.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        encoder.model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        encoder.image_processor.save_pretrained(folder)
        share_files(folder)
    except OSError as error:
        raise CheckpointError(f"No encoder can be kept in {folder}: {error.strerror}.") from error
    return DualEncoder.load(folder, device=encoder.device)


@dataclass
class FareOptions:
    """How the image tower is fine-tuned."""

    epsilon: str = field(
        default="8/255", metadata={"help": "Largest change of a pixel value, such as 4/255."}
    )
    steps: int = field(default=3, metadata={"help": "Gradients to find each attacked image."})
    patch_weight: float = field(
        default=1.0, metadata={"help": "Weight of the patch tokens beside the pooled one."}
    )
    clean_weight: float = field(
        default=0.0, metadata={"help": "Weight of the same loss on clean images beside the attacked ones."}
    )
    blocks: int | None = field(
        default=None, metadata={"help": "Train the first so many blocks only; by default the whole tower."}
    )
    epochs: int = field(default=10, metadata={"help": "Passes over the images."})
    learning_rate: float = field(
        default=3e-4,
        metadata={"help": "Highest rate of AdamW, after a tenth of all steps; then a cosine to 0."},
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "Of AdamW."})
    train_batch_size: int = field(default=64, metadata={"help": "Images in a step, over all processes."})
    seed: int = field(default=42, metadata={"help": "Of order and random starts."})

    def __post_init__(self) -> None:
        if self.steps < 1 or self.epochs < 1 or self.train_batch_size < 1 or not self.learning_rate > 0:
            raise ConfigError(
                f"steps {self.steps}, epochs {self.epochs}, train_batch_size {self.train_batch_size} and learning_rate "
                f"{self.learning_rate} must all be positive."
            )
        if self.patch_weight < 0 or self.clean_weight < 0:
            raise ConfigError(
                f"patch_weight {self.patch_weight} and clean_weight {self.clean_weight} must not be negative."
            )


class _Tower(nn.Module):
    """The encoder as a module called with pixels, which accelerate can wrap."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.model, self._encode = encoder.model, encoder.encode_pixels

    def forward(self, pixels: Tensor) -> Tensor:
        return self._encode(pixels)


def fare(
    encoder: DualEncoder,
    images: Tensor,
    epsilon: float,
    options: FareOptions,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, float]]:
    """Fine-tune the image tower in place; under `accelerate launch`, processes share each batch.

    Args:
        encoder: the encoder to train; its state at the start is the original of the loss.
        images: (N, 3, h, w) bytes of `resize_to_input`, without labels.
        epsilon: largest change of a value, pixels in [0, 1].
        options: training options.
        checkpoint: a file to keep the state in after each epoch, and to go on from if it is there.
        progress: called with the number of epochs done, for a progress bar.

    Returns:
        For each epoch `epoch` and `loss`, the mean over steps.

    Raises:
        ConfigError: a batch that the processes cannot share.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    place, count, size = accelerator.process_index, accelerator.num_processes, options.train_batch_size
    if size % count:
        raise ConfigError(
            f"train_batch_size {size} cannot be shared by {count} processes; give a multiple of that."
        )
    original = copy_encoder(encoder)
    original.model.requires_grad_(False)
    parameters = unfreeze_image_tower(encoder, options.blocks)
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    tower, optimizer = accelerator.prepare(_Tower(encoder), optimizer)
    steps = max(len(images) // size, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warmup(options.epochs * steps))
    generator = torch.Generator().manual_seed(options.seed)  # the same order in all processes
    torch.manual_seed(options.seed + place)  # each process draws random starts of its own
    state = TrainingState(checkpoint, parameters, optimizer, schedule, generator)
    history: list[dict[str, float]] = state.load().get("history", [])
    for epoch in range(len(history), options.epochs):
        order = torch.randperm(len(images), generator=generator)
        losses = []
        for start in range(0, steps * size, size):
            # Every process takes its rows of the same batch.
            clean = as_pixels(images[order[start : start + size][place::count]].to(accelerator.device))
            with torch.no_grad():
                target = original.encode_pixels(clean)

            # Defaults bind the values of this step, not the variables of the loop.
            def distance(
                pixels: Tensor, encode: Any = encoder.encode_pixels, target: Tensor = target
            ) -> Tensor:
                return fare_loss(encode(pixels), target, options.patch_weight)

            attacked = perturb(distance, clean, epsilon, options.steps)
            loss = distance(attacked, tower)
            if options.clean_weight:
                loss = loss + options.clean_weight * distance(clean, tower)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        history.append({"epoch": epoch + 1, "loss": mean})
        state.save(history=history)
        if progress is not None:
            progress(epoch + 1)
    encoder.model.requires_grad_(False)
    return history


def token_cosines(tokens: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of tokens (B, 1 + P, D) with the original's (B, 1 + P, D): pooled (B,), and mean over patches (B,)."""
    cosines = F.cosine_similarity(tokens, original, dim=-1)
    return cosines[:, 0], cosines[:, 1:].mean(-1)
