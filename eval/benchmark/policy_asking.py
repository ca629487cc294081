"""The policy tests of all classifiers of a run, ours and other people's; what was answered is not asked again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge.protocol import Classifier, Scores
from prompts.taxonomy import Taxonomy

from .policies import PolicyTests
from .policy_rows import PolicyRows, questions_hash
from .policy_sets import measure_policy_set
from .predictions import SUFFIX, About
from .sets import PolicySet
from .stages import Stages

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class AskedPolicies:
    """What is asked, and the numbers so far.

    Attributes:
        folder: answers are kept in LABEL.parquet.
        stages: where finished records are kept.
        tests: our questions, or None.
        sets: other people's.
        threshold: P(unsafe) from which a row of a set is flagged.
        measured: label -> the record of `PolicyTests.measure`.
        measured_sets: name of a set -> label -> the record of `measure_policy_set`.
    """

    folder: Path
    stages: Stages
    tests: PolicyTests | None = None
    sets: Sequence[PolicySet] = ()
    threshold: float = 0.5
    measured: dict[str, Any] = field(default_factory=dict)
    measured_sets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, about: About) -> int:
        """How many questions of ours one classifier is asked."""
        return 0 if self.tests is None else self.tests.questions(about.covers).count

    def ask(
        self,
        about: About,
        load: Callable[[], Classifier],
        progress: Callable[[int, int], Any] | None = None,
    ) -> None:
        """Measure one classifier; it is loaded only if something is left to ask.

        Args:
            about: its predictions.
            load: gives the classifier.
            progress: called with the number of questions of ours answered so far and of all.

        Raises:
            ClassifierFailedError: a service gave no answer.
            ConfigError: answers that are kept are of something else.
        """
        kept = PolicyRows(self.folder / f"{about.label}{SUFFIX}", about)
        if self.tests is not None:
            self.measured[about.label] = self._measure(self.tests, about, kept, load, progress)
        for questions in self.sets:
            there = kept.finished(questions.name, questions.questions) is not None
            found = measure_policy_set(
                _NotAsked() if there else load(), questions, kept, threshold=self.threshold
            )
            self.measured_sets.setdefault(questions.name, {})[about.label] = found

    def _measure(
        self,
        tests: PolicyTests,
        about: About,
        kept: PolicyRows,
        load: Callable[[], Classifier],
        progress: Callable[[int, int], Any] | None,
    ) -> dict[str, Any]:
        parts = tests.questions(about.covers).parts
        asked = {name: questions_hash(part.questions) for name, part in parts.items()}
        stage, of = (
            f"policies/{about.label}",
            [asked, about.fingerprint, dict(about.options), tests.threshold],
        )
        found = self.stages.find(stage, of)
        if found is not None:
            return found
        found = tests.measure(load(), kept, progress)
        # What a service did not answer is not kept, and asked again.
        if all(kept.finished(name, part.questions) for name, part in parts.items()):
            found = self.stages.keep(stage, of, found)
        return found


class _NotAsked:
    """Stands where a classifier was asked before."""

    name = "not asked"

    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        raise RuntimeError("it was to be asked again")
