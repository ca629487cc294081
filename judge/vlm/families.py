"""Which families of vision-language models can be judges, and how each is read: one table for load, messages and docs.

**fast** is the exact path of `judge.vlm.answers`: the policy runs once per taxonomy, questions and answers are packed
behind the image, training shares the policy between rows, image features are kept. **plain** gives the same scores
without any of that: each question is one ordinary call of the base's own processor and model. **refused** is an error
before any weights are read.

A family that the table lacks is tried: `judge.vlm.agreement` compares inputs and scores with those of its own processor
and model when it is loaded, and it is read on the fast path only if they are equal.
"""

from dataclasses import dataclass
from typing import Any, Literal

from judge.errors import CheckpointError

Path = Literal["fast", "plain"]


@dataclass(frozen=True)
class Family:
    """How the models of one `model_type` are read."""

    name: str
    """For people."""
    path: Literal["fast", "plain", "refused", "compared"]
    """`compared` is that of unknown families: fast if the comparison at load finds no difference, else plain."""
    reason: str = ""
    """Why not fast, as a sentence without its full stop."""
    advice: str = ""
    """Of a refused family: what to do instead."""
    both_ways: bool = False
    """Whether the tokens of an image attend to each other in both directions, where others are causal."""


FAMILIES: dict[str, Family] = {
    "llava": Family("LLaVA-1.5", "fast"),
    "llava_next": Family("LLaVA-NeXT", "fast"),
    "llava_onevision": Family("LLaVA-OneVision", "fast"),
    "qwen2_vl": Family("Qwen2-VL", "fast"),
    "qwen2_5_vl": Family("Qwen2.5-VL", "fast"),
    "qwen3_vl": Family("Qwen3-VL", "fast"),
    "gemma3": Family("Gemma-3", "fast", both_ways=True),
    "internvl": Family("InternVL3 (the -hf checkpoints)", "fast"),
    "idefics3": Family("Idefics3", "fast"),
    "smolvlm": Family("SmolVLM", "fast"),
    "paligemma": Family(
        "PaliGemma",
        "refused",
        reason="It is a prefix language model without a chat template: policy, image and question attend to each other "
        "in both directions, so a policy cannot be computed before the image, nor its questions after it",
        advice="Use Gemma-3, its successor for chats",
    ),
    "mllama": Family(
        "Llama-3.2-Vision",
        "refused",
        reason="Its language model reads images by cross-attention in layers of their own, and the text has one mark "
        "where an image stands instead of the image's tokens, which policies, questions and adapters are placed around",
        advice="Use Qwen2.5-VL, Qwen3-VL or Gemma-3 of a like size",
    ),
}
"""By `model_type` of the base's config.json."""


LANGUAGE_MODELS = (
    *("llama", "mistral", "qwen2", "gemma3_text"),
    *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"),
)
"""Kinds of language models that tests read on the fast path; a known family with another one is compared as well."""


def is_compared(model: Any) -> bool:
    """Whether the outputs of a base have to be compared with its own before it is read on the fast path."""
    text = model.config.get_text_config().model_type
    return family_of(str(model.config.model_type)).path == "compared" or text not in LANGUAGE_MODELS


def family_of(model_type: str) -> Family:
    """How models of this type are read; one that the table lacks is `compared`."""
    return FAMILIES.get(model_type, Family(model_type, "compared"))


def fast_families() -> tuple[str, ...]:
    """Names, for people, of the families that tests judge and train on the fast path."""
    return tuple(family.name for family in FAMILIES.values() if family.path == "fast")


def check_family(model_type: str) -> None:
    """Refuse families that cannot be judges.

    Raises:
        CheckpointError: says why, and what to do.
    """
    family = family_of(model_type)
    if family.path == "refused":
        raise CheckpointError(
            f"{family.name} ({model_type!r}) cannot be a judge here. {family.reason}. {family.advice}, or serve the "
            "model and give its URL as judge."
        )


def judging_path(model: Any) -> Path:
    """The path that was chosen when `model` (possibly wrapped by peft) was loaded; fast for models built otherwise."""
    path: Path = getattr(model, "judging_path", "fast")
    return path


def is_language(name: str) -> bool:
    """Whether a module or parameter of this full name belongs to the language model, however a family calls it."""
    return not {"language_model", "text_model"}.isdisjoint(name.split("."))
