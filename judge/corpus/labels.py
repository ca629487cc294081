"""Labels by a classifier on the picture: scores of every category of the user's taxonomy, or why there are none."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge.classifiers import load_classifier
from judge.errors import CorpusError
from judge.protocol import rows_of
from judge.runs.references import fingerprint
from judge.standins.shipped import run_path
from prompts.taxonomy import Taxonomy

from .rows import CorpusRow
from .stages import Result, Task

if TYPE_CHECKING:
    from judge.protocol import Classifier, Scores


@dataclass
class LabelPictures:
    """The stage that labels: a judge, a cascade, or whatever `load_classifier` opens, asked about each picture.

    Args:
        classifier: its name.
        taxonomy: what is asked.
        with_prompt: whether it reads the prompt too; without, labels are about the picture alone.
        batch_size: pictures scored together.
        load: opens the classifier by its name.
    """

    classifier: str
    taxonomy: Taxonomy
    with_prompt: bool = False
    batch_size: int = 32
    load: "Callable[[str], Classifier]" = load_classifier
    name: str = field(default="labels", init=False)

    @property
    def about(self) -> Mapping[str, Any]:
        """Who labels, by its name and, where it is a folder here, a hash of its weights and settings."""
        path = Path(run_path(self.classifier))
        return {
            "classifier": self.classifier,
            "fingerprint": fingerprint(path)[:16] if path.exists() else None,
            "with_prompt": self.with_prompt,
            "batch_size": self.batch_size,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "loaded"}

    @cached_property
    def loaded(self) -> "Classifier":
        """The classifier, loaded at first use."""
        return self.load(self.classifier)

    def __call__(self, task: Task) -> Result:
        """Label the rows of a chunk; a picture without a score is a failed row.

        Raises:
            CorpusError: a service left pictures unanswered, which are asked about again when the build goes on.
        """
        rows: list[CorpusRow] = []
        for start in range(0, len(task.rows), self.batch_size):
            batch = task.rows[start : start + self.batch_size]
            prompts = [row.prompt for row in batch] if self.with_prompt else None
            images: list[Any] = [task.pictures[row.id] for row in batch]
            scores = self.loaded.score(images, prompts, self.taxonomy)
            if scores.unanswered is not None and any(scores.unanswered):
                place = scores.unanswered.index(True)
                raise CorpusError(
                    f"{self.classifier} left {sum(scores.unanswered)} pictures unanswered ({scores.reasons[place]}). "
                    "What is done is kept; run the same command again."
                )
            rows += [self._labelled(row, rows_of(scores, at, at + 1)) for at, row in enumerate(batch)]
        return Result(task.chunk, tuple(rows))

    def _labelled(self, row: CorpusRow, scores: "Scores") -> CorpusRow:
        """A row with the scores of its picture, of one row."""
        unsafe = float(scores.unsafe[0])
        if math.isnan(unsafe):
            return row.failed("labels", "unjudged", scores.reasons[0] or "no reason was given")
        return replace(
            row,
            labelled_by=self.classifier,
            unsafe=unsafe,
            scores={
                category.key: None if math.isnan(score) else score
                for category, score in zip(self.taxonomy, scores.categories[0].tolist(), strict=True)
            },
            decided_by=None if scores.decided_by is None else scores.decided_by[0],
        )
