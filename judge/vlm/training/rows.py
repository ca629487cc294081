"""Training on the plain path (`judge.vlm.plain`): every row is an ordinary forward pass of its own.

No row shares its policy, no image keeps its features, nothing is packed or padded: slower by about the number of rows
in a group, and right for any family that the base's own processor can write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from judge.data.images import open_image
from judge.runs.trainer import EvaluatingTrainer
from judge.vlm.plain import PlainEncoder, complete_rows, last_logits
from prompts.flip.rows import Group, Row
from prompts.template import Chat

from .answers import check_length, question_and_answers, shared_start
from .trainer import answer_loss


@dataclass
class PlainCollator:
    """Turns groups of rows into complete rows, one forward pass each.

    Attributes:
        encoder: of the base that is trained.
        max_length: most tokens of a row. A longer one raises, because truncating would cut the answer.
        model: gives the rule by which token types are prolonged.
    """

    encoder: PlainEncoder
    max_length: int
    model: Any

    def __call__(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Batch R rows: `rows`, each the model's inputs (1, S); `labels` (A,), the answer tokens of all in order."""
        written = [self._write(row) for group in groups for row in group.rows]
        return {
            "rows": [inputs for inputs, _ in written],
            "counts": [len(answer) for _, answer in written],
            "labels": torch.tensor([token for _, answer in written for token in answer]),
        }

    def _write(self, row: Row) -> tuple[dict[str, Any], tuple[int, ...]]:
        """A row's inputs, up to the last token but one of its answer, and the answer."""
        chat, answers = question_and_answers(row, self.encoder.template)
        question = self.encoder.question(Chat(chat.messages, answers), open_image(row.example.image))
        check_length(row, len(question), self.max_length)
        tokens = shared_start(question.answers)
        return complete_rows(self.model, question.inputs, [tokens[:-1]]), tokens


class PlainTrainer(EvaluatingTrainer):
    """transformers' Trainer with the answer loss over complete rows, one forward pass each.

    Args:
        keep_features: ignored, so that the options are those of `JudgeTrainer`.
        options: `EvaluatingTrainer`'s own.
    """

    def __init__(self, *, keep_features: bool = False, **options: Any) -> None:
        super().__init__(compute_loss_func=answer_loss, **options)
        # Labels are aligned with the kept logits; Trainer would leave the first one out of its count.
        self._loss_shifts_labels = False

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's loss of R rows, which are backpropagated together."""

        def answers(rows: Sequence[dict[str, Any]], counts: Sequence[int], **_: Any) -> SimpleNamespace:
            found = [last_logits(model, row, count)[0] for row, count in zip(rows, counts, strict=True)]
            return SimpleNamespace(logits=torch.cat(found))

        return super().compute_loss(answers, inputs, *args, **kwargs)
