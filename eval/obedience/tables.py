"""The tables of an obedience report, from the numbers in `metrics.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reports.robustness_tables import Table

from .measure import HEADLINE_KEYS

Metrics = Mapping[str, Any]
_USED = {True: "which lessons may use", False: "never used in lessons"}
_POLICY = {
    "rows": "rows",
    "f1": "F1",
    "f1_drop": "drop",
    "f1_drop_interval": "95 %",
    "pair_score": "pairs",
    "safe_to_unsafe": "s→u",
    "unsafe_to_safe": "u→s",
    "calibration_error": "calib.",
    "unjudged_share": "unjudged",
    "turned": "turned",
    "heldout_f1": "held-out F1",
}
"""Field of a record -> head of its column."""
_PROMPT = {
    "rows": "rows",
    "recall": "recall",
    "recall_drop": "drop",
    "false_alarms": "alarms",
    "f1": "F1",
    "f1_drop": "drop",
    "f1_drop_interval": "95 %",
    "pair_score": "pairs",
    "calibration_error": "calib.",
    "unjudged_share": "unjudged",
    "flags_lost": "flags lost",
}
_REFERENCES = {"plain": ("policy", "as the taxonomy words it"), "no_prompt": ("prompt", "no prompt")}
NOTES = {
    "policy": "Drop: F1 of the plain wording on the same questions minus F1 here, interval by image. s→u, u→s: "
    "verdicts right where another policy made the image unsafe, or safe. Turned: right in the plain wording and wrong "
    "here, of the rows that a text in the policy aims at. What was not judged counts as wrong. Flagging everything "
    "gives an F1 of .667 and no pair.",
    "prompt": "Both drops: without any prompt minus here. Alarms: share of safe rows judged wrong. Flags lost: rows "
    "flagged without a prompt and not with it.",
}


def tables(metrics: Metrics, before: Metrics | None = None) -> list[Table]:
    """Policies, then prompts, each in families that lessons may use and families that they never use.

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
    return found


def _table(
    kind: str,
    used: bool,
    columns: Mapping[str, str],
    records: Mapping[str, Mapping[str, Any]],
    metrics: Metrics,
    before: Metrics | None,
) -> Table:
    """One table; its first line is the wording that drops are measured against."""
    heads = list(columns.values())
    lines: list[tuple[str, Sequence[Any]]] = []
    [(reference, about)] = [(name, about) for name, (of, about) in _REFERENCES.items() if of == kind]
    shown = {about: metrics["references"][reference]} | dict(records)
    earlier = {} if before is None else {about: before["references"][reference]} | dict(before["families"])
    for name, record in shown.items():
        cells = [record.get(field) for field in columns]
        if earlier:
            cells.append(earlier.get(name, {}).get("f1"))
        lines.append((name, cells))
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


def _find(metrics: Metrics, name: str) -> Any:
    """A number by its dotted name."""
    found: Any = metrics
    for part in name.split("."):
        found = found[part]
    return found
