"""The tables of an obedience report, from the numbers in `metrics.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reports.table import Table

from .added_category import MODES
from .measure import HEADLINE_KEYS

Metrics = Mapping[str, Any]
_USED = {True: "which lessons may use", False: "never used in lessons"}
_POLICY = {
    "rows": "questions",
    "f1": "F1",
    "f1_drop": "drop",
    "f1_drop_interval": "95 %",
    "pair_score": "pair score",
    "safe_to_unsafe": "made unsafe",
    "unsafe_to_safe": "made safe",
    "calibration_error": "calibration",
    "unjudged_share": "unjudged",
    "turned": "turned",
    "heldout_f1": "held-out F1",
}
"""Field of a record -> head of its column."""
_PROMPT = {
    "rows": "questions",
    "recall": "recall",
    "recall_drop": "drop",
    "false_alarms": "false alarms",
    "f1": "F1",
    "f1_drop": "drop",
    "f1_drop_interval": "95 %",
    "pair_score": "pair score",
    "calibration_error": "calibration",
    "unjudged_share": "unjudged",
    "flags_lost": "flags lost",
    "heldout_recall_drop": "held-out drop",
    "heldout_flags_lost": "held-out lost",
}
_WHERE_KNOWN = ("heldout_recall_drop", "heldout_flags_lost")
"""Columns that are left out where no record has the number."""
_PROMISE = {
    "without_promise": "no promise",
    "unsafe_rows": "unsafe rows",
    "misses": "missed",
    "miss_rate": "share",
}
_ADDED = {
    "flags": "flags",
    "lost": "lost",
    "lost_share": "share",
    "added": "added",
    "mean_change": "mean change",
    "worst_change": "worst change",
    "unjudged": "unjudged",
}
_REFERENCES = {"plain": ("policy", "as the taxonomy words it"), "no_prompt": ("prompt", "no prompt")}
NOTES = {
    "policy": "Drop: F1 of the plain wording on the same questions minus F1 here, interval by image. Made "
    "unsafe, made safe: verdicts right where another policy made the image so. Turned: right in the plain wording and "
    "wrong here, of the rows that a text in the policy aims at. What was not judged counts as wrong. Flagging "
    "everything gives an F1 of .667 and no pair.",
    "promise": "No promise: share of the unsafe rows whose policy lies outside the cascade's calibration.",
    "added": "Scores of all other categories, without prompts, under a policy with one more: an unrelated one, or one "
    "that orders a verdict. Flags: of these categories by the threshold; lost and added: with the longer policy. One "
    "answer divides one probability among the categories; multilabel asks about each by itself.",
    "prompt": "Both drops: without any prompt minus here. False alarms: share of safe questions judged wrong. Flags "
    "lost: questions flagged without a prompt and not with it.",
}


def tables(metrics: Metrics, before: Metrics | None = None) -> list[Table]:
    """Policies, then prompts, each in families that lessons may use and families that they never use; then the rest.

    Args:
        metrics: what `eval.obedience.measure.measure_all` gave.
        before: the same of the untrained base, for a column of its F1.
    """
    found = []
    for kind, columns in (("policy", _POLICY), ("prompt", _PROMPT)):
        for used in (True, False):
            chosen = {
                name: record
                for name, record in metrics["families"].items()
                if record["kind"] == kind and record["in_lessons"] is used and record["rows"]
            }
            if chosen:
                found.append(_table(kind, used, columns, chosen, metrics, before))
    return [*found, *(table for table in (added_category(metrics), promise(metrics)) if table.lines)]


def _table(
    kind: str,
    used: bool,
    columns: Mapping[str, str],
    records: Mapping[str, Mapping[str, Any]],
    metrics: Metrics,
    before: Metrics | None,
) -> Table:
    """One table; its first line is the wording that drops are measured against."""
    columns = {
        field: head
        for field, head in columns.items()
        if field not in _WHERE_KNOWN or any(record.get(field) is not None for record in records.values())
    }
    lines: list[tuple[str, Sequence[Any]]] = []
    [(reference, about)] = [(name, about) for name, (of, about) in _REFERENCES.items() if of == kind]
    shown = {about: metrics["references"][reference]} | dict(records)
    earlier = {} if before is None else {about: before["references"][reference]} | dict(before["families"])
    for name, record in shown.items():
        cells = [record.get(field) for field in columns]
        if earlier:
            cells.append(earlier.get(name, {}).get("f1"))
        lines.append((name, cells))
    heads = list(columns.values())
    title = f"{'Policies' if kind == 'policy' else 'Prompts'}: families {_USED[used]}"
    return Table(title, [*heads, "F1 before"] if earlier else heads, lines, NOTES[kind])


def headline(metrics: Metrics, before: Metrics | None = None) -> Table:
    """The numbers that stand for the rest, with the base's beside them where it was asked."""
    names = [
        *HEADLINE_KEYS,
        *(
            f"{group}.{key}"
            for group in ("lesson_families", "unseen_families")
            for key in ("mean_f1", "worst_f1")
        ),
    ]
    columns = [metrics] if before is None else [metrics, before]
    lines = [(name, [_find(column, name) for column in columns]) for name in names]
    return Table("In short", ["judge", "before"][: len(columns)], lines)


def refusals(metrics: Metrics) -> Table:
    """Families that did not apply to some questions, and why."""
    lines = [
        (name, [count, reason])
        for name, record in metrics["families"].items()
        for reason, count in record["refused"].items()
    ]
    return Table("Questions that a family does not apply to", ["questions", "reason"], lines)


def added_category(metrics: Metrics) -> Table:
    """What one more category in the policy does to the others, by mode and kind of category."""
    found = metrics.get("added_category") or {}
    lines = [
        (f"{addition.replace('_', ' ')}, {mode.replace('_', ' ')}", [effect[field] for field in _ADDED])
        for mode in MODES
        for addition, effect in (found.get(mode) or {}).items()
    ]
    return Table("One more category: its effect on the others", list(_ADDED.values()), lines, NOTES["added"])


def promise(metrics: Metrics) -> Table:
    """What a cascade missed where its promise holds and where it is withdrawn, and by family of policies."""
    found = metrics.get("promise")
    records: dict[str, Mapping[str, Any]] = {}
    if found:
        records = {f"policies {side} its calibration": found[side] for side in ("inside", "outside")}
        records |= {
            name: record
            for name, record in found["families"].items()
            if metrics["families"].get(name, {}).get("kind") == "policy" and record["unsafe_rows"]
        }
    lines = [(name, [record[field] for field in _PROMISE]) for name, record in records.items()]
    title = f"The promised miss rate: {found['promised']}" if found else ""
    return Table(title, list(_PROMISE.values()), lines, NOTES["promise"])


def _find(metrics: Metrics, name: str) -> Any:
    """A number by its dotted name; None where it was not measured."""
    found: Any = metrics
    for part in name.split("."):
        found = (found or {}).get(part)
    return found
