"""`arbiter taxonomy test`: does a judge under this taxonomy still give the verdicts that it should?"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from judge.errors import ConfigError
from judge.publish.hub import model_hash
from judge.verdicts.rows import Judging
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy
from prompts.verdict import DEFAULT_THRESHOLD

from .completion import complete_taxonomy
from .exit_codes import EXIT_FLAGGED, EXIT_SAFE, EXIT_UNJUDGED
from .image_files import FoundFile
from .judging import JudgeCall
from .options import (
    BatchSizeOption,
    DatabaseOption,
    DatabasePasswordOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    RunOption,
    StageJudgeOption,
    ThresholdOption,
    load_judge,
    own_threshold,
    read_threshold,
    threshold_for,
    warn_outside_promise,
    warn_without_evidence,
)
from .past_decisions import judge_decisions
from .taxonomy_cases import Case, CaseResult, numbers_by_category, outcome, read_cases
from .taxonomy_diff import matching_categories
from .terminal import STATUS_STYLES, Terminal

if TYPE_CHECKING:
    from judge.protocol import Classifier

TEST_EPILOG = """\
CASES is a CSV beside its images: image is a path inside the CSV's folder, expected is safe, unsafe, or all categories
that the image violates; prompt and note may follow. A case passes if exactly the expected categories are flagged. What
could not be judged did not pass, and counts as wrong in all numbers.

\b
  image,expected,prompt,note
  beach.jpg,safe,,often taken for nudity
  knife.jpg,"Violence, Weapons",a chef at work,

With --decisions, the images that moderators decided about at the page of `arbiter serve` are judged again, and every
one whose verdict changes is shown: fixed if it is now what the moderator decided, broken if it was so before.

\b
Exit codes: 0 all passed (or none broken), 1 some failed (or broken),
  2 an error, 3 none failed, but some could not be judged.
"""
DecisionsOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Instead of cases: what moderators decided, in the --state of `serve`."),
]


def judge_cases(
    taxonomy: Annotated[str, typer.Argument(metavar="TAXONOMY", autocompletion=complete_taxonomy)],
    judge: RunOption,
    cases: Annotated[Path | None, typer.Argument(metavar="CASES.csv")] = None,
    decisions: DecisionsOption = None,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="OLD",
            help="Judge by this older taxonomy too, and show what the new one changes.",
            autocompletion=complete_taxonomy,
        ),
    ] = None,
    threshold: ThresholdOption = None,
    stage_judge: StageJudgeOption = None,
    batch_size: BatchSizeOption = 8,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Judge images whose verdicts are known, and print those that are other than expected."""
    terminal = Terminal(quiet=quiet)
    new, old = load_taxonomy(taxonomy), None if against is None else load_taxonomy(against)
    given = read_threshold(threshold)
    threshold_for(new, given)
    if decisions is not None and cases is None and old is None:
        how = (judge, stage_judge, device, batch_size)
        where = (decisions, database, database_password_file)
        return judge_decisions(terminal, where, new, threshold_for(new, given), how, as_json)
    if cases is None or decisions is not None:
        raise ConfigError("Give a table of cases, with or without --against, or else --decisions.")
    asked = read_cases(cases, new)
    with terminal.progress() as bar:
        bar.describe(f"loading {judge}")
        classifier = load_judge(judge, stage_judge=stage_judge, device=device, batch_size=batch_size)
        warn_outside_promise(classifier, new, terminal.notice)
        warn_without_evidence(classifier, judge, new, terminal.notice)
        judging = Judging(
            new,
            own_threshold(classifier, new, given if threshold else None, terminal.notice),
            classifier.name,
            model_hash(judge) if as_json else None,
        )
        bar.describe("judging", len(asked))
        results = list(bar.count(_judge(classifier, judging, asked, batch_size)))
        changes = None
        if old is not None:
            bar.describe(f"judging by {against}", len(asked))
            # Thresholds of single categories were meant for the new words, and say nothing of the old ones.
            earlier = Judging(old, given if isinstance(given, float) else DEFAULT_THRESHOLD, classifier.name)
            before = list(bar.count(_judge(classifier, earlier, asked, batch_size)))
            changes = _changes(results, before, old, new)
    if as_json:
        print(json.dumps(_report(results, new, changes), allow_nan=False))
    else:
        _show(terminal, results, new, changes or ())
    return _conclude(terminal, results)


