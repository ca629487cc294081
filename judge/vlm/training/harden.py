"""Adversarial LoRA: adapters on a trained judge's tower, so that small changes of pixels change little of it.

A judge tuned the usual way reads its images through a tower that nobody hardened. Adapters are added to that tower and
learn, without labels, to hold what it hands to the projector at attacked pixels where the unhardened tower has it at
the clean ones (FARE: Schlarmann et al. 2024, "Robust CLIP", section 3.2). Projector, language model and policies see
what they always saw, so categories that training held out go on working as well.

A second stage can follow: the answers are learnt with part of every batch replaced by its worst case within the budget
(Madry et al., arXiv 1706.06083, eq. 2.1), found by PGD on the judge's own margin, while the first stage's loss goes on
beside it.
"""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from judge.encoders.perturb import as_pixels, cosine_with_warmup, perturb
from judge.errors import CheckpointError, ConfigError
from judge.standins.shipped import base_path
from judge.vlm.encode import Encoded, Variant
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.tree import Continuation, one_vs_rest
from prompts.flip.rows import Group
from prompts.template import render

from .collate import GroupCollator
from .trainer import JudgeTrainer

TOWER_TARGETS = r".*vision_tower\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2|patch_embedding)"
"""Every linear layer and the patch embedding of a CLIP or SigLIP tower."""


