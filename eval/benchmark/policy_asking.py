"""The policy tests of all classifiers of a run, ours and other people's; what was answered is not asked again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge.protocol import Classifier

from .policies import PolicyTests
from .policy_rows import PolicyRows
from .policy_sets import finished_policy_set, measure_policy_set
from .predictions import SUFFIX, About
from .sets import PolicySet


@dataclass
class AskedPolicies:
    """What is asked, and the numbers so far.

    Attributes:
        folder: answers are kept in LABEL.parquet.
        tests: our questions, or None.
        sets: other people's.
        threshold: P(unsafe) from which a row of a set is flagged.
        measured: label -> the record of `PolicyTests.measure`.
        measured_sets: name of a set -> label -> the record of `measure_policy_set`.
    """

    folder: Path
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
            found = self.tests.finished(about.covers, kept)
            self.measured[about.label] = found or self.tests.measure(load(), kept, progress)
        for questions in self.sets:
            found = finished_policy_set(questions, kept, threshold=self.threshold)
            found = found or measure_policy_set(load(), questions, kept, threshold=self.threshold)
            self.measured_sets.setdefault(questions.name, {})[about.label] = found
