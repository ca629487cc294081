"""The tables of the policy tests: classifiers are lines."""

from collections.abc import Mapping
from typing import Any

from eval.reports.table import Table

Metrics = Mapping[str, Mapping[str, Any]]
"""Label of a classifier -> its record."""
_DIRECTIONS = {"safe_to_unsafe": "s→u", "unsafe_to_safe": "u→s"}
_PAIRS_NOTE = (
    "The same images under two policies, one of which forbids what they show. Pair score: judged right under both; "
    "s→u, u→s: right under the policy that makes the image unsafe, or safe. 95 % intervals by image; what was not "
    "judged is wrong. PES, LlavaGuard's score, only to compare with published numbers: all safe gives .667."
)
_FIXED = "Fixed: categories are mapped by key, as an operator would, so other words cannot mislead such a classifier."


def policy_tables(records: Metrics) -> list[Table]:
    """Every table that the records have numbers for.

    Args:
        records: label -> what `PolicyTests.measure` gave.
    """
    found = [opposite_policies(records), obedience(records), families(records), unseen_harms(records)]
    return [table for table in [*found, not_asked(records)] if table.lines]


def opposite_policies(records: Metrics) -> Table:
    """Pair score and both directions of a flip."""
    heads = ["categories", "fixed", "pairs", "pair score", "95 %"]
    for direction in _DIRECTIONS.values():
        heads += [direction, "95 %"]
    lines = []
    for label, record in records.items():
        cells = [len(record["covers"]), record["fixed"], record["pairs"]]
        for name in ("pair_score", *_DIRECTIONS):
            cells += [record[name], _interval(record[f"{name}_interval"])]
        lines.append((label, [*cells, record["unjudged_share"], record["pes"]]))
    return Table("Opposite policies", [*heads, "unjudged", "PES"], lines, _PAIRS_NOTE)


def obedience(records: Metrics) -> Table:
    """The policy in other words, structures and logic, and beside other prompts, in short."""
    heads = {
        "rows": "rows", "plain_f1": "plain F1", "families": "families", "mean_f1": "mean F1", "worst_f1": "worst F1",
        "worst": "worst", "worst_prompt_recall_drop": "recall lost to prompts",
        "false_alarms_added": "alarms by prompts", "definition_injections_turned": "turned by orders",
        "unjudged_share": "unjudged",
    }  # fmt: skip
    lines = [
        (label, [_in_words(record["obedience"][name]) for name in heads])
        for label, record in records.items()
        if record["obedience"] is not None
    ]
    note = (
        "F1 on the same images, each policy in the taxonomy's words (plain) and rewritten by each family that could be "
        f"asked. Families differ in number, and so do the mean and the worst one. {_FIXED}"
    )
    return Table("Obedience", list(heads.values()), lines, note)


def _in_words(value: Any) -> Any:
    return value.replace("_", " ") if isinstance(value, str) else value


def families(records: Metrics) -> Table:
    """F1 under each family; a dash where it was not asked."""
    asked = {label: record["obedience"] for label, record in records.items() if record["obedience"]}
    names = list(dict.fromkeys(name for found in asked.values() for name in found["by_family"]))
    lines = [
        (label, [found["plain_f1"], *(found["by_family"].get(name, {}).get("f1") for name in names)])
        for label, found in asked.items()
    ]
    note = "Also where a rewriting changes what is forbidden, half of the rows are unsafe."
    return Table(
        "Obedience: F1 by family", ["plain", *(name.replace("_", " ") for name in names)], lines, note
    )


def unseen_harms(records: Metrics) -> Table:
    """Categories that were held out."""
    heads = {
        "rows": "rows", "f1": "F1", "f1_interval": "95 %", "auc": "AUC", "named": "named",
        "named_of_flagged": "of the flagged", "unjudged_share": "unjudged",
    }  # fmt: skip
    lines = [
        (label, [_interval(value) if name == "f1_interval" else value for name, value in cells])
        for label, record in records.items()
        if record["unseen"] is not None
        for cells in [[(name, record["unseen"][name]) for name in heads]]
    ]
    note = (
        "Policies with categories that are held out here, and of our runs from training; of others, nobody knows what "
        "they saw. Named: share of the unsafe images that were flagged for a category that they violate."
    )
    return Table("Unseen harms", list(heads.values()), lines, note)


def not_asked(records: Metrics) -> Table:
    """What a classifier could not be asked, and why."""
    lines: list[tuple[str, list[Any]]] = []
    for label, record in records.items():
        if record["reason"] is not None:
            lines.append((label, ["pairs", None, record["reason"]]))
        for part, reason in record["not_drawn"].items():
            if part != "pairs":
                lines.append((label, [part.replace("_", " "), None, reason]))
        for family, reasons in (record["obedience"] or {}).get("not_asked", {}).items():
            lines += [(label, [family.replace("_", " "), count, why]) for why, count in reasons.items()]
    return Table("Policy questions that were not asked", ["of", "questions", "reason"], lines)


def policy_set_table(records: Metrics) -> Table:
    """Other people's questions.

    Args:
        records: label -> what `measure_policy_set` gave, all of one set.
    """
    tiers = list(dict.fromkeys(tier for record in records.values() for tier in record["by_tier"]))
    heads = ["questions", "not asked", "F1", "95 %", "accuracy", *tiers, "pairs", "pair score", "95 %"]
    lines = []
    for label, record in records.items():
        cells = [record["rows"], sum(record["not_asked"].values()), record["f1"]]
        cells += [_interval(record["f1_interval"]), record["accuracy"]]
        cells += [record["by_tier"].get(tier, {}).get("accuracy") for tier in tiers]
        cells += [record["pairs"], record["pair_score"], _interval(record["pair_score_interval"])]
        cells += [record[direction] for direction in _DIRECTIONS]
        lines.append((label, [*cells, record["unjudged_share"]]))
    names = dict.fromkeys(record["name"] for record in records.values())
    note = (
        "Pair score: over images and areas, the mean share of opposite-label questions with two right verdicts. The "
        "published code drops invalid answers first; here what was not judged is wrong, also in F1 and accuracy."
    )
    return Table(f"Policies of {', '.join(names)}", [*heads, *_DIRECTIONS.values(), "unjudged"], lines, note)


def _interval(ends: Any) -> Any:
    """The ends of an interval, or None where there is none."""
    return None if ends is None or None in ends else ends