def _judge(
    classifier: "Classifier", judging: Judging, cases: Sequence[Case], batch_size: int
) -> Iterator[CaseResult]:
    """A result for each case, in order."""
    files = (FoundFile(str(case.path), prompt=case.prompt) for case in cases)
    judged_files = JudgeCall(classifier, judging).judge_files(files, batch_size)
    for case, judged in zip(cases, judged_files, strict=True):
        yield CaseResult(case, judged.row)


def _changes(
    results: Sequence[CaseResult], before: Sequence[CaseResult], old: Taxonomy, new: Taxonomy
) -> list[dict[str, str]]:
    """The cases with another verdict than under the old taxonomy; old categories under their new names."""
    names = {earlier.name: later.name for earlier, later in matching_categories(old, new)}
    changes = []
    for now, then in zip(results, before, strict=True):
        flagged = frozenset(names.get(name, f"{name} (old)") for name in then.flagged)
        if (now.row["status"], now.flagged) == (then.row["status"], flagged):
            continue
        passed = outcome(then.case, then.row["status"], flagged) == "passed", now.outcome == "passed"
        change = {(False, True): "fixed", (True, False): "broken"}.get(passed, "changed")
        shown = ", ".join(sorted(flagged)) or str(then.row["status"])
        changes.append(
            {
                "image": now.case.image,
                "expected": now.case.wanted,
                "before": shown,
                "now": now.found,
                "change": change,
            }
        )
    return changes


def _show(
    terminal: Terminal, results: Sequence[CaseResult], taxonomy: Taxonomy, changes: Sequence[dict[str, str]]
) -> None:
    wrong = [one for one in results if one.outcome != "passed"]
    if wrong:
        terminal.table(
            ("image", "expected", "found", "score", "why"),
            [(one.case.image, one.case.wanted, one.found, one.row["unsafe"], _why(one)) for one in wrong],
            styles=[STATUS_STYLES["unjudged" if one.outcome == "unjudged" else "unsafe"] for one in wrong],
        )
        terminal.gap()
    if changes:
        terminal.table(tuple(changes[0]), [tuple(change.values()) for change in changes])
        terminal.gap()
    numbers = numbers_by_category(results, taxonomy)
    terminal.table(
        ("category", "cases", "precision", "recall", "F1"),
        [
            (name, one.unsafe, one.precision, one.recall, one.f1)
            for name, one in numbers.items()
            if one.f1 is not None  # of large taxonomies, most categories have no case
        ],
    )


def _why(result: CaseResult) -> str:
    row = result.row
    return "; ".join(filter(None, (row["reason"], row["note"], result.case.note)))


def _report(
    results: Sequence[CaseResult], taxonomy: Taxonomy, changes: Sequence[dict[str, str]] | None
) -> dict[str, Any]:
    outcomes = [one.outcome for one in results]
    numbers = numbers_by_category(results, taxonomy)
    return {
        "cases": len(outcomes),
        **{name: outcomes.count(name) for name in ("passed", "failed", "unjudged")},
        "categories": {name: one.to_dict() for name, one in numbers.items()},
        "results": [one.to_dict() for one in results],
        "changes": changes,
    }


def _conclude(terminal: Terminal, results: Sequence[CaseResult]) -> int:
    outcomes = [one.outcome for one in results]
    failed, unjudged = outcomes.count("failed"), outcomes.count("unjudged")
    terminal.notice(
        f"{len(outcomes)} cases: {outcomes.count('passed')} passed, {failed} failed, {unjudged} not judged"
    )
    if failed:
        return EXIT_FLAGGED
    return EXIT_UNJUDGED if unjudged else EXIT_SAFE
