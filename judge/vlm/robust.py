"""Adversarial LoRA: a trained judge goes on learning, on images that were just attacked against itself.

A judge tuned the usual way reads its images through a tower that nobody hardened, and what adversarial fine-tuning of
CLIP buys sits in the early layers of the tower (R-Adapt, arXiv 2603.12799; TeCoA, arXiv 2212.07016). So adapters are
added to tower and projector, those of the language model go on from where they were, and part of every batch is
replaced by its worst case within a budget (Madry et al., arXiv 1706.06083, eq. 2.1): a few steps of PGD on the judge's
own margin, under the row's own policy and prompt. The loss stays that of the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from judge.errors import CheckpointError, ConfigError
from prompts.rows import Group
from prompts.template import render

from .collate import GroupCollator
from .encode import Encoded, Variant
from .load import LoraOptions, add_lora
from .score import VisionLanguageJudge
from .train import JudgeTrainer
from .tree import Continuation, one_against_others

TOWER_TARGETS = (
    r".*vision_tower\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2|patch_embedding)"
    r"|.*multi_modal_projector\.linear_\d"
)
"""Every linear layer and the patch embedding of a CLIP or SigLIP tower, and the projector of LLaVA."""


@dataclass(frozen=True)
class HardeningOptions:
    """How rows of a batch are attacked while the judge learns."""

    epsilon: float = 4 / 255
    """L-inf budget, in pixels of [0, 1] at the model's input."""
    steps: int = 2
    """Gradient steps on each attacked row."""
    share: float = 0.75
    """Share of rows that are attacked; the others stay clean."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon:g}; it is in pixels of [0, 1], such as 4/255.")
        if self.steps < 1:
            raise ConfigError(f"{self.steps} attack steps; give one at least.")
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"share is {self.share:g}; between 0 and 1 of the rows are attacked, and 0 hardens nothing."
            )


def widen_adapter(model: Any, adapter: str | Path, targets: str, *, base: str) -> tuple[Any, dict[str, int]]:
    """Adapters on more layers of a base: a trained adapter's go on as they are, the new ones begin at nothing.

    The result belongs to the same base as `adapter`, so one folder with one adapter still says everything.

    Args:
        model: the base that `adapter` was trained on.
        adapter: a folder with `adapter_config.json` and `adapter_model.safetensors`.
        targets: regular expression on the full names of the further modules.
        base: name of the base, as the adapter shall keep it.

    Returns:
        As `load.add_lora`: the peft model, and counts of modules and parameters.

    Raises:
        CheckpointError: no adapter there, or not one of this base.
        ConfigError: `targets` reaches nothing new.
    """
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = Path(adapter) / "adapter_model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{adapter} holds no adapter_model.safetensors; train a judge first.")
    known = PeftConfig.from_pretrained(str(adapter))
    if known.modules_to_save:  # a projector that is trained whole goes on so
        targets = f"(?!.*projector)(?:{targets})"
    options = LoraOptions(
        lora_r=known.r,
        lora_alpha=known.lora_alpha,
        lora_dropout=known.lora_dropout,
        use_rslora=known.use_rslora,
        use_dora=known.use_dora,
        lora_target_modules=f"{known.target_modules}|{targets}",
        train_projector=bool(known.modules_to_save),
    )
    wrapped, counts = add_lora(model, options, base=base)
    state = load_file(weights)
    try:
        left_over = set_peft_model_state_dict(wrapped, state).unexpected_keys
    except RuntimeError as error:  # shapes differ; torch lists every one of them
        left_over = [str(error).splitlines()[0]]
    if left_over:
        raise CheckpointError(
            f"{adapter} does not fit this base ({left_over[0]}). It was trained on "
            f"{known.base_model_name_or_path!r}; go on with that base."
        )
    if counts["modules"] <= sum(key.endswith("lora_A.weight") for key in state):
        raise ConfigError(
            f"{targets!r} matches no further module of this base, so nothing would be hardened."
        )
    return wrapped, counts


class RobustCollator(GroupCollator):
    """A `GroupCollator` whose batches also say what an attack asks: `questions` and `unsafe`, row by row."""

    def __call__(self, groups: Sequence[Group]) -> dict[str, Any]:
        """See `GroupCollator`; `questions` are rows with the answers cut to a verdict, `unsafe` (B,) the truth."""
        rows = [row for group in groups for row in group.rows]
        questions = []
        for row in rows:
            chat = render(row.taxonomy, row.prompt, template=self.encoder.template, focus=row.focus)
            encoded = self.encoder.encode_row([Variant(chat)], self.pixels.see(row.example)[0])
            questions.append(replace(encoded, continuations=one_against_others(encoded.continuations)))
        unsafe = torch.tensor([row.unsafe for row in rows])
        return {**super().__call__(groups), "questions": questions, "unsafe": unsafe}


class RobustTrainer(JudgeTrainer):
    """A `JudgeTrainer` that attacks part of each batch before it learns from it.

    Args:
        judge: asks the model that is trained; its policies are computed anew in every step.
        hardening: how rows are attacked.
        options: `JudgeTrainer`'s own.
    """

    def __init__(self, *, judge: VisionLanguageJudge, hardening: HardeningOptions, **options: Any) -> None:
        super().__init__(**options)
        self.judge, self.hardening = judge, hardening
        settings = judge.processor.image_processor
        self.mean, self.deviation = (
            torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std)
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The answers' loss, on pixels of which a share was attacked."""
        questions, unsafe = inputs.pop("questions"), inputs.pop("unsafe")
        if model.training:
            inputs["pixel_values"] = self.attacked(inputs["pixel_values"], questions, unsafe)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def attacked(self, visual: Tensor, questions: Sequence[Encoded], unsafe: Tensor) -> Tensor:
        """(B, 3, h, w) normalised pixels -> the same, some rows within their budgets of where they were."""
        model = self.judge.model
        training = model.training
        model.eval()
        self.judge.forget()
        attacked = visual.clone()
        chosen = torch.rand(len(questions)) < self.hardening.share
        for rows in _alike(questions, chosen.nonzero().flatten().tolist()):
            asked = [questions[row] for row in rows]
            attacked[rows] = self._worst_case(visual[rows], asked, unsafe[rows])
        self.judge.forget()
        model.train(training)
        return attacked

    def _worst_case(self, clean: Tensor, asked: Sequence[Encoded], unsafe: Tensor) -> Tensor:
        """PGD from a random start, all in pixels divided by the processor's deviations, where epsilon is as well."""
        mean, deviation = self.mean.to(clean.device), self.deviation.to(clean.device)
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
