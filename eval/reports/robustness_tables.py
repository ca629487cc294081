"""The tables of a robustness report, from the numbers in `metrics.json`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .page import show

HEADLINE_KEYS = (
    "huge_epsilon_success",
    "filters_asr",
    "cascade_asr",
    "cascade_f1_loss",
    "undefended_robust_accuracy",
    "defended_robust_accuracy",
    "clean_f1_loss",
)
"""The numbers that stand for the rest."""
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One table: a line for each name."""

    title: str
    heads: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Any]]]
    note: str = field(default="", compare=False)

    def to_text(self) -> str:
        """The table for a terminal."""
        rows = [["", *self.heads], *([show(name), *map(show, cells)] for name, cells in self.lines)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])


def tables(metrics: Metrics) -> list[Table]:
    """Every table that the metrics of `recipes/attack.py` have data for, in the order of the report."""
    pixels = metrics["pixels"]
    found = [
        by_budget(pixels, metrics["suite"]["ran"]),
        by_attack_table(pixels),
        by_storing(pixels),
        *(
            split_table(pixels, key, title)
            for key, title in (
                ("by_direction", "truth"),
                ("by_source", "source"),
                ("by_category", "category"),
            )
        ),
    ]
    if metrics.get("comparison"):
        found.append(comparison(metrics["comparison"]))
    if metrics.get("deployments"):
        found += [deployments(metrics["deployments"]), static(metrics["deployments"])]
    if metrics.get("texts"):
        found.append(texts(metrics["texts"]))
    if metrics.get("edits"):
        found.append(edits(metrics["edits"]))
    if metrics.get("transfer"):
        found.append(transfer(metrics["transfer"]))
    found.append(honesty(metrics["honesty"]))
    return [table for table in found if table.lines]


def by_budget(pixels: Metrics, ran: str) -> Table:
    """Robust accuracy of each victim against epsilon; `ran` says which attacks that is about."""
    budgets = list(next(iter(pixels.values()))["by_epsilon"])
    lines = [
        (
            name,
            [
                summary["rows"],
                summary["clean_f1"],
                summary["misjudged"] + summary["unjudged"],
                *(summary["by_epsilon"][budget]["robust_accuracy"] for budget in budgets),
                summary["interval"],
            ],
        )
        for name, summary in pixels.items()
    ]
    note = (
        "Share of all n rows that are judged right and stay right whatever ran at this budget or a smaller one, found "
        "again on the stored picture by the real path; a row that nobody could judge any more did not stay right. "
        f"{ran} Below one grey level nothing can be stored. 95 % by image: rows of one image count together."
    )
    heads = ["n", "F1 here", "wrong clean", *budgets, "95 % at the headline"]
    return Table("Robust accuracy by budget", heads, lines, note)


def by_storing(pixels: Metrics) -> Table:
    """The same on the attacks' own floats, and after each thing that a picture went through."""
    budgets = list(next(iter(pixels.values()))["by_epsilon"])
    other = ("robust_accuracy", "interval", "unjudged")
    lines = [
        (f"{name}: {entry}", [summary["rows"], *(summary["by_epsilon"][budget][entry] for budget in budgets)])
        for name, summary in pixels.items()
        for entry in summary["by_epsilon"][budgets[0]]
        if entry not in other
    ]
    note = (
        "raw: the attack's own floats. The others: what the pictures went through, judged by the real path. No attack "
        "aims at a re-encoding, so what JPEG undoes here is no defence. A row that fell as bytes at a smaller budget "
        "is attacked on by the first attack alone."
    )
    return Table("Robust accuracy by how pictures are stored", ["n", *budgets], lines, note)


def by_attack_table(pixels: Metrics) -> Table:
    """Robust accuracy against each attack alone, at the headline."""
    names = list(dict.fromkeys(name for summary in pixels.values() for name in summary["by_attack"]))
    lines = [
        (
            name,
            [
                summary["rows"],
                *(summary["by_attack"].get(attack, {}).get("robust_accuracy") for attack in names),
                summary["robust_accuracy"],
            ],
        )
        for name, summary in pixels.items()
    ]
    return Table("Robust accuracy by attack, headline budget", ["n", *names, "worst of all"], lines)


def split_table(pixels: Metrics, key: str, title: str) -> Table:
    """Robust accuracy of parts of the rows."""
    parts = list(dict.fromkeys(part for summary in pixels.values() for part in summary[key]))
    lines = [
        (
            name,
            [
                value
                for part in parts
                for value in (summary[key].get(part, {}).get(what) for what in ("rows", "robust_accuracy"))
            ],
        )
        for name, summary in pixels.items()
    ]
    heads = [head for part in parts for head in ("n", part)]
    return Table(f"Robust accuracy by {title}, headline budget", heads, lines)


def comparison(found: Metrics) -> Table:
    """Undefended against defended."""
    lines = [
        (
            f"{name}: {entry['epsilon']}",
            [
                entry["rows"], entry["undefended"], entry["defended"], entry["lead"], entry["interval"],
                entry["p_value"], entry["clean_f1_loss"],
            ],
        )
        for name, entries in found.items()
        for entry in entries
    ]  # fmt: skip
    heads = ["n", "undefended", "defended", "lead", "95 % (paired bootstrap)", "McNemar p", "clean F1 lost"]
    note = (
        "Robust accuracy of both on the same n rows. The bootstrap draws images; McNemar's test counts rows."
    )
    return Table("What the defence buys, and its price", heads, lines, note)