@dataclass(frozen=True)
class HardeningOptions:
    """How rows of a batch are attacked while the judge learns."""

    epsilon: float = 4 / 255
    """L-inf budget, in pixels of [0, 1] at the model's input."""
    steps: int = 2
    """Gradient steps on each attacked row."""
    share: float = 0.75
    """Share of rows that are attacked; the others stay clean."""
    feature_weight: float = 1.0
    """Of `TowerFeatures.distance` beside the answers' loss."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon:g}; it is in pixels of [0, 1], such as 4/255.")
        if self.steps < 1:
            raise ConfigError(f"{self.steps} attack steps; give one at least.")
        if self.feature_weight < 0:
            raise ConfigError(f"feature_weight is {self.feature_weight:g}; it must not be negative.")
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"share is {self.share:g}; between 0 and 1 of the rows are attacked, and 0 hardens nothing."
            )


@dataclass(frozen=True)
class MatchingOptions:
    """How the tower learns to hold its features, before any answer is asked for."""

    epsilon: float = 8 / 255
    """L-inf budget, in pixels of [0, 1] at the model's input."""
    steps: int = 2
    """Gradient steps on each picture."""
    epochs: int = 3
    """Passes over the pictures."""
    learning_rate: float = 2e-3
    """Highest, of AdamW; then a cosine to 0."""
    clean_weight: float = 0.0
    """Of the same distance on clean pictures, beside the attacked ones."""
    batch_size: int = 64
    """Pictures in a step, over all processes."""
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
    """Adapters on more layers of a base: a trained adapter's go on as they are, the new ones begin at nothing.

    The result belongs to the same base as `adapter`, so one folder with one adapter still says everything.

    Args:
        model: the base that `adapter` was trained on.
        adapter: a folder with `adapter_config.json` and `adapter_model.safetensors`.
        targets: regular expression on the full names of the further modules.
        base: name of the base, as the adapter shall keep it.
        rank: of the new adapters, which count twice (alpha is 2 rank). It may be the tower's width: what holds
            features is not of low rank, and `TowerFeatures.merged_weights` makes a pass cost the same at any.

    Returns:
        As `load.add_lora`: the peft model, and counts of modules and parameters.

    Raises:
        CheckpointError: no adapter there, or not one of this base.
        ConfigError: `targets` reaches nothing new, or the adapter is of a kind that cannot be merged by adding.
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
    if config.modules_to_save:  # a projector that is trained whole goes on so
        targets = f"(?!.*projector)(?:{targets})"
    config.inference_mode = False
    config.target_modules = f"{config.target_modules}|{targets}"
    config.rank_pattern = {**config.rank_pattern, targets: rank}
    if not config.use_rslora:
        config.alpha_pattern = {**config.alpha_pattern, targets: 2 * rank}
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    config.base_model_name_or_path = base_path(base)  # looked up at every save: a name would mean the hub
    try:
        left_over = set_peft_model_state_dict(wrapped, load_file(weights)).unexpected_keys
    except RuntimeError as error:  # shapes differ; torch lists every one of them
        left_over = [str(error).splitlines()[0]]
    if left_over:
        raise CheckpointError(
            f"{adapter} does not fit this base ({left_over[0]}). It was trained on {trained_on!r}; go on "
            "with that base."
        )
    modules = sum(name.endswith("lora_A") for name, _ in wrapped.named_modules())
    parameters = list(wrapped.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return wrapped, {"modules": modules, "trainable": trainable, "all": sum(p.numel() for p in parameters)}


class TowerFeatures(nn.Module):
    """What a base's tower hands to its projector, with the base's own weights or with those of adapters on it.

    Args:
        model: the base before it gets adapters; its tower is copied, in float32, and never changes.
        processor: of the base, for how it normalises.

    Raises:
        ConfigError: the family does not keep its tower as LLaVA does.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        tower = getattr(model.model, "vision_tower", None)
        if tower is None:
            raise ConfigError(
                f"{type(model).__name__} has no vision_tower; hardening is for LLaVA and its kin."
            )
        self.tower = deepcopy(tower).float().eval().requires_grad_(False)
        layers = model.config.vision_feature_layer
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.first = 1 if model.config.vision_feature_select_strategy == "default" else 0
        settings = processor.image_processor
        for name, values in (("mean", settings.image_mean), ("deviation", settings.image_std)):
            self.register_buffer(name, torch.tensor(values, device=model.device)[:, None, None])

    def forward(self, visual: Tensor) -> Tensor:
        """(B, 3, h, w) normalised pixels -> (B, P, D) tokens of the layers that the projector reads."""
        states = self.tower(visual.float(), output_hidden_states=True).hidden_states
        return torch.cat([states[layer][:, self.first :] for layer in self.layers], dim=-1)

    def merged_weights(self, model: Any) -> dict[str, Tensor]:
        """The tower's weights with a peft model's adapters merged, differentiable in these.

        A pass through merged weights costs what it cost without adapters, and is the same function.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {
            f"tower.{name}.weight": layer.get_base_layer().weight.float() + layer.get_delta_weight("default")
            for name, layer in model.get_base_model().model.vision_tower.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }

    def distance(self, weights: dict[str, Tensor], visual: Tensor, wanted: Tensor) -> Tensor:
        """Squared L2 from the features `wanted`, relative to their own mean square; a number.

        L_FARE (Robust CLIP, eq. 3) of all tokens that the language model will read; the scale makes a weight mean
        the same for every tower.
        """
        found: Tensor = functional_call(self, weights, (visual,))
        return (found - wanted).square().mean() / wanted.square().mean()


def match_features(
    model: Any,
    features: TowerFeatures,
    images: Tensor,
    options: MatchingOptions,
    *,
    progress: Callable[[int, float], Any] | None = None,
) -> list[dict[str, float]]:
    """Teach the tower's adapters to keep the original's clean features at attacked pixels, in place.

    Attacks rise the very distance that is then lowered: no label, no policy and no language model take part. Under
    `accelerate launch`, processes share each batch.

    Args:
        model: of `extend_adapter`, with equal weights in all processes.
        features: of its base.
        images: (N, 3, h, w) bytes at the model's input (`judge.encoders.fare.resize_to_input`).
        options: how.
        progress: hears how many steps are done, and the last one's loss.

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
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed + place)  # processes look at other random starts
    history = []
    for epoch in range(options.epochs):
        order, total = torch.randperm(len(images), generator=generator), 0.0
        for step in range(steps):
            chosen = order[step * size : (step + 1) * size][place::count]
            loss = _matching_loss(model, features, as_pixels(images[chosen]).to(model.device), options)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            for parameter in parameters:
                if parameter.grad is not None:  # none reaches a layer above those that the projector reads
                    parameter.grad = reduce(parameter.grad, reduction="mean")
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            if progress is not None:
                progress(epoch * steps + step + 1, loss.item())
        history.append({"matching_epoch": epoch + 1, "matching_loss": total / steps})
    return history


def _matching_loss(model: Any, features: TowerFeatures, clean: Tensor, options: MatchingOptions) -> Tensor:
    """Distance of attacked pictures from the clean ones' features; `clean` is (B, 3, h, w) in [0, 1]."""

    def normal(pixels: Tensor) -> Tensor:
        return (pixels - features.mean) / features.deviation

    with torch.no_grad():
        wanted = features(normal(clean))
    weights = features.merged_weights(model)
    fixed = {name: weight.detach() for name, weight in weights.items()}
    attacked = perturb(
        lambda pixels: features.distance(fixed, normal(pixels), wanted), clean, options.epsilon, options.steps
    )
    loss = features.distance(weights, normal(attacked), wanted)
    if options.clean_weight:
        loss = loss + options.clean_weight * features.distance(weights, normal(clean), wanted)
    return loss


