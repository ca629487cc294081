"""How a loaded base is trained, on the path that was chosen for it when it was loaded (`judge.vlm.families`)."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from judge.vlm.adapter import load_adapter
from judge.vlm.agreement import (
    SIZES,
    next_logits,
    our_inputs,
    probabilities_differ,
    processor_inputs,
    sample_chat,
    sample_picture,
)
from judge.vlm.encode import ChatEncoder
from judge.vlm.families import is_compared, judging_path
from judge.vlm.load import BaseOptions, load_base
from judge.vlm.pack import stack_visual
from judge.vlm.plain import PlainEncoder

from .attention import register
from .collate import GroupCollator, pack_groups
from .rows import PlainCollator, PlainTrainer
from .trainer import JudgeTrainer

LOG = logging.getLogger("arbiter")


def prepare_attention(model: Any, processor: Any) -> None:
    """Choose the attention of training, before adapters are added; on the plain path it stays the model's own.

    A family that tests do not train is compared first, and goes to the plain path where grouped rows differ from an
    ordinary call.
    """
    if judging_path(model) == "plain":
        return
    own = model.config.get_text_config()._attn_implementation
    try:
        model.set_attn_implementation({"text_config": register()})
        difference = _grouped_differ(model, processor) if is_compared(model) else ""
    except Exception as error:  # models raise exceptions of any kind on inputs that they do not take
        difference = f"comparing them failed with {error!r}"
    if difference:
        model.set_attn_implementation({"text_config": own})
        model.judging_path = "plain"
        LOG.warning(
            "%r is trained on the plain path, which is slower and as exact: rows that share a policy differ from an "
            "ordinary call of its model. %s.",
            str(model.config.model_type),
            difference,
        )


@torch.no_grad()
def _grouped_differ(model: Any, processor: Any) -> str:
    """Compare two rows that share a policy with ordinary calls for each; empty if their next tokens are as likely."""
    encoder = ChatEncoder(processor)
    chat, images = sample_chat(encoder), [sample_picture(size) for size in SIZES]
    read = [our_inputs(encoder, chat, image) for image in images]
    rows = [replace(row, questions=((row.continuations[0],),)) for row, _ in read]
    visual = stack_visual([pixels for _, pixels in read])
    batch = pack_groups(model, rows, 1, visual)
    answers = [len(row.continuations[0].tokens) for row in rows]
    batch.pop("labels")
    inputs = {**batch, **visual}
    placed = {key: place(value, model) for key, value in inputs.items()}
    found = model(**placed, use_cache=False).logits.reshape(sum(answers), -1).float().softmax(dim=-1)
    firsts = (0, answers[0])  # of each row, the logits after its question
    for first, image in zip(firsts, images, strict=True):
        expected = next_logits(model, processor_inputs(processor, chat, image)).softmax(dim=-1)
        difference = probabilities_differ(model, found[first], expected)
        if difference:
            return difference
    return ""


def place(value: Any, model: Any) -> Any:
    """A tensor, or each in a dictionary, on the model's device; pixels in its precision."""
    if isinstance(value, dict):
        return {key: place(part, model) for key, part in value.items()}
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def build_trainer(
    model: Any, processor: Any, template: str, max_length: int, **options: Any
) -> JudgeTrainer | PlainTrainer:
    """The trainer of a model, with its collator: groups that share a policy, or complete rows.

    Args:
        model: from `load_base`, with its adapter.
        processor: its processor.
        template: one of `prompts.TEMPLATES`.
        max_length: most tokens of a row.
        options: of `JudgeTrainer`.
    """
    common = {"model": model, "processing_class": processor, **options}
    if judging_path(model) == "plain":
        encoder = PlainEncoder(processor, template)
        return PlainTrainer(data_collator=PlainCollator(encoder, max_length, model), **common)
    groups = GroupCollator(ChatEncoder(processor, template), max_length, model)
    return JudgeTrainer(data_collator=groups, **common)


def trained_model(trainer: Any, base: BaseOptions, adapter: Path, *, zero3: bool) -> Any:
    """The model as it was trained; after ZeRO-3, whose weights are sharded, as it was saved in `adapter`."""
    if zero3:
        from accelerate import PartialState
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        PartialState().wait_for_everyone()
        unset_hf_deepspeed_config()  # from_pretrained would shard the weights again
        fresh, _ = load_base(base, device=str(trainer.args.device))
        return load_adapter(fresh, adapter).eval()
    # Without the trainer's autocast wrapper: a run that is loaded again has none, and would score otherwise.
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
