"""A small obedience check for training recipes: did training make the classifier deaf to other wordings?

A few families say most of what the whole suite (`recipes/obedience.py`) says: in lessons and never in lessons, from
characters to words to length, and prompts that add false alarms, as no prompt can take a flag away. The same questions
are asked before and after training, so a loss of F1 is one of pairs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from eval.questions import Evaluation, draw_grouped_questions
from eval.reports.table import Table
from judge.protocol import Classifier
from prompts.example import Example
from prompts.flip import FlipOptions
from prompts.taxonomy import Taxonomy

from .measure import f1_drop, measure_all, reference_rows
from .shipped import choose_families
from .suite import PLAIN, Answers, ask_all, plain_wording, rewrite_all

QUICK_FAMILIES = (
    "upper_case", "nonsense_names", "legal_prose",  # lessons may use them
    "typos", "misleading_names", "bullets",  # no lesson may
    "true_prompt", "forged_unsafe",
)  # fmt: skip
Stage = Literal["before", "after", "teacher"]
CLEARLY = 0.1
"""A family lags where its F1 surely lies so far under that of its reference."""
_GROUP = 4
"""Rows under one policy: few, so that few questions have several policies."""
ADVICE = (
    "The lessons are too narrow: raise flip.restyle, rename or reword, or give the taxonomy more aliases and "
    "rewordings. recipes/obedience.py measures all families."
)


class QuickObedience:
    """The questions, drawn once, and who has answered them."""

    def __init__(
        self, examples: Sequence[Example], taxonomy: Taxonomy, flips: FlipOptions, *, rows: int, seed: int
    ) -> None:
        """Draw the questions.

        Args:
            examples: images that nothing was trained on.
            taxonomy: the categories; those held out are not asked about.
            flips: how policies are drawn; other wordings than the taxonomy's are left to the families.
            rows: questions of each family; 0 asks nothing.
            seed: of the draws.

        Raises:
            ExampleError: too few suitable examples.
        """
        self.rows, self.families = rows, choose_families(QUICK_FAMILIES)
        self.answers: dict[Stage, dict[str, Answers]] = {}
        if rows:
            options = replace(plain_wording(flips), group_size=_GROUP)
            questions = draw_grouped_questions(examples, taxonomy, options, seed=seed, rows=rows)
            self.rewritten = rewrite_all(
                Evaluation(tuple(questions)), self.families, taxonomy, held_out=flips.held_out, seed=seed
            )

    def ask(self, stage: Stage, classifier: Classifier | None) -> None:
        """Ask a classifier; None is none, as where no process has a whole one. Every process asks all, being few."""
        if self.rows and classifier is not None:
            self.answers[stage] = ask_all(classifier, self.rewritten)

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Stage -> numbers as in `measure_all`, None where there was no "before"; None where nothing was asked.

        Beside them `fell` and `lagging`, the families of which `summary` complains.
        """
        if not self.answers:
            return None
        found: dict[str, Any] = {"before": None, "after": None}
        for stage, answers in self.answers.items():
            found[stage] = measure_all(self.families, answers, self.rewritten)
        return found | {"fell": self.fell(), "lagging": self.lagging()}

    def fell(self) -> list[str]:
        """Families whose F1 surely fell: the 95 % interval of the loss, on the same questions, lies above 0."""
        before, after = self.answers.get("before", {}), self.answers.get("after", {})
        asked = [family.name for family in self.families if before and after and after[family.name].rows]
        return [name for name in asked if f1_drop(before[name].rows, after[name].rows).low > 0]

    def lagging(self) -> list[str]:
        """Families obeyed `CLEARLY` less than the plain wording, or prompts than none, at the end."""
        found = []
        for family in self.families:
            rows = self.answers["after"][family.name].rows if "after" in self.answers else ()
            reference = reference_rows(family, self.answers["after"]) if rows else {}
            if rows and f1_drop([reference[row.id] for row in rows], rows).low > CLEARLY:
                found.append(family.name)
        return found

    @property
    def columns(self) -> dict[str, dict[str, float | None]]:
        """Stage -> wording -> F1, for tables; nothing for what was not asked."""
        metrics = self.metrics or {}
        found: dict[str, dict[str, float | None]] = {}
        for stage in self.answers:
            records = {"plain wording": metrics[stage]["references"][PLAIN], **metrics[stage]["families"]}
            found[stage] = {name: record["f1"] for name, record in records.items() if record["rows"]}
        return found

    def summary(self, who: str = "judge", advice: str = ADVICE) -> str:
        """A table of F1 by family, with a complaint where wordings are not obeyed; empty where nothing was asked.

        Args:
            who: what the classifier is called.
            advice: the end of the complaint.
        """
        columns = self.columns
        if "after" not in columns:
            return ""
        before, after = columns.get("before", {}), columns["after"]
        lines = [(name, [found.get(name) for found in columns.values()]) for name in after]
        text = Table(
            f"Obedience in small, {self.rows} questions a family", [f"F1 {s}" for s in columns], lines
        ).to_text()
        fell = [f"{name} F1 {before[name]:.2f} -> {after[name]:.2f}" for name in self.fell()]
        lagging = [f"{name} F1 {after[name]:.2f}" for name in self.lagging()]
        if fell:
            text += f"\nAfter training the {who} obeys fewer wordings than before: {', '.join(fell)}."
        if lagging:
            plain = f"the plain wording ({after['plain wording']:.2f})"
            text += f"\nThe {who} obeys these less than {plain}: {', '.join(lagging)}."
        return f"{text}\n{advice}" if fell or lagging else text