class RobustCollator(GroupCollator):
    """A `GroupCollator` whose batches also say what an attack asks: `questions` and `unsafe`, row by row."""

    def __call__(self, groups: Sequence[Group]) -> dict[str, Any]:
        """See `GroupCollator`; `questions` are rows with the answers cut to a verdict, `unsafe` (B,) the truth."""
        rows = [row for group in groups for row in group.rows]
        questions = []
        for row in rows:
            chat = render(row.taxonomy, row.prompt, template=self.encoder.template, focus=row.focus)
            encoded = self.encoder.encode_row([Variant(chat)], self.pixels.get(row.example)[0])
            questions.append(replace(encoded, continuations=one_vs_rest(encoded.continuations)))
        unsafe = torch.tensor([row.unsafe for row in rows])
        return {**super().__call__(groups), "questions": questions, "unsafe": unsafe}


class RobustTrainer(JudgeTrainer):
    """A `JudgeTrainer` that attacks part of each batch before it learns from it, and holds the tower's features.

    Args:
        judge: asks the model that is trained; its policies are computed anew in every step.
        features: of the base; attacked pixels shall keep the clean ones' features.
        hardening: how rows are attacked.
        options: `JudgeTrainer`'s own.
    """

    def __init__(
        self,
        *,
        judge: VisionLanguageJudge,
        features: TowerFeatures,
        hardening: HardeningOptions,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.judge, self.tower, self.hardening = judge, features, hardening

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The answers' loss on pixels of which a share was attacked, and the distance of these pixels' features."""
        questions, unsafe = inputs.pop("questions"), inputs.pop("unsafe")
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        clean = inputs["pixel_values"]
        pixels = inputs["pixel_values"] = self.attacked(clean, questions, unsafe)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.hardening.feature_weight:
            weights = self.tower.merged_weights(self.judge.model)
            with torch.no_grad():
                wanted = self.tower(clean)
            # The answers' mean is over all rows of an optimizer step, so this one is as well.
            weight = self.hardening.feature_weight / self.args.gradient_accumulation_steps
            loss = loss + weight * self.tower.distance(weights, pixels, wanted)
        return loss

    def attacked(self, visual: Tensor, questions: Sequence[Encoded], unsafe: Tensor) -> Tensor:
        """(B, 3, h, w) normalised pixels -> the same, some rows within their budgets of where they were."""
        model = self.judge.model
        training = model.training
        model.eval()
        self.judge.clear_cache()
        attacked = visual.clone()
        chosen = torch.rand(len(questions)) < self.hardening.share
        for rows in _alike(questions, chosen.nonzero().flatten().tolist()):
            asked = [questions[row] for row in rows]
            attacked[rows] = self._worst_case(visual[rows], asked, unsafe[rows])
        self.judge.clear_cache()
        model.train(training)
        return attacked

    def _worst_case(self, clean: Tensor, asked: Sequence[Encoded], unsafe: Tensor) -> Tensor:
        """PGD from a random start, all in pixels divided by the processor's deviations, where epsilon is as well."""
        mean, deviation = self.tower.mean, self.tower.deviation
        lowest, highest = -mean / deviation, (1 - mean) / deviation
        budget = self.hardening.epsilon / deviation
        step = (
            2.5 * budget / self.hardening.steps
        )  # reaches the border from anywhere inside (Madry et al., section 4)
        sign = torch.where(unsafe, 1.0, -1.0).to(clean.device)
        pixels = clean + budget * (2 * torch.rand(clean.shape).to(clean.device) - 1)
        for _ in range(self.hardening.steps):
            pixels = pixels.clamp(lowest, highest).detach().requires_grad_(True)
            margins = self.judge.margins({"pixel_values": pixels}, asked) * sign
            (gradient,) = torch.autograd.grad(margins.sum(), pixels)
            pixels = clean + (pixels.detach() - step * gradient.sign() - clean).clamp(-budget, budget)
        return pixels.clamp(lowest, highest).detach()


def _alike(questions: Sequence[Encoded], rows: Sequence[int]) -> list[list[int]]:
    """The rows in sets that share a policy and its verdicts, as one batch must."""
    sets: dict[tuple[tuple[int, ...], tuple[Continuation, ...]], list[int]] = {}
    for row in rows:
        sets.setdefault((questions[row].prefix, questions[row].continuations), []).append(row)
    return list(sets.values())
