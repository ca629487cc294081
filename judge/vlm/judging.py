"""The judge of a loaded base, on the path that was chosen for it when it was loaded (`judge.vlm.families`)."""

from typing import Any

from .families import judging_path
from .plain import PlainJudge
from .questions import QuestionJudge
from .score import VisionLanguageJudge


def open_judge(model: Any, processor: Any, template: str = "policy_first", **options: Any) -> QuestionJudge:
    """The judge of a model from `load_base`: fast where that is exact for its family, else plain.

    Args:
        model: from `load_base`, possibly with an adapter.
        processor: its processor.
        template: one of `prompts.TEMPLATES`.
        options: further fields of `QuestionJudge`.
    """
    kind = PlainJudge if judging_path(model) == "plain" else VisionLanguageJudge
    return kind(model, processor, template, **options)