def deployments(found: Metrics) -> Table:
    """Attack success against filters and cascades."""
    lines = [
        (
            f"{name}, {arm}, {budget}",
            [
                rates["asr_n"]["total"],
                rates["asr_1"]["rate"],
                rates["asr_n"]["rate"],
                (rates["asr_n"]["low"], rates["asr_n"]["high"]),
                rates["attempts"],
                rates["passed_n"]["total"],
                rates["passed_n"]["rate"],
                rates["false_alarms"]["total"],
                rates["false_alarms_clean"]["rate"],
                rates["false_alarms"]["rate"],
            ],
        )
        for name, deployment in found.items()
        for budget, arms in deployment["adaptive"].items()
        for arm, rates in arms.items()
    ]
    heads = ["n", "ASR-1", "ASR-N", "95 %", "attempts", "n unsafe", "all unsafe passed"]
    heads += ["n benign", "false alarms", "under attack texts"]
    note = (
        "Unsafe by truth. ASR: of the n rows flagged when clean, those that pass all stages by the real path. "
        "False alarms on benign rows under the same policies, with their texts treated alike."
    )
    return Table("Attack success against filters and cascades, adaptive", heads, lines, note)


def static(found: Metrics) -> Table:
    """Attack success by transfer from the filters."""
    lines = [
        (f"{name}, {budget}", [entry["rows"], entry["rate"], entry["interval"], entry["successes"]])
        for name, deployment in found.items()
        for budget, entry in deployment["static"].items()
    ]
    note = "Made against the undefended filters, in image and text, and shown unchanged: what papers mostly report."
    return Table("The same by static transfer", ["n", "ASR", "95 %", "passed"], lines, note)


def texts(found: Metrics) -> Table:
    """Attack success through text alone."""
    names = list(dict.fromkeys(name for entry in found.values() for name in entry["families"]))
    lines = [
        (
            victim,
            [
                entry["any"]["rows"],
                *(entry["families"].get(name, {}).get("asr_n") for name in names),
                entry["any"]["rate"],
                entry["any"]["interval"],
                entry["definitions"]["rate"],
            ],
        )
        for victim, entry in found.items()
    ]
    note = "Share of n rows judged right when clean that some text of the family turns, in either direction."
    heads = ["n", *names, "any", "95 %", "through definitions"]
    return Table("Text alone: ASR-N by family", heads, lines, note)


def edits(found: Metrics) -> Table:
    """What edits, corruptions and writing leave."""
    lines = [
        (
            f"{name}: {victim}",
            [
                entry[name]["rows"],
                sum(entry[name]["held"].values()) / len(entry[name]["held"]),
                min(entry[name]["held"], key=entry[name]["held"].get),
                min(entry[name]["held"].values()),
                entry[name]["worst"],
            ],
        )
        for name in ("edits", "corruptions", "writing")
        for victim, entry in found.items()
        if name in entry
    ]
    heads = ["n", "held, mean", "hardest", "held under it", "held under all"]
    severities = ", ".join(map(str, next(iter(found.values()))["severities"]))
    return Table(f"Edits without a budget (severities {severities})", heads, lines)


def transfer(found: Metrics) -> Table:
    """The transfer matrix."""
    names = list(dict.fromkeys(name for row in found["matrix"].values() for name in row))
    lines = [
        (
            f"made on {maker}",
            [value for name in names for value in (row[name]["rows"], row[name]["success"])],
        )
        for maker, row in found["matrix"].items()
    ]
    note = (
        f"Attack success at {found['epsilon']} of {found['attack']}'s pictures, made on one victim, shown to another. "
        "n are the rows that the latter judges right when clean."
    )
    return Table("Transfer", [head for name in names for head in ("n", name)], lines, note)


def honesty(found: Mapping[str, Iterable[Metrics]]) -> Table:
    """Every check of every victim."""
    lines = [
        (
            f"{victim}: {check['name']}",
            ["passed" if check["passed"] else "FAILED", check["limit"], check["message"]],
        )
        for victim, checks in found.items()
        for check in checks
    ]
    return Table("Honesty checks", ["", "limit", "what was seen"], lines)


def headline(
    metrics: Metrics, pair: tuple[str, str] | None, small: str, large: str
) -> dict[str, float | None]:
    """The numbers of `HEADLINE_KEYS`; None where nothing was attacked that could give one.

    Args:
        metrics: what was found; deployments in the order filters, cascade, defended cascade.
        pair: an undefended victim and its defended version.
        small: the headline budget, as a key of the tables; cascades are held to it.
        large: the largest budget; the filters alone are shown to fall at it.
    """
    deployments, clean = metrics["deployments"], metrics["clean"]
    first, second = (name if name in metrics["pixels"] else None for name in pair or (None, None))
    names = list(deployments)

    def success(name: str, budget: str) -> float:
        return float(deployments[name]["adaptive"][budget]["both"]["asr_n"]["rate"])

    return {
        "huge_epsilon_success": min(
            check["measured"]
            for checks in metrics["honesty"].values()
            for check in checks
            if check["name"] == "huge_epsilon"
        ),
        "filters_asr": success(names[0], large) if names else None,
        "cascade_asr": success(names[2], small) if len(names) > 2 else None,
        "cascade_f1_loss": deployments[names[1]]["clean_f1"] - deployments[names[2]]["clean_f1"]
        if len(names) > 2
        else None,
        "undefended_robust_accuracy": metrics["pixels"][first]["robust_accuracy"] if first else None,
        "defended_robust_accuracy": metrics["pixels"][second]["robust_accuracy"] if second else None,
        "clean_f1_loss": clean[first] - clean[second] if first and second else None,
    }


def failed_checks(found: Mapping[str, Iterable[Metrics]]) -> list[str]:
    """The failed checks, a line each."""
    return [
        f"{victim}: {check['name']}: {check['message']}"
        for victim, checks in found.items()
        for check in checks
        if not check["passed"]
    ]
