"""`arbiter taxonomy test --decisions`: what a new wording changes on what moderators decided."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge.errors import ConfigError
from judge.publish.hub import model_hash
from judge.verdicts.rows import Judging
from prompts.taxonomy import Taxonomy

from .exit_codes import EXIT_FLAGGED, EXIT_SAFE, EXIT_UNJUDGED
from .image_files import FoundFile
from .judging import JudgeCall
from .options import load_judge, warn_outside_promise, warn_without_evidence
from .taxonomy_diff import matching_categories
from .terminal import STATUS_STYLES

if TYPE_CHECKING:
    from judge.protocol import Classifier
    from judge.records.records import Records
    from judge.records.replay import PastDecision, Replayed

    from .terminal import Terminal


def open_records(state: Path, database: str | None, password_file: Path | None = None) -> "Records":
    """The records that `arbiter serve` wrote.

    Raises:
        ConfigError: there are none, or the password cannot be read.
        MissingExtraError: the packages that read them are not installed.
        RecordsError: they cannot be read.
    """
    from .serve_command import check_extra

    check_extra()
    from judge.records.records import DATABASE_FILE, Records
    from judge.records.urls import with_password

    if not (state.is_dir() if database else (state / DATABASE_FILE).is_file()):
        raise ConfigError(
            f"{state} holds no records of moderators; name the --state of `arbiter serve`, and its --database if it "
            "had one."
        )
    return Records.in_folder(state, with_password(database, password_file))


def decisions_about(records: "Records", taxonomy: Taxonomy) -> "list[PastDecision]":
    """The decisions that say something of a taxonomy.

    Raises:
        ConfigError: none does.
    """
    from judge.records.replay import past_decisions

    found = past_decisions(records, taxonomy, _new_names)
    if not found:
        raise ConfigError(
            f"Nothing was decided about a category of {taxonomy.name!r}; categories are the same by key, name or "
            "definition."
        )
    return found


def judge_decisions(
    terminal: "Terminal",
    where: tuple[Path, str | None, Path | None],
    taxonomy: Taxonomy,
    threshold: float | dict[str, float],
    judge: tuple[str, str | None, str | None, int],
    as_json: bool,
) -> int:
    """Judge again what was decided, print what a taxonomy changes, and return the exit code.

    Args:
        terminal: where to print.
        where: folder of the records, URL of their database where it is not in there, and file of its password.
        taxonomy: the new wording.
        threshold: one number, or category name -> number.
        judge: name, stage judge, device and batch size, as `load_judge` takes them.
        as_json: print JSON.
    """
    from judge.records.replay import other_judges, summary

    name, stage_judge, device, batch_size = judge
    records = open_records(*where)
    try:
        past = decisions_about(records, taxonomy)
        with terminal.progress() as bar:
            bar.describe(f"loading {name}")
            classifier = load_judge(name, stage_judge=stage_judge, device=device, batch_size=batch_size)
            warn_outside_promise(classifier, taxonomy, terminal.notice)
            warn_without_evidence(classifier, name, taxonomy, terminal.notice)
            judging = Judging(taxonomy, threshold, classifier.name, model_hash(name))
            bar.describe("judging", len(past))
            again = list(bar.count(judge_again(records, past, classifier, judging, batch_size)))
    finally:
        records.close()
    if others := ", ".join(other_judges(past, judging.model_hash)):
        terminal.notice(f"verdicts of the time are by {others}: what changes is not by the wording alone")
    if as_json:
        print(json.dumps(replayed_report(again), allow_nan=False))
    else:
        show_replayed(terminal, again)
    found = summary(again)
    if found["broken"]:
        return EXIT_FLAGGED
    return EXIT_UNJUDGED if found["unjudged_now"] else EXIT_SAFE


def judge_again(
    records: "Records",
    past: "Sequence[PastDecision]",
    classifier: "Classifier",
    judging: Judging,
    batch_size: int,
) -> "Iterator[Replayed]":
    """The decisions with new verdicts, in order; an image that is gone is unjudged."""
    from judge.records.replay import Replayed

    prompts = iter([one.decision.item.prompt for one in past])
    call = JudgeCall(classifier, judging, lambda path: next(prompts))
    files = (_file(records, one) for one in past)
    for one, judged in zip(past, call.judge_files(files, batch_size), strict=True):
        yield Replayed(one, judged.row)


def show_replayed(terminal: "Terminal", replayed: "Sequence[Replayed]") -> None:
    """Print the decisions whose verdict changed, and how many agree before and now."""
    from judge.records.replay import summary

    changed = [one for one in replayed if one.changed]
    if changed:
        terminal.table(
            ("decision", "image", "decided", "before", "now", "score", "change"),
            [
                (
                    one.past.decision.id,
                    one.past.decision.item.name,
                    _decided(one),
                    _words(one.past.before, one.past.decision.verdict["status"]),
                    _words(one.flagged, one.row["status"]),
                    one.row["unsafe"],
                    one.change,
                )
                for one in changed
            ],
            styles=[_STYLES[one.change] for one in changed],
        )
        terminal.gap()
    found = summary(replayed)
    terminal.table(
        ("decisions", "agreed before", "agree now", "not judged now", "fixed", "broken", "changed otherwise"),
        [tuple(found.values())],
    )


def replayed_report(replayed: "Sequence[Replayed]") -> dict[str, Any]:
    """The same for programs."""
    from judge.records.replay import summary

    return {
        **summary(replayed),
        "results": [
            {
                "decision": one.past.decision.id,
                "image": one.past.decision.item.name,
                "sha256": one.past.decision.item.sha256,
                "expected": "unsafe" if one.past.expected is None else sorted(one.past.expected),
                "before": one.past.agreed_before,
                "now": one.agrees_now,
                "change": one.change if one.changed else None,
                "verdict": dict(one.row),
            }
            for one in replayed
        ],
    }


_STYLES = {
    "fixed": STATUS_STYLES["safe"],
    "broken": STATUS_STYLES["unsafe"],
    "unjudged": STATUS_STYLES["unjudged"],
    "changed": "",
}


def _new_names(old: Taxonomy, new: Taxonomy) -> dict[str, str]:
    return {earlier.name: later.name for earlier, later in matching_categories(old, new)}


def _file(records: "Records", past: "PastDecision") -> FoundFile:
    from judge.records.errors import NotFoundError

    item = past.decision.item
    try:
        return FoundFile(item.name, data=records.image(item.sha256))
    except NotFoundError as error:
        return FoundFile(item.name, reason=str(error))


def _decided(one: "Replayed") -> str:
    expected = one.past.expected
    return "unsafe" if expected is None else _words(expected, "safe")


def _words(flagged: frozenset[str], status: str) -> str:
    return ", ".join(sorted(flagged)) or status
