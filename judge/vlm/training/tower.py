"""A robust vision tower for a trained judge: adapters on the tower, trained to match clean features under attack.

A judge is usually tuned on a tower that is not robust. Adapters are added to that tower and trained, without labels, so
that its output at attacked pixels equals the base's at clean ones (FARE: Schlarmann et al. 2024, "Robust CLIP", section
3.2). Projector, language model and policies get the features they were trained on, so categories that training held out
keep working too.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from judge.encoders.perturb import as_pixels, cosine_with_warmup, perturb
from judge.encoders.pixels import SUPPORTED, TILED
from judge.errors import CheckpointError, ConfigError
from judge.runs.checkpoint import TrainingState
from judge.standins.shipped import base_path

TOWER_TARGETS = r".*vision_tower\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2|patch_embedding)"
"""Every linear layer and the patch embedding of a CLIP or SigLIP tower."""


@dataclass(frozen=True)
class MatchingOptions:
    """How the tower's adapters are trained, before any training on answers."""

    epsilon: float = 8 / 255
    """L-inf budget, in pixels of [0, 1] at the model's input."""
    steps: int = 2
    """Gradient steps on each image."""
    epochs: int = 3
    """Passes over the images."""
    learning_rate: float = 2e-3
    """Highest of AdamW, after a tenth of all steps; then a cosine to 0."""
    clean_weight: float = 0.0
    """Weight of the same distance on clean images, beside the attacked ones."""
    batch_size: int = 64
    """Images in a step, over all processes."""
    seed: int = 42
    """Of order and random starts."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.epochs < 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ConfigError(
                f"steps {self.steps}, batch_size {self.batch_size} and learning_rate {self.learning_rate:g} of "
                f"feature matching must be positive, epochs {self.epochs} not negative."
            )
        if self.clean_weight < 0:
            raise ConfigError(f"clean_weight is {self.clean_weight:g}; it must not be negative.")


def extend_adapter(
    model: Any, adapter: str | Path, targets: str, *, base: str, rank: int = 64
) -> tuple[Any, dict[str, int]]:
    """Load a trained adapter with further layers: its own keep their weights, the new ones start at zero.

    The result is one adapter of the same base, so a single folder with a single adapter is saved.

    Args:
        model: the base that `adapter` was trained on.
        adapter: a folder with `adapter_config.json` and `adapter_model.safetensors`.
        targets: regular expression on the full names of the additional modules.
        base: name of the base, as the adapter records it.
        rank: of the new adapters, with alpha = 2 rank. It may be as large as the tower's width: robust features need no
            low-rank update, and with `TowerFeatures.merged_weights` the cost of a pass does not depend on it.

    Returns:
        As `judge.vlm.adapter.add_lora`: the peft model, and counts of modules and parameters.

    Raises:
        CheckpointError: no adapter there, or not one of this base.
        ConfigError: `targets` matches no further module, or the adapter is a DoRA, which merges differently.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers.integrations import is_deepspeed_zero3_enabled

    weights = Path(adapter) / "adapter_model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{adapter} holds no adapter_model.safetensors; train a judge first.")
    config = PeftConfig.from_pretrained(str(adapter))
    if config.use_dora:
        raise ConfigError(f"{adapter} is a DoRA adapter; harden a judge trained with LoRA or rsLoRA.")
    names = [name for name, _ in model.named_modules() if not re.fullmatch(config.target_modules, name)]
    if not any(re.fullmatch(targets, name) for name in names):
        raise ConfigError(f"{targets!r} matches no further module of this base: nothing would be hardened.")
    trained_on, config.base_model_name_or_path = config.base_model_name_or_path, None
    if config.modules_to_save:  # a fully trained projector stays fully trained
        targets = f"(?!.*projector)(?:{targets})"
    config.inference_mode = False  # saved adapters are loaded frozen
    # One adapter with two ranks: patterns by module name override the rank and alpha of its own layers.
    config.target_modules = f"{config.target_modules}|{targets}"
    config.rank_pattern = {**config.rank_pattern, targets: rank}
    if not config.use_rslora:
        config.alpha_pattern = {**config.alpha_pattern, targets: 2 * rank}
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    # peft looks it up at every save; a short name would mean the hub.
    config.base_model_name_or_path = base_path(base)
    try:
        left_over = set_peft_model_state_dict(wrapped, load_file(weights)).unexpected_keys
    except RuntimeError as error:  # shapes differ; torch lists each of them
        left_over = [str(error).splitlines()[0]]
    if left_over:
        raise CheckpointError(
            f"{adapter} does not fit this base ({left_over[0]}). It was trained on {trained_on!r}; use "
            "that base."
        )
    modules = sum(name.endswith("lora_A") for name, _ in wrapped.named_modules())
    parameters = list(wrapped.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return wrapped, {"modules": modules, "trainable": trainable, "all": sum(p.numel() for p in parameters)}


class TowerFeatures(nn.Module):
    """Features of a base's tower at the projector's input, with the base's weights or with adapters merged.

    Args:
        model: the base before adapters are added; its tower is copied in float32 and frozen.
        processor: of the base, for its normalisation.

    Raises:
        ConfigError: the family has no `vision_tower` as LLaVA does, or reads an image as several pictures.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        tower, layers = (
            getattr(model.model, "vision_tower", None),
            getattr(model.config, "vision_feature_layer", None),
        )
        kind = type(processor.image_processor).__name__
        if tower is None or layers is None or kind not in SUPPORTED or kind in TILED:
            raise ConfigError(
                f"{type(model).__name__} with a {kind} cannot be hardened: that takes one picture an image, and layers "
                "of a vision_tower that the projector reads, as in LLaVA-1.5."
            )
        self.tower = deepcopy(tower).float().eval().requires_grad_(False)
        # As LLaVA selects them: one layer or several, with or without the class token.
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.first = 1 if model.config.vision_feature_select_strategy == "default" else 0
        settings = processor.image_processor
        for name, values in (("mean", settings.image_mean), ("deviation", settings.image_std)):
            self.register_buffer(name, torch.tensor(values, device=model.device)[:, None, None])

    def forward(self, visual: Tensor) -> Tensor:
        """Normalised pixels (B, 3, h, w) -> tokens (B, P, D) of the layers that the projector reads, concatenated."""
        states = self.tower(visual.float(), output_hidden_states=True).hidden_states
        return torch.cat([states[layer][:, self.first :] for layer in self.layers], dim=-1)

    def merged_weights(self, model: Any) -> dict[str, Tensor]:
        """The tower's weights with a peft model's adapters merged, differentiable in the adapters.

        Each is (O, I), or (O, I, k, k) for the patch embedding. A pass with merged weights computes the same
        function at the cost of a pass without adapters.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {
            f"tower.{name}.weight": layer.get_base_layer().weight.float() + layer.get_delta_weight("default")
            for name, layer in model.get_base_model().model.vision_tower.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }

    def distance(self, weights: dict[str, Tensor], visual: Tensor, target: Tensor) -> Tensor:
        """Squared L2 distance to the features `target`, relative to their mean square.

        L_FARE (Robust CLIP, eq. 3) over all tokens that the language model gets; dividing makes weights of this term
        comparable between towers.

        Args:
            weights: of `merged_weights`.
            visual: (B, 3, h, w) normalised pixels.
            target: (B, P, D) of `forward`.

        Returns:
            A scalar.
        """
        features: Tensor = functional_call(self, weights, (visual,))
        return (features - target).square().mean() / target.square().mean()


def match_features(
    model: Any,
    features: TowerFeatures,
    images: Tensor,
    options: MatchingOptions,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], Any] | None = None,
) -> list[dict[str, float]]:
    """Train the tower's adapters, in place, to give the base's clean features at attacked pixels.

    Attacks maximise the distance that training minimises, so no labels, policies or language model are needed. Under
    `accelerate launch`, processes share each batch.

    Args:
        model: the result of `extend_adapter`, with equal weights in all processes.
        features: of its base.
        images: (N, 3, h, w) bytes at the model's input (`judge.encoders.fare.resize_to_input`).
        options: training options.
        checkpoint: a file to keep the state in after each epoch, and to go on from if it is there.
        progress: called with the number of steps done and the last loss.

    Returns:
        For each epoch `matching_epoch` and `matching_loss`, its steps' mean in this process.

    Raises:
        ConfigError: a batch that the processes cannot share.
    """
    from accelerate import PartialState
    from accelerate.utils import reduce

    state, size = PartialState(), options.batch_size
    place, count = state.process_index, state.num_processes
    if size % count:
        raise ConfigError(f"{count} processes cannot share a batch of {size}; give a multiple of that.")
    tower = model.get_base_model().model.vision_tower
    parameters = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=1e-4)
    steps = max(len(images) // size, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warmup(options.epochs * steps))
    generator = torch.Generator().manual_seed(options.seed)  # the same order in all processes
    torch.manual_seed(options.seed + place)  # each process draws random starts of its own
    remembered = TrainingState(checkpoint, parameters, optimizer, schedule, generator)
    history: list[dict[str, float]] = remembered.load().get("history", [])
    for epoch in range(len(history), options.epochs):
        order, total = torch.randperm(len(images), generator=generator), 0.0
        for step in range(steps):
            chosen = order[step * size : (step + 1) * size][place::count]
            loss = _matching_loss(model, features, as_pixels(images[chosen]).to(model.device), options)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            for parameter in parameters:
                if parameter.grad is not None:  # layers after those that the projector reads have none
                    parameter.grad = reduce(parameter.grad, reduction="mean")
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            if progress is not None:
                progress(epoch * steps + step + 1, loss.item())
        history.append({"matching_epoch": epoch + 1, "matching_loss": total / steps})
        remembered.save(history=history)
    return history


def _matching_loss(model: Any, features: TowerFeatures, clean: Tensor, options: MatchingOptions) -> Tensor:
    """Distance of features at attacked pixels from those at `clean` (B, 3, h, w) in [0, 1]; a scalar."""

    def normalise(pixels: Tensor) -> Tensor:
        return (pixels - features.mean) / features.deviation

    with torch.no_grad():
        target = features(normalise(clean))
    weights = features.merged_weights(model)
    # The attack needs gradients of the pixels only.
    fixed = {name: weight.detach() for name, weight in weights.items()}
    attacked = perturb(
        lambda pixels: features.distance(fixed, normalise(pixels), target),
        clean,
        options.epsilon,
        options.steps,
    )
    loss = features.distance(weights, normalise(attacked), target)
    if options.clean_weight:
        loss = loss + options.clean_weight * features.distance(weights, normalise(clean), target)
    return loss
